"""The exercises of lesson 6: FixMatch's loss, coverage and precision of pseudo-labels, and calibration."""

import math
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import reject_if
from sslcourse.course.exercises import Exercise


def my_fixmatch_loss(weak_logits: Tensor, strong_logits: Tensor, threshold: float) -> Tensor:
    """Mean over all N rows of the strong view's cross-entropy with the weak view's class, where that is sure enough. Both (N, C)."""
    return losses.pseudo_label_loss(weak_logits, strong_logits, threshold)


def each_row(w, s):
    """The surprise of the strong view over the weak view's class."""
    return F.cross_entropy(s, w.argmax(1), reduction="none")


def fixmatch_with(rows=each_row, sure=lambda w, s: w.softmax(1).amax(1), reduce=lambda rows, passes: (rows * passes).mean()):
    """A wrong loss of the weak (w) and strong logits (s): another loss of a row, another sureness, or reduced otherwise."""
    return lambda w, s, threshold: reduce(rows(w, s), sure(w, s) >= threshold)


AT_THRESHOLD = "A probability of exactly the threshold has to pass: >= and not >. With a threshold of 1, > lets nothing through."
NOT_PROBABILITIES = "Logits are compared with the threshold. Make probabilities first: softmax over the classes."
FIXMATCH_MISTAKES = {
    "The mean is taken over the passing rows only. Divide by all N: few sure images shall weigh little, and 0 / 0 is NaN.":
        fixmatch_with(reduce=lambda rows, passes: rows[passes].mean()),
    "The strong view is held against the threshold. The weak one decides.": fixmatch_with(sure=lambda w, s: s.softmax(1).amax(1)),
    "The views have changed places: here the strong one labels and the weak one learns.": lambda w, s, t: my_fixmatch_loss(s, w, t),
    "The labels are soft: all of the weak view's probabilities. A pseudo-label is one class, the most probable.":
        fixmatch_with(lambda w, s: F.cross_entropy(s, w.softmax(1), reduction="none")),
    NOT_PROBABILITIES: fixmatch_with(sure=lambda w, s: w.amax(1)),
    "The threshold has no effect: every row teaches. Rows that are less sure count as 0.": lambda w, s, t: each_row(w, s).mean(),
}


def weak_and_strong(n: int, c: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of two views that agree a little; at a threshold of 0.6 some rows of each pass and others do not."""
    generator = torch.Generator().manual_seed(seed)
    weak = 2 * torch.randn(n, c, generator=generator)
    return weak, weak / 2 + 1.5 * torch.randn(n, c, generator=generator)


def check_fixmatch(answer) -> None:
    expect.loss(answer(*weak_and_strong(9, 4, 1), 0.6), rows=9)
    for n, c, t in ((9, 4, 0.6), (12, 3, 0.7), (1, 6, 0.2)):
        hint = f"With {n} rows, {c} classes and threshold {t} the value is off. Try four rows by hand, as above."
        expect.agree(answer, my_fixmatch_loss, (*weak_and_strong(n, c, n), t), hint, FIXMATCH_MISTAKES, "the loss", rtol=5e-4)
    even = torch.zeros(4, 2)
    reject_if(answer(even, even, 0.5) == 0, AT_THRESHOLD)
    names, views = ("the weak view", "the strong view"), weak_and_strong(9, 4, 2)
    expect.gradients(answer, my_fixmatch_loss, views, 0.6, names=names, learns=[1], else_moves="the labels would move")
    none = answer(views[0], views[1].requires_grad_(), 1.0)
    hint = "Right where some rows pass, but where none does the loss has to be 0: a sum of zeros, divided by N."
    expect.close(none, 0.0, hint, what="the loss")
    reject_if(not none.requires_grad, "Where no row passes, the 0 has no graph and backward() stops. Multiply by the mask.")


def coverage_and_precision(logits: Tensor, labels: Tensor, threshold: float) -> tuple[float, float]:
    """The part of the rows that are sure enough, and the part of those that are right; NaN where none is. logits (N, C), labels (N,)."""
    return tuple(float(rate) for rate in rates()(logits, labels, threshold))


def rates(
    coverage=lambda sure, right: sure.mean(), precision=lambda sure, right: (sure * right).sum() / sure.sum(),
    sureness=lambda logits, labels: logits.softmax(1).amax(1),
):  # fmt: skip
    """The two rates; wrong ones are made otherwise of who is sure and who is right (1 or 0 for each row), or of another sureness."""

    def answer(logits, labels, threshold):
        sure, right = (sureness(logits, labels) >= threshold).double(), (logits.argmax(1) == labels).double()
        return coverage(sure, right), precision(sure, right)

    return answer


RATE_MISTAKES = {
    "The coverage counts only rows that are right. Whoever is sure passes.": rates(lambda sure, right: (sure * right).mean()),
    "The probability of the true class is held against the threshold, and nobody knows it: take the largest.":
        rates(sureness=lambda logits, labels: logits.softmax(1)[range(len(logits)), labels]),
    NOT_PROBABILITIES: rates(sureness=lambda logits, labels: logits.amax(1)),
    "The precision ignores the threshold. Look at the passing rows only.": rates(precision=lambda sure, right: right.mean()),
    "The right ones that pass are divided by N. Divide by how many pass.": rates(precision=lambda sure, right: (sure * right).mean()),
    "Passing right ones are divided by all right ones: recall.": rates(precision=lambda sure, right: (sure * right).sum() / right.sum()),
}


def check_rates(answer) -> None:
    z = weak_and_strong(20, 4, 19)[0] / 2
    first, second = z.topk(2, dim=1).indices.T
    y = torch.where(torch.rand(20, generator=torch.Generator().manual_seed(4)) < 0.6, first, second)
    t = 0.45  # below one half, so that a true class can be sure enough and yet not be the most probable
    expect.pair(answer(z, y, t), coverage_and_precision(z, y, t), "coverage", "precision")
    hints = {
        "the coverage": "The coverage is off. It is the part of the rows that pass.",
        "the precision": "The precision is off. It is the part of the passing rows whose largest logit is that of the label.",
    }
    few = weak_and_strong(7, 3, 6)[0]
    more = [(few, few.argmax(1), 0.7)]
    for at, (name, hint) in enumerate(hints.items()):
        expect.agree(answer, coverage_and_precision, (z, y, t), hint, RATE_MISTAKES, name, itemgetter(at), more)
    reject_if(float(answer(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 0.5)[0]) == 0, AT_THRESHOLD)
    nobody = "Where no row passes there is no precision: return math.nan for it (the coverage is 0)."
    with expect.hint_for_errors(f"{nobody} Here it is divided by 0.", ZeroDivisionError, ValueError):
        coverage, precision = map(float, answer(z, y, 1.0))
    reject_if(coverage != 0 or not math.isnan(precision), f"{nobody} Neither 0 nor 1 would be true, and both would be drawn.")

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
    Exercise("6.1", "FixMatch's loss", 20, 2, my_fixmatch_loss, check_fixmatch, FIXMATCH_MISTAKES),
    Exercise("6.2", "Coverage and precision", 10, 1, coverage_and_precision, check_rates, RATE_MISTAKES),
    Exercise("6.3", "Expected calibration error", 15, 2, expected_calibration_error, check_calibration, CALIBRATION_MISTAKES),
]
