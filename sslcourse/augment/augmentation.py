"""A batch of `uint8 (N, 3, H, W)` comes in, a normalised `float32 (N, 3, size, size)` goes out. Four ideas make it fast:

* Crop, flip and resize are linear and separable, so each image has one small matrix for its rows and one for its columns, and two
  batched matrix products do all three at once, antialiased. Gaussian blur and translation are such matrices too.
* Colour operations are a few whole-batch formulas with one factor an image, without branches, written over one another in place.
* No operation waits for a GPU (no `.item()`, no boolean indexing): an image that is not jittered gets factors that change nothing.
* On a CPU the batch is worked through in chunks that stay in the cache; blur and solarization pick out the images that are to have them.

Two simplifications are ours: the parts of colour jitter come in a fixed order (brightness, contrast, saturation, hue), where torchvision
shuffles them for each image; and a crop whose aspect ratio does not fit after ten draws becomes the whole image.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sslcourse.augment import operations
from sslcourse.augment.operations import along_axes, resize_matrix, translation_matrix
from sslcourse.devices import OneOrAll

MEAN = (0.5, 0.5, 0.5)  # the same two for every data set, so that an encoder can be tried on another set as it is
STD = (0.25, 0.25, 0.25)

CROP_ATTEMPTS = 10
CHUNK_VALUES = 400_000  # floats a chunk on the CPU: about 1.6 MB, so that a chunk fits the level-2 caches of two cores


class Augmentation(nn.Module):
    """uint8 (N, 3, H, W) -> normalised float32 (N, 3, size, size); each image draws its own parameters, from torch's or a given generator.

    size: pixels a side of what comes out.
    crop: (smallest, largest) part of the area for a random resized crop (Szegedy et al. 2015), or None for the whole image.
    ratio: range of the crop's aspect ratio, drawn evenly in the logarithm.
    translate: largest shift as a part of the side, mirrored at the edges; for use without `crop`.
    jitter: (brightness, contrast, saturation, hue); the first three are ranges 1 ± value, hue is ± value of a turn.
    flip, jitter_p, grayscale, blur, solarize: probabilities. sigma: range of the blur's standard deviation in pixels.
    cutout: largest side of a grey square, as a part of the image's side; its size and place are random (DeVries and Taylor 2017).
    mean, std: what the result is normalised with, per channel, in 0..1.
    Raises ValueError for a size, probability or range that cannot be, and for a batch that is not uint8 (N, 3, H, W).
    """

    def __init__(
        self, size: int, *, crop: tuple[float, float] | None = None, ratio: tuple[float, float] = (3 / 4, 4 / 3), translate: float = 0.0,
        flip: float = 0.0, jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0), jitter_p: float = 0.8, grayscale: float = 0.0, blur: float = 0.0,
        sigma: tuple[float, float] = (0.1, 2.0), solarize: float = 0.0, cutout: float = 0.0, mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ):  # fmt: skip
        super().__init__()
        if int(size) != size or size < 4:
            raise ValueError(f"size is in pixels a side and must be a whole number of at least 4, not {size}.")
        for name, pair, most in (("crop", crop or (1, 1), 1), ("ratio", ratio, math.inf), ("sigma", sigma, math.inf)):
            if not 0 < pair[0] <= pair[1] <= most:
                raise ValueError(f"{name} must be two positive numbers, the smaller first{', at most 1' * (most == 1)}, not {pair}.")
        if len(jitter) != 4 or min(jitter) < 0 or max(jitter[:3]) > 1 or jitter[3] > 0.5:
            raise ValueError(f"jitter is (brightness, contrast, saturation, hue), the first three in 0..1 and hue in 0..0.5, not {jitter}.")
        if min(std) <= 0:
            raise ValueError(f"std is divided by and must be positive, not {tuple(std)}.")
        parts = {"flip": flip, "jitter_p": jitter_p, "grayscale": grayscale, "blur": blur, "solarize": solarize, "cutout": cutout}
        for name, value in parts.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in 0..1, not {value}.")
        if not 0 <= translate < 0.5:
            raise ValueError(f"translate is a part of the side and must lie in 0..0.5, not {translate}.")
        self.flip, self.jitter_p, self.grayscale, self.blur, self.solarize, self.cutout = map(float, parts.values())
        self.size, self.translate, self.crop = int(size), float(translate), tuple(map(float, crop)) if crop else None
        self.ratio, self.sigma, self.jitter = (tuple(map(float, given)) for given in (ratio, sigma, jitter))
        self.largest_shift = round(translate * self.size)
        self.blur_reach = max(1, round(0.05 * self.size))  # the paper's kernel: a tenth of the side
        self.one_or_all = OneOrAll()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def extra_repr(self) -> str:
        """Every option: what a run's checkpoint compares."""
        names = ("size", "crop", "ratio", "translate", "flip", "jitter", "jitter_p", "grayscale", "blur", "sigma", "solarize", "cutout")
        shown = {name: getattr(self, name) for name in names}
        shown |= {name: tuple(getattr(self, name).flatten().tolist()) for name in ("mean", "std")}
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def draw(self, n: int, height: int, width: int, device=None, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Parameters for n images of height × width pixels: a dictionary of tensors whose first dimension is n."""
        if not any((self.crop, self.translate, self.flip, *self.jitter, self.grayscale, self.blur, self.solarize, self.cutout)):
            return {}  # without advancing the generator: how often one evaluates must not change how one trains
        u = torch.rand(n, 14, device=device, generator=generator)
        drawn = {}
        if self.crop:
            drawn.update(self._draw_crop(n, height, width, u[:, 0], u[:, 1], generator))
        if self.translate:
            drawn["shift"] = torch.floor(u[:, 0:2] * (2 * self.largest_shift + 1)) - self.largest_shift
        if self.flip:
            drawn["flip"] = (u[:, 2] < self.flip).float()
        if any(self.jitter):
            applied = u[:, 3] < self.jitter_p
            change = 2 * u[:, 4:8] - 1  # each evenly in -1..1
            for k, name in enumerate(("brightness", "contrast", "saturation")):
                drawn[name] = torch.where(applied, 1 + change[:, k] * self.jitter[k], 1.0)
            if self.jitter[3]:
                drawn["hue"] = torch.where(applied, change[:, 3] * self.jitter[3], 0.0)
        if self.grayscale:
            drawn["grayscale"] = (u[:, 8] < self.grayscale).float()
        if self.blur:
            low, high = self.sigma
            drawn["sigma"] = torch.where(u[:, 9] < self.blur, low + u[:, 10] * (high - low), 0.0)
        if self.solarize:
            drawn["solarize"] = (u[:, 11] < self.solarize).float()
        if self.cutout:
            side = torch.rand(n, 1, device=device, generator=generator) * (self.cutout * self.size)
            drawn["cutout"] = torch.cat([u[:, 12:14] * self.size, side], 1)  # row and column of the centre, and side
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
        x = self._cropped(images, drawn)  # in 0..1, and from here on written over
        in_this_order = {
            "brightness": operations.adjust_brightness, "contrast": operations.adjust_contrast, "saturation": operations.adjust_saturation,
            "hue": operations.adjust_hue, "grayscale": operations.grayscale,
            "sigma": operations.only_where_asked(partial(operations.gaussian_blur, reach=self.blur_reach)),
            "solarize": operations.only_where_asked(operations.solarize), "cutout": operations.cut_out,
        }
        for name, operation in in_this_order.items():
            if name in drawn:
                operation(x, drawn[name], out=x)
        return torch.mul(x.sub_(self.mean), 1 / self.std, out=out)  # a product: 23 µs for 14 images of 96 pixels, a quotient 37

    def _cropped(self, images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Crop, resize, flip and shift, all in one matrix along each axis; bytes become floats in 0..1."""
        x = images.float()
        height, width = x.shape[2:]
        if (height, width) == (self.size, self.size) and not drawn.keys() & {"top", "flip", "shift"}:
            return x.div_(255)
        whole = x.new_zeros(len(x))
        rows = resize_matrix(drawn.get("top", whole), drawn.get("height", whole + height), height, self.size)
        columns = resize_matrix(drawn.get("left", whole), drawn.get("width", whole + width), width, self.size, drawn.get("flip"))
        if "shift" in drawn:
            down, right = drawn["shift"].unbind(1)
            rows = translation_matrix(down, self.size, self.largest_shift) @ rows
            columns = translation_matrix(right, self.size, self.largest_shift) @ columns
        return along_axes(x, rows.div_(255), columns)

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f"Augmentations take uint8 images (N, 3, H, W); this batch is {images.dtype} {tuple(images.shape)}.")
        with torch.autocast(images.device.type, enabled=False):  # inside a bf16 context the matrix products would lose the pixels' bits
            work = partial(self._views, images, generator)
            return self.one_or_all(work, len(images)) if images.device.type == "cpu" and len(images) else work()

    def _views(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        n, _, height, width = images.shape
        drawn = self.draw(n, height, width, images.device, generator)
        chunk = max(12, CHUNK_VALUES // (3 * max(self.size**2, height * width))) if images.device.type == "cpu" else n
        if n <= chunk:
            return self.apply_drawn(images, drawn)
        out = torch.empty(n, 3, self.size, self.size)
        for first in range(0, n, chunk):
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


class MultiCrop(TwoViews):
    """Two large views and several small ones (SwAV, Caron et al. 2020, section 3.2): one tensor for each of the augmentations."""

    def __init__(self, first: Augmentation, second: Augmentation, *local: Augmentation):
        super().__init__(first, second)
        self.local = nn.ModuleList(local)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        return [*super().forward(images, generator), *(small(images, generator) for small in self.local)]


def evaluation(size: int, **options) -> Augmentation:
    """No randomness: the whole image, resized to `size` and normalised."""
    return Augmentation(size, **options)


def weak(size: int, **options) -> Augmentation:
    """Flip and a shift of up to an eighth of the side (FixMatch, Sohn et al. 2020, section 2.3)."""
    return Augmentation(size, **{"translate": 0.125, "flip": 0.5, **options})


def strong(size: int, **options) -> Augmentation:
    """FixMatch's strong view (Sohn et al. 2020, section 2.3), with one colour jitter in place of two operations drawn from a list."""
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


def byol_views(size: int, **options) -> TwoViews:
    """BYOL's two views (Grill et al. 2020, appendix B): the first always blurred, the second rarely blurred and sometimes solarised."""
    settings = {"crop": (0.08, 1.0), "flip": 0.5, "jitter": (0.4, 0.4, 0.2, 0.1), "grayscale": 0.2}
    first, second = {"blur": 1.0}, {"blur": 0.1, "solarize": 0.2}
    if size < 64:
        first["blur"] = second["blur"] = 0.0
    return TwoViews(*(Augmentation(size, **{**settings, **own, **options}) for own in (first, second)))


barlow_views = byol_views  # Zbontar et al. 2021, section 2.2


def multi_crop(size: int, local_size: int = 16, local_crops: int = 4, **options) -> MultiCrop:
    """DINO's views (Caron et al. 2021, section 3.1 and the authors' code): BYOL's of 0.4 of the area or more, and small ones of less."""
    large = byol_views(size, **{"crop": (0.4, 1.0), **options})
    blur = {"blur": 0.5 if size >= 64 else 0.0, "solarize": 0.0}
    small = byol_views(local_size, **{**blur, **options, "crop": (0.05, 0.4)}).first
    return MultiCrop(large.first, large.second, *[small] * local_crops)


def crop_and_flip(size: int, **options) -> Augmentation:
    """MAE's view (He et al. 2022, section 4.1, "Data augmentation"): the mask is what makes an image new each time."""
    return Augmentation(size, **{"crop": (0.2, 1.0), "flip": 0.5, **options})
