"""Corruptions: what a severity does, by hand and against torchvision; determinism; and what is refused."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from sslcourse.evaluation import corruptions

pytestmark = pytest.mark.usefixtures("one_thread")
NOISE_ONLY = ("gaussian_noise", "occlusion")  # the kinds that draw random numbers


def smooth(n=8, height=32, width=32):
    """Images with some structure: blurred noise over the whole range."""
    noise = torch.rand(n, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(1))
    large = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
    return (255 * large).round().byte()


def amount(kind, severity):
    return corruptions._KINDS[kind][1][severity - 1]


@pytest.mark.parametrize("kind", corruptions.KINDS)
@pytest.mark.parametrize("shape", [(32, 32), (96, 96), (24, 40)])
def test_images_stay_images_and_get_worse(kind, shape):
    images = smooth(8, *shape)
    before, changes = images.clone(), []
    for severity in range(6):
        made = corruptions.corrupt(images, kind, severity, seed=3)
        assert made.dtype == torch.uint8 and made.shape == images.shape and made.data_ptr() != images.data_ptr()
        changes.append((made.float() - images.float()).abs().mean().item())
    assert torch.equal(images, before)
    assert changes[0] == 0 and changes == sorted(changes) and min(b - a for a, b in zip(changes, changes[1:], strict=False)) > 0.05


def test_every_kind_has_five_severities():
    assert all(len(amounts) == corruptions.SEVERITIES == 5 for _, amounts in corruptions._KINDS.values())
    assert corruptions.KINDS == ("gaussian_noise", "blur", "contrast", "brightness", "pixelate", "occlusion")


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_a_seed_repeats_and_another_does_not(kind):
    images = smooth()
    made = [corruptions.corrupt(images, kind, 3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2]) == (kind not in NOISE_ONLY)


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_torchs_own_random_numbers_are_left_alone(kind):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    corruptions.corrupt(smooth(), kind, 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_what_comes_after_an_image_does_not_matter(kind):
    images = smooth(corruptions.CHUNK + 20, 16, 16)
    whole = corruptions.corrupt(images, kind, 4, seed=2)
    for n in (1, 7, corruptions.CHUNK, corruptions.CHUNK + 3):
        assert torch.equal(corruptions.corrupt(images[:n], kind, 4, seed=2), whole[:n])


@pytest.mark.parametrize("kind", NOISE_ONLY)
def test_each_image_has_its_own_noise(kind):
    same = smooth(1).expand(corruptions.CHUNK + 2, -1, -1, -1)  # the last two are in the second chunk
    made = corruptions.corrupt(same, kind, 3)
    assert len({image.numpy().tobytes() for image in made}) > (len(made) - 1 if kind == "gaussian_noise" else 80)
    assert not torch.equal(made[0], made[corruptions.CHUNK])


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_the_deviation_that_it_says(severity):
    grey = torch.full((64, 3, 32, 32), 128, dtype=torch.uint8)
    noise = corruptions.corrupt(grey, "gaussian_noise", severity).double() / 255 - 128 / 255
    inside = noise.abs() < 0.45  # beyond, values are cut off
    assert inside.double().mean() > 0.9
    expected = amount("gaussian_noise", severity)
    clipped = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).mul(expected).clamp(-128 / 255, 127 / 255)
    assert abs(noise.std().item() / clipped.std().item() - 1) < 0.02 and abs(noise.mean().item()) < 0.005


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_blur_is_torchvisions_away_from_the_edges(severity):
    images, sigma = smooth(4, 64, 64), amount("blur", severity) * 64
    kernel = 2 * round(5 * sigma) + 3
    expected = tv.gaussian_blur(images.float(), [kernel, kernel], [sigma, sigma])
    made = corruptions.corrupt(images, "blur", severity).float()
    inner = slice(24, 40)
    assert (made - expected)[:, :, inner, inner].abs().max() <= 0.51
    flat = torch.full((1, 3, 20, 20), 77, dtype=torch.uint8)
    assert torch.equal(corruptions.corrupt(flat, "blur", severity), flat)  # no dark frame


def test_blur_means_the_same_at_any_size():
    small, large = smooth(4, 32, 32), smooth(4, 32, 32).repeat_interleave(4, 2).repeat_interleave(4, 3)
    made = corruptions.corrupt(large, "blur", 4).float()
    shrunk = torch.nn.functional.avg_pool2d(made, 4)
    assert (shrunk - corruptions.corrupt(small, "blur", 4).float()).abs().mean() < 2


@pytest.mark.parametrize("severity", [1, 4])
def test_contrast_keeps_the_means_and_shrinks_the_rest(severity):
    images = smooth().clamp(40, 200)
    made, left = corruptions.corrupt(images, "contrast", severity).double(), amount("contrast", severity)
    x = images.double()
    mean = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(made, mean + left * (x - mean), rtol=0, atol=0.51)


def test_brightness_adds_and_cuts_off():
    images = torch.tensor([0, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert corruptions.corrupt(images, "brightness", 2)[0, :, 0, 0].tolist() == [51, 151, 255]


def test_pixelate_makes_larger_pixels():
    made = corruptions.corrupt(smooth(2), "pixelate", 5)
    blocks = made.view(2, 3, 8, 4, 8, 4)
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))
    for picture, small in zip(smooth(2), blocks[:, :, :, 0, :, 0], strict=True):
        expected = tv.pil_to_tensor(tv.to_pil_image(picture).resize((8, 8), Image.Resampling.BILINEAR))
        assert (small.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 33)])
def test_occlusion_is_one_grey_square_that_can_be_anywhere(height, width):
    white = torch.full((300, 3, height, width), 255, dtype=torch.uint8)
    made = corruptions.corrupt(white, "occlusion", 2, seed=1)
    side = round(0.3 * min(height, width))
    covered = (made != 255).all(1)
    assert set(made.unique().tolist()) == {128, 255}
    assert covered.sum((1, 2)).eq(side**2).all()
    assert covered.any(2).sum(1).eq(side).all() and covered.any(1).sum(1).eq(side).all()
    assert covered.any((0, 2)).all() and covered.any((0, 1)).all()  # over many images every row and column, the outermost too


@pytest.mark.parametrize(
    ("images", "kind", "severity", "told"),
    [
        (smooth(), "fog", 1, "kind is one of gaussian_noise, blur, .*, not 'fog'"),
        (smooth(), "blur", 6, "severity is a whole number from 0, unchanged, to 5, not 6"),
        (smooth(), "blur", -1, "severity"),
        (smooth(), "blur", 1.5, "severity"),
        (smooth().float(), "blur", 1, "uint8 .*, before any augmentation, not torch.float32"),
        (smooth()[0], "blur", 1, "uint8"),
        (smooth()[:, :1], "blur", 1, "uint8"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, kind, severity, told):
    with pytest.raises(ValueError, match=told):
        corruptions.corrupt(images, kind, severity)


def test_no_images_are_no_trouble():
    assert corruptions.corrupt(smooth()[:0], "blur", 2).shape == (0, 3, 32, 32)
