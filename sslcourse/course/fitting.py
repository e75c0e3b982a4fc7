"""Own images in every lesson: what a lesson does instead of what a small, imbalanced or many-sided data set does not allow, said first."""

import math
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
    told = []
    known = torch.cat([images.train_labels, images.validation_labels])
    counts = torch.bincount(known, minlength=images.num_classes)
    kept = (counts >= LEAST).nonzero().flatten().tolist()
    if len(kept) < 2:
        need = f"a lesson needs two classes with at least {LEAST} images beside those for the test"
        raise CourseError(f"DATASET is {images.name!r}, which is too small: {need}. Add images to its folders, and import them again.")
    if len(kept) < images.num_classes:
        few = [images.class_names[c] for c in (counts < LEAST).nonzero().flatten()]
        told.append(f"classes with fewer than {LEAST} images beside those for the test are left out ({_some(few)})")
        images = _only(images, kept)
    before, images = len(images.validation_labels), _dealt(images)
    if len(images.validation_labels) != before:
        now = f"{len(images.validation_labels)} to choose by, where there were {before}"
        told.append(f"training and validation images are dealt anew, with {now}")
    counts = torch.bincount(images.train_labels, minlength=images.num_classes)
    least = int(counts.min())
    if least < labels:
        rarest = images.class_names[int(counts.argmin())]
        told.append(f"comparisons take at most {least} labels a class and not {labels}, because {rarest!r} has no more training images")
    shares = torch.bincount(images.test_labels, minlength=images.num_classes) / max(1, len(images.test_labels))
    if shares.max() > 1.5 / images.num_classes:
        always = images.class_names[int(shares.argmax())]
        told.append(f"who always says {always!r} is right in {100 * shares.max():.0f} % of the test images, which is what to compare with")
    if images.num_classes <= 3:
        told.append("top-3 accuracy is left out, because it is 100 %")
    if images.num_classes > NAMED:
        told.append(f"figures name or show at most {NAMED} of its {images.num_classes} classes")
    if len(images.unlabeled) < batch:
        told.append(f"a step takes all its {len(images.unlabeled)} unlabelled images and not {batch}, so a larger BUDGET helps")
    if unwritten := plots.fonts_for("".join(images.class_names)):
        told.append(f"figures show boxes for {unwritten}, which no font here has (install one, such as Noto Sans CJK, and restart)")
    return images, f"On {images.name}: {'; '.join(told)}." if told else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _only(images, kept: list[int]):
    """The same ImageSet with these classes only, numbered anew; a pool of unlabelled images of its own stays."""
    fields = {"class_names": [images.class_names[c] for c in kept]}
    for split in prepared.SPLITS:
        labels = getattr(images, f"{split}_labels")
        rows = torch.isin(labels, torch.tensor(kept))
        fields[f"{split}_images"] = getattr(images, f"{split}_images")[rows]
        fields[f"{split}_labels"] = torch.searchsorted(torch.tensor(kept), labels[rows])
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
