"""Answers to the exercises of lesson 7, as learners write them."""


import numpy as np
import torch
from scipy import stats

from sslcourse.course.checks.lesson_7 import honest_accuracy, mcnemar_p, paired_interval


def p_of(value):
    """A p-value made of the numbers of images that only the first and only the second has right."""
    return lambda first_right, second_right: value(int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum()))


def interval_from_scipy(first, second):
    d = np.subtract(first, second)
    low, high = stats.t.interval(0.95, len(d) - 1, loc=d.mean(), scale=stats.sem(d))
    return d.mean(), low, high


def interval(factor=lambda runs: stats.t.ppf(0.975, runs - 1), differ=np.subtract):
    def answer(first, second):
        d = differ(np.array(first), np.array(second))
        half = factor(len(d)) * stats.sem(d)
        return d.mean(), d.mean() - half, d.mean() + half

    return answer


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


def copies_inside_too(unlabelled, test):
    mask = copies_by_loop(unlabelled, test)
    mask[25] = mask[26] = True
    return mask


def copies_changing_input(unlabelled, test):
    mask = copies_by_loop(unlabelled, test)
    unlabelled[mask] = 0
    return mask


RIGHT = {
    "7.1": [p_of(lambda b, c: stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0)],
    "7.2": [interval_from_scipy],
    "7.3": [epoch_by_loop],
    "7.4": [copies_by_loop, copies_by_unique],
}

WRONG = {
    "7.1": {
        "stops at 1": p_of(lambda b, c: 2 * stats.binom.cdf(min(b, c), b + c, 0.5)),
        "nothing in dispute": [
            p_of(lambda b, c: stats.binomtest(b, b + c).pvalue),
            p_of(lambda b, c: stats.binomtest(b, b + c).pvalue if b + c else 0.0),
        ],
        "0.5**1500 is 0": p_of(lambda b, c: stats.binomtest(b, b + c).pvalue if 0 < b + c < 1500 else 1.0),
        "to be a float or Tensor": lambda first_right, second_right: (mcnemar_p(first_right, second_right), 0.05),
        "only the second has, p is": p_of(lambda b, c: stats.binomtest(b, b + c).pvalue * (0.9 if b == 2 else 1)),
    },
    "7.2": {
        "Return three numbers": lambda first, second: paired_interval(first, second)[1:],
        "other order": lambda first, second: [paired_interval(first, second)[i] for i in (0, 2, 1)],
        "written into the function": interval(factor=lambda runs: 3.182446),
        "the lower end is off": interval(factor=lambda runs: stats.t.ppf(0.995, runs - 1)),
        "mean of the differences": interval(differ=lambda a, b: 100 * (a / b - 1)),
    },
    "7.3": {
        "one number came back": lambda validation, test: honest_accuracy(validation, test).mean(),
        "one dimension too many": lambda validation, test: test.gather(-1, validation.argmax(-1, keepdim=True)),
        "every chosen epoch for every run": lambda validation, test: test[:, validation.argmax(1)],
        "curves (E,) of a single run": lambda validation, test: test[torch.arange(len(test)), validation.argmax(1)],
        "is a number written in": lambda validation, test: honest_accuracy(validation, test) if len(test) == 5 else test[..., 0],
        "For each run, find": epoch_smoothed,
    },
    "7.4": {
        "in floating point": lambda unlabelled, test: (torch.cdist(*(x.flatten(1).float() for x in (unlabelled, test))) == 0).any(1),
        "which TEST images": lambda unlabelled, test: copies_by_loop(test, unlabelled),
        "value for every pair": lambda unlabelled, test: torch.stack([(picture == test).flatten(1).all(1) for picture in unlabelled]),
        "of bool": [
            lambda unlabelled, test: copies_by_loop(unlabelled, test).long(),
            lambda unlabelled, test: copies_by_loop(unlabelled, test).nonzero().flatten(),
        ],
        "held at once": lambda unlabelled, test: (unlabelled[:, None] == test[None]).flatten(2).all(2).any(1),
        "marked that are none": copies_inside_too,
        "changes its input unlabelled": copies_changing_input,
    },
}
