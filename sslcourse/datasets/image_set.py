"""Named data sets: `load("toybox")` gives an ImageSet, uint8 tensors with labels and class names."""

import difflib
import hashlib
import json
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sslcourse.datasets import prepared as storage
from sslcourse.datasets import toybox
from sslcourse.errors import CourseError

TOYBOX_SIZE = 32
TOYBOX_OPTIONS = {"shortcut": False, "upright": True, "seed": 0, "unlabeled": 6000, "train": 5000, "validation": 1000, "test": 2000}
TOYBOX_SPLITS = ("unlabeled", "train", "validation", "test")


@dataclass(frozen=True)
class DatasetInfo:
    """One row of `available()`. `images` counts all splits; `size` is in pixels, `download_bytes` in bytes."""

    name: str
    classes: int
    images: int
    size: int
    download_bytes: int
    needs_network: bool
    how: str
    prepared: bool = False


def _info(name, classes, images, size, download_bytes):
    return DatasetInfo(name, classes, images, size, download_bytes, True, f"python data_setup.py {name}")


# The first three things a person asks of a data set, known before it is there. Where they come from is in prepare.SOURCES.
KNOWN = {
    "toybox": DatasetInfo("toybox", 10, 14_000, TOYBOX_SIZE, 0, False, "nothing to do: drawn on first use"),
    "stl10": _info("stl10", 10, 113_000, 96, 2_640_397_119),
    "cifar10": _info("cifar10", 10, 60_000, 32, 170_498_071),
    "flowers": _info("flowers", 5, 3_670, 96, 228_813_984),
    "cats-vs-dogs": _info("cats-vs-dogs", 2, 25_000, 96, 825_000_000),
}


@dataclass(repr=False)
class ImageSet:
    """A data set in memory (or mapped from disk): images uint8 (N, 3, H, W), labels int64 (N,), all images square and of one size.

    `unlabeled` has no labels at all. Where a data set has no unlabelled images it *is* `train_images` (the same memory): the lessons then
    learn from the training images without their labels. `mean` and `std` are per channel, in 0..1. `folds`, only for STL-10, holds its ten
    official folds as row numbers, int64 (10, 1000): r < len(train_images) is a row of train, larger ones are r - len(train_images) in
    validation, because the validation images were set aside from the 5,000 official training images.

    Raises TypeError or ValueError, with a sentence, for tensors of another kind or shape.
    """

    name: str
    class_names: list
    mean: tuple
    std: tuple
    train_images: torch.Tensor
    train_labels: torch.Tensor
    validation_images: torch.Tensor
    validation_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    unlabeled: torch.Tensor = None
    folds: torch.Tensor = None

    def __post_init__(self):
        self.class_names = [str(name) for name in self.class_names]
        self.mean, self.std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean and std need 3 values each, not {len(self.mean)} and {len(self.std)}.")
        if self.unlabeled is None:
            self.unlabeled = self.train_images
        for part in ("train_images", "validation_images", "test_images", "unlabeled"):
            self._check_images(part)
        for split in storage.SPLITS:
            self._check_labels(split)

    def _check_images(self, part):
        images = getattr(self, part)
        if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
            raise TypeError(f"{part} must be a uint8 tensor, not {getattr(images, 'dtype', type(images).__name__)}.")
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"{part} must have shape (N, 3, H, H), not {tuple(images.shape)}.")
        if images.shape[-1] != self.size:
            raise ValueError(f"{part} has images of {images.shape[-1]} pixels, and train_images of {self.size}: all parts need one size.")

    def _check_labels(self, split):
        labels, images = getattr(self, f"{split}_labels"), getattr(self, f"{split}_images")
        if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64:
            raise TypeError(f"{split}_labels must be an int64 tensor, not {getattr(labels, 'dtype', type(labels).__name__)}.")
        if labels.shape != (len(images),):
            raise ValueError(f"{split}_labels has shape {tuple(labels.shape)} for {len(images)} images: one label an image is needed.")
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(f"{split}_labels contains {int(labels.min())}: unlabelled images belong in .unlabeled.")
        if len(labels) and int(labels.max()) >= self.num_classes:
            raise ValueError(f"{split}_labels contains {int(labels.max())}, and there are {self.num_classes} classes, counted from 0.")

    @property
    def size(self):
        """Height and width of every image, in pixels."""
        return self.train_images.shape[-1]

    @property
    def num_classes(self):
        return len(self.class_names)

    def to(self, device):
        """The same ImageSet with every tensor on `device`. Images that two parts share are moved once and stay shared."""
        moved = {part: getattr(self, part).to(device) for part in self._tensors() if part != "unlabeled"}
        shared = self.unlabeled is self.train_images
        moved["unlabeled"] = moved["train_images"] if shared else self.unlabeled.to(device)
        return replace(self, **moved)

    def _tensors(self):
        return [name for name, value in vars(self).items() if isinstance(value, torch.Tensor)]

    def few_labels(self, per_class=10, seed=0):
        """The same ImageSet with `per_class` labelled training images of each class; unlabeled, validation and test stay as they are.

        The choice depends only on `seed` and the labels, and it is nested: the images for 10 a class are among those for 20 a class.
        Rows keep their order. ValueError if `per_class` < 1 or a class has fewer images than that.
        """
        rows = few_rows(self.train_labels, self.class_names, per_class, seed).to(self.train_labels.device)
        return replace(self, train_images=self.train_images[rows], train_labels=self.train_labels[rows], folds=None)

    def subset(self, *, unlabeled=None, train=None, validation=None, test=None, seed=0):
        """The same ImageSet with at most so many images in a part, drawn at random; rows keep their order. None keeps all, 0 keeps none.

        For quick looks and short experiments: `images.subset(validation=500, test=0)`. The choice depends only on `seed` and the number of
        images in the part. ValueError for a count that is not a whole number of at least 0.
        """
        chosen = {}
        for part, most in {"unlabeled": unlabeled, "train": train, "validation": validation, "test": test}.items():
            if most is None:
                continue
            if isinstance(most, bool) or not isinstance(most, int) or most < 0:
                raise ValueError(f"{part} is {most!r}; it must be a whole number of at least 0, or None to keep all images.")
            images = self.unlabeled if part == "unlabeled" else getattr(self, f"{part}_images")
            rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:most].sort().values.to(images.device)
            if part == "unlabeled":
                chosen["unlabeled"] = images[rows]
            else:
                chosen |= {f"{part}_images": images[rows], f"{part}_labels": getattr(self, f"{part}_labels")[rows]}
        folds = self.folds if train is None and validation is None else None  # they are row numbers of these two
        return replace(self, folds=folds, **chosen)

    def __repr__(self):
        counts = [("unlabeled", self.unlabeled), *((split, getattr(self, f"{split}_images")) for split in storage.SPLITS)]
        numbers = " · ".join(f"{len(images):,} {part}" for part, images in counts)
        shared = " (unlabeled is train)" if self.unlabeled is self.train_images else ""
        return f"{self.name}: {self.num_classes} classes, {self.size}×{self.size} · {numbers}{shared} · {self.train_images.device}"


def few_rows(labels, class_names, per_class, seed=0):
    """-> sorted int64 indices (classes · per_class,) of `per_class` random rows of each class; see `ImageSet.few_labels`."""
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise ValueError(f"per_class is {per_class!r}; it must be a whole number of at least 1.")
    labels = labels.cpu().numpy()
    order = np.random.default_rng(seed).permutation(len(labels))  # one order for all, cut per class: this is what nests
    chosen = []
    for label, name in enumerate(class_names):
        rows = order[labels[order] == label]
        if len(rows) < per_class:
            raise ValueError(f"Class {name!r} has {len(rows)} training images, fewer than per_class={per_class}.")
        chosen.append(rows[:per_class])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def load(name="toybox", data_dir="data", size=None, device="cpu", **options):
    """-> ImageSet, by name, from `data_dir`.

    name: one of `available()`. `toybox` is drawn on first use and kept in `data_dir`; where that cannot be written it stays in memory,
    with a warning. The others have to be prepared once: `python data_setup.py stl10`.
    size: pixels, 8..512; None is the stored size. Another size is made once (bilinear, antialiased; toybox is drawn anew) and kept as
    `<name>-<size>`.
    options, for toybox only: shortcut, upright, seed, and the counts unlabeled, train, validation, test.

    On the CPU images stay mapped from disk: nothing is read until it is used. CourseError if the name is unknown, the data set is not
    prepared, or its folder is damaged; ValueError or TypeError for a wrong size or option.
    """
    check_size(size)
    name = known_spelling(name)
    if name == "toybox":
        _, about, parts = draw_toybox(data_dir, size, **options)
        return _image_set(about, parts).to(device)
    if options:
        raise ValueError(f"{', '.join(f'{key}=' for key in options)} can be used with toybox only, not with {name!r}.")
    folder = Path(data_dir) / name
    if not folder.exists():
        raise _not_there(name, data_dir)
    if not (folder / "about.json").exists() and not any(folder.glob("*.npy")):
        raise CourseError(
            f"{folder} exists but is not a prepared data set. If these are your images: "
            f"python data_setup.py --from {folder} --name another-name --data-dir {data_dir}"
        )
    about, parts = storage.read(folder)
    if size not in (None, about["size"]):
        about, parts = _resized(folder, about, parts, size)
    return _image_set(about, parts).to(device)


def _image_set(about, parts):
    tensors = {part: torch.from_numpy(array) for part, array in parts.items()}
    return ImageSet(name=about["name"], class_names=about["class_names"], mean=about["mean"], std=about["std"], **tensors)


def check_size(size):
    """TypeError or ValueError unless `size` is None or a whole number of pixels, 8..512."""
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size is {size!r}; it must be a whole number of pixels, or None for the stored size.")
    if not 8 <= size <= 512:
        raise ValueError(f"size is {size}; it must be between 8 and 512 pixels.")


def known_spelling(name):
    """The name as it is stored: `STL10` is `stl10`; own names stay as they are. CourseError for what cannot be a name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise CourseError(f"{name!r} cannot name a data set: use letters, digits, '-', '_' and '.', and begin with a letter or digit.")
    return name.lower() if name.lower() in KNOWN else name


def _not_there(name, data_dir):
    if name in KNOWN:
        return CourseError(
            f"The data set {name!r} is not prepared in {data_dir}. Run: python data_setup.py {name} --data-dir {data_dir} "
            f"(in Colab: !python -m sslcourse data {name} --data-dir {data_dir}). 'toybox' works at once, without a download."
        )
    names = [info.name for info in available(data_dir)]
    close = difflib.get_close_matches(name, names, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return CourseError(
        f"There is no data set {name!r} in {data_dir}.{guess} Available: {', '.join(names)}. "
        f"Your own images: python data_setup.py --from photos.zip --name {name} --data-dir {data_dir}"
    )


# --- Copies that are made once and kept ---


def _kept(folder, options):
    # The stored copy, if it is there, whole, and made with these very options; else None.
    if not (folder / "about.json").exists():
        return None
    try:
        about, parts = storage.read(folder)
    except CourseError as error:
        warnings.warn(f"{error} It can be made again from here, so that is done now.", stacklevel=4)
        return None
    return (about, parts) if about["options"] == options else None


def _keep(folder, parts, must, progress=True, **facts):
    # Write and read back; where the disk cannot take it, stay in memory.
    try:
        storage.write(folder, parts, progress=progress, **facts)
        return storage.read(folder)
    except (OSError, CourseError) as error:
        if must:
            raise
        warnings.warn(f"{folder} cannot be kept ({error}), so {facts['name']} stays in memory and is made anew next time.", stacklevel=4)
        parts = {part: array[0 : len(array)] for part, array in storage.complete(parts, facts["class_names"]).items()}
        return storage.describe(parts, **facts), parts


def _resized(folder, about, parts, size):
    target, options = folder.with_name(f"{folder.name}-{size}"), {"resized_from": about["id"]}
    kept = _kept(target, options)
    if kept:
        return kept
    views = {part: storage.Resized(array, size) if array.ndim == 4 else array for part, array in parts.items()}
    facts = dict(name=about["name"], class_names=about["class_names"], source=f"{about['source']}, resized from {about['size']}")
    return _keep(target, views, must=False, options=options, **facts)


def draw_toybox(data_dir="data", size=None, *, force=False, must_keep=False, **options):
    """Draw toybox, or find it drawn. -> (drawn now: bool, about, parts).

    force: draw it even if it is there. must_keep: an error, instead of a warning, where `data_dir` cannot be written.
    The other options are those of `load`. Split k of seed s is drawn with seed 4 s + k, so no two splits share a drawing.
    """
    check_size(size)
    unknown = options.keys() - TOYBOX_OPTIONS.keys()
    if unknown:
        raise ValueError(f"toybox has no option {', '.join(sorted(unknown))}; it has {', '.join(TOYBOX_OPTIONS)}.")
    options = {**TOYBOX_OPTIONS, **options}
    for key in ("seed", *TOYBOX_SPLITS):
        least = 0 if key == "seed" else 10
        if isinstance(options[key], bool) or not isinstance(options[key], int) or options[key] < least:
            raise ValueError(f"{key}={options[key]!r}: toybox needs a whole number of at least {least}.")
    size = size or TOYBOX_SIZE
    folder = Path(data_dir) / _toybox_folder(size, options)
    options.update(shortcut=bool(options["shortcut"]), upright=bool(options["upright"]))
    settings = {**options, "size": size, "version": toybox.VERSION}
    kept = None if force else _kept(folder, settings)
    if kept:
        return False, *kept
    parts = {}
    with tqdm(total=sum(options[split] for split in TOYBOX_SPLITS), desc="Drawing toybox", unit=" images") as bar:
        for index, split in enumerate(TOYBOX_SPLITS):
            before = bar.n
            images, labels = toybox.make(
                options[split],
                seed=4 * options["seed"] + index,
                size=size,
                shortcut=settings["shortcut"],
                upright=settings["upright"],
                progress=lambda done, total, before=before: bar.update(before + done - bar.n),
            )
            bar.update(before + options[split] - bar.n)
            if split == "unlabeled":
                parts["unlabeled"] = images
            else:
                parts[f"{split}_images"], parts[f"{split}_labels"] = images, labels
    facts = dict(name="toybox", class_names=list(toybox.CLASS_NAMES), source=f"drawn by sslcourse.toybox version {toybox.VERSION}")
    return True, *_keep(folder, parts, must_keep, progress=False, options=settings, **facts)


def _toybox_folder(size, options):
    # The plain one is `toybox`; another size or other options get folders of their own, so that they do not push each other out.
    changed = {key: value for key, value in options.items() if value != TOYBOX_OPTIONS[key]}
    mark = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
    return "toybox" + (f"-{size}" if size != TOYBOX_SIZE else "") + (f"-{mark}" if changed else "")


# --- What there is ---


class Available(list):
    """A list of DatasetInfo that prints as a table."""

    def __repr__(self):
        rows = [("name", "classes", "images", "size", "download", "prepared", "how to get it")]
        for info in self:
            download = storage.human(info.download_bytes) if info.download_bytes else "none"
            pixels = f"{info.size}×{info.size}"
            rows.append((info.name, str(info.classes), f"{info.images:,}", pixels, download, "yes" if info.prepared else "no", info.how))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        right = {1, 2, 3, 4}
        lines = [
            "  ".join(cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, "Your own images: python data_setup.py --from photos.zip --name my-photos"])


def available(data_dir="data"):
    """-> list of DatasetInfo (print it for a table): the known data sets, then your own that are prepared in `data_dir`."""
    found = {}
    for path in sorted(Path(data_dir).glob("*/about.json")):
        try:
            about = storage.read_about(path.parent)
        except CourseError:
            continue  # a damaged folder is reported when somebody asks for it by name
        if about["name"] == path.parent.name:  # resized copies bear the name of what they were made from
            found[about["name"]] = about
    rows = Available()
    for name, info in KNOWN.items():
        rows.append(replace(info, prepared=name in found, **_measured(found.pop(name, None))))
    for name, about in found.items():
        rows.append(DatasetInfo(name=name, download_bytes=0, needs_network=False, how="your own", prepared=True, **_measured(about)))
    return rows


def _measured(about):
    if about is None:
        return {}
    counts = sum(count for part, count in about["counts"].items() if part == "unlabeled" or part.endswith("_images"))
    return {"classes": len(about["class_names"]), "images": counts, "size": about["size"]}
