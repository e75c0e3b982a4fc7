"""The exercises of lesson 2: four rotations of every image, a training step that forgets, and how many test images a claim needs."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import near, reject_if, reject_mistakes, with_weights
from sslcourse.course.exercises import Exercise, Wrong


def rotate_all(x: Tensor) -> tuple[Tensor, Tensor]:
    """All images turned by 0, 1, 2, 3 quarter turns, in this order. x (N, 3, H, H) -> images (4N, 3, H, H), labels int64 (4N,)."""
    images = torch.cat([torch.rot90(x, turns, dims=(2, 3)) for turns in range(4)])
    labels = torch.arange(4, device=x.device).repeat_interleave(len(x))
    return images, labels


HEIGHT_AND_WIDTH = "Height and width are dimensions 2 and 3 of (N, 3, H, W): torch.rot90(x, turns, dims=(2, 3))."


def check_images(images, n: int, size: int) -> None:
    reject_if(isinstance(images, (list, tuple)), "The images are still in a list. Join them along the batch with torch.cat(the_list).")
    expect.kind(images, Tensor, "the images")
    reject_if(images.dim() == 5, "The images have five dimensions: torch.stack makes a new one. Join the batches with torch.cat.")
    reject_if(len(images) == 3 * n, "There are 3N images: a rotation is missing. The unturned images belong in too, with label 0.")
    reject_if(len(images) == n, "There are N images, one rotation for each. Return every image in all four rotations: 4N images.")
    swapped = images.numel() == 4 * n * 3 * size * size and images.shape != (4 * n, 3, size, size)
    reject_if(swapped, f"The result has shape {tuple(images.shape)}: the wrong dimensions were turned. {HEIGHT_AND_WIDTH}")
    expect.shape(images, (4 * n, 3, size, size), "the images")


def check_labels(labels, n: int) -> None:
    reject_if(isinstance(labels, (list, tuple)), "The labels are a list, and a loss needs a tensor: torch.tensor(the_list).")
    expect.kind(labels, Tensor, "the labels")
    reject_if(tuple(labels.shape) == (4 * n, 4), "The labels are one-hot rows. Return the number of the class alone, shape (4N,).")
    expect.shape(labels, (4 * n,), "the labels")
    reject_if(labels.max() > 4, "The labels are angles. Cross-entropy wants the number of the class: 0, 1, 2, 3 quarter turns.")
    reject_if(labels.dtype != torch.int64, f"The labels have the type {labels.dtype}. Class numbers have to be int64: labels.long().")
    reject_if(labels.min() >= 1 and labels.max() == 4, "The labels count from 1. Classes count from 0: the unturned images have label 0.")


def recognise(images: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """For every image, what was done (0-3: quarter turns, 4-7: mirrored and turned, -1: something else) and to which row of x."""
    known = torch.cat([torch.rot90(v, turns, dims=(2, 3)) for v in (x, x.flip(3)) for turns in range(4)])
    nearest = (images.unsqueeze(1) - known).abs().flatten(2).amax(2).min(dim=1)
    done = torch.where(nearest.values < 1e-5, nearest.indices // len(x), -1)
    return done, nearest.indices % len(x)


def check_arrangement(images: Tensor, labels: Tensor, x: Tensor) -> None:
    n = len(x)
    done, source = recognise(images, x)
    reject_if((done < 0).any(), f"Some images are no turned version of any given image. {HEIGHT_AND_WIDTH}")
    reject_if(((done == 5) | (done == 7)).any(), "A transpose is not a quarter turn: it mirrors the image as well. Use torch.rot90.")
    reject_if((done > 3).any(), "A flip along one axis is not a half turn: the image is mirrored. A half turn flips both axes.")
    for i in range(n):
        turns = done[source == i].sort().values.tolist()
        reject_if(turns != [0, 1, 2, 3], f"Every image should be there once in each rotation; image {i} has the turns {turns}.")
    turns_by_block = torch.arange(4).repeat_interleave(n)
    in_blocks, one_by_one = (torch.equal(source, rows) for rows in (torch.arange(n).repeat(4), torch.arange(n).repeat_interleave(4)))
    labels_in_turn, labels_in_blocks = (torch.equal(labels, turns) for turns in (torch.arange(4).repeat(n), turns_by_block))
    reject_if(in_blocks and labels_in_turn, "The images come in blocks, but the labels run 0, 1, 2, 3, 0, 1, ... Use repeat_interleave(N).")
    reject_if(one_by_one and labels_in_blocks, "The labels come in blocks, but the images come image by image. Join whole batches.")
    reject_if(torch.equal(labels, (4 - done) % 4), "The images are turned clockwise. Positive turns in torch.rot90 are counter-clockwise.")
    row = int((labels != done).int().argmax())
    reject_if(labels[row] != done[row], f"Row {row} is turned by {int(done[row])} quarter turns and its label says {int(labels[row])}.")
    reject_if(one_by_one, "Labels and images agree, but they come image by image. First come all images unturned, then all turned once.")
    other_order = not in_blocks or not torch.equal(done, turns_by_block)
    reject_if(other_order, "Labels and images agree, but their order is another: label 0 first, then 1, 2, 3, and in each the order of x.")


def check_rotations(answer) -> None:
    for n, size in ((5, 6), (2, 8)):
        x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))
        try:
            got = answer(x)
        except Wrong as wrong:
            if isinstance(wrong.__cause__, RuntimeError) and any(s in str(wrong.__cause__) for s in ("must match", "equal size")):
                raise Wrong(f"The turned images no longer fit together: the wrong dimensions were turned. {HEIGHT_AND_WIDTH}") from wrong
            raise
        expect.two(got, "Return two tensors: return images, labels.")
        check_images(got[0], n, size)
        check_labels(got[1], n)
        check_arrangement(*got, x)


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


def steps_by(kind=torch.optim.SGD, clear=True, **settings):
    """Wrong steps: by another optimizer, or with gradients that are never cleared."""

    def train(model, batches, loss_fn, lr):
        optimizer, losses = kind(model.parameters(), lr=lr, **settings), []
        for x, y in batches:
            if clear:
                optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return train


STEP_MISTAKES = {
    "The gradients pile up over the whole run. Clear them before each backward(); once before the loop is not enough.":
        steps_by(clear=False),
    "The steps go uphill and the loss rises. Subtract the gradient: p -= lr * p.grad.": lambda m, b, f, lr: train_steps(m, b, f, -lr),
    "The learning rate is ignored. Multiply the gradient by it: p -= lr * p.grad.": lambda m, b, f, lr: train_steps(m, b, f, 1.0),
    "The step is divided by the number of batches. Each batch takes a step of its own: p -= lr * p.grad.":
        lambda m, b, f, lr: train_steps(m, b, f, lr / len(b)),
    "This is not plain SGD: momentum lets old gradients act on, and Adam rescales them. Use p -= lr * p.grad.":
        [steps_by(momentum=0.9), steps_by(torch.optim.Adam), steps_by(torch.optim.AdamW)],
}
NO_BACKWARD = "No gradient was computed for the model's parameters. Call loss.backward() for every batch, and train the model itself."
CLEARED = "The gradients are cleared between backward() and the step, so the step has nothing to use. The order is: clear, backward, step."
NO_STEP = "The gradients are there, but no parameter moved. Take the step in place (p -= lr * p.grad); p = p - ... only makes a new tensor."
ERRORS = {  # part of the message: hint
    "a leaf Variable": "The step itself must not be recorded by autograd. Put it inside `with torch.no_grad():`.",
    "does not require grad": "The loss has no graph to go back through. torch.no_grad() may cover only the step, and .item() comes last.",
    "a second time": "backward() reached the graph of an earlier batch. Use each batch's own loss, not the sum of the losses so far.",
}


def fresh_model() -> nn.Sequential:
    return with_weights(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), seed=2)


def three_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (8, 8, 5)]


def trained(train, model: nn.Module) -> Tensor:
    """The parameters of the model after `train`, as one row."""
    train(model, three_batches(), F.cross_entropy, 0.3)
    return parameters_to_vector(model.parameters())


def first_run(answer):
    """What the answer returns for a fresh model; its usual errors, and parameters that never move, become hints."""
    model, backwards = fresh_model(), []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: backwards.append(1))
    try:
        got = answer(model, three_batches(), F.cross_entropy, 0.3)
    except Wrong as wrong:
        hints = ERRORS | {"NoneType": CLEARED if backwards else NO_BACKWARD}
        raise Wrong(next((hint for sign, hint in hints.items() if sign in str(wrong.__cause__)), str(wrong))) from wrong
    left = any(p.grad is not None and p.grad.any() for p in model.parameters())
    moved = not near(parameters_to_vector(model.parameters()), parameters_to_vector(fresh_model().parameters()))
    reject_if(not moved, NO_STEP if left else CLEARED if backwards else NO_BACKWARD)
    return got


def check_losses(losses) -> None:
    single = isinstance(losses, Real) or isinstance(losses, Tensor) and losses.dim() == 0
    reject_if(single, "Only one loss comes back. Collect them in a list, losses.append(loss.item()), and return it after the loop.")
    reject_if(isinstance(losses, Tensor), "The losses come back as one tensor. Return a list of plain floats: losses.append(loss.item()).")
    expect.kind(losses, (list, tuple), "the losses")
    graphs = any(isinstance(v, Tensor) and v.requires_grad for v in losses)
    reject_if(graphs, "The losses are tensors that keep their whole graph alive, and memory grows with every step. Store loss.item().")
    reject_if(any(not isinstance(v, Real) for v in losses), "The losses are not plain floats. Store loss.item() for each batch.")
    reject_if(len(losses) == 1, "There are three batches and one loss. Is `return` inside the loop, or `losses = []`?")
    reject_if(len(losses) != 3, f"There are three batches and {len(losses)} losses. Go through the batches once; store one loss each.")


def check_steps(answer) -> None:
    with torch.enable_grad():
        check_losses(first_run(answer))
        reject_mistakes(answer, train_steps, STEP_MISTAKES, lambda f: trained(f, fresh_model()), atol=1e-5)
        wanted = trained(train_steps, fresh_model())
        off = "After three batches the parameters are not those of plain SGD. Each time: clear, backward, p -= lr * p.grad."
        reject_if(not near(trained(answer, fresh_model()), wanted), off)

        def losses_of(train):
            return torch.tensor([float(v) for v in train(fresh_model(), three_batches(), F.cross_entropy, 0.3)])

        other_losses = "The parameters are right, the losses are not. Return those before each step, on which backward() was called."
        reject_if(not near(losses_of(answer), losses_of(train_steps)), other_losses)
        stale = fresh_model()
        for p in stale.parameters():
            p.grad = torch.full_like(p, 0.7)
        used = "Right for a fresh model, but this one came with old gradients, and the first step used them. Clear before every backward()."
        reject_if(not near(trained(answer, stale), wanted), used)
        idle, wanted_idle = fresh_model(), fresh_model()
        for m in (idle, wanted_idle):
            m[0].bias.requires_grad_(False)
            m.register_parameter("unused", nn.Parameter(torch.ones(2)))
        skip = "Right where every parameter has a gradient, but a frozen or unused one has p.grad None. Skip it: if p.grad is not None."
        with expect.hint_for_errors(skip):
            reject_if(not near(trained(answer, idle), trained(train_steps, wanted_idle)), skip)


def images_needed(accuracy: float, difference: float, z: float) -> int:
    """The smallest n for which `difference` between two accuracies, each measured on its own n images, is z standard errors."""
    n = 2 * accuracy * (1 - accuracy) * (z / difference) ** 2
    return math.ceil(round(n, 6))  # 1800.0000000002 is 1800


def exactly(a: float, d: float, z: float) -> float:
    return 2 * a * (1 - a) * (z / d) ** 2


COUNT_MISTAKES = {
    "This is for the error of one accuracy. A difference has both: its variance is 2 · a(1 − a)/n.": lambda a, d, z: exactly(a, d, z) / 2,
    "z is not squared. Square both sides of difference = z · sqrt(2a(1 − a)/n) first.": lambda a, d, z: exactly(a, d, 1) * z,
    "The difference is not squared: half the difference needs four times the images.": lambda a, d, z: exactly(a, d, z) * d,
    "The result is off by a factor of 10 000: percent and fractions are mixed. All accuracies here are fractions, 0.011 and not 1.1.":
        [lambda a, d, z: exactly(a, d, z) * 1e4, lambda a, d, z: exactly(a, d, z) / 1e4],
    "The formula is right, but there is no part of an image. Round up to a whole number with math.ceil.": exactly,
    "The result is rounded down, or to the nearest number, and one image is missing. Round up: math.ceil.":
        [lambda *a: math.floor(exactly(*a)), lambda *a: round(exactly(*a))],
}


def check_count(answer) -> None:
    # Before rounding they end in .21, .79, .55: rounding down and rounding to the nearest both show.
    cases = [(0.70, 0.011, 2.5), (0.83, 0.013, 1.7), (0.55, 0.023, 3.0)]
    got = [expect.number(answer(*case), "the number of images") for case in cases]

    def numbers(count):
        return torch.tensor([count(*case) for case in cases], dtype=torch.double)

    for atol in (1, 1e-3):  # first another formula, however it is rounded, then the right one rounded otherwise
        reject_mistakes(answer, images_needed, COUNT_MISTAKES, numbers, 0, atol)
    for n, (a, d, z) in zip(got, cases, strict=True):
        needed = images_needed(a, d, z)
        told = f"For accuracy {a}, difference {d} and z {z} it takes {needed} images, not {n:g}."
        reject_if(n != needed, f"{told} Solve d = z · sqrt(2a(1 − a)/n) for n.")
    reject_if(not isinstance(answer(*cases[0]), Integral), "The number is right, but it is not an int. math.ceil returns one.")


EXERCISES = [
    Exercise("2.1", "Four rotations of every image", 10, 1, rotate_all, check_rotations),
    Exercise("2.2", "A training step that forgets", 15, 2, train_steps, check_steps, STEP_MISTAKES),
    Exercise("2.3", "How many test images", 10, 2, images_needed, check_count, COUNT_MISTAKES),
]
