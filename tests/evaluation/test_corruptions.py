"""Corruptions: what a severity does, by hand and against torchvision; determinism; and what is refused."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from sslcourse.evaluation.corruptions import CHUNK, CORRUPTIONS, corrupt

pytestmark = pytest.mark.usefixtures("one_thread")
EACH = pytest.mark.parametrize("kind", CORRUPTIONS)
NOISE_ONLY = ("gaussian_noise", "occlusion")  # the kinds that draw random numbers


def smooth(n=8, height=32, width=32):
    """Images with some structure: blurred noise over the whole range."""
    noise = torch.rand(n, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(1))
    return (255 * torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")).round().byte()


@EACH
@pytest.mark.parametrize("shape", [(32, 32), (96, 96), (24, 40)])
def test_images_stay_images_and_get_worse(kind, shape):
    images = smooth(8, *shape)
    before, changes = images.clone(), []
    for severity in range(6):
        made = corrupt(images, kind, severity, seed=3)
        assert made.dtype == torch.uint8 and made.shape == images.shape and made.data_ptr() != images.data_ptr()
        changes.append((made.float() - images.float()).abs().mean().item())
    assert torch.equal(images, before)
    assert changes[0] == 0 and changes == sorted(changes) and min(b - a for a, b in zip(changes, changes[1:], strict=False)) > 0.05


@EACH
def test_a_seed_repeats_another_does_not_and_what_comes_after_an_image_does_not_matter(kind):
    images, state = smooth(CHUNK + 20, 16, 16), torch.get_rng_state()
    whole, other = (corrupt(images, kind, 4, seed=seed) for seed in (0, 1))
    assert torch.equal(whole, other) == (kind not in NOISE_ONLY)
    same = corrupt(images[:1].expand(CHUNK + 2, -1, -1, -1), kind, 3)  # the last two are in the second chunk
    assert all(torch.equal(same[0], same[k]) == (kind not in NOISE_ONLY) for k in (1, CHUNK))
    for n in (0, 7, CHUNK, CHUNK + 3):
        assert torch.equal(corrupt(images[:n], kind, 4), whole[:n])
    assert torch.equal(torch.get_rng_state(), state)  # torch's own random numbers are left alone


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_the_deviation_that_it_says(severity):
    grey = torch.full((64, 3, 32, 32), 128, dtype=torch.uint8)
    noise = corrupt(grey, "gaussian_noise", severity).double() / 255 - 128 / 255
    drawn = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).mul(CORRUPTIONS["gaussian_noise"][1][severity - 1])
    expected = drawn.clamp(-128 / 255, 127 / 255)
    assert abs(noise.std().item() / expected.std().item() - 1) < 0.02 and abs(noise.mean().item()) < 0.005


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_is_torchvisions_away_from_the_edges(severity):
    images, sigma = smooth(4, 64, 64), CORRUPTIONS["blur"][1][severity - 1] * 64
    kernel = 2 * round(5 * sigma) + 3
    expected = tv.gaussian_blur(images.float(), [kernel, kernel], [sigma, sigma])
    made = corrupt(images, "blur", severity).float()
    assert (made - expected)[:, :, 24:40, 24:40].abs().max() <= 0.51
    flat = torch.full((1, 3, 20, 20), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(flat, "blur", severity), flat)  # no dark frame


def test_brightness_adds_and_cuts_off_and_pixelate_makes_larger_pixels():
    images = torch.tensor([0, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert corrupt(images, "brightness", 2)[0, :, 0, 0].tolist() == [51, 151, 255]
    blocks = corrupt(smooth(2), "pixelate", 5).view(2, 3, 8, 4, 8, 4)
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))
    for picture, small in zip(smooth(2), blocks[:, :, :, 0, :, 0], strict=True):
        expected = tv.pil_to_tensor(tv.to_pil_image(picture).resize((8, 8), Image.Resampling.BILINEAR))
        assert (small.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 33)])
def test_occlusion_is_one_grey_square_that_can_be_anywhere(height, width):
    made = corrupt(torch.full((300, 3, height, width), 255, dtype=torch.uint8), "occlusion", 2, seed=1)
    side, covered = round(0.3 * min(height, width)), (made != 255).all(1)
    assert set(made.unique().tolist()) == {128, 255} and covered.sum((1, 2)).eq(side**2).all()
    assert covered.any(2).sum(1).eq(side).all() and covered.any(1).sum(1).eq(side).all()
    assert covered.any((0, 2)).all() and covered.any((0, 1)).all()  # over many images every row and column, the outermost too


@pytest.mark.parametrize(("images", "kind", "severity", "told"), [
    (smooth(), "fog", 1, "not 'fog'"), (smooth(), "blur", 6, "severity"), (smooth()[:, :1], "blur", 1, "uint8"),
])  # fmt: skip
def test_what_cannot_be_corrupted_is_refused(images, kind, severity, told):
    with pytest.raises(ValueError, match=told):
        corrupt(images, kind, severity)
