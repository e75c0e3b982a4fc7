"""Own images in every lesson: what a lesson does instead of what a small, imbalanced or many-sided data set does not allow, said first."""

import math
import warnings
from dataclasses import replace

import numpy as np
import torch

from sslcourse import plots
from sslcourse.datasets import prepared
from sslcourse.errors import CourseError
from sslcourse.plots.matrices import NAMED

LEAST = 4  # images that a class needs beside its test images: three to learn from, and one to choose by
TO_CHOOSE_BY = 40  # validation images with which accuracies, neighbours and maps begin to say something


def fitted(images, labels: int, batch: int) -> tuple:
    """(an ImageSet with which every lesson runs to its end, a sentence about what is done instead of the usual; "" where nothing is).

    Classes with fewer than 4 images beside their test images are left out. Where the validation split is very small or lacks a class,
    training images go over to it. labels: a class, as the lesson would take them. batch: unlabelled images a step.
    CourseError where fewer than two classes are left.
    """
    together = torch.bincount(torch.cat([images.train_labels, images.validation_labels]), minlength=images.num_classes)
    rare = [name for name, n in zip(images.class_names, together.tolist(), strict=True) if n < LEAST]
    if images.num_classes - len(rare) < 2:
        need = f"a lesson needs two classes with at least {LEAST} images beside those for the test"
        raise CourseError(f"DATASET is {images.name!r}, which is too small: {need}. Add images to its folders, and import them again.")
    before = len(images.validation_labels)
    images = _dealt(_without(images, rare) if rare else images)
    names, after = images.class_names, len(images.validation_labels)
    train, test = (torch.bincount(labels, minlength=len(names)) for labels in (images.train_labels, images.test_labels))
    warnings.filterwarnings("ignore", message="The number of unique classes")  # scikit-learn's, of each probe on a label or two per class
    share, unwritten = test.max() / max(1, int(test.sum())), plots.fonts_for("".join(names))
    told = [
        (rare, f"classes with fewer than {LEAST} images beside those for the test are left out ({', '.join(rare)})"),
        (after != before, f"training and validation images are dealt anew, with {after} to choose by, where there were {before}"),
        (train.min() < labels, f"comparisons take at most {train.min()} labels per class and not {labels}, because "
         f"{names[train.argmin()]!r} has no more training images"),
        (share > 1.5 / len(names), f"who always says {names[test.argmax()]!r} is right in {100 * share:.0f} % of the test images, "
         "which is what to compare with"),
        (len(names) <= 3, "top-3 accuracy is left out, because it is 100 %"),
        (len(names) > NAMED, f"figures name or show at most {NAMED} of its {len(names)} classes"),
        (len(images.unlabeled) < batch, f"a step takes all its {len(images.unlabeled)} unlabelled images and not {batch}, "
         "so a larger BUDGET helps"),
        (unwritten, f"figures show boxes for {unwritten}, which no font here has (install one, such as Noto Sans CJK, and restart)"),
    ]  # fmt: skip
    said = "; ".join(sentence for holds, sentence in told if holds)
    return images, f"On {images.name}: {said}." if said else ""


def _without(images, names: list[str]):
    """The same ImageSet without these classes, numbered anew; a pool of unlabelled images of its own stays."""
    kept = torch.tensor([c for c, name in enumerate(images.class_names) if name not in names])
    fields = {"class_names": [images.class_names[c] for c in kept]}
    for split in prepared.SPLITS:
        labels = getattr(images, f"{split}_labels")
        rows = torch.isin(labels, kept)
        fields |= {f"{split}_images": getattr(images, f"{split}_images")[rows], f"{split}_labels": torch.searchsorted(kept, labels[rows])}
    return replace(images, **fields, unlabeled=None if images.unlabeled is images.train_images else images.unlabeled)


def _dealt(images):
    """The same ImageSet with 40 validation images, or as many as can be spared, and at least one of each class."""
    splits = ("train", "validation")
    train, there = (torch.bincount(getattr(images, f"{split}_labels"), minlength=images.num_classes) for split in splits)
    wanted = math.ceil(TO_CHOOSE_BY / images.num_classes) if len(images.validation_labels) < TO_CHOOSE_BY else 1
    both = train + there
    spared = torch.minimum(both // 3, both - 10).clamp(min=1)  # comparisons take ten labels of each class where they can
    aside = torch.minimum(torch.maximum(there, spared.clamp(max=wanted)), both - 3)
    if torch.equal(aside, there):
        return images
    pictures, labels = (torch.cat([getattr(images, f"{split}_{kind}") for split in splits]) for kind in ("images", "labels"))
    by_class = prepared.shuffled_by_class(labels, images.num_classes, seed=0)
    parts = [(rows[n:], rows[:n]) for rows, n in zip(by_class, aside.tolist(), strict=True)]
    fields = {}
    for split, of_class in zip(splits, zip(*parts, strict=True), strict=True):
        rows = np.sort(np.concatenate(of_class))
        fields |= {f"{split}_images": pictures[rows], f"{split}_labels": labels[rows]}
    return replace(images, **fields, unlabeled=None if images.unlabeled is images.train_images else images.unlabeled)
