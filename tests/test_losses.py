"""The losses against loops, invariances, chance levels and lightly; hostile rows, memory, and what is refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslcourse.diagnostics import LargestTensor
from sslcourse.losses import barlow_twins_loss, byol_loss, chance_loss, cross_correlation, nt_xent, pseudo_label_loss, pseudo_label_weight

pytestmark = pytest.mark.usefixtures("one_thread")

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
EPS64, EPS32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
TEMPERATURES = [0.005, 0.05, 0.5, 10.0]


def views(n, d, seed=0, dtype=torch.float64, noise=None):
    """Two views (n, d): independent rows, or with `noise` the second is the first and a little."""
    generator = torch.Generator().manual_seed(seed)
    z0, z1 = torch.randn(2, n, d, generator=generator, dtype=torch.float64) * 3
    return z0.to(dtype), (z1 if noise is None else z0 + noise * z1).to(dtype)


def by_loops(z0, z1, temperature):
    """The paper's equation 1 word for word, in float64 with math.exp and math.log, and its gradient worked out by hand.

    Anchor i with partner p has the loss −s_ip/τ + ln Σ_j exp(s_ij/τ), so its derivative by s_ij is (q_ij − [j = p])/τ, with q_ij the
    softmax; and by z, what is left of the derivative by the direction u = z/|z| across u, divided by |z|.
    """
    n = len(z0)
    rows = [row for z in (z0, z1) for row in z.detach().double().numpy()]
    lengths = [math.sqrt(math.fsum(float(x) ** 2 for x in row)) for row in rows]
    u = [row / length for row, length in zip(rows, lengths, strict=True)]
    toward, losses = [np.zeros_like(row) for row in rows], []
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        exps = {j: math.exp(math.fsum(u[i] * u[j]) / temperature) for j in range(2 * n) if j != i}
        total = math.fsum(exps.values())
        losses.append(-math.log(exps[partner] / total))
        for j, e in exps.items():
            slope = (e / total if j != partner else -math.fsum(exps[k] for k in exps if k != partner) / total) / (2 * n * temperature)
            toward[i] += slope * u[j]
            toward[j] += slope * u[i]
    gradient = [(g - (g @ x) * x) / length for g, x, length in zip(toward, u, lengths, strict=True)]
    return math.fsum(losses) / (2 * n), np.stack(gradient)


def value_and_gradient(loss, z0, z1, temperature):
    """Loss, and gradients (2N, D) of both views one above the other, in float64."""
    z0, z1 = z0.clone().requires_grad_(), z1.clone().requires_grad_()
    value = loss(z0, z1, temperature)
    (value * 1024).backward()  # as a gradient scaler does, so that none is lost below what float16 can hold; an exact factor
    return value.item(), torch.cat([z0.grad, z1.grad]).double().cpu().numpy() / 1024


def errors(got, expected):
    """Relative error of the value, and of the gradient as a vector."""
    difference = np.linalg.norm(got[1] - expected[1])
    return abs(got[0] - expected[0]) / expected[0], difference / np.linalg.norm(expected[1])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("n", "d"), [(2, 2), (2, 7), (3, 2), (3, 16), (5, 1000), (8, 3), (16, 8), (33, 20)])
def test_nt_xent_in_float64_against_loops(n, d, temperature):
    z0, z1 = views(n, d, seed=n)
    value, gradient = errors(value_and_gradient(nt_xent, z0, z1, temperature), by_loops(z0, z1, temperature))
    assert value < 16 * EPS64  # 3.6e-15; measured 3 eps
    assert gradient < 128 * EPS64  # 2.8e-14; measured 23 eps


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("n", "d"), [(2, 5), (16, 64), (40, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nt_xent_of_less_precise_rows_is_rounded_only_once(dtype, n, d, temperature):
    z0, z1 = views(n, d, seed=n, dtype=dtype)  # the loops get the same rounded rows
    loss = nt_xent(z0, z1, temperature)
    assert loss.dtype == torch.float32 and loss.shape == ()
    with torch.autocast("cpu", dtype=torch.float16 if dtype == torch.float16 else torch.bfloat16):
        assert torch.equal(nt_xent(z0, z1, temperature), loss)
    value, gradient = errors(value_and_gradient(nt_xent, z0, z1, temperature), by_loops(z0, z1, temperature))
    assert value < 0.501 * EPS32  # 6e-8: the value is rounded to float32, the gradient to the precision of the rows, and nothing else is
    assert gradient < 0.501 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("temperature", "below"), [(0.05, 1e-3), (0.1, 0.1), (0.5, 4)])
def test_nt_xent_near_its_minimum_where_float32_has_few_digits_left(temperature, below):
    z0, z1 = views(48, 64, dtype=torch.float32, noise=0.3)
    expected = by_loops(z0, z1, temperature)
    assert expected[0] < below
    value, gradient = errors(value_and_gradient(nt_xent, z0, z1, temperature), expected)
    assert value < 0.501 * EPS32 and gradient < 0.501 * EPS32


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *[(torch.float64, 1e-200), (torch.float64, 1e200), (torch.float32, 1e-30), (torch.float32, 1e30)],
        *[(torch.float16, 2e-5), (torch.float16, 1e4), (torch.bfloat16, 1e30)],
    ],
)
def test_rows_whose_squares_the_precision_cannot_hold(dtype, scale):
    z0, z1 = ((z.clamp(-6, 6) * scale).to(dtype) for z in views(8, 16))
    assert torch.isin(z0.square().sum(1).double(), torch.tensor([0, math.inf]).double()).any()
    # the loops would lose float64 squares too, so they get the rows at a length that suits them
    expected, _ = by_loops(z0.double() / scale, z1.double() / scale, 0.1)
    assert nt_xent(z0, z1, 0.1).item() == pytest.approx(expected, rel=EPS32)


@pytest.mark.parametrize(("n", "d"), [(32, 8), (128, 64), (16, 1000)])
def test_nt_xent_needs_memory_for_the_pairs_not_for_pairs_times_dimensions(n, d):
    z0, z1 = (z.requires_grad_() for z in views(n, d, dtype=torch.float32))
    with LargestTensor() as largest:
        nt_xent(z0, z1).backward()
    assert largest.bytes == 8 * max((2 * n) ** 2, 2 * n * d)  # float64


SHAPES = [(2, 5), (3, 3), (7, 4), (16, 8)]
ROWS, COLUMNS = [3, 1, 0, 5, 4, 2], [3, 1, 2, 0]


def pair(n, d, dtype=torch.float64):
    """Two views (n, d) that have something in common, away from the origin."""
    z0, z1 = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (2 * z0 + 1).to(dtype), (z1 + 0.5 * z0 - 3).to(dtype)


def byol_by_loops(p, z):
    total = []
    for a, b in zip(p.double().tolist(), z.double().tolist(), strict=True):
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        total.append(2 - 2 * dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(y * y for y in b)))
    return math.fsum(total) / len(total)


def barlow_by_loops(z0, z1, lambda_param=5e-3, eps=1e-5):
    n, d = z0.shape

    def standardised(column):
        mean = math.fsum(column) / n
        variance = math.fsum((x - mean) ** 2 for x in column) / n
        return [(x - mean) / math.sqrt(variance + eps) for x in column]

    a, b = ([standardised(column) for column in z.double().T.tolist()] for z in (z0, z1))
    c = [[math.fsum(x * y for x, y in zip(a[i], b[j], strict=True)) / n for j in range(d)] for i in range(d)]
    on = math.fsum((c[i][i] - 1) ** 2 for i in range(d))
    off = math.fsum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j)
    return on + lambda_param * off


OTHERS = pytest.mark.parametrize(("loss", "by_hand"), [(byol_loss, byol_by_loops), (barlow_twins_loss, barlow_by_loops)])


@pytest.mark.parametrize("shape", SHAPES)
def test_byol_loss_equals_loops(shape):
    p, z = (x.requires_grad_() for x in pair(*shape))
    assert byol_loss(p, z).item() == pytest.approx(byol_by_loops(p, z), rel=1e-12)
    assert torch.autograd.gradcheck(lambda p: byol_loss(p, z), p) and torch.autograd.gradcheck(lambda z: byol_loss(p, z, False), z)
    assert torch.autograd.grad(byol_loss(p, z), [p, z], allow_unused=True)[1] is None  # nothing flows into the target


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lambda_param", [0.0, 5e-3, 1.0])
def test_barlow_twins_loss_equals_loops(shape, lambda_param):
    z0, z1 = (z.requires_grad_() for z in pair(*shape))
    assert barlow_twins_loss(z0, z1, lambda_param).item() == pytest.approx(barlow_by_loops(z0, z1, lambda_param), rel=1e-11)
    if z0.numel() < 100:
        assert torch.autograd.gradcheck(lambda z0, z1: barlow_twins_loss(z0, z1, lambda_param), (z0, z1), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@OTHERS
def test_lower_precision_and_autocast_equal_the_float64_computation_on_the_same_rows(loss, by_hand, dtype):
    z0, z1 = pair(32, 16, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(z0, z1)
    assert value.dtype == torch.float32 and torch.equal(value, loss(z0, z1))
    assert value.item() == pytest.approx(by_hand(z0, z1), rel=1e-6)
    z0[1, 1] = math.nan
    assert loss(z0, z1).isnan()


def test_a_constant_dimension_counts_as_uncorrelated():
    z0, z1 = pair(32, 4)
    z0[:, 2] = 7.0
    c = cross_correlation(z0, z1)
    assert c[2].abs().max() == 0 and c.abs().max() <= 1


HOSTILE = {
    "constant dimensions": lambda z: torch.cat([z[:, :2], torch.full_like(z[:, 2:], 3.0)], 1),
    "all rows equal": lambda z: z[:1].expand_as(z).clone(),
    "duplicated rows": lambda z: z[torch.arange(len(z)) // 2],
    "large": lambda z: z * 5e3,  # up to 36,000: float16 ends at 65,504
    "small": lambda z: z * 5e-5,
    "large and nearly constant": lambda z: 1e4 + z * 1e-3,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("loss", [nt_xent, byol_loss, barlow_twins_loss])
def test_hostile_rows_give_finite_losses_and_gradients(loss, kind, dtype):
    z0, z1 = (HOSTILE[kind](z).to(dtype).requires_grad_() for z in pair(16, 6))
    value = loss(z0, z1)
    value.backward()
    assert value.isfinite() and z0.grad.isfinite().all() and (loss is byol_loss or z1.grad.isfinite().all())


ROTATION = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64))[0]
LENGTHS, SCALE = torch.logspace(-3, 4, 6, dtype=torch.float64)[:, None], torch.tensor([0.5, 2, 10, 100], dtype=torch.float64)
CHANGES = {
    "views swapped": (lambda z0, z1: (z1, z0), (nt_xent, byol_loss, barlow_twins_loss)),
    "images in another order": (lambda z0, z1: (z0[ROWS], z1[ROWS]), (nt_xent, byol_loss, barlow_twins_loss)),
    "dimensions in another order": (lambda z0, z1: (z0[:, COLUMNS], z1[:, COLUMNS]), (nt_xent, byol_loss, barlow_twins_loss)),
    "dimensions of one view in another order": (lambda z0, z1: (z0[:, COLUMNS], z1), ()),
    "rows longer and shorter": (lambda z0, z1: (z0 * LENGTHS, z1 * 7), (nt_xent, byol_loss)),
    "space rotated": (lambda z0, z1: (z0 @ ROTATION, z1 @ ROTATION), (nt_xent, byol_loss)),
    "dimensions scaled and moved": (lambda z0, z1: (z0 * SCALE + 3, z1), (barlow_twins_loss,)),
}


@pytest.mark.parametrize("loss", [nt_xent, byol_loss, barlow_twins_loss])
@pytest.mark.parametrize("kind", CHANGES)
def test_each_loss_ignores_what_it_should_and_nothing_else(kind, loss):
    change, ignored_by = CHANGES[kind]
    z0, z1 = pair(6, 4)
    value, changed = loss(z0, z1).item(), loss(*change(z0, z1)).item()
    rel = 1e-4 if kind == "dimensions scaled and moved" else 1e-12  # an epsilon beside the variance is left
    assert (changed == pytest.approx(value, rel=rel)) == (loss in ignored_by)


@pytest.mark.parametrize(("method", "classes"), [("supervised", 2), ("supervised", 100), ("rotation", 4)])
def test_a_classifier_that_says_nothing(method, classes):
    loss = F.cross_entropy(torch.zeros(5, classes, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1]))
    assert chance_loss(method, num_classes=classes) == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("n", [2, 32, 256])
def test_simclr_when_nothing_is_nearer_than_anything_else(n):
    expected = chance_loss("simclr", batch_size=n)
    assert expected == pytest.approx(math.log(2 * n - 1), rel=1e-15)
    for temperature in (0.005, 0.5, 10.0):
        assert nt_xent(torch.ones(n, 5), torch.ones(n, 5), temperature).item() == pytest.approx(expected, rel=1e-6)
    # random directions at a high temperature: a similarity of at most 1 is divided by 100
    assert nt_xent(*views(n, 64), temperature=100).item() == pytest.approx(expected, abs=0.005)


def test_byol_at_its_landmarks_and_with_independent_directions():
    p = torch.eye(4)
    found = [byol_loss(p, z).item() for z in (3 * p, p.roll(1, 0), -p)]
    assert found == pytest.approx([0, chance_loss("byol"), 4], abs=1e-6)
    assert byol_loss(*views(4000, 64)).item() == pytest.approx(2.0, abs=0.02)  # 2/sqrt(64·4000) is one standard error: 0.004


@pytest.mark.parametrize(("n", "d", "lambda_param"), [(8, 64, 5e-3), (16, 32, 0.5), (64, 128, 0.02)])
def test_barlow_twins_with_independent_columns(n, d, lambda_param):
    losses = [barlow_twins_loss(*views(n, d, seed), lambda_param).item() for seed in range(200)]
    mean, error = np.mean(losses), np.std(losses, ddof=1) / len(losses) ** 0.5
    expected = chance_loss("barlow_twins", dim=d, batch_size=n, lambda_param=lambda_param)
    assert abs(expected - mean) < 3.5 * error < 0.03 * mean
    rule_of_thumb = d + lambda_param * d * (d - 1) / n
    assert abs(rule_of_thumb - mean) > 3.5 * error  # which is why it is not what is returned


@pytest.mark.parametrize("method, arguments, named", [
    ("moco", {}, "moco"), ("supervised", {}, "num_classes"), ("supervised", {"num_classes": 1}, "num_classes"),
    ("simclr", {"batch_size": 64.5}, "batch_size"), ("barlow_twins", {"batch_size": 64}, "dim"),
])  # fmt: skip
def test_a_chance_level_says_what_it_needs(method, arguments, named):
    with pytest.raises(ValueError, match=named):
        chance_loss(method, **arguments)


ONES, BATCH_OF_ONE = torch.ones(4, 3), torch.ones(1, 3)


@pytest.mark.parametrize("loss", [nt_xent, byol_loss, barlow_twins_loss, pseudo_label_loss])
@pytest.mark.parametrize(
    ("first", "second", "error", "named"),
    [
        *[(torch.ones(4), torch.ones(4), ValueError, "shape"), (torch.ones(0, 3), torch.ones(0, 3), ValueError, "shape")],
        (ONES, torch.ones(5, 3), ValueError, "one shape"),
        *[(ONES, ONES.long(), TypeError, "int64"), (ONES.numpy(), ONES, TypeError, "ndarray"), (ONES, None, TypeError, "NoneType")],
    ],
)
def test_tensors_that_cannot_be_meant_are_refused(loss, first, second, error, named):
    assert loss(ONES, ONES).shape == ()
    with pytest.raises(error, match=named):
        loss(first, second)


@pytest.mark.parametrize(
    ("loss", "arguments", "named"),
    [
        *((nt_xent, (ONES, ONES, temperature), "temperature") for temperature in (0, -0.5, math.inf, math.nan)),
        (nt_xent, (BATCH_OF_ONE, BATCH_OF_ONE), "at least 2 images"),
        (nt_xent, (ONES * torch.tensor([1, 0, 1, 0])[:, None], ONES), "row of zeros"),
        (byol_loss, (ONES, 0 * ONES), "row of zeros"),
        (barlow_twins_loss, (BATCH_OF_ONE, BATCH_OF_ONE), "at least 2 images"),
        *((barlow_twins_loss, (ONES, ONES, wrong), "lambda_param") for wrong in (-1, math.nan, math.inf)),
        (pseudo_label_loss, (ONES[:, :1], ONES[:, :1]), "at least two classes"),
        *((pseudo_label_loss, (ONES, ONES, wrong), "threshold") for wrong in (-0.01, 95, math.nan)),
        (pseudo_label_weight, (3, 10, 5, 1.0), "start is 10 and end 5"),
        *((pseudo_label_weight, (3, 0, 5, wrong), "final") for wrong in (-1.0, math.inf, math.nan)),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(loss, arguments, named):
    with pytest.raises(ValueError, match=named):
        loss(*arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_the_loss_nan(bad):
    z0, z1 = views(4, 3)
    for row in ([bad, 1, 2], [bad] * 3, [bad, 0, 0]):  # zeros beside it do not make it a row of zeros
        z1[2] = torch.tensor(row)
        assert nt_xent(z0, z1).isnan()


@CUDA
def test_on_a_gpu_nothing_waits_and_a_row_of_zeros_gives_nan():
    z0, z1 = (z.cuda().requires_grad_() for z in views(8, 4, dtype=torch.float32))
    zero = z0.detach().clone()
    zero[3] = 0
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.float16):
            loss, without_direction = nt_xent(z0, z1), nt_xent(zero, z1)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite() and z0.grad.isfinite().all() and without_direction.isnan()
