"""Chance levels against simulation, and the meters of collapse, alignment and uniformity against loops and known cases."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslcourse import diagnostics
from sslcourse.losses import nt_xent

pytestmark = pytest.mark.usefixtures("one_thread")

METERS = {
    "collapse": diagnostics.collapse,
    "alignment": lambda z: diagnostics.alignment(z, torch.ones(4, 3)),
    "uniformity": diagnostics.uniformity,
}


def rows(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- chance -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_chance_of_a_classifier_that_says_nothing(classes):
    loss = F.cross_entropy(torch.zeros(5, classes, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1]))
    assert diagnostics.chance_loss("supervised", num_classes=classes) == pytest.approx(loss.item(), rel=1e-12)


def test_chance_of_four_rotations():
    assert diagnostics.chance_loss("rotation") == pytest.approx(1.3862943611198906, rel=1e-15)


@pytest.mark.parametrize("n", [2, 32, 256])
def test_chance_of_simclr_when_nothing_is_nearer_than_anything_else(n):
    expected = diagnostics.chance_loss("simclr", batch_size=n)
    assert expected == pytest.approx(math.log(2 * n - 1), rel=1e-15)
    assert nt_xent(torch.ones(n, 5), torch.ones(n, 5)).item() == pytest.approx(expected, rel=1e-6)
    # random directions at a high temperature: a similarity of at most 1 is divided by 100
    assert nt_xent(rows(n, 64), rows(n, 64, seed=1), temperature=100).item() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("n", "d", "temperature"), [(128, 64, 0.1), (128, 64, 0.2), (256, 128, 0.1), (256, 128, 0.5), (256, 16, 0.2)])
def test_chance_of_simclr_with_random_directions_at_a_low_temperature(n, d, temperature):
    losses = [nt_xent(rows(n, d, seed=s), rows(n, d, seed=s + 100), temperature).item() for s in range(8)]
    mean, error = np.mean(losses), np.std(losses, ddof=1) / len(losses) ** 0.5
    corrected = diagnostics.chance_loss("simclr", batch_size=n, dim=d, temperature=temperature)
    assert abs(corrected - mean) < 0.06 + 3 * error
    assert abs(corrected - mean) < abs(diagnostics.chance_loss("simclr", batch_size=n) - mean)
    assert corrected == pytest.approx(math.log(2 * n - 1) + 1 / (2 * d * temperature**2), rel=1e-15)


def test_chance_of_simclr_is_corrected_only_when_both_are_known():
    plain = diagnostics.chance_loss("simclr", batch_size=64)
    assert diagnostics.chance_loss("simclr", batch_size=64, dim=128) == plain
    assert diagnostics.chance_loss("simclr", batch_size=64, temperature=0.5) == plain
    assert diagnostics.chance_loss("simclr", batch_size=64, dim=128, temperature=0.5) == plain + 1 / 64


def test_chance_of_byol_with_independent_directions():
    loss = (2 - 2 * torch.cosine_similarity(rows(4000, 64), rows(4000, 64, seed=1))).mean()
    assert diagnostics.chance_loss("byol") == 2.0 == pytest.approx(loss.item(), abs=0.02)  # 2/sqrt(64·4000) is one standard error: 0.004


def barlow_twins_by_hand(z0, z1, lambda_param):
    z0, z1 = ((z - z.mean(0)) / z.std(0, correction=0) for z in (z0, z1))
    c = z0.T @ z1 / len(z0)
    diagonal = c.diagonal()
    return ((diagonal - 1).square().sum() + lambda_param * (c.square().sum() - diagonal.square().sum())).item()


@pytest.mark.parametrize(("n", "d", "lambda_param"), [(8, 64, 5e-3), (16, 32, 0.5), (64, 128, 0.02)])
def test_chance_of_barlow_twins_with_independent_columns(n, d, lambda_param):
    losses = [barlow_twins_by_hand(rows(n, d, seed=s), rows(n, d, seed=s + 1000), lambda_param) for s in range(200)]
    mean, error = np.mean(losses), np.std(losses, ddof=1) / len(losses) ** 0.5
    expected = diagnostics.chance_loss("barlow_twins", dim=d, batch_size=n, lambda_param=lambda_param)
    assert abs(expected - mean) < 3.5 * error < 0.03 * mean
    rule_of_thumb = d + lambda_param * d * (d - 1) / n
    assert abs(rule_of_thumb - mean) > 3.5 * error  # which is why it is not what is returned


def test_chance_of_barlow_twins_has_the_usual_lambda():
    given = diagnostics.chance_loss("barlow_twins", dim=512, batch_size=256, lambda_param=5e-3)
    assert diagnostics.chance_loss("barlow_twins", dim=512, batch_size=256) == given
    assert given == pytest.approx(512 + 5e-3 * 512**2 / 256, rel=0.005)  # the rule of thumb, for a large batch


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [
        ("moco", {}, r"chance_loss knows supervised, rotation, simclr, byol, barlow_twins, not 'moco'\."),
        ("supervised", {}, r"chance_loss\('supervised'\) needs num_classes, a whole number of at least 2, not None\."),
        ("supervised", {"num_classes": 1}, r"chance_loss\('supervised'\) needs num_classes, a whole number of at least 2, not 1\."),
        ("simclr", {"num_classes": 10}, r"chance_loss\('simclr'\) needs batch_size, a whole number of at least 2, not None\."),
        ("simclr", {"batch_size": 1}, r"chance_loss\('simclr'\) needs batch_size, a whole number of at least 2, not 1\."),
        ("simclr", {"batch_size": 64.5}, r"chance_loss\('simclr'\) needs batch_size, a whole number of at least 2, not 64\.5\."),
        ("barlow_twins", {"batch_size": 64}, r"chance_loss\('barlow_twins'\) needs dim, a whole number of at least 1, not None\."),
        ("barlow_twins", {"dim": 8}, r"chance_loss\('barlow_twins'\) needs batch_size, a whole number of at least 2, not None\."),
        ("barlow_twins", {"dim": 8, "batch_size": 1}, r"needs batch_size, a whole number of at least 2, not 1\."),
        ("simclr", {"batch_size": 9, "dim": 16, "temperature": 0.1}, r"at least 1/sqrt\(2·dim\), not 16 and 0\.1; leave them out"),
        ("simclr", {"batch_size": 9, "dim": 0, "temperature": 0.1}, r"a dim of at least 1 .* not 0 and 0\.1; leave them out"),
        ("simclr", {"batch_size": 9, "dim": 16, "temperature": -1}, r"not 16 and -1; leave them out for ln\(2N − 1\)\."),
        ("simclr", {"batch_size": 9, "dim": 16, "temperature": math.nan}, r"not 16 and nan; leave them out"),
    ],
)
def test_chance_says_what_it_needs(method, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        diagnostics.chance_loss(method, **arguments)


# --- collapse ---------------------------------------------------------------------------------------------------------------------------


def test_collapse_against_loops():
    z = rows(12, 5) * torch.linspace(0.1, 4, 5, dtype=torch.float64) + 0.5
    u = [[float(x) / math.sqrt(sum(float(y) ** 2 for y in row)) for x in row] for row in z]
    deviations = []
    for column in zip(*u, strict=True):
        mean = sum(column) / 12
        deviations.append(math.sqrt(sum((x - mean) ** 2 for x in column) / 12))
    # the singular values are the roots of the eigenvalues of uᵀu
    values = [math.sqrt(v) for v in np.linalg.eigvalsh(np.array(u).T @ np.array(u))]
    share = [v / sum(values) for v in values]
    found = diagnostics.collapse(z)
    assert found.std == pytest.approx(sum(deviations) / 5, rel=1e-12)
    assert found.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-9)
    assert found.norm == pytest.approx(sum(math.sqrt(sum(float(y) ** 2 for y in row)) for row in z) / 12, rel=1e-12)
    assert (found.n, found.dim, found.healthy_std) == (12, 5, 5**-0.5)


@pytest.mark.parametrize("d", [2, 16, 64])
def test_directions_spread_evenly_are_healthy(d):
    found = diagnostics.collapse(rows(200 * d, d))
    assert 0.99 * found.healthy_std < found.std <= found.healthy_std == pytest.approx(1 / math.sqrt(d))
    assert 0.99 * d < found.effective_rank <= d * (1 + 1e-12)


def test_no_directions_are_healthier_than_the_axes_and_their_opposites():
    eye = torch.eye(6, dtype=torch.float64)
    found = diagnostics.collapse(torch.cat([eye, -eye]))
    assert found.std == pytest.approx(found.healthy_std, rel=1e-14)
    assert found.effective_rank == pytest.approx(6, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_point_is_a_complete_collapse(dtype):
    point = rows(1, 32, dtype=dtype)
    for z in (point.expand(50, 32), point * torch.linspace(1, 9, 50, dtype=dtype)[:, None]):
        found = diagnostics.collapse(z)
        precision = torch.finfo(dtype).eps if z.stride(0) else 1e-12  # a product is rounded to the dtype, a copy is not
        assert found.std < precision
        assert found.effective_rank == pytest.approx(1, abs=100 * precision)


def test_a_point_with_a_little_noise_is_still_a_collapse():
    found = diagnostics.collapse(rows(1, 32) + 1e-4 * rows(500, 32, seed=1))
    assert found.std < 1e-3 * found.healthy_std
    assert found.effective_rank < 1.1  # centred, the noise alone would have rank 31
    centred = torch.linalg.svdvals(rows(500, 32, seed=1) - rows(500, 32, seed=1).mean(0))
    assert torch.special.entr(centred / centred.sum()).sum().exp() > 31


@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_directions_in_a_subspace_have_its_rank(k):
    found = diagnostics.collapse(rows(2000, k) @ rows(k, 32, seed=1).svd().V.T)  # k of 32 dimensions, orthonormal
    assert 0.97 * k < found.effective_rank < k * (1 + 1e-6)
    if k > 1:
        assert found.std > 0.5 * (k**0.5 / 32)  # which std alone does not tell from healthy


def test_two_opposite_points_look_healthy_to_std_but_have_rank_one():
    point = rows(1, 8).sign()
    found = diagnostics.collapse(torch.cat([point, -point]).repeat(10, 1))
    assert found.std == pytest.approx(found.healthy_std, rel=1e-14)
    assert found.effective_rank == pytest.approx(1, abs=1e-9)


def test_lengths_and_rotations_do_not_matter():
    z = rows(40, 6) + 0.3
    turned = z @ torch.linalg.qr(rows(6, 6, seed=3))[0]
    for scale in (1e-30, 7, 1e30):
        found, scaled = diagnostics.collapse(z), diagnostics.collapse(z * scale)
        assert scaled.std == pytest.approx(found.std, rel=1e-12)
        assert scaled.effective_rank == pytest.approx(found.effective_rank, rel=1e-12)
        assert scaled.norm == pytest.approx(found.norm * scale, rel=1e-12)
    assert diagnostics.collapse(turned).effective_rank == pytest.approx(diagnostics.collapse(z).effective_rank, rel=1e-12)
    long = z.clone()
    long[:3] *= 1000  # a few long rows do not decide
    assert diagnostics.collapse(long).effective_rank == pytest.approx(diagnostics.collapse(z).effective_rank, rel=1e-12)


def test_rows_of_zeros_count_as_no_direction():
    found = diagnostics.collapse(torch.zeros(10, 4))
    assert (found.std, found.effective_rank, found.norm) == (0, 0, 0)
    half = diagnostics.collapse(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert half.std == pytest.approx((0.3 + 0.4) / 2) and half.effective_rank == pytest.approx(1) and half.norm == 2.5


def test_fewer_rows_than_dimensions():
    assert 9 < diagnostics.collapse(rows(10, 500)).effective_rank <= 10


def test_meters_change_nothing_and_keep_nothing_for_a_backward_pass():
    z = rows(10, 4).requires_grad_()
    before, kept = z.detach().clone(), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda saved: saved):
        diagnostics.collapse(z), diagnostics.uniformity(z), diagnostics.alignment(z, z)
    assert torch.equal(z, before) and not kept


def test_collapse_reads_as_a_line_and_cannot_be_changed():
    eye = torch.eye(4)
    found = diagnostics.collapse(torch.cat([eye, -eye]) * 3)
    assert str(found) == "std 0.5000 (0 collapsed, 0.5000 evenly spread), effective rank 4.0 of 4, mean length 3"
    assert "effective rank 2.0 of 2" in str(diagnostics.collapse(torch.eye(2, 100)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.std = 1.0


# --- alignment and uniformity -----------------------------------------------------------------------------------------------------------


def unit(z):
    return [row / np.sqrt((row**2).sum()) for row in z.numpy()]


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 3), (30, 8)])
def test_alignment_against_a_loop(n, d):
    z0, z1 = rows(n, d), rows(n, d, seed=1)
    expected = sum(((a - b) ** 2).sum() for a, b in zip(unit(z0), unit(z1), strict=True)) / n
    assert diagnostics.alignment(z0, z1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t", [0.5, 2, 10])
@pytest.mark.parametrize(("n", "d"), [(2, 3), (30, 8)])
def test_uniformity_against_a_loop(n, d, t):
    u = unit(rows(n, d))
    terms = [math.exp(-t * ((u[i] - u[j]) ** 2).sum()) for i in range(n) for j in range(n) if i != j]
    assert diagnostics.uniformity(rows(n, d), t) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-12)


def test_alignment_from_perfect_to_opposite():
    z = rows(20, 6)
    assert diagnostics.alignment(z, 3 * z) == pytest.approx(0, abs=1e-28)
    assert diagnostics.alignment(z, -z) == pytest.approx(4, rel=1e-12)
    assert diagnostics.alignment(rows(4000, 64), rows(4000, 64, seed=1)) == pytest.approx(2, abs=0.02)


def test_uniformity_from_one_point_to_even():
    assert diagnostics.uniformity(torch.ones(5, 3)) == 0
    assert diagnostics.uniformity(torch.eye(6)) == pytest.approx(-4, rel=1e-12)  # all distances are the root of 2
    assert diagnostics.uniformity(rows(500, 256)) == pytest.approx(-4, abs=0.05)
    assert diagnostics.uniformity(rows(50, 8)) == diagnostics.uniformity(rows(50, 8), t=2)
    z = rows(50, 8)
    assert diagnostics.uniformity(z) < diagnostics.uniformity(z + 1) < diagnostics.uniformity(z + 3) < 0


def test_uniformity_of_few_rows_at_a_large_t_does_not_become_minus_infinity():
    assert diagnostics.uniformity(torch.eye(3), t=1000) == pytest.approx(-2000, rel=1e-12)


def test_lengths_and_precision_do_not_matter_to_alignment_and_uniformity():
    z0, z1, lengths = rows(20, 6), rows(20, 6, seed=1), torch.logspace(-20, 20, 20, dtype=torch.float64)[:, None]
    assert diagnostics.uniformity(z0 * lengths) == pytest.approx(diagnostics.uniformity(z0), rel=1e-12)
    assert diagnostics.alignment(z0 * lengths, z1) == pytest.approx(diagnostics.alignment(z0, z1), rel=1e-12)
    half = z0.half()
    assert diagnostics.uniformity(half) == diagnostics.uniformity(half.double())
    assert diagnostics.alignment(half, z1) == diagnostics.alignment(half.double(), z1)


def test_uniformity_of_two_thousand_rows_needs_memory_for_the_pairs_only():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        value = diagnostics.uniformity(rows(2000, 64))
    assert math.isfinite(value)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    pairs = 2000 * 1999 // 2 * 8
    assert pairs <= largest <= 4 * pairs  # all pairs of rows side by side would be 128 of them


# --- input that cannot be meant ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METERS)
@pytest.mark.parametrize("shape", [(4,), (1, 3), (0, 3), (4, 0), (2, 3, 4)])
def test_meters_refuse_shapes_with_a_sentence(name, shape):
    sentence = (
        rf"^{name} needs a tensor \(N, D\) of at least 2 rows: z0? has shape {str(tuple(shape)).replace('(', '[(]').replace(')', '[)]')}"
    )
    with pytest.raises(ValueError, match=sentence):
        METERS[name](torch.ones(shape))


@pytest.mark.parametrize("name", METERS)
def test_meters_refuse_other_kinds_of_numbers_with_a_sentence(name):
    for z, kind in ((torch.ones(4, 3).long(), "torch.int64"), (np.ones((4, 3)), "ndarray")):
        with pytest.raises(TypeError, match=f"^{name} needs a floating-point tensor: z0? is {kind}; convert it"):
            METERS[name](z)


@pytest.mark.parametrize("name", METERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_meters_refuse_what_is_not_finite_with_a_sentence(name, bad):
    z = torch.ones(4, 3)
    z[1] = z[3, 0] = bad
    with pytest.raises(ValueError, match=f"^{name} needs finite numbers: 2 of the 4 rows of z0? hold NaN or inf"):
        METERS[name](z)


@pytest.mark.parametrize("name", ["alignment", "uniformity"])
def test_distances_of_rows_of_zeros_are_refused_with_a_sentence(name):
    z = torch.ones(4, 3)
    z[2] = 0
    with pytest.raises(ValueError, match=rf"^{name} compares directions, and a row of zeros has none \(1 of 4 rows\): look at"):
        METERS[name](z)


def test_alignment_refuses_views_of_different_shapes_with_a_sentence():
    with pytest.raises(ValueError, match=r"so one shape: z0 has \(4, 3\) and z1 \(5, 3\)\.$"):
        diagnostics.alignment(torch.ones(4, 3), torch.ones(5, 3))


@pytest.mark.parametrize("t", [0, -2, math.nan, math.inf])
def test_uniformity_refuses_an_impossible_t_with_a_sentence(t):
    with pytest.raises(ValueError, match=f"^t must be a positive number such as 2, not {t}.$"):
        diagnostics.uniformity(torch.eye(3), t)


# --- on a GPU ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_gpu_finds_the_same():
    z0, z1 = rows(100, 16, dtype=torch.float32), rows(100, 16, seed=1, dtype=torch.float32)
    on_cpu, on_gpu = diagnostics.collapse(z0), diagnostics.collapse(z0.cuda())
    assert dataclasses.astuple(on_gpu) == pytest.approx(dataclasses.astuple(on_cpu), rel=1e-10)
    assert diagnostics.uniformity(z0.cuda()) == pytest.approx(diagnostics.uniformity(z0), rel=1e-10)
    assert diagnostics.alignment(z0.cuda(), z1.cuda()) == pytest.approx(diagnostics.alignment(z0, z1), rel=1e-10)


# --- memory -----------------------------------------------------------------------------------------------------------------------------


def test_largest_tensor_sees_the_block_of_a_broadcast_and_not_a_view():
    a = torch.randn(20, 7, requires_grad=True)
    with diagnostics.LargestTensor() as of_the_product:
        (a @ a.T).sum().backward()
    assert of_the_product.bytes == 20 * 20 * 4
    with diagnostics.LargestTensor() as of_the_broadcast:
        (a[:, None, :] * a[None, :, :]).sum().backward()
    assert of_the_broadcast.bytes == 20 * 20 * 7 * 4 and of_the_broadcast.shape == (20, 20, 7)
    with diagnostics.LargestTensor() as of_a_view:
        a.detach()[:, None, :].expand(20, 50, 7)
    assert of_a_view.bytes == 20 * 7 * 4


def test_saved_for_backward_counts_a_block_once_and_for_as_long_as_its_graph_lives():
    layer, x = torch.nn.Linear(10, 4, bias=False), torch.randn(8, 10)
    with diagnostics.SavedForBackward(layer) as saved:
        assert saved.bytes == 0
        y = layer(x)  # needs x for the weight's gradient, and the weight itself is left out
        assert saved.bytes == 8 * 10 * 4
        squares = [y * y, y * y]  # the same y twice more: one block
        assert saved.bytes == 8 * 10 * 4 + 8 * 4 * 4
        del squares
        assert saved.bytes == 8 * 10 * 4
        y.sum().backward()
        assert saved.bytes == 0
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 10))  # what is unpacked is what was packed
    with diagnostics.SavedForBackward() as with_the_weight:
        kept = layer(x.clone().requires_grad_())
        assert with_the_weight.bytes == (8 * 10 + 4 * 10) * 4
    after = layer(x)  # outside nothing is counted
    assert with_the_weight.bytes == (8 * 10 + 4 * 10) * 4 and kept.grad_fn is not None and after.grad_fn is not None


def test_a_sum_of_losses_holds_their_graphs_unless_backward_has_freed_them():
    layer, x = torch.nn.Linear(6, 6), torch.randn(3, 6)
    found = {}
    for step in (False, True):
        total = torch.zeros(())
        with diagnostics.SavedForBackward(layer) as saved:
            sizes = []
            for _ in range(4):
                loss = layer(x).exp().sum()
                if step:
                    loss.backward()
                total = total + loss
                sizes.append(saved.bytes)
        found[step] = sizes, diagnostics.graph_size(total)
    each = 3 * 6 * 4
    assert found[False][0] == [each * (1 + k) for k in range(1, 5)]  # an exp each, and x once
    assert found[True][0] == [0] * 4
    assert found[False][1] == found[True][1] > 4 * 3
    assert diagnostics.graph_size(torch.ones(2)) == 0 and diagnostics.graph_size(torch.ones(2, requires_grad=True)) == 0
