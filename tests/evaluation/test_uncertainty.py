"""Standard errors and intervals against published values, their equations and their limits."""

import math
from statistics import pstdev

import numpy as np
import pytest
import torch
from scipy import stats

from sslcourse.evaluation import uncertainty


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


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_a_confidence_is_a_share(confidence):
    for interval in (lambda: uncertainty.wilson_interval(0.5, 10, confidence), lambda: uncertainty.t_interval([1, 2], confidence)):
        with pytest.raises(ValueError, match="between 0 and 1, such as 0.95"):
            interval()


def test_t_interval_against_student_s_table():
    # 4.302653 and 2.776445: the two-sided 95 % points of t with 2 and 4 degrees of freedom; 9.924843: 99 % with 2
    for values, confidence, t in (([0.6, 0.7, 0.8], 0.95, 4.302653), ([1, 2, 3, 4, 5], 0.95, 2.776445), ([0.6, 0.7, 0.8], 0.99, 9.924843)):
        mean, error = uncertainty.mean_and_error(values)
        assert uncertainty.t_interval(values, confidence) == pytest.approx((mean - t * error, mean + t * error), rel=1e-6)


def test_one_run_says_nothing_about_its_luck():
    assert all(map(math.isnan, uncertainty.t_interval([0.7])))
    found = uncertainty.paired_runs([0.7], [0.6])
    assert found.difference == pytest.approx(0.1) and found.runs == 1
    assert all(map(math.isnan, (found.standard_error, found.p_value, *found.interval)))


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf, 0.5]])
def test_runs_that_are_no_results_are_refused(values):
    with pytest.raises(ValueError, match="one finite number a run"):
        uncertainty.t_interval(values)
    with pytest.raises(ValueError, match="one finite number a run"):
        uncertainty.paired_runs(values, values)


def covered(intervals, truth):
    low, high = np.array(list(intervals)).T
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize(("truth", "n"), [(0.3, 200), (0.72, 1000), (0.93, 500)])
def test_wilson_intervals_cover_what_they_promise(truth, n):
    right = np.random.default_rng(0).binomial(n, truth, size=4000)
    assert 0.93 < covered((uncertainty.wilson_interval(k / n, n) for k in right), truth) < 0.97


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_t_intervals_cover_what_they_promise_and_1_96_standard_errors_do_not(runs):
    values = np.random.default_rng(1).normal(0.7, 0.02, size=(4000, runs))
    assert 0.93 < covered((uncertainty.t_interval(row) for row in values), 0.7) < 0.97
    naive = (mean + 1.96 * error * np.array([-1, 1]) for mean, error in map(uncertainty.mean_and_error, values))
    # exactly, 1.96 standard errors cover 69.9 %, 81.1 % and 87.8 %
    assert covered(naive, 0.7) == pytest.approx({2: 0.699, 3: 0.811, 5: 0.878}[runs], abs=0.025)


def test_paired_runs_against_scipy():
    first, second = [0.61, 0.66, 0.70, 0.58], [0.59, 0.60, 0.69, 0.57]
    found, theirs = uncertainty.paired_runs(first, second), stats.ttest_rel(first, second)
    assert found.p_value == pytest.approx(theirs.pvalue) and found.difference == pytest.approx(0.025)
    assert found.standard_error == pytest.approx(found.difference / theirs.statistic)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95))) and found.runs == 4
    swapped = uncertainty.paired_runs(second, first, confidence=0.9)
    assert swapped.p_value == pytest.approx(found.p_value) and swapped.difference == pytest.approx(-found.difference)
    assert swapped.interval == pytest.approx(tuple(stats.ttest_rel(second, first).confidence_interval(0.9)))


def test_pairing_removes_what_the_seed_brings_to_both():
    luck = np.random.default_rng(2).normal(0, 0.05, size=5)  # of the labels drawn, say: far larger than the difference
    own = np.random.default_rng(3).normal(0, 0.004, size=(2, 5))
    first, second = 0.72 + luck + own[0], 0.70 + luck + own[1]
    assert uncertainty.paired_runs(first, second).p_value < 0.01 < 0.3 < stats.ttest_ind(first, second).pvalue


def test_differences_that_are_all_the_same_are_no_proof():
    found = uncertainty.paired_runs([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])  # 0.1 three times, but for rounding
    assert found.difference == pytest.approx(0.1) and found.standard_error == pytest.approx(0, abs=1e-12)
    assert all(map(math.isnan, (found.p_value, *found.interval)))
    same = uncertainty.paired_runs([0.5, 0.6], [0.5, 0.6])
    assert same.difference == 0 and math.isnan(same.p_value)


def test_paired_runs_needs_the_same_seeds():
    with pytest.raises(ValueError, match="not 3 runs with 2"):
        uncertainty.paired_runs([0.1, 0.2, 0.3], [0.1, 0.2])


def test_mcnemar_is_the_binomial_test_written_out():
    first = [True] * 60 + [True] * 9 + [False] * 2 + [False] * 29
    second = [True] * 60 + [False] * 9 + [True] * 2 + [False] * 29
    found = uncertainty.mcnemar(first, second)
    assert (found.only_first, found.only_second) == (9, 2) and found.difference == pytest.approx(0.07)
    tail = sum(math.comb(11, k) for k in (0, 1, 2)) / 2**11  # a coin that falls heads at most twice in eleven throws
    assert found.p_value == pytest.approx(2 * tail)
    assert uncertainty.mcnemar(second, first) == uncertainty.McNemar(2, 9, -found.difference, found.p_value)
    assert uncertainty.mcnemar(torch.tensor(first), np.array(second)) == found


def test_mcnemar_without_disputed_images_is_not_surprised():
    assert uncertainty.mcnemar([True, False], [True, False]) == uncertainty.McNemar(0, 0, 0.0, 1.0)
    assert uncertainty.mcnemar([True, False], [False, True]).p_value == 1  # one each


@pytest.mark.parametrize(("first", "second"), [([True], [True, False]), ([], [])])
def test_mcnemar_needs_the_same_images(first, second):
    with pytest.raises(ValueError, match="compares the same images"):
        uncertainty.mcnemar(first, second)


@pytest.mark.parametrize("wrong", [[0.7, 0.3], [3, 1], torch.tensor(True), torch.ones(2, 2)])
def test_mcnemar_refuses_what_is_not_right_or_wrong(wrong):
    with pytest.raises(ValueError, match="True and False"):
        uncertainty.mcnemar(wrong, wrong)


def rejected(p_values):
    return sum(p <= 0.05 for p in p_values) / len(p_values)


def answers(generator, n, right_alone, both=0.5):
    """Two classifiers' answers on n images: right on the same half of them, and each right alone on its own share."""
    drawn = generator.random(n)
    first_ends = both + right_alone[0]
    return drawn < first_ends, (drawn < both) | ((drawn >= first_ends) & (drawn < first_ends + right_alone[1]))


def test_mcnemar_seldom_errs_and_sees_a_real_difference():
    generator = np.random.default_rng(4)
    none = [uncertainty.mcnemar(*answers(generator, 500, (0.1, 0.1))).p_value for _ in range(2000)]
    assert 0.02 < rejected(none) < 0.055  # exact tests stay below their 5 %, for counts are whole numbers
    real = [uncertainty.mcnemar(*answers(generator, 500, (0.15, 0.05))).p_value for _ in range(200)]
    assert rejected(real) > 0.95  # ten points, 100 images in dispute


def test_paired_runs_seldom_errs_and_sees_a_real_difference():
    generator = np.random.default_rng(5)
    none = [uncertainty.paired_runs(*generator.normal(0.7, 0.02, size=(2, 3))).p_value for _ in range(3000)]
    assert rejected(none) == pytest.approx(0.05, abs=0.015)
    shift = np.array([[0.1], [0.0]])
    real = [uncertainty.paired_runs(*(generator.normal(0.7, 0.02, size=(2, 5)) + shift)).p_value for _ in range(200)]
    assert rejected(real) > 0.95


def test_holm_by_hand():
    assert uncertainty.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert uncertainty.holm([0.5, 0.9]) == [1.0, 1.0]  # 1, and then never below a smaller one's
    assert uncertainty.holm([]) == [] and uncertainty.holm([0.2]) == [0.2]


def test_holm_leaves_out_what_was_not_tested():
    adjusted = uncertainty.holm([0.02, math.nan, 0.03])
    assert adjusted[0] == pytest.approx(0.04) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.04)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.inf])
def test_holm_refuses_what_is_no_p_value(wrong):
    with pytest.raises(ValueError, match="p-values between 0 and 1"):
        uncertainty.holm([0.5, wrong])


def test_holm_errs_in_one_family_of_twenty():
    families = np.random.default_rng(6).random((3000, 8))
    alone = np.mean([min(family) <= 0.05 for family in families])
    adjusted = np.mean([min(uncertainty.holm(family)) <= 0.05 for family in families])
    assert alone > 0.3 and adjusted == pytest.approx(0.05, abs=0.015)  # 1 − 0.95⁸ is 0.34
