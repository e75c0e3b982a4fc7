"""The classifier, the heads and the methods: shapes, first losses, gradients, views, batch statistics, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslcourse import augment, losses, models

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the classifier -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_first_loss_is_that_of_guessing(classes):
    torch.manual_seed(0)
    model = models.Classifier(models.resnet9(8), classes)
    loss = F.cross_entropy(model(torch.randn(64, 3, 32, 32)), torch.randint(0, classes, (64,)))
    assert abs(loss.item() - math.log(classes)) < 0.03


def test_the_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    model = models.Classifier(models.resnet9(4), 5)
    F.cross_entropy(model(torch.randn(16, 3, 16, 16)), torch.randint(0, 5, (16,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_dropout_is_on_in_training_only():
    model, x = models.Classifier(models.resnet9(4), 5, dropout=0.5), torch.randn(4, 3, 16, 16)
    model.encoder.eval()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_an_image_does_not_see_its_neighbours_in_evaluation():
    model, x = models.Classifier(models.resnet9(4), 5).eval(), torch.randn(6, 3, 16, 16)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]), rtol=1e-4, atol=1e-7)


def test_channels_last_changes_no_value():
    torch.manual_seed(0)
    model, x = models.Classifier(models.resnet9(8), 5).eval(), torch.randn(4, 3, 32, 32)
    before = model(x)
    assert models.to_channels_last(model) is model
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), before, rtol=1e-3, atol=1e-6)


def test_an_impossible_classifier_is_refused():
    with pytest.raises(ValueError, match="num_classes.*not 1"):
        models.Classifier(models.resnet9(4), 1)
    with pytest.raises(ValueError, match="feature_dim.*Flatten has none"):
        models.Classifier(nn.Flatten(), 10)


# --- heads ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [models.ProjectionHead, models.PredictionHead])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_and_shapes_of_heads(head, layers):
    made = head(12, 20, 7, layers=layers)
    widths = [(m.in_features, m.out_features) for m in made if isinstance(m, nn.Linear)]
    assert widths == {1: [(12, 7)], 2: [(12, 20), (20, 7)], 3: [(12, 20), (20, 20), (20, 7)]}[layers]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in made) == sum(isinstance(m, nn.ReLU) for m in made) == layers - 1
    assert made(torch.randn(5, 12)).shape == (5, 7)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("last_norm", [True, False])
def test_a_linear_layer_has_a_bias_where_no_normalisation_takes_it_away(layers, last_norm):
    linear = [m for m in models.ProjectionHead(4, 6, 3, layers=layers, last_norm=last_norm) if isinstance(m, nn.Linear)]
    assert [m.bias is not None for m in linear] == [False] * (layers - 1) + [not last_norm]


def test_a_last_normalisation_gives_mean_0_and_deviation_1():
    torch.manual_seed(0)
    head = models.ProjectionHead(12, 20, 7, last_norm=True)
    z = head(5 + 3 * torch.randn(64, 12))
    torch.testing.assert_close(z.mean(0), torch.zeros(7), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(7), rtol=0, atol=1e-2)
    assert not list(head[-1].parameters())


@pytest.mark.parametrize("name", ["in_dim", "hidden_dim", "out_dim", "layers"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_impossible_heads_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive whole number, not {value}"):
        models.ProjectionHead(**{"in_dim": 4, "hidden_dim": 4, "out_dim": 4, name: value})


# --- what methods share ---------------------------------------------------------------------------------------------------------------


def pictures(n=16, size=16, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def rotation(seed=0, **options):
    torch.manual_seed(seed)
    return models.Rotation(models.resnet9(4), **options)


def simclr(seed=0, **options):
    torch.manual_seed(seed)
    return models.SimCLR(models.resnet9(4), **{"hidden_dim": 16, "out_dim": 8, **options})


METHODS = pytest.mark.parametrize("make", [rotation, simclr])


@METHODS
def test_the_gradient_reaches_every_parameter_of_a_method(make):
    method = make()
    loss = method(pictures())
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@METHODS
def test_metrics_are_detached_scalars_of_the_last_images(make):
    method = make()
    assert method.metrics == {}
    method(pictures(seed=1))
    before = dict(method.metrics)
    method(pictures(seed=2))
    assert before.keys() == method.metrics.keys() and len(before) == 1
    for name, value in method.metrics.items():
        assert value.shape == () and not value.requires_grad and -1 <= value <= 1
        assert value is not before[name]


@METHODS
def test_the_same_seed_gives_the_same_loss(make):
    values = []
    for seed in (3, 3, 4):
        method = make()
        torch.manual_seed(seed)
        values.append(method(pictures()).item())
    assert values[0] == values[1] != values[2]


@METHODS
def test_bfloat16_arithmetic_gives_about_the_same_loss(make):
    values = []
    for enabled in (False, True):
        method = make()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = method(pictures())
        loss.backward()
        assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in method.parameters())
        values.append(loss.item())
    assert values[1] == pytest.approx(values[0], abs=0.1)


@METHODS
def test_the_state_is_weights_and_statistics_whatever_the_augmentation(make):
    plain, used, other = make(), make(), make(seed=1, augmentation=augment.evaluation(24))
    assert plain.augmentation is None
    names = set(plain.state_dict())
    used(pictures())
    assert set(used.state_dict()) == set(other.state_dict()) == names
    assert not any("augmentation" in name for name in names)
    other.load_state_dict(used.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in used.state_dict().items())


@METHODS
def test_a_method_settles_on_its_augmentation_once(make):
    method = make()
    method.prepare(16)
    settled = method.augmentation
    method(pictures())
    method.prepare(32)
    assert method.augmentation is settled and settled.size == 16
    given = augment.weak(12)
    method = make(augmentation=given)
    method(pictures())
    assert method.augmentation is given


@METHODS
def test_a_method_needs_an_encoder_that_says_its_width(make):
    with pytest.raises(ValueError, match="feature_dim.*Flatten has none"):
        type(make())(nn.Flatten())


@METHODS
def test_a_method_takes_uint8_images(make):
    with pytest.raises(ValueError, match="uint8 images"):
        make()(torch.zeros(4, 3, 16, 16))


# --- rotation -------------------------------------------------------------------------------------------------------------------------


def test_quarter_turns_against_moving_every_pixel():
    x = torch.randn(3, 3, 5, 5)
    turned, turns = models.four_rotations(x)
    assert turns.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    place = torch.arange(5)
    once = x[:, :, place.view(1, 5), 4 - place.view(5, 1)]  # counter-clockwise: row i is column 4 − i, read from the top
    twice = x.flip(2, 3)
    assert torch.equal(turned, torch.cat([x, once, twice, once.flip(2, 3)]))
    for k in range(4):
        assert torch.equal(turned[turns == k], torch.rot90(x, k, (2, 3)))


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 8, 9), torch.zeros(3, 8, 8), [torch.zeros(2, 3, 8, 8)] * 2])
def test_only_squares_are_turned(wrong):
    with pytest.raises(ValueError, match=r"square images \(N, 3, H, H\), not"):
        models.four_rotations(wrong)


@pytest.mark.parametrize("all_rotations", [True, False])
def test_rotation_begins_at_chance(all_rotations):
    method = rotation(all_rotations=all_rotations)
    assert method(pictures(32)).item() == pytest.approx(math.log(4), abs=0.05)
    assert method.chance_loss(32) == pytest.approx(math.log(4))


class Watched(nn.Module):
    """An encoder that keeps what it was given; its features are the mean of each channel."""

    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return x.mean((2, 3)) * self.unused


@pytest.mark.parametrize("all_rotations", [True, False])
def test_rotation_shows_every_image_by_all_turns_or_by_one(all_rotations):
    torch.manual_seed(0)
    method = models.Rotation(Watched(), augment.evaluation(16), all_rotations=all_rotations)
    images = pictures(40)
    method(images)
    (seen,) = method.encoder.seen
    turned, turns = models.four_rotations(augment.evaluation(16)(images))
    if all_rotations:
        assert torch.equal(seen, turned)
        return
    assert len(seen) == 40
    chosen = [next(k for k in range(4) if torch.equal(seen[i], turned[turns == k][i])) for i in range(40)]
    assert set(chosen) == {0, 1, 2, 3}


def test_rotation_tells_how_often_it_was_right():
    method = models.Rotation(Watched(), augment.evaluation(16))
    nn.init.constant_(method.head.bias[2:3], 9.0)  # it always says "two turns"
    loss = method(pictures())
    assert method.metrics["rotation_accuracy"] == 0.25
    assert loss.item() == pytest.approx(F.cross_entropy(torch.tensor([[0.0, 0, 9, 0]] * 4), torch.arange(4)).item(), abs=0.02)


def test_rotation_takes_one_view():
    with pytest.raises(ValueError, match="of two views"):
        rotation(augmentation=augment.byol_views(16))(pictures())


# --- SimCLR ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 16, 64])
def test_simclr_begins_at_chance_when_the_temperature_is_large(n):
    method = simclr(temperature=100.0)
    assert method(pictures(n)).item() == pytest.approx(math.log(2 * n - 1), abs=0.02)
    assert method.chance_loss(n) == pytest.approx(math.log(2 * n - 1))


def statistics(method):
    return [
        (m.running_mean.clone(), int(m.num_batches_tracked)) for m in method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]


def test_views_encoded_together_share_their_batch_statistics():
    images, views = pictures(), augment.evaluation(16)
    together = simclr(augmentation=augment.TwoViews(views, augment.evaluation(16, mean=(0.1, 0.2, 0.3))))
    reference = simclr()
    together(images)
    reference.project(torch.cat([views(images), augment.evaluation(16, mean=(0.1, 0.2, 0.3))(images)]))
    for (found, updates), (expected, _) in zip(statistics(together), statistics(reference), strict=True):
        assert updates == 1
        torch.testing.assert_close(found, expected)


def test_views_encoded_apart_have_statistics_of_their_own():
    images, views = pictures(), [augment.evaluation(16), augment.evaluation(16, mean=(0.1, 0.2, 0.3))]
    apart, reference = simclr(views_together=False, augmentation=augment.TwoViews(*views)), simclr()
    loss = apart(images)
    z = [reference.project(view(images)) for view in views]
    for (found, updates), (expected, _) in zip(statistics(apart), statistics(reference), strict=True):
        assert updates == 2
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(loss, losses.nt_xent(*z, 0.2))
    assert apart.metrics["positive_similarity"].item() == pytest.approx(F.cosine_similarity(*z).mean().item(), abs=1e-6)


def test_the_loss_of_simclr_is_nt_xent_of_its_views():
    images, view = pictures(), augment.evaluation(16)
    method, reference = simclr(augmentation=view, temperature=0.3), simclr()
    z = reference.project(torch.cat([view(images), view(images)]))
    torch.testing.assert_close(method(images), losses.nt_xent(*z.chunk(2), 0.3))
    assert method.metrics["positive_similarity"].item() == pytest.approx(1)  # no randomness, so both views are the same


def test_views_of_one_augmentation_are_drawn_apart():
    first, second = simclr(augmentation=augment.simclr(16)).two_views(pictures())
    assert first.shape == second.shape == (16, 3, 16, 16)
    assert all((a - b).abs().max() > 0.01 for a, b in zip(first, second, strict=True))


def test_two_augmentations_make_a_view_each():
    pair = augment.TwoViews(augment.evaluation(16), augment.evaluation(16, mean=(0, 0, 0)))
    first, second = simclr(augmentation=pair).two_views(pictures())
    torch.testing.assert_close(second - first, torch.full_like(first, 2.0))  # 0.5 / 0.25


def test_a_method_whose_own_augmentation_makes_two_views():
    class Asymmetric(models.SimCLR):
        def default_augmentation(self, size):
            return augment.byol_views(size)

    torch.manual_seed(0)
    method = Asymmetric(models.resnet9(4), hidden_dim=16, out_dim=8)
    assert method(pictures()).isfinite() and isinstance(method.augmentation, augment.TwoViews)


def test_simclr_needs_other_images():
    with pytest.raises(ValueError, match="at least 2 images"):
        simclr(last_norm=False).eval()(pictures(1))
