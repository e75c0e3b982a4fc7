"""Augmentations: each operation against torchvision's, independence between images, distributions, seeds, and what is refused."""

import math

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from sslcourse import augment

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"))
DEVICES = ["cpu", CUDA]
FACTORY_NAMES = ("simclr", "byol_views", "barlow_views", "weak", "evaluation")
# float32 keeps about 7 digits of numbers up to 1; a handful of operations may lose one of them
CLOSE = {"rtol": 0, "atol": 2e-6}


def colourful(n, height, width, device="cpu", seed=0):
    """Random smooth-ish uint8 images, with flat grey, black, white and pure-colour patches, where hue is hard."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    images[:, :, :2, :2] = 128
    images[:, :, :2, 2:4] = 0
    images[:, :, 2:4, :2] = 255
    images[:, 0, 2:4, 2:4], images[:, 1:, 2:4, 2:4] = 255, 0
    images[:, 1, 4:6, 2:4], images[:, 2, 4:6, 2:4] = 200, 200  # two channels share the largest value
    return images.to(device)


def floats(n=5, height=12, width=10, device="cpu"):
    return colourful(n, height, width, device).float() / 255


def each(operation, x, *parameters):
    """A torchvision operation image by image."""
    return torch.stack([operation(image, *(p[i].item() for p in parameters)) for i, image in enumerate(x)])


# --- operations -----------------------------------------------------------------------------------------------------------------------

COLOUR_OPERATIONS = [
    (augment.adjust_brightness, tv.adjust_brightness, [0.0, 0.2, 1.0, 1.3, 1.8]),
    (augment.adjust_contrast, tv.adjust_contrast, [0.0, 0.2, 1.0, 1.3, 1.8]),
    (augment.adjust_saturation, tv.adjust_saturation, [0.0, 0.2, 1.0, 1.3, 1.8]),
    (augment.adjust_hue, tv.adjust_hue, [-0.5, -0.2, 0.0, 0.17, 0.5]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("ours", "theirs", "values"), COLOUR_OPERATIONS, ids=lambda v: getattr(v, "__name__", ""))
def test_colour_operations_equal_torchvisions(ours, theirs, values, device):
    x, values = floats(device=device), torch.tensor(values, device=device)
    before = x.clone()
    torch.testing.assert_close(ours(x, values), each(theirs, x, values), **CLOSE)
    assert torch.equal(x, before), "the input was written over"


@pytest.mark.parametrize(
    ("operation", "values"), [(ours, values) for ours, _, values in COLOUR_OPERATIONS] + [(augment.grayscale, [0.0, 1, 0, 1, 0])]
)
def test_out_may_be_the_input_itself(operation, values):
    x, values = floats(), torch.tensor(values)
    expected = operation(x, values)
    assert operation(x, values, out=x) is x
    assert torch.equal(x, expected)


def test_hue_of_every_corner_and_edge_of_the_colour_cube():
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    cube = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8)
    turns = torch.linspace(-0.5, 0.5, 21)
    x = cube.expand(21, -1, -1, -1).contiguous()
    torch.testing.assert_close(augment.adjust_hue(x, turns), each(tv.adjust_hue, x, turns), **CLOSE)


def test_no_turn_of_hue_is_none_and_a_third_moves_the_channels_on():
    x = floats(2)
    torch.testing.assert_close(augment.adjust_hue(x, torch.zeros(2)), x, **CLOSE)
    torch.testing.assert_close(augment.adjust_hue(x, torch.full((2,), -1 / 3)), x.roll(-1, dims=1), **CLOSE)
    torch.testing.assert_close(augment.adjust_hue(x, torch.tensor([1 / 3, 1 / 3])), x.roll(1, dims=1), **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
def test_grayscale_equals_torchvisions_where_asked_and_nothing_elsewhere(device):
    x = floats(2, device=device)
    done = augment.grayscale(x, torch.tensor([1.0, 0.0], device=device))
    torch.testing.assert_close(done[0], tv.rgb_to_grayscale(x[0], num_output_channels=3), **CLOSE)
    assert torch.equal(done[1], x[1])


@pytest.mark.parametrize("threshold", [0.5, 0.25, 128 / 255])
def test_solarize_equals_torchvisions_where_asked_and_nothing_elsewhere(threshold):
    x = floats(2)
    done = augment.solarize(x, torch.tensor([1.0, 0.0]), threshold)
    torch.testing.assert_close(done[0], tv.solarize(x[0], threshold), **CLOSE)
    assert torch.equal(done[1], x[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "reach"), [(12, 10, 1), (32, 32, 2), (20, 31, 5)])
def test_blur_equals_torchvisions(height, width, reach, device):
    x, sigma = floats(4, height, width, device), torch.tensor([0.1, 0.6, 1.3, 2.0], device=device)
    expected = each(lambda image, s: tv.gaussian_blur(image, [2 * reach + 1] * 2, [s, s]), x, sigma)
    torch.testing.assert_close(augment.gaussian_blur(x, sigma, reach), expected, **CLOSE)


def test_blur_of_zero_changes_nothing():
    x = floats(3)
    torch.testing.assert_close(augment.gaussian_blur(x, torch.zeros(3), 2), x, **CLOSE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 24, 16), (12, 20, 48)])
def test_resized_crop_equals_torchvisions_when_it_shrinks_and_when_it_grows(height, width, size, device):
    x = floats(6, height, width, device)
    # whole image, a corner, one pixel, a wide and a tall piece, the last rows and columns
    crops = [(0, 0, height, width), (0, 0, 5, 7), (3, 4, 1, 1), (2, 0, 4, width), (0, 5, height, 3), (height - 9, width - 8, 9, 8)]
    top, left, h, w = torch.tensor(crops, dtype=torch.float32, device=device).T
    flip = torch.tensor([0.0, 1, 0, 1, 0, 1], device=device)
    done = augment.along_axes(x, augment.resize_matrix(top, h, height, size), augment.resize_matrix(left, w, width, size, flip))
    for i, (t, c, a, b) in enumerate(crops):
        expected = tv.resized_crop(x[i], t, c, a, b, [size, size], antialias=True)
        expected = tv.horizontal_flip(expected) if flip[i] else expected
        torch.testing.assert_close(done[i], expected, **CLOSE)


def test_translation_equals_a_crop_of_the_mirrored_image():
    reach, size = 4, 16
    x = floats(5, size, size)
    down, right = torch.tensor([0.0, 4, -4, 1, -2]), torch.tensor([0.0, -4, 3, 0, 4])
    # the drawn shift says which pixel is looked at: position i shows pixel i + shift
    done = augment.along_axes(x, augment.translation_matrix(down, size, reach), augment.translation_matrix(right, size, reach))
    mirrored = tv.pad(x, [reach] * 4, padding_mode="reflect")
    for i in range(5):
        top, left = reach + int(down[i]), reach + int(right[i])
        torch.testing.assert_close(done[i], tv.crop(mirrored[i], top, left, size, size), **CLOSE)


@pytest.mark.parametrize("size", [9, 16])
def test_rows_of_every_matrix_sum_to_one(size):
    shift, sigma = torch.tensor([-2.0, 0.0, 2.0]), torch.tensor([0.0, 0.5, 2.0])
    matrices = [
        augment.resize_matrix(torch.tensor([0.0, 2, 5]), torch.tensor([9.0, 1, 4]), 9, size),
        augment.translation_matrix(shift, size, 2),
        augment.blur_matrix(sigma, size, 3),
    ]
    for matrix in matrices:
        torch.testing.assert_close(matrix.sum(2), torch.ones(3, size))
        assert (matrix >= 0).all()


def test_operations_pass_gradients_on_after_inference_mode_used_them():
    with torch.inference_mode():
        augment.gaussian_blur(floats(2, 14, 14), torch.ones(2), 2)
    sigma = torch.ones(2, requires_grad=True)
    x = floats(2, 14, 14).requires_grad_()
    x.retain_grad()
    (augment.blur_matrix(sigma, 14, 2) ** 2).sum().backward()
    assert sigma.grad.abs().sum() > 0


# --- the module against torchvision, with the parameters that it drew -----------------------------------------------------------------


def in_torchvision(transform, image, drawn, i):
    """One image through torchvision's operations with row i of the drawn parameters."""
    value = {name: column[i].item() for name, column in drawn.items() if column.dim() == 1}
    x = image.float() / 255
    if "top" in value:
        crop = [int(value[name]) for name in ("top", "left", "height", "width")]
        x = tv.resized_crop(x, *crop, [transform.size] * 2, antialias=True)
    else:
        x = tv.resize(x, [transform.size] * 2, antialias=True)
    if value.get("flip"):
        x = tv.horizontal_flip(x)
    if "brightness" in value:
        x = tv.adjust_brightness(x, value["brightness"])
        x = tv.adjust_contrast(x, value["contrast"])
        x = tv.adjust_saturation(x, value["saturation"])
        x = tv.adjust_hue(x, value["hue"])
    if value.get("grayscale"):
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if value.get("sigma"):
        x = tv.gaussian_blur(x, [2 * transform.reach + 1] * 2, [value["sigma"]] * 2)
    if value.get("solarize"):
        x = tv.solarize(x, 0.5)
    return tv.normalize(x, augment.MEAN, augment.STD)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (50, 37, 64)])
def test_a_whole_pipeline_equals_torchvisions(height, width, size, device):
    transform = augment.simclr(size, blur=0.5).to(device)
    images = colourful(24, height, width, device)
    torch.manual_seed(3)
    drawn = transform.draw(24, height, width, torch.device(device))
    done = transform.apply_drawn(images, drawn)
    for i in range(24):
        # the operations above are chained and then divided by 0.25; contrast and saturation may magnify an earlier error by 1.8 each
        torch.testing.assert_close(done[i], in_torchvision(transform, images[i], drawn, i), rtol=0, atol=5e-5)


def test_solarized_images_equal_torchvisions():
    # no operation comes before it, so that no pixel lies on the other side of the threshold by rounding
    transform = augment.Augmentation(16, solarize=0.5)
    images = colourful(20, 16, 16)
    drawn = transform.draw(20, 16, 16)
    assert 0 < drawn["solarize"].sum() < 20
    done = transform.apply_drawn(images, drawn)
    for i in range(20):
        torch.testing.assert_close(done[i], in_torchvision(transform, images[i], drawn, i), rtol=0, atol=1e-5)


# --- independence between images ------------------------------------------------------------------------------------------------------

EVERYTHING = {"crop": (0.2, 1.0), "flip": 0.5, "jitter": (0.4, 0.4, 0.4, 0.1), "grayscale": 0.5, "blur": 0.5, "solarize": 0.5}


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_changes_only_its_own_row(device):
    transform = augment.Augmentation(20, **EVERYTHING).to(device)
    images = colourful(9, 20, 20, device)
    drawn = transform.draw(9, 20, 20, torch.device(device))
    before = transform.apply_drawn(images, drawn)
    changed = images.clone()
    changed[4] = 255 - changed[4]
    after = transform.apply_drawn(changed, drawn)
    same = (before == after).flatten(1).all(1).tolist()
    assert same == [True] * 4 + [False] + [True] * 4


def test_each_parameter_changes_only_its_own_row():
    transform = augment.Augmentation(20, **{**EVERYTHING, "flip": 0.5})
    images = colourful(5, 24, 24)
    drawn = transform.draw(5, 24, 24)
    drawn.update({name: torch.zeros(5) for name in ("flip", "grayscale", "solarize")}, sigma=torch.full((5,), 0.5))
    drawn.update(top=torch.full((5,), 2.0), left=torch.full((5,), 2.0), height=torch.full((5,), 16.0), width=torch.full((5,), 16.0))
    before = transform.apply_drawn(images, drawn)
    other = {"top": 5.0, "left": 5.0, "height": 12.0, "width": 12.0, "flip": 1.0, "grayscale": 1.0, "solarize": 1.0, "sigma": 2.0,
             "brightness": 0.5, "contrast": 0.5, "saturation": 0.3, "hue": 0.3}  # fmt: skip
    assert set(other) == set(drawn)
    for name, value in other.items():
        changed = {**drawn, name: drawn[name].clone()}
        changed[name][1] = value
        same = torch.isclose(before, transform.apply_drawn(images, changed), rtol=0, atol=1e-5).flatten(1).all(1).tolist()
        assert same == [True, False, True, True, True], name


@pytest.mark.parametrize("device", DEVICES)
def test_copies_of_one_image_get_different_views(device):
    images = colourful(1, 32, 32, device).expand(16, -1, -1, -1)
    views = augment.simclr(32).to(device)(images)
    assert len({tuple(view.flatten()[:200].tolist()) for view in views}) == 16


@pytest.mark.parametrize("rows", [1, 5, 12, 13, 40])
def test_chunks_give_what_one_go_gives(rows, monkeypatch):
    transform, images = augment.Augmentation(16, **EVERYTHING), colourful(rows, 24, 18)
    torch.manual_seed(5)
    drawn = transform.draw(rows, 24, 18)
    whole = transform.apply_drawn(images, drawn)
    monkeypatch.setattr(augment, "CHUNK_VALUES", 1)  # the smallest chunks there are, a dozen images
    torch.manual_seed(5)
    torch.testing.assert_close(transform(images), whole, rtol=0, atol=1e-5)


def test_the_batch_itself_is_left_as_it_was():
    images = colourful(6, 16, 16)
    before = images.clone()
    for name in FACTORY_NAMES:
        getattr(augment, name)(16)(images)
        assert torch.equal(images, before), name


# --- parameters -----------------------------------------------------------------------------------------------------------------------


def drawn_many(transform, n=4000, height=40, width=40, seed=0):
    return transform.draw(n, height, width, generator=torch.Generator().manual_seed(seed))


def assert_rate(column, probability):
    """Within five standard deviations of the binomial distribution."""
    n = len(column)
    assert abs(column.float().mean().item() - probability) < 5 * math.sqrt(probability * (1 - probability) / n)


def test_how_often_each_operation_happens():
    drawn = drawn_many(augment.Augmentation(40, flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, grayscale=0.2, blur=0.3, solarize=0.1))
    assert_rate(drawn["flip"], 0.5)
    assert_rate(drawn["brightness"] != 1, 0.8)
    assert_rate(drawn["grayscale"], 0.2)
    assert_rate(drawn["sigma"] > 0, 0.3)
    assert_rate(drawn["solarize"], 0.1)
    # independent of each other
    assert_rate((drawn["flip"] > 0) & (drawn["grayscale"] > 0), 0.1)
    assert_rate((drawn["sigma"] > 0) & (drawn["brightness"] != 1), 0.24)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always(probability):
    transform = augment.Augmentation(16, flip=probability, grayscale=probability, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=probability)
    drawn = drawn_many(transform, 500)
    assert ("flip" in drawn) == bool(probability) and ("grayscale" in drawn) == bool(probability)
    assert (drawn["brightness"] != 1).float().mean() == probability
    if probability:
        assert drawn["flip"].all() and drawn["grayscale"].all()


def test_jitter_fills_its_ranges_and_is_jittered_together():
    drawn = drawn_many(augment.Augmentation(16, jitter=(0.4, 0.8, 0.2, 0.1), jitter_p=0.5))
    applied = drawn["brightness"] != 1
    for name, middle, reach in (("brightness", 1, 0.4), ("contrast", 1, 0.8), ("saturation", 1, 0.2), ("hue", 0, 0.1)):
        values = drawn[name][applied]
        assert ((values - middle).abs() <= reach + 1e-6).all()
        assert values.min() < middle - 0.97 * reach and values.max() > middle + 0.97 * reach
        assert abs(values.mean().item() - middle) < 5 * reach / math.sqrt(3 * len(values))
        assert (drawn[name][~applied] == middle).all()


def test_blur_and_shift_fill_their_ranges():
    drawn = drawn_many(augment.Augmentation(32, blur=1.0, sigma=(0.5, 1.5), translate=0.125), 2000)
    assert 0.5 <= drawn["sigma"].min() < 0.52 and 1.48 < drawn["sigma"].max() <= 1.5
    counts = torch.bincount((drawn["shift"].flatten() + 4).long(), minlength=9)
    assert len(counts) == 9 and counts.min() > 0.8 * 4000 / 9 and counts.max() < 1.2 * 4000 / 9


@pytest.mark.parametrize(("height", "width"), [(96, 96), (60, 130)])
def test_crops_are_drawn_as_torchvision_draws_them(height, width):
    n = 3000
    drawn = drawn_many(augment.Augmentation(32, crop=(0.08, 1.0)), n, height, width)
    torch.manual_seed(1)
    blank = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(blank, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)], dtype=torch.float32)
    ours = torch.stack([drawn[name] for name in ("top", "left", "height", "width")], 1)
    assert (ours == ours.floor()).all() and (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    for measure, tolerance in (
        (lambda c: c[:, 2] * c[:, 3] / (height * width), 0.06),
        (lambda c: (c[:, 3] / c[:, 2]).log(), 0.06),
        (lambda c: c[:, 0] / height, 0.06),
        (lambda c: c[:, 1] / width, 0.06),
    ):
        # a quantile of 3,000 draws of such a spread has a standard error below 0.01
        assert (measure(ours).quantile(quantiles) - measure(theirs).quantile(quantiles)).abs().max() < tolerance


def test_a_crop_that_cannot_fit_becomes_the_whole_image():
    drawn = drawn_many(augment.Augmentation(8, crop=(1.0, 1.0), ratio=(3.0, 3.0)), 10, 20, 20)
    assert (drawn["height"] == 20).all() and (drawn["width"] == 20).all() and not drawn["top"].any() and not drawn["left"].any()


# --- seeds ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["simclr", "byol_views", "weak"])
def test_manual_seed_repeats_the_views_and_other_seeds_do_not(name, device):
    transform, images = getattr(augment, name)(16).to(device), colourful(8, 16, 16, device)

    def views(seed):
        torch.manual_seed(seed)
        done = transform(images)
        return torch.cat(done) if isinstance(done, list) else done

    assert torch.equal(views(0), views(0))
    assert not torch.equal(views(0), views(1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FACTORY_NAMES)
def test_a_generator_repeats_the_views_and_leaves_the_global_one_alone(name, device):
    transform, images = getattr(augment, name)(16).to(device), colourful(8, 16, 16, device)
    state = torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()
    one, two = (transform(images, torch.Generator(device).manual_seed(7)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state())


def test_views_do_not_depend_on_the_global_number_of_calls_before():
    images, transform = colourful(4, 16, 16), augment.simclr(16)
    torch.manual_seed(0)
    first, second = transform(images), transform(images)
    assert not torch.equal(first, second)


# --- what comes out -------------------------------------------------------------------------------------------------------------------


def test_normalised_with_the_stated_mean_and_std():
    images = colourful(3, 16, 16)
    torch.testing.assert_close(augment.evaluation(16)(images), (images / 255 - 0.5) / 0.25, rtol=0, atol=1e-6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = tv.normalize(images / 255, mean, std)
    torch.testing.assert_close(augment.evaluation(16, mean=mean, std=std)(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FACTORY_NAMES)
@pytest.mark.parametrize(("n", "height", "width", "size"), [(5, 32, 32, 32), (1, 24, 40, 16), (3, 17, 13, 64), (0, 16, 16, 16)])
def test_shapes(name, n, height, width, size, device):
    done = getattr(augment, name)(size).to(device)(colourful(n, height, width, device))
    views = done if isinstance(done, list) else [done]
    assert len(views) == (2 if "views" in name else 1)
    for view in views:
        assert view.shape == (n, 3, size, size) and view.dtype == torch.float32 and view.is_contiguous()
        assert view.isfinite().all() and not view.requires_grad
        assert n == 0 or (view.min() >= -2.0001 and view.max() <= 2.0001)


@pytest.mark.parametrize("name", ["byol_views", "barlow_views"])
def test_two_views_differ_in_pixels_and_in_kind(name):
    transform = getattr(augment, name)(64)
    first, second = transform(colourful(4, 64, 64))
    assert not torch.equal(first, second)
    assert (transform.first.blur, transform.first.solarize) == (1.0, 0.0)
    assert (transform.second.blur, transform.second.solarize) == (0.1, 0.2)
    assert transform.first.jitter == transform.second.jitter == (0.4, 0.4, 0.2, 0.1)


@pytest.mark.parametrize(("size", "blurred"), [(32, False), (63, False), (64, True), (96, True)])
def test_no_blur_below_64_pixels(size, blurred):
    assert bool(augment.simclr(size).blur) == blurred
    for views in (augment.byol_views(size), augment.barlow_views(size)):
        assert bool(views.first.blur) == bool(views.second.blur) == blurred


def test_options_overrule_a_factory():
    assert augment.simclr(32, blur=0.5, flip=0.0).blur == 0.5
    assert augment.byol_views(96, blur=0.0).first.blur == 0.0
    assert augment.weak(32, translate=0.0).translate == 0.0
    assert augment.simclr(32, strength=0.5).jitter == (0.4, 0.4, 0.4, 0.1)


def test_evaluation_is_deterministic_and_resizes_the_whole_image():
    images, transform = colourful(4, 40, 24), augment.evaluation(32)
    torch.manual_seed(0)
    first = transform(images)
    torch.manual_seed(1)
    assert torch.equal(first, transform(images))
    expected = tv.normalize(tv.resize(images / 255, [32, 32], antialias=True), augment.MEAN, augment.STD)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)


def test_evaluation_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    augment.evaluation(16)(colourful(4, 16, 16))
    assert torch.equal(torch.get_rng_state(), state)


def test_weak_only_moves_and_flips():
    images, transform = colourful(30, 16, 16), augment.weak(16)
    for view, image in zip(transform(images), augment.evaluation(16)(images), strict=True):
        mirrored = tv.pad(image, [2] * 4, padding_mode="reflect")
        candidates = [tv.crop(mirrored, top, left, 16, 16) for top in range(5) for left in range(5)]
        candidates += [tv.horizontal_flip(c) for c in candidates] + [
            tv.crop(tv.horizontal_flip(mirrored), top, left, 16, 16) for top in range(5) for left in range(5)
        ]
        assert any(torch.allclose(view, c, rtol=0, atol=1e-5) for c in candidates)


def test_the_module_says_what_it_does():
    text = repr(augment.simclr(64))
    for part in ("size=64", "crop=(0.08, 1.0)", "flip=0.5", "grayscale=0.2", "blur=0.5", "jitter=(0.8, 0.8, 0.8, 0.2)"):
        assert part in text


def test_it_has_no_state_of_its_own():
    assert not augment.simclr(32).state_dict()


# --- what is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": 3}, "size"),
        ({"size": 32.5}, "size"),
        ({"crop": (0.0, 1.0)}, "crop"),
        ({"crop": (0.5, 0.2)}, "crop"),
        ({"crop": (0.5, 1.5)}, "crop"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"flip": 1.5}, "flip"),
        ({"jitter_p": -0.1}, "jitter_p"),
        ({"grayscale": 2}, "grayscale"),
        ({"blur": -1}, "blur"),
        ({"solarize": float("nan")}, "solarize"),
        ({"jitter": (0.4, 0.4, 0.4)}, "jitter"),
        ({"jitter": (1.4, 0.4, 0.4, 0.1)}, "jitter"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter"),
        ({"jitter": (0.4, -0.4, 0.4, 0.1)}, "jitter"),
        ({"sigma": (0.0, 1.0)}, "sigma"),
        ({"sigma": (2.0, 1.0)}, "sigma"),
        ({"translate": 0.5}, "translate"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
    ],
)
def test_impossible_options_are_refused_with_a_sentence(options, word):
    with pytest.raises(ValueError, match=rf"^{word}\b.*\.$"):
        augment.Augmentation(**{"size": 32, **options})


@pytest.mark.parametrize("strength", [-0.1, 1.3])
def test_impossible_strength_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        augment.simclr(32, strength=strength)


@pytest.mark.parametrize(
    "batch",
    [torch.zeros(2, 3, 8, 8), *(torch.zeros(shape, dtype=torch.uint8) for shape in [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3)])],
    ids=["floats", "one image", "one channel", "channels last"],
)
def test_other_batches_are_refused_with_a_sentence(batch):
    with pytest.raises(ValueError, match=r"uint8 images \(N, 3, H, W\); this batch is .*\d"):
        augment.simclr(8)(batch)


# --- on a GPU -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("name", FACTORY_NAMES)
def test_nothing_waits_for_the_gpu(name):
    transform, images = getattr(augment, name)(64).to("cuda"), colourful(8, 48, 48, "cuda")
    transform(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        transform(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_both_devices_make_the_same_of_the_same_parameters():
    transform, images = augment.Augmentation(64, **{**EVERYTHING, "solarize": 0.0}), colourful(16, 48, 48)
    drawn = transform.draw(16, 48, 48)
    on_cpu = transform.apply_drawn(images, drawn)
    on_gpu = transform.to("cuda").apply_drawn(images.cuda(), {name: value.cuda() for name, value in drawn.items()})
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_views_are_the_same_inside_an_autocast_context(device):
    images = colourful(4, 40, 40, device)
    view = augment.simclr(32).to(device)
    torch.manual_seed(1)
    plain = view(images)
    torch.manual_seed(1)
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = view(images)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)
