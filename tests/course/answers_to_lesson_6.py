"""Answers to the exercises of lesson 6, as learners write them."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course.checks.lesson_6 import (
    coverage_and_precision,
    each_row,
    expected_calibration_error,
    fixmatch_with,
    my_fixmatch_loss,
    rates,
)  # fmt: skip


def loss_by_one_hot(weak_logits, strong_logits, threshold):
    p = torch.softmax(weak_logits, 1).detach()
    aim = (p == p.amax(1, keepdim=True)) & (p >= threshold)
    return -(aim * strong_logits.log_softmax(1)).sum() / p.shape[0]


def rates_by_indexing(logits, labels, threshold):
    p = F.softmax(logits, dim=1)
    sure = ~(p.max(1).values < threshold)
    return sure.float().mean(), (p[sure].argmax(1) == labels[sure]).float().mean()


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


RIGHT = {
    "6.1": [losses.pseudo_label_loss, loss_by_one_hot], "6.2": [rates_by_indexing],
    "6.3": [ece_by_loops(lambda c, r, n: abs(sum(c) - sum(r)) / n), ece_by_histogram],
}

WRONG = {
    "6.1": {
        ">= and not >": lambda w, s, t: (each_row(w, s) * (w.softmax(1).amax(1) > t)).mean(),
        "reaches the weak view": lambda w, s, t: my_fixmatch_loss(w, s, t) + w.sum() - w.sum().detach(),
        "reaches the strong view": lambda w, s, t: my_fixmatch_loss(w, s.detach(), t) + torch.zeros((), requires_grad=True),
        "one value for each row": lambda w, s, t: each_row(w, s),
        "its gradient is not": fixmatch_with(lambda w, s: F.nll_loss(s - s.logsumexp(1, True).detach(), w.argmax(1), reduction="none")),
        "backward() stops": fixmatch_with(reduce=lambda rows, passes: (rows * passes).mean() if passes.any() else torch.tensor(0.0)),
        "a sum of zeros": fixmatch_with(reduce=lambda rows, passes: (rows * passes).mean() if passes.any() else rows.sum()),
        "the value is off": lambda *a: my_fixmatch_loss(*a) + 0.01,
    },
    "6.2": {
        "The coverage is off": rates(lambda sure, right: sure.mean() + 0.03),
        "The precision is off": rates(precision=lambda sure, right: (sure * right).sum() / sure.sum() - 0.02),
        "other order": lambda *a: coverage_and_precision(*a)[::-1], "Expected": lambda *a: coverage_and_precision(*a)[0],
        "Return two numbers": lambda *a: [0.5], ">= and not >": rates(sureness=lambda z, y: z.double().softmax(1).amax(1) - 1e-9),
        "Neither 0 nor 1": lambda *a: [0.0 if math.isnan(rate) else rate for rate in coverage_and_precision(*a)],
        "it is divided by 0": rates_divide_by_nobody, "is a number written into": rates(lambda sure, right: sure.sum() / 20),
    },
    "6.3": {
        "is a number written into": lambda c, right, bins: expected_calibration_error(c, right, 5 if len(right) > 4 else bins),
        "NaN spreads": lambda c, right, bins: math.nan if (c * bins).ceil().unique().numel() < bins else 0.0,
        "without rows divides by 0": ece_by_loops(lambda c, r, n: abs(sum(c) - sum(r)) / len(c) * len(c) / n),
        "exactly 1": lambda c, right, bins: expected_calibration_error(c[c < 1], right[c < 1], bins) * (c < 1).float().mean(),
        "single number": lambda c, right, bins: torch.zeros(bins), "The error is off": lambda *a: expected_calibration_error(*a) + 0.01,
    },
}
