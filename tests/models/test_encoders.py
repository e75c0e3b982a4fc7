"""Encoders: shapes, sizes, feature maps, torchvision's own networks, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from sslcourse.models import encoders

pytestmark = pytest.mark.usefixtures("one_thread")


def parameters_of_resnet9(w):
    """Weights of eight 3×3 convolutions without bias, and two numbers a channel for each batch normalisation."""
    channels = [(3, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w), (8 * w, 8 * w)]
    return sum(9 * a * b + 2 * b for a, b in channels)


@pytest.mark.parametrize("width", [1, 4, 16, 64])
def test_number_of_parameters(width):
    encoder = encoders.resnet9(width)
    assert encoders.count_parameters(encoder) == parameters_of_resnet9(width)
    assert encoder.feature_dim == 8 * width


def test_the_sizes_that_the_docstring_states():
    assert round(encoders.count_parameters(encoders.resnet9(64)) / 1e6, 1) == 6.6
    assert round(encoders.count_parameters(encoders.resnet9(16)) / 1e6, 1) == 0.4


def test_frozen_parameters_are_not_counted():
    encoder = encoders.resnet9(4)
    encoder.blocks[0].requires_grad_(False)
    assert encoders.count_parameters(encoder) == parameters_of_resnet9(4) - (9 * 3 * 4 + 2 * 4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 9), (15, 8), (32, 32), (33, 47), (96, 96)])
def test_any_size_from_8_pixels_on(height, width):
    encoder = encoders.resnet9(4).eval()
    features = encoder(torch.randn(2, 3, height, width))
    assert features.shape == (2, encoder.feature_dim) and features.isfinite().all()


def test_a_feature_is_the_largest_value_of_its_map():
    encoder, x = encoders.resnet9(4).eval(), torch.randn(3, 3, 24, 24)
    assert torch.equal(encoder(x), encoder.blocks(x).amax((2, 3)))


def test_a_residual_adds_its_input():
    block = encoders.Residual(4).eval()
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x) - x, block.body(x), rtol=0, atol=1e-6)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.zeros_(norm.weight)
    assert torch.equal(block(x), x)


# --- ResNet-18 and ResNet-50 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    """One of each, in evaluation mode, with statistics that are not the first ones."""
    torch.manual_seed(0)
    made = {"resnet18": encoders.resnet18(), "resnet50": encoders.resnet50()}
    for network in made.values():
        network(torch.randn(4, 3, 16, 16))
        network.eval()
    return made


@pytest.mark.parametrize(("name", "dim", "millions"), [("resnet18", 512, 11.17), ("resnet50", 2048, 23.50)])
def test_dimensions_and_parameters_of_resnets(networks, name, dim, millions):
    network = networks[name]
    assert network.feature_dim == dim
    assert round(encoders.count_parameters(network) / 1e6, 2) == millions
    with torch.no_grad():
        found = network(torch.randn(2, 3, 16, 16))
    assert found.shape == (2, dim) and found.isfinite().all()


@pytest.mark.parametrize(
    ("options", "size", "sides"),
    [
        ({}, 32, [32, 32, 16, 8, 4]),
        ({"max_pool": True}, 64, [32, 32, 16, 8, 4]),
        ({"small_images": False}, 96, [24, 24, 12, 6, 3]),
        ({"small_images": False, "max_pool": False}, 64, [32, 32, 16, 8, 4]),
    ],
)
def test_sides_of_the_maps_with_each_stem(options, size, sides):
    network = encoders.resnet18(**options).eval()
    with torch.no_grad():
        maps = network.feature_maps(torch.randn(1, 3, size, size))
    assert [tuple(m.shape) for m in maps] == [(1, c, s, s) for c, s in zip((64, 64, 128, 256, 512), sides, strict=True)]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_large_stem_is_torchvisions_own_network(name):
    torch.manual_seed(0)
    theirs = getattr(resnet, name)(weights=None)
    ours = getattr(encoders, name)(small_images=False)
    weights = [value for key, value in theirs.state_dict().items() if not key.startswith("fc.")]
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    theirs.fc = nn.Identity()
    x = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)  # in training mode
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)  # and with the statistics that it left


def test_two_encoders_do_not_share_weights():
    torch.manual_seed(0)
    first, second = encoders.resnet18(), encoders.resnet18()
    assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in second.parameters()}
    assert not torch.equal(first.blocks[0][0].weight, second.blocks[0][0].weight)


# --- all of them ----------------------------------------------------------------------------------------------------------------------


def each(networks):
    torch.manual_seed(1)
    return [encoders.resnet9(8).eval(), *networks.values()]


def test_the_last_map_is_what_is_pooled(networks):
    x = torch.randn(2, 3, 16, 16)
    for network in each(networks):
        with torch.no_grad():
            maps = network.feature_maps(x)
            assert torch.equal(network.pool(maps[-1]), network(x))
        assert len(maps) == len(network.blocks)


def test_maps_are_not_written_over_by_later_blocks(networks):
    x = torch.randn(2, 3, 16, 16)
    for network in each(networks):
        with torch.no_grad():
            for k, found in enumerate(network.feature_maps(x)):
                assert torch.equal(found, network.blocks[: k + 1](x))


def test_an_image_does_not_see_its_neighbours(networks):
    x = torch.randn(5, 3, 16, 16)
    for network in each(networks):
        with torch.no_grad():
            torch.testing.assert_close(network(x)[3:4], network(x[3:4]), rtol=1e-3, atol=1e-4)


def test_in_training_it_does():
    torch.manual_seed(1)
    network, x = encoders.resnet9(8), torch.randn(5, 3, 16, 16)
    assert (network(x)[:3] - network(x[:3])).abs().max() > 1e-2


def test_channels_last_is_the_same_network(networks):
    x = torch.randn(2, 3, 16, 16)
    for network in each(networks):
        with torch.no_grad():
            expected = network(x)
            found = encoders.to_channels_last(network)(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("made", "recipe"),
    [
        (lambda: encoders.resnet9(4), {"name": "resnet9", "width": 4}),
        (lambda: encoders.resnet9(), {"name": "resnet9", "width": 64}),
        (lambda: encoders.resnet18(), {"name": "resnet18", "small_images": True, "max_pool": False}),
        (lambda: encoders.resnet18(False), {"name": "resnet18", "small_images": False, "max_pool": True}),
        (lambda: encoders.resnet50(True, True), {"name": "resnet50", "small_images": True, "max_pool": True}),
        (lambda: encoders.alexnet(False), {"name": "alexnet", "small_images": False}),
    ],
)
def test_an_encoder_says_how_it_was_made(made, recipe):
    with torch.device("meta"):
        encoder = made()
    assert encoder.recipe == recipe
    again = dict(recipe)
    with torch.device("meta"):
        twin = getattr(encoders, again.pop("name"))(**again)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}


def test_the_recipe_goes_with_copies_and_belongs_to_one_encoder():
    encoder = encoders.resnet9(4)
    twin = copy.deepcopy(encoder).to(torch.float64)
    assert twin.recipe == encoder.recipe and twin.recipe is not encoder.recipe
    assert encoders.ResNet9(4).recipe is None and "recipe" not in encoder.state_dict()


# --- what is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, 16, 16)])
def test_maps_are_refused_as_features_are(batch):
    with pytest.raises(ValueError) as for_maps:
        encoders.resnet9(4).feature_maps(batch)
    with pytest.raises(ValueError) as for_features:
        encoders.resnet9(4)(batch)
    assert str(for_maps.value) == str(for_features.value)


@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (2, 3, 32, 7), (2, 3, 4, 32)])
def test_too_small_images_are_refused_with_a_sentence(shape):
    with pytest.raises(ValueError, match="8 pixels or more a side, not"):
        encoders.resnet9(4)(torch.randn(shape))


@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(3, 16, 16), torch.zeros(2, 1, 16, 16)])
def test_other_batches_are_refused_with_a_sentence(batch):
    with pytest.raises(ValueError, match=r"normalised float images \(N, 3, H, W\)"):
        encoders.resnet9(4)(batch)


@pytest.mark.parametrize("width", [0, -1, 2.5])
def test_an_impossible_width_is_refused(width):
    with pytest.raises(ValueError, match=f"width.*not {width}"):
        encoders.resnet9(width)
