"""The exercises of lesson 7: McNemar's test, an interval over paired seeds, an honest epoch, and test images among the unlabelled."""

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from scipy import stats
from torch import Tensor

from sslcourse import diagnostics
from sslcourse.course.exercises import Exercise, Wrong, expect_close, expect_shape, expect_type, try_mistakes

# --- 7.1 ------------------------------------------------------------------------------------------------------------------------------


def mcnemar_p(first_right: Tensor, second_right: Tensor) -> float:
    """Two-sided exact p-value of McNemar's test. first_right, second_right: bool (N,), the same images in the same order."""
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    disputed, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(disputed, i) for i in range(fewer + 1)) / 2**disputed
    return min(1.0, 2 * tail)


def _split(a: Tensor, b: Tensor) -> tuple[int, int]:
    return int((a & ~b).sum()), int((b & ~a).sum())


def _binomial(k: int, n: int) -> float:
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


def _of_split(p: Callable[[int, int], float]):
    """A wrong p-value that is made of the numbers of images that only one of the two has right."""
    return lambda a, b: p(*_split(a, b))


def _normal(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def _two_proportions(a: Tensor, b: Tensor) -> float:
    p, q, n = a.double().mean().item(), b.double().mean().item(), len(a)
    return _normal((p - q) / math.sqrt(p * (1 - p) / n + q * (1 - q) / n))


def _of_difference(a: Tensor, b: Tensor) -> float:
    difference = a.double() - b.double()
    return _normal((difference.mean() / (difference.std() / math.sqrt(len(a)))).item())


_ALL_IMAGES = (
    "The coin is tossed for all images. Images that both have right, or both wrong, take no part: n is the number of disputed ones."
)
_BOTH_RIGHT = (
    "These are the images that each has right, the common ones included. Count those that ONE has right and the other wrong: a & ~b."
)
_APPROXIMATION = "This is the chi-square approximation. Add the binomial probabilities themselves: math.comb(n, i) / 2**n."
_UNPAIRED = "This compares two accuracies as if they came from different images. Look at the images in dispute instead."
_WRONG_TAIL = "This is the larger tail, from the larger of the two counts. Add up from 0 to the smaller count."
_MCNEMAR_MISTAKES = {
    "One-sided: only one of the two directions is counted. Double it.": _of_split(lambda b, c: _binomial(min(b, c), b + c)),
    _ALL_IMAGES: lambda a, b: min(1.0, 2 * _binomial(min(_split(a, b)), len(a))),
    _BOTH_RIGHT: lambda a, b: min(1.0, 2 * _binomial(min(int(a.sum()), int(b.sum())), int(a.sum() + b.sum()))),
    _APPROXIMATION: _of_split(lambda b, c: _normal((b - c) / math.sqrt(b + c))),
    _APPROXIMATION + " ": _of_split(lambda b, c: _normal((abs(b - c) - 1) / math.sqrt(b + c))),
    _UNPAIRED: _two_proportions,
    "This is a normal approximation of the paired difference. McNemar's test is exact: a binomial distribution.": _of_difference,
    "The observed count itself is left out of the tail: range(k + 1) includes k, range(k) does not.": _of_split(
        lambda b, c: 2 * _binomial(min(b, c) - 1, b + c)
    ),
    "This is the probability of the observed split alone. Add those that are more uneven.": _of_split(
        lambda b, c: math.comb(b + c, min(b, c)) / 2 ** (b + c)
    ),
    "This is 1 − p: near 1 where the two differ most.": _of_split(lambda b, c: 1 - 2 * _binomial(min(b, c), b + c)),
    _WRONG_TAIL: _of_split(lambda b, c: min(1.0, 2 * _binomial(max(b, c), b + c))),
}


def _answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[Tensor, Tensor]:
    first = torch.tensor([True] * both + [True] * only_first + [False] * only_second + [False] * neither)
    second = torch.tensor([True] * both + [False] * only_first + [True] * only_second + [False] * neither)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(len(first)))
    return first[order], second[order]


def _check_mcnemar(answer) -> None:
    inputs = _answers(20, 9, 3, 8)
    expect_type(answer(*inputs), (Real, Tensor), "the p-value")
    expect_shape(torch.as_tensor(answer(*inputs)), (), "the p-value")
    for hint, wrong in _MCNEMAR_MISTAKES.items():
        try_mistakes(answer, inputs, {hint.strip(): wrong}, rtol=1e-6)
    for counts in ((20, 9, 3, 8), (5, 2, 11, 30), (0, 1, 7, 0)):
        wanted = torch.tensor(mcnemar_p(*_answers(*counts)), dtype=torch.double)
        hint = f"With {counts[1]} images that only the first has right and {counts[2]} that only the second has, p is {wanted.item():.4f}."
        expect_close(torch.as_tensor(answer(*_answers(*counts))).double(), wanted, hint, rtol=1e-6, what="the p-value")
    even = float(answer(*_answers(4, 5, 5, 4)))
    if even > 1 + 1e-9:
        raise Wrong(f"Five images against five give p = {even:.3f}. A probability stops at 1: min(1.0, ...).")
    expect_close(even, 1.0, "Five images against five: nothing is more likely, so p is 1.", what="the p-value")
    try:
        same = float(answer(*_answers(6, 0, 0, 3)))
    except Wrong:
        same = math.nan
    if not math.isclose(same, 1.0):
        raise Wrong("Where the two agree on every image there is nothing in dispute, and nothing to be surprised by: p is 1.")
    try:
        many = float(answer(*_answers(100, 800, 700, 100)))
    except Wrong:
        many = math.nan
    if not math.isclose(many, mcnemar_p(*_answers(100, 800, 700, 100)), rel_tol=1e-6):
        raise Wrong("With 1,500 images in dispute it fails, because 0.5**1500 is 0. Divide the whole sum by the whole number 2**n instead.")


# --- 7.2 ------------------------------------------------------------------------------------------------------------------------------


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference first − second over R paired runs, and its 95 % Student interval: (difference, low, high)."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    runs = len(differences)
    mean = sum(differences) / runs
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (runs - 1) / runs)
    half = float(stats.t.ppf(0.975, runs - 1)) * error
    return mean, mean - half, mean + half


def _interval(quantile=lambda r: stats.t.ppf(0.975, r - 1), error=None, differ=lambda a, b: [x - y for x, y in zip(a, b, strict=True)]):
    """A wrong interval: another factor, another standard error, or other differences."""

    def answer(first, second):
        d = torch.tensor(differ(first, second), dtype=torch.double)
        mean = d.mean().item()
        spread = error(first, second, d) if error else (d.std() / math.sqrt(len(d))).item()
        half = float(quantile(len(d))) * spread
        return torch.tensor([mean, mean - half, mean + half], dtype=torch.double)

    return answer


def _unpaired_error(first, second, d):
    return math.hypot(*(torch.tensor(v, dtype=torch.double).std().item() for v in (first, second))) / math.sqrt(len(d))


_SORTED = "The runs were sorted first, so that the best of one side meets the best of the other. Leave them in the order of their seeds."
_NORMAL = (
    "The factor is that of many runs, 1.96. With few runs the deviation itself is uncertain: stats.t.ppf(0.975, R - 1), 4.30 for R = 3."
)
_DEGREES = "Student's t with R degrees of freedom. One is spent on the mean: R − 1."
_ONE_TAIL = "stats.t.ppf(0.95, ...) leaves 5 % at one end. A two-sided 95 % interval leaves 2.5 % at each: 0.975."
_NOT_MEAN = "This is the interval for a single run. The mean of R runs is known better: divide the deviation by the root of R."
_PAIR_FIRST = (
    "The errors of the two sides are added as if their runs had nothing in common. Subtract run by run, then take the deviation of that."
)
_INTERVAL_MISTAKES = {
    _NORMAL: _interval(quantile=lambda r: 1.959964),
    "Two standard errors: right for many runs. With few, take stats.t.ppf(0.975, R - 1).": _interval(quantile=lambda r: 2.0),
    "This is one standard error to each side. A 95 % interval needs Student's factor, stats.t.ppf(0.975, R - 1).": _interval(lambda r: 1.0),
    _DEGREES: _interval(quantile=lambda r: stats.t.ppf(0.975, r)),
    _ONE_TAIL: _interval(quantile=lambda r: stats.t.ppf(0.95, r - 1)),
    _NOT_MEAN: _interval(error=lambda a, b, d: d.std().item()),
    "The variance divides by R. The mean was estimated from the same runs, so divide by R − 1.": _interval(
        error=lambda a, b, d: d.std(correction=0).item() / math.sqrt(len(d))
    ),
    _PAIR_FIRST: _interval(error=_unpaired_error),
    "The sign is turned round: first − second.": lambda a, b: _interval()(b, a),
    _SORTED: _interval(differ=lambda a, b: [x - y for x, y in zip(sorted(a), sorted(b), strict=True)]),
    "The differences lost their signs: a run that went the other way counts against.": _interval(
        differ=lambda a, b: [abs(x - y) for x, y in zip(a, b, strict=True)]
    ),
    "The deviation is divided by R. Divide by the root of R.": _interval(error=lambda a, b, d: d.std().item() / len(d)),
    "This is the variance over R. The standard error is its root.": _interval(error=lambda a, b, d: d.var().item() / len(d)),
}
_RUNS = ([66.1, 61.9, 70.2, 64.0], [60.5, 58.8, 68.7, 64.6])
_THREE = ([71.0, 68.5, 74.9], [55.0, 57.5, 61.0])


def _three_numbers(got) -> Tensor:
    expect_type(got, (tuple, list, Tensor), "the result")
    if len(got) != 3 or not all(isinstance(v, (Real, Tensor)) and torch.as_tensor(v).shape == () for v in got):
        raise Wrong("Return three numbers: difference, low, high.")
    return torch.tensor([float(v) for v in got], dtype=torch.double)


def _check_interval(answer) -> None:
    got = _three_numbers(answer(*_RUNS))
    wanted = _three_numbers(paired_interval(*_RUNS))
    if torch.allclose(got, wanted[[0, 2, 1]]):
        raise Wrong("The ends of the interval are in the other order: difference, low, high.")
    if torch.allclose(got[1:], wanted[0] - wanted[1:]) or torch.allclose(got[1:], wanted[1:] - wanted[0]):
        raise Wrong("The ends are counted from the mean. Return them as values: mean − half and mean + half.")
    for hint, wrong in _INTERVAL_MISTAKES.items():
        try_mistakes(lambda *runs: _three_numbers(answer(*runs)), _RUNS, {hint: wrong}, rtol=1e-3)
    expect_close(got[0], wanted[0], "The first number is the mean of the differences, first − second.", what="the difference")
    for at, name in ((1, "the lower end"), (2, "the upper end")):
        hint = f"For four runs {name} is off: mean ∓ t · deviation / √R, where t is {stats.t.ppf(0.975, 3):.3f}."
        expect_close(got[at], wanted[at], hint, rtol=1e-3, what=name)
    hint = "Right for four runs, but not for three: is a number of runs written into the function?"
    expect_close(_three_numbers(answer(*_THREE)), _three_numbers(paired_interval(*_THREE)), hint, rtol=1e-3)


# --- 7.3 ------------------------------------------------------------------------------------------------------------------------------


def honest_accuracy(validation: Tensor, test: Tensor) -> Tensor:
    """Test accuracy at the epoch that validation chose, of each run. validation, test: (R, E) -> (R,), or (E,) -> ()."""
    chosen = validation.argmax(dim=-1, keepdim=True)  # the first of equals
    return test.gather(-1, chosen).squeeze(-1)


def _tie_by_test(v: Tensor, t: Tensor) -> Tensor:
    return t.masked_fill(v < v.max(1, keepdim=True).values, -1.0).max(1).values


_EPOCH_MISTAKES = {
    "This is the best epoch on TEST: the very leak that the exercise is about. Let validation choose the epoch.": lambda v, t: (
        t.max(1).values
    ),
    "This is the validation accuracy of the best epoch. It was chosen for being high, so it is too good: report test.": lambda v, t: (
        v.max(1).values
    ),
    "Several epochs share the best validation accuracy, and here the test accuracy decides between them. That is a look: take the first.": (
        _tie_by_test
    ),
    "Of epochs with the same validation accuracy this takes the last. Take the first.": lambda v, t: t.gather(
        1, (v.shape[1] - 1 - v.flip(1).argmax(1))[:, None]
    )[:, 0],
    "This is the last epoch. Early stopping asks validation for the epoch.": lambda v, t: t[:, -1],
    "This is the mean over all epochs.": lambda v, t: t.mean(1),
    "All runs are measured at one epoch, the best of the mean curve. Each run chooses its own.": lambda v, t: t[:, v.mean(0).argmax()],
    "The maximum is taken over the runs. Look along the epochs, the last dimension.": lambda v, t: t.gather(0, v.argmax(0)[None])[
        0, : len(v)
    ],
    "One epoch, the best of the first run, is used for all.": lambda v, t: t[:, v[0].argmax()],
    "This takes the epoch with the WORST validation accuracy: argmax, not argmin.": lambda v, t: t.gather(1, v.argmin(1)[:, None])[:, 0],
    "These are the validation accuracies at the epoch that test chose. Turn the two round.": lambda v, t: v.gather(1, t.argmax(1)[:, None])[
        :, 0
    ],
    "This is the chosen epoch. Return the test accuracy there: test.gather(-1, chosen).": lambda v, t: v.argmax(1),
}


def _curves(runs: int, epochs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Accuracies that rise and wobble, in steps of 1/200, so that some epochs tie on validation."""
    generator = torch.Generator().manual_seed(seed)
    rise = 0.8 - 0.5 * torch.exp(-torch.arange(epochs) / (epochs / 4))
    validation, test = (rise + 0.03 * torch.randn(2, runs, epochs, generator=generator)).mul(200).round().div(200)
    best = validation.max(1, keepdim=True).values
    later = torch.arange(epochs - 3, epochs - 1)
    validation[:, later] = best  # a tie in every run
    test[:, epochs - 2] = test.max(1).values - 0.01  # and the second of the tied is good on test
    test[:, 2] += 0.4  # the best epoch on test is an early one
    return validation, test


def _check_epoch(answer) -> None:
    validation, test = _curves(5, 20, 4)
    got = answer(validation, test)
    expect_type(got, Tensor, "the accuracies")
    if got.shape == (1,) or got.shape == ():
        raise Wrong("There are five runs, and one number came back. Return one accuracy for each run; their mean and spread come later.")
    if got.shape == (5, 1):
        raise Wrong("The shape is (5, 1): one dimension too many. .squeeze(-1) takes it away.")
    if got.shape == (5, 5):
        raise Wrong("test[:, chosen] picks every chosen epoch for every run. Pair them: test.gather(-1, ...), or test[arange(R), chosen].")
    expect_shape(got, (5,), "the accuracies")
    for hint, wrong in _EPOCH_MISTAKES.items():
        try_mistakes(lambda v, t: answer(v, t).double(), (validation, test), {hint: lambda v, t, w=wrong: w(v, t).double()})
    expect_close(got, honest_accuracy(validation, test), "For each run, find the best epoch on validation, then look test up there.")
    more = _curves(3, 11, 5)
    expect_close(answer(*more), honest_accuracy(*more), "Right for 5 runs of 20 epochs, but not for 3 of 11: is a number written in?")
    try:
        one = torch.as_tensor(answer(validation[1], test[1]))
    except Wrong:
        one = torch.zeros(0)
    if one.shape != () or not torch.allclose(one, honest_accuracy(validation[1], test[1])):
        raise Wrong("Right for (R, E), but not for the curves (E,) of a single run: count dimensions from the end, dim=-1.")


# --- 7.4 ------------------------------------------------------------------------------------------------------------------------------


def copies_of_test_images(unlabelled: Tensor, test: Tensor) -> Tensor:
    """Which unlabelled images are exact copies of a test image: uint8 (M, 3, H, W) and (T, 3, H, W) -> bool (M,)."""
    known = {picture.tobytes() for picture in test.cpu().numpy()}
    return torch.tensor([picture.tobytes() in known for picture in unlabelled.cpu().numpy()], dtype=torch.bool)


def _alike(look: Callable[[Tensor], Tensor]):
    """A wrong comparison: images count as copies where `look`, (N, 3, H, W) -> (N, K), gives the same."""

    def answer(unlabelled, test):
        a, b = look(unlabelled).flatten(1), look(test).flatten(1)
        return (a[:, None] == b[None]).all(2).any(1)

    return answer


def _nearest(unlabelled, test):
    """The distance to the nearest test image, exact to the last grey level."""
    a, b = unlabelled.flatten(1).float(), test.flatten(1).float()
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").min(1).values


def _in_order(unlabelled, test):
    n = min(len(unlabelled), len(test))
    return torch.cat([(unlabelled[:n] == test[:n]).flatten(1).all(1), torch.zeros(len(unlabelled) - n, dtype=torch.bool)])


_NEAR = "A near copy is marked too. Exact copies only: every pixel the same. (Near copies matter, and are another search.)"
_TOO_LARGE = (
    "Right, but all pairs are held at once: a tensor of {size:.0f} MB for a few hundred small images. With 100,000 no memory is enough. "
    "Put the bytes of every test image, picture.tobytes(), into a set, and look each unlabelled one up."
)
_MISSED = "{missed} copies are missed, and {false} images are marked that are none."
_ROUNDED = (
    "Right for small images; of larger ones {missed} copies are missed and {false} others marked. Are distances computed in floating "
    "point? Where sums grow they are rounded: compare the bytes themselves."
)
_COPY_MISTAKES = {
    "Only the first row of pixels is compared. Images with the same border are not copies: compare all pixels.": _alike(
        lambda x: x[:, :, :1]
    ),
    "Only the first channel is compared. An image in other colours is no copy.": _alike(lambda x: x[:, :1]),
    "Only one pixel is compared.": _alike(lambda x: x[:, :, :1, :1]),
    "Sums or means are compared. Two images with their pixels in another order have the same: compare pixel by pixel.": _alike(
        lambda x: x.double().sum((1, 2, 3))[:, None]
    ),
    "One equal pixel is enough here. All pixels have to be equal: .all() over them.": lambda u, t: (
        (u.flatten(1)[:, None] == t.flatten(1)[None]).any(2).any(1)
    ),
    "Image i is compared with image i only. A copy may stand anywhere: each with all.": _in_order,
    "The answer is turned round: True where an image is a copy.": lambda u, t: ~copies_of_test_images(u, t),
    "Only the first test image is looked for.": lambda u, t: copies_of_test_images(u, t[:1]),
    "Only the last test image is looked for: does a loop overwrite its result?": lambda u, t: copies_of_test_images(u, t[-1:]),
    _NEAR: lambda u, t: _nearest(u, t) <= 1.5,
    "Each distinct picture is marked once: of several copies only the first.": lambda u, t: _first_only(u, t),
}


def _first_only(unlabelled, test):
    marked, seen = copies_of_test_images(unlabelled, test), set()
    for i, picture in enumerate(unlabelled.numpy()):
        marked[i] = marked[i] and picture.tobytes() not in seen
        seen.add(picture.tobytes())
    return marked


def _pool(seed: int, unlabelled: int = 60, test: int = 17, side: int = 6) -> tuple[Tensor, Tensor]:
    """Unlabelled and test images with true copies, and with look-alikes of several kinds."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=generator) for n in (unlabelled, test))
    a[[3, 10, 11, 41, 59]] = b[[5, 0, 16, 5, 9]]  # copies, one picture twice
    a[20] = b[2].flip(2)  # the same pixels in another order
    a[21] = b[3]
    a[21, 1, 2, 2] ^= 1  # one grey level in one pixel
    a[22], a[23], a[24] = b[4], b[6], b[7]
    a[22, 1:] = 255 - a[22, 1:]  # other colours
    a[23, :, 1:] = 255 - a[23, :, 1:]  # the same first row
    a[24] = 255 - a[24]
    a[24, :, 0, 0] = b[7, :, 0, 0]  # the same first pixel
    a[25] = a[26]  # a copy of another unlabelled image
    return a, b


def _check_copies(answer) -> None:
    a, b = _pool(5)
    got = answer(a, b)
    expect_type(got, Tensor, "the mask")
    if got.shape == (len(b),):
        raise Wrong("This says which TEST images have a copy. The mask is for the unlabelled images, one value each.")
    if got.shape == (len(a), len(b)):
        raise Wrong("This is a value for every pair. An image is marked if it equals ANY test image: .any(1).")
    if got.dtype != torch.bool:
        raise Wrong(f"The mask has to be of bool, one value for each unlabelled image, and this is {got.dtype} {tuple(got.shape)}.")
    expect_shape(got, (len(a),), "the mask")
    for hint, wrong in _COPY_MISTAKES.items():
        try_mistakes(answer, (a, b), {hint: wrong})
    for seed, side in ((5, 6), (6, 40)):
        a, b = _pool(seed, test=3 * side, side=side)
        a = torch.cat([a, b])  # many copies, for rounding may spare a few
        got, wanted = answer(a, b), copies_of_test_images(a, b)
        expect_shape(got, wanted.shape, "the mask")
        missed, false = int((wanted & ~got).sum()), int((got & ~wanted).sum())
        if missed or false:
            raise Wrong((_ROUNDED if side == 40 else _MISSED).format(missed=missed, false=false))
    a, b = _pool(7, unlabelled=400, test=300)
    with diagnostics.LargestTensor() as largest:
        answer(a, b)
    if largest.bytes >= a.numel() * len(b):
        raise Wrong(_TOO_LARGE.format(size=largest.bytes / 1e6))


EXERCISES = {
    "7.1": Exercise("7.1", "McNemar's test", 15, 2, mcnemar_p, _check_mcnemar),
    "7.2": Exercise("7.2", "An interval over paired runs", 15, 2, paired_interval, _check_interval),
    "7.3": Exercise("7.3", "The honest epoch", 10, 1, honest_accuracy, _check_epoch),
    "7.4": Exercise("7.4", "Test images among the unlabelled", 15, 2, copies_of_test_images, _check_copies),
}
