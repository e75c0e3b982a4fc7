"""The classifier, the heads and the methods: first losses, gradients, views, batch statistics, the target, refusals."""

import copy
import math

import pytest
import torch
from tiny import METHODS, barlow, byol, dino, rotation, simclr
from torch import nn
from torch.nn import functional as F

from sslcourse import augment, losses, models
from sslcourse.models import ema_tau

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(n=16, size=16, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


EACH = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
TWO_KINDS = augment.TwoViews(augment.evaluation(16), augment.evaluation(16, mean=(0.2, 0.3, 0.4)))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_first_loss_is_that_of_guessing_and_its_gradient_reaches_every_parameter(classes):
    torch.manual_seed(0)
    model = models.Classifier(models.resnet9(8), classes)
    loss = F.cross_entropy(model(torch.randn(64, 3, 32, 32)), torch.randint(0, classes, (64,)))
    assert abs(loss.item() - math.log(classes)) < 0.03
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_and_shapes_of_heads(layers, last_norm):
    made = models.ProjectionHead(12, 20, 7, layers=layers, last_norm=last_norm)
    linear = [m for m in made if isinstance(m, nn.Linear)]
    widths = [(m.in_features, m.out_features) for m in linear]
    assert widths == {1: [(12, 7)], 2: [(12, 20), (20, 7)], 3: [(12, 20), (20, 20), (20, 7)]}[layers]
    assert [m.bias is not None for m in linear] == [False] * (layers - 1) + [not last_norm]  # where no normalisation takes it away
    z = made(5 + 3 * torch.randn(64, 12))
    if last_norm:
        torch.testing.assert_close(z.mean(0), torch.zeros(7), rtol=0, atol=1e-5)
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(7), rtol=0, atol=1e-2)


@EACH
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_gradient_reaches_what_is_trained_and_metrics_are_detached_scalars(make, bfloat16):
    method = make()
    assert method.metrics == {}
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = method(pictures())
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    for name, parameter in method.named_parameters():
        if name.startswith(("target.", "teacher.")):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    for value in method.metrics.values():
        assert value.shape == () and not value.requires_grad and value.isfinite()


@pytest.mark.parametrize(("make", "options", "tolerance"), [(rotation, {}, 0.05), (simclr, {"temperature": 100.0}, 0.02), (byol, {}, 0.3)])
def test_the_first_loss_is_near_chance(make, options, tolerance):
    method = make(**options)
    torch.manual_seed(0)
    assert method(pictures(64)).item() == pytest.approx(method.chance_loss(64), abs=tolerance)


@EACH
def test_a_method_settles_on_its_augmentation_once_and_its_state_is_the_same_with_any(make):
    given = augment.evaluation(16)
    method, other = make(), make(seed=1, augmentation=given)
    names = set(method.state_dict())
    method.prepare(16)
    settled = method.augmentation
    for each in (method, other):
        each(pictures())
        each.prepare(32)
    assert method.augmentation is settled and other.augmentation is given
    assert set(method.state_dict()) == set(other.state_dict()) == names and not any("augmentation" in name for name in names)


def test_quarter_turns_move_every_pixel_and_the_loss_of_rotation_is_that_of_telling_them():
    x = torch.randn(3, 3, 5, 5)
    turned, turns = models.four_rotations(x)
    assert turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    place = torch.arange(5)
    once = x[:, :, place.view(1, 5), 4 - place.view(5, 1)]  # counter-clockwise: row i is column 4 − i, read from the top
    twice = x.flip(2, 3)
    assert torch.equal(turned, torch.cat([x, once, twice, once.flip(2, 3)]))
    method = rotation(augmentation=augment.evaluation(16)).eval()
    nn.init.constant_(method.head.bias[2:3], 9.0)  # it always says "two turns"
    loss = method(pictures())
    assert method.metrics["rotation_accuracy"] == 0.25
    turned, turns = models.four_rotations(augment.evaluation(16)(pictures()))
    torch.testing.assert_close(loss, F.cross_entropy(method.head(method.encoder(turned)), turns))


def test_views_of_one_augmentation_are_drawn_apart():
    first, second = simclr(augmentation=augment.simclr(16)).two_views(pictures())
    assert first.shape == second.shape == (16, 3, 16, 16)
    assert all((a - b).abs().max() > 0.01 for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("together", [True, False])
def test_the_loss_of_simclr_is_nt_xent_of_its_views_encoded_together_or_apart(together):
    method, reference = simclr(augmentation=TWO_KINDS, views_together=together, temperature=0.3), simclr()
    loss, views = method(pictures()), TWO_KINDS(pictures())
    z = reference.project(torch.cat(views)).chunk(2) if together else [reference.project(view) for view in views]
    torch.testing.assert_close(loss, losses.nt_xent(*z, 0.3))
    assert method.metrics["positive_similarity"].item() == pytest.approx(F.cosine_similarity(*z).mean().item(), abs=1e-6)
    torch.testing.assert_close(method.state_dict(), reference.state_dict())  # batch statistics, and of how many batches


def test_the_loss_of_byol_is_that_of_each_view_predicting_the_other():
    method, reference = byol(augmentation=TWO_KINDS), byol()
    views = torch.cat(TWO_KINDS(pictures(12)))
    predicted, aim = reference.predictor(reference.project(views)), reference.target(views)
    by_hand = (losses.byol_loss(predicted[:12], aim[12:]) + losses.byol_loss(predicted[12:], aim[:12])) / 2
    torch.testing.assert_close(method(pictures(12)), by_hand)
    assert method.metrics["target_similarity"].item() == pytest.approx(1 - by_hand.item() / 2, abs=1e-5)


def test_the_loss_of_barlow_twins_is_that_of_its_projections_and_the_diagonal_is_told():
    method, reference = barlow(augmentation=TWO_KINDS, lambda_param=0.1, scale=0.5), barlow()
    z0, z1 = reference.project(torch.cat(TWO_KINDS(pictures()))).chunk(2)
    torch.testing.assert_close(method(pictures()), 0.5 * losses.barlow_twins_loss(z0, z1, 0.1))
    chance = losses.chance_loss("barlow_twins", batch_size=32, dim=8, lambda_param=0.1)
    assert method.chance_loss(32) == pytest.approx(0.5 * chance)
    assert method.metrics["diagonal"].item() == pytest.approx(losses.cross_correlation(z0, z1).diagonal().mean().item(), abs=1e-6)


def test_a_step_moves_the_targets_weights_by_one_minus_tau_and_its_buffers_are_its_own():
    assert [ema_tau(k, 100, 0.97) for k in (0, 50, 100)] == pytest.approx([0.97, 1 - 0.03 / 2, 1.0])  # the paper's schedule
    for method, target, head in ((byol(tau0=0.9), "target", "projector"), (dino(tau0=0.9), "teacher", "head")):
        with torch.no_grad():
            for p in method.encoder.parameters():
                p.add_(1.0)
        target, online = getattr(method, target), copy.deepcopy(nn.Sequential(method.encoder, getattr(method, head)))
        before = copy.deepcopy(target)
        method(pictures())
        method.after_step(3, 10)
        tau = ema_tau(3, 10, 0.9)
        for was, now, ours in zip(before.parameters(), target.parameters(), online.parameters(), strict=True):
            torch.testing.assert_close(now, tau * was + (1 - tau) * ours)
    norms = [m for m in target.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(m.num_batches_tracked) == 1 and m.training for m in norms)  # statistics of its own forward passes


@pytest.mark.parametrize("part", ["predictor", "stop_gradient", "moving_average"])
def test_each_part_can_be_taken_away(part):
    method = byol(**{part: False})
    loss = method(pictures())
    loss.backward()
    method.after_step(1, 10)
    assert loss.isfinite() and (method.target is None) == (part == "moving_average")
    assert isinstance(method.predictor, nn.Identity) == (part == "predictor")


def test_without_stop_gradient_and_average_both_sides_are_pulled():
    stopped, pulled = (byol(moving_average=False, stop_gradient=stop, augmentation=TWO_KINDS) for stop in (True, False))
    for method in (stopped, pulled):
        method(pictures(64, seed=1)).backward()
    assert not torch.allclose(stopped.projector[0].weight.grad, pulled.projector[0].weight.grad)


def test_collapse_shows_in_the_metrics():
    method, spreads = byol(last_norm=False), []
    for _ in range(2):
        method(pictures())
        spreads.append(method.metrics["projection_std"].item())
        nn.init.zeros_(method.projector[-1].weight)
    assert spreads[1] < 1e-3 < spreads[0]


@pytest.mark.parametrize(("make", "named"), [
    (lambda: models.Classifier(models.resnet9(4), 1), "num_classes"),
    *((lambda v=v: models.ProjectionHead(v, 4, 4), "in_dim") for v in (0, -1, 2.5)), (lambda: models.ProjectionHead(4, 0, 4), "hidden_dim"),
    (lambda: models.PredictionHead(4, 4, 0), "out_dim"), (lambda: models.ProjectionHead(4, 4, 4, layers=0), "layers"),
    *((lambda tau=tau: byol(tau0=tau), "tau0") for tau in (-0.1, 1.1, math.nan)), (lambda: barlow(scale=0.0), "scale"),
    *((lambda make=make: make()(torch.zeros(4, 3, 16, 16)), "uint8 images") for make in METHODS.values()),
    *((lambda x=x: models.four_rotations(x), "square images") for x in (torch.zeros(2, 3, 8, 9), torch.zeros(3, 8, 8))),
    (lambda: rotation(augmentation=augment.byol_views(16))(pictures()), "two views"),
    (lambda: simclr().eval()(pictures(1)), "at least 2 images"),
    *((lambda step=step: ema_tau(*step, 0.9), "step") for step in ((-1, 10), (11, 10), (0, 0))),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()
