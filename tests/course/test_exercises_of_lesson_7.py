"""Lesson 7's exercises: the solution and other right answers pass, and each likely mistake gets its own hint."""

import math
import statistics

import numpy as np
import pytest
import torch
from answers import judge_of, standard_tests
from scipy import stats

from sslcourse.course.checks.lesson_7 import EXERCISES, copies_of_test_images, honest_accuracy, mcnemar_p, paired_interval
from sslcourse.evaluation.uncertainty import mcnemar, paired_runs

judged = judge_of(EXERCISES)


# --- 7.1 ---


def p_from_scipy(first_right, second_right):
    b, c = int((first_right & ~second_right).sum()), int((~first_right & second_right).sum())
    return stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0


def p_by_cdf(first_right, second_right):
    disputed = first_right != second_right
    n, k = disputed.sum().item(), (first_right & disputed).sum().item()
    return torch.tensor(min(1.0, 2 * stats.binom.cdf(min(k, n - k), n, 0.5)))


def counts(a, b):
    return int((a & ~b).sum()), int((b & ~a).sum())


def tail(k, n):
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


def p_one_sided(first_right, second_right):
    b, c = counts(first_right, second_right)
    return tail(min(b, c), b + c)


def p_of_all_images(first_right, second_right):
    return min(1.0, 2 * stats.binom.cdf(min(counts(first_right, second_right)), len(first_right), 0.5))


def p_of_accuracies(first_right, second_right):
    b, c = first_right.sum().item(), second_right.sum().item()
    return min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5))


def p_chi_square(first_right, second_right):
    b, c = counts(first_right, second_right)
    return stats.chi2.sf((b - c) ** 2 / (b + c), 1)


def p_chi_square_corrected(first_right, second_right):
    b, c = counts(first_right, second_right)
    return stats.chi2.sf((abs(b - c) - 1) ** 2 / (b + c), 1)


def p_two_accuracies(first_right, second_right):
    p, q, n = first_right.float().mean(), second_right.float().mean(), len(first_right)
    z = (p - q).abs() / ((p * (1 - p) + q * (1 - q)) / n).sqrt()
    return 2 * stats.norm.sf(z.item())


def p_normal(first_right, second_right):
    d = first_right.double() - second_right.double()
    return 2 * stats.norm.sf(abs(d.mean() / (d.std() / len(d) ** 0.5)).item())


def p_without_observed(first_right, second_right):
    b, c = counts(first_right, second_right)
    return 2 * sum(math.comb(b + c, i) for i in range(min(b, c))) / 2 ** (b + c)


def p_of_one_split(first_right, second_right):
    b, c = counts(first_right, second_right)
    return stats.binom.pmf(b, b + c, 0.5)


def p_turned_round(first_right, second_right):
    return 1 - mcnemar_p(first_right, second_right)


def p_larger_tail(first_right, second_right):
    b, c = counts(first_right, second_right)
    return min(1.0, 2 * tail(max(b, c), b + c))


def p_above_one(first_right, second_right):
    b, c = counts(first_right, second_right)
    return 2 * tail(min(b, c), b + c)


def p_fails_without_dispute(first_right, second_right):
    b, c = counts(first_right, second_right)
    return stats.binomtest(b, b + c).pvalue


def p_zero_without_dispute(first_right, second_right):
    return mcnemar_p(first_right, second_right) if (first_right != second_right).any() else 0.0


def p_underflows(first_right, second_right):
    b, c = counts(first_right, second_right)
    return min(1.0, 2 * sum(math.comb(b + c, i) * 0.5 ** (b + c) for i in range(min(b, c) + 1)))


def p_as_pair(first_right, second_right):
    return mcnemar_p(first_right, second_right), 0.05


def p_only_small(first_right, second_right):
    return mcnemar_p(first_right, second_right) * (1.0 if counts(first_right, second_right) in ((9, 3), (5, 5)) else 0.9)


# --- 7.2 ---


def interval_from_scipy(first, second):
    d = np.subtract(first, second)
    low, high = stats.t.interval(0.95, len(d) - 1, loc=d.mean(), scale=stats.sem(d))
    return d.mean(), low, high


def interval_from_statistics(first, second):
    d = [a - b for a, b in zip(first, second, strict=True)]
    half = stats.t.ppf(0.975, len(d) - 1) * statistics.stdev(d) / len(d) ** 0.5
    return [statistics.mean(d), statistics.mean(d) - half, statistics.mean(d) + half]


def interval(factor=None, spread=None, d=None):
    def answer(first, second):
        differences = np.subtract(first, second) if d is None else d(np.array(first), np.array(second))
        runs = len(differences)
        t = stats.t.ppf(0.975, runs - 1) if factor is None else factor(runs)
        error = differences.std(ddof=1) / runs**0.5 if spread is None else spread(np.array(first), np.array(second), differences)
        return differences.mean(), differences.mean() - t * error, differences.mean() + t * error

    return answer


def interval_ends_only(first, second):
    return paired_interval(first, second)[1:]


def interval_half_width(first, second):
    mean, low, _ = paired_interval(first, second)
    return mean, low - mean, mean - low


def interval_ends_swapped(first, second):
    mean, low, high = paired_interval(first, second)
    return mean, high, low


def interval_of_four(first, second):
    return interval(factor=lambda r: 3.182446)(first, second)


def interval_99(first, second):
    return interval(factor=lambda r: stats.t.ppf(0.995, r - 1))(first, second)


def interval_of_ratio(first, second):
    return interval(d=lambda a, b: 100 * (a / b - 1))(first, second)


# --- 7.3 ---


def epoch_by_loop(validation, test):
    if validation.dim() == 1:
        return test[validation.argmax()]
    return torch.stack([t[v.argmax()] for v, t in zip(validation, test, strict=True)])


def epoch_by_take(validation, test):
    chosen = validation.argmax(-1).unsqueeze(-1)
    return torch.take_along_dim(test, chosen, -1)[..., 0]


def epoch_best_on_test(validation, test):
    return test.max(-1).values


def epoch_validation_itself(validation, test):
    return validation.amax(-1)


def epoch_tie_by_test(validation, test):
    best = validation == validation.amax(-1, keepdim=True)
    return torch.where(best, test, torch.zeros_like(test)).amax(-1)


def epoch_last_tie(validation, test):
    last = len(validation[0]) - 1 - validation.flip(-1).argmax(-1)
    return test[torch.arange(len(test)), last]


def epoch_last(validation, test):
    return test[..., -1]


def epoch_mean(validation, test):
    return test.mean(-1)


def epoch_common(validation, test):
    return test[:, validation.mean(0).argmax()]


def epoch_of_first_run(validation, test):
    return test[:, validation[0].argmax()]


def epoch_worst(validation, test):
    return test.gather(-1, validation.argmin(-1, keepdim=True)).squeeze(-1)


def epoch_turned_round(validation, test):
    return honest_accuracy(test, validation)


def epoch_index(validation, test):
    return validation.argmax(-1)


def epoch_mean_over_runs(validation, test):
    return honest_accuracy(validation, test).mean()


def epoch_not_squeezed(validation, test):
    return test.gather(-1, validation.argmax(-1, keepdim=True))


def epoch_all_pairs(validation, test):
    return test[:, validation.argmax(1)]


def epoch_only_two_dimensions(validation, test):
    return test[torch.arange(len(test)), validation.argmax(1)]


def epoch_of_twenty(validation, test):
    return test.gather(-1, validation[..., :20].argmax(-1, keepdim=True)).squeeze(-1) + (0 if validation.shape[-1] == 20 else 0.1)


def epoch_smoothed(validation, test):
    smooth = torch.nn.functional.avg_pool1d(validation[None], 3, 1, 1)[0]
    return honest_accuracy(smooth, test)


# --- 7.4 ---


def copies_by_loop(unlabelled, test):
    return torch.stack([(picture == test).flatten(1).all(1).any() for picture in unlabelled])


def copies_by_numpy(unlabelled, test):
    rows = [np.ascontiguousarray(x.flatten(1).numpy()) for x in (unlabelled, test)]
    a, b = (x.view(f"V{x.shape[1]}")[:, 0] for x in rows)
    known = set(map(bytes, b))
    return torch.from_numpy(np.array([bytes(v) in known for v in a]))


def copies_by_unique(unlabelled, test):
    _, group = torch.cat([test, unlabelled]).flatten(1).unique(dim=0, return_inverse=True)
    return torch.isin(group[len(test) :], group[: len(test)])


def alike(look):
    return lambda unlabelled, test: torch.stack([(look(x[None]) == look(test)).flatten(1).all(1).any() for x in unlabelled])


def copies_one_equal_pixel(unlabelled, test):
    return (unlabelled[:, None] == test[None]).flatten(2).any(2).any(1)


def copies_in_order(unlabelled, test):
    mask = torch.zeros(len(unlabelled), dtype=torch.bool)
    mask[: len(test)] = (unlabelled[: len(test)] == test).flatten(1).all(1)
    return mask


def copies_inverted(unlabelled, test):
    return ~copies_by_loop(unlabelled, test)


def copies_of_first(unlabelled, test):
    return (unlabelled == test[0]).flatten(1).all(1)


def copies_of_last(unlabelled, test):
    for picture in test:
        mask = (unlabelled == picture).flatten(1).all(1)
    return mask


def copies_nearly(unlabelled, test):
    far = (unlabelled[:, None].float() - test[None].float()).abs().flatten(2).amax(2)
    return (far <= 1.5).any(1)


def copies_by_distance(unlabelled, test):
    return (torch.cdist(unlabelled.flatten(1).float(), test.flatten(1).float()) == 0).any(1)


def copies_once(unlabelled, test):
    mask = copies_by_loop(unlabelled, test)
    for i in range(len(mask)):
        mask[i] &= not (unlabelled[:i] == unlabelled[i]).flatten(1).all(1).any()
    return mask


def copies_of_the_other_side(unlabelled, test):
    return copies_by_loop(test, unlabelled)


def copies_every_pair(unlabelled, test):
    return torch.stack([(picture == test).flatten(1).all(1) for picture in unlabelled])


def copies_as_numbers(unlabelled, test):
    return copies_by_loop(unlabelled, test).long()


def copies_as_positions(unlabelled, test):
    return copies_by_loop(unlabelled, test).nonzero().flatten()


def copies_all_pairs_at_once(unlabelled, test):
    return (unlabelled[:, None] == test[None]).flatten(2).all(2).any(1)


def copies_inside_too(unlabelled, test):
    mask = copies_by_loop(unlabelled, test)
    mask[25] = mask[26] = True
    return mask


def copies_changing_input(unlabelled, test):
    mask = copies_by_loop(unlabelled, test)
    unlabelled[mask] = 0
    return mask


RIGHT = [
    *(("7.1", answer) for answer in (mcnemar_p, p_from_scipy, p_by_cdf)),
    *(("7.2", answer) for answer in (paired_interval, interval_from_scipy, interval_from_statistics)),
    *(("7.3", answer) for answer in (honest_accuracy, epoch_by_loop, epoch_by_take)),
    *(("7.4", answer) for answer in (copies_of_test_images, copies_by_loop, copies_by_numpy, copies_by_unique)),
]
WRONG = [
    ("7.1", p_one_sided, "One-sided"),
    ("7.1", p_of_all_images, "tossed for all images"),
    ("7.1", p_of_accuracies, "the common ones included"),
    ("7.1", p_chi_square, "chi-square approximation"),
    ("7.1", p_two_accuracies, "two accuracies as if"),
    ("7.1", p_normal, "normal approximation"),
    ("7.1", p_without_observed, "left out of the tail"),
    ("7.1", p_of_one_split, "split alone. Add"),
    ("7.1", p_turned_round, "1 − p"),
    ("7.1", p_larger_tail, "larger tail"),
    ("7.1", p_above_one, "stops at 1"),
    ("7.1", p_fails_without_dispute, "nothing in dispute"),
    ("7.1", p_underflows, "0.5**1500 is 0"),
    ("7.1", p_as_pair, "to be a Real or Tensor"),
    ("7.1", p_only_small, "only the second has, p is"),
    ("7.2", interval(factor=lambda r: 1.96), "4.30 for R = 3"),
    ("7.2", interval(factor=lambda r: 2), "Two standard errors"),
    ("7.2", interval(factor=lambda r: 1), "one standard error to each side"),
    ("7.2", interval(factor=lambda r: stats.t.ppf(0.975, r)), "R degrees of freedom"),
    ("7.2", interval(factor=lambda r: stats.t.ppf(0.95, r - 1)), "at one end"),
    ("7.2", interval(spread=lambda a, b, d: d.std(ddof=1)), "a single run"),
    ("7.2", interval(spread=lambda a, b, d: d.std() / len(d) ** 0.5), "divide by R − 1"),
    ("7.2", interval(spread=lambda a, b, d: ((a.var(ddof=1) + b.var(ddof=1)) / len(a)) ** 0.5), "as if their runs had nothing in common"),
    ("7.2", interval(d=lambda a, b: b - a), "sign is turned round"),
    ("7.2", interval(d=lambda a, b: np.sort(a) - np.sort(b)), "sorted first"),
    ("7.2", interval(d=lambda a, b: abs(a - b)), "lost their signs"),
    ("7.2", interval(spread=lambda a, b, d: d.std(ddof=1) / len(d)), "divided by R. Divide"),
    ("7.2", interval(spread=lambda a, b, d: d.var(ddof=1) / len(d)), "variance over R"),
    ("7.2", interval_ends_only, "Return three numbers"),
    ("7.2", interval_half_width, "counted from the mean"),
    ("7.2", interval_ends_swapped, "other order"),
    ("7.2", interval_of_four, "written into the function"),
    ("7.2", interval_99, "the lower end is off"),
    ("7.2", interval_of_ratio, "mean of the differences"),
    ("7.3", epoch_best_on_test, "best epoch on TEST"),
    ("7.3", epoch_validation_itself, "chosen for being high"),
    ("7.3", epoch_tie_by_test, "That is a look"),
    ("7.3", epoch_last_tie, "takes the last"),
    ("7.3", epoch_last, "last epoch"),
    ("7.3", epoch_mean, "mean over all epochs"),
    ("7.3", epoch_common, "Each run chooses its own"),
    ("7.3", epoch_of_first_run, "the best of the first run"),
    ("7.3", epoch_worst, "WORST"),
    ("7.3", epoch_turned_round, "Turn the two round"),
    ("7.3", epoch_index, "the chosen epoch. Return"),
    ("7.3", epoch_mean_over_runs, "one number came back"),
    ("7.3", epoch_not_squeezed, "one dimension too many"),
    ("7.3", epoch_all_pairs, "every chosen epoch for every run"),
    ("7.3", epoch_only_two_dimensions, "curves (E,) of a single run"),
    ("7.3", epoch_of_twenty, "is a number written in"),
    ("7.3", epoch_smoothed, "For each run, find"),
    ("7.4", alike(lambda x: x[:, :, 0]), "first row of pixels"),
    ("7.4", alike(lambda x: x[:, 0]), "first channel"),
    ("7.4", alike(lambda x: x[:, :, 0, 0]), "Only one pixel"),
    ("7.4", alike(lambda x: x.float().mean((1, 2, 3))[:, None]), "Sums or means"),
    ("7.4", copies_one_equal_pixel, "One equal pixel"),
    ("7.4", copies_in_order, "with image i only"),
    ("7.4", copies_inverted, "turned round"),
    ("7.4", copies_of_first, "first test image"),
    ("7.4", copies_of_last, "last test image"),
    ("7.4", copies_nearly, "near copy"),
    ("7.4", copies_by_distance, "in floating point"),
    ("7.4", copies_once, "only the first"),
    ("7.4", copies_of_the_other_side, "which TEST images"),
    ("7.4", copies_every_pair, "value for every pair"),
    ("7.4", copies_as_numbers, "of bool"),
    ("7.4", copies_all_pairs_at_once, "held at once"),
    ("7.4", copies_inside_too, "marked that are none"),
    ("7.4", copies_changing_input, "changes its input unlabelled"),
]
SAME_HINT = [
    ("7.1", p_chi_square_corrected, "chi-square approximation"),
    ("7.1", p_zero_without_dispute, "nothing in dispute"),
    ("7.4", copies_as_positions, "of bool"),
]


test_right_answers_are_accepted, test_each_mistake_gets_its_own_hint, test_hints_differ_within_an_exercise = standard_tests(
    EXERCISES, RIGHT, WRONG, SAME_HINT
)


def test_untouched_functions_are_not_attempted():
    def mcnemar_p(first_right, second_right):
        """The p-value."""
        ...

    def honest_accuracy(validation, test): ...

    for number, answer in (("7.1", mcnemar_p), ("7.3", honest_accuracy)):
        assert judged(number, answer)[0] == "not attempted"


def test_references_give_known_values():
    first = torch.tensor([True] * 6 + [False] * 2)
    assert mcnemar_p(first, ~first) == pytest.approx(2 * (1 + 8 + 28) / 256)
    mean, low, high = paired_interval([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert (mean, high - mean, mean - low) == (pytest.approx(2), pytest.approx(4.302653 / 3**0.5), pytest.approx(4.302653 / 3**0.5))
    assert honest_accuracy(torch.tensor([0.2, 0.9, 0.9]), torch.tensor([1.0, 0.5, 0.7])).item() == 0.5
    images = torch.arange(4 * 27).reshape(4, 3, 3, 3).byte()
    assert copies_of_test_images(images, images[2:3]).tolist() == [False, False, True, False]
    assert copies_of_test_images(images, images[:0]).tolist() == [False] * 4


@pytest.mark.parametrize("seed", range(5))
def test_references_agree_with_the_package(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(2, 300, generator=generator) < torch.tensor([[0.8], [0.7]])).unbind()
    assert mcnemar_p(a, b) == pytest.approx(mcnemar(a, b).p_value, rel=1e-9)
    first, second = torch.rand(2, 5, generator=generator).tolist()
    found = paired_runs(first, second)
    assert paired_interval(first, second) == (pytest.approx(found.difference), *map(pytest.approx, found.interval))
