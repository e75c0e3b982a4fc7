"""Encoders: shapes, sizes, feature maps, torchvision's own networks, recipes, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from sslcourse.models import encoders

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (15, 8), (33, 47), (96, 96)])
def test_any_size_from_8_pixels_on(height, width):
    encoder, x = encoders.resnet9(4).eval(), torch.randn(2, 3, height, width)
    features = encoder(x)
    assert features.shape == (2, encoder.feature_dim) and features.isfinite().all()
    assert torch.equal(features, encoder.blocks(x).amax((2, 3)))  # a feature is the largest value of its map
    maps = encoder.feature_maps(x)
    assert torch.equal(maps[2], maps[1] + encoder.blocks[2].body(maps[1]))  # a residual adds its input


@pytest.fixture(scope="module")
def networks():
    """One of each, in evaluation mode, with statistics that are not the first ones."""
    torch.manual_seed(0)
    made = {"resnet9": encoders.resnet9(8), "resnet18": encoders.resnet18(), "resnet50": encoders.resnet50(), "alexnet": encoders.alexnet()}
    for network in made.values():
        network(torch.randn(4, 3, 16, 16))
        network.eval()
    return made


@pytest.mark.parametrize(("name", "dim", "millions"), [("resnet18", 512, 11.17), ("resnet50", 2048, 23.50), ("alexnet", 256, 2.25)])
def test_dimensions_and_parameters(networks, name, dim, millions):
    assert networks[name].feature_dim == dim
    assert round(encoders.count_parameters(networks[name]) / 1e6, 2) == millions


@pytest.mark.parametrize(("options", "size", "sides"), [
    ({}, 32, [32, 32, 16, 8, 4]), ({"max_pool": True}, 64, [32, 32, 16, 8, 4]), ({"small_images": False}, 96, [24, 24, 12, 6, 3]),
])  # fmt: skip
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


ALL = pytest.mark.parametrize("name", ["resnet9", "resnet18", "resnet50", "alexnet"])


@ALL
@torch.no_grad()
def test_maps_are_those_of_the_blocks_and_the_last_is_pooled(networks, name):
    network, x = networks[name], torch.randn(2, 3, 16, 16)
    maps = network.feature_maps(x)
    assert len(maps) == len(network.blocks) and len(network.feature_maps(x, blocks=2)) == 2
    for k, found in enumerate(maps):  # not written over by later blocks
        assert torch.equal(found, network.blocks[: k + 1](x))
    assert torch.equal(network.pool(maps[-1]), network(x))


@ALL
@torch.no_grad()
def test_an_image_does_not_see_its_neighbours_and_channels_last_is_the_same_network(networks, name):
    network, x = copy.deepcopy(networks[name]), torch.randn(5, 3, 16, 16)
    expected = network(x)
    torch.testing.assert_close(network(x[3:4]), expected[3:4], rtol=1e-3, atol=1e-4)
    found = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("made", "recipe"), [
    (lambda: encoders.resnet9(), {"name": "resnet9", "width": 64}),
    (lambda: encoders.resnet18(), {"name": "resnet18", "small_images": True, "max_pool": False}),
    (lambda: encoders.resnet18(False), {"name": "resnet18", "small_images": False, "max_pool": True}),
    (lambda: encoders.resnet50(True, True), {"name": "resnet50", "small_images": True, "max_pool": True}),
    (lambda: encoders.alexnet(False), {"name": "alexnet", "small_images": False}),
])  # fmt: skip
def test_an_encoder_says_how_it_was_made(made, recipe):
    with torch.device("meta"):
        encoder = copy.deepcopy(made())
        twin = encoders.encoder_from_recipe(encoder.recipe)
    assert encoder.recipe == twin.recipe == recipe and "recipe" not in encoder.state_dict()
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}


@pytest.mark.parametrize(("batch", "named"), [
    *((torch.randn(shape), "8 pixels or more") for shape in [(2, 3, 7, 32), (2, 3, 32, 7)]),
    *((torch.zeros(shape), r"\(N, 3, H, W\)") for shape in [(3, 16, 16), (2, 1, 16, 16)]),
    (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uint8"),
])  # fmt: skip
def test_other_batches_and_widths_are_refused(batch, named):
    encoder = encoders.resnet9(4)
    for ask in (encoder, encoder.feature_maps):
        with pytest.raises(ValueError, match=named):
            ask(batch)
    for width in (0, 2.5):
        with pytest.raises(ValueError, match="width"):
            encoders.resnet9(width)
