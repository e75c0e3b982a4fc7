"""Encoders: normalised images, float (N, 3, H, W), to features (N, feature_dim)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn


def conv_block(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    """3×3 convolution, batch normalisation, ReLU, and where asked a 2×2 max-pool that halves the sides."""
    layers = [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *[nn.MaxPool2d(2)] * pool)


class Residual(nn.Module):
    """Two conv blocks and a shortcut around them: x + f(x)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(conv_block(channels, channels), conv_block(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Encoder(nn.Module):
    """Blocks in a row, and the pooling that makes one vector of the last feature map.

    recipe: the name of the function below that makes its like, and the arguments, so that stored weights find their network again.
    pool: (N, channels, h, w) -> (N, feature_dim); the mean of each map unless another is given. pool_maps: the same for the map of any
    block, where `evaluation.features` is asked for one: the largest value of each channel, unless a kind of encoder says otherwise.
    Raises ValueError for anything but normalised float images (N, 3, H, W) of at least `smallest` pixels a side.
    """

    pool_maps = staticmethod(partial(torch.amax, dim=(2, 3)))

    def __init__(self, recipe: dict, blocks: Sequence[nn.Module], feature_dim: int, smallest: int = 8, pool: Callable | None = None):
        super().__init__()
        self.recipe, self.feature_dim, self.smallest = recipe, feature_dim, smallest
        self.pool = pool or partial(torch.mean, dim=(2, 3))
        self.blocks = nn.Sequential(*blocks)

    def feature_maps(self, x: Tensor, blocks: int | None = None) -> list[Tensor]:
        """What each of the first `blocks` blocks (None: all) makes of the images: a list of (N, channels, h, w)."""
        self._check(x)
        maps = []
        for block in self.blocks[:blocks]:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return self.pool(self.blocks(x))

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"An encoder takes normalised float images (N, 3, H, W); this batch is {x.dtype} {tuple(x.shape)}.")
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(f"This encoder needs images of {self.smallest} pixels or more a side, not {tuple(x.shape[2:])}.")


def resnet9(width: int = 64) -> Encoder:
    """A small residual network: images (N, 3, H, W) of 8 pixels or more -> (N, 8·width). From David Page's DAWNBench entry (2018).

    width: channels of the first convolution; 64 has 6.6 million parameters, 16 has 0.4 million.
    """
    if int(width) != width or width < 1:
        raise ValueError(f"width is the number of channels of the first convolution and must be a positive whole number, not {width}.")
    w = int(width)
    blocks = [
        conv_block(3, w),  # (N, w, H, W)
        conv_block(w, 2 * w, pool=True),  # (N, 2w, H/2, W/2)
        Residual(2 * w),
        conv_block(2 * w, 4 * w, pool=True),  # (N, 4w, H/4, W/4)
        conv_block(4 * w, 8 * w, pool=True),  # (N, 8w, H/8, W/8)
        Residual(8 * w),
    ]
    return Encoder({"name": "resnet9", "width": w}, blocks, 8 * w, pool=nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()))


def resnet18(small_images: bool = True, max_pool: bool | None = None) -> Encoder:
    """ResNet-18 (He et al. 2016): images (N, 3, H, W) -> (N, 512), 11.2 million parameters.

    small_images: a first convolution of 3×3 with stride 1 in place of 7×7 with stride 2. max_pool: whether a 3×3 max-pool that halves
    the sides follows; None: only after the large one. Small without pooling is for 32 pixels (SimCLR, appendix B.9), with it for 64.
    """
    return _resnet("resnet18", small_images, max_pool)


def resnet50(small_images: bool = True, max_pool: bool | None = None) -> Encoder:
    """ResNet-50 (He et al. 2016): images (N, 3, H, W) -> (N, 2048), 23.5 million parameters. Arguments as in `resnet18`."""
    return _resnet("resnet50", small_images, max_pool)


def _resnet(name: str, small_images: bool, max_pool: bool | None) -> Encoder:
    """torchvision's network of this name without its classifier: a stem and four stages."""
    from torchvision import models  # here, because the import takes more than a second

    max_pool = not small_images if max_pool is None else max_pool
    network = getattr(models, name)(weights=None)
    if small_images:  # the large stem would shrink 32 pixels to 8 before the first block sees them
        network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    stem = [network.conv1, network.bn1, network.relu] + ([network.maxpool] if max_pool else [])
    blocks = [nn.Sequential(*stem), network.layer1, network.layer2, network.layer3, network.layer4]
    return Encoder({"name": name, "small_images": bool(small_images), "max_pool": bool(max_pool)}, blocks, network.fc.in_features)


def alexnet(small_images: bool = True) -> Encoder:
    """AlexNet's five convolutions (Krizhevsky 2014), without batch normalisation: images (N, 3, H, W) -> (N, 256), 2.3 million weights.

    small_images: 3×3 convolutions and 2×2 pools, for 8 pixels and more; otherwise the first is 11×11 with stride 4, for 63 and more.
    """
    small = (3, 1, 1)  # kernel, stride and padding
    first, second = (small, small) if small_images else ((11, 4, 2), (5, 1, 2))
    shapes = ((3, 64, *first), (64, 192, *second), (192, 384, *small), (384, 256, *small), (256, 256, *small))
    blocks = [nn.Sequential(nn.Conv2d(*shape), nn.ReLU(inplace=True)) for shape in shapes]
    for block in blocks:  # without batch normalisation the default would shrink the signal from layer to layer
        nn.init.kaiming_normal_(block[0].weight, nonlinearity="relu")
        nn.init.zeros_(block[0].bias)
    for k in (0, 1, 4):
        blocks[k].append(nn.MaxPool2d(2 if small_images else 3, 2))
    return Encoder({"name": "alexnet", "small_images": bool(small_images)}, blocks, 256, smallest=8 if small_images else 63)


def encoder_from_recipe(recipe: Mapping) -> Encoder:
    """Another encoder like the one with this `recipe`, with weights of its own. Raises ValueError for any other mapping."""
    from sslcourse.models.transformers import vit  # here, because it is made from what stands above

    makers = {maker.__name__: maker for maker in (resnet9, resnet18, resnet50, alexnet, vit)}
    arguments = dict(recipe)
    maker = makers.get(arguments.pop("name", None))
    if maker is None or set(arguments) != set(inspect.signature(maker).parameters):
        raise ValueError("its recipe is none of this version's encoders")
    if not all(isinstance(value, int) for name, value in arguments.items() if (maker, name) != (vit, "pool")):  # which vit checks
        raise ValueError("its recipe has an argument that is not a number")
    return maker(**arguments)


def count_parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
