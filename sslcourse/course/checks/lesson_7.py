"""The exercises of lesson 7: McNemar's test, an interval over paired seeds, and a whole protocol."""

import math
from collections.abc import Callable, Sequence

import torch
from scipy import stats
from torch import Tensor

from sslcourse import evaluation
from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import reject_if, reject_mistakes
from sslcourse.course.exercises import Exercise


def mcnemar_p(first_right: Tensor, second_right: Tensor) -> float:
    """Two-sided exact p-value of McNemar's test. first_right, second_right: bool (N,), the same images in the same order."""
    return evaluation.mcnemar(first_right, second_right).p_value


def of_split(p: Callable[[int, int], float], split=lambda a, b: (a & ~b, b & ~a)):
    """A wrong p-value: p(b, c), of the numbers of images that only one of the two has right, or of another split; the smaller one first."""
    return lambda first, second: p(*sorted(int(part.sum()) for part in split(first, second)))


def exact(b: int, c: int) -> float:
    return min(1.0, 2 * stats.binom.cdf(b, b + c, 0.5))


MCNEMAR_MISTAKES = {
    "One-sided: only one of the two directions is counted. Double it.": of_split(lambda b, c: exact(b, c) / 2),
    "The coin is tossed for all images. Only the disputed ones take part, that one has right and the other wrong.":
        lambda first, second: of_split(lambda b, c: exact(b, len(first) - b))(first, second),
    "These are the images that each has right, the common ones included. Count those that ONE has right: a & ~b.":
        of_split(exact, lambda first, second: (first, second)),
    "This is the chi-square approximation. Add the binomial probabilities themselves: math.comb(n, i) / 2**n.":
        [of_split(lambda b, c, less=less: stats.chi2.sf((c - b - less) ** 2 / (b + c), 1)) for less in (0, 1)],
    "The observed count itself is left out of the tail: range(k + 1) includes k.": of_split(lambda b, c: exact(b - 1, c + 1)),
}


def right_or_wrong(both: int, only_first: int, only_second: int, neither: int) -> tuple[Tensor, Tensor]:
    """Which images each of two classifiers has right, so many of each kind, in a mixed order."""
    counts = torch.tensor([both, only_first, only_second, neither])
    first, second = (torch.tensor(kinds).repeat_interleave(counts) for kinds in ([True, True, False, False], [True, False, True, False]))
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(len(first)))
    return first[order], second[order]


def check_mcnemar(answer) -> None:
    for counts in ((20, 9, 3, 8), (5, 2, 11, 30), (0, 1, 7, 0)):
        images = right_or_wrong(*counts)
        hint = f"With {counts[1]} images that only the first has right and {counts[2]} only the second, p is {mcnemar_p(*images):.4f}."
        expect.agree(answer, mcnemar_p, images, hint, MCNEMAR_MISTAKES, part=lambda p: expect.number(p, "the p-value"), rtol=1e-6)
    even = "Five images against five: nothing is more likely, so p is 1. A probability stops at 1: min(1.0, ...)."
    same = "Where the two agree on every image there is nothing in dispute, and nothing to be surprised by: p is 1."
    many = "With 1,500 images in dispute it fails, because 0.5**1500 is 0. Divide the whole sum by the whole number 2**n instead."
    for counts, hint in (((4, 5, 5, 4), even), ((6, 0, 0, 3), same), ((100, 800, 700, 100), many)):
        with expect.hints_for_errors({"": hint}):
            expect.agree(answer, mcnemar_p, right_or_wrong(*counts), hint, rtol=1e-6)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference first − second over R paired runs, and its 95 % Student interval: (difference, low, high)."""
    found = evaluation.paired_runs(first, second)
    return found.difference, *found.interval


def interval(quantile=lambda r: stats.t.ppf(0.975, r - 1), error=lambda d, a, b: d.std() / len(d) ** 0.5):
    """A wrong interval: another factor for r runs, or another standard error of the differences d of the two sides a and b."""

    def answer(first, second):
        a, b = torch.tensor([first, second], dtype=torch.double)
        d, half = a - b, float(quantile(len(first))) * error(a - b, a, b)
        return torch.stack([d.mean(), d.mean() - half, d.mean() + half])

    return answer


INTERVAL_MISTAKES = {
    "The ends of the interval are in the other order: difference, low, high.": interval(lambda r: stats.t.ppf(0.025, r - 1)),
    "The factor is that of many runs, 1.96. With few runs it is stats.t.ppf(0.975, R - 1), 4.30 for R = 3.": interval(lambda r: 1.959964),
    "Student's t with R degrees of freedom. One is spent on the mean: R − 1.": interval(lambda r: stats.t.ppf(0.975, r)),
    "This is the interval for a single run. For the mean divide by the root of R.": interval(error=lambda d, a, b: d.std()),
    "The variance divides by R. It has to be R − 1.": interval(error=lambda d, a, b: d.std(correction=0) / len(d) ** 0.5),
    "The errors of the two sides are added as if their runs had nothing in common. Subtract run by run first.":
        interval(error=lambda d, a, b: ((a.var() + b.var()) / len(d)).sqrt()),
}


def three_numbers(got) -> Tensor:
    expect.kind(got, (tuple, list, Tensor), "the result")
    reject_if(len(got) != 3 or not all(torch.as_tensor(v).shape == () for v in got), "Return three numbers: difference, low, high.")
    return torch.tensor([float(v) for v in got], dtype=torch.double)


def check_interval(answer) -> None:
    runs, fewer = ([66.1, 61.9, 70.2, 64.0], [60.5, 58.8, 68.7, 64.6]), ([71.0, 68.5, 74.9], [55.0, 57.5, 61.0])
    expect.close(three_numbers(answer(*runs))[0], paired_interval(*runs)[0], "The first number is the mean of first − second.")
    hint = f"For four runs the ends are off: mean ∓ t · deviation / √R, where t is {stats.t.ppf(0.975, 3):.3f}."
    expect.agree(answer, paired_interval, runs, hint, INTERVAL_MISTAKES, part=three_numbers, more=[fewer], rtol=1e-3)


def compare_methods(mine: tuple, rival: tuple, draw: Callable, validation: tuple, test: tuple, seeds: list) -> tuple:
    """Mine less the rival in points, the interval's ends, and "mine", "rival" or "not shown". mine, rival: (fit, settings)."""
    return protocol_by()(mine, rival, draw, validation, test, seeds)


def better(difference: float, low: float, high: float) -> str:
    return "not shown" if low <= 0 <= high else "mine" if difference > 0 else "rival"


def protocol_by(
    draw_for=lambda seed, side: seed, tried=lambda settings, side: settings, chosen_on=lambda v, t: v,
    reported_on=lambda v, t: t, labelled=lambda few, v, t: few, points=100, interval=paired_interval, verdict=better,
):  # fmt: skip
    """A protocol; wrong ones draw, choose, report or conclude otherwise. side: 0 for mine, 1 for the rival; v, t: validation and test."""

    def compare(mine, rival, draw, validation, test, seeds):
        def right(predict, part):
            return points * (predict(part[0]) == part[1]).double().mean().item()

        reached = ([], [])
        for side, (fit, settings) in enumerate((mine, rival)):
            for seed in seeds:
                x, y = labelled(draw(draw_for(seed, side)), validation, test)
                fitted = [fit(x, y, setting, seed) for setting in tried(settings, side)]
                best = max(fitted, key=lambda predict: right(predict, chosen_on(validation, test)))
                reached[side].append(right(best, reported_on(validation, test)))
        found = tuple(float(number) for number in interval(*reached))
        return *found, verdict(*found)

    return compare


DRAWS = "In some draw, the two methods do not get the same labels. Draw once for each seed, and give the draw to both."
OTHER_IMAGES = "A method is fitted on images that are not those of draw(seed). Validation and test images are not for fitting."
EFFORT = "The two methods are not treated alike: each has to try all of its settings, in every draw."
PROTOCOL_MISTAKES = {
    "Test images choose the setting. Let the validation images choose, and ask test once about the chosen one.":
        protocol_by(chosen_on=lambda v, t: t),
    "The validation accuracy of the chosen setting is reported. It was chosen for being high: report test.":
        protocol_by(reported_on=lambda v, t: v),
    DRAWS: protocol_by(draw_for=lambda seed, side: seed + 50 * side),
    OTHER_IMAGES: [protocol_by(labelled=lambda few, v, t: v), protocol_by(labelled=lambda few, v, t: t)],
    EFFORT: [protocol_by(tried=lambda settings, side: settings[: 1 if side else None]), protocol_by(tried=lambda s, side: s[-1:])],
    "The numbers are fractions. A difference of accuracies is told in points: times 100.": protocol_by(points=1),
    "The sign is turned round. The difference is mine less the rival's.": protocol_by(interval=lambda a, b: paired_interval(b, a)),
    "The larger mean wins here. Where the interval holds 0, no difference is shown.":
        protocol_by(verdict=lambda d, low, high: better(d, d, d)),
} | {hint: protocol_by(interval=wrong) for hint, wrong in INTERVAL_MISTAKES.items() if "order" not in hint}


def trial(protocol, gap: float = 8.0, seeds: Sequence[int] = (3, 4, 5, 6)):
    """What a protocol returns for two methods, mine better by about gap points; and who did what: (side, draw, seed, setting, on)."""
    log, best = [], {(0, "validation"): 1, (0, "test"): 2, (1, "validation"): 2, (1, "test"): 0}  # setting of each side

    def method(side):
        def fit(x, y, setting, seed):
            drawn = round(x.mean().item(), 4)
            log.append((side, drawn, seed, setting, "fit"))

            def predict(pictures):
                on = "test" if len(pictures) == 400 else "validation"
                log.append((side, drawn, seed, setting, on))
                luck = 12 * math.sin(9 * drawn) + 2 * math.cos(5 * drawn + 2 * side) + math.sin(seed + setting)
                skill = 60 + luck + gap * (side == 0) - 4 * abs(setting - best[side, on])
                return torch.where(pictures[:, 0] < skill / 100, pictures[:, 1], pictures[:, 1] + 1).long() % 3

            return predict

        return fit, [0, 1, 2]

    def images(n):
        labels = torch.arange(n) % 3
        return torch.stack([(torch.arange(n) + 0.5) / n, labels.float()], 1), labels

    drawn = (lambda seed: (torch.full((6, 2), float(seed)), torch.arange(6) % 3)), images(200), images(400)
    return protocol(method(0), method(1), *drawn, list(seeds)), log


def numbers_of(protocol, *how) -> Tensor:
    *numbers, verdict = trial(protocol, *how)[0]
    return torch.cat([three_numbers(numbers), torch.tensor([{"mine": 1.0, "rival": -1.0, "not shown": 0.0}[verdict]])])


def check_protocol(answer) -> None:
    got, log = trial(answer)
    expect.kind(got, (tuple, list))
    reject_if(len(got) != 4, "Return four things: difference, low, high, verdict.")
    three_numbers(got[:3])
    reject_if(got[3] not in ("mine", "rival", "not shown"), f'The verdict is "mine", "rival" or "not shown", and it is {got[3]!r}.')
    fits = [row for row in log if row[4] == "fit"]
    reject_if({row[1] for row in fits} - {*range(200)}, OTHER_IMAGES)
    mine, rival = ({row[1:4] for row in fits if row[0] == side} for side in (0, 1))
    reject_if({row[0] for row in mine} != {row[0] for row in rival}, DRAWS)
    reject_mistakes(answer, compare_methods, PROTOCOL_MISTAKES, lambda protocol: numbers_of(protocol, -4.0))
    reject_if(mine != rival or len(mine) < 3 * len({row[0] for row in mine}), EFFORT)
    asked = [row[:2] for row in log if row[4] == "test"]
    more = "Right, but the test images are asked more than once about a method in a draw. Choose first, then ask once."
    reject_if(len(asked) > len({*asked}), more)
    hint = "The result is off. Subtract draw by draw, take the interval of 7.2, and see whether it holds 0."
    for how in ((8.0,), (-12.0,), (-4.0,), (8.0, (11, 2, 9))):
        expect.close(numbers_of(answer, *how), numbers_of(compare_methods, *how), hint, rtol=1e-3, what="the result")


EXERCISES = [
    Exercise("7.1", "McNemar's test", 15, 2, mcnemar_p, check_mcnemar, MCNEMAR_MISTAKES),
    Exercise("7.2", "An interval over paired runs", 15, 2, paired_interval, check_interval, INTERVAL_MISTAKES),
    Exercise("7.3", "Your method against a rival", 45, 3, compare_methods, check_protocol, PROTOCOL_MISTAKES),
]
