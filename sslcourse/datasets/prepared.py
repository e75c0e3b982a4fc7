"""A prepared data set on disk: a folder with `about.json` and one .npy file a part.

Parts are `train_images`, `train_labels`, the same for `validation` and `test`, and sometimes `unlabeled` and `folds`. Images are uint8
(N, 3, H, W), labels int64 (N,). The files are memory-mapped when they are read, so that opening 100,000 images takes no time and no memory.
"""

import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch.nn import functional
from tqdm import tqdm

from sslcourse.errors import CourseError

FORMAT = 1
CHUNK = 8_000_000  # values handled at once: small enough for little memory, large enough for full disk speed
SPLITS = ("train", "validation", "test")
VALIDATION_FRACTION = 0.1
VALIDATION_SEED = 0
STATISTICS_SAMPLE = 10_000
ABOUT = {"name": str, "size": int, "class_names": list, "counts": dict, "mean": list, "std": list, "source": str, "options": dict}


# --- Views: things with a shape that give images by slice, so that a data set larger than memory can be copied ---


class Rows:
    """Some rows of an array, in the order of `rows`, picked only when sliced."""

    def __init__(self, source, rows):
        rows = np.asarray(rows)
        self.source, self.rows = (source.source, source.rows[rows]) if isinstance(source, Rows) else (source, rows)
        self.shape, self.dtype = (len(rows), *source.shape[1:]), source.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, piece) -> np.ndarray:
        return self.source[self.rows[piece]]


class Resized:
    """Images (N, 3, H, W) uint8 seen at another size: bilinear with antialiasing, rounded to the nearest uint8 when sliced."""

    def __init__(self, source, size: int):
        self.source, self.size = source, size
        self.shape, self.dtype = (len(source), 3, size, size), np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, piece) -> np.ndarray:
        pixels = torch.from_numpy(np.array(self.source[piece])).float()
        if len(pixels) == 0:
            return np.empty((0, *self.shape[1:]), np.uint8)
        pixels = functional.interpolate(pixels, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return pixels.round_().clamp_(0, 255).to(torch.uint8).numpy()


Parts = Mapping[str, np.ndarray | Rows | Resized]


def chunks(view) -> Iterator[np.ndarray]:
    """Yield an array or a view piece by piece, as many rows at a time as make about CHUNK values."""
    rows = max(1, CHUNK // max(1, int(np.prod(view.shape[1:]))))
    for start in range(0, len(view), rows):
        yield view[start : start + rows]


def shuffled_by_class(labels, classes: int, seed: int) -> list[np.ndarray]:
    """The row numbers of each class, shuffled: all N rows are permuted once by `numpy.random.default_rng(seed).permutation(N)`."""
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [order[labels[order] == label] for label in range(classes)]


def set_aside(labels, fraction: float, seed: int, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Split row numbers by class: -> (kept, aside), both int64 and in rising order.

    Of each class, the first round(fraction * n) rows of `shuffled_by_class`, at least one, are set aside. CourseError when a class has
    fewer than two images.
    """
    kept, aside = [], []
    for name, rows in zip(class_names, shuffled_by_class(labels, len(class_names), seed), strict=True):
        if len(rows) < 2:
            raise CourseError(f"Class {name!r} has {len(rows)} usable training image(s), too few to set one aside. Add some, or remove it.")
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        aside.append(rows[:count])
        kept.append(rows[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(aside))


# --- Disk ---


def human(count: float) -> str:
    """Bytes as a person says them: 2640397119 -> '2.6 GB'."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{int(count)} bytes"


def require_free(folder: Path, needed: int, what: str) -> None:
    """CourseError if the disk that holds `folder` (which need not exist yet) has fewer than `needed` bytes free."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CourseError(
            f"{what} needs {human(needed)} free, and {folder} has {human(free)}. Free some space, or choose another disk with --data-dir."
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare `folder`: others wait here. The lock ends with the process, however that ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                lock.unlink()


@contextmanager
def work_folder(folder: Path, what: str) -> Iterator[Path]:
    """An empty hidden folder beside `folder`, to be used inside `alone`. It is gone afterwards, whatever happens, unless it was renamed."""
    work = folder.with_name(f".{folder.name}.{what}")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


# --- Write ---


def complete(parts: Parts, class_names: Sequence[str]) -> dict:
    """The same parts with a validation split: where it is missing, a stratified 10 % of train is set aside (`set_aside`, seed 0).

    If there are `folds` (row numbers of the whole train set), they are renumbered: row r below len(train) is train_images[r], and above it
    is validation_images[r - len(train)].
    """
    parts = dict(parts)
    if "validation_images" in parts:
        return parts
    images, labels = parts["train_images"], np.asarray(parts["train_labels"])
    kept, aside = set_aside(labels, VALIDATION_FRACTION, VALIDATION_SEED, class_names)
    for split, rows in (("train", kept), ("validation", aside)):
        parts[f"{split}_images"], parts[f"{split}_labels"] = Rows(images, rows), labels[rows]
    if "folds" in parts:
        renumbered = np.empty(len(labels), np.int64)
        renumbered[np.concatenate([kept, aside])] = np.arange(len(labels))
        parts["folds"] = renumbered[parts["folds"]]
    return parts


def describe(parts: Parts, *, name: str, class_names: Sequence[str], source: str, options: Mapping) -> dict:
    """What about.json says of these (complete) parts: counts, mean and std per channel (in 0..1), where it came from, and when.

    Mean and std are taken over the training images and at most 10,000 evenly spaced unlabelled ones.
    """
    total, squares, pixels = np.zeros(3), np.zeros(3), 0
    sample = [parts["train_images"]]
    if "unlabeled" in parts:
        count = len(parts["unlabeled"])
        sample.append(Rows(parts["unlabeled"], np.linspace(0, count - 1, min(count, STATISTICS_SAMPLE)).astype(np.int64)))
    for view in sample:
        for piece in chunks(view):
            values = piece.astype(np.float32) / 255
            total += values.sum(axis=(0, 2, 3), dtype=np.float64)
            squares += np.square(values).sum(axis=(0, 2, 3), dtype=np.float64)
            pixels += values.size // 3
    mean = total / pixels
    return {
        "format": FORMAT,
        "id": uuid.uuid4().hex,
        "name": name,
        "size": int(parts["train_images"].shape[-1]),
        "class_names": list(class_names),
        "counts": {part: len(array) for part, array in sorted(parts.items())},
        "mean": [round(float(value), 6) for value in mean],
        "std": [round(float(value), 6) for value in np.sqrt(np.maximum(squares / pixels - mean**2, 0))],
        "source": source,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "options": dict(options),
    }


def write(folder: Path, parts: Parts, *, class_names: Sequence[str], progress: bool = True, **facts) -> None:
    """Write a prepared data set into `folder`, all or nothing; one that was there before is replaced. To be used inside `alone`.

    facts: name, source and options, as `describe` takes them. CourseError if the folder is something else than a prepared data set (it is
    never touched), or if the disk is too full.
    """
    if folder.exists() and not (folder / "about.json").exists() and (folder.is_file() or any(folder.iterdir())):
        raise CourseError(
            f"{folder} exists and is not a prepared data set, so nothing was written there. Choose another --name or --data-dir, "
            "or delete it yourself if it is the rest of a broken data set."
        )
    parts = complete(parts, class_names)
    needed = sum(int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize for array in parts.values())
    require_free(folder, needed, f"Preparing {facts['name']}")
    with work_folder(folder, "partial") as work, work_folder(folder, "replaced") as replaced:
        _write_parts(work, parts, facts["name"], progress)
        stored = {part: np.load(work / f"{part}.npy", mmap_mode="r") for part in parts}
        about = describe(stored, class_names=class_names, **facts)
        del stored  # an open map would keep a folder from being renamed on some systems
        (work / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if folder.exists():
            os.rename(folder, replaced / folder.name)
        os.rename(work, folder)


def _write_parts(work: Path, parts: Parts, name: str, progress: bool) -> None:
    total = sum(len(array) for part, array in parts.items() if _is_image(part))
    with tqdm(total=total, desc=f"Writing {name}", unit=" images", disable=not progress) as bar:
        for part, array in parts.items():
            if not _is_image(part):
                np.save(work / f"{part}.npy", np.asarray(array, np.int64))
                continue
            # Not through a memory map: on a full disk that kills the process, and a plain write raises an error.
            with open(work / f"{part}.npy", "wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": tuple(map(int, array.shape))}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in chunks(array):
                    file.write(np.ascontiguousarray(piece).data)
                    bar.update(len(piece))


def made_once(
    folder: Path, make: Callable[[], Parts], *, options: Mapping, force=False, must_keep=False, progress=False, **facts
) -> tuple[bool, dict, dict]:
    """What is in `folder`, if it is whole and was made with these very `options`; else what `make` gives, kept there from now on.

    facts: name, class_names and source, as `write` takes them. force: make it even if it is there. must_keep: an error, instead of a
    warning and images that stay in memory, where the disk cannot take it. -> (made now, about, parts)
    """

    def found() -> tuple[bool, dict, dict] | None:
        if force or not (folder / "about.json").exists():
            return None
        try:
            about, parts = read(folder)
        except CourseError as error:
            warnings.warn(f"{error} It can be made again from here, so that is done now.", stacklevel=5)
            return None
        return (False, about, parts) if about["options"] == options else None

    if kept := found():
        return kept
    parts = None
    try:
        with alone(folder):
            if kept := found():  # another process made it while this one waited
                return kept
            parts = make()
            write(folder, parts, options=options, progress=progress, **facts)
            return True, *read(folder)
    except (OSError, CourseError) as error:
        if must_keep:
            raise
        warnings.warn(f"{folder} cannot be kept ({error}), so {facts['name']} stays in memory and is made anew next time.", stacklevel=4)
    parts = complete(parts or make(), facts["class_names"])
    parts = {part: array[0 : len(array)] for part, array in parts.items()}
    return True, describe(parts, options=options, **facts), parts


# --- Read ---


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """-> (about, parts): the images as memory maps (copy on write, so nothing changes the files), labels in memory.

    CourseError that names the file if a part is missing, cut short, or not what about.json says.
    """
    about = read_about(folder)
    parts = {}
    for part, count in about["counts"].items():
        path = folder / f"{part}.npy"
        try:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise _damaged(path, str(error)) from None
        if _is_image(part):
            good = array.dtype == np.uint8 and array.shape == (count, 3, about["size"], about["size"])
        else:
            good = array.dtype == np.int64 and len(array) == count and array.ndim == (2 if part == "folds" else 1)
            array = np.array(array)
        if good and part.endswith("_labels") and count:
            good = 0 <= array.min() and array.max() < len(about["class_names"])
        if not good:
            raise _damaged(path, f"it holds {array.dtype} {array.shape}, which is not what about.json says")
        parts[part] = array
    return about, parts


def read_about(folder: Path) -> dict:
    """The content of about.json, checked. CourseError if it is missing or damaged."""
    path = folder / "about.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {about['format']!r} and this version of sslcourse reads format {FORMAT}")
        lacks = [key for key, kind in ABOUT.items() if not isinstance(about[key], kind)]
        lacks += [part for split in SPLITS for part in (f"{split}_images", f"{split}_labels") if part not in about["counts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if lacks:
        raise _damaged(path, f"it lacks {', '.join(lacks)}")
    return about


def _is_image(part: str) -> bool:
    return part == "unlabeled" or part.endswith("_images")


def _damaged(path: Path, reason: str) -> CourseError:
    return CourseError(f"{path} is damaged ({reason}). Delete the folder {path.parent} and prepare the data set again.")
