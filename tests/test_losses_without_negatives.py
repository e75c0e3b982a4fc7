"""BYOL's and Barlow Twins' losses: against loops, their invariances, and hostile input."""

import math

import pytest
import torch

from sslcourse import diagnostics
from sslcourse.losses import barlow_twins_loss, byol_loss, cross_correlation

pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = {"byol": byol_loss, "barlow": barlow_twins_loss}
SHAPES = [(2, 5), (3, 3), (7, 4), (16, 8)]


def pair(n, d, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z0, z1 = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return (2 * z0 + 1).to(dtype), (z1 + 0.5 * z0 - 3).to(dtype)


def byol_by_loops(p, z):
    total = []
    for a, b in zip(p.double().tolist(), z.double().tolist(), strict=True):
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        total.append(2 - 2 * dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(y * y for y in b)))
    return math.fsum(total) / len(total)


def barlow_by_loops(z0, z1, lambda_param=5e-3, eps=1e-5):
    n, d = z0.shape

    def standardised(z):
        columns = z.double().T.tolist()
        done = []
        for column in columns:
            mean = math.fsum(column) / n
            variance = math.fsum((x - mean) ** 2 for x in column) / n
            done.append([(x - mean) / math.sqrt(variance + eps) for x in column])
        return done

    a, b = standardised(z0), standardised(z1)
    c = [[math.fsum(x * y for x, y in zip(a[i], b[j], strict=True)) / n for j in range(d)] for i in range(d)]
    on = math.fsum((c[i][i] - 1) ** 2 for i in range(d))
    off = math.fsum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j)
    return on + lambda_param * off


def gradients(loss, *tensors):
    tensors = [t.clone().requires_grad_() for t in tensors]
    loss(*tensors).backward()
    return [t.grad for t in tensors]


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
@pytest.mark.parametrize("name", LOSSES)
def test_lower_precision_and_autocast_equal_the_float64_computation_on_the_same_rows(name, dtype):
    z0, z1 = pair(32, 16, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value = LOSSES[name](z0, z1)
    assert value.dtype == torch.float32 and torch.equal(value, LOSSES[name](z0, z1))
    assert value.item() == pytest.approx({"byol": byol_by_loops, "barlow": barlow_by_loops}[name](z0, z1), rel=1e-6)
    z0[1, 1] = math.nan
    assert LOSSES[name](z0, z1).isnan()


def test_byol_loss_at_its_three_landmarks():
    p, z = torch.eye(4), torch.eye(4)
    assert byol_loss(p, 3 * z).item() == pytest.approx(0, abs=1e-7)
    assert byol_loss(p, z.roll(1, 0)).item() == pytest.approx(diagnostics.chance_loss("byol"))
    assert byol_loss(p, -z).item() == pytest.approx(4)


def test_barlow_is_invariant_to_what_a_correlation_ignores():
    z0, z1 = pair(64, 6)
    value = barlow_twins_loss(z0, z1)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    scale, shift = torch.tensor([0.5, 2, 10, 3, 7, 100.0]).double(), torch.tensor([0, 1, -5, 30, 2, 8.0]).double()
    torch.testing.assert_close(barlow_twins_loss(z0[order], z1[order]), value)
    torch.testing.assert_close(barlow_twins_loss(z0 * scale + shift, z1), value, rtol=1e-4, atol=0)  # eps is what is left
    torch.testing.assert_close(barlow_twins_loss(z1, z0), value)
    columns = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(barlow_twins_loss(z0[:, columns], z1[:, columns]), value)
    assert not torch.isclose(barlow_twins_loss(z0[:, columns], z1), value)  # the diagonal is where the views meet


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
@pytest.mark.parametrize("name", LOSSES)
def test_hostile_rows_give_finite_losses_and_gradients(name, kind, dtype):
    z0, z1 = (HOSTILE[kind](z).to(dtype) for z in pair(16, 6))
    assert z0.isfinite().all()
    value = LOSSES[name](z0, z1)
    assert value.isfinite()
    for gradient in gradients(LOSSES[name], z0, z1):
        assert gradient is None or gradient.isfinite().all()


def test_a_constant_dimension_counts_as_uncorrelated():
    z0, z1 = pair(32, 4)
    z0[:, 2] = 7.0
    c = cross_correlation(z0, z1)
    assert c[2].abs().max() == 0 and c.abs().max() <= 1


