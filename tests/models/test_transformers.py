"""The Vision Transformer: its parts against torch's own, positions, maps, attention; networks from elsewhere as encoders."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import coloured, known_set
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, get_model_weights, mobilenet_v3_small, resnet18

from sslcourse import augment, evaluation, models
from sslcourse.errors import CourseError
from sslcourse.models.encoders import encoder_from_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = {"name": "vit", "patch": 4, "width": 24, "depth": 3, "heads": 2, "image_size": 16, "pool": "mean"}


@pytest.fixture(scope="module")
def vit():
    """With biases and scales that are not the first ones."""
    torch.manual_seed(0)
    made = encoder_from_recipe(RECIPE)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made.eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def torchs_own(block):
    """torch's layer with the weights of ours."""
    layer = nn.TransformerEncoderLayer(24, 2, 96, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    ours, a = block.state_dict(), block.attention
    attention = {"in_proj_weight": a.qkv.weight, "in_proj_bias": a.qkv.bias, "out_proj.weight": a.out.weight, "out_proj.bias": a.out.bias}
    state = {f"self_attn.{name}": value for name, value in attention.items()}
    others = {"norm1": "norm1", "norm2": "norm2", "linear1": "mlp.0", "linear2": "mlp.2"}
    state |= {f"{theirs}.{kind}": ours[f"{name}.{kind}"] for theirs, name in others.items() for kind in ("weight", "bias")}
    layer.load_state_dict(state)
    return layer


def test_the_network_is_torchs_layers_on_patches_with_positions_and_a_class_token(vit, x):
    patches = F.unfold(x, 4, stride=4).transpose(1, 2)  # (3, 24, 48), row by row
    tokens = F.linear(patches, vit.patches_to_tokens.weight.flatten(1), vit.patches_to_tokens.bias)
    tokens = torch.cat([vit.class_token.expand(3, 1, 24), tokens + positions_by_hand(24, 4, 6, 4)], 1)
    for block, found in zip(vit.blocks, vit.feature_maps(x), strict=True):
        weights = torchs_own(block).self_attn(*[block.norm1(tokens)] * 3, average_attn_weights=False)[1]
        tokens = torchs_own(block)(tokens)
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), vit.norm(tokens)[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vit(x), vit.norm(tokens)[:, 1:].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vit.attention(x), weights[:, :, 0, 1:].unflatten(2, (4, 6)), rtol=1e-4, atol=1e-6)
    of_class = encoder_from_recipe(RECIPE | {"pool": "class"})
    of_class.load_state_dict(vit.state_dict())
    torch.testing.assert_close(of_class(x), vit.norm(tokens)[:, 0], rtol=1e-4, atol=1e-5)


def positions_by_hand(dim, height, width, side):
    table = np.zeros((height * width, dim))
    for (row, column), numbers in zip(np.ndindex(height, width), table, strict=True):
        places = ((row + 0.5) * side / height - 0.5, (column + 0.5) * side / width - 0.5)
        for k in range(dim // 4):
            for half, place in enumerate(places):
                angle = place / 10_000 ** (k / (dim // 4))
                numbers[half * dim // 2 + k], numbers[half * dim // 2 + dim // 4 + k] = math.sin(angle), math.cos(angle)
    return torch.from_numpy(table).float()


def test_positions_are_whole_on_the_own_grid_and_stretched_on_others():
    for grid in ((8, 8), (4, 4), (3, 5)):
        torch.testing.assert_close(models.sine_cosine_positions(16, *grid, 8), positions_by_hand(16, *grid, 8), rtol=0, atol=1e-5)
    own = models.sine_cosine_positions(16, 8, 8, 8)
    torch.testing.assert_close(own[2 * 8 + 5, [0, 8]], torch.tensor([2.0, 5.0]).sin())  # row 2, column 5


def test_features_of_a_block_are_means_and_the_last_are_the_output(vit):
    images = coloured(6, 0, size=16)[0]
    maps = vit.feature_maps(augment.evaluation(16)(images), 2)
    assert [tuple(each.shape) for each in maps] == [(6, 24, 4, 4)] * 2
    torch.testing.assert_close(evaluation.features(vit, images, block=2), maps[1].detach().mean((2, 3)))
    torch.testing.assert_close(evaluation.features(vit, images, block=-1), evaluation.features(vit, images))
    assert evaluation.features(vit, images, size=8).shape == evaluation.features(vit, images, size=64).shape == (6, 24)


@pytest.mark.parametrize(("make", "named"), [
    (lambda: models.vit(width=26, heads=2), "multiple of 4"), (lambda: models.vit(heads=5), "5 heads"),
    (lambda: models.vit(depth=0), "depth"),
    (lambda: encoder_from_recipe(RECIPE | {"depth": 10**9}), "at most 100"), (lambda: models.vit(pool="max"), "'mean'"),
    (lambda: encoder_from_recipe(RECIPE | {"pool": ["mean"]}), "pool"), (lambda: encoder_from_recipe(RECIPE | {"width": "24"}), "number"),
    (lambda: models.vit(width=8, heads=1)(torch.zeros(1, 3, 18, 16)), "multiples of the patch"),
    (lambda: evaluation.features(models.Backbone(nn.Flatten(), 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), block=1), "block is 1"),
    (lambda: models.Backbone(nn.Flatten(2), 8), "Flatten makes neither features"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(("kind", "head", "dim"), [
    (resnet18, "fc", 512), (mobilenet_v3_small, "classifier.3", 1024), (lambda: VisionTransformer(32, 16, 1, 2, 16, 32), "heads.head", 16),
])  # fmt: skip
@torch.no_grad()
def test_a_network_of_torchvision_gives_what_its_last_layer_gets(kind, head, dim):
    torch.manual_seed(0)
    network, seen = kind().eval(), []
    network.get_submodule(head).register_forward_hook(lambda module, given, made: seen.append(given[0]))
    backbone = models.Backbone(network, 32).eval()
    images = torch.rand(2, 3, 32, 32)
    network((images - torch.tensor(models.IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(models.IMAGENET_STD).view(3, 1, 1))
    assert backbone.feature_dim == dim and isinstance(network.get_submodule(head), nn.Linear)  # which keeps its own
    torch.testing.assert_close(backbone((images - 0.5) / 0.25), seen[0], rtol=1e-3, atol=1e-4)


class LikeTimm(nn.Module):
    """The attributes of a network of timm."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 10)

    def forward_features(self, x):
        return self.stem(x)

    def forward_head(self, maps, pre_logits=False):
        return maps.mean((2, 3)) if pre_logits else self.head(maps.mean((2, 3)))


@pytest.mark.parametrize("network", [LikeTimm(), nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.ReLU())], ids=["timm", "maps"])
def test_a_backbone_is_measured_like_any_encoder(network):
    images = known_set(*coloured(30, 0), *coloured(30, 1), *coloured(30, 2))
    backbone = models.Backbone(network, 16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    found = evaluation.feature_set(backbone, images)
    x = F.interpolate(images.train_images / 255, (16, 16), mode="bicubic", antialias=True) - torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)
    x = x / torch.tensor((0.5, 0.6, 0.7)).view(3, 1, 1)
    x = network.forward_features(x) if isinstance(network, LikeTimm) else network(x)
    torch.testing.assert_close(found.train, x.mean((2, 3)).detach(), rtol=1e-3, atol=1e-4)
    assert evaluation.linear_probe(found).top1 > 0.9 and evaluation.knn_accuracy(found).top1 > 0.9
    tuned = evaluation.fine_tune(backbone, images, 1, progress=False)
    assert tuned.model.encoder is not backbone and tuned.n == 30


def test_weights_of_torchvision_are_taken_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    theirs, weights = resnet18().eval(), get_model_weights("resnet18").DEFAULT
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2])
    backbone, origin = models.pretrained_backbone("resnet18")
    assert backbone.size == 224 and not backbone.training and "torchvision" in origin and "ImageNet" in origin
    torch.testing.assert_close(backbone.network.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


@pytest.mark.parametrize(("fails", "named"), [
    (ModuleNotFoundError("timm"), "pip install timm"), (RuntimeError("Unknown model (vit_huger)"), "Unknown model.*Check the name"),
    (OSError("no route"), "no route.*network connection"),
])  # fmt: skip
def test_a_network_that_cannot_be_had_says_what_to_do(fails, named, monkeypatch):
    def create_model(*args, **options):
        raise fails

    missing = isinstance(fails, ImportError)
    monkeypatch.setitem(sys.modules, "timm", None if missing else SimpleNamespace(create_model=create_model))
    with pytest.raises(CourseError, match=f"vit_huger.*{named}"):
        models.pretrained_backbone("vit_huger")


def test_a_large_network_of_timm_is_read_at_224_pixels(monkeypatch):
    class Large(LikeTimm):
        pretrained_cfg = {"input_size": (3, 518, 518), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "tag": "lvd142m"}

        def set_input_size(self, img_size):
            self.asked = img_size

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=lambda name, pretrained, num_classes: Large()))
    backbone, origin = models.pretrained_backbone("vit_small_patch14_dinov2")
    assert backbone.size == backbone.network.asked == 224 and "lvd142m" in origin
    torch.testing.assert_close(backbone.std.flatten(), torch.tensor((0.5, 0.6, 0.7)))
