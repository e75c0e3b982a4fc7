"""The exercises of lesson 6: a step of FixMatch, and calibration."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import reject_if
from sslcourse.course.exercises import Exercise
from sslcourse.devices import evaluation_mode


def fixmatch_step(model: nn.Module, optimizer, weak, strong, x: Tensor, y: Tensor, u: Tensor, threshold: float) -> tuple[float, float]:
    """One step of FixMatch on labelled images x with labels y and on unlabelled images u. Returns the loss and the coverage, before it."""
    return step_by(loss_by())(model, optimizer, weak, strong, x, y, u, threshold)


def step_by(loss_of):
    def step(model, optimizer, *inputs):
        loss, coverage = loss_of(model, *inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item(), coverage.item()

    return step


def loss_by(
    sureness=lambda w: w.softmax(1).amax(1), rows=lambda w, s: F.cross_entropy(s, w.argmax(1), reduction="none"),
    mean=lambda rows, passes: (rows * passes).mean(), views=lambda weak, strong: (weak, weak, strong),
):  # fmt: skip
    """FixMatch's loss, and the coverage; wrong ones have another part. w, s: logits of weak and strong views; views: of u, x, and u."""

    def loss(model, weak, strong, x, y, u, threshold):
        labelling, labelled, learning = views(weak, strong)
        with torch.no_grad(), evaluation_mode(model):
            w = model(labelling(u))
        known, said = model(torch.cat([labelled(x), learning(u)])).split([len(x), len(u)])
        passes = (sureness(w) >= threshold).to(w.dtype)
        return F.cross_entropy(known, y) + mean(rows(w, said), passes), passes.mean()

    return loss


WRONG_LOSSES = {
    "The mean is taken over the passing rows only. Divide by all rows: few sure images shall weigh little, and 0 / 0 is NaN.":
        loss_by(mean=lambda rows, passes: rows[passes == 1].mean()),
    "The views have changed places: the strong one labels and the weak one learns.": loss_by(views=lambda w, s: (s, w, w)),
    "The weak view learns from itself. The loss takes the strong view of the unlabelled images.": loss_by(views=lambda w, s: (w, w, w)),
    "The labelled images are seen in the strong view. FixMatch shows them in the weak one.": loss_by(views=lambda w, s: (w, s, s)),
    "The labels are soft: all of the weak view's probabilities. A pseudo-label is one class, the most probable.":
        loss_by(rows=lambda w, s: F.cross_entropy(s, w.softmax(1), reduction="none")),
    "Logits are compared with the threshold. Make probabilities first: softmax over the classes.": loss_by(lambda w: w.amax(1)),
    "The threshold has no effect on the loss: every row teaches. Rows that are less sure count as 0.":
        loss_by(mean=lambda rows, passes: rows.mean()),
}


def check_passes(passes) -> None:
    """Reject a step whose passes through the network are not those that the exercise asks for."""
    labelling, learning = ([mode for _, out, mode in passes if out.requires_grad == learns] for learns in (False, True))
    reject_if(not labelling, "The pass that makes the pseudo-labels records a graph. Give the weak views their own, under torch.no_grad().")
    reject_if(any(labelling), "The pseudo-labels are made in training mode. Make them in evaluation mode: model.eval() before that pass.")
    reject_if(not all(learning), "The network learns in evaluation mode. Call model.train() before the pass that learns.")
    reject_if(len(learning) > 1, "Labelled and strong views take two passes, so batch normalisation never sees both. Join them.")


def check_fixmatch(answer) -> None:
    # at the second size probabilities are exactly the threshold, at the third none reaches it
    for labels, rows, classes, threshold, scale in ((6, 14, 4, 0.6, 1.5), (4, 7, 2, 1.0, 50.0), (5, 9, 3, 1.0, 1.5), (3, 8, 3, 0.7, 1.5)):
        torch.manual_seed(20 + rows)
        images = torch.randint(256, (labels + rows, 3, 4, 4), dtype=torch.uint8)
        model = nn.Sequential(expect.small_encoder(), nn.Linear(8, classes))
        for name, p in model.named_parameters():
            nn.init.normal_(p, std=scale if name[0] == "1" else 0.5)
        model[0][2].momentum = 0  # so that no pass changes what the next one gives
        twin, watched = copy.deepcopy(model), expect.Watched(model, model.parameters(), network=model)
        views = (lambda i: i / 128 - 1), (lambda i: i.flip(3) / 200 - 0.3)
        inputs = *views, images[:labels], torch.arange(labels) % classes, images[labels:], threshold
        with expect.hints_for_errors(expect.STEP_ERRORS):
            told = answer(model.train(), watched.optimizer, *inputs)
        check_passes(watched.calls["network"])
        reject_if(not model.training, "The network is left in evaluation mode. Call model.train() again, for whoever trains on.")
        (loss, coverage), learns = loss_by()(twin, *inputs), [*twin.parameters()]
        watched.check_step(loss, learns, {hint: [wrong(twin, *inputs)[0]] for hint, wrong in WRONG_LOSSES.items()})
        wanted = loss.item(), coverage.item()
        expect.pair(told, wanted, "loss", "coverage")
        expect.close(told[0], wanted[0], "The step is right, the loss returned is not. Return that on which backward() was called.")
        part = "The loss is right, the coverage is not: the part of the weak views that reach the threshold, by >= and not >."
        expect.close(told[1], wanted[1], part)


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, each weighted by its rows. confidence (N,), right bool (N,)."""
    return of_bins(lambda n, c, a: (n * (c - a).abs()).sum() / n.sum())(confidence, right, bins).item()


def of_bins(measure):
    """An error that is measure(rows, confidences, accuracies), each a number for every bin that has rows."""

    def error(confidence, right, bins):
        number = (confidence * bins).ceil().long().clamp(min=1) - 1  # a bin holds its upper end
        filled = number.unique()
        means = [[(v[number == b]).double().mean() for b in filled] for v in (confidence, right)]
        return measure(number.bincount()[filled].double(), *map(torch.stack, means))

    return error


CALIBRATION_MISTAKES = {
    "Every bin has the same weight. A bin counts by its rows: n_b / N.": of_bins(lambda n, c, a: (c - a).abs().mean()),
    "Opposite gaps cancel. Take the absolute value of each bin's gap.": lambda c, r, bins: (c.double().mean() - r.double().mean()).abs(),
    "The gap is taken row by row. Average in each bin first.": lambda c, r, bins: (c.double() - r.double()).abs().mean(),
}


def check_calibration(answer) -> None:
    generator = torch.Generator().manual_seed(5)
    c = 0.21 + 0.77 * torch.rand(60, generator=generator) ** 0.7  # the lowest bins stay empty, as with five classes
    right = torch.rand(60, generator=generator) < 1.3 * c - 0.35
    with expect.hints_for_errors({"division by zero": "A bin without rows divides by 0. Leave it out."}):
        got = expect.number(answer(c, right, 5), "the error")
    reject_if(math.isnan(got), "A bin without rows has no mean, and NaN spreads to the sum. Leave such a bin out.")
    hint = "The error is off. By hand: ten rows with confidence 0.8, seven of them right, in one bin: |0.8 − 0.7| = 0.1."
    part, more = lambda error: abs(float(error)), [(c, right, 7)]
    expect.agree(answer, expected_calibration_error, (c, right, 5), hint, CALIBRATION_MISTAKES, "the error", part, more)
    whole = torch.tensor([1.0, 1.0, 0.55, 0.52]), torch.tensor([False, False, True, True]), 10
    hint = "Right up to here, but a row with a confidence of exactly 1 falls out of the last bin. The last bin includes its upper end."
    expect.agree(answer, expected_calibration_error, whole, hint, what="the error", part=float)


EXERCISES = [
    Exercise("6.1", "FixMatch's whole step", 35, 3, fixmatch_step, check_fixmatch, {hint: step_by(f) for hint, f in WRONG_LOSSES.items()}),
    Exercise("6.2", "Expected calibration error", 15, 2, expected_calibration_error, check_calibration, CALIBRATION_MISTAKES),
]
