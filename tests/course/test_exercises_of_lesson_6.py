"""Lesson 6's exercises: the solution and other right answers pass, and each likely mistake gets its own hint."""

import math

import numpy as np
import pytest
import torch
from answers import judge_of, standard_tests
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course.checks.lesson_6 import (
    EXERCISES,
    coverage_and_precision,
    expected_calibration_error,
    my_fixmatch_loss,
    ramp_weight,
)
from sslcourse.evaluation.calibration import calibration

judged = judge_of(EXERCISES)


# --- 6.1 ---


def loss_by_loops(weak_logits, strong_logits, threshold):
    total = 0
    for weak, strong in zip(weak_logits.detach(), strong_logits, strict=True):
        sureness, said = weak.softmax(0).max(0)
        if sureness >= threshold:
            total = total - strong.log_softmax(0)[said]
        else:
            total = total + 0 * strong.sum()
    return total / len(weak_logits)


def loss_by_where(weak_logits, strong_logits, threshold):
    with torch.no_grad():
        p = F.softmax(weak_logits, dim=-1)
        mask = torch.where(p.max(-1).values < threshold, 0.0, 1.0)
    return (F.nll_loss(F.log_softmax(strong_logits, dim=-1), p.argmax(-1), reduction="none") * mask).sum() / mask.numel()


def loss_by_one_hot(weak_logits, strong_logits, threshold):
    p = torch.softmax(weak_logits, 1).detach()
    aim = (p == p.amax(1, keepdim=True)) & (p >= threshold)
    return -(aim * strong_logits.log_softmax(1)).sum() / p.shape[0]


def loss_of_package(weak_logits, strong_logits, threshold):
    return losses.pseudo_label_loss(weak_logits, strong_logits, threshold)


def changed(measure=None, sure=None, reduce=torch.mean):
    """An answer with another measure of each row, another mask, or reduced otherwise."""

    def answer(weak_logits, strong_logits, threshold):
        w, s = weak_logits.detach(), strong_logits
        rows = measure(w, s) if measure else F.cross_entropy(s, w.argmax(1), reduction="none")
        sureness = sure(w, s) if sure else w.softmax(1).amax(1)
        return reduce(rows * (sureness >= threshold))

    return answer


def loss_of_passing(weak_logits, strong_logits, threshold):
    sureness, said = weak_logits.detach().softmax(1).max(1)
    passing = sureness >= threshold
    return F.cross_entropy(strong_logits[passing], said[passing])


def loss_of_passing_or_zero(weak_logits, strong_logits, threshold):
    mask = weak_logits.detach().softmax(1).amax(1) >= threshold
    rows = F.cross_entropy(strong_logits, weak_logits.argmax(1), reduction="none") * mask
    return rows.sum() / mask.sum().clamp(min=1)


def loss_axis(weak_logits, strong_logits, threshold):
    sureness, said = weak_logits.detach().softmax(0).max(1)
    return (F.cross_entropy(strong_logits, said, reduction="none") * (sureness >= threshold)).mean()


def loss_views_swapped(weak_logits, strong_logits, threshold):
    return my_fixmatch_loss(strong_logits, weak_logits, threshold)


def loss_inverted(weak_logits, strong_logits, threshold):
    sureness, said = weak_logits.detach().softmax(1).max(1)
    return (F.cross_entropy(strong_logits, said, reduction="none") * (sureness < threshold)).mean()


def loss_negative(weak_logits, strong_logits, threshold):
    return -my_fixmatch_loss(weak_logits, strong_logits, threshold)


def loss_more_than(weak_logits, strong_logits, threshold):
    sureness, said = weak_logits.detach().softmax(1).max(1)
    return (F.cross_entropy(strong_logits, said, reduction="none") * (sureness > threshold)).mean()


def loss_with_gradient_to_weak(weak_logits, strong_logits, threshold):
    sureness, said = weak_logits.softmax(1).max(1)
    straight_through = (sureness >= threshold) + sureness - sureness.detach()
    return (F.cross_entropy(strong_logits, said, reduction="none") * straight_through).mean()


def loss_strong_detached(weak_logits, strong_logits, threshold):
    return my_fixmatch_loss(weak_logits, strong_logits.detach(), threshold) + 0 * weak_logits.detach().requires_grad_().sum()


def loss_without_graph(weak_logits, strong_logits, threshold):
    return my_fixmatch_loss(weak_logits, strong_logits, threshold).detach()


def loss_as_number(weak_logits, strong_logits, threshold):
    return my_fixmatch_loss(weak_logits, strong_logits, threshold).item()


def loss_each_row(weak_logits, strong_logits, threshold):
    return F.cross_entropy(strong_logits, weak_logits.argmax(1), reduction="none")


def loss_cut_off(weak_logits, strong_logits, threshold):
    sureness, said = weak_logits.detach().softmax(1).max(1)
    log_p = strong_logits - strong_logits.logsumexp(1, keepdim=True).detach()
    return (F.nll_loss(log_p, said, reduction="none") * (sureness >= threshold)).mean()


def loss_zero_without_graph(weak_logits, strong_logits, threshold):
    if not (weak_logits.softmax(1).amax(1) >= threshold).any():
        return torch.tensor(0.0)
    return my_fixmatch_loss(weak_logits, strong_logits, threshold)


def loss_one_where_none_passes(weak_logits, strong_logits, threshold):
    if not (weak_logits.softmax(1).amax(1) >= threshold).any():
        return strong_logits.sum() * 0 + 1
    return my_fixmatch_loss(weak_logits, strong_logits, threshold)


def loss_off_by_a_little(weak_logits, strong_logits, threshold):
    return my_fixmatch_loss(weak_logits, strong_logits, threshold) + 0.01


# --- 6.2 ---


def ramp_by_clamping(step, start, end, final):
    if start == end:
        return final if step >= end else 0.0
    return final * min(1.0, max(0.0, (step - start) / (end - start)))


def ramp_by_cases(step, start, end, final):
    if step < start:
        return 0.0
    if step < end:
        return (step - start) / (end - start) * final
    return final


def ramp_by_interpolation(step, start, end, final):
    if step >= end:
        return torch.tensor(float(final))
    return torch.tensor(np.interp(step, [start, end], [0.0, final]))


def ramp_without_case(step, start, end, final):
    return final * min(1.0, max(0.0, (step - start) / (end - start)))


def ramp_switch_too_late(step, start, end, final):
    if step <= start:
        return 0.0
    return final if step >= end else final * (step - start) / (end - start)


def ramp_written_in(step, start, end, final):
    return final if step >= end else final * max(0, step - start) / 40 if step > start else 0.0


def ramp_returns_nothing(step, start, end, final):
    ramp_weight(step, start, end, final)


def ramp(weight):
    """An answer that is wrong in one way; a ramp without length it gets right."""

    def answer(step, start, end, final):
        return weight(step, start, end, final) if end > start else ramp_weight(step, start, end, final)

    return answer


# --- 6.3 ---


def coverage_by_loops(logits, labels, threshold):
    passing = right = 0
    for row, label in zip(logits, labels, strict=True):
        p = row.softmax(0)
        if p.max() >= threshold:
            passing += 1
            right += int(p.argmax() == label)
    return passing / len(logits), right / passing if passing else math.nan


def coverage_by_indexing(logits, labels, threshold):
    p = F.softmax(logits, dim=1)
    sure = ~(p.max(1).values < threshold)
    return sure.float().mean(), (p[sure].argmax(1) == labels[sure]).float().mean()


def pair(coverage=None, precision=None):
    """An answer with one of the two numbers changed. Both get: passing and right as numbers (N,)."""

    def answer(logits, labels, threshold):
        sure = (logits.softmax(1).amax(1) >= threshold).double()
        right = (logits.argmax(1) == labels).double()
        wanted = coverage_and_precision(logits, labels, threshold)
        return coverage(sure, right) if coverage else wanted[0], precision(sure, right) if precision else wanted[1]

    return answer


def coverage_of_truth(logits, labels, threshold):
    p = logits.softmax(1)[torch.arange(len(logits)), labels]
    return (p >= threshold).float().mean(), coverage_and_precision(logits, labels, threshold)[1]


def coverage_of_logits(logits, labels, threshold):
    sure = logits.amax(1) >= threshold
    return sure.float().mean(), (logits.argmax(1) == labels)[sure].float().mean()


def coverage_axis(logits, labels, threshold):
    sureness, said = logits.softmax(0).max(1)
    return (sureness >= threshold).float().mean(), (said == labels)[sureness >= threshold].float().mean()


def coverage_swapped(logits, labels, threshold):
    return coverage_and_precision(logits, labels, threshold)[::-1]


def coverage_alone(logits, labels, threshold):
    return coverage_and_precision(logits, labels, threshold)[0]


def coverage_more_than(logits, labels, threshold):
    sure = logits.softmax(1).amax(1) > threshold
    return sure.float().mean(), (logits.argmax(1) == labels)[sure].float().mean()


def coverage_zero_for_nobody(logits, labels, threshold):
    found = coverage_and_precision(logits, labels, threshold)
    return found if found[0] else (0.0, 0.0)


def coverage_divides_by_nobody(logits, labels, threshold):
    sure = (logits.softmax(1).amax(1) >= threshold).tolist()
    right = (logits.argmax(1) == labels).tolist()
    return sum(sure) / len(sure), sum(a and b for a, b in zip(sure, right, strict=True)) / sum(sure)


def coverage_written_in(logits, labels, threshold):
    coverage, precision = coverage_and_precision(logits, labels, threshold)
    return coverage * len(logits) / 20, precision


# --- 6.4 ---


def ece_by_loops(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        rows = [i for i, c in enumerate(confidence.tolist()) if b / bins < c <= (b + 1) / bins]
        if rows:
            gap = sum(float(confidence[i]) for i in rows) - sum(float(right[i]) for i in rows)
            total += abs(gap) / len(confidence)
    return total


def ece_by_histogram(confidence, right, bins):
    number = np.clip((confidence.numpy() * bins).astype(int), 0, bins - 1)
    sums = np.bincount(number, weights=confidence.numpy() - right.numpy(), minlength=bins)
    return np.abs(sums).sum() / len(number)


def ece_by_tensors(confidence, right, bins):
    edges = torch.linspace(0, 1, bins + 1)
    parts = [(confidence > low) & (confidence <= high) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    gaps = [(confidence[p].mean() - right[p].float().mean()).abs() * p.float().mean() for p in parts if p.any()]
    return torch.stack(gaps).sum()


def ece(measure):
    """An answer made from each bin's rows, mean confidence, accuracy and middle; bins without rows are left out."""

    def answer(confidence, right, bins):
        number = (confidence * bins).long().clamp(max=bins - 1)
        there = [b for b in range(bins) if (number == b).any()]
        n = torch.tensor([float((number == b).sum()) for b in there])
        c = torch.stack([confidence[number == b].mean() for b in there])
        a = torch.stack([right[number == b].float().mean() for b in there])
        return measure(n, c, a, (torch.tensor(there) + 0.5) / bins, bins)

    return answer


def right_ece(n, c, a, m, bins):
    return (n * (c - a).abs()).sum() / n.sum()


def ece_over_all(confidence, right, bins):
    return abs(confidence.mean() - right.float().mean())


def ece_row_by_row(confidence, right, bins):
    return (confidence - right.float()).abs().mean()


def ece_ten_bins(confidence, right, bins):
    return expected_calibration_error(confidence, right, 10)


def ece_five_bins(confidence, right, bins):
    return expected_calibration_error(confidence, right, 5)


def ece_equal_numbers(confidence, right, bins):
    order = confidence.argsort()
    parts = torch.tensor_split(order, bins)
    return sum(len(p) / len(order) * (confidence[p].mean() - right[p].float().mean()).abs() for p in parts)


def ece_nan_for_empty(confidence, right, bins):
    number = (confidence * bins).long().clamp(max=bins - 1)
    return sum(
        (number == b).float().mean() * (confidence[number == b].mean() - right[number == b].float().mean()).abs() for b in range(bins)
    )


def ece_divides_by_empty(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        rows = [i for i, c in enumerate(confidence.tolist()) if b / bins < c <= (b + 1) / bins]
        total += abs(sum(float(confidence[i]) - float(right[i]) for i in rows) / len(rows)) * len(rows) / len(confidence)
    return total


def ece_without_the_end(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & (confidence < (b + 1) / bins)
        if inside.any():
            total += inside.float().mean() * (confidence[inside].mean() - right[inside].float().mean()).abs()
    return total


def ece_of_bins(confidence, right, bins):
    return torch.zeros(bins)


RIGHT = [
    ("6.1", my_fixmatch_loss),
    ("6.1", loss_by_loops),
    ("6.1", loss_by_where),
    ("6.1", loss_by_one_hot),
    ("6.1", loss_of_package),
    ("6.2", ramp_weight),
    ("6.2", losses.pseudo_label_weight),
    ("6.2", ramp_by_clamping),
    ("6.2", ramp_by_cases),
    ("6.2", ramp_by_interpolation),
    ("6.3", coverage_and_precision),
    ("6.3", coverage_by_loops),
    ("6.3", coverage_by_indexing),
    ("6.4", expected_calibration_error),
    ("6.4", ece_by_loops),
    ("6.4", ece_by_histogram),
    ("6.4", ece_by_tensors),
    ("6.4", ece(right_ece)),
]

WRONG = [
    ("6.1", loss_of_passing, "passing rows only"),
    ("6.1", changed(reduce=torch.sum), "sum over the rows"),
    ("6.1", loss_axis, "runs over the batch"),
    ("6.1", changed(sure=lambda w, s: s.softmax(1).amax(1)), "held against the strong view"),
    ("6.1", changed(measure=lambda w, s: F.cross_entropy(s, s.argmax(1), reduction="none")), "class comes from the strong view"),
    ("6.1", loss_views_swapped, "have changed places"),
    ("6.1", changed(measure=lambda w, s: F.cross_entropy(w, w.argmax(1), reduction="none") + 0 * s[:, 0]), "learns from itself"),
    ("6.1", changed(measure=lambda w, s: F.cross_entropy(s, w.softmax(1), reduction="none")), "labels are soft"),
    ("6.1", changed(sure=lambda w, s: w.amax(1)), "Logits are compared"),
    ("6.1", changed(sure=lambda w, s: torch.ones(len(w))), "threshold has no effect"),
    ("6.1", loss_inverted, "turn the comparison round"),
    ("6.1", changed(measure=lambda w, s: F.cross_entropy(s.softmax(1), w.argmax(1), reduction="none")), "one of its own"),
    ("6.1", changed(measure=lambda w, s: -s.softmax(1).gather(1, w.argmax(1)[:, None])[:, 0]), "logarithm is missing"),
    ("6.1", loss_negative, "sign is turned round"),
    ("6.1", loss_more_than, ">= and not >"),
    ("6.1", loss_with_gradient_to_weak, "reaches the weak view"),
    ("6.1", loss_strong_detached, "reaches the strong view"),
    ("6.1", loss_without_graph, "no gradient comes back"),
    ("6.1", loss_as_number, "plain number"),
    ("6.1", loss_each_row, "one value for each row"),
    ("6.1", loss_cut_off, "its gradient is not"),
    ("6.1", loss_zero_without_graph, "backward() stops"),
    ("6.1", loss_one_where_none_passes, "a sum of zeros"),
    ("6.1", loss_off_by_a_little, "the value is off"),
    ("6.2", ramp(lambda i, a, b, f: f), "final from the first step on"),
    ("6.2", ramp(lambda i, a, b, f: 0.0), "always 0"),
    ("6.2", ramp(lambda i, a, b, f: f if i >= b else 0.0), "no line"),
    ("6.2", ramp(lambda i, a, b, f: f if i >= a else 0.0), "where the ramp starts"),
    ("6.2", ramp(lambda i, a, b, f: f * (i - a) / (b - a) if i > a else 0.0), "without end"),
    ("6.2", ramp(lambda i, a, b, f: f * (i - a) / (b - a) if i < b else f), "below 0"),
    ("6.2", ramp(lambda i, a, b, f: f * (i - a) / (b - a)), "neither side"),
    ("6.2", ramp(lambda i, a, b, f: min(f, f * i / b)), "begins at step 0"),
    ("6.2", ramp(lambda i, a, b, f: ramp_weight(i + a, a, b, f)), "step counter begins"),
    ("6.2", ramp(lambda i, a, b, f: 0.0 if i < a else min(f, f * i / b)), "another ramp"),
    ("6.2", ramp(lambda i, a, b, f: f * max(0, min(1, (i - a) / b))), "Divided by end"),
    ("6.2", ramp(lambda i, a, b, f: ramp_weight(i, a, b, 1)), "ramp ends at 1"),
    ("6.2", ramp(lambda i, a, b, f: min(1, ramp_weight(i, a, b, f))), "cut off at 1"),
    ("6.2", ramp(lambda i, a, b, f: f - ramp_weight(i, a, b, f)), "falls"),
    ("6.2", ramp(lambda i, a, b, f: ramp_weight(i, a, b, 1) ** 2 * f), "squared"),
    ("6.2", ramp(lambda i, a, b, f: ramp_weight(i, a, b, 1) ** 0.5 * f), "that of a root"),
    ("6.2", ramp(lambda i, a, b, f: f * 0.5 * (1 - math.cos(math.pi * ramp_weight(i, a, b, 1)))), "cosine wave"),
    ("6.2", ramp_without_case, "divides by 0"),
    ("6.2", ramp_switch_too_late, "With start == end"),
    ("6.2", ramp_written_in, "number written into"),
    ("6.2", ramp(lambda i, a, b, f: 0.9 * ramp_weight(i, a, b, f)), "the weight at step"),
    ("6.2", ramp_returns_nothing, "return statement"),
    ("6.3", pair(lambda sure, right: sure.sum()), "coverage is a number of rows"),
    ("6.3", pair(lambda sure, right: (sure * right).mean()), "counts only rows that are right"),
    ("6.3", coverage_of_truth, "probability of the true class"),
    ("6.3", coverage_of_logits, "Logits are compared"),
    ("6.3", coverage_axis, "runs over the batch"),
    ("6.3", pair(lambda sure, right: 1 - sure.mean()), "do not pass"),
    ("6.3", pair(lambda sure, right: 100 * sure.mean()), "coverage is in percent"),
    ("6.3", pair(lambda sure, right: sure.mean() + 0.03), "The coverage is off"),
    ("6.3", pair(precision=lambda sure, right: right.mean()), "ignores the threshold"),
    ("6.3", pair(precision=lambda sure, right: (sure * right).mean()), "are divided by N"),
    ("6.3", pair(precision=lambda sure, right: (sure * right).sum() / right.sum()), "recall"),
    ("6.3", pair(precision=lambda sure, right: (sure * (1 - right)).sum() / sure.sum()), "that is wrong"),
    ("6.3", pair(precision=lambda sure, right: (sure * right).sum()), "precision is a number of rows"),
    ("6.3", pair(precision=lambda sure, right: 100 * (sure * right).sum() / sure.sum()), "precision is in percent"),
    ("6.3", pair(precision=lambda sure, right: (sure * right).sum() / sure.sum() - 0.02), "The precision is off"),
    ("6.3", coverage_swapped, "other order"),
    ("6.3", coverage_alone, "Expected"),
    ("6.3", lambda logits, labels, threshold: [0.5], "Return two numbers"),
    ("6.3", coverage_more_than, ">= and not >"),
    ("6.3", coverage_zero_for_nobody, "Neither 0 nor 1"),
    ("6.3", coverage_divides_by_nobody, "it is divided by 0"),
    ("6.3", coverage_written_in, "20 rows"),
    ("6.4", ece(lambda n, c, a, m, bins: (c - a).abs().mean()), "same weight"),
    ("6.4", ece(lambda *parts: right_ece(*parts) / parts[-1]), "bins once more"),
    ("6.4", ece(lambda n, c, a, m, bins: (n * (c - a)).sum() / n.sum()), "Opposite gaps cancel"),
    ("6.4", ece(lambda n, c, a, m, bins: (n * (m - a).abs()).sum() / n.sum()), "middle of the bin"),
    ("6.4", ece(lambda n, c, a, m, bins: (n * (c - a) ** 2).sum() / n.sum()), "squared"),
    ("6.4", ece(lambda n, c, a, m, bins: (c - a).abs().max()), "largest gap"),
    ("6.4", ece(lambda n, c, a, m, bins: (n * (c - a).abs()).sum()), "not divided by N"),
    ("6.4", ece_row_by_row, "row by row"),
    ("6.4", ece(lambda *parts: 100 * right_ece(*parts)), "in percent"),
    ("6.4", ece_equal_numbers, "equal numbers of rows"),
    ("6.4", ece_ten_bins, "ten bins"),
    ("6.4", ece_five_bins, "not for 7"),
    ("6.4", ece_nan_for_empty, "NaN spreads"),
    ("6.4", ece_divides_by_empty, "without rows divides by 0"),
    ("6.4", ece_without_the_end, "exactly 1"),
    ("6.4", ece_of_bins, "single number"),
    ("6.4", ece(lambda *parts: right_ece(*parts) + 0.01), "The error is off"),
]

SAME_HINT = [
    ("6.1", loss_of_passing_or_zero, "passing rows only"),
    ("6.1", changed(sure=lambda w, s: w.softmax(0).amax(1)), "runs over the batch"),
    ("6.1", changed(measure=lambda w, s: F.nll_loss(s.log_softmax(0), w.argmax(1), reduction="none")), "runs over the batch"),
    ("6.4", ece_over_all, "Opposite gaps cancel"),
    ("6.4", ece(lambda n, c, a, m, bins: (n * (a - c)).sum() / n.sum()), "Opposite gaps cancel"),
]


test_right_answers_are_accepted, test_each_mistake_gets_its_own_hint, test_hints_differ_within_an_exercise = standard_tests(
    EXERCISES, RIGHT, WRONG, SAME_HINT
)


def test_untouched_functions_are_not_attempted():
    def my_fixmatch_loss(weak_logits, strong_logits, threshold):
        """The loss."""
        ...

    def ramp_weight(step, start, end, final): ...

    def coverage_and_precision(logits, labels, threshold):
        raise NotImplementedError

    def expected_calibration_error(confidence, right, bins):
        pass

    answers = (my_fixmatch_loss, ramp_weight, coverage_and_precision, expected_calibration_error)
    for number, answer in zip(EXERCISES, answers, strict=True):
        assert judged(number, answer)[0] == "not attempted"


def test_gradients_are_checked_where_autograd_is_off():
    with torch.no_grad():
        assert judged("6.1", my_fixmatch_loss)[0] == "done"


def test_references_agree_with_the_package():
    generator = torch.Generator().manual_seed(9)
    weak, strong = 2 * torch.randn(2, 200, 6, generator=generator)
    labels = torch.randint(6, (200,), generator=generator)
    for threshold in (0.0, 0.4, 0.8, 1.0):
        torch.testing.assert_close(my_fixmatch_loss(weak, strong, threshold), losses.pseudo_label_loss(weak, strong, threshold))
    for step in (0, 3, 5, 8, 11, 12, 40):
        assert ramp_weight(step, 5, 11, 2.0) == pytest.approx(losses.pseudo_label_weight(step, 5, 11, 2.0))
    confidence, said = weak.softmax(1).max(1)
    for bins in (1, 7, 10, 15):
        wanted = calibration(weak, labels, bins=bins).ece
        assert expected_calibration_error(confidence, said == labels, bins) == pytest.approx(wanted, abs=1e-6)


def test_references_give_known_values():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 0.0]])
    coverage, precision = coverage_and_precision(logits, torch.tensor([0, 0, 0, 0]), 0.9)
    assert (coverage, precision) == (0.5, 0.5)
    ten = torch.full((10,), 0.8)
    assert expected_calibration_error(ten, torch.arange(10) < 7, 10) == pytest.approx(0.1)
