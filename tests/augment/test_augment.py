"""Augmentation: the whole pipeline against torchvision's, independence between images, distributions, seeds, and what is refused."""

import inspect
import math

import pytest
import torch
from pictures import DEVICES, colourful
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from sslcourse import augment
from sslcourse.augment import augmentation
from sslcourse.devices import threads_kept

FACTORY_NAMES = ("simclr", "byol_views", "barlow_views", "weak", "strong", "evaluation")


def in_torchvision(transform, image, drawn, i):
    """One image through torchvision's operations with row i of the drawn parameters."""
    value = {name: column[i].item() for name, column in drawn.items() if column.dim() == 1}
    x = image.float() / 255
    whole = {"top": 0, "left": 0, "height": x.shape[1], "width": x.shape[2]}
    x = tv.resized_crop(x, *(int(value.get(name, all_of_it)) for name, all_of_it in whole.items()), [transform.size] * 2, antialias=True)
    if value.get("flip"):
        x = tv.horizontal_flip(x)
    for name in ("brightness", "contrast", "saturation", "hue"):
        if name in value:
            x = getattr(tv, f"adjust_{name}")(x, value[name])
    if value.get("grayscale"):
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if value.get("sigma"):
        x = tv.gaussian_blur(x, [2 * transform.blur_reach + 1] * 2, [value["sigma"]] * 2)
    if value.get("solarize"):
        x = tv.solarize(x, 0.5)
    return tv.normalize(x, augment.MEAN, augment.STD)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (50, 37, 64)])
@pytest.mark.parametrize("make", [lambda size: augment.simclr(size, blur=0.5), lambda size: augment.Augmentation(size, solarize=0.5)])
def test_a_whole_pipeline_equals_torchvisions(make, height, width, size, device):
    # solarized without operations before it, so that no pixel lies on the other side of the threshold by rounding
    transform = make(size).to(device)
    images = colourful(24, size if transform.solarize else height, size if transform.solarize else width, device)
    drawn = transform.draw(24, *images.shape[2:], device, torch.Generator(device).manual_seed(3))
    done = transform.apply_drawn(images, drawn)
    for i in range(24):
        # the operations are chained and then divided by 0.25; contrast and saturation may magnify an earlier error by 1.8 each
        torch.testing.assert_close(done[i], in_torchvision(transform, images[i], drawn, i), rtol=0, atol=5e-5)


JITTER = (0.4, 0.4, 0.4, 0.1)
EVERYTHING = {"crop": (0.2, 1.0), "flip": 0.5, "jitter": JITTER, "grayscale": 0.5, "blur": 0.5, "solarize": 0.5, "cutout": 0.5}


@pytest.mark.parametrize("rows", [12, 13, 40])
def test_chunks_give_what_one_go_gives(rows, monkeypatch):
    transform, images = augment.Augmentation(16, **EVERYTHING), colourful(rows, 24, 18)
    torch.manual_seed(5)
    drawn = transform.draw(rows, 24, 18)
    whole = transform.apply_drawn(images, drawn)
    monkeypatch.setattr(augmentation, "CHUNK_VALUES", 1)  # the smallest chunks there are, a dozen images
    torch.manual_seed(5)
    torch.testing.assert_close(transform(images), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "height", "width", "size"), [(64, 32, 32, 32), (24, 96, 96, 96), (2, 260, 200, 224)])
def test_the_number_of_threads_changes_no_bit(n, height, width, size):
    transform, images, views = augment.Augmentation(size, **EVERYTHING), colourful(n, height, width), []
    with threads_kept():
        for number in (1, 2, 2, 2, 3):  # two and three may become one
            torch.set_num_threads(number)
            torch.manual_seed(1)
            views.append(transform(images))
    assert all(torch.equal(views[0], view) for view in views[1:])


def drawn_many(transform, n=4000, height=40, width=40, seed=0):
    return transform.draw(n, height, width, generator=torch.Generator().manual_seed(seed))


def test_how_often_each_operation_happens_and_how_far_it_goes():
    jitter = (0.4, 0.8, 0.2, 0.1)
    options = {"flip": 0.5, "jitter": jitter, "jitter_p": 0.8, "grayscale": 0.2, "blur": 0.3, "sigma": (0.5, 1.5), "solarize": 0.1}
    drawn = drawn_many(augment.Augmentation(40, translate=0.1, **options))
    happens = {name: drawn[name] > 0 for name in ("flip", "grayscale", "sigma", "solarize")} | {"jitter": drawn["brightness"] != 1}
    happens |= {"flip and grey": happens["flip"] & happens["grayscale"], "blur and jitter": happens["sigma"] & happens["jitter"]}
    rates = {"flip": 0.5, "grayscale": 0.2, "sigma": 0.3, "solarize": 0.1, "jitter": 0.8, "flip and grey": 0.1, "blur and jitter": 0.24}
    for name, rate in rates.items():  # within five standard deviations of the binomial distribution
        assert abs(happens[name].float().mean().item() - rate) < 5 * math.sqrt(rate * (1 - rate) / 4000), name
    ranges = [("brightness", 1, 0.4), ("contrast", 1, 0.8), ("saturation", 1, 0.2), ("hue", 0, 0.1), ("sigma", 1, 0.5)]
    for name, middle, reach in ranges:
        values = drawn[name][happens["sigma" if name == "sigma" else "jitter"]]
        assert ((values - middle).abs() <= reach + 1e-6).all()
        assert values.min() < middle - 0.97 * reach and values.max() > middle + 0.97 * reach
        assert abs(values.mean().item() - middle) < 5 * reach / math.sqrt(3 * len(values))
        if name != "sigma":  # jittered together or not at all
            assert (drawn[name][~happens["jitter"]] == middle).all()
    counts = torch.bincount((drawn["shift"].flatten() + 4).long(), minlength=9)
    assert len(counts) == 9 and counts.min() > 0.8 * 8000 / 9 and counts.max() < 1.2 * 8000 / 9


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

    def quantiles(c):
        """Of area, aspect ratio and place; of 3,000 draws of such a spread their standard error is below 0.01."""
        measures = torch.stack([c[:, 2] * c[:, 3] / (height * width), (c[:, 3] / c[:, 2]).log(), c[:, 0] / height, c[:, 1] / width])
        return measures.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]), dim=1)

    assert (quantiles(ours) - quantiles(theirs)).abs().max() < 0.06


def test_a_crop_that_cannot_fit_becomes_the_whole_image():
    drawn = drawn_many(augment.Augmentation(8, crop=(1.0, 1.0), ratio=(3.0, 3.0)), 10, 20, 20)
    assert (drawn["height"] == 20).all() and (drawn["width"] == 20).all() and not drawn["top"].any() and not drawn["left"].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FACTORY_NAMES)
def test_seeds_and_generators_repeat_the_views_and_other_seeds_do_not(name, device):
    transform, images = getattr(augment, name)(16).to(device), colourful(8, 16, 16, device)
    before = images.clone()

    def views(seed=None, generator=None):
        if seed is not None:
            torch.manual_seed(seed)
        done = transform(images, generator)
        return torch.cat(done) if isinstance(done, list) else done

    def state():
        return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state()

    assert torch.equal(views(0), views(0))
    assert torch.equal(views(0), views(1)) == (name == "evaluation")
    torch.manual_seed(0)
    begun = state()
    one, two = (views(generator=torch.Generator(device).manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(state(), begun)  # the global generator is left alone
    views()
    assert torch.equal(state(), begun) == (name == "evaluation")
    assert torch.equal(images, before)
    copies = transform(images[:1].expand(16, -1, -1, -1))[0 if "views" in name else slice(None)]
    assert name in ("weak", "evaluation") or len(copies.flatten(1).unique(dim=0)) == 16


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


@pytest.mark.parametrize(("size", "blurs"), [(32, (0, 0, 0)), (63, (0, 0, 0)), (64, (0.5, 1, 0.1)), (96, (0.5, 1, 0.1))])
def test_views_of_the_papers(size, blurs):
    simclr = augment.simclr(size)
    assert (simclr.jitter, simclr.grayscale, simclr.blur) == ((0.8, 0.8, 0.8, 0.2), 0.2, blurs[0])
    for views in (augment.byol_views(size), augment.barlow_views(size)):
        assert (views.first.blur, views.second.blur) == blurs[1:]
        assert (views.first.solarize, views.second.solarize) == (0.0, 0.2)
        assert views.first.jitter == views.second.jitter == (0.4, 0.4, 0.2, 0.1)
        assert not views.state_dict()
    assert augment.simclr(size, strength=0.5).jitter == (0.4, 0.4, 0.4, 0.1) and augment.byol_views(size, blur=0.2).first.blur == 0.2


def test_every_option_is_part_of_the_description():
    given = {"crop": (0.08, 1), "flip": 0.5, "jitter": (0.4, 0.4, 0.4, 0.1), "grayscale": 0.2, "blur": 0.5, "solarize": 0.1, "cutout": 0.3}
    others = {"crop": (0.2, 1), "ratio": (1, 1), "translate": 0.1, "flip": 0, "jitter": (0.4, 0.4, 0.4, 0.1001), "jitter_p": 1}
    others |= {"blur": 1, "sigma": (0.1, 1), "solarize": 0, "cutout": 0, "mean": (0.4, 0.5, 0.5), "std": (0.25, 0.25, 0.2), "grayscale": 0}
    assert {"size", *others} == set(inspect.signature(augment.Augmentation).parameters)
    described = {repr(augment.Augmentation(32, **(given | {name: value}))) for name, value in others.items()}
    assert len(described) == len(others) and repr(augment.Augmentation(32, **given)) not in described


def test_evaluation_resizes_the_whole_image_and_normalises():
    images, mean, std = colourful(4, 40, 24), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    whole = tv.resize(images / 255, [32, 32], antialias=True)
    torch.testing.assert_close(augment.evaluation(32)(images), (whole - 0.5) / 0.25, rtol=0, atol=1e-5)
    torch.testing.assert_close(augment.evaluation(32, mean=mean, std=std)(images), tv.normalize(whole, mean, std), rtol=0, atol=1e-5)


def test_weak_only_moves_and_flips():
    images = colourful(30, 16, 16)
    for view, image in zip(augment.weak(16)(images), augment.evaluation(16)(images), strict=True):
        mirrored = [tv.pad(either, [2] * 4, padding_mode="reflect") for either in (image, tv.horizontal_flip(image))]
        candidates = [tv.crop(m, top, left, 16, 16) for m in mirrored for top in range(5) for left in range(5)]
        assert any(torch.allclose(view, c, rtol=0, atol=1e-5) for c in candidates)


def test_strong_views_differ_in_their_squares():
    images, generator = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8), torch.Generator().manual_seed(0)
    view = augment.strong(32, jitter=(0, 0, 0, 0), grayscale=0.0)
    covered = (view(images, generator)[:, 0] == 0).float().mean((1, 2))  # grey is 0 after normalisation, white is 2
    assert covered.max() <= 0.25 + 1e-6, "a square has at most half the side"
    assert 0.04 < covered.mean() < 0.09  # a third of (1/2)² in the mean, less what the edges cut off
    assert covered.unique().numel() > 50


@pytest.mark.parametrize(("name", "wrong"), [
    *[("size", 3), ("size", 32.5), ("crop", (0.0, 1.0)), ("crop", (0.5, 0.2)), ("crop", (0.5, 1.5)), ("ratio", (2.0, 1.0))],
    *[("flip", 1.5), ("jitter_p", -0.1), ("grayscale", 2), ("blur", -1), ("solarize", math.nan), ("cutout", 1.1), ("strength", 1.3)],
    *[("jitter", (0.4, 0.4, 0.4)), ("jitter", (1.4, 0.4, 0.4, 0.1)), ("jitter", (0.4, 0.4, 0.4, 0.6))],
    *[("jitter", (0.4, -0.4, 0.4, 0.1)), ("sigma", (0.0, 1.0)), ("sigma", (2.0, 1.0)), ("translate", 0.5), ("std", (0.2, 0.0, 0.2))],
])  # fmt: skip
def test_impossible_options_are_refused(name, wrong):
    make = augment.simclr if name == "strength" else augment.Augmentation
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        make(**{"size": 32, name: wrong})


@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 8, 8), *(torch.zeros(s).byte() for s in [(3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 3)])])
def test_other_batches_are_refused(batch):
    with pytest.raises(ValueError, match=r"uint8 images \(N, 3, H, W\); this batch is .*\d"):
        augment.simclr(8)(batch)


@pytest.mark.parametrize("device", DEVICES)
def test_views_are_the_same_inside_an_autocast_context(device):
    images, view = colourful(4, 40, 40, device), augment.simclr(32).to(device)
    torch.manual_seed(1)
    plain = view(images)
    torch.manual_seed(1)
    with torch.autocast(device, dtype=torch.bfloat16):
        inside = view(images)
    assert inside.dtype == torch.float32 and torch.equal(inside, plain)
