"""Named data sets: `load("toybox")` gives an ImageSet, uint8 tensors with labels and class names."""

import difflib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslcourse import files
from sslcourse.datasets import prepared, toybox
from sslcourse.errors import CourseError


@dataclass(frozen=True)
class DatasetInfo:
    """One row of `available()`. `images` counts all splits; `size` is in pixels, `download_bytes` in bytes."""

    name: str
    classes: int
    images: int
    size: int
    download_bytes: int
    how: str
    prepared: bool = False


# What is known before a data set is there. Where they come from is in sources.SOURCES.
KNOWN = {
    "toybox": DatasetInfo("toybox", 10, 14_000, toybox.SIZE, 0, "nothing to do: drawn on first use"),
    "stl10": DatasetInfo("stl10", 10, 113_000, 96, 2_640_397_119, "python data_setup.py stl10"),
    "cifar10": DatasetInfo("cifar10", 10, 60_000, 32, 170_498_071, "python data_setup.py cifar10"),
    "flowers": DatasetInfo("flowers", 5, 3_670, 96, 228_813_984, "python data_setup.py flowers"),
    "cats-vs-dogs": DatasetInfo("cats-vs-dogs", 2, 25_000, 96, 825_000_000, "python data_setup.py cats-vs-dogs"),
}


@dataclass(repr=False)
class ImageSet:
    """A data set in memory or mapped from disk: images uint8 (N, 3, H, H) of one size H, labels int64 (N,).

    Where a data set has no unlabelled images, `unlabeled` *is* `train_images` (the same memory). `mean` and `std` are per channel, in 0..1.
    TypeError or ValueError for tensors of another kind or shape.
    """

    name: str
    class_names: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    unlabeled: Tensor | None = None
    known_identity: str | None = None  # what `identity` says, where it need not be computed

    def __post_init__(self) -> None:
        self.class_names = [str(name) for name in self.class_names]
        self.mean, self.std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean and std need 3 values each, not {len(self.mean)} and {len(self.std)}.")
        self.unlabeled = self.train_images if self.unlabeled is None else self.unlabeled
        for part in prepared.PARTS:
            tensor, kind = getattr(self, part), torch.int64 if part.endswith("_labels") else torch.uint8
            if not isinstance(tensor, Tensor) or tensor.dtype != kind:
                raise TypeError(f"{part} must be a tensor of {kind}, not {getattr(tensor, 'dtype', type(tensor).__name__)}.")
            if kind == torch.uint8 and (tensor.ndim != 4 or tensor.shape[1:] != (3, self.size, self.size)):
                raise ValueError(f"{part} must have shape (N, 3, H, H), with one H for all parts, not {tuple(tensor.shape)}.")
        for split in prepared.SPLITS:
            labels, count = getattr(self, f"{split}_labels"), len(getattr(self, f"{split}_images"))
            if labels.shape != (count,):
                raise ValueError(f"{split}_labels has shape {tuple(labels.shape)} for {count} images: one label an image is needed.")
            for label in (int(labels.min()), int(labels.max())) if count else ():
                if not 0 <= label < self.num_classes:
                    told = f"there are {self.num_classes} classes, counted from 0; unlabelled images belong in .unlabeled"
                    raise ValueError(f"{split}_labels contains {label}, and {told}.")

    size = property(lambda self: self.train_images.shape[-1], doc="Height and width of every image, in pixels.")
    num_classes = property(lambda self: len(self.class_names))

    @property
    def identity(self) -> str:
        """16 hexadecimal digits, a hash of the contents (class names, labels, pixels) that this set was loaded or made with.

        `few_labels` and `subset` keep it: what they choose follows from their arguments. A resized copy has another one.
        """
        if self.known_identity is None:
            parts = {part: getattr(self, part).cpu() for part in prepared.PARTS if part != "unlabeled"}
            parts |= {} if self.unlabeled is self.train_images else {"unlabeled": self.unlabeled.cpu()}
            self.known_identity = prepared.identity(self.class_names, parts)
        return self.known_identity

    def to(self, device: str | torch.device) -> "ImageSet":
        """The same ImageSet with every tensor on `device`. Images that two parts share are moved once and stay shared."""
        moved = {part: getattr(self, part).to(device) for part in prepared.PARTS if part != "unlabeled"}
        return replace(self, unlabeled=None if self.unlabeled is self.train_images else self.unlabeled.to(device), **moved)

    def few_labels(self, per_class: int = 10, seed: int = 0) -> "ImageSet":
        """The same ImageSet with `per_class` labelled training images of each class, in their order; the other parts stay as they are.

        The choice depends on `seed` and the labels, and is nested: those for 10 per class are among those for 20 per class.
        ValueError if `per_class` < 1 or a class has fewer images than that.
        """
        rows = few_rows(self.train_labels, self.class_names, per_class, seed).to(self.train_labels.device)
        chosen = {"train_images": self.train_images[rows], "train_labels": self.train_labels[rows]}
        return replace(self, known_identity=self.identity, **chosen)

    def subset(self, *, unlabeled=None, train=None, validation=None, test=None, seed: int = 0) -> "ImageSet":
        """The same ImageSet with at most so many images in a part, drawn at random by `seed`, in their order. None keeps all.

        Every class keeps an image in a labelled part (three in train), where so many images allow that.
        ValueError for a count that is not a whole number of at least 0.
        """
        chosen = {}
        for part, most in {"unlabeled": unlabeled, "train": train, "validation": validation, "test": test}.items():
            if most is None:
                continue
            if isinstance(most, bool) or not isinstance(most, int) or most < 0:
                raise ValueError(f"{part} is {most!r}; it must be a whole number of at least 0, or None to keep all images.")
            fields = ["unlabeled"] if part == "unlabeled" else [f"{part}_images", f"{part}_labels"]
            images = getattr(self, fields[0])
            rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            classes = torch.zeros_like(rows) if part == "unlabeled" else getattr(self, fields[1]).cpu()
            rows = rows_of_every_class(rows, classes, most, each=3 if part == "train" else 1).sort().values.to(images.device)
            chosen |= {name: getattr(self, name)[rows] for name in fields}
        return replace(self, known_identity=self.identity, **chosen)

    def __repr__(self) -> str:
        counts = [("unlabeled", self.unlabeled), *((split, getattr(self, f"{split}_images")) for split in prepared.SPLITS)]
        numbers = " · ".join(f"{len(images):,} {part}" for part, images in counts)
        shared = " (unlabeled is train)" if self.unlabeled is self.train_images else ""
        return f"{self.name}: {self.num_classes} classes, {self.size}×{self.size} · {numbers}{shared} · {self.train_images.device}"


def rows_of_every_class(order: Tensor, labels: Tensor, most: int, each: int = 1) -> Tensor:
    """The first `most` of the row numbers in `order`, unless they lack a class: then the first of each class, up to `each`, come before.

    labels: (N,), those that `order` numbers.
    """
    turn = _turn(labels[order]).clamp(max=each)
    complete = int((turn[:most] < each).sum()) == int((turn < each).sum())
    return order[:most] if complete else order[turn.argsort(stable=True)][:most]


def first_of_each(labels: Tensor, n: int) -> Tensor:
    """The row numbers of n images (fewer, where there are fewer): the first of each class, then the second of each, and so on."""
    return (_turn(labels) * len(labels) + labels).argsort()[:n]


def _turn(labels: Tensor) -> Tensor:
    """How many rows of the same class stand before each row: (N,) -> (N,)."""
    order, counts, turn = labels.argsort(stable=True), torch.bincount(labels), torch.empty_like(labels)
    turn[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return turn


def few_rows(labels: Tensor, class_names: Sequence[str], per_class: int, seed: int = 0) -> Tensor:
    """Sorted int64 indices (classes · per_class,) of `per_class` random rows of each class; see `ImageSet.few_labels`."""
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise ValueError(f"per_class is {per_class!r}; it must be a whole number of at least 1.")
    by_class = prepared.shuffled_by_class(labels.cpu(), len(class_names), seed)  # cut from one order, so they nest
    for name, rows in zip(class_names, by_class, strict=True):
        if len(rows) < per_class:
            raise ValueError(f"Class {name!r} has {len(rows)} training images, fewer than per_class={per_class}.")
    return torch.from_numpy(np.sort(np.concatenate([rows[:per_class] for rows in by_class])))


def load(name="toybox", data_dir: str | os.PathLike = "data", size: int | None = None, device="cpu", **options) -> ImageSet:
    """An ImageSet, by name, from `data_dir`. On the CPU images stay mapped from disk: nothing is read until it is used.

    name: one of `available()`. `toybox` is drawn on first use; the others have to be prepared once: `python data_setup.py stl10`.
    size: pixels, 8..512; None is the stored size. Another size is made once (bilinear, antialiased; toybox is drawn anew) and kept as
    `<name>-<size>`. options, for toybox only: shortcut, upright, seed, and the counts unlabeled, train, validation, test.
    CourseError if the data set is unknown, not prepared or damaged, or if the disk cannot take what is made; ValueError for a wrong option.
    """
    check_size(size)
    name, data_dir = known_spelling(name), files.folder_of(data_dir, "data_dir", "data")
    if name == "toybox":
        _, about, parts = toybox.load(data_dir, size, **options)
    elif options:
        raise ValueError(f"{', '.join(f'{key}=' for key in options)} can be used with toybox only, not with {name!r}.")
    else:
        about, parts = _prepared(name, data_dir)
        if size not in (None, about["size"]):
            views = {part: prepared.Rows(array, range(len(array)), size) if array.ndim == 4 else array for part, array in parts.items()}
            facts = dict(source=f"{about['source']}, resized from {about['size']}", class_names=about["class_names"])
            facts |= dict(options={"resized_from": about["id"]}, identity=prepared.resized_identity(about["identity"], size))
            _, about, parts = prepared.made_once(data_dir / f"{name}-{size}", lambda: views, **facts)
            about |= facts  # a copy that an older version made does not know its identity
    tensors = {part: torch.from_numpy(array) for part, array in parts.items()}
    return ImageSet(name, about["class_names"], about["mean"], about["std"], known_identity=about["identity"], **tensors).to(device)


def _prepared(name: str, data_dir: Path) -> tuple[dict, dict]:
    folder, where = data_dir / name, f"--data-dir {shlex.quote(str(data_dir))}"
    if prepared.is_there(folder):
        return prepared.read(folder)
    if folder.exists():
        way = f"If these are your images: python data_setup.py --from {shlex.quote(str(folder))} --name another-name {where}"
        raise CourseError(f"{folder} exists but is not a prepared data set. {way}")
    if name in KNOWN:
        way = f"Run: python data_setup.py {name} {where} (in Colab: !python -m sslcourse data {name} {where})."
        raise CourseError(f"The data set {name!r} is not prepared in {data_dir} (DATA_DIR). {way} 'toybox' works at once.")
    names = [info.name for info in available(data_dir)]
    guess = "".join(f" Did you mean {close!r}?" for close in difflib.get_close_matches(name, names, n=1))
    way = f"Your own images: python data_setup.py --from photos.zip --name {name} {where}"
    raise CourseError(f"There is no data set {name!r} in {data_dir}.{guess} Available: {', '.join(names)}. {way}")


def check_size(size: int | None) -> None:
    """ValueError unless `size` is None or a whole number of pixels, 8..512."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 512):
        raise ValueError(f"size is {size!r}; it must be a whole number of pixels from 8 to 512, or None for the stored size.")


def known_spelling(name: str) -> str:
    """The name as it is stored: `STL10` is `stl10`; own names stay as they are. CourseError for what cannot be a name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise CourseError(f"{name!r} cannot name a data set: use letters, digits, '-', '_' and '.', and begin with a letter or digit.")
    return name.lower() if name.lower() in KNOWN else name


class Available(list):
    """A list of DatasetInfo that prints as a table."""

    def __repr__(self) -> str:
        line = "{:<14} {:>7} {:>8} {:>8} {:>9} {:>9}  {}".format
        lines = [line("name", "classes", "images", "size", "download", "prepared", "how to get it")]
        for i in self:
            size, download = f"{i.size}×{i.size}", prepared.human(i.download_bytes) if i.download_bytes else "none"
            lines.append(line(i.name, i.classes, f"{i.images:,}", size, download, "yes" if i.prepared else "no", i.how))
        return "\n".join([*lines, "Your own images: python data_setup.py --from photos.zip --name my-photos"])


def available(data_dir: str | os.PathLike = "data") -> Available:
    """A list of DatasetInfo (print it for a table): the known data sets, then your own that are prepared in `data_dir`."""
    found = {}
    for path in sorted(files.folder_of(data_dir, "data_dir", "data").glob("*/about.json")):
        try:
            about = prepared.read_about(path.parent)
        except CourseError:
            continue  # a damaged folder is reported when somebody asks for it by name
        copy = "resized_from" in about["options"] and about["name"].endswith(f"-{about['size']}")
        if not copy and not about["name"].startswith("toybox-"):
            images = sum(about["counts"].get(part, 0) for part in prepared.PARTS if not part.endswith("_labels"))
            known = KNOWN.get(about["name"], DatasetInfo(about["name"], 0, 0, 0, 0, "your own"))
            found[known.name] = replace(known, prepared=True, classes=len(about["class_names"]), images=images, size=about["size"])
    return Available({**KNOWN, **found}.values())
