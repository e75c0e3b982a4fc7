"""Each operation against torchvision's, and the matrices behind them."""

import pytest
import torch
from pictures import CLOSE, DEVICES, colourful
from torchvision.transforms.v2 import functional as tv

from sslcourse.augment import operations


def floats(n=5, height=12, width=10, device="cpu"):
    return colourful(n, height, width, device).float() / 255


def each(operation, x, *parameters):
    """A torchvision operation image by image."""
    return torch.stack([operation(image, *(p[i].item() for p in parameters)) for i, image in enumerate(x)])


def where_asked(operation, *parameters):
    return lambda image, amount: operation(image, *parameters) if amount else image


OPERATIONS = [
    (operations.adjust_brightness, tv.adjust_brightness, [0.0, 0.2, 1.0, 1.3, 1.8]),
    (operations.adjust_contrast, tv.adjust_contrast, [0.0, 0.2, 1.0, 1.3, 1.8]),
    (operations.adjust_saturation, tv.adjust_saturation, [0.0, 0.2, 1.0, 1.3, 1.8]),
    (operations.adjust_hue, tv.adjust_hue, [-0.5, -0.2, 0.0, 0.17, 0.5]),
    (operations.grayscale, where_asked(tv.rgb_to_grayscale, 3), [0.0, 1.0, 0.0, 1.0, 0.0]),
    (operations.solarize, where_asked(tv.solarize, 0.5), [0.0, 1.0, 0.0, 1.0, 0.0]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("ours", "theirs", "values"), OPERATIONS, ids=lambda v: getattr(v, "__name__", ""))
def test_colour_operations_equal_torchvisions(ours, theirs, values, device):
    x, values = floats(device=device), torch.tensor(values, device=device)
    before = x.clone()
    done = ours(x, values)
    torch.testing.assert_close(done, each(theirs, x, values), **CLOSE)
    assert torch.equal(x, before), "the input was written over"
    assert ours(x, values, out=x) is x and torch.equal(x, done)  # out may be the input itself


def test_hue_of_every_corner_and_edge_of_the_colour_cube():
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    cube = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8)
    turns = torch.linspace(-0.5, 0.5, 21)
    x = cube.expand(21, -1, -1, -1).contiguous()
    torch.testing.assert_close(operations.adjust_hue(x, turns), each(tv.adjust_hue, x, turns), **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "reach"), [(12, 10, 1), (32, 32, 2), (20, 31, 5)])
def test_blur_equals_torchvisions(height, width, reach, device):
    x, sigma = floats(4, height, width, device), torch.tensor([0.1, 0.6, 1.3, 2.0], device=device)
    expected = each(lambda image, s: tv.gaussian_blur(image, [2 * reach + 1] * 2, [s, s]), x, sigma)
    torch.testing.assert_close(operations.gaussian_blur(x, sigma, reach), expected, **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 24, 16), (12, 20, 48)])
def test_resized_crop_equals_torchvisions_when_it_shrinks_and_when_it_grows(height, width, size, device):
    x = floats(6, height, width, device)
    # whole image, a corner, one pixel, a wide and a tall piece, the last rows and columns
    crops = [(0, 0, height, width), (0, 0, 5, 7), (3, 4, 1, 1), (2, 0, 4, width), (0, 5, height, 3), (height - 9, width - 8, 9, 8)]
    top, left, h, w = torch.tensor(crops, dtype=torch.float32, device=device).T
    flip = torch.tensor([0.0, 1, 0, 1, 0, 1], device=device)
    done = operations.along_axes(x, operations.resize_matrix(top, h, height, size), operations.resize_matrix(left, w, width, size, flip))
    for i, (t, c, a, b) in enumerate(crops):
        expected = tv.resized_crop(x[i], t, c, a, b, [size, size], antialias=True)
        expected = tv.horizontal_flip(expected) if flip[i] else expected
        torch.testing.assert_close(done[i], expected, **CLOSE)


def test_translation_equals_a_crop_of_the_mirrored_image():
    reach, size = 4, 16
    x = floats(5, size, size)
    down, right = torch.tensor([0.0, 4, -4, 1, -2]), torch.tensor([0.0, -4, 3, 0, 4])
    # the drawn shift says which pixel is looked at: position i shows pixel i + shift
    done = operations.along_axes(x, operations.translation_matrix(down, size, reach), operations.translation_matrix(right, size, reach))
    mirrored = tv.pad(x, [reach] * 4, padding_mode="reflect")
    for i in range(5):
        top, left = reach + int(down[i]), reach + int(right[i])
        torch.testing.assert_close(done[i], tv.crop(mirrored[i], top, left, size, size), **CLOSE)


def test_operations_pass_gradients_on_after_inference_mode_used_them():
    with torch.inference_mode():
        operations.gaussian_blur(floats(2, 14, 14), torch.ones(2), 2)
    sigma = torch.ones(2, requires_grad=True)
    (operations.blur_matrix(sigma, 14, 2) ** 2).sum().backward()
    assert sigma.grad.abs().sum() > 0


@pytest.mark.parametrize("height, width", [(32, 32), (20, 31)])
def test_cut_out_equals_torchvisions_erase(height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, height, width, generator=generator)
    top, left, side = (torch.randint(least, least + 9, (40,), generator=generator) for least in (0, 0, 1))
    centre = torch.stack([top + side / 2, left + side / 2], dim=1)
    squares = zip(x, top.tolist(), left.tolist(), side.tolist(), strict=True)
    expected = torch.stack([tv.erase(image, i, j, h, h, v=torch.tensor(0.5)) for image, i, j, h in squares])
    assert torch.equal(operations.cut_out(x, torch.cat([centre, side[:, None]], 1)), expected)


def test_cut_out_is_cut_off_at_the_edges_and_leaves_images_with_side_0():
    x = torch.rand(2, 3, 8, 8)
    done = operations.cut_out(x, torch.tensor([[0.0, 8.0, 4.0], [4.0, 4.0, 0.0]]))
    assert (done[0, :, :2, 6:] == 0.5).all()
    changed = (done != x).any(1)  # (2, 8, 8)
    assert changed[0].sum() == 4 and not changed[1].any()
