"""The two methods without negatives: what gets a gradient, how the target moves, what can be taken away, and exact resume."""

import copy
import math

import pytest
import torch
from tiny import image_set, same_weights, without_seconds
from torch import nn

from sslcourse import augment, diagnostics, losses, models, training
from sslcourse.models import BYOL, BarlowTwins, ema_tau

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(n=12, size=16, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def made(kind, seed=0, **options):
    torch.manual_seed(seed)
    return kind(models.resnet9(4), **{"hidden_dim": 16, "out_dim": 8, **options})


def byol(seed=0, **options):
    return made(BYOL, seed, **options)


def barlow(seed=0, **options):
    return made(BarlowTwins, seed, **options)


# --- BYOL -----------------------------------------------------------------------------------------------------------------------------


def test_the_target_begins_as_a_copy_and_gets_no_gradient():
    method = byol()
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    target = list(method.target.parameters())
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in zip(online, target, strict=True))
    method(pictures()).backward()
    assert all(p.grad is None and not p.requires_grad for p in target)
    assert all(p.grad is not None for p in [*online, *method.predictor.parameters()])


def test_no_optimizer_gets_the_target():
    method = byol()
    groups = training.decayed_and_not(method, 0.05, {"predictor": 5.0})
    ids = {id(p) for group in groups for p in group["params"]}
    assert not ids & {id(p) for p in method.target.parameters()}
    assert {group["lr_scale"] for group in groups} == {1.0, 5.0}


def test_the_loss_is_that_of_each_view_predicting_the_other():
    views = augment.TwoViews(augment.evaluation(16), augment.evaluation(16, mean=(0.2, 0.3, 0.4)))
    method, reference = byol(augmentation=views), byol(augmentation=views)
    first, second = views(pictures())
    z = reference.project(torch.cat([first, second]))
    predicted, aim = reference.predictor(z), reference.target(torch.cat([first, second]))
    by_hand = (losses.byol_loss(predicted[:12], aim[12:]) + losses.byol_loss(predicted[12:], aim[:12])) / 2
    torch.testing.assert_close(method(pictures()), by_hand)
    assert method.metrics["target_similarity"].item() == pytest.approx(1 - by_hand.item() / 2, abs=1e-5)


def test_the_first_loss_is_near_chance():
    method = byol()
    assert method(pictures(64)).item() == pytest.approx(diagnostics.chance_loss("byol"), abs=0.3)
    assert method.chance_loss(64) == 2.0


def test_the_schedule_of_the_moving_average_has_the_papers_endpoints():
    assert ema_tau(0, 100, 0.97) == pytest.approx(0.97)
    assert ema_tau(100, 100, 0.97) == 1.0
    assert ema_tau(50, 100, 0.97) == pytest.approx(1 - 0.03 / 2)
    steps = [ema_tau(k, 100, 0.9) for k in range(101)]
    assert steps == sorted(steps)
    for wrong in ((-1, 10), (11, 10), (0, 0)):
        with pytest.raises(ValueError, match="step has to lie between"):
            ema_tau(*wrong, 0.9)


def test_a_step_moves_the_target_by_one_minus_tau():
    method = byol(tau0=0.9)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.target.parameters()]
    online = [p.clone() for p in [*method.encoder.parameters(), *method.projector.parameters()]]
    method.after_step(3, 10)
    tau = ema_tau(3, 10, 0.9)
    for was, now, ours in zip(before, method.target.parameters(), online, strict=True):
        torch.testing.assert_close(now, tau * was + (1 - tau) * ours)
    assert all(torch.equal(p, q) for p, q in zip(online, [*method.encoder.parameters(), *method.projector.parameters()], strict=True))


def test_the_targets_buffers_are_its_own():
    method = byol()
    for step in range(3):
        method(pictures(seed=step))
        method.after_step(step + 1, 10)
    norms = [m for m in method.target.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(m.num_batches_tracked) == 3 and m.training for m in norms)  # its statistics are of its own forward passes


@pytest.mark.parametrize("part", ["predictor", "stop_gradient", "moving_average"])
def test_each_part_can_be_taken_away(part):
    method = byol(**{part: False})
    loss = method(pictures())
    loss.backward()
    method.after_step(1, 10)
    assert loss.isfinite()
    assert (method.target is None) == (part == "moving_average")
    assert isinstance(method.predictor, nn.Identity) == (part == "predictor")


def test_without_stop_gradient_and_average_both_sides_are_pulled():
    def gradient(stop):
        method = byol(moving_average=False, stop_gradient=stop)
        method(pictures(64, seed=1)).backward()
        return method.projector[0].weight.grad

    assert not torch.allclose(gradient(True), gradient(False))


def test_collapse_shows_in_the_metrics():
    method = byol(last_norm=False)
    method(pictures())
    healthy = method.metrics["projection_std"].item()
    nn.init.zeros_(method.projector[-1].weight)
    nn.init.ones_(method.projector[-1].bias)
    method(pictures())
    assert method.metrics["projection_std"].item() < 1e-3 < healthy


@pytest.mark.parametrize("tau0", [-0.1, 1.1, math.nan])
def test_a_tau_that_cannot_be_is_refused(tau0):
    with pytest.raises(ValueError, match="tau0 is the part of the target"):
        byol(tau0=tau0)


# --- Barlow Twins ---------------------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_its_projections_and_the_diagonal_is_told():
    views = augment.TwoViews(augment.evaluation(16), augment.evaluation(16, mean=(0.2, 0.3, 0.4)))
    method, reference = barlow(augmentation=views, lambda_param=0.1, scale=0.5), barlow(augmentation=views)
    z0, z1 = reference.project(torch.cat(views(pictures()))).chunk(2)
    torch.testing.assert_close(method(pictures()), 0.5 * losses.barlow_twins_loss(z0, z1, 0.1))
    assert method.metrics["diagonal"].item() == pytest.approx(losses.cross_correlation(z0, z1).diagonal().mean().item(), abs=1e-6)


def test_equal_views_have_a_diagonal_of_one():
    method = barlow(augmentation=augment.evaluation(16))
    method(pictures(64))
    assert method.metrics["diagonal"].item() == pytest.approx(1, abs=0.01)


def test_the_chance_level_knows_scale_and_batch():
    expected = diagnostics.chance_loss("barlow_twins", batch_size=32, dim=8, lambda_param=0.1)
    assert barlow(lambda_param=0.1, scale=0.1).chance_loss(32) == pytest.approx(0.1 * expected)


def test_a_scale_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="scale"):
        barlow(scale=0.0)


# --- both -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [byol, barlow])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_ends_exactly_as_an_uninterrupted_one(make, precision, tmp_path):
    options = {"epochs": 4, "batch_size": 16, "precision": precision, "progress": False, "look_every": 2}
    options["lr_scales"] = {"predictor": 5.0} if make is byol else None
    whole, first, second = make(), make(), make(seed=1)
    expected = training.pretrain(whole, image_set(), **options)
    training.pretrain(first, image_set(), checkpoint=tmp_path / "run.pt", stop_after=2, **options)
    found = training.pretrain(second, image_set(), checkpoint=tmp_path / "run.pt", **options)
    assert same_weights(second, whole) and without_seconds(found) == without_seconds(expected)
    assert {"projection_std", "target_similarity"} <= set(found.final) if make is byol else "diagonal" in found.final


@pytest.mark.parametrize("make", [byol, barlow])
def test_training_on_hostile_images_never_ends_in_a_nan_that_nobody_reported(make):
    for images in (torch.zeros(32, 3, 8, 8, dtype=torch.uint8), torch.full((32, 3, 8, 8), 255, dtype=torch.uint8)):
        method = make(augmentation=augment.evaluation(8))
        history = training.pretrain(method, image_set(unlabeled=images), epochs=3, batch_size=16, precision="fp32", progress=False)
        finite = all(p.isfinite().all() for p in method.parameters())
        assert finite or history.stopped


@pytest.mark.parametrize("make", [byol, barlow])
def test_a_copy_computes_the_same(make):
    method = make(augmentation=augment.evaluation(16)).eval()
    assert torch.equal(method(pictures()), copy.deepcopy(method)(pictures()))
