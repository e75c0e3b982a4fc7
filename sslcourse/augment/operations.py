"""Image operations on whole batches with given parameters, equal to torchvision's functional ones: colours, crops, shifts, blurs.

x is float (N, 3, H, W) in 0..1, a parameter is (N,); out, where given, may be x itself.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 weights, as torchvision has them


def _per_image(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def grey(x: Tensor) -> Tensor:
    """Luminance, (N, 1, H, W)."""
    red, green, blue = x.split(1, dim=1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def adjust_brightness(x: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply by factor (N,): 0 is black, 1 changes nothing."""
    return torch.mul(x, _per_image(factor), out=out).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend with each image's mean luminance: factor (N,), 0 is flat grey, 1 changes nothing."""
    mean = grey(x.mean((2, 3), keepdim=True))  # the mean of the luminance is the luminance of the mean, (N, 1, 1, 1)
    return torch.mul(x, _per_image(factor), out=out).add_(mean * _per_image(1 - factor)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """Blend with the image's own luminance: factor (N,), 0 is grey, 1 changes nothing."""
    blend = grey(x).mul_(_per_image(1 - factor))
    return torch.mul(x, _per_image(factor), out=out).add_(blend).clamp_(0, 1)


def adjust_hue(x: Tensor, turn: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the hue of the HSV colour circle by `turn` (N,), from -0.5 to 0.5 whole turns (either is the opposite colour).

    Whichever channel is the largest, a colour lies chroma + green + blue - red - smallest away from red, in units of chroma/6 turns.
    """
    red, green, blue = x.unbind(1)
    value, low = torch.maximum(green, blue), torch.minimum(green, blue)
    value, low = torch.maximum(value, red, out=value), torch.minimum(low, red, out=low)
    chroma = value - low
    away = (green + blue).sub_(red).add_(chroma).sub_(low)
    chroma6 = chroma * 6
    hue = away.copysign_(green - blue).div_(chroma6.clamp_min(1e-12))  # -1/2..1/2; blue's side is negative
    hue = hue.add_((turn + 1).view(-1, 1, 1)).frac_()  # turned, and back on the circle 0..1
    # each channel rises, stays and falls as a trapezoid of the hue; the three are the same shape a third of a turn apart
    out = torch.empty_like(x) if out is None else out
    torch.addcmul(low.sub_(chroma), chroma6, (hue - 1 / 2).abs_().clamp_(1 / 6, 1 / 3), out=out[:, 0])
    value.add_(chroma)
    torch.addcmul(value, chroma6, (hue - 1 / 3).abs_().clamp_(1 / 6, 1 / 3), value=-1, out=out[:, 1])
    torch.addcmul(value, chroma6, (hue - 2 / 3).abs_().clamp_(1 / 6, 1 / 3), value=-1, out=out[:, 2])
    return out


def grayscale(x: Tensor, amount: Tensor, out: Tensor | None = None) -> Tensor:
    """Replace colour by luminance: amount (N,) is 1 to do it, 0 to leave the image."""
    return torch.lerp(x, grey(x), _per_image(amount), out=out)


def solarize(x: Tensor, amount: Tensor, out: Tensor | None = None) -> Tensor:
    """Invert what is at or above one half: amount (N,) is 1 to do it, 0 to leave the image."""
    inverted = (x >= 0.5).float().mul_(_per_image(amount))  # 1 where it is
    return torch.add(inverted.mul_(1 - 2 * x), x, out=out)


def cut_out(x: Tensor, square: Tensor, out: Tensor | None = None) -> Tensor:
    """A grey square over each image, cut off at the edges: row and column of its centre and its side in pixels (N, 3); side 0 for none."""
    centre, reach = square[:, :2], square[:, 2:] / 2
    place = [torch.arange(length, device=x.device) + 0.5 for length in x.shape[2:]]
    inside = [(p - centre[:, axis : axis + 1]).abs() < reach for axis, p in enumerate(place)]  # (N, H), (N, W)
    covered = (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)  # (N, 1, H, W)
    return (x if out is x else x.clone()).masked_fill_(covered, 0.5)


def resize_matrix(start: Tensor, length: Tensor, size_in: int, size_out: int, flip: Tensor | None = None) -> Tensor:
    """The crop [start, start + length) (N,) of one axis, resized with an antialiasing triangle filter, flipped where flip is 1."""
    step = (length / size_out).view(-1, 1, 1)
    place = torch.arange(size_out, device=start.device, dtype=torch.float32).view(1, -1, 1)
    if flip is not None:
        place = torch.where(flip.view(-1, 1, 1) > 0, size_out - 1 - place, place)
    start, end = start.view(-1, 1, 1), (start + length).view(-1, 1, 1)
    centre = start + (place + 0.5) * step
    pixel = torch.arange(size_in, device=start.device, dtype=torch.float32).view(1, 1, -1) + 0.5
    pixel = torch.where((pixel > start) & (pixel < end), pixel, math.inf)  # infinitely far away: no weight outside the crop
    distance = (pixel - centre).abs_()
    weight = torch.sub(step.clamp_min(1), distance, out=distance).clamp_min_(0)
    return weight.div_(weight.sum(2, keepdim=True))


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for later calls, which may need gradients
def _reflected(size: int, reach: int, device: torch.device) -> Tensor:
    """One-hot maps (2·reach + 1, size, size): entry [t, i, j] is 1 where pixel i + t − reach, mirrored at the edges, is pixel j."""
    index = torch.arange(size, device=device) + torch.arange(-reach, reach + 1, device=device).view(-1, 1)
    index = (size - 1) - (index.abs() - (size - 1)).abs()
    return (index.unsqueeze(2) == torch.arange(size, device=device)).float()


def translation_matrix(shift: Tensor, size: int, reach: int) -> Tensor:
    """Move by shift (N,) whole pixels, |shift| ≤ reach, mirroring at the edges."""
    chosen = (torch.arange(-reach, reach + 1, device=shift.device) == shift.view(-1, 1)).float()
    return (chosen @ _reflected(size, reach, shift.device).flatten(1)).view(-1, size, size)


def blur_matrix(sigma: Tensor, size: int, reach: int) -> Tensor:
    """Gaussian blur along one axis with 2·reach + 1 taps, mirrored at the edges; sigma (N,) in pixels, 0 for none."""
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=sigma.device) / sigma.clamp_min(1e-3).view(-1, 1)) ** 2)
    weight = weight / weight.sum(1, keepdim=True)
    return (weight @ _reflected(size, reach, sigma.device).flatten(1)).view(-1, size, size)


def along_axes(x: Tensor, rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """rows · image · columnsᵀ for every image and channel. x (N, 3, H, W), rows (N, h, H), columns (N, w, W) -> (N, 3, h, w)."""
    n, channels, height, width = x.shape
    # columns first: the three channels stand above one another as one tall matrix
    x = torch.bmm(x.reshape(n, channels * height, width), columns.transpose(1, 2)).view(n, channels, height, columns.shape[1])
    out = x.new_empty(n, channels, rows.shape[1], x.shape[3]) if out is None else out
    for channel in range(channels):
        torch.bmm(rows, x[:, channel], out=out[:, channel])
    return out


def gaussian_blur(x: Tensor, sigma: Tensor, reach: int, out: Tensor | None = None) -> Tensor:
    """Blur each image with its own sigma (N,), in pixels (0 for none), by a kernel of 2·reach + 1 pixels a side."""
    return along_axes(x, blur_matrix(sigma, x.shape[2], reach), blur_matrix(sigma, x.shape[3], reach), out=out)


def only_where_asked(operation: Callable) -> Callable:
    """The operation on (x, parameter), where parameter 0 leaves an image as it is: on a CPU those images are left out. out must be x."""

    def on_some(x: Tensor, parameter: Tensor, out: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return operation(x, parameter, out=out)
        asked = parameter.nonzero().flatten()
        if len(asked):
            done = operation(x.index_select(0, asked), parameter[asked])
            for row, image in zip(asked.tolist(), done, strict=True):  # 35 µs for 7 images of 96 pixels; out[asked] = done takes 56
                out[row] = image
        return out

    return on_some
