"""The drawn data set: repeatable, extendable, balanced, and what its options do. Pixels are not compared with stored ones."""

import numpy as np
import pytest

from sslcourse.datasets import toybox


def test_shapes_and_labels():
    images, labels = toybox.make(23, size=20)
    assert images.shape == (23, 3, 20, 20) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and labels.tolist() == [i % 10 for i in range(23)]
    assert len(toybox.CLASS_NAMES) == len(set(toybox.CLASS_NAMES)) == 10


@pytest.mark.parametrize("size", [8, 9, 32, 50, 96])
def test_every_size(size):
    assert toybox.make(10, size=size)[0].shape == (10, 3, size, size)


def test_any_stretch_is_balanced():
    _, labels = toybox.make(250, size=8)
    for start in (0, 7, 133):
        assert set(np.bincount(labels[start : start + 100])) == {10}


@pytest.mark.parametrize("options", [{}, {"shortcut": True}, {"upright": False}])
def test_the_same_seed_draws_the_same_and_a_longer_draw_begins_with_a_shorter(options):
    ten, again, twenty = (toybox.make(n, seed=3, **options)[0] for n in (10, 10, 20))
    assert (ten == again).all() and (twenty[:10] == ten).all()
    assert not (twenty[10:] == ten).all((1, 2, 3)).any()


def test_other_seeds_draw_others():
    draws = [toybox.make(10, seed=seed)[0] for seed in range(4)]
    for i in range(4):
        for j in range(i):
            assert not (draws[i] == draws[j]).all((1, 2, 3)).any()


def test_no_two_images_of_a_draw_are_equal():
    images, _ = toybox.make(400, size=16)
    assert len({image.tobytes() for image in images}) == 400


def test_global_random_state_is_left_alone_and_does_not_matter():
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    first, _ = toybox.make(5)
    assert (np.random.get_state()[1] == state).all()
    np.random.seed(1)
    assert (toybox.make(5)[0] == first).all()


def test_two_processes_draw_what_one_draws():
    one, labels = toybox.make(501, size=8, seed=2)
    two, labels_of_two = toybox.make(501, size=8, seed=2, processes=2)
    assert (one == two).all() and (labels == labels_of_two).all()


@pytest.mark.parametrize("processes", [1, 2])
def test_progress_is_told_until_the_end(processes):
    told = []
    toybox.make(501, size=8, progress=lambda done, n: told.append((done, n)), processes=processes)
    assert told[-1] == (501, 501) and len(told) > 1
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_an_object_can_be_seen_on_its_background():
    images, _ = toybox.make(200)
    spread = images.reshape(200, -1).std(1)
    assert (spread > 4).mean() > 0.95


def saturation(images):
    """Mean distance between the largest and the smallest channel."""
    images = images.astype(float)
    return (images.max(1) - images.min(1)).mean((1, 2))


def border(images):
    return np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], 2)


def test_shortcut_makes_backgrounds_colourful():
    plain, cluttered = (border(toybox.make(100, shortcut=shortcut)[0])[..., None] for shortcut in (False, True))
    assert saturation(cluttered).mean() > 1.5 * saturation(plain).mean()


def test_shortcut_makes_colour_tell_images_apart():
    """Their mean colours, brightness aside, lie further apart."""

    def spread(shortcut):
        colours = toybox.make(200, shortcut=shortcut)[0].mean((2, 3))
        return (colours - colours.mean(1, keepdims=True)).std(0).mean()

    assert spread(True) > 1.5 * spread(False)


def asymmetry(images):
    """How much the mean image of a class differs from itself upside down, averaged over classes, in grey levels."""
    contrast = np.abs(images.astype(float) - np.median(border(images), axis=(1, 2))[:, None, None, None]).mean(1)
    means = np.stack([contrast[c::10].mean(0) for c in range(10)])
    return np.abs(means - means[:, ::-1]).mean()


def test_objects_stand_upright_unless_told_otherwise():
    upright, turned = (asymmetry(toybox.make(1000, size=16, upright=upright)[0]) for upright in (True, False))
    assert upright > 2 * turned


def test_classes_look_different():
    """The mean images of classes differ more than those of two random halves of one class."""
    images, _ = toybox.make(1000, size=16)
    contrast = np.abs(images.astype(float) - np.median(border(images), axis=(1, 2))[:, None, None, None]).mean(1)
    first, second = (np.stack([contrast[c::10][half::2].mean(0) for c in range(10)]) for half in (0, 1))
    distance = np.linalg.norm((first[:, None] - second[None]).reshape(10, 10, -1), axis=2)
    assert (distance.argmin(1) == np.arange(10)).sum() >= 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 0}, "n is the number of images to draw and must be at least 1, not 0."),
        ({"n": 5, "size": 7}, "between 8 and 512, not 7."),
        ({"n": 5, "size": 513}, "between 8 and 512, not 513."),
        ({"n": 5, "seed": -1}, "seed must be a non-negative whole number, not -1."),
    ],
)
def test_impossible_numbers_are_refused_with_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        toybox.make(**arguments)
