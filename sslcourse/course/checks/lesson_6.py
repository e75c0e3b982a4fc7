"""The exercises of lesson 6: a step of FixMatch, and calibration."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import WRITTEN_IN, reject_if, reject_mistakes
from sslcourse.course.exercises import Exercise, Wrong
from sslcourse.devices import evaluation_mode


def fixmatch_step(model: nn.Module, optimizer, weak, strong, x: Tensor, y: Tensor, u: Tensor, threshold: float) -> tuple[float, float]:
    """One step of FixMatch on labelled images x with labels y and on unlabelled images u. Returns the loss and the coverage, before it."""
    return steps_by()(model, optimizer, weak, strong, x, y, u, threshold)


def steps_by(
    sureness=lambda w, s: w.softmax(1).amax(1), rows=lambda w, s: F.cross_entropy(s, w.argmax(1), reduction="none"),
    mean=lambda rows, passes: (rows * passes).mean(), total=torch.add, coverage=torch.mean,
    views=lambda weak, strong: (weak, weak, strong), update=("zero_grad", "backward", "step"),
):  # fmt: skip
    """A step of FixMatch; a wrong one has another part. w, s: logits of the weak and the strong views; views: of u, of x, of u again."""

    def step(model, optimizer, weak, strong, x, y, u, threshold):
        labelling, labelled, learning = views(weak, strong)
        with torch.no_grad(), evaluation_mode(model):
            w = model(labelling(u))
        logits = model(torch.cat([labelled(x), learning(u)]))
        s = logits[len(x) :]
        passes = (sureness(w, s.detach()) >= threshold).to(s.dtype)
        loss = total(F.cross_entropy(logits[: len(x)], y), mean(rows(w, s), passes))
        for move in update:
            loss.backward() if move == "backward" else getattr(optimizer, move)()
        return loss.item(), coverage(passes).item()

    return step


AT_THRESHOLD = "A probability of exactly the threshold has to pass: >= and not >. With a threshold of 1, > lets nothing through."
NO_STEP = "The optimiser's step comes before backward(), or there is none. The order is: zero_grad, backward, step."
NO_PASS = "No pass is recorded, so nothing can learn: torch.no_grad() may cover the pseudo-labels only."
ERRORS = {"does not require grad": NO_PASS, "modified by an inplace operation": NO_STEP}  # part of the message: hint
FIXMATCH_MISTAKES = {
    "The mean is taken over the passing rows only. Divide by all rows: few sure images shall weigh little, and 0 / 0 is NaN.":
        steps_by(mean=lambda rows, passes: rows[passes == 1].mean()),
    "The strong view is compared with the threshold. The weak one decides.": steps_by(lambda w, s: s.softmax(1).amax(1)),
    "The views have changed places: the strong one labels and the weak one learns.": steps_by(views=lambda w, s: (s, w, w)),
    "The weak view learns from itself. The loss takes the strong view of the unlabelled images.": steps_by(views=lambda w, s: (w, w, w)),
    "The labelled images are seen in the strong view. FixMatch shows them in the weak one.": steps_by(views=lambda w, s: (w, s, s)),
    "The labels are soft: all of the weak view's probabilities. A pseudo-label is one class, the most probable.":
        steps_by(rows=lambda w, s: F.cross_entropy(s, w.softmax(1), reduction="none")),
    "Logits are compared with the threshold. Make probabilities first: softmax over the classes.": steps_by(lambda w, s: w.amax(1)),
    "The threshold has no effect on the loss: every row teaches. Rows that are less sure count as 0.":
        steps_by(mean=lambda rows, passes: rows.mean()),
    "The labelled images are left out of the loss. Their cross-entropy belongs in every step.": steps_by(total=lambda known, said: said),
    "The pseudo-labels are left out of the loss. Add their part to that of the labels.": steps_by(total=lambda known, said: known),
    "The gradients of the step before are still there: optimizer.zero_grad() is missing.": steps_by(update=("backward", "step")),
    NO_STEP: [steps_by(update=()), steps_by(update=("zero_grad", "step", "backward")), steps_by(update=("step", "zero_grad", "backward"))],
}


class Watched(nn.Sequential):
    """A small classifier that notes of each pass whether it is in training mode, and whether autograd records."""

    passes = ()

    def forward(self, views: Tensor) -> Tensor:
        self.passes += ((self.training, torch.is_grad_enabled()),)
        return super().forward(views)


def two_steps(step, labels: int = 6, rows: int = 14, classes: int = 4, threshold: float = 0.6, scale: float = 1.5):
    """A new network after two steps on one batch, and what each step returned. scale: of the logits."""
    generator = torch.Generator().manual_seed(20 + rows)
    images = torch.randint(256, (labels + rows, 3, 4, 4), generator=generator, dtype=torch.uint8)
    model = Watched(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8, momentum=0.5), nn.Tanh(), nn.Linear(8, classes))
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape, generator=generator) * (scale if name[0] == "4" else 0.5)
    views, optimizer = (lambda i: i / 128 - 1, lambda i: i.flip(3) / 200 - 0.3), torch.optim.SGD(model.parameters(), lr=0.1)
    batch = images[:labels], torch.arange(labels) % classes, images[labels:]
    return model, [step(model, optimizer, *views, *batch, threshold) for _ in range(2)]


def numbers(told) -> list[float]:
    """What a step returned, as two floats."""
    expect.two(told, "Return two numbers: return loss, coverage.")
    return [expect.number(value, name) for value, name in zip(told, ("the loss", "the coverage"), strict=True)]


def all_numbers(step, *sizes) -> Tensor:
    """Losses and coverages of two steps, and the weights and statistics of the network after them."""
    model, told = two_steps(step, *sizes)
    return torch.cat([torch.tensor([numbers(row) for row in told]).flatten(), *map(torch.flatten, model.state_dict().values())])


def check_passes(answer) -> None:
    """Reject a step that stops, or whose passes through the network are not those that the exercise asks for."""
    try:
        model, told = two_steps(answer)
    except Wrong as wrong:
        for part, hint in ERRORS.items():
            reject_if(part in str(wrong.__cause__), hint)
        raise
    numbers(told[0])
    labelling, learning = ([training for training, recorded in model.passes if recorded == learns] for learns in (False, True))
    reject_if(not labelling, "The pass that makes the pseudo-labels records a graph. Give the weak views their own, under torch.no_grad().")
    reject_if(any(labelling), "The pseudo-labels are made in training mode. Make them in evaluation mode: model.eval() before that pass.")
    reject_if(not all(learning), "The network learns in evaluation mode. Call model.train() before the pass that learns.")
    reject_if(len(learning) > 2, "Labelled and strong views take two passes, so batch normalisation never sees both. Join them.")
    reject_if(not model.training, "The network is left in evaluation mode. Call model.train() again, for whoever trains on.")


def check_fixmatch(answer) -> None:
    check_passes(answer)
    got, wanted = (numbers(two_steps(step)[1][0]) for step in (answer, fixmatch_step))
    expect.pair(got, wanted, "loss", "coverage")
    reject_mistakes(answer, fixmatch_step, FIXMATCH_MISTAKES, all_numbers)
    expect.close(got[0], wanted[0], "The loss is off. It is the mean of the labelled rows plus the mean over all unlabelled rows.")
    expect.close(got[1], wanted[1], "The loss is right, the coverage is not: the part of the weak views that reach the threshold.")
    expect.close(all_numbers(answer), all_numbers(fixmatch_step), "The first loss is right, the weights after two are not. Update once.")
    reject_if(float(two_steps(answer, 4, 5, 2, 0.5, 0.0)[1][0][1]) == 0, AT_THRESHOLD)
    for sizes, hint in (((5, 9, 3, 1.0), "Right where some rows pass. With none, the labels alone teach."), ((3, 8, 3, 0.7), WRITTEN_IN)):
        expect.close(all_numbers(answer, *sizes), all_numbers(fixmatch_step, *sizes), hint)


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, each weighted by its rows. confidence (N,), right bool (N,)."""
    return of_bins(lambda n, c, a, m: (n * (c - a).abs()).sum() / n.sum())(confidence, right, bins).item()


def of_bins(measure):
    """An error that is measure(rows, confidences, accuracies, middles), each a number for every bin that has rows."""

    def error(confidence, right, bins):
        number = (confidence * bins).ceil().long().clamp(min=1) - 1  # a bin holds its upper end
        filled = number.unique()
        means = [[(v[number == b]).double().mean() for b in filled] for v in (confidence, right)]
        return measure(number.bincount()[filled].double(), *map(torch.stack, means), (filled + 0.5) / bins)

    return error


CALIBRATION_MISTAKES = {
    "There are ten bins, whatever `bins` says.": lambda c, r, bins: expected_calibration_error(c, r, 10),
    "Every bin has the same weight. A bin counts by its rows: n_b / N.": of_bins(lambda n, c, a, m: (c - a).abs().mean()),
    "Opposite gaps cancel. Take the absolute value of each bin's gap.": lambda c, r, bins: (c.double().mean() - r.double().mean()).abs(),
    "The middle of the bin stands for the mean confidence in it.": of_bins(lambda n, c, a, m: (n * (m - a).abs()).sum() / n.sum()),
    "The gap is taken row by row. Average in each bin first.": lambda c, r, bins: (c.double() - r.double()).abs().mean(),
}


def check_calibration(answer) -> None:
    generator = torch.Generator().manual_seed(5)
    c = 0.21 + 0.77 * torch.rand(60, generator=generator) ** 0.7  # the lowest bins stay empty, as with five classes
    right = torch.rand(60, generator=generator) < 1.3 * c - 0.35
    with expect.hint_for_errors("A bin without rows divides by 0. Leave it out.", ZeroDivisionError):
        got = expect.number(answer(c, right, 5), "the error")
    reject_if(math.isnan(got), "A bin without rows has no mean, and NaN spreads to the sum. Leave such a bin out.")
    hint = "The error is off. By hand: ten rows with confidence 0.8, seven of them right, in one bin: |0.8 − 0.7| = 0.1."
    part, more = lambda error: abs(float(error)), [(c, right, 7)]
    expect.agree(answer, expected_calibration_error, (c, right, 5), hint, CALIBRATION_MISTAKES, "the error", part, more)
    whole = torch.tensor([1.0, 1.0, 0.55, 0.52]), torch.tensor([False, False, True, True]), 10
    hint = "Right up to here, but a row with a confidence of exactly 1 falls out of the last bin. The last bin includes its upper end."
    expect.agree(answer, expected_calibration_error, whole, hint, what="the error", part=float)


EXERCISES = [
    Exercise("6.1", "FixMatch's whole step", 35, 3, fixmatch_step, check_fixmatch, FIXMATCH_MISTAKES),
    Exercise("6.2", "Expected calibration error", 15, 2, expected_calibration_error, check_calibration, CALIBRATION_MISTAKES),
]
