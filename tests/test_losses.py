"""The losses against loops, invariances and chance levels; hostile rows, memory, and what is refused."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslcourse.diagnostics import LargestTensor
from sslcourse.losses import barlow_twins_loss, byol_loss, chance_loss, cross_correlation, dino_loss, mae_loss, nt_xent

from sslcourse.losses import pseudo_label_loss, pseudo_label_weight  # isort: skip

pytestmark = pytest.mark.usefixtures("one_thread")

EPS32 = torch.finfo(torch.float32).eps


def views(n, d, seed=0, dtype=torch.float64, alike=0.0, away=0.0):
    """Two views (n, d): independent rows, or `alike` times the first is in the second too; both moved `away` from the origin."""
    z0, z1 = 2 * torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z0 + away).to(dtype), (z1 + alike * z0 - 2 * away).to(dtype)


def pair(n, d, dtype=torch.float64):
    return views(n, d, dtype=dtype, alike=0.5, away=1)


def cosine(a, b):
    dot, length_a, length_b = (math.fsum(x * y for x, y in zip(*both, strict=True)) for both in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(length_a) / math.sqrt(length_b)


def nt_xent_by_loops(z0, z1, temperature=0.5):
    """The paper's equation 1 word for word."""
    n, rows, losses = len(z0), torch.cat([z0, z1]).double().tolist(), []
    for i, anchor in enumerate(rows):
        exps = {j: math.exp(cosine(anchor, row) / temperature) for j, row in enumerate(rows) if j != i}
        losses.append(-math.log(exps[(i + n) % (2 * n)] / math.fsum(exps.values())))
    return math.fsum(losses) / (2 * n)


def byol_by_loops(p, z):
    return math.fsum(2 - 2 * cosine(a, b) for a, b in zip(p.double().tolist(), z.double().tolist(), strict=True)) / len(p)


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


def pseudo_label_by_loops(weak, strong, threshold=0.95):
    total = []
    for w, s in zip(weak.double().tolist(), strong.double().tolist(), strict=True):
        label = max(range(len(w)), key=w.__getitem__)
        passes = 1 / math.fsum(math.exp(v - w[label]) for v in w) >= threshold
        total.append(passes * math.log(math.fsum(math.exp(v - s[label]) for v in s)))
    return math.fsum(total) / len(total)


def dino(student, teacher, temperature):
    """With a center that is not zero."""
    return dino_loss(student, teacher, torch.linspace(-1, 2, student.shape[1], dtype=torch.float64), 0.2, temperature)


def dino_by_loops(student, teacher, temperature):
    center, total = np.linspace(-1, 2, student.shape[1]), []
    for s, t in zip(student.detach().double().numpy() / 0.2, (teacher.detach().double().numpy() - center) / temperature, strict=True):
        q = np.exp(t - t.max())
        total.append(-math.fsum(q / q.sum() * (s - s.max() - math.log(math.fsum(np.exp(s - s.max()))))))
    return math.fsum(total) / len(total)


CASES = [
    *[(nt_xent, nt_xent_by_loops, temperature) for temperature in (0.005, 0.05, 0.5, 10.0)], (byol_loss, byol_by_loops, None),
    *[(barlow_twins_loss, barlow_by_loops, lambda_param) for lambda_param in (0.0, 5e-3, 1.0)],
    *[(pseudo_label_loss, pseudo_label_by_loops, threshold) for threshold in (0.0, 0.5, 0.8, 0.95, 1.0)],
    *[(dino, dino_by_loops, temperature) for temperature in (0.04, 1.0)],
]
EACH = pytest.mark.parametrize(("loss", "by_loops", "option"), [(loss, loops, () if o is None else (o,)) for loss, loops, o in CASES])
SELF_SUPERVISED = pytest.mark.parametrize("loss", [nt_xent, byol_loss, barlow_twins_loss])


@EACH
@pytest.mark.parametrize("shape", [(2, 2), (2, 7), (3, 16), (5, 200), (16, 8), (33, 20)])
def test_each_loss_in_float64_equals_loops(loss, by_loops, option, shape):
    z0, z1 = (z.requires_grad_() for z in pair(*shape))
    assert loss(z0, z1, *option).item() == pytest.approx(by_loops(z0, z1, *option), rel=1e-11, abs=1e-15)
    if z0.numel() < 100:
        learning = {byol_loss: 0, dino: 0, pseudo_label_loss: 1}.get(loss)  # the other one is a target
        given = (lambda z: loss(z, z1, *option), z0) if learning == 0 else (lambda *z: loss(*z, *option), (z0, z1))
        assert torch.autograd.gradcheck(*given, rtol=1e-4)
        gradients = torch.autograd.grad(loss(z0, z1, *option), [z0, z1], allow_unused=True)
        assert [k for k in (0, 1) if gradients[k] is not None] == ([0, 1] if learning is None else [learning])


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_less_precise_rows_are_rounded_only_once_and_autocast_changes_nothing(loss, by_loops, option, dtype):
    z0, z1 = (z.requires_grad_() for z in pair(16, 12, dtype))
    value = loss(z0, z1, *option)
    with torch.autocast("cpu", dtype=torch.float16 if dtype == torch.float16 else torch.bfloat16):
        assert torch.equal(loss(z0, z1, *option), value)
    assert value.dtype == torch.float32 and value.shape == ()
    wide = [z.detach().double().requires_grad_() for z in (z0, z1)]
    wanted, learning = loss(*wide, *option), [k for k in (0, 1) if (loss, k) not in ((byol_loss, 1), (dino, 1), (pseudo_label_loss, 0))]
    # a float32 number is off by at most half its eps; pseudo-labels are computed in float32
    value_bound, gradient_bound = (1e-6, 1e-5) if loss is pseudo_label_loss else (0.501 * EPS32, 0)
    assert value.item() == pytest.approx(wanted.item(), rel=value_bound, abs=1e-15)
    (value * 1024).backward()  # as a gradient scaler does, so that none is lost below what float16 can hold; an exact factor
    (wanted * 1024).backward()
    got, expected = torch.cat([(z0, z1)[k].grad.double() for k in learning]), torch.cat([wide[k].grad for k in learning])
    assert (got - expected).norm() <= max(0.501 * torch.finfo(dtype).eps, gradient_bound) * expected.norm()


@pytest.mark.parametrize(("temperature", "below"), [(0.05, 1e-3), (0.1, 0.1), (0.5, 4)])
def test_nt_xent_near_its_minimum_where_float32_has_few_digits_left(temperature, below):
    z0, z1 = views(48, 64, dtype=torch.float32, alike=1 / 0.3)
    expected = nt_xent_by_loops(z0, z1, temperature)
    assert expected < below and nt_xent(z0, z1, temperature).item() == pytest.approx(expected, rel=0.501 * EPS32)


@pytest.mark.parametrize(("dtype", "scale"), [
    *[(torch.float64, 1e-200), (torch.float64, 1e200), (torch.float32, 1e-30), (torch.float32, 1e30)],
    *[(torch.float16, 2e-5), (torch.float16, 1e4), (torch.bfloat16, 1e30)],
])  # fmt: skip
def test_rows_whose_squares_the_precision_cannot_hold(dtype, scale):
    z0, z1 = ((z.clamp(-6, 6) * scale).to(dtype) for z in views(8, 16))
    assert torch.isin(z0.square().sum(1).double(), torch.tensor([0, math.inf]).double()).any()
    # the loops would lose float64 squares too, so they get the rows at a length that suits them
    assert nt_xent(z0, z1, 0.1).item() == pytest.approx(nt_xent_by_loops(z0.double() / scale, z1.double() / scale, 0.1), rel=EPS32)
    assert byol_loss(z0, z1).item() == pytest.approx(byol_by_loops(z0.double() / scale, z1.double() / scale), rel=EPS32)


@pytest.mark.parametrize(("n", "d"), [(32, 8), (128, 64), (16, 1000)])
def test_nt_xent_needs_memory_for_the_pairs_not_for_pairs_times_dimensions(n, d):
    z0, z1 = (z.requires_grad_() for z in views(n, d, dtype=torch.float32))
    with LargestTensor() as largest:
        nt_xent(z0, z1).backward()
    assert largest.bytes == 8 * max((2 * n) ** 2, 2 * n * d)  # float64


def test_a_constant_dimension_counts_as_uncorrelated():
    z0, z1 = pair(32, 4)
    z0[:, 2] = 7.0
    c = cross_correlation(z0, z1)
    assert c[2].abs().max() == 0 and c.abs().max() <= 1


HOSTILE = {
    "constant dimensions": lambda z: torch.cat([z[:, :2], torch.full_like(z[:, 2:], 3.0)], 1),
    "all rows equal": lambda z: z[:1].expand_as(z).clone(), "duplicated rows": lambda z: z[torch.arange(len(z)) // 2],
    "large": lambda z: z * 5e3,  # up to 36,000: float16 ends at 65,504
    "small": lambda z: z * 5e-5, "large and nearly constant": lambda z: 1e4 + z * 1e-3,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", HOSTILE)
@SELF_SUPERVISED
def test_hostile_rows_give_finite_losses_and_gradients(loss, kind, dtype):
    z0, z1 = (HOSTILE[kind](z).to(dtype).requires_grad_() for z in pair(16, 6))
    value = loss(z0, z1)
    value.backward()
    assert value.isfinite() and z0.grad.isfinite().all() and (loss is byol_loss or z1.grad.isfinite().all())


ROWS, COLUMNS = [3, 1, 0, 5, 4, 2], [3, 1, 2, 0]
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


@SELF_SUPERVISED
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


def test_mae_counts_the_hidden_patches_and_no_others():
    predicted, target = (z.view(3, 8, 4).requires_grad_() for z in views(3, 32))
    mask = (torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    hidden = [(i, j) for i in range(3) for j in range(8) if mask[i, j]]
    squares = [(p - t) ** 2 for i, j in hidden for p, t in zip(predicted[i, j].tolist(), target[i, j].tolist(), strict=True)]
    assert mae_loss(predicted, target, mask).item() == pytest.approx(math.fsum(squares) / len(squares), rel=1e-12)
    assert torch.autograd.gradcheck(lambda p: mae_loss(p, target.detach(), mask), predicted)
    mae_loss(predicted, target, mask).backward()
    assert predicted.grad.abs().sum(2).gt(0).equal(mask > 0)
    half = mae_loss(predicted.bfloat16(), target.bfloat16(), mask)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(math.fsum(squares) / len(squares), rel=0.01)


def test_dino_at_its_landmarks():
    k = 16
    one, none, logits = 5 * torch.eye(k)[:1].repeat(4, 1), torch.zeros(k), views(4, k)[0]
    for equal, other in ((torch.zeros(4, k), logits), (logits, torch.zeros(4, k))):  # a student, or a teacher, without an opinion
        value = dino_loss(equal, other, none, 1.0, 1.0).item()
        assert value >= chance_loss("dino", dim=k) - 1e-6 and (equal is logits or value == pytest.approx(math.log(k)))
    assert dino_loss(one, one, none).item() < 1e-6  # one dimension has won
    assert dino_loss(one, one, one[0]).item() > 3  # what all say is taken off


ONES, BATCH_OF_ONE = torch.ones(4, 3), torch.ones(1, 3)


@pytest.mark.parametrize("loss", [nt_xent, byol_loss, barlow_twins_loss, pseudo_label_loss, partial(dino_loss, center=torch.zeros(3))])
@pytest.mark.parametrize(("first", "second", "error", "named"), [
    *[(torch.ones(4), torch.ones(4), ValueError, "shape"), (torch.ones(0, 3), torch.ones(0, 3), ValueError, "shape")],
    (ONES, torch.ones(5, 3), ValueError, "one shape"),
    *[(ONES, ONES.long(), TypeError, "int64"), (ONES.numpy(), ONES, TypeError, "ndarray"), (ONES, None, TypeError, "NoneType")],
])  # fmt: skip
def test_tensors_that_cannot_be_meant_are_refused(loss, first, second, error, named):
    assert loss(ONES, ONES).shape == ()
    with pytest.raises(error, match=named):
        loss(first, second)


@pytest.mark.parametrize(("loss", "arguments", "named"), [
    *((nt_xent, (ONES, ONES, temperature), "temperature") for temperature in (0, -0.5, math.inf, math.nan)),
    (nt_xent, (BATCH_OF_ONE, BATCH_OF_ONE), "at least 2 images"),
    (nt_xent, (ONES * torch.tensor([1, 0, 1, 0])[:, None], ONES), "row of zeros"), (byol_loss, (ONES, 0 * ONES), "row of zeros"),
    (barlow_twins_loss, (BATCH_OF_ONE, BATCH_OF_ONE), "at least 2 images"),
    *((barlow_twins_loss, (ONES, ONES, wrong), "lambda_param") for wrong in (-1, math.nan, math.inf)),
    (pseudo_label_loss, (ONES[:, :1], ONES[:, :1]), "at least two classes"),
    *((pseudo_label_loss, (ONES, ONES, wrong), "threshold") for wrong in (-0.01, 95, math.nan)),
    (pseudo_label_weight, (3, 10, 5, 1.0), "start is 10 and end 5"),
    *((pseudo_label_weight, (3, 0, 5, wrong), "final") for wrong in (-1.0, math.inf, math.nan)),
    (mae_loss, (ONES, ONES, ONES), "mask"), (mae_loss, (ONES[None], ONES[None], 0 * ONES[:1]), "mask"),
    (mae_loss, (ONES[None], ONES[None], torch.zeros(1, 4)), "hides none"), (dino_loss, (ONES, ONES, ONES), "center"),
    *((dino_loss, (ONES, ONES, ONES[0], *wrong), "temperature") for wrong in ((0,), (0.1, -1), (math.nan,), (0.1, math.inf))),
    (chance_loss, ("dino",), "dim"), (chance_loss, ("moco",), "moco"), (chance_loss, ("supervised",), "num_classes"),
    (partial(chance_loss, num_classes=1), ("supervised",), "num_classes"),
    (partial(chance_loss, batch_size=64.5), ("simclr",), "batch_size"), (partial(chance_loss, batch_size=64), ("barlow_twins",), "dim"),
])  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused(loss, arguments, named):
    with pytest.raises(ValueError, match=named):
        loss(*arguments)


@SELF_SUPERVISED
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_the_loss_nan(loss, bad):
    z0, z1 = views(4, 3)
    for row in ([bad, 1, 2], [bad] * 3, [bad, 0, 0]):  # zeros beside it do not make it a row of zeros
        z1[2] = torch.tensor(row)
        assert loss(z0, z1).isnan() and loss(z1, z0).isnan()


@pytest.mark.parametrize("damaged", [0, 1], ids=["weak", "strong"])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_nan_among_logits_is_not_hidden(damaged, threshold):
    logits = views(6, 3)
    logits[damaged][2, 1] = math.nan
    assert pseudo_label_loss(*logits, threshold).isnan()


def test_the_threshold_itself_passes_and_the_weights_are_those_of_the_paper():
    even, undecided = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2)  # probabilities of exactly one half
    assert pseudo_label_loss(even, undecided, 0.5).item() == pytest.approx(math.log(2))
    assert pseudo_label_loss(even, undecided, 0.5 + 1e-9) == 0
    epochs = {0: 0.0, 50: 0.0, 100: 0.0, 225: 0.75, 350: 1.5, 599: 3 * 499 / 500, 600: 3.0, 601: 3.0, 10_000: 3.0}
    for epoch, wanted in epochs.items():
        assert pseudo_label_weight(epoch, 100, 600, 3) == pytest.approx(wanted, abs=1e-12)
    assert [pseudo_label_weight(step, 5, 5, 2.0) for step in (0, 4, 5, 6)] == [0.0, 0.0, 2.0, 2.0]
    assert pseudo_label_weight(0, 0, 0, 1.0) == 1.0
