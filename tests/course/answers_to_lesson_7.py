"""Answers to the exercises of lesson 7, as learners write them."""

import math

import numpy as np
import torch
from scipy import stats

from sslcourse.course.checks.lesson_7 import honest_accuracy, interval, mcnemar_p, of_split, paired_interval


def p_by_counting(first_right, second_right):
    b, c = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    return min(1.0, 2 * sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c))


def interval_from_scipy(first, second):
    d = np.subtract(first, second)
    low, high = stats.t.interval(0.95, len(d) - 1, loc=d.mean(), scale=stats.sem(d))
    return d.mean(), low, high


def epoch_by_loop(validation, test):
    if validation.dim() == 1:
        return test[validation.argmax()]
    return torch.stack([t[v.argmax()] for v, t in zip(validation, test, strict=True)])


def epoch_smoothed(validation, test):
    return honest_accuracy(torch.nn.functional.avg_pool1d(validation[None], 3, 1, 1)[0], test)


def copies_by_loop(unlabelled, test):
    return torch.stack([(picture == test).flatten(1).all(1).any() for picture in unlabelled])


def copies_by_unique(unlabelled, test):
    _, group = torch.cat([test, unlabelled]).flatten(1).unique(dim=0, return_inverse=True)
    return torch.isin(group[len(test) :], group[: len(test)])


def copies_changing_input(unlabelled, test):
    mask = copies_by_loop(unlabelled, test)
    unlabelled[mask] = 0
    return mask


RIGHT = {"7.1": [p_by_counting], "7.2": [interval_from_scipy], "7.3": [epoch_by_loop], "7.4": [copies_by_loop, copies_by_unique]}

WRONG = {
    "7.1": {
        "stops at 1": of_split(lambda b, c: 2 * stats.binom.cdf(b, b + c, 0.5)),
        "nothing in dispute": [
            of_split(lambda b, c: stats.binomtest(b, b + c).pvalue),
            of_split(lambda b, c: stats.binomtest(b, b + c).pvalue if b + c else 0.0),
        ],
        "0.5**1500 is 0": of_split(lambda b, c: stats.binomtest(b, b + c).pvalue if 0 < b + c < 1500 else 1.0),
        "to be a float or Tensor": lambda *a: (mcnemar_p(*a), 0.05),
        "only the second, p is": of_split(lambda b, c: stats.binomtest(b, b + c).pvalue * (0.9 if b == 2 else 1)),
    },
    "7.2": {
        "Return three numbers": lambda *a: paired_interval(*a)[1:], "other order": lambda *a: [paired_interval(*a)[i] for i in (0, 2, 1)],
        "is a number written into": interval(lambda runs: 3.182446),
        "the ends are off": interval(lambda runs: stats.t.ppf(0.995, runs - 1)),
        "mean of first": interval(differ=lambda a, b: 100 * (a / b - 1)),
    },
    "7.3": {
        "one number came back": lambda *a: honest_accuracy(*a).mean(),
        "one dimension too many": lambda validation, test: test.gather(-1, validation.argmax(-1, keepdim=True)),
        "every chosen epoch for every run": lambda validation, test: test[:, validation.argmax(1)],
        "curves (E,) of a single run": lambda validation, test: test[torch.arange(len(test)), validation.argmax(1)],
        "is a number written into": lambda validation, test: honest_accuracy(validation, test) if len(test) == 5 else test[..., 0],
        "For each run, find": epoch_smoothed,
    },
    "7.4": {
        "in floating point": lambda unlabelled, test: (torch.cdist(*(x.flatten(1).float() for x in (unlabelled, test))) == 0).any(1),
        "which TEST images": lambda unlabelled, test: copies_by_loop(test, unlabelled),
        "value for every pair": lambda unlabelled, test: torch.stack([(picture == test).flatten(1).all(1) for picture in unlabelled]),
        "of bool": [lambda *a: copies_by_loop(*a).long(), lambda *a: copies_by_loop(*a).nonzero().flatten()],
        "held at once": lambda unlabelled, test: (unlabelled[:, None] == test[None]).flatten(2).all(2).any(1),
        "or marked and none": lambda *a: copies_by_loop(*a) | (torch.arange(len(a[0])) == 25),
        "changes its input unlabelled": copies_changing_input,
    },
}
