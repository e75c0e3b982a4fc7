"""Answers to the exercises of lesson 6, as learners write them."""


import numpy as np
import torch
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course.checks.lesson_6 import coverage_and_precision, expected_calibration_error, my_fixmatch_loss, ramp_weight


def loss_by_one_hot(weak_logits, strong_logits, threshold):
    p = torch.softmax(weak_logits, 1).detach()
    aim = (p == p.amax(1, keepdim=True)) & (p >= threshold)
    return -(aim * strong_logits.log_softmax(1)).sum() / p.shape[0]


def loss_of(combine):
    """An answer that puts together how sure the weak view is, its class, the strong logits and the threshold."""

    def answer(weak_logits, strong_logits, threshold):
        sureness, said = weak_logits.detach().softmax(1).max(1)
        return combine(sureness, said, strong_logits, threshold)

    return answer


def each_row(strong, said):
    return F.cross_entropy(strong, said, reduction="none")


def loss_with_gradient_to_weak(weak_logits, strong_logits, threshold):
    sureness, said = weak_logits.softmax(1).max(1)
    straight_through = (sureness >= threshold) + sureness - sureness.detach()
    return (each_row(strong_logits, said) * straight_through).mean()


def loss_strong_detached(weak_logits, strong_logits, threshold):
    return my_fixmatch_loss(weak_logits, strong_logits.detach(), threshold) + 0 * weak_logits.detach().requires_grad_().sum()


def loss_cut_off(sureness, said, strong, threshold):
    log_p = strong - strong.logsumexp(1, keepdim=True).detach()
    return (F.nll_loss(log_p, said, reduction="none") * (sureness >= threshold)).mean()


def loss_where_none_passes(value):
    return loss_of(
        lambda sure, said, strong, t: (each_row(strong, said) * (sure >= t)).mean() if (sure >= t).any() else value(strong)
    )


def ramp_by_clamping(step, start, end, final):
    if start == end:
        return final if step >= end else 0.0
    return final * min(1.0, max(0.0, (step - start) / (end - start)))


def ramp(weight):
    """An answer that is wrong in one way; a ramp without length it gets right."""
    return lambda step, start, end, final: weight(step, start, end, final) if end > start else ramp_weight(step, start, end, final)


def rates_by_indexing(logits, labels, threshold):
    p = F.softmax(logits, dim=1)
    sure = ~(p.max(1).values < threshold)
    return sure.float().mean(), (p[sure].argmax(1) == labels[sure]).float().mean()


def rates(combine, passes=lambda sureness, threshold: sureness >= threshold):
    """An answer made of who passes and who is right, as numbers (N,)."""

    def answer(logits, labels, threshold):
        sure = passes(logits.softmax(1).amax(1), threshold).double()
        return combine(sure, (logits.argmax(1) == labels).double())

    return answer


def rates_zero_for_nobody(logits, labels, threshold):
    found = coverage_and_precision(logits, labels, threshold)
    return found if found[0] else (0.0, 0.0)


def rates_divide_by_nobody(logits, labels, threshold):
    sure = (logits.softmax(1).amax(1) >= threshold).tolist()
    right = (logits.argmax(1) == labels).tolist()
    return sum(sure) / len(sure), sum(a and b for a, b in zip(sure, right, strict=True)) / sum(sure)


def ece_by_loops(gap_of_bin):
    """The error as a loop over bins adds it up; gap_of_bin(confidences, rights, number of all rows) of the rows in a bin."""

    def answer(confidence, right, bins):
        total = 0.0
        for b in range(bins):
            rows = [i for i, c in enumerate(confidence.tolist()) if b / bins < c <= (b + 1) / bins]
            total += gap_of_bin([float(confidence[i]) for i in rows], [float(right[i]) for i in rows], len(confidence))
        return total

    return answer


def ece_by_histogram(confidence, right, bins):
    number = np.clip((confidence.numpy() * bins).astype(int), 0, bins - 1)
    sums = np.bincount(number, weights=confidence.numpy() - right.numpy(), minlength=bins)
    return np.abs(sums).sum() / len(number)


def ece_nan_for_empty(confidence, right, bins):
    number = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [(confidence[number == b].mean() - right[number == b].float().mean()).abs() for b in range(bins)]
    return sum((number == b).float().mean() * gap for b, gap in enumerate(gaps))


def ece_without_the_end(confidence, right, bins):
    total = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & (confidence < (b + 1) / bins)
        if inside.any():
            total += inside.float().mean() * (confidence[inside].mean() - right[inside].float().mean()).abs()
    return total


RIGHT = {
    "6.1": [losses.pseudo_label_loss, loss_by_one_hot],
    "6.2": [losses.pseudo_label_weight, ramp_by_clamping],
    "6.3": [rates_by_indexing],
    "6.4": [ece_by_loops(lambda c, r, n: abs(sum(c) - sum(r)) / n), ece_by_histogram],
}

WRONG = {
    "6.1": {
        ">= and not >": loss_of(lambda sure, said, strong, t: (each_row(strong, said) * (sure > t)).mean()),
        "reaches the weak view": loss_with_gradient_to_weak,
        "reaches the strong view": loss_strong_detached,
        "one value for each row": loss_of(lambda sure, said, strong, t: each_row(strong, said)),
        "its gradient is not": loss_of(loss_cut_off),
        "backward() stops": loss_where_none_passes(lambda strong: torch.tensor(0.0)),
        "a sum of zeros": loss_where_none_passes(lambda strong: 1 + 0 * strong.sum()),
        "the value is off": lambda weak_logits, strong_logits, threshold: my_fixmatch_loss(weak_logits, strong_logits, threshold) + 0.01,
    },
    "6.2": {
        "divides by 0": lambda step, start, end, final: final * min(1.0, max(0.0, (step - start) / (end - start))),
        "With start == end": lambda step, start, end, final: 0.0 if step <= start else ramp_weight(step, start, end, final),
        "number written into": lambda step, start, end, final: final if step >= end else final * max(0, step - start) / 40,
        "the weight at step": ramp(lambda i, a, b, f: 0.9 * ramp_weight(i, a, b, f)),
    },
    "6.3": {
        "The coverage is off": rates(lambda sure, right: (sure.mean() + 0.03, (sure * right).sum() / sure.sum())),
        "The precision is off": rates(lambda sure, right: (sure.mean(), (sure * right).sum() / sure.sum() - 0.02)),
        "other order": lambda logits, labels, threshold: coverage_and_precision(logits, labels, threshold)[::-1],
        "Expected": lambda logits, labels, threshold: coverage_and_precision(logits, labels, threshold)[0],
        "Return two numbers": lambda logits, labels, threshold: [0.5],
        ">= and not >": rates(lambda sure, right: (sure.mean(), (sure * right).sum() / sure.sum()), torch.gt),
        "Neither 0 nor 1": rates_zero_for_nobody,
        "it is divided by 0": rates_divide_by_nobody,
        "20 rows": rates(lambda sure, right: (sure.sum() / 20, (sure * right).sum() / sure.sum())),
    },
    "6.4": {
        "not for 7": lambda confidence, right, bins: expected_calibration_error(confidence, right, 5 if len(right) > 4 else bins),
        "NaN spreads": ece_nan_for_empty,
        "without rows divides by 0": ece_by_loops(lambda c, r, n: abs(sum(c) - sum(r)) / len(c) * len(c) / n),
        "exactly 1": ece_without_the_end,
        "single number": lambda confidence, right, bins: torch.zeros(bins),
        "The error is off": lambda confidence, right, bins: expected_calibration_error(confidence, right, bins) + 0.01,
    },
}
