"""Encoders: normalised images, float (N, 3, H, W), to features (N, feature_dim)."""

import inspect
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F


def conv_block(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    """3×3 convolution, batch normalisation, ReLU, and where asked a 2×2 max-pool that halves the sides."""
    layers = [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


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
    Raises ValueError for anything but normalised float images (N, 3, H, W) of at least `smallest` pixels a side.
    """

    blocks: nn.Sequential
    feature_dim: int
    smallest = 8  # pixels a side
    recipe: dict

    def feature_maps(self, x: Tensor, blocks: int | None = None) -> list[Tensor]:
        """What each of the first `blocks` blocks (None: all) makes of the images: a list of (N, channels, h, w)."""
        self._check(x)
        maps = []
        for block in self.blocks[:blocks]:
            x = block(x)
            maps.append(x)
        return maps

    def pool(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> (N, channels)."""
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return self.pool(self.blocks(x))

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(f"An encoder takes normalised float images (N, 3, H, W); this batch is {x.dtype} {tuple(x.shape)}.")
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(f"This encoder needs images of {self.smallest} pixels or more a side, not {tuple(x.shape[2:])}.")


class ResNet9(Encoder):
    """See `resnet9`."""

    def __init__(self, width: int):
        super().__init__()
        self.recipe = {"name": "resnet9", "width": width}
        self.feature_dim = 8 * width
        self.blocks = nn.Sequential(
            conv_block(3, width),  # (N, w, H, W)
            conv_block(width, 2 * width, pool=True),  # (N, 2w, H/2, W/2)
            Residual(2 * width),
            conv_block(2 * width, 4 * width, pool=True),  # (N, 4w, H/4, W/4)
            conv_block(4 * width, 8 * width, pool=True),  # (N, 8w, H/8, W/8)
            Residual(8 * width),
        )

    def pool(self, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(x, 1).flatten(1)  # (N, 8w)


def resnet9(width: int = 64) -> ResNet9:
    """A small residual network: images (N, 3, H, W) of 8 pixels or more -> (N, 8·width). From David Page's DAWNBench entry (2018).

    width: channels of the first convolution; 64 has 6.6 million parameters, 16 has 0.4 million.
    """
    if int(width) != width or width < 1:
        raise ValueError(f"width is the number of channels of the first convolution and must be a positive whole number, not {width}.")
    return ResNet9(int(width))


class ResNet(Encoder):
    """torchvision's residual network of this name without its classifier: a stem and four stages."""

    def __init__(self, name: str, small_images: bool, max_pool: bool | None):
        super().__init__()
        from torchvision import models  # here, because the import takes more than a second

        max_pool = not small_images if max_pool is None else max_pool
        self.recipe = {"name": name, "small_images": bool(small_images), "max_pool": bool(max_pool)}
        network = getattr(models, name)(weights=None)
        self.feature_dim = network.fc.in_features
        if small_images:  # the large stem would shrink 32 pixels to 8 before the first block sees them
            network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        stem = [network.conv1, network.bn1, network.relu] + ([network.maxpool] if max_pool else [])
        self.blocks = nn.Sequential(nn.Sequential(*stem), network.layer1, network.layer2, network.layer3, network.layer4)


def resnet18(small_images: bool = True, max_pool: bool | None = None) -> ResNet:
    """ResNet-18 (He et al. 2016): images (N, 3, H, W) -> (N, 512), 11.2 million parameters.

    small_images: a first convolution of 3×3 with stride 1 in place of 7×7 with stride 2. max_pool: whether a 3×3 max-pool that halves
    the sides follows; None: only after the large one. Small without pooling is for 32 pixels (SimCLR, appendix B.9), with it for 64.
    """
    return ResNet("resnet18", small_images, max_pool)


def resnet50(small_images: bool = True, max_pool: bool | None = None) -> ResNet:
    """ResNet-50 (He et al. 2016): images (N, 3, H, W) -> (N, 2048), 23.5 million parameters. Arguments as in `resnet18`."""
    return ResNet("resnet50", small_images, max_pool)


class AlexNet(Encoder):
    """See `alexnet`."""

    def __init__(self, small_images: bool):
        super().__init__()
        self.recipe = {"name": "alexnet", "small_images": bool(small_images)}
        self.feature_dim = 256
        self.smallest = 8 if small_images else 63
        first = nn.Conv2d(3, 64, 3, padding=1) if small_images else nn.Conv2d(3, 64, 11, stride=4, padding=2)
        second = nn.Conv2d(64, 192, 3, padding=1) if small_images else nn.Conv2d(64, 192, 5, padding=2)
        others = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((192, 384), (384, 256), (256, 256))]
        self.blocks = nn.Sequential(*(nn.Sequential(layer, nn.ReLU(inplace=True)) for layer in (first, second, *others)))
        for k in (0, 1, 4):
            self.blocks[k].append(nn.MaxPool2d(2 if small_images else 3, 2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # without batch normalisation the default would shrink the signal from layer to layer
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)


def alexnet(small_images: bool = True) -> AlexNet:
    """AlexNet's five convolutions (Krizhevsky 2014), without batch normalisation: images (N, 3, H, W) -> (N, 256), 2.3 million weights.

    small_images: 3×3 convolutions and 2×2 pools, for 8 pixels and more; otherwise the first is 11×11 with stride 4, for 63 and more.
    """
    return AlexNet(small_images)


def encoder_from_recipe(recipe: Mapping) -> Encoder:
    """Another encoder like the one with this `recipe`, with weights of its own. Raises ValueError for any other mapping."""
    makers = {maker.__name__: maker for maker in (resnet9, resnet18, resnet50, alexnet)}
    arguments = dict(recipe)
    maker = makers.get(arguments.pop("name", None))
    if maker is None or set(arguments) != set(inspect.signature(maker).parameters):
        raise ValueError("its recipe is none of this version's encoders")
    if not all(isinstance(value, int) for value in arguments.values()):
        raise ValueError("its recipe has an argument that is not a number")
    return maker(**arguments)


def count_parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
