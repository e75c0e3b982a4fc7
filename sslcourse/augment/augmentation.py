"""Batched image augmentation on the device: every image of a batch draws its own parameters.

A batch of `uint8 (N, 3, H, W)` comes in, a normalised `float32 (N, 3, size, size)` goes out. Four ideas make it fast:

* Crop, flip and resize are linear and separable, so each image has one small matrix for its rows and one for its columns, and two
  batched matrix products do all three at once, antialiased. Gaussian blur and translation are such matrices too.
* Colour operations are a few whole-batch formulas with one factor an image, without branches, written over one another in place.
* On a CPU the batch is worked through in chunks that stay in the cache. On a GPU it is one chunk.
* No operation waits for a GPU (no `.item()`, no boolean indexing): an image that is not jittered gets factors that change nothing. On a
  CPU there is nothing to wait for, so there blur and solarization pick out the images that are to have them.

The operations equal torchvision's functional ones with the same parameters. Two simplifications are ours: the four parts of colour
jitter come in a fixed order (brightness, contrast, saturation, hue), where torchvision shuffles them anew for each image; and a crop whose
aspect ratio does not fit after ten draws falls back to the whole image.

`Augmentation` draws its parameters from torch's global generator of the batch's device, so `torch.manual_seed` repeats them; a
`generator` can be given instead.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslcourse.augment.operations import (  # noqa: F401  (public here too)
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    along_axes,
    blur_matrix,
    cut_out,
    gaussian_blur,
    grayscale,
    grey,
    resize_matrix,
    solarize,
    translation_matrix,
    where_asked,
)

MEAN = (0.5, 0.5, 0.5)  # the same two for every data set, so that an encoder can be tried on another set as it is
STD = (0.25, 0.25, 0.25)

CROP_ATTEMPTS = 10
CHUNK_VALUES = 400_000  # floats a chunk on the CPU: about 1.6 MB, so that a chunk fits the level-2 caches of two cores


# --- the module -----------------------------------------------------------------------------------------------------------------------


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a probability and must lie between 0 and 1, not {value}.")
    return float(value)


class Augmentation(nn.Module):
    """uint8 (N, 3, H, W) -> normalised float32 (N, 3, size, size); each image draws its own parameters.

    size: pixels a side of what comes out.
    crop: (smallest, largest) part of the area for a random resized crop (Szegedy et al. 2015), or None for the whole image.
    ratio: range of the crop's aspect ratio, drawn evenly in the logarithm.
    translate: largest shift as a part of the side, mirrored at the edges; for use without `crop`.
    flip: probability of a horizontal flip.
    jitter: (brightness, contrast, saturation, hue); the first three are ranges 1 ± value, hue is ± value of a turn. jitter_p: probability.
    grayscale, blur, solarize: probabilities. sigma: range of the blur's standard deviation in pixels.
    cutout: largest side of a grey square, as a part of the image's side; its size and place are random (DeVries and Taylor 2017).
    mean, std: what the result is normalised with, per channel, in 0..1.

    Raises ValueError for a size, probability or range that cannot be, and for a batch that is not uint8 (N, 3, H, W).
    """

    def __init__(
        self,
        size: int,
        *,
        crop: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        translate: float = 0.0,
        flip: float = 0.0,
        jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        jitter_p: float = 0.8,
        grayscale: float = 0.0,
        blur: float = 0.0,
        sigma: tuple[float, float] = (0.1, 2.0),
        solarize: float = 0.0,
        cutout: float = 0.0,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ):
        super().__init__()
        if int(size) != size or size < 4:
            raise ValueError(f"size is in pixels a side and must be a whole number of at least 4, not {size}.")
        if crop is not None and not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"crop is a range of the image's area, two numbers with 0 < smallest ≤ largest ≤ 1, not {crop}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be two positive numbers, the smaller first, not {ratio}.")
        if len(jitter) != 4 or min(jitter) < 0 or max(jitter[:3]) > 1 or jitter[3] > 0.5:
            raise ValueError(f"jitter is (brightness, contrast, saturation, hue), the first three in 0..1 and hue in 0..0.5, not {jitter}.")
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"sigma must be two positive numbers of pixels, the smaller first, not {sigma}.")
        if not 0 <= translate < 0.5:
            raise ValueError(f"translate is a part of the side and must lie in 0..0.5, not {translate}.")
        if not 0 <= cutout <= 1:
            raise ValueError(f"cutout is a part of the side and must lie in 0..1, not {cutout}.")
        if min(std) <= 0:
            raise ValueError(f"std is divided by and must be positive, not {tuple(std)}.")
        self.size, self.crop, self.ratio, self.translate, self.sigma = int(size), crop, ratio, translate, sigma
        self.cutout = float(cutout)
        self.jitter = tuple(float(v) for v in jitter)
        self.flip, self.jitter_p = _probability("flip", flip), _probability("jitter_p", jitter_p)
        self.grayscale, self.blur, self.solarize = (
            _probability("grayscale", grayscale),
            _probability("blur", blur),
            _probability("solarize", solarize),
        )
        self.reach = max(1, round(0.05 * self.size))  # the paper's kernel: a tenth of the side
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def extra_repr(self) -> str:
        parts = [f"size={self.size}"]
        for name in ("crop", "translate", "flip", "grayscale", "blur", "solarize", "cutout"):
            if getattr(self, name):
                parts.append(f"{name}={getattr(self, name)}")
        if any(self.jitter):
            parts.append(f"jitter={tuple(round(v, 3) for v in self.jitter)}, jitter_p={self.jitter_p}")
        return ", ".join(parts)

    def draw(self, n: int, height: int, width: int, device=None, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Parameters for n images of height × width pixels: a dictionary of tensors whose first dimension is n."""
        if not any((self.crop, self.translate, self.flip, *self.jitter, self.grayscale, self.blur, self.solarize, self.cutout)):
            return {}  # without advancing the generator: how often one evaluates must not change how one trains
        u = torch.rand(n, 14, device=device, generator=generator)
        drawn = {}
        if self.crop:
            drawn.update(self._draw_crop(n, height, width, u[:, 0], u[:, 1], generator))
        if self.translate:
            reach = round(self.translate * self.size)
            drawn["shift"] = torch.floor(u[:, 0:2] * (2 * reach + 1)) - reach
        if self.flip:
            drawn["flip"] = (u[:, 2] < self.flip).float()
        if any(self.jitter):
            applied = u[:, 3] < self.jitter_p
            for column, name, width_of_range in zip(range(4, 7), ("brightness", "contrast", "saturation"), self.jitter[:3], strict=True):
                drawn[name] = torch.where(applied, 1 + (2 * u[:, column] - 1) * width_of_range, 1.0)
            drawn["hue"] = torch.where(applied, (2 * u[:, 7] - 1) * self.jitter[3], 0.0)
        if self.grayscale:
            drawn["grayscale"] = (u[:, 8] < self.grayscale).float()
        if self.blur:
            low, high = self.sigma
            drawn["sigma"] = torch.where(u[:, 9] < self.blur, low + u[:, 10] * (high - low), 0.0)
        if self.solarize:
            drawn["solarize"] = (u[:, 11] < self.solarize).float()
        if self.cutout:
            drawn["cutout_centre"] = u[:, 12:14] * self.size
            drawn["cutout_side"] = torch.rand(n, device=device, generator=generator) * (self.cutout * self.size)
        return drawn

    def _draw_crop(self, n, height, width, u_top, u_left, generator) -> dict[str, Tensor]:
        """A part of the area and an aspect ratio, drawn again (ten at once, the first that fits is taken) as torchvision does."""
        u = torch.rand(2, n, CROP_ATTEMPTS, device=u_top.device, generator=generator)
        area = (self.crop[0] + u[0] * (self.crop[1] - self.crop[0])) * (height * width)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + u[1] * (high - low))
        w, h = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first = fits.float().argmax(1, keepdim=True)
        any_fits = fits.any(1)
        w = torch.where(any_fits, w.gather(1, first).squeeze(1), float(width))
        h = torch.where(any_fits, h.gather(1, first).squeeze(1), float(height))
        return {"top": torch.floor(u_top * (height - h + 1)), "left": torch.floor(u_left * (width - w + 1)), "height": h, "width": w}

    def apply_drawn(self, images: Tensor, drawn: dict[str, Tensor], out: Tensor | None = None) -> Tensor:
        """The operations with parameters from `draw`. images uint8 (N, 3, H, W) -> float32 (N, 3, size, size), normalised, in out."""
        n, _, height, width = images.shape
        x = images.float()
        whole = x.new_zeros(n)
        if "top" in drawn or "flip" in drawn or "shift" in drawn or (height, width) != (self.size, self.size):
            rows = resize_matrix(drawn.get("top", whole), drawn.get("height", whole + height), height, self.size)
            columns = resize_matrix(drawn.get("left", whole), drawn.get("width", whole + width), width, self.size, drawn.get("flip"))
            if "shift" in drawn:
                reach = round(self.translate * self.size)
                rows = translation_matrix(drawn["shift"][:, 0], self.size, reach) @ rows
                columns = translation_matrix(drawn["shift"][:, 1], self.size, reach) @ columns
            x = along_axes(x, rows.div_(255), columns)
        else:
            x.div_(255)
        # from here on x is this function's own, and written over
        if "brightness" in drawn:
            adjust_brightness(x, drawn["brightness"], out=x)
            adjust_contrast(x, drawn["contrast"], out=x)
            adjust_saturation(x, drawn["saturation"], out=x)
            if self.jitter[3]:
                adjust_hue(x, drawn["hue"], out=x)
        if "grayscale" in drawn:
            grayscale(x, drawn["grayscale"], out=x)
        if "sigma" in drawn:
            x = where_asked(lambda rows, sigma: gaussian_blur(rows, sigma, self.reach), x, drawn["sigma"])
        if "solarize" in drawn:
            x = where_asked(solarize, x, drawn["solarize"])
        if "cutout_side" in drawn:
            x = cut_out(x, drawn["cutout_centre"], drawn["cutout_side"])
        return torch.mul(x.sub_(self.mean), 1 / self.std, out=out)  # a product: 23 µs for 14 images of 96 pixels, a quotient 37

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f"Augmentations take uint8 images (N, 3, H, W); this batch is {images.dtype} {tuple(images.shape)}.")
        with torch.autocast(images.device.type, enabled=False):  # inside a bf16 context the matrix products would lose the pixels' bits
            return self._augment(images, generator)

    def _augment(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        drawn = self.draw(len(images), images.shape[2], images.shape[3], images.device, generator)
        if images.device.type != "cpu":
            return self.apply_drawn(images, drawn)
        chunk = max(12, CHUNK_VALUES // (3 * max(self.size**2, images.shape[2] * images.shape[3])))
        if len(images) <= chunk:
            return self.apply_drawn(images, drawn)
        out = torch.empty(len(images), 3, self.size, self.size)
        for first in range(0, len(images), chunk):
            piece = slice(first, first + chunk)
            self.apply_drawn(images[piece], {name: value[piece] for name, value in drawn.items()}, out=out[piece])
        return out


class TwoViews(nn.Module):
    """Two different augmentations of the same images: uint8 (N, 3, H, W) -> [float (N, 3, size, size), the same]."""

    def __init__(self, first: Augmentation, second: Augmentation):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        return [self.first(images, generator), self.second(images, generator)]


def evaluation(size: int, **options) -> Augmentation:
    """No randomness: the whole image, resized to `size` and normalised."""
    return Augmentation(size, **options)


def weak(size: int, **options) -> Augmentation:
    """Flip and a shift of up to an eighth of the side (FixMatch, Sohn et al. 2020, section 2.3): what supervised training uses too."""
    return Augmentation(size, **{"translate": 0.125, "flip": 0.5, **options})


def strong(size: int, **options) -> Augmentation:
    """FixMatch's strong view (Sohn et al. 2020, section 2.3): shift, flip, strong changes of colour, and a grey square.

    The paper draws two operations an image from a list (RandAugment); here it is one colour jitter, so that a batch goes through at once.
    """
    settings = {"translate": 0.125, "flip": 0.5, "jitter": (0.4, 0.4, 0.4, 0.2), "grayscale": 0.2, "cutout": 0.5}
    return Augmentation(size, **{**settings, **options})


def simclr(size: int, strength: float = 1.0, **options) -> Augmentation:
    """SimCLR's views (Chen et al. 2020, appendix A): crop, flip, colour jitter, grayscale, and blur from 64 pixels on.

    strength scales the colour jitter (the paper's s): 1.0 for large photos, 0.5 in the paper's CIFAR-10 recipe.
    """
    if not 0 <= strength <= 1.25:
        raise ValueError(f"strength scales the colour jitter and must lie between 0 and 1.25, not {strength}.")
    jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    # below 64 pixels a blur hides more than it teaches: appendix B.9 leaves it out for CIFAR-10
    settings = {"crop": (0.08, 1.0), "flip": 0.5, "jitter": jitter, "grayscale": 0.2, "blur": 0.5 if size >= 64 else 0.0}
    return Augmentation(size, **{**settings, **options})


def _asymmetric_views(size: int, jitter: Sequence[float], options: dict) -> TwoViews:
    settings = {"crop": (0.08, 1.0), "flip": 0.5, "jitter": jitter, "grayscale": 0.2}
    blur = (1.0, 0.1) if size >= 64 else (0.0, 0.0)
    first = Augmentation(size, **{**settings, "blur": blur[0], **options})
    second = Augmentation(size, **{**settings, "blur": blur[1], "solarize": 0.2, **options})
    return TwoViews(first, second)


def byol_views(size: int, **options) -> TwoViews:
    """BYOL's two views (Grill et al. 2020, appendix B): the first always blurred, the second rarely blurred and sometimes solarised."""
    return _asymmetric_views(size, (0.4, 0.4, 0.2, 0.1), options)


def barlow_views(size: int, **options) -> TwoViews:
    """Barlow Twins' two views (Zbontar et al. 2021, section 2.2): BYOL's."""
    return _asymmetric_views(size, (0.4, 0.4, 0.2, 0.1), options)
