"""The exercises of lesson 2: four rotations of every image, a training step that forgets, and how many test images a claim needs."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.course.exercises import Exercise, Wrong, expect_shape, expect_type

# --- 2.1 ------------------------------------------------------------------------------------------------------------------------------


def rotate_all(x: Tensor) -> tuple[Tensor, Tensor]:
    """All images turned by 0, 1, 2, 3 quarter turns, in this order. x (N, 3, H, H) -> images (4N, 3, H, H), labels int64 (4N,)."""
    images = torch.cat([torch.rot90(x, turns, dims=(2, 3)) for turns in range(4)])
    labels = torch.arange(4, device=x.device).repeat_interleave(len(x))
    return images, labels


_HEIGHT_AND_WIDTH = "Height and width are dimensions 2 and 3 of (N, 3, H, W): torch.rot90(x, turns, dims=(2, 3))."


def _recognise(images: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """For every image, what was done (0-3: quarter turns, 4-7: mirrored and turned, -1: something else) and to which row of x."""
    known = torch.cat([torch.rot90(v, turns, dims=(2, 3)) for v in (x, x.flip(3)) for turns in range(4)])
    nearest = (images.unsqueeze(1) - known).abs().flatten(2).amax(2).min(dim=1)
    done = torch.where(nearest.values < 1e-5, nearest.indices // len(x), -1)
    return done, nearest.indices % len(x)


def _check_images(images, n: int, size: int) -> None:
    if isinstance(images, (list, tuple)):
        raise Wrong("The images are still in a list. Join them along the batch with torch.cat(the_list).")
    expect_type(images, Tensor, "the images")
    if images.dim() == 5:
        raise Wrong(f"The images have five dimensions, {tuple(images.shape)}. torch.stack makes a new one; torch.cat joins the batches.")
    if len(images) == 3 * n:
        raise Wrong("There are 3N images: one of the four rotations is missing. The unturned images belong in as well, with label 0.")
    if len(images) == n:
        raise Wrong("There are N images, one rotation for each. Return every image in all four rotations: 4N images.")
    if tuple(images.shape) != (4 * n, 3, size, size) and images.numel() == 4 * n * 3 * size * size:
        raise Wrong(f"The result has shape {tuple(images.shape)}: the wrong dimensions were turned. {_HEIGHT_AND_WIDTH}")
    expect_shape(images, (4 * n, 3, size, size), "the images")


def _check_labels(labels, n: int) -> None:
    if isinstance(labels, (list, tuple)):
        raise Wrong("The labels are a list, and a loss needs a tensor: torch.tensor(the_list).")
    expect_type(labels, Tensor, "the labels")
    if tuple(labels.shape) == (4 * n, 4):
        raise Wrong("The labels are one-hot rows. Return the number of the class alone, shape (4N,).")
    expect_shape(labels, (4 * n,), "the labels")
    if labels.max() > 4:
        raise Wrong("The labels are angles. Cross-entropy wants the number of the class: 0, 1, 2, 3 quarter turns.")
    if labels.dtype != torch.int64:
        raise Wrong(f"The labels have the type {labels.dtype}. Class numbers have to be int64: labels.long().")
    if labels.min() >= 1 and labels.max() == 4:
        raise Wrong("The labels count from 1 to 4. Classes count from 0: the unturned images have label 0.")


def _check_arrangement(images: Tensor, labels: Tensor, x: Tensor) -> None:
    n = len(x)
    done, source = _recognise(images, x)
    if (done < 0).any():
        raise Wrong(f"Some images are no turned version of any given image. {_HEIGHT_AND_WIDTH}")
    if ((done == 5) | (done == 7)).any():
        raise Wrong("A transpose is not a quarter turn: it mirrors the image as well, and letters become unreadable. Use torch.rot90.")
    if (done > 3).any():
        raise Wrong("A flip along one axis is not a half turn: the image is mirrored. A half turn flips both axes.")
    by_block, by_image = torch.arange(n).repeat(4), torch.arange(n).repeat_interleave(4)
    for i in range(n):
        turns = done[source == i].sort().values.tolist()
        if turns != [0, 1, 2, 3]:
            raise Wrong(f"Every image should be there once in each rotation; image {i} is there with the quarter turns {turns}.")
    if torch.equal(source, by_block) and torch.equal(labels, torch.arange(4).repeat(n)):
        raise Wrong("The images come in blocks, but the labels run 0, 1, 2, 3, 0, 1, ... Use repeat_interleave(N) for the labels.")
    if torch.equal(source, by_image) and torch.equal(labels, torch.arange(4).repeat_interleave(n)):
        raise Wrong("The labels come in blocks, but the images come image by image. Join four whole batches with torch.cat.")
    if torch.equal(labels, (4 - done) % 4):
        raise Wrong(
            "The images are turned clockwise. A positive number of turns in torch.rot90(x, turns, dims=(2, 3)) is counter-clockwise."
        )
    if not torch.equal(labels, done):
        first = int((labels != done).nonzero()[0])
        raise Wrong(f"Row {first} is turned by {int(done[first])} quarter turns and its label says {int(labels[first])}.")
    if torch.equal(source, by_image):
        raise Wrong(
            "Labels and images agree, but they come image by image. Blocks are expected: first all images unturned, then turned once."
        )
    if not torch.equal(source, by_block) or not torch.equal(done, torch.arange(4).repeat_interleave(n)):
        raise Wrong("Labels and images agree, but their order is another: label 0 first, then 1, 2, 3, and in each the order of x.")


def _check_rotations(answer) -> None:
    for n, size in ((5, 6), (2, 8)):
        x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))
        try:
            got = answer(x)
        except Wrong as wrong:
            if isinstance(wrong.__cause__, RuntimeError) and any(s in str(wrong.__cause__) for s in ("must match", "equal size")):
                raise Wrong(f"The turned images no longer fit together: the wrong dimensions were turned. {_HEIGHT_AND_WIDTH}") from wrong
            raise
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            expect_type(got, (Tensor, tuple, list))
            raise Wrong("Return two tensors: return images, labels.")
        images, labels = got
        _check_images(images, n, size)
        _check_labels(labels, n)
        _check_arrangement(images, labels, x)


# --- 2.2 ------------------------------------------------------------------------------------------------------------------------------


def train_steps(model: nn.Module, batches, loss_fn, lr: float) -> list[float]:
    """One step of plain SGD for each batch (x, y), from this batch's gradient alone. Returns the losses as floats."""
    losses = []
    for x, y in batches:
        model.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= lr * p.grad
        losses.append(loss.item())
    return losses


def _by_optimizer(kind, **settings):
    def train(model, batches, loss_fn, lr):
        optimizer = kind(model.parameters(), lr=lr, **settings)
        for x, y in batches:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()

    return train


def _never_cleared(model, batches, loss_fn, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for x, y in batches:
        loss_fn(model(x), y).backward()
        optimizer.step()


def _one_step(model, batches, loss_fn, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    sum(loss_fn(model(x), y) for x, y in batches).backward()
    optimizer.step()


def _divided_by_rows(model, batches, loss_fn, lr):
    train_steps(model, batches, lambda out, y: loss_fn(out, y) / len(y), lr)


_DIVIDED = (
    "The step is divided by a number of batches or rows. loss_fn is a mean already, and each batch takes its own step: p -= lr * p.grad."
)
_MOMENTUM = "This is not plain SGD: momentum lets old gradients act on. Use p -= lr * p.grad, or torch.optim.SGD without momentum."
_ADAM = "This is not plain SGD: Adam rescales every gradient. Use p -= lr * p.grad, or torch.optim.SGD."
_BAD_STEPS = [
    (
        "The gradients pile up over the whole run: every step uses the sum of all batches so far. Clear them before each backward(); "
        "once before the loop is not enough.",
        _never_cleared,
    ),
    ("The steps go uphill and the loss rises. Subtract the gradient: p -= lr * p.grad.", lambda m, b, f, lr: train_steps(m, b, f, -lr)),
    ("The learning rate is ignored. Multiply the gradient by it: p -= lr * p.grad.", lambda m, b, f, lr: train_steps(m, b, f, 1.0)),
    (_DIVIDED, lambda m, b, f, lr: train_steps(m, b, f, lr / len(b))),
    (_DIVIDED, _divided_by_rows),
    ("There is a single step for all batches. The step belongs inside the loop, once for every batch.", _one_step),
    (_MOMENTUM, _by_optimizer(torch.optim.SGD, momentum=0.9)),
    (_ADAM, _by_optimizer(torch.optim.Adam)),
    (_ADAM, _by_optimizer(torch.optim.AdamW)),
]
_NO_BACKWARD = "No gradient was computed for the model's parameters. Call loss.backward() for every batch, and train the model itself."
_CLEARED = "The gradients are cleared between backward() and the step, so the step has nothing to use. The order is: clear, backward, step."
_NO_STEP = (
    "The gradients are there, but no parameter moved. Take the step in place (p -= lr * p.grad); p = p - ... only makes a new tensor."
)
_ERRORS = {
    "a leaf Variable": "The step itself must not be recorded by autograd. Put it inside `with torch.no_grad():`.",
    "does not require grad": "The loss has no graph to go back through. torch.no_grad() may cover only the step, and .item() comes last.",
    "a second time": "backward() reached the graph of an earlier batch. Use each batch's own loss, not the sum of the losses so far.",
}


def _model() -> nn.Sequential:
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def _batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (8, 8, 5)]


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def _first_run(answer, model: nn.Module):
    """What the answer returns for a fresh model; its usual errors, and parameters that never move, become hints."""
    before, backwards = _flat(model), []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: backwards.append(1))
    try:
        got = answer(model, _batches(), F.cross_entropy, 0.3)
    except Wrong as wrong:
        message = str(wrong.__cause__)
        if "NoneType" in message:
            raise Wrong(_CLEARED if backwards else _NO_BACKWARD) from wrong
        for sign, hint in _ERRORS.items():
            if sign in message:
                raise Wrong(hint) from wrong
        raise
    if _same(_flat(model), before):
        left = any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        raise Wrong(_NO_STEP if left else _CLEARED if backwards else _NO_BACKWARD)
    return got


def _check_losses(losses) -> None:
    """The form of the returned list, and then its values."""
    if not isinstance(losses, (tuple, Tensor, Real)):
        expect_type(losses, list, "the losses")
    if isinstance(losses, Real) or (isinstance(losses, Tensor) and losses.dim() == 0):
        raise Wrong("Only one loss comes back. Collect them in a list, losses.append(loss.item()), and return the list after the loop.")
    if isinstance(losses, Tensor):
        raise Wrong("The losses come back as one tensor. Return a list of plain floats: losses.append(loss.item()).")
    if any(isinstance(v, Tensor) and v.requires_grad for v in losses):
        raise Wrong("The losses are tensors that each keep their whole graph alive, and memory grows with every step. Store loss.item().")
    if any(not isinstance(v, Real) for v in losses):
        raise Wrong("The losses are not plain floats. Store loss.item() for each batch.")
    if len(losses) == 1:
        raise Wrong("There are three batches and one loss. Is `return` inside the loop, or `losses = []`?")
    if len(losses) != 3:
        raise Wrong(f"There are three batches and {len(losses)} losses. Go through the batches once and store one loss for each.")


def _check_steps(answer) -> None:
    with torch.enable_grad():
        model, wanted = _model(), _model()
        losses = _first_run(answer, model)
        wanted_losses = train_steps(wanted, _batches(), F.cross_entropy, 0.3)
        _check_losses(losses)
        for hint, wrong in _BAD_STEPS:
            other = _model()
            wrong(other, _batches(), F.cross_entropy, 0.3)
            if _same(_flat(model), _flat(other)):
                raise Wrong(hint)
        if not _same(_flat(model), _flat(wanted)):
            raise Wrong(
                "After three batches the parameters are not those of plain SGD. For every batch: clear, backward, p -= lr * p.grad."
            )
        _check_loss_values(losses, wanted_losses)

        stale, idle, wanted_idle = _model(), _model(), _model()
        for p in stale.parameters():
            p.grad = torch.full_like(p, 0.7)
        answer(stale, _batches(), F.cross_entropy, 0.3)
        if not _same(_flat(stale), _flat(wanted)):
            raise Wrong(
                "Right for a fresh model, but this one came with old gradients and the first step used them. Clear before the first "
                "backward() too, not only after a step."
            )
        for m in (idle, wanted_idle):
            m[0].bias.requires_grad_(False)
            m.register_parameter("unused", nn.Parameter(torch.ones(2)))
        skip = "Right where every parameter has a gradient, but a frozen or unused one has p.grad None. Skip it: if p.grad is not None."
        try:
            answer(idle, _batches(), F.cross_entropy, 0.3)
        except Wrong as wrong:
            raise Wrong(skip) from wrong
        train_steps(wanted_idle, _batches(), F.cross_entropy, 0.3)
        if not _same(_flat(idle), _flat(wanted_idle)):
            raise Wrong(skip)


def _check_loss_values(losses, wanted: list[float]) -> None:
    got, wanted = torch.tensor([float(v) for v in losses]), torch.tensor(wanted)
    after, other = [], _model()
    for batch in _batches():
        train_steps(other, [batch], F.cross_entropy, 0.3)
        after.append(F.cross_entropy(other(batch[0]), batch[1]).item())
    if _same(got, torch.tensor(after)):
        raise Wrong("These are the losses after each step. Return the ones that backward() was called on; they cost no second forward.")
    if _same(got, wanted.cumsum(0)):
        raise Wrong("The losses are added up from batch to batch. Store each batch's own loss.")
    if not _same(got, wanted):
        raise Wrong("The parameters are right and the losses are not. Store loss.item() of each batch as it is.")


# --- 2.3 ------------------------------------------------------------------------------------------------------------------------------


def images_needed(accuracy: float, difference: float, z: float) -> int:
    """The smallest n for which `difference` between two accuracies, each measured on its own n images, is z standard errors."""
    n = 2 * accuracy * (1 - accuracy) * (z / difference) ** 2
    return math.ceil(round(n, 6))  # 1800.0000000002 is 1800


_TEN_THOUSAND = (
    "The result is off by a factor of 10 000: percent and fractions are mixed. All accuracies here are fractions, 0.011 and not 1.1."
)
_BAD_COUNTS = [
    (
        "This is for the error of one accuracy. A difference has the errors of both: its variance is 2 · a(1 − a)/n.",
        lambda a, d, z: a * (1 - a) * (z / d) ** 2,
    ),
    (
        "This is twice too many. The two errors add as squares, not as they are, and n counts the images of one test set.",
        lambda a, d, z: 4 * a * (1 - a) * (z / d) ** 2,
    ),
    ("z is ignored. The difference has to be z standard errors, and n grows with z squared.", lambda a, d, z: 2 * a * (1 - a) / d**2),
    (
        "z is not squared. Square both sides of difference = z · sqrt(2a(1 − a)/n) before you solve for n.",
        lambda a, d, z: 2 * a * (1 - a) * z / d**2,
    ),
    ("The difference is not squared: half the difference needs four times the images.", lambda a, d, z: 2 * a * (1 - a) * z**2 / d),
    ("Neither z nor the difference is squared. n stands under a root: square both sides.", lambda a, d, z: 2 * a * (1 - a) * z / d),
    (
        "The deviation sqrt(a(1 − a)) stands where the variance a(1 − a) belongs.",
        lambda a, d, z: 2 * math.sqrt(a * (1 - a)) * (z / d) ** 2,
    ),
    ("This is the square root of n. Square once more at the end.", lambda a, d, z: math.sqrt(2 * a * (1 - a)) * z / d),
    (_TEN_THOUSAND, lambda a, d, z: 2 * a * (1 - a) * (z / d) ** 2 * 1e4),
    (_TEN_THOUSAND, lambda a, d, z: 2 * a * (1 - a) * (z / d) ** 2 / 1e4),
]


def _check_count(answer) -> None:
    # The unrounded results end in .21, .79, .55: rounding down and rounding to the nearest both show.
    cases = [(0.70, 0.011, 2.5), (0.83, 0.013, 1.7), (0.55, 0.023, 3.0)]
    got = []
    for a, d, z in cases:
        n = answer(a, d, z)
        if not isinstance(n, (Real, Tensor)):
            expect_type(n, int, "the number of images")
        got.append(float(n))
    for hint, wrong in _BAD_COUNTS:
        if all(abs(n - wrong(*case)) <= 1 for n, case in zip(got, cases, strict=True)):
            raise Wrong(hint)
    exact = [2 * a * (1 - a) * (z / d) ** 2 for a, d, z in cases]
    if all(abs(n - e) < 1e-3 for n, e in zip(got, exact, strict=True)):
        raise Wrong("The formula is right, but there is no part of an image. Round up to a whole number with math.ceil.")
    if got == [math.floor(e) for e in exact]:
        raise Wrong("The result is rounded down, one image too few. Round up: math.ceil.")
    if got == [round(e) for e in exact]:
        raise Wrong("The result is rounded to the nearest number, and that can be one image too few. Round up: math.ceil.")
    for n, e, (a, d, z) in zip(got, exact, cases, strict=True):
        if n != math.ceil(e):
            wanted = f"For accuracy {a}, difference {d} and z {z} it takes {math.ceil(e)} images, not {n:g}."
            raise Wrong(f"{wanted} Solve d = z · sqrt(2a(1 − a)/n) for n.")
    if not isinstance(answer(*cases[0]), Integral):
        raise Wrong("The number is right, but it is not an int. Return a whole number: math.ceil does, or int(...).")


EXERCISES = {
    "2.1": Exercise("2.1", "Four rotations of every image", 10, 1, rotate_all, _check_rotations),
    "2.2": Exercise("2.2", "A training step that forgets", 15, 2, train_steps, _check_steps),
    "2.3": Exercise("2.3", "How many test images", 10, 2, images_needed, _check_count),
}
