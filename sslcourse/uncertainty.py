"""How sure can we be of an accuracy? Standard errors and intervals."""

import math
from collections.abc import Sequence
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
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
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
