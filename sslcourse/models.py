"""Encoders, and what is put on top of them.

An encoder maps normalised images, float (N, 3, H, W), to features (N, feature_dim), and says its `feature_dim`.
Whatever is trained on top, the encoder is what is kept.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_block(channels_in: int, channels_out: int, pool: bool = False) -> nn.Sequential:
    """3×3 convolution, batch normalisation, ReLU, and where asked a 2×2 max-pool that halves the sides."""
    layers = [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Two conv blocks and a shortcut around them: x + f(x)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(conv_block(channels, channels), conv_block(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet9(nn.Module):
    """Eight convolutions and (with a classifier) one linear layer: see `resnet9`."""

    def __init__(self, width: int):
        super().__init__()
        self.feature_dim = 8 * width
        self.blocks = nn.Sequential(
            conv_block(3, width),  # (N, w, H, W)
            conv_block(width, 2 * width, pool=True),  # (N, 2w, H/2, W/2)
            Residual(2 * width),
            conv_block(2 * width, 4 * width, pool=True),  # (N, 4w, H/4, W/4)
            conv_block(4 * width, 8 * width, pool=True),  # (N, 8w, H/8, W/8)
            Residual(8 * width),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ValueError(
                f"An encoder takes normalised float images (N, 3, H, W), from an augmentation; this batch is {x.dtype} {tuple(x.shape)}."
            )
        if min(x.shape[2:]) < 8:
            raise ValueError(f"ResNet-9 halves the sides three times and needs images of 8 pixels or more, not {tuple(x.shape[2:])}.")
        return F.adaptive_max_pool2d(self.blocks(x), 1).flatten(1)  # (N, 8w)


def resnet9(width: int = 64) -> ResNet9:
    """The small residual network of the STL-10 project: (N, 3, H, W) -> (N, 8·width), H and W 8 pixels or more.

    width: channels of the first convolution; 64 has 6.6 million parameters, 16 has 0.4 million.
    The network comes from David Page's DAWNBench entry (2018); He et al. 2016 is where its shortcuts come from.
    """
    if int(width) != width or width < 1:
        raise ValueError(f"width is the number of channels of the first convolution and must be a positive whole number, not {width}.")
    return ResNet9(int(width))


class Classifier(nn.Module):
    """An encoder and one linear layer, with dropout between them: normalised images (N, 3, H, W) -> logits (N, num_classes).

    The last layer starts near zero, so that the first loss is that of guessing, ln(num_classes).
    """

    def __init__(self, encoder: nn.Module, num_classes: int, dropout: float = 0.2):
        super().__init__()
        if not hasattr(encoder, "feature_dim"):
            raise ValueError(f"An encoder must say its feature_dim, the width of its features; {type(encoder).__name__} has none.")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}.")
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.feature_dim, num_classes)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.encoder(x)))


def count_parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def to_channels_last(module: nn.Module) -> nn.Module:
    """Store convolution weights channels-last, which CPUs and tensor cores convolve faster. Values do not change."""
    return module.to(memory_format=torch.channels_last)
