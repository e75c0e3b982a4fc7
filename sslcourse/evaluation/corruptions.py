"""Images as worse cameras take them, after Hendrycks and Dietterich 2019 (arXiv 1903.12261); our severities mean the same at any size."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslcourse.augment.operations import cut_out

CHUNK = 128  # images worked on at once; part of what a seed means
SEVERITIES = 5

# Each takes x, float (n, 3, H, W) in 0..1; the severity's amount; and draw(distribution, *shape) -> (CHUNK, *shape).


def _blur(x, amount, draw):
    weights = []  # (H, H) and (W, W): each row those of a Gaussian about its pixel, cut at the edges of the image
    for side in x.shape[2:]:
        place = torch.arange(side, dtype=x.dtype, device=x.device)
        weights.append((-(place[:, None] - place).square() / (2 * (amount * min(x.shape[2:])) ** 2)).softmax(1))
    return weights[0] @ x @ weights[1].T


def _contrast(x, amount, draw):
    mean = x.mean((2, 3), keepdim=True)
    return mean + amount * (x - mean)


def _pixelate(x, amount, draw):
    small = F.interpolate(x, [max(1, round(amount * side)) for side in x.shape[2:]], mode="bilinear", antialias=True)
    return F.interpolate(small, x.shape[2:], mode="nearest-exact")


def _occlusion(x, amount, draw):
    side = max(1, round(amount * min(x.shape[2:])))
    room = torch.tensor(x.shape[2:], device=x.device) - side + 1
    start = (draw(torch.rand, 2)[: len(x)] * room).floor()  # (n, 2)
    return cut_out(x, torch.cat([start + side / 2, torch.full_like(start[:, :1], side)], 1))


# name -> (function, its amounts at severities 1 to 5)
CORRUPTIONS = {
    "gaussian_noise": (lambda x, a, draw: x + a * draw(torch.randn, *x.shape[1:])[: len(x)], (0.04, 0.08, 0.12, 0.18, 0.26)),  # deviation
    "blur": (_blur, (0.015, 0.025, 0.035, 0.05, 0.065)),  # deviation, of the side: 0.5 to 2.1 pixels of 32
    "contrast": (_contrast, (0.7, 0.5, 0.35, 0.2, 0.1)),  # what is left of the distance from each channel's mean
    "brightness": (lambda x, a, draw: x + a, (0.1, 0.2, 0.3, 0.4, 0.5)),  # added to every pixel, of 0..1
    "pixelate": (_pixelate, (0.75, 0.6, 0.5, 0.35, 0.25)),  # of the side: 24 to 8 pixels of 32
    "occlusion": (_occlusion, (0.2, 0.3, 0.4, 0.5, 0.6)),  # side of a grey square anywhere in the image, of the side
}


def corrupt(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """Worse copies of images: uint8 (N, 3, H, W) -> uint8 of the same shape and device.

    kind: one of CORRUPTIONS. severity: 1, hardly seen, to 5; 0 changes nothing. seed: of noise and of grey squares, each image's own.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"kind is one of {', '.join(CORRUPTIONS)}, not {kind!r}.")
    if severity not in range(SEVERITIES + 1):
        raise ValueError(f"severity is a whole number from 0, unchanged, to {SEVERITIES}, not {severity!r}.")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"Images are uint8 (N, 3, H, W), before any augmentation, not {images.dtype} {tuple(images.shape)}.")
    if not severity:
        return images.clone()
    make, amounts = CORRUPTIONS[kind]
    generator = torch.Generator().manual_seed(seed)

    def draw(distribution, *shape):  # on the CPU, so that a seed means the same on every device; for a whole chunk, whatever is left of it
        return distribution(CHUNK, *shape, generator=generator).to(images.device)

    made = torch.empty_like(images)
    for start in range(0, len(images), CHUNK):
        x = images[start : start + CHUNK].float() / 255
        made[start : start + CHUNK] = (make(x, amounts[severity - 1], draw) * 255).round_().clamp_(0, 255).byte()
    return made
