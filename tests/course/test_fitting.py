"""What a lesson does with a data set that is too small, too imbalanced or has too many classes for something in it."""

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib import font_manager

from sslcourse import plots
from sslcourse.course import fitting
from sslcourse.datasets import ImageSet
from sslcourse.errors import CourseError


def image_set(train, validation, test=None, names=None, own_pool=False):
    """An ImageSet with so many images of each class in its splits, each image of one colour of its own."""
    parts, colour = {}, 0
    for split, counts in (("train", train), ("validation", validation), ("test", test or [3] * len(train))):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        colours = torch.arange(colour, colour := colour + len(labels), dtype=torch.uint8)
        parts |= {f"{split}_images": colours.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone(), f"{split}_labels": labels}
    pool = torch.zeros(300, 3, 8, 8, dtype=torch.uint8) if own_pool else None
    names = names or [f"c{k}" for k in range(len(train))]
    return ImageSet("mine", names, (0.5,) * 3, (0.2,) * 3, **parts, unlabeled=pool)


@pytest.fixture
def fonts_of_matplotlib(monkeypatch):
    """No fonts but those that come with Matplotlib, whatever is installed here."""
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)


def fitted(images, labels=10, batch=32):
    return fitting.fitted(images, labels, batch)


def counts(images, split):
    return torch.bincount(getattr(images, f"{split}_labels"), minlength=images.num_classes).tolist()


def colours(images, split):
    return getattr(images, f"{split}_images")[:, 0, 0, 0].tolist()


def test_a_set_that_has_enough_of_everything_stays_as_it_is_and_nothing_is_said():
    images = image_set([20] * 4, [10] * 4)
    assert fitted(images) == (images, "")


@pytest.mark.parametrize(("train", "validation", "then", "least"), [
    ([22, 22], [2, 2], [8, 8], 16),  # a third
    ([13, 13], [1, 1], [4, 4], 10),  # ten labels per class come first
    ([8, 29], [1, 3], [1, 10], 8),  # one, of a class that has less than that
    ([3, 29, 29], [1, 3, 3], [1, 10, 10], 3),
    ([20, 20], [40, 0], [40, 1], 19),  # a class without any
    ([1, 20], [20, 20], [18, 20], 3),  # three to learn from
])  # fmt: skip
def test_training_and_validation_are_dealt_anew_where_one_is_too_small(train, validation, then, least):
    images, told = fitted(before := image_set(train, validation))
    assert counts(images, "validation") == then and min(counts(images, "train")) == least
    assert sum(counts(images, "train")) + sum(then) == sum(train) + sum(validation)
    assert set(colours(images, "train") + colours(images, "validation")) == set(colours(before, "train") + colours(before, "validation"))
    assert images.unlabeled is images.train_images and images.test_images is before.test_images
    assert f"dealt anew, with {sum(then)} to choose by, where there were {sum(validation)}" in told and told.startswith("On mine: ")


def test_a_class_with_hardly_an_image_is_left_out_of_all_splits_and_the_others_keep_their_names():
    images, told = fitted(image_set([2, 30, 30], [1, 20, 20], [1, 5, 6], names=["odd", "cat", "dog"], own_pool=True))
    assert images.class_names == ["cat", "dog"] and "left out (odd)" in told and len(images.unlabeled) == 300
    assert [counts(images, split) for split in ("train", "validation", "test")] == [[30, 30], [20, 20], [5, 6]]
    with pytest.raises(CourseError, match=r"DATASET is 'mine', which is too small: .*two classes with at least 4 images.*Add images"):
        fitted(image_set([30, 2], [20, 1]))


@pytest.mark.parametrize(("images", "labels", "sentence"), [
    (image_set([30, 12, 30, 30], [10] * 4), 20, "at most 12 labels per class and not 20, because 'c1'"),
    (image_set([30] * 4, [10] * 4, [90, 10, 10, 10]), 10, "always says 'c0' is right in 75 % of the test images"),
    (image_set([30] * 2, [20] * 2), 10, "top-3 accuracy is left out"),
    (image_set([10] * 22, [2] * 22, [1] * 22), 10, "at most 20 of its 22 classes"),
    (image_set([5] * 4, [10] * 4), 5, "a step takes all its 20 unlabelled images and not 32"),
    (image_set([30] * 4, [10] * 4, names=["$", "_", "a b", "中文"]), 10, "figures show boxes for 中文, which no font here has"),
])  # fmt: skip
def test_what_a_lesson_does_instead_is_one_sentence(images, labels, sentence, fonts_of_matplotlib):
    same, told = fitted(images, labels)
    assert sentence in told and told.count(". ") == 0 and told.endswith(".") and same is images


def test_a_font_that_has_the_letters_is_taken_if_there_is_one(fonts_of_matplotlib, recwarn):
    with matplotlib.rc_context():
        plots.use_style()
        assert plots.fonts_for("c\u1d81$") == "" and "STIXGeneral" in matplotlib.rcParams["font.family"]  # DejaVu Sans has no \u1d81
        assert plots.fonts_for("中") == "中"
        figure, axis = plt.subplots()
        axis.set(title="\u1d81中 $", xlabel="$_{$")
        figure.canvas.draw()  # no formula, and no warning for each letter
        plt.close(figure)
    assert not recwarn.list
