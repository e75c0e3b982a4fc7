"""How sure can we be of an accuracy, and of a difference between two? Standard errors, intervals and tests.

One trained network on many test images: `standard_error`, `wilson_interval`; two networks on the same images: `mcnemar`.
One method over several seeds: `mean_and_error`, `t_interval`; two methods over the same seeds: `paired_runs`. Many comparisons: `holm`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist


def standard_error(accuracy: float, n: int) -> float:
    """Standard error of an accuracy measured on n images: sqrt(a(1 − a)/n). It knows nothing of the luck of the training run."""
    if not 0 <= accuracy <= 1 or n < 1:
        raise ValueError(f"accuracy must lie in 0..1 and n be at least 1, not {accuracy} and {n}.")
    return math.sqrt(accuracy * (1 - accuracy) / n)


def wilson_interval(accuracy: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for an accuracy measured on n images that stays inside 0..1 and holds near its ends too (Wilson 1927)."""
    if not 0 <= accuracy <= 1 or n < 1:
        raise ValueError(f"accuracy must lie in 0..1 and n be at least 1, not {accuracy} and {n}.")
    z = NormalDist().inv_cdf(0.5 + _checked_confidence(confidence) / 2)
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of several runs and its standard error (sample deviation / sqrt(runs)); the error of a single run is unknown: NaN."""
    values = [float(v) for v in values]
    if not values:
        raise ValueError("mean_and_error needs at least one value.")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval for the mean of a few runs: mean ± t · deviation / sqrt(runs), with Student's t of runs − 1 degrees (Student 1908).

    Three runs need 4.30 standard errors where many would need 1.96: the deviation itself is known that badly.
    values: one a run, taken to be independent and roughly normal. One run gives (NaN, NaN): it says nothing about its own luck.
    """
    from scipy import stats

    mean, error = mean_and_error(_finite_values("t_interval", values))
    half = float(stats.t.ppf(0.5 + _checked_confidence(confidence) / 2, len(values) - 1)) * error if len(values) > 1 else math.nan
    return mean - half, mean + half


@dataclass(frozen=True)
class PairedRuns:
    """What `paired_runs` finds: the mean of first − second over the runs, its standard error, the p-value and the interval."""

    difference: float
    standard_error: float
    p_value: float
    interval: tuple[float, float]
    runs: int


def paired_runs(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedRuns:
    """Two methods run with the same seeds: the paired t-test, two-sided (Student 1908).

    What a seed brings to both methods, such as the labels that it draws, drops out of the difference.
    first, second: one value a run, in the order of the same seeds.
    One run, or differences that are all the same, give no estimate of luck: p_value and interval are NaN then. (Differences agree to the
    last digit where two rows are one measurement, or few images make few possible values, not where a method is sure.)
    """
    from scipy import stats

    first, second = _finite_values("paired_runs", first), _finite_values("paired_runs", second)
    if len(first) != len(second):
        raise ValueError(f"paired_runs compares the same seeds, one value each, not {len(first)} runs with {len(second)}.")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, error = mean_and_error(differences)
    scale = max(map(abs, first + second))
    if len(differences) == 1 or error <= 1e-12 * scale:  # below that, the differences differ by rounding alone
        return PairedRuns(mean, error, math.nan, (math.nan, math.nan), len(differences))
    p_value = 2 * float(stats.t.sf(abs(mean) / error, len(differences) - 1))
    return PairedRuns(mean, error, p_value, t_interval(differences, confidence), len(differences))


@dataclass(frozen=True)
class McNemar:
    """What `mcnemar` finds: how many images only one of two classifiers has right, first − second in accuracy, and the p-value."""

    only_first: int
    only_second: int
    difference: float
    p_value: float


def mcnemar(first_right: Iterable[bool], second_right: Iterable[bool]) -> McNemar:
    """Two classifiers on the same test images: McNemar's test (McNemar 1947) in its exact form, two-sided.

    Images that both have right, or both wrong, say nothing about the difference. Of the others, if neither classifier were better, each
    would be as likely to be right as a coin is to fall heads: p_value is the binomial probability of a split at least as uneven.
    It speaks of these two trained networks, not of their methods: another seed is another network; see `paired_runs`.
    first_right, second_right: bool (N), the same images in the same order. No image in dispute gives p_value 1.
    """
    from scipy import stats

    first, second = _right_or_wrong(first_right), _right_or_wrong(second_right)
    if len(first) != len(second) or not first:
        raise ValueError(f"mcnemar compares the same images, at least one, not {len(first)} with {len(second)}.")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    disputed = only_first + only_second
    p_value = float(stats.binomtest(only_first, disputed).pvalue) if disputed else 1.0
    return McNemar(only_first, only_second, (only_first - only_second) / len(first), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons at once (Holm 1979), in the order given.

    The k-th smallest of m is multiplied by m − k + 1, never falls below a smaller one's, and stops at 1. Calling those at or below 0.05
    different errs in at most one family of comparisons in twenty, whatever depends on what.
    A NaN, a comparison without a test, stays NaN and is not counted.
    """
    p_values = [float(p) for p in p_values]
    wrong = [p for p in p_values if not (math.isnan(p) or 0 <= p <= 1)]
    if wrong:
        raise ValueError(f"holm takes p-values between 0 and 1, not {wrong[0]:g}.")
    known = sorted((k for k, p in enumerate(p_values) if not math.isnan(p)), key=lambda k: p_values[k])
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, k in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def _finite_values(caller: str, values: Sequence[float]) -> list[float]:
    values = [float(v) for v in values]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"{caller} takes one finite number a run, at least one, not {values}.")
    return values


def _checked_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, such as 0.95, not {confidence}.")
    return confidence


def _right_or_wrong(right: Iterable) -> list[bool]:
    """A bool tensor (N,), an array or a sequence as a list of bools. Accuracies or labels in its place would count as all right."""
    values = right.tolist() if hasattr(right, "tolist") else list(right)
    if not isinstance(values, list) or not all(value in (0, 1) for value in values):
        raise ValueError("mcnemar takes right or wrong for each image: a list or tensor (N,) of True and False.")
    return [bool(value) for value in values]
