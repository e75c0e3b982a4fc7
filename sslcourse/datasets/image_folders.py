"""Read folders of images, train/<class>/*.jpg and the like, into uint8 arrays of one size."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from sslcourse.datasets import archives
from sslcourse.datasets import prepared as storage
from sslcourse.errors import CourseError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}
MAX_PIXELS = 120_000_000  # larger than any camera's photo; a small file can claim far more and fill the memory
TEST_FRACTION = 0.2
TEST_SEED = 0
DEFAULT_SIZE = 96
LARGEST_NATIVE = 128
NAMED = 10  # unreadable files that a message lists by name
BATCH = 64  # files a thread takes at once


@dataclass
class FolderImages:
    """What `read` found. `parts` has train_images, train_labels and so on, as `storage.write` takes them."""

    class_names: list
    size: int
    parts: dict
    skipped: list = field(default_factory=list)  # (path relative to the folder, reason)

    def skipped_sentence(self):
        """The files that were left out, the first ten by name; '' if there are none."""
        return _sentence(self.skipped, "skipped") if self.skipped else ""


def read(folder, size=None, *, strict=False, limit=None, workspace=None, threads=None, progress=True):
    """Read a folder of images, or an archive of one (`archives.spool`). -> FolderImages

    Layouts: train/<class>/..., test/<class>/..., if you like validation/<class>/... (or val, valid) and unlabeled/...; or only <class>/...
    Without a test folder a stratified 20 % of the training images becomes the test set (`storage.set_aside`, seed 0). One wrapping folder,
    or several, is looked through. Hidden files and __MACOSX are ignored. Classes and files are taken in sorted order.

    Each image becomes RGB (transparent parts white), is turned upright as its EXIF data says, and its short side is resized to `size`
    (bicubic, antialiased) before the centre is cut out: uint8 (N, 3, size, size). size: pixels, 8..512; None takes the images' own size if
    they are all square, equal, and at most 128, else 96.
    strict: refuse unreadable and non-image files instead of skipping them. limit: at most that many files a class (and split).
    workspace: a folder for the decoded images, which are then memory-mapped; None keeps them in memory.
    threads: None is one a core, 8 at most.

    CourseError for a layout without images, with a single class, an empty class, or a class in test or validation that train lacks.
    """
    folder = folder if isinstance(folder, archives.Member) else Path(folder)
    if not folder.is_dir():
        raise CourseError(f"There is no folder {folder}. Check the path.")
    top = _unwrap(folder)
    layout = _layout(top)
    class_names = sorted(layout["train"])
    if len(class_names) == 1:
        raise CourseError(f"{top} has images of one class only, {class_names[0]!r}. A classifier needs at least two class folders.")
    files = {}
    for split, classes in layout.items():
        if split == "unlabeled":
            files[split] = [(path, -1) for path in classes[:limit]]
            continue
        for name in sorted(classes):
            if name not in class_names:
                raise CourseError(f"{split}/{name} in {top} has no counterpart in train. Every class needs train/<class>; rename one.")
            if not classes[name]:
                raise CourseError(f"The folder of class {name!r} ({split}) in {top} is empty. Put images there, or remove it.")
        files[split] = [(path, class_names.index(name)) for name in sorted(classes) for path in classes[name][:limit]]
    if size is None:
        size = _common_size([path for split in files.values() for path, _ in split])
    found = FolderImages(class_names, size, {})
    with tqdm(total=sum(map(len, files.values())), desc="Reading images", unit=" images", disable=not progress) as bar:
        for split, pairs in files.items():
            _read_split(found, folder, split, pairs, workspace, threads or min(8, os.cpu_count() or 1), bar)
    if strict and found.skipped:
        raise CourseError(_sentence(found.skipped, "cannot be read, and --strict refuses that") + " Remove them, or leave out --strict.")
    _check_classes(found, files)
    if "test_images" not in found.parts:
        images, labels = found.parts["train_images"], found.parts["train_labels"]
        kept, aside = storage.set_aside(labels, TEST_FRACTION, TEST_SEED, class_names)
        for split, rows in (("train", kept), ("test", aside)):
            found.parts[f"{split}_images"], found.parts[f"{split}_labels"] = storage.Rows(images, rows), labels[rows]
    return found


# --- Which file is what ---


def _entries(folder):
    entries = (path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in IGNORED)
    return sorted(entries, key=lambda path: path.name)


def _folders(folder):
    return [path for path in _entries(folder) if path.is_dir()]


def _files(folder):
    # All files below, hidden ones left out, in a fixed order.
    found = []
    for path in _entries(folder):
        if path.is_dir():
            found += _files(path)
        else:
            found.append(path)
    return found


def _split_of(folder):
    # Which split a folder's name says it is, or None. A class may well be called "train": then its images lie in it directly.
    for split, names in SPLIT_NAMES.items():
        if folder.name.lower() in names and (split == "unlabeled" or _folders(folder)):
            return split
    return None


def _unwrap(folder):
    while True:
        inner = _folders(folder)
        if len(inner) != 1 or _split_of(inner[0]) or not _folders(inner[0]):
            return folder
        folder = inner[0]


def _layout(top):
    # -> {"train": {class: [files]}, ..., "unlabeled": [files]}
    folders = _folders(top)
    splits = {}
    for path in folders:
        split = _split_of(path)
        if split in splits:
            raise CourseError(f"{top} has both {splits[split].name!r} and {path.name!r} for {split}. Keep one of them.")
        if split:
            splits[split] = path
    if "train" not in splits and ("test" in splits or "validation" in splits):
        raise CourseError(f"{top} has a test or validation folder but no train/<class>/ with images. Add one.")
    if "train" not in splits:
        splits = {split: path for split, path in splits.items() if split == "unlabeled"}
        classes = [path for path in folders if path not in splits.values()]
    else:
        classes = _folders(splits["train"])
    layout = {"train": {path.name: _files(path) for path in classes}}
    if not any(layout["train"].values()):
        raise CourseError(f"{top} has no images in class folders. It needs train/<class>/*.jpg, test/<class>/*.jpg, or only <class>/*.jpg.")
    for split in ("validation", "test"):
        if split in splits:
            layout[split] = {path.name: _files(path) for path in _folders(splits[split])}
    if "unlabeled" in splits:
        layout["unlabeled"] = _files(splits["unlabeled"])
        if not layout["unlabeled"]:
            del layout["unlabeled"]
    return layout


# --- Decoding ---


def _common_size(paths):
    sizes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths[:: max(1, len(paths) // 64)]:
            try:
                with path.open("rb") as file, Image.open(file) as image:
                    sizes.add(image.size)
            except Exception:
                continue  # reported when all files are read
    if len(sizes) == 1:
        width, height = sizes.pop()
        if width == height and 8 <= width <= LARGEST_NATIVE:
            return width
    return DEFAULT_SIZE


def decode(path, size):
    """One image file -> uint8 (3, size, size), as described at `read`. Raises what PIL raises; ValueError for over 120 million pixels."""
    with path.open("rb") as file, Image.open(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels are too many")
        image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size, which saves most of the time
        image.load()
        image = _rgb(ImageOps.exif_transpose(image))
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def _rgb(image):
    if image.mode.startswith(("I", "F")):  # 16 bits a pixel and more: PIL would cut them off at 255
        values = np.asarray(image, np.float64)
        values = values / 257 if values.max(initial=0) > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _read_split(found, folder, split, pairs, workspace, threads, bar):
    shape = (len(pairs), 3, found.size, found.size)
    if workspace is None:
        images = np.empty(shape, np.uint8)
    else:
        storage.require_free(workspace, int(np.prod(shape, dtype=np.int64)), f"Reading {folder.name}")
        images = np.lib.format.open_memmap(Path(workspace) / f"decoded-{split}.npy", mode="w+", dtype=np.uint8, shape=shape)

    def work(start):
        failures = []
        for row in range(start, min(start + BATCH, len(pairs))):
            try:
                images[row] = decode(pairs[row][0], found.size)
            except Exception as error:  # a damaged file can make a decoder raise nearly anything
                reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__
                failures.append((row, reason))
        return min(BATCH, len(pairs) - start), failures

    bad = []
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # PIL's remarks about odd EXIF data and large files: what cannot be read is reported anyway
        try:
            for count, failures in pool.map(work, range(0, len(pairs), BATCH)):
                bad += failures
                bar.update(count)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found.skipped += [(_shown(pairs[row][0], folder), reason) for row, reason in bad]
    good = np.delete(np.arange(len(pairs)), [row for row, _ in bad])
    kept = images if len(good) == len(pairs) else storage.Rows(images, good)
    if split != "unlabeled":
        found.parts[f"{split}_images"] = kept
        found.parts[f"{split}_labels"] = np.array([label for _, label in pairs], np.int64)[good]
    elif len(good):
        found.parts["unlabeled"] = kept


def _check_classes(found, files):
    for split in files.keys() - {"unlabeled"}:
        expected = {label for _, label in files[split]}
        for label in sorted(expected - set(found.parts[f"{split}_labels"].tolist())):
            raise CourseError(f"Class {found.class_names[label]!r} has no readable image in {split}. " + found.skipped_sentence())


def _shown(path, folder):
    return str(path) if isinstance(path, archives.Member) else path.relative_to(folder).as_posix()


def _sentence(skipped, what):
    names = "; ".join(f"{path} ({reason})" for path, reason in skipped[:NAMED])
    more = f"; and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
    return f"{len(skipped):,} file{'s' if len(skipped) > 1 else ''} {what}: {names}{more}."
