"""Read folders of images, train/<class>/*.jpg and the like, into uint8 arrays of one size."""

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from sslcourse.datasets import prepared
from sslcourse.datasets.archives import Piece, Tree
from sslcourse.errors import CourseError

SPLIT_NAMES = {
    "train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}  # fmt: skip
IGNORED = {"__macosx", "thumbs.db", "desktop.ini"}
MAX_PIXELS = 120_000_000  # larger than any camera's photo; a small file can claim far more and fill the memory
NAMED = 10  # unreadable files that a message lists by name


@dataclass
class FolderImages:
    """What `read` found. `parts` has train_images, train_labels and so on, as `prepared.write` takes them."""

    class_names: list[str]
    parts: dict
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (path relative to the folder, reason)

    def skipped_sentence(self, what: str = "skipped") -> str:
        """The files that were left out, the first ten by name; '' if there are none."""
        if not self.skipped:
            return ""
        names = "; ".join(f"{path} ({reason})" for path, reason in self.skipped[:NAMED])
        more = f"; and {len(self.skipped) - NAMED:,} more" if len(self.skipped) > NAMED else ""
        return f"{len(self.skipped):,} file{'s' if len(self.skipped) > 1 else ''} {what}: {names}{more}."


def tree(folder: Path) -> Tree:
    """A folder on disk as `read` takes it."""
    return {path.name: tree(path) if path.is_dir() else Piece(path) for path in folder.iterdir()}


def read(tree: Tree, work: Path, size: int | None = None, *, label: str, strict=False, limit: int | None = None) -> FolderImages:
    """Read image files by folders, from the `tree` of a folder or of `archives.spool`; the images are memory-mapped in the folder `work`.

    Layouts: train/<class>/..., test/<class>/..., if you like validation/<class>/... and unlabeled/...; or only <class>/... Without a test
    folder a stratified 20 % of train becomes the test set (`prepared.set_aside`, seed 0). Wrapping folders are looked through; hidden files
    are ignored. Classes and files are taken in sorted order. Images become uint8 (N, 3, size, size) as `decode` does it.

    size: pixels, 8..512; None takes the images' own size if they are all square, equal, and at most 128, else 96. label: what messages call
    the folder. strict: refuse files that cannot be read instead of skipping them. limit: at most that many files a class and split.
    CourseError for a layout without images, with a single class, an empty class, or a class in test or validation that train lacks.
    """
    layout = _layout("", tree, label)
    class_names = sorted(layout["train"])
    if len(class_names) == 1:
        raise CourseError(f"{label} has images of one class only, {class_names[0]!r}. A classifier needs at least two class folders.")
    files = {}  # split -> [((path, file), label)]
    for split, classes in layout.items():
        if split == "unlabeled":
            files[split] = [(file, -1) for file in classes[:limit]]
            continue
        for name in sorted(classes):
            if name not in class_names:
                raise CourseError(f"{split}/{name} in {label} has no counterpart in train. Every class needs train/<class>; rename one.")
            if not classes[name]:
                raise CourseError(f"The folder of class {name!r} ({split}) in {label} is empty. Put images there, or remove it.")
        files[split] = [(file, class_names.index(name)) for name in sorted(classes) for file in classes[name][:limit]]
    found = FolderImages(class_names, {})
    with tqdm(total=sum(map(len, files.values())), desc="Reading images", unit=" images") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's remarks about odd EXIF data and large files: what cannot be read is reported anyway
        size = size or _common_size([file for split in files.values() for (_, file), _ in split])
        for split, pairs in files.items():
            _read_split(found, split, pairs, size, work, bar)
    if strict and found.skipped:
        raise CourseError(f"{found.skipped_sentence('cannot be read, and --strict refuses that')} Remove them, or leave out --strict.")
    for split in files.keys() - {"unlabeled"}:
        for label in sorted({label for _, label in files[split]} - set(found.parts[f"{split}_labels"].tolist())):
            raise CourseError(f"Class {class_names[label]!r} has no readable image in {split}. {found.skipped_sentence()}")
    if "test_images" not in found.parts:
        images, labels = found.parts["train_images"], found.parts["train_labels"]
        kept, aside = prepared.set_aside(labels, fraction=0.2, seed=0, class_names=class_names)
        for split, rows in (("train", kept), ("test", aside)):
            found.parts |= {f"{split}_images": prepared.Rows(images, rows), f"{split}_labels": labels[rows]}
    return found


def _entries(tree: Tree) -> dict[str, Tree | Piece]:
    return {name: tree[name] for name in sorted(tree) if not name.startswith(".") and name.lower() not in IGNORED}


def _folders(tree: Tree) -> dict[str, Tree]:
    return {name: inner for name, inner in _entries(tree).items() if isinstance(inner, dict)}


def _files(path: str, tree: Tree) -> list[tuple[str, Piece]]:
    # All files below, with their paths, in a fixed order.
    files = []
    for name, inner in _entries(tree).items():
        files += _files(f"{path}{name}/", inner) if isinstance(inner, dict) else [(path + name, inner)]
    return files


def _split_of(name: str, tree: Tree) -> str | None:
    # Which split a folder's name says it is. A class may well be called "train": then its images lie in it directly.
    split = next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)
    return split if split == "unlabeled" or _folders(tree) else None


def _layout(path: str, tree: Tree, label: str) -> dict:
    # {"train": {class: files}, ..., "unlabeled": files}
    folders, splits = _folders(tree), {}  # split -> the name of its folder
    if len(folders) == 1:
        ((name, inner),) = folders.items()
        if not _split_of(name, inner) and _folders(inner):  # a wrapping
            return _layout(f"{path}{name}/", inner, label)
    for name, inner in folders.items():
        if split := _split_of(name, inner):
            if split in splits:
                raise CourseError(f"{label} has both {splits[split]!r} and {name!r} for {split}. Keep one of them.")
            splits[split] = name
    if not splits.keys() - {"unlabeled"}:
        classes = {"train": (path, {name: inner for name, inner in folders.items() if name not in splits.values()})}
    elif "train" in splits:
        classes = {split: (f"{path}{name}/", _folders(folders[name])) for split, name in splits.items() if split != "unlabeled"}
    else:
        raise CourseError(f"{label} has a test or validation folder but no train/<class>/ with images. Add one.")
    layout = {}
    for split, (within, inside) in classes.items():
        layout[split] = {name: _files(f"{within}{name}/", inner) for name, inner in inside.items()}
    if not any(layout["train"].values()):
        raise CourseError(f"{label} has no images in class folders. It needs train/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg.")
    if "unlabeled" in splits and (unlabeled := _files(f"{path}{splits['unlabeled']}/", folders[splits["unlabeled"]])):
        layout["unlabeled"] = unlabeled
    return {split: layout[split] for split in SPLIT_NAMES if split in layout}


def _common_size(files: Sequence[Piece]) -> int:
    sizes = set()
    for file in files[:: max(1, len(files) // 64)]:
        with suppress(Exception), file.open() as stream, Image.open(stream) as image:  # they are reported when all files are read
            sizes.add(image.size)
    width, height = sizes.pop() if len(sizes) == 1 else (0, 0)
    return width if width == height and 8 <= width <= 128 else 96


def decode(file: Piece, size: int) -> np.ndarray:
    """One image file -> uint8 (3, size, size). Raises what PIL raises; ValueError for over 120 million pixels.

    It becomes RGB (transparent parts white) and upright as its EXIF data says; its short side is resized to `size` (bicubic, antialiased)
    and the centre is cut out.
    """
    with file.open() as stream, Image.open(stream) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels are too many")
        image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size, which saves most of the time
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 bits a pixel and more: PIL would cut them off at 255
        values = np.asarray(image, np.float64)
        values = values / 257 if values.max(initial=0) > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def _read_split(found: FolderImages, split: str, pairs: list, size: int, work: Path, bar: tqdm) -> None:
    shape = (len(pairs), 3, size, size)
    prepared.require_free(work, int(np.prod(shape, dtype=np.int64)), "Reading images")
    images = np.lib.format.open_memmap(work / f"decoded-{split}.npy", mode="w+", dtype=np.uint8, shape=shape)

    def problem(row: int) -> str | None:
        try:
            images[row] = decode(pairs[row][0][1], size)
        except Exception as error:  # a damaged file can make a decoder raise nearly anything
            return "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__

    good = []
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        for row, reason in enumerate(pool.imap(problem, range(len(pairs)), chunksize=64)):
            bar.update()
            if reason is None:
                good.append(row)
            else:
                found.skipped.append((pairs[row][0][0], reason))
    kept = images if len(good) == len(pairs) else prepared.Rows(images, np.array(good, np.int64))
    if split != "unlabeled":
        found.parts |= {f"{split}_images": kept, f"{split}_labels": np.array([label for _, label in pairs], np.int64)[good]}
    elif good:
        found.parts["unlabeled"] = kept
