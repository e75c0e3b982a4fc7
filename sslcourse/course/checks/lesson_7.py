"""The exercises of lesson 7: McNemar's test, an interval over paired seeds, an honest epoch, and test images among the unlabelled."""

from collections.abc import Callable, Sequence

import torch
from scipy import stats
from torch import Tensor

from sslcourse import diagnostics, evaluation
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
        with expect.hint_for_errors(hint):
            expect.agree(answer, mcnemar_p, right_or_wrong(*counts), hint, rtol=1e-6)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference first − second over R paired runs, and its 95 % Student interval: (difference, low, high)."""
    found = evaluation.paired_runs(first, second)
    return found.difference, *found.interval


def interval(quantile=lambda r: stats.t.ppf(0.975, r - 1), error=lambda d, a, b: d.std() / len(d) ** 0.5, differ=lambda a, b: a - b):
    """A wrong interval: another factor for r runs, another standard error, or other differences d of the two sides a and b."""

    def answer(first, second):
        a, b = torch.tensor([first, second], dtype=torch.double)
        d = differ(a, b)
        half = float(quantile(len(d))) * error(d, a, b)
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
    "The runs were sorted first. Leave them in the order of their seeds.": interval(differ=lambda a, b: a.sort().values - b.sort().values),
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


def honest_accuracy(validation: Tensor, test: Tensor) -> Tensor:
    """Test accuracy at the epoch that validation chose, of each run. validation, test: (R, E) -> (R,), or (E,) -> ()."""
    chosen = validation.argmax(dim=-1, keepdim=True)  # the first of equals
    return test.gather(-1, chosen).squeeze(-1)


EPOCH_MISTAKES = {
    "This is the best epoch on TEST: the very leak that the exercise is about. Let validation choose the epoch.": lambda v, t: t.amax(1),
    "This is the validation accuracy of the best epoch, which was chosen for being high: report test.": lambda v, t: v.amax(1),
    "Of equal epochs test decides, which is a look. Take the first.": lambda v, t: t.where(v == v.amax(1, keepdim=True), -1.0).amax(1),
    "Of equal epochs this takes the last. Take the first.": lambda v, t: honest_accuracy(v.flip(1), t.flip(1)),
    "This is the last epoch. Early stopping asks validation for the epoch.": lambda v, t: t[:, -1],
    "All runs are measured at one epoch, the best of the mean curve. Each run chooses its own.": lambda v, t: t[:, v.mean(0).argmax()],
}


def curves(runs: int, epochs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Accuracies that rise and wobble, in steps of 1/200, so that some epochs tie on validation."""
    generator = torch.Generator().manual_seed(seed)
    rise = 0.8 - 0.5 * torch.exp(-torch.arange(epochs) / (epochs / 4))
    validation, test = (rise + 0.03 * torch.randn(2, runs, epochs, generator=generator)).mul(200).round().div(200)
    validation[:, epochs - 3 : epochs - 1] = validation.amax(1, keepdim=True)  # a tie in every run
    test[:, epochs - 2] = test.amax(1) - 0.01  # and the second of the tied is good on test
    test[:, 2] += 0.4  # the best epoch on test is an early one
    return validation, test


def check_epoch(answer) -> None:
    validation, test = curves(5, 20, 4)
    got = answer(validation, test)
    expect.kind(got, Tensor, "the accuracies")
    reject_if(got.shape in {(), (1,)}, "There are five runs, and one number came back. Return one accuracy for each run.")
    reject_if(got.shape == (5, 1), "The shape is (5, 1): one dimension too many. .squeeze(-1) takes it away.")
    reject_if(got.shape == (5, 5), "test[:, chosen] picks every chosen epoch for every run. Pair them: test.gather(-1, ...).")
    expect.shape(got, (5,), "the accuracies")
    hint = "For each run, find the best epoch on validation, then look test up there."
    expect.agree(answer, honest_accuracy, (validation, test), hint, EPOCH_MISTAKES, more=[curves(3, 11, 5)])
    hint = "Right for (R, E), but not for the curves (E,) of a single run: count dimensions from the end, dim=-1."
    with expect.hint_for_errors(hint):
        expect.agree(answer, honest_accuracy, (validation[1], test[1]), hint)


def copies_of_test_images(unlabelled: Tensor, test: Tensor) -> Tensor:
    """Which unlabelled images are exact copies of a test image: uint8 (M, 3, H, W) and (T, 3, H, W) -> bool (M,)."""
    known = {picture.tobytes() for picture in test.cpu().numpy()}
    return torch.tensor([picture.tobytes() in known for picture in unlabelled.cpu().numpy()], dtype=torch.bool)


def alike(look=lambda x: x, pixels=torch.all):
    """A wrong comparison: of a part `look` of each image, or of how many pixels."""
    return lambda unlabelled, test: pixels(look(unlabelled).flatten(1)[:, None] == look(test).flatten(1), 2).any(1)


COPY_MISTAKES = {
    "Only the first channel is compared. An image in other colours is no copy.": alike(lambda x: x[:, :1]),
    "Sums or means are compared. Compare pixel by pixel.": alike(lambda x: x.double().sum((1, 2, 3))[:, None]),
    "One equal pixel is enough here. All pixels have to be equal: .all() over them.": alike(pixels=torch.any),
    "Image i is compared with image i only. A copy may stand anywhere: each with all.":
        lambda u, t: torch.cat([(u[: len(t)] == t).flatten(1).all(1), torch.zeros(len(u) - len(t), dtype=torch.bool)]),
    "Only the last test image is looked for: does a loop overwrite its result?": lambda u, t: copies_of_test_images(u, t[-1:]),
}


def pool(seed: int, unlabelled: int = 60, test: int = 17, side: int = 6) -> tuple[Tensor, Tensor]:
    """Unlabelled and test images with true copies, and with look-alikes of several kinds."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=generator) for n in (unlabelled, test))
    a[[3, 10, 11, 41, 59]] = b[[5, 0, 16, 5, 9]]  # copies, one picture twice
    a[20:24] = b[[2, 3, 4, 6]]
    a[20] = a[20].flip(2)  # the same pixels in another order
    a[21, 1, 2, 2] ^= 1  # one grey level in one pixel
    a[22, 1:] = 255 - a[22, 1:]  # other colours
    a[23, :, 1:] = 255 - a[23, :, 1:]  # the same first row
    a[25] = a[26]  # a copy of another unlabelled image
    return a, b


def check_copies(answer) -> None:
    a, b = pool(5)
    got = answer(a, b)
    expect.kind(got, Tensor, "the mask")
    reject_if(got.shape == (len(b),), "This says which TEST images have a copy. The mask is for the unlabelled images, one value each.")
    reject_if(got.shape == (len(a), len(b)), "This is a value for every pair. An image is marked if it equals ANY test image: .any(1).")
    reject_if(got.dtype != torch.bool, f"The mask has to be of bool, one value for each unlabelled image; this is {got.dtype}.")
    expect.shape(got, (len(a),), "the mask")
    reject_mistakes(answer, copies_of_test_images, COPY_MISTAKES, lambda f: f(a, b))
    for side, told in ((6, ""), (40, " Smaller images were right: are distances computed in floating point? Compare the bytes.")):
        a, b = pool(side, test=3 * side, side=side)
        a = torch.cat([a, b])  # many copies, for rounding may spare a few
        wrong = int((answer(a, b) != copies_of_test_images(a, b)).sum())
        reject_if(wrong, f"{wrong} of {len(a)} images are copies and not marked, or marked and none.{told}")
    a, b = pool(7, unlabelled=400, test=300)
    with diagnostics.LargestTensor() as largest:
        answer(a, b)
    held = f"Right, but all pairs are held at once: a tensor of {largest.bytes / 1e6:.0f} MB for a few hundred small images."
    reject_if(largest.bytes >= a.numel() * len(b), f"{held} Put the bytes of every test image, picture.tobytes(), into a set.")


EXERCISES = [
    Exercise("7.1", "McNemar's test", 15, 2, mcnemar_p, check_mcnemar, MCNEMAR_MISTAKES),
    Exercise("7.2", "An interval over paired runs", 15, 2, paired_interval, check_interval, INTERVAL_MISTAKES),
    Exercise("7.3", "The honest epoch", 10, 1, honest_accuracy, check_epoch, EPOCH_MISTAKES),
    Exercise("7.4", "Test images among the unlabelled", 15, 2, copies_of_test_images, check_copies, COPY_MISTAKES),
]
