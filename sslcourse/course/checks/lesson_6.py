"""The exercises of lesson 6: FixMatch's loss, the ramp of its weight, coverage and precision of pseudo-labels, and calibration."""

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcourse.course.exercises import Exercise, Wrong, expect_close, expect_shape, expect_type, try_mistakes

# --- 6.1 ------------------------------------------------------------------------------------------------------------------------------


def my_fixmatch_loss(weak_logits: Tensor, strong_logits: Tensor, threshold: float) -> Tensor:
    """Mean over all N rows of the strong view's cross-entropy with the weak view's class, where that is sure enough. Both (N, C)."""
    sureness, said = weak_logits.detach().softmax(dim=1).max(dim=1)
    surprise = F.cross_entropy(strong_logits, said, reduction="none")
    return (surprise * (sureness >= threshold)).mean()


def _parts(w: Tensor, s: Tensor, dim: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """How sure the weak view is (N,), its class (N,), and the surprise of the strong view (N,)."""
    sureness, said = w.softmax(dim).max(1)
    return sureness, said, F.cross_entropy(s, said, reduction="none")


def _masked(measure=lambda w, s: _parts(w, s)[2], sure=lambda w, s: _parts(w, s)[0], reduce=torch.mean):
    """A wrong loss: another measure of a row, another mask, or reduced otherwise."""
    return lambda w, s, t: reduce(measure(w, s) * (sure(w, s) >= t))


def _strong_sureness(w, s):
    return s.softmax(1).amax(1)


def _of_passing(w, s, t):
    sureness, _, surprise = _parts(w, s)
    return surprise[sureness >= t].mean()


_ALL_ROWS = (
    "The mean is taken over the passing rows only. Divide by all N: few sure images shall weigh little, and where none passes 0 / 0 is NaN."
)
_AXIS = "The softmax runs over the batch. Each image has its own probabilities, which sum to 1 over the classes: dim=1."
_FIXMATCH_MISTAKES = [
    (_ALL_ROWS, _of_passing),
    ("This is the sum over the rows. Take the mean.", _masked(reduce=torch.sum)),
    (_AXIS, _masked(sure=lambda w, s: w.softmax(0).amax(1), measure=lambda w, s: _parts(w, s, 0)[2])),
    (_AXIS, _masked(sure=lambda w, s: w.softmax(0).amax(1))),
    (_AXIS, _masked(measure=lambda w, s: F.nll_loss(s.log_softmax(0), w.argmax(1), reduction="none"))),
    (_AXIS, _masked(sure=lambda w, s: w.softmax(0).amax(1), measure=lambda w, s: -s.log_softmax(0)[range(len(w)), w.argmax(1)])),
    ("The threshold is held against the strong view. The weak view decides which images pass.", _masked(sure=_strong_sureness)),
    (
        "The class comes from the strong view. The weak view labels, the strong view learns.",
        _masked(measure=lambda w, s: F.cross_entropy(s, s.argmax(1), reduction="none")),
    ),
    (
        "The views have changed places: here the strong one labels and the weak one learns.",
        lambda w, s, t: my_fixmatch_loss(s, w, t),
    ),
    (
        "The weak view learns from itself. It only labels: the cross-entropy is that of the strong view.",
        _masked(measure=lambda w, s: F.cross_entropy(w, w.argmax(1), reduction="none")),
    ),
    (
        "The labels are soft: all of the weak view's probabilities are used. A pseudo-label is one class, the most probable.",
        _masked(measure=lambda w, s: F.cross_entropy(s, w.softmax(1), reduction="none")),
    ),
    ("Logits are compared with the threshold. Make probabilities first: softmax over the classes.", _masked(sure=lambda w, s: w.amax(1))),
    ("The threshold has no effect: every row teaches. Rows that are less sure count as 0.", _masked(sure=lambda w, s: w[:, 0] + math.inf)),
    ("The unsure rows teach and the sure ones do not: turn the comparison round.", lambda w, s, t: (
        _parts(w, s)[2] * (_parts(w, s)[0] < t)).mean()),
    (
        "The strong view went through a softmax before F.cross_entropy, which has one of its own. Give it logits.",
        _masked(measure=lambda w, s: F.cross_entropy(s.softmax(1), w.argmax(1), reduction="none")),
    ),
    (
        "The logarithm is missing: this is minus the probability. The loss of a row is −ln p.",
        _masked(measure=lambda w, s: F.nll_loss(s.softmax(1), w.argmax(1), reduction="none")),
    ),
    ("The sign is turned round: the loss is minus the logarithm.", lambda w, s, t: -my_fixmatch_loss(w, s, t)),
]  # fmt: skip


def _views(n: int, c: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of two views that agree a little; at a threshold of 0.6 some rows of each pass and others do not."""
    generator = torch.Generator().manual_seed(seed)
    weak = 2 * torch.randn(n, c, generator=generator)
    return weak, weak / 2 + 1.5 * torch.randn(n, c, generator=generator)


def _check_fixmatch(answer) -> None:
    with torch.enable_grad():
        w, s = _views(9, 4, 1)
        got = answer(w, s, 0.6)
        if isinstance(got, Real):
            raise Wrong("The loss comes back as a plain number, and backward() needs the tensor. Leave .item() out.")
        if isinstance(got, Tensor) and got.shape == (9,):
            raise Wrong("This is one value for each row. Take the mean over the rows, so that the loss is one number.")
        expect_shape(got, (), "the loss")
        for hint, wrong in _FIXMATCH_MISTAKES:
            try_mistakes(answer, (w, s, 0.6), {hint: wrong})
        for n, c, t in ((9, 4, 0.6), (12, 3, 0.7), (1, 6, 0.2)):
            w, s = _views(n, c, n)
            hint = f"With {n} rows, {c} classes and threshold {t} the value is off. Try four rows by hand, as above."
            expect_close(answer(w, s, t), my_fixmatch_loss(w, s, t), hint, rtol=5e-4, what="the loss")
        even = torch.zeros(4, 2)
        if answer(even, even, 0.5) == 0:
            raise Wrong("A probability of exactly the threshold has to pass: >= and not >. With a threshold of 1, > lets nothing through.")
        _check_fixmatch_gradients(answer)


def _check_fixmatch_gradients(answer) -> None:
    w, s = (v.requires_grad_() for v in _views(9, 4, 2))
    value = answer(w, s, 0.6)
    if not value.requires_grad:
        raise Wrong("The value is right, but no gradient comes back. Detach the weak view only: no .item(), no torch.tensor(...).")
    to_w, to_s = torch.autograd.grad(value, (w, s), allow_unused=True)
    if to_w is not None and to_w.any():
        raise Wrong("The value is right, but a gradient reaches the weak view, so the labels would move. Stop it there: .detach().")
    if to_s is None or not to_s.any():
        raise Wrong("The value is right, but no gradient reaches the strong view, the side that learns. Detach the weak view only.")
    (wanted,) = torch.autograd.grad(my_fixmatch_loss(w, s, 0.6), s)
    expect_close(to_s, wanted, "The value is right, but its gradient is not: a part of the graph is cut off.", rtol=1e-3, atol=1e-5)
    none = answer(w, s, 1.0)
    hint = "Right where some rows pass, but where none does the loss has to be 0: a sum of zeros, divided by N."
    expect_close(none, 0.0, hint, what="the loss")
    if not none.requires_grad:
        raise Wrong("Where no row passes, the 0 has no graph and backward() stops. Multiply by the mask instead of returning a new 0.")


# --- 6.2 ------------------------------------------------------------------------------------------------------------------------------


def ramp_weight(step: int, start: int, end: int, final: float) -> float:
    """0 before start, along a line to final at end, final from there on; start == end switches at once."""
    if step >= end:
        return float(final)
    return final * (step - start) / (end - start) if step > start else 0.0


def _line(step, start, end, final):
    return final * (step - start) / (end - start)


_RAMP_MISTAKES = [  # hint, the weight that comes of it
    ("The weight is final from the first step on. It begins at 0 and rises from start to end.", lambda i, a, b, f: f),
    ("The weight is always 0. It rises from start on.", lambda i, a, b, f: 0.0),
    ("There is no line between start and end: the weight jumps. At half the way it is half of final.", lambda i, a, b, f: f * (i >= b)),
    (
        "The weight jumps to final where the ramp starts. From start to end it follows a line.",
        lambda i, a, b, f: f * (i >= a),
    ),
    ("The line goes on without end. From `end` on the weight stays at final.", lambda i, a, b, f: max(0.0, _line(i, a, b, f))),
    ("Before start the line goes below 0. The weight is 0 there.", lambda i, a, b, f: min(f, _line(i, a, b, f))),
    ("The line is cut off at neither side: below start it is 0, above end it is final.", _line),
    ("The ramp begins at step 0. It begins at start: use step − start.", lambda i, a, b, f: f * min(1.0, i / b)),
    (
        "The step counter begins where the ramp does, so the first steps, in which the weight should be 0, are left out.",
        lambda i, a, b, f: ramp_weight(i + a, a, b, f),
    ),
    (
        "Before start the weight is 0, but then the line is that of another ramp: it is (step − start) / (end − start).",
        lambda i, a, b, f: f * min(1.0, i / b) * (i >= a),
    ),
    ("Divided by end. The ramp is end − start steps long.", lambda i, a, b, f: f * min(1.0, max(0.0, (i - a) / b))),
    ("The ramp ends at 1. Multiply it by final.", lambda i, a, b, f: ramp_weight(i, a, b, 1.0)),
    ("The weight is cut off at 1. Its largest value is final.", lambda i, a, b, f: min(1.0, ramp_weight(i, a, b, f))),
    ("The weight falls from final to 0. It rises.", lambda i, a, b, f: f - ramp_weight(i, a, b, f)),
    ("Whole-number division: // throws the part behind the point away. Use /.", lambda i, a, b, f: f * min(1, max(0, (i - a) // (b - a)))),
    ("The rise is not a line: it is squared.", lambda i, a, b, f: f * ramp_weight(i, a, b, 1.0) ** 2),
    ("The rise is that of a root, not of a line.", lambda i, a, b, f: f * ramp_weight(i, a, b, 1.0) ** 0.5),
    (
        "This is half a cosine wave, which other papers use. Here the rise is a line.",
        lambda i, a, b, f: f * (1 - math.cos(math.pi * ramp_weight(i, a, b, 1.0))) / 2,
    ),
]


def _check_ramp(answer) -> None:
    ramp, steps = (20, 60, 3.0), (0, 7, 19, 20, 21, 30, 40, 55, 59, 60, 61, 100, 1000)
    got = []
    for step in steps:
        weight = answer(step, *ramp)
        if not isinstance(weight, (Real, Tensor)):
            expect_type(weight, float, "the weight")
        if isinstance(weight, Tensor):
            expect_shape(weight, (), "the weight")
        got.append(float(weight))
    for hint, wrong in _RAMP_MISTAKES:
        if all(math.isclose(w, float(wrong(step, *ramp)), rel_tol=1e-5, abs_tol=1e-9) for w, step in zip(got, steps, strict=True)):
            raise Wrong(hint)
    for step, w in zip(steps, got, strict=True):
        wanted = ramp_weight(step, *ramp)
        if not math.isclose(w, wanted, rel_tol=1e-5, abs_tol=1e-9):
            raise Wrong(f"From 0 at step 20 to 3 at step 60, the weight at step {step} is {wanted:g}, not {w:g}.")
    for step, start, end, final in ((50, 0, 100, 1.0), (350, 100, 600, 3.0), (5, 0, 8, 0.0)):
        hint = f"Right for a ramp from 20 to 60, but not from {start} to {end} with final {final:g}: is a number written into the function?"
        expect_close(answer(step, start, end, final), ramp_weight(step, start, end, final), hint, what="the weight")
    _check_switch(answer)


def _check_switch(answer) -> None:
    divided = "A ramp may have no length, start == end, and then (step − start) / (end − start) divides by 0. Ask for step >= end first."
    for step, wanted in ((0, 3.0), (4, 0.0), (5, 3.0), (6, 3.0)):
        start = 5 if step else 0
        try:
            weight = float(answer(step, start, start, 3.0))
        except Wrong as wrong:
            if isinstance(wrong.__cause__, ZeroDivisionError):
                raise Wrong(divided) from wrong
            raise
        if math.isnan(weight):
            raise Wrong(divided)
        if weight != wanted:
            raise Wrong(
                f"With start == end == {start} the weight is 0 before and final from there on: at step {step} {wanted:g}, not {weight:g}."
            )


# --- 6.3 ------------------------------------------------------------------------------------------------------------------------------


def coverage_and_precision(logits: Tensor, labels: Tensor, threshold: float) -> tuple[float, float]:
    """The part of the rows that are sure enough, and the part of those that are right; NaN where none is. logits (N, C), labels (N,)."""
    sureness, said = logits.softmax(dim=1).max(dim=1)
    sure = sureness >= threshold
    return sure.double().mean().item(), (said == labels)[sure].double().mean().item()


def _sure_and_right(z, y, t, dim=1):
    sureness, said = z.softmax(dim).max(1)
    return (sureness >= t).double(), (z.argmax(1) == y).double()


_BAD_COVERAGES = {
    "The coverage is a number of rows. Divide by N.": lambda z, y, t: _sure_and_right(z, y, t)[0].sum(),
    "The coverage counts only rows that are right. Unlabelled images have no labels: whoever is sure passes.": lambda z, y, t: (
        _sure_and_right(z, y, t)[0] * _sure_and_right(z, y, t)[1]
    ).mean(),
    "The probability of the true class is held against the threshold. Nobody knows it: take the largest probability.": lambda z, y, t: (
        (z.softmax(1)[range(len(z)), y] >= t).double().mean()
    ),
    "Logits are compared with the threshold. Make probabilities first: softmax over the classes.": lambda z, y, t: (
        (z.amax(1) >= t).double().mean()
    ),
    _AXIS: lambda z, y, t: _sure_and_right(z, y, t, 0)[0].mean(),
    "These are the rows that do not pass: turn the comparison round.": lambda z, y, t: 1 - _sure_and_right(z, y, t)[0].mean(),
    "The coverage is in percent. Leave it between 0 and 1.": lambda z, y, t: 100 * _sure_and_right(z, y, t)[0].mean(),
}
_BAD_PRECISIONS = {
    "The precision ignores the threshold: this is the accuracy on all rows. Look at the passing rows only.": lambda a, r: r.mean(),
    "The right ones among the passing rows are divided by N. Divide by how many pass.": lambda a, r: (a * r).mean(),
    "The right ones among the passing rows are divided by all that are right (that is recall). Divide by how many pass.": lambda a, r: (
        (a * r).sum() / r.sum()
    ),
    "This is the part of the passing rows that is wrong.": lambda a, r: 1 - (a * r).sum() / a.sum(),
    "The precision is a number of rows. Divide by how many pass.": lambda a, r: (a * r).sum(),
    "The precision is in percent. Leave it between 0 and 1.": lambda a, r: 100 * (a * r).sum() / a.sum(),
}


def _check_coverage(answer) -> None:
    z = _views(20, 4, 19)[0] / 2
    first, second = z.topk(2, dim=1).indices.T
    y = torch.where(torch.rand(20, generator=torch.Generator().manual_seed(4)) < 0.6, first, second)
    t = 0.45  # below one half, so that a true class can be sure enough and yet not be the most probable
    got = answer(z, y, t)
    if not isinstance(got, (tuple, list, Tensor)) or len(got) != 2:
        expect_type(got, (tuple, list))
        raise Wrong("Return two numbers: return coverage, precision.")
    wanted = coverage_and_precision(z, y, t)
    if all(isinstance(v, (Real, Tensor)) for v in got) and [round(float(v), 4) for v in got] == [round(v, 4) for v in wanted[::-1]]:
        raise Wrong("Both values are right, in the other order. Return the coverage first.")
    try_mistakes(lambda *a: answer(*a)[0], (z, y, t), _BAD_COVERAGES)
    expect_close(
        torch.as_tensor(got[0]).double(), wanted[0], "The coverage is off. It is the part of the rows that pass.", what="the coverage"
    )
    bad = {hint: lambda z, y, t, f=f: f(*_sure_and_right(z, y, t)) for hint, f in _BAD_PRECISIONS.items()}
    try_mistakes(lambda *a: answer(*a)[1], (z, y, t), bad)
    hint = "The precision is off. It is the part of the passing rows whose largest logit is that of the label."
    expect_close(torch.as_tensor(got[1]).double(), wanted[1], hint, what="the precision")
    if float(answer(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 0.5)[0]) == 0:
        raise Wrong("A probability of exactly the threshold has to pass: >= and not >.")
    _check_none_passing(answer, z, y)


def _check_none_passing(answer, z, y) -> None:
    nobody = "Where no row passes there is no precision: return math.nan for it (the coverage is 0)."
    try:
        coverage, precision = map(float, answer(z, y, 1.0))
    except Wrong as wrong:
        if isinstance(wrong.__cause__, (ZeroDivisionError, ValueError)):
            raise Wrong(f"{nobody} Here it is divided by 0.") from wrong
        raise
    if coverage != 0 or not math.isnan(precision):
        raise Wrong(f"{nobody} Neither 0 nor 1 would be true, and both would be drawn.")
    z, _ = _views(7, 3, 6)
    y = z.argmax(1)
    hint = "Right for 20 rows of 4 classes, but not for 7 of 3: is a number written into the function?"
    for value, wanted in zip(answer(z, y, 0.7), coverage_and_precision(z, y, 0.7), strict=True):
        expect_close(torch.as_tensor(value).double(), wanted, hint)


# --- 6.4 ------------------------------------------------------------------------------------------------------------------------------


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, each weighted by its rows. confidence (N,), right bool (N,)."""
    number = (confidence * bins).ceil().long().clamp(min=1) - 1  # a bin holds its upper end
    error = 0.0
    for b in range(bins):
        inside = number == b
        if inside.any():
            error += inside.double().mean().item() * abs(confidence[inside].double().mean() - right[inside].double().mean()).item()
    return error


def _binned(confidence, right, bins):
    """Rows, mean confidence and accuracy of each bin that has rows, and the middle of the bin."""
    number = (confidence * bins).ceil().long().clamp(min=1) - 1
    found = {b: number == b for b in range(bins)}
    rows = [(n.sum(), confidence[n].double().mean(), right[n].double().mean(), (b + 0.5) / bins) for b, n in found.items() if n.any()]
    return torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64).T


def _gaps(measure):
    """A wrong error: `measure` of rows, confidences, accuracies and middles, each one number a bin."""
    return lambda c, r, bins: measure(*_binned(c, r, bins))


_CANCEL = (
    "Opposite gaps cancel: too sure in one bin, too modest in another. Take the absolute value of each bin's gap before they are added up."
)
_ECE_MISTAKES = {
    "Every bin has the same weight. A bin counts by its rows: n_b / N.": _gaps(lambda n, c, a, m: (c - a).abs().mean()),
    "Divided by the number of bins once more. The weights n_b / N add up to 1 already.": lambda c, r, bins: (
        expected_calibration_error(c, r, bins) / bins
    ),
    _CANCEL: lambda c, r, bins: (c.double().mean() - r.double().mean()).abs(),
    "The middle of the bin stands for its confidence. Take the mean confidence of the rows in it.": _gaps(
        lambda n, c, a, m: (n * (m - a).abs()).sum() / n.sum()
    ),
    "The gaps are squared. Take their absolute value.": _gaps(lambda n, c, a, m: (n * (c - a) ** 2).sum() / n.sum()),
    "This is the largest gap. Take the mean, weighted by the rows.": _gaps(lambda n, c, a, m: (c - a).abs().max()),
    "The gaps are weighted by the rows, but not divided by N.": _gaps(lambda n, c, a, m: (n * (c - a).abs()).sum()),
    "The gap is taken row by row, |confidence − right|. Average in each bin first: one row is only right or wrong.": lambda c, r, bins: (
        (c.double() - r.double()).abs().mean()
    ),
    "The error is in percent. Leave it between 0 and 1.": lambda c, r, bins: 100 * expected_calibration_error(c, r, bins),
    "The bins have equal numbers of rows. Here they have equal width, 1 / bins.": lambda c, r, bins: (
        sum(len(p) * (c[p].mean() - r[p].float().mean()).abs() for p in c.argsort().tensor_split(bins)) / len(c)
    ),
}


def _check_ece(answer) -> None:
    generator = torch.Generator().manual_seed(5)
    c = 0.21 + 0.77 * torch.rand(60, generator=generator) ** 0.7  # the lowest bins stay empty, as with five classes
    right = torch.rand(60, generator=generator) < 1.3 * c - 0.35
    try:
        got = answer(c, right, 5)
    except Wrong as wrong:
        if isinstance(wrong.__cause__, ZeroDivisionError):
            raise Wrong("A bin without rows divides by 0. Leave it out.") from wrong
        raise
    if not isinstance(got, (Real, Tensor)):
        expect_type(got, float, "the error")
    if isinstance(got, Tensor):
        expect_shape(got, (), "the error")
    if math.isnan(got):
        raise Wrong("A bin without rows has no mean, and NaN spreads to the sum. Leave such a bin out.")
    got = float(got)
    ten = expected_calibration_error(c, right, 10)
    if math.isclose(got, ten, rel_tol=1e-4):
        raise Wrong("There are ten bins, whatever `bins` says.")
    try_mistakes(lambda *a: abs(float(answer(*a))), (c, right, 5), _ECE_MISTAKES)
    hint = "The error is off. By hand: ten rows with confidence 0.8, seven of them right, in one bin: |0.8 − 0.7| = 0.1."
    expect_close(got, expected_calibration_error(c, right, 5), hint, what="the error")
    whole, wrong = torch.tensor([1.0, 1.0, 0.55, 0.52]), torch.tensor([False, False, True, True])
    hint = "Right up to here, but a row with a confidence of exactly 1 falls out of the last bin. The last bin includes its upper end."
    expect_close(float(answer(whole, wrong, 10)), expected_calibration_error(whole, wrong, 10), hint, what="the error")
    hint = "Right for 5 bins, but not for 7: is a number written into the function?"
    expect_close(float(answer(c, right, 7)), expected_calibration_error(c, right, 7), hint, what="the error")


EXERCISES = {
    "6.1": Exercise("6.1", "FixMatch's loss", 20, 2, my_fixmatch_loss, _check_fixmatch),
    "6.2": Exercise("6.2", "The ramp", 5, 1, ramp_weight, _check_ramp),
    "6.3": Exercise("6.3", "Coverage and precision", 10, 1, coverage_and_precision, _check_coverage),
    "6.4": Exercise("6.4", "Expected calibration error", 15, 2, expected_calibration_error, _check_ece),
}
