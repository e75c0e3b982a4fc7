"""The drawn data set: always the same pixels, extendable, balanced, and what its options do."""

import numpy as np
import pytest

from sslcourse.datasets import toybox


@pytest.mark.parametrize("options", [{}, {"shortcut": True}, {"upright": False}])
def test_the_same_seed_draws_the_same_and_a_longer_draw_begins_with_a_shorter(options):
    ten, again, twenty = (toybox.make(n, seed=3, **options)[0] for n in (10, 10, 20))
    assert (ten == again).all() and (twenty[:10] == ten).all()
    assert len({image.tobytes() for image in (*twenty, *toybox.make(20, seed=4, **options)[0])}) == 40  # none is drawn twice


@pytest.mark.parametrize("size", [8, 9, 96])
def test_shapes_and_labels_whatever_the_global_random_state(size):
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    images, labels = toybox.make(23, size=size)
    assert images.shape == (23, 3, size, size) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and labels.tolist() == [i % 10 for i in range(23)]
    assert (np.random.get_state()[1] == state).all()


def border(images):
    return np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], 2)


def test_shortcut_makes_backgrounds_colourful_and_colour_tell_images_apart():
    plain, cluttered = (toybox.make(200, shortcut=shortcut)[0].astype(float) for shortcut in (False, True))
    saturation = [(border(images).max(1) - border(images).min(1)).mean() for images in (plain, cluttered)]

    def spread(images):  # of the mean colours, brightness aside
        colours = images.mean((2, 3))
        return (colours - colours.mean(1, keepdims=True)).std(0).mean()

    assert saturation[1] > 1.5 * saturation[0] and spread(cluttered) > 1.5 * spread(plain)


def class_means(images):
    """The mean distance from the background, by class: (10, 2, H, W), of the even images of the class and of the odd ones."""
    contrast = np.abs(images.astype(float) - np.median(border(images), axis=(1, 2))[:, None, None, None]).mean(1)
    return np.stack([[contrast[c::10][half::2].mean(0) for half in (0, 1)] for c in range(10)])


def test_objects_stand_upright_unless_told_otherwise_and_classes_look_different():
    upright, turned = (class_means(toybox.make(1000, size=16, upright=upright)[0]).mean(1) for upright in (True, False))
    assert np.abs(upright - upright[:, ::-1]).mean() > 2 * np.abs(turned - turned[:, ::-1]).mean()
    first, second = class_means(toybox.make(1000, size=16)[0]).transpose(1, 0, 2, 3)
    distance = np.linalg.norm((first[:, None] - second[None]).reshape(10, 10, -1), axis=2)
    assert (distance.argmin(1) == np.arange(10)).sum() >= 8
