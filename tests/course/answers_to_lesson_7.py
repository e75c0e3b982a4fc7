"""Answers to the exercises of lesson 7, as learners write them."""

import math

import numpy as np
from scipy import stats

from sslcourse import evaluation
from sslcourse.course.checks.lesson_7 import better, compare_methods, interval, mcnemar_p, of_split, paired_interval, protocol_by


def p_by_counting(first_right, second_right):
    b, c = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    return min(1.0, 2 * sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c))


def interval_from_scipy(first, second):
    d = np.subtract(first, second)
    low, high = stats.t.interval(0.95, len(d) - 1, loc=d.mean(), scale=stats.sem(d))
    return d.mean(), low, high


def protocol_by_draws(mine, rival, draw, validation, test, seeds):
    """Draw by draw, and the chosen setting is fitted again."""
    differences = []
    for seed in seeds:
        few, reached = draw(seed), []
        for fit, settings in (mine, rival):
            scores = [(fit(*few, setting, seed)(validation[0]) == validation[1]).sum().item() for setting in settings]
            chosen = fit(*few, settings[int(np.argmax(scores))], seed)
            reached.append((chosen(test[0]) == test[1]).float().mean().item())
        differences.append(100 * (reached[0] - reached[1]))
    mean, low, high = interval_from_scipy(differences, [0] * len(seeds))
    return [mean, low, high, "mine" if low > 0 else "rival" if high < 0 else "not shown"]


def protocol_by_package(mine, rival, draw, validation, test, seeds):
    def run(method, seed, best=-1.0):
        for setting in method[1]:
            predict = method[0](*draw(seed), setting, seed)
            accuracy = predict(validation[0]).eq(validation[1]).double().mean()
            if accuracy > best:
                best, chosen = accuracy, predict
        return 100 * chosen(test[0]).eq(test[1]).double().mean().item()

    found = evaluation.paired_runs(*({seed: run(method, seed) for seed in seeds} for method in (mine, rival)))
    return found.difference, *found.interval, better(found.difference, *found.interval)


def protocol_looking_at_every_setting(mine, rival, draw, validation, test, seeds):
    for fit, settings in (mine, rival):
        fit(*draw(seeds[0]), settings[0], seeds[0])(test[0])
    return compare_methods(mine, rival, draw, validation, test, seeds)


RIGHT = {"7.1": [p_by_counting], "7.2": [interval_from_scipy], "7.3": [protocol_by_draws, protocol_by_package]}

WRONG = {
    "7.1": {
        "stops at 1": of_split(lambda b, c: 2 * stats.binom.cdf(b, b + c, 0.5)),
        "nothing in dispute": of_split(lambda b, c: stats.binomtest(b, b + c).pvalue),
        "0.5**1500 is 0": of_split(lambda b, c: stats.binomtest(b, b + c).pvalue if 0 < b + c < 1500 else 1.0),
        "to be a float or Tensor": lambda *a: (mcnemar_p(*a), 0.05),
        "only the second, p is": of_split(lambda b, c: stats.binomtest(b, b + c).pvalue * (0.9 if b == 2 else 1)),
    },
    "7.2": {
        "Return three numbers": lambda *a: paired_interval(*a)[1:], "other order": lambda *a: [paired_interval(*a)[i] for i in (0, 2, 1)],
        "is a number written into": interval(lambda runs: 3.182446),
        "the ends are off": interval(lambda runs: stats.t.ppf(0.995, runs - 1)),
        "mean of first": lambda first, second: paired_interval(second, first),
    },
    "7.3": {
        "Return four things": lambda *a: compare_methods(*a)[:3], "The verdict is": protocol_by(verdict=lambda d, low, high: d > 0),
        "more than once about a method": protocol_looking_at_every_setting,
        "The result is off": protocol_by(verdict=lambda d, low, high: better(d, low, high).replace("rival", "mine")),
    },
}
