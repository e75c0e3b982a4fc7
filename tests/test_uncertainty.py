"""Standard errors and intervals against published values, their equations and their limits."""

import math
from statistics import pstdev

import pytest

from sslcourse import uncertainty


def test_standard_error_of_a_coin():
    assert uncertainty.standard_error(0.5, 100) == pytest.approx(0.05)
    assert uncertainty.standard_error(1.0, 10) == 0
    outcomes = [1] * 30 + [0] * 170
    assert uncertainty.standard_error(0.15, 200) == pytest.approx(pstdev(outcomes) / 200**0.5)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # from Newcombe 1998 (Statistics in Medicine 17, table I), method 3: the score interval without continuity correction
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_against_published_values(right, n, low, high):
    assert uncertainty.wilson_interval(right / n, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_solves_its_equation():
    # its ends p are where the observed accuracy lies z standard errors, at p, away
    for accuracy, n, confidence, z in ((0.7, 50, 0.95, 1.959964), (0.9, 400, 0.99, 2.575829)):
        for end in uncertainty.wilson_interval(accuracy, n, confidence):
            assert abs(accuracy - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-5)


def test_wilson_interval_stays_inside_and_is_symmetric():
    for n in (1, 10, 1000):
        low, high = uncertainty.wilson_interval(1.0, n)
        assert 0 < low < high <= 1
        assert uncertainty.wilson_interval(0.0, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("function", [uncertainty.standard_error, uncertainty.wilson_interval])
@pytest.mark.parametrize(("accuracy", "n"), [(-0.1, 10), (1.1, 10), (50, 10), (0.5, 0), (math.nan, 10)])
def test_impossible_accuracies_are_refused_with_a_sentence(function, accuracy, n):
    with pytest.raises(ValueError, match=f"not {accuracy} and {n}"):
        function(accuracy, n)


def test_mean_and_error_of_several_runs():
    assert uncertainty.mean_and_error([0.6, 0.7, 0.8]) == pytest.approx((0.7, 0.1 / 3**0.5))
    mean, error = uncertainty.mean_and_error([0.6])
    assert mean == 0.6 and math.isnan(error)
    with pytest.raises(ValueError, match="at least one value"):
        uncertainty.mean_and_error([])
