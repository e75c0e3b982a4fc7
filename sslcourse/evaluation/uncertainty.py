"""How sure can we be of an accuracy, and of a difference between two? Standard errors, 95 % intervals and tests.

Networks on many test images: `standard_error`, `wilson_interval`; two on the same images: `paired_difference`, `mcnemar`.
Methods over several seeds: `mean_and_error`, `t_interval`; two over the same seeds: `paired_runs`. Many comparisons: `holm`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy  # its parts are imported where they are first used
import torch


def standard_error(accuracy: float, n: int) -> float:
    """Standard error of an accuracy measured on n images: sqrt(a(1 − a)/n). It knows nothing of the luck of the training run."""
    if not 0 <= accuracy <= 1 or n < 1:
        raise ValueError(f"accuracy must lie in 0..1 and n be at least 1, not {accuracy} and {n}.")
    return math.sqrt(accuracy * (1 - accuracy) / n)


def wilson_interval(accuracy: float, n: int) -> tuple[float, float]:
    """95 % interval for an accuracy measured on n images that stays inside 0..1 and holds near its ends too (Wilson 1927)."""
    standard_error(accuracy, n)  # refuses what is no accuracy
    found = scipy.stats.binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of several runs and its standard error (sample deviation / sqrt(runs)); the error of a single run is unknown: NaN."""
    if not (values := [float(v) for v in values]):
        raise ValueError("mean_and_error needs at least one value.")
    n, mean = len(values), sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval for the mean of a few runs: mean ± t · deviation / sqrt(runs) (Student 1908); of a single run it is NaN."""
    mean, error = mean_and_error(_finite(values))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


@dataclass(frozen=True)
class PairedRuns:
    """What `paired_runs` finds: the mean of first − second over the runs, its standard error, the p-value and the 95 % interval."""

    difference: float
    standard_error: float
    p_value: float
    interval: tuple[float, float]
    runs: int

    shown = property(lambda self: self.interval[0] > 0 or self.interval[1] < 0, doc="Whether the interval leaves zero out.")

    def verdict(self, first: str, second: str) -> str:
        """One sentence about two methods whose accuracies were given in percent: by how much one beats the other, or "not shown"."""
        if self.shown and self.difference < 0:
            return replace(self, difference=-self.difference, interval=(-self.interval[1], -self.interval[0])).verdict(second, first)
        low, high = self.interval
        told = f"95 % interval {low:+.1f} to {high:+.1f}" if math.isfinite(low) else "too few to give an interval"
        told = f"({told}, {self.runs} paired run{'s' * (self.runs != 1)})".replace("-", "−")
        if self.shown:
            return f"{first} beats {second} by {self.difference:.1f} points {told}"
        difference = f"{self.difference:+.1f}".replace("-", "−")
        return f"a difference between {first} and {second} is not shown by these runs: {difference} points {told}"

    def headline(self, first: str, second: str) -> str:
        """The same, short, for the title of a figure."""
        if not self.shown:
            return f"{first} and {second}: no difference shown"
        above, below = (first, second) if self.difference > 0 else (second, first)
        return f"{above} beats {below} by {abs(self.difference):.0f} points"


def paired_runs(first: Sequence | Mapping, second: Sequence | Mapping) -> PairedRuns:
    """Two methods run with the same seeds, one accuracy a run: the paired t-test, two-sided (Student 1908).

    A run is an accuracy in percent or an `evaluation.Result`. Two sequences are paired in their order, two mappings by their keys, the
    seeds, of which those in both count. One run, or differences that are all the same, show nothing: p_value and interval are NaN.
    """
    if isinstance(first, Mapping):
        seeds = [seed for seed in first if seed in second]
        first, second = ([runs[seed] for seed in seeds] for runs in (first, second))
    first, second = (_finite([100 * run.top1 if hasattr(run, "top1") else run for run in runs]) for runs in (first, second))
    mean, error = mean_and_error([a - b for a, b in zip(first, second, strict=True)])
    if len(first) == 1 or error <= 1e-12 * max(map(abs, first + second)):  # below that, the differences differ by rounding alone
        return PairedRuns(mean, error, math.nan, (math.nan, math.nan), len(first))
    test = scipy.stats.ttest_rel(first, second)
    return PairedRuns(mean, error, float(test.pvalue), tuple(map(float, test.confidence_interval(0.95))), len(first))


def _finite(values: Sequence[float]) -> list[float]:
    values = [float(v) for v in values]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"This takes one finite number a run, at least one, not {values}.")
    return values


def paired_difference(first, second) -> tuple[float, float]:
    """top1 of the first evaluation.Result less that of the second on the same images, and the standard error of the difference."""
    if not torch.equal(first.labels, second.labels):
        raise ValueError("A paired difference needs two results on the same images in the same order.")
    difference = (first.predictions == first.labels).double() - (second.predictions == second.labels).double()
    return difference.mean().item(), (difference.std(correction=1) / math.sqrt(len(difference))).item()


@dataclass(frozen=True)
class McNemar:
    """What `mcnemar` finds: how many images only one of two classifiers has right, first − second in accuracy, and the p-value."""

    only_first: int
    only_second: int
    difference: float
    p_value: float


def mcnemar(first_right, second_right) -> McNemar:
    """Two classifiers on the same test images: McNemar's test (McNemar 1947) in its exact form, two-sided.

    first_right, second_right: bool (N,), the same images in the same order. It speaks of two networks, not of their methods.
    """
    first, second = (torch.as_tensor(right).cpu() for right in (first_right, second_right))
    if first.dim() != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"mcnemar compares the same images, at least one, not {tuple(first.shape)} with {tuple(second.shape)}.")
    if first.dtype != torch.bool or second.dtype != torch.bool:  # accuracies or labels in its place would count as all right
        raise ValueError("mcnemar takes right or wrong for each image: a list or tensor (N,) of True and False.")
    only_first, only_second = (first & ~second).sum().item(), (second & ~first).sum().item()
    disputed = only_first + only_second
    p_value = float(scipy.stats.binomtest(only_first, disputed).pvalue) if disputed else 1.0
    return McNemar(only_first, only_second, (only_first - only_second) / len(first), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons at once (Holm 1979), in the order given.

    The k-th smallest of m is multiplied by m − k + 1, never falls below a smaller one's, and stops at 1. A NaN stays NaN, uncounted.
    """
    p = np.asarray(p_values, float)
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"holm takes p-values between 0 and 1, not {p.tolist()}.")
    known = np.argsort(p)[: np.isfinite(p).sum()]  # the smallest first; NaN come last
    adjusted = np.full(len(p), math.nan)
    adjusted[known] = np.maximum.accumulate(np.minimum(1, p[known] * np.arange(len(known), 0, -1)))
    return adjusted.tolist()
