"""The exercises of lesson 2: the probe that chooses its block, a training step that forgets, and how many test images a claim needs."""

import copy
import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import near, reject_if, reject_mistakes
from sslcourse.course.exercises import Exercise
from sslcourse.evaluation import FeatureSet, linear_probe


class Watched(FeatureSet):
    """A FeatureSet that notes whether its test rows were read."""

    read = False

    def __getattribute__(self, name):
        if name in ("test", "test_labels"):
            self.read = True
        return super().__getattribute__(name)


def choose_block(found: dict[int, FeatureSet]) -> tuple[int, float]:
    """The block whose linear probe, fitted to the labelled rows, is best on the validation rows, and its accuracy there."""
    reached = {block: linear_probe(rows, penalties=(0.1,)).top1 for block, rows in found.items()}
    best = max(reached, key=reached.get)
    return best, reached[best]


TRAPS = {  # the kind of block that was chosen: the mistake that leads there
    "heart": "Its probe knows by heart the rows to which it was fitted. Fit to the labelled rows alone, choose by validation alone.",
    "rings": "No linear classifier tells its classes apart, which surround each other. Use one, such as logistic regression.",
    "moved": "It looks best where validation rows are standardised by themselves. Use the labelled rows' mean and deviation for both.",
    "even": "Its features have one scale, those of the best have not: in both splits subtract the labelled rows' mean and divide by their "
        "deviation, or by 1 where that is 0.",
    "last": "It is the last and the worst. Go through all blocks and keep the one with the highest validation accuracy.",
}  # fmt: skip
SAME = "A feature that is the same in all labelled images has deviation 0, and 0/0 is NaN. Divide by 1 there, as StandardScaler does."


def some_blocks(first: int, kinds: str, classes: int, per_class: int) -> tuple[dict[int, Watched], dict[int, str]]:
    """Blocks numbered from `first`, of which one is best and each of the others tempts whoever makes one mistake; and their kinds."""
    labels = {split: torch.arange(classes).repeat(n) for split, n in (("train", per_class), ("validation", 40), ("test", 40))}

    def rows(kind: str) -> dict[str, Tensor]:
        width, apart = {"heart": (200, 2.0), "even": (6, 1.5), "last": (6, 0.7)}.get(kind, (6, 5.0))
        centres = apart * torch.linalg.qr(torch.randn(width, classes)).Q.T
        made = {split: centres[y] + torch.randn(len(y), width) for split, y in labels.items()}
        if kind == "rings":  # two clusters for each class, on opposite sides of a circle
            angles = {split: math.pi * (y / classes + torch.randint(2, y.shape)) for split, y in labels.items()}
            made = {split: torch.stack([a.cos(), a.sin()], 1) + 0.05 * torch.randn(len(a), 2) for split, a in angles.items()}
        if kind == "moved":
            made["validation"] += 6 * torch.randn(width)
        if kind == "best":  # small features, large noise, one that is always 0, and a few images unlike all others
            made = {split: torch.cat([0.001 * x, 100 * torch.randn(len(x), 6), torch.zeros(len(x), 1)], 1) for split, x in made.items()}
            made["validation"][::12, :6] *= -1e4
        return made

    of_all = {f"{split}_labels": y for split, y in labels.items()} | {"class_names": [str(c) for c in range(classes)]}
    kinds = dict(enumerate(kinds.split(), first))
    return {block: Watched(**rows(kind), **of_all) for block, kind in kinds.items()}, kinds


def check_choice(answer) -> None:
    orders = "heart rings best moved even last", "even rings best heart moved last"
    for found, kinds in [some_blocks(*how) for how in ((4, orders[0], 4, 10), (11, orders[1], 3, 12))]:
        (best, reached), before = choose_block(found), copy.deepcopy(found)
        with expect.hints_for_errors({"NaN": SAME}):
            got = answer(found)
        reject_if(any(rows.read for rows in found.values()), "The test rows were read. A choice is made on the validation rows alone.")
        spoiled = any(not torch.equal(getattr(found[b], s), getattr(before[b], s)) for b in found for s in ("train", "validation"))
        reject_if(spoiled, "The features in `found` were changed in place, and the lesson still needs them. Make new ones.")
        expect.two(got, "Return two things: the number of the chosen block and its validation accuracy.")
        block, accuracy = (expect.number(value, name) for value, name in zip(got, ("the block", "the accuracy"), strict=True))
        reject_if(block not in kinds and accuracy in kinds, "The accuracy comes first. Return the block first.")
        reject_if(block not in kinds, f"There is no block {got[0]} here. Return the key in `found`, not its place in a list.")
        reject_if(block != best, f"The best block is {best}, and {got[0]} was chosen. {TRAPS.get(kinds[block])}")
        told = f"The block is right, but the fraction of validation rows it has right is about {reached:.2f}, and {accuracy:.2f} came back."
        reject_if(not near(accuracy, reached, 0, 0.05), told)


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
    "The gradients pile up over the whole run. Clear before each backward(); once before the loop is not enough.": steps_by(clear=False),
    "The steps go uphill and the loss rises. Subtract the gradient: p -= lr * p.grad.": steps_by(maximize=True),
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


def check_first_run(answer) -> None:
    """Reject an answer that stops, moves no parameter of a fresh model, or returns no list of three losses."""
    model = fresh_model()
    with expect.hints_for_errors(ERRORS):
        losses = answer(model, three_batches(), F.cross_entropy, 0.3)
    left = any(p.grad is not None and p.grad.any() for p in model.parameters())
    moved = not near(parameters_to_vector(model.parameters()), parameters_to_vector(fresh_model().parameters()))
    reject_if(not moved, NO_STEP if left else NO_GRADIENT)
    expect.kind(losses, (list, tuple), "the losses")
    reject_if(any(not isinstance(v, Real) for v in losses), "The losses are not plain floats, and may keep their graph: loss.item().")
    told = f"There are three batches and {len(losses)} losses. Store one for each. Is `return` inside the loop, or `losses = []`?"
    reject_if(len(losses) != 3, told)


def check_steps(answer) -> None:
    check_first_run(answer)
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
    with expect.hints_for_errors({"": skip}):
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
    Exercise("2.1", "The probe that chooses its block", 45, 3, choose_block, check_choice),
    Exercise("2.2", "A training step that forgets", 15, 2, train_steps, check_steps, STEP_MISTAKES),
    Exercise("2.3", "How many test images", 10, 2, images_needed, check_count, COUNT_MISTAKES),
]
