"""The exercises of lesson 2: four rotations of every image, a training step that forgets, and how many test images a claim needs."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import near, reject_if, reject_mistakes
from sslcourse.course.exercises import Exercise, Wrong
from sslcourse.models import four_rotations

HEIGHT_AND_WIDTH = "Height and width are dimensions 2 and 3 of (N, 3, H, W): torch.rot90(x, turns, dims=(2, 3))."


def turned(x: Tensor, turns: int) -> Tensor:
    return torch.rot90(x, turns, dims=(2, 3))


def in_blocks(turn):
    """A wrong answer: the images turn(x, turns) of 0, 1, 2 and 3 quarter turns, with the right labels."""
    return lambda x: (torch.cat([turn(x, turns) for turns in range(4)]), four_rotations(x)[1])


ROTATION_MISTAKES = {
    "The images are turned clockwise. Positive turns in torch.rot90 are counter-clockwise.": in_blocks(lambda x, turns: turned(x, -turns)),
    "A transpose is not a quarter turn: it mirrors the image as well. Use torch.rot90.":
        [in_blocks(lambda x, turns, last=last: x.mT if turns in (1, last) else turned(x, turns)) for last in (1, 3)],
    "A flip along one axis is not a half turn: the image is mirrored. A half turn flips both axes.":
        [in_blocks(lambda x, turns, axis=axis: x.flip(axis) if turns == 2 else turned(x, turns)) for axis in (2, 3)],
    "The images come image by image. Join whole batches: first all images unturned, then all turned once.":
        lambda x: (four_rotations(x)[0].unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1), torch.arange(4).repeat(len(x))),
}


def check_images(images, n: int, size: int) -> None:
    reject_if(isinstance(images, (list, tuple)), "The images are still in a list. Join them along the batch with torch.cat(the_list).")
    expect.kind(images, Tensor, "the images")
    reject_if(images.dim() == 5, "The images have five dimensions: torch.stack makes a new one. Join the batches with torch.cat.")
    reject_if(len(images) == 3 * n, "There are 3N images: a rotation is missing. The unturned images belong in too, with label 0.")
    reject_if(len(images) == n, "There are N images, one rotation for each. Return every image in all four rotations: 4N images.")
    expect.shape(images, (4 * n, 3, size, size), "the images")


def check_labels(labels, n: int) -> None:
    reject_if(isinstance(labels, (list, tuple)), "The labels are a list, and a loss needs a tensor: torch.tensor(the_list).")
    expect.kind(labels, Tensor, "the labels")
    reject_if(tuple(labels.shape) == (4 * n, 4), "The labels are one-hot rows. Return the number of the class alone, shape (4N,).")
    expect.shape(labels, (4 * n,), "the labels")
    reject_if(labels.max() > 4, "The labels are angles. Cross-entropy wants the number of the class: 0, 1, 2, 3 quarter turns.")
    reject_if(labels.dtype != torch.int64, f"The labels have the type {labels.dtype}. Class numbers have to be int64: labels.long().")
    reject_if(labels.min() >= 1 and labels.max() == 4, "The labels count from 1. Classes count from 0: the unturned images have label 0.")
    in_turn = torch.equal(labels, torch.arange(4).repeat(n))
    reject_if(in_turn, "The images come in blocks, but the labels run 0, 1, 2, 3, 0, 1, ... Use repeat_interleave(N).")


def check_rotations(answer) -> None:
    for n, size in ((5, 6), (2, 8)):
        x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))
        no_fit = f"The turned images no longer fit together: the wrong dimensions were turned. {HEIGHT_AND_WIDTH}"
        with expect.hint_for_errors(no_fit, RuntimeError):
            got = answer(x)
        expect.two(got, "Return two tensors: return images, labels.")
        images, labels = four_rotations(x)
        check_images(got[0], n, size)
        row = int((got[0] != images).flatten(1).any(1).int().argmax())
        hint = f"Row {row} is not image {row % n} after {row // n} quarter turns. {HEIGHT_AND_WIDTH}"
        expect.agree(answer, four_rotations, [x], hint, ROTATION_MISTAKES, part=lambda result: result[0])
        check_labels(got[1], n)
        expect.close(got[1], labels, f"Some labels are off: the first N rows have label 0, the next N have 1, and so on. Here N is {n}.")


def steps_by(kind=torch.optim.SGD, clear=True, **settings):
    """Steps by an optimizer of this kind; without `clear` the gradients add up."""

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


def train_steps(model: nn.Module, batches, loss_fn, lr: float) -> list[float]:
    """One step of plain SGD for each batch (x, y), from this batch's gradient alone. Returns the losses as floats."""
    return steps_by()(model, batches, loss_fn, lr)


STEP_MISTAKES = {
    "The gradients pile up over the whole run. Clear them before each backward(); once before the loop is not enough.":
        steps_by(clear=False),
    "The steps go uphill and the loss rises. Subtract the gradient: p -= lr * p.grad.": steps_by(maximize=True),
    "The learning rate is ignored. Multiply the gradient by it: p -= lr * p.grad.": lambda m, b, f, lr: train_steps(m, b, f, 1.0),
    "This is not plain SGD: momentum lets old gradients act on, and Adam rescales them. Use p -= lr * p.grad.":
        [steps_by(momentum=0.9), steps_by(torch.optim.Adam), steps_by(torch.optim.AdamW)],
}
NO_GRADIENT = "The step finds no gradient: is backward() missing, or are gradients cleared after it? The order is: clear, backward, step."
NO_STEP = "The gradients are there, but no parameter moved. Take the step in place (p -= lr * p.grad); p = p - ... only makes a new tensor."
ERRORS = {  # part of the message: hint
    "a leaf Variable": "The step itself must not be recorded by autograd. Put it inside `with torch.no_grad():`.",
    "does not require grad": "The loss has no graph to go back through. torch.no_grad() may cover only the step, and .item() comes last.",
    "NoneType": NO_GRADIENT,
}


def fresh_model() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def three_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (8, 8, 5)]


def trained(train, model: nn.Module) -> Tensor:
    """The parameters of the model after `train`, as one row."""
    train(model, three_batches(), F.cross_entropy, 0.3)
    return parameters_to_vector(model.parameters())


def first_run(answer):
    """What the answer returns for a fresh model; its usual errors, and parameters that never move, become hints."""
    model = fresh_model()
    try:
        got = answer(model, three_batches(), F.cross_entropy, 0.3)
    except Wrong as wrong:
        raise Wrong(next((hint for sign, hint in ERRORS.items() if sign in str(wrong.__cause__)), str(wrong))) from wrong
    left = any(p.grad is not None and p.grad.any() for p in model.parameters())
    moved = not near(parameters_to_vector(model.parameters()), parameters_to_vector(fresh_model().parameters()))
    reject_if(not moved, NO_STEP if left else NO_GRADIENT)
    return got


def check_losses(losses) -> None:
    reject_if(isinstance(losses, Real), "Only one loss comes back. Collect them in a list, losses.append(loss.item()), and return that.")
    reject_if(isinstance(losses, Tensor), "The losses come back as one tensor. Return a list of plain floats: losses.append(loss.item()).")
    expect.kind(losses, (list, tuple), "the losses")
    tensors = any(not isinstance(v, Real) for v in losses)
    reject_if(tensors, "The losses are not plain floats. A tensor may keep its whole graph alive: store loss.item() for each batch.")
    reject_if(len(losses) == 1, "There are three batches and one loss. Is `return` inside the loop, or `losses = []`?")
    reject_if(len(losses) != 3, f"There are three batches and {len(losses)} losses. Go through the batches once; store one loss each.")


def check_steps(answer) -> None:
    check_losses(first_run(answer))
    reject_mistakes(answer, train_steps, STEP_MISTAKES, lambda f: trained(f, fresh_model()), atol=1e-5)
    wanted = trained(train_steps, fresh_model())
    off = "After three batches the parameters are not those of plain SGD. Each time: clear, backward, p -= lr * p.grad."
    reject_if(not near(trained(answer, fresh_model()), wanted), off)
    got, losses = (f(fresh_model(), three_batches(), F.cross_entropy, 0.3) for f in (answer, train_steps))
    other_losses = "The parameters are right, the losses are not. Return those before each step, on which backward() was called."
    expect.close(torch.tensor(got), torch.tensor(losses), other_losses)
    stale, idle, as_idle = fresh_model(), fresh_model(), fresh_model()
    for p in stale.parameters():
        p.grad = torch.full_like(p, 0.7)
    used = "Right for a fresh model, but this one came with old gradients, and the first step used them. Clear before every backward()."
    reject_if(not near(trained(answer, stale), wanted), used)
    for m in (idle, as_idle):
        m[0].bias.requires_grad_(False)
        m.register_parameter("unused", nn.Parameter(torch.ones(2)))
    skip = "Right where every parameter has a gradient, but a frozen or unused one has p.grad None. Skip it: if p.grad is not None."
    with expect.hint_for_errors(skip):
        reject_if(not near(trained(answer, idle), trained(train_steps, as_idle)), skip)


def exactly(a: float, d: float, z: float) -> float:
    return 2 * a * (1 - a) * (z / d) ** 2


def images_needed(accuracy: float, difference: float, z: float) -> int:
    """The smallest n for which `difference` between two accuracies, each measured on its own n images, is z standard errors."""
    return math.ceil(round(exactly(accuracy, difference, z), 6))  # 1800.0000000002 is 1800


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
    def number(n):
        return torch.tensor(expect.number(n, "the number of images"), dtype=torch.double)

    # Before rounding they end in .21, .79, .55: rounding down and rounding to the nearest both show.
    for case in ((0.70, 0.011, 2.5), (0.83, 0.013, 1.7), (0.55, 0.023, 3.0)):
        told = "For accuracy {}, difference {} and z {}".format(*case) + f" it takes {images_needed(*case)} images."
        told = f"{told} Solve d = z · sqrt(2a(1 − a)/n) for n."
        for atol in (1, 1e-3):  # first another formula, however it is rounded, then the right one rounded otherwise
            expect.agree(answer, images_needed, case, told, COUNT_MISTAKES, part=number, rtol=0, atol=atol)
    reject_if(not isinstance(answer(*case), Integral), "The number is right, but it is not an int. math.ceil returns one.")


EXERCISES = [
    Exercise("2.1", "Four rotations of every image", 10, 1, four_rotations, check_rotations, ROTATION_MISTAKES),
    Exercise("2.2", "A training step that forgets", 15, 2, train_steps, check_steps, STEP_MISTAKES),
    Exercise("2.3", "How many test images", 10, 2, images_needed, check_count, COUNT_MISTAKES),
]
