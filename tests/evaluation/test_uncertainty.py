"""Standard errors, intervals and tests against published values and by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from sslcourse import evaluation


def result(right):
    """What `paired_difference` takes of an evaluation.Result, of images of class 1."""
    right = torch.as_tensor(right)
    return SimpleNamespace(predictions=right.long(), labels=torch.ones(len(right), dtype=torch.long))


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # from Newcombe 1998 (Statistics in Medicine 17, table I), method 3: the score interval without continuity correction
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_against_published_values(right, n, low, high):
    assert evaluation.wilson_interval(right / n, n) == pytest.approx((low, high), abs=6e-5)


def test_mean_and_error_of_several_runs():
    assert evaluation.standard_error(0.5, 100) == pytest.approx(0.05) and evaluation.standard_error(1.0, 10) == 0
    assert evaluation.mean_and_error([0.6, 0.7, 0.8]) == pytest.approx((0.7, 0.1 / 3**0.5))
    mean, error = evaluation.mean_and_error([0.6])
    assert mean == 0.6 and math.isnan(error)


@pytest.mark.parametrize(("values", "t"), [([0.6, 0.7, 0.8], 4.302653), ([1, 2, 3, 4, 5], 2.776445)])
def test_t_interval_against_students_table(values, t):
    mean, error = evaluation.mean_and_error(values)
    assert evaluation.t_interval(values) == pytest.approx((mean - t * error, mean + t * error), rel=1e-6)


def test_paired_runs_by_hand():
    first, second = [0.61, 0.66, 0.70, 0.58], [0.59, 0.60, 0.69, 0.57]
    found = evaluation.paired_runs(first, second)
    mean, error = evaluation.mean_and_error([0.02, 0.06, 0.01, 0.01])
    assert (found.difference, found.standard_error) == pytest.approx((mean, error))
    assert found.p_value == pytest.approx(2 * stats.t.sf(mean / error, 3))
    assert found.interval == pytest.approx((mean - 3.182446 * error, mean + 3.182446 * error), rel=1e-6)
    swapped = evaluation.paired_runs(second, first)
    assert swapped.p_value == pytest.approx(found.p_value) and swapped.interval == pytest.approx([-x for x in found.interval[::-1]])


def test_paired_runs_takes_results_and_pairs_mappings_by_their_seeds():
    truth, answers = torch.zeros(4, dtype=torch.long), ([0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1])
    results = [evaluation.Result(torch.eye(2)[torch.tensor(said)], truth, ["a", "b"]) for said in answers]
    in_order = evaluation.paired_runs(results, [70.0, 60.0, 20.0])  # 75, 50 and 0 percent are right
    assert in_order == evaluation.paired_runs([75.0, 50.0, 0.0], [70.0, 60.0, 20.0])
    assert evaluation.paired_runs(dict(zip((3, 1, 2), results, strict=True)), {0: 99.0, 1: 60.0, 2: 20.0, 3: 70.0}) == in_order
    with pytest.raises(ValueError, match="at least one"):
        evaluation.paired_runs({0: 50.0}, {1: 50.0})


@pytest.mark.parametrize("runs", [[0.5], [0.5, 0.6, 0.7]])
def test_one_run_and_differences_that_are_all_the_same_are_no_proof(runs):
    found = evaluation.paired_runs(runs, [value - 0.1 for value in runs])  # the same three times, but for rounding
    assert found.difference == pytest.approx(0.1) and all(map(math.isnan, (found.p_value, *found.interval)))
    assert math.isnan(evaluation.paired_runs(runs, runs).p_value)
    assert any(map(math.isnan, (*evaluation.t_interval(runs), found.standard_error))) == (len(runs) == 1)


NOT_SHOWN = "a difference between A and B is not shown by these runs: "


@pytest.mark.parametrize(("first", "sentence", "title"), [
    # differences 18, 20, 19: the deviation is 1 and Student's factor 4.303, so the half width is 4.303 / sqrt(3) = 2.48
    ([60, 62, 61], "A beats B by 19.0 points (95 % interval +16.5 to +21.5, 3 paired runs)", "A beats B by 19 points"),
    ([24, 22, 23], "B beats A by 19.0 points (95 % interval +16.5 to +21.5, 3 paired runs)", "B beats A by 19 points"),
    # differences 10, 20, 27: two standard errors would leave zero out, Student's factor does not
    ([52, 62, 69], NOT_SHOWN + "+19.0 points (95 % interval −2.2 to +40.2, 3 paired runs)", "A and B: no difference shown"),
    ([52], NOT_SHOWN + "+10.0 points (too few to give an interval, 1 paired run)", "A and B: no difference shown"),
])  # fmt: skip
def test_a_verdict_claims_what_the_interval_shows(first, sentence, title):
    found = evaluation.paired_runs(first, [42] * len(first))
    assert found.verdict("A", "B") == sentence and found.headline("A", "B") == title
    assert found.shown == ("beats" in sentence)


def test_paired_difference_against_counting_and_a_bootstrap():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(400, generator=generator) < 0.7
    second = torch.where(torch.arange(400) % 10 == 0, ~first, first)  # they agree but for every tenth image
    difference, error = evaluation.paired_difference(result(first), result(second))
    only_first, only_second = (first & ~second).sum().item(), (second & ~first).sum().item()
    assert difference == pytest.approx((only_first - only_second) / 400)
    assert error == pytest.approx(math.sqrt((only_first + only_second - (only_first - only_second) ** 2 / 400) / 399 / 400))
    rows = torch.randint(400, (4000, 400), generator=generator)
    assert error == pytest.approx((first[rows].double() - second[rows].double()).mean(1).std().item(), rel=0.1)
    assert evaluation.paired_difference(result(first), result(first)) == (0, 0)


def test_mcnemar_is_the_binomial_test_written_out():
    first = [True] * 60 + [True] * 9 + [False] * 2 + [False] * 29
    second = [True] * 60 + [False] * 9 + [True] * 2 + [False] * 29
    found = evaluation.mcnemar(first, second)
    assert (found.only_first, found.only_second) == (9, 2) and found.difference == pytest.approx(0.07)
    tail = sum(math.comb(11, k) for k in (0, 1, 2)) / 2**11  # a coin that falls heads at most twice in eleven throws
    assert found.p_value == pytest.approx(2 * tail)
    assert evaluation.mcnemar(second, first) == replace(found, only_first=2, only_second=9, difference=-found.difference)
    assert evaluation.mcnemar(torch.tensor(first), np.array(second)) == found
    assert evaluation.mcnemar([True, False], [True, False]).p_value == 1


def test_holm_by_hand():
    assert evaluation.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert evaluation.holm([0.5, 0.9]) == [1.0, 1.0]  # 1, and then never below a smaller one's
    assert evaluation.holm([]) == [] and evaluation.holm([0.2]) == [0.2]
    untested = evaluation.holm([0.02, math.nan, 0.03])
    assert untested[0] == pytest.approx(0.04) and math.isnan(untested[1]) and untested[2] == pytest.approx(0.04)


REFUSED = [
    *[(function, [accuracy, n], "accuracy") for function in ("standard_error", "wilson_interval")
      for accuracy, n in [(-0.1, 10), (1.1, 10), (0.5, 0), (math.nan, 10)]],
    ("mean_and_error", [[]], "at least one value"),
    *[(function, given, "finite number a run") for wrong in ([], [0.5, math.nan])
      for function, given in [("t_interval", [wrong]), ("paired_runs", [wrong, wrong])]],
    ("paired_runs", [[0.1, 0.2], [0.1]], "shorter"), ("paired_difference", [result([True, False]), result([True])], "same images"),
    ("mcnemar", [[True], [True, False]], "same images"), ("mcnemar", [[], []], "same images"),
    ("mcnemar", [[0.7, 0.3], [0.7, 0.3]], "True and False"), *[("holm", [[0.5, wrong]], "p-values") for wrong in (-0.1, 1.1, math.inf)],
]  # fmt: skip


@pytest.mark.parametrize(("function", "given", "told"), REFUSED)
def test_what_has_no_uncertainty_is_refused(function, given, told):
    with pytest.raises(ValueError, match=told):
        getattr(evaluation, function)(*given)
