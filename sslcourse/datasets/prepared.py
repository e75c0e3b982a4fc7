"""A prepared data set on disk: a folder with `about.json` and one .npy file a part.

Parts are `train_images`, `train_labels`, the same for `validation` and `test`, and sometimes `unlabeled`. Images are uint8 (N, 3, H, W),
memory-mapped when they are read; labels int64 (N,).
"""

import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch.nn import functional
from tqdm import tqdm

from sslcourse import files
from sslcourse.errors import CourseError

FORMAT = 1
CHUNK = 8_000_000  # values handled at once: small enough for little memory, large enough for full disk speed
SPLITS = ("train", "validation", "test")
PARTS = (*(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")), "unlabeled")
ABOUT = {"size": int, "class_names": list, "counts": dict, "mean": list, "std": list, "source": str, "options": dict, "identity": str}


class Rows:
    """Some rows of an array, picked only when sliced: so data sets larger than memory can be copied.

    size: see uint8 images (N, 3, H, W) at this size as well, bilinear, antialiased, rounded to the nearest uint8.
    """

    def __init__(self, source, rows, size: int | None = None):
        self.source, self.rows, self.size, self.dtype = source, np.asarray(rows), size, source.dtype
        self.shape = (len(rows), *(source.shape[1:] if size is None else (3, size, size)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, piece) -> np.ndarray:
        picked = self.source[self.rows[piece]]
        if self.size is None:
            return picked
        pixels = functional.interpolate(torch.from_numpy(picked).float(), self.shape[2:], mode="bilinear", antialias=True)
        return pixels.round_().clamp_(0, 255).to(torch.uint8).numpy()


Parts = Mapping[str, np.ndarray | Rows]


class Damaged(CourseError):
    """A prepared data set, or an archive, is not whole: it has to be prepared, or got, again."""


def chunks(view) -> Iterator[np.ndarray]:
    """Yield an array or a view piece by piece, about CHUNK values at a time."""
    rows = max(1, CHUNK // max(1, int(np.prod(view.shape[1:]))))
    for start in range(0, len(view), rows):
        yield view[start : start + rows]


def shuffled_by_class(labels, classes: int, seed: int) -> list[np.ndarray]:
    """The row numbers of each class, in the order of `numpy.random.default_rng(seed).permutation(N)`."""
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    return [order[labels[order] == label] for label in range(classes)]


def set_aside(parts: Parts, split: str, fraction: float, class_names: Sequence[str]) -> Parts:
    """The same parts with `split`: where it is missing, round(fraction · n) of the n training images of each class, at least 1.

    They are drawn by seed 0 and stay in their order. CourseError for a class of one image.
    """
    if f"{split}_images" in parts:
        return parts
    labels, kept, aside = np.asarray(parts["train_labels"]), [], []
    for name, rows in zip(class_names, shuffled_by_class(labels, len(class_names), seed=0), strict=True):
        if len(rows) < 2:
            raise CourseError(f"Class {name!r} has {len(rows)} usable training image(s), too few to set one aside. Add some, or remove it.")
        count = max(1, round(fraction * len(rows)))
        aside.append(rows[:count])
        kept.append(rows[count:])
    made = {}
    for name, rows in (("train", np.sort(np.concatenate(kept))), (split, np.sort(np.concatenate(aside)))):
        made |= {f"{name}_images": Rows(parts["train_images"], rows), f"{name}_labels": labels[rows]}
    return {**parts, **made}


def human(count: float) -> str:
    """Bytes as a person says them: 2640397119 -> '2.6 GB'."""
    scale, unit = next(((scale, unit) for scale, unit in ((1e9, "GB"), (1e6, "MB")) if count >= scale), (1e3, "kB"))
    return f"{count / scale:.1f} {unit}"


def require_free(folder: Path, needed: int, what: str) -> None:
    """CourseError if the disk that holds `folder` (which need not exist yet) has fewer than `needed` bytes free."""
    folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        have = f"{human(needed)} free, and {folder} has {human(free)}"
        raise CourseError(f"{what} needs {have}. Free some space, or choose another disk with --data-dir.")


def new_map(path: Path, shape: tuple) -> np.ndarray:
    """A new .npy file of uint8, mapped for writing. Its space is taken first (or OSError): on a full disk, a map kills the process."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        else:  # macOS and Windows
            file.seek(images.offset)
            file.writelines(np.zeros_like(piece) for piece in chunks(images))
    return images


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare `folder`; others wait. The lock ends with the process. CourseError for another user's lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire()
    except PermissionError:
        if Path(lock.lock_file).exists():
            whose = f"{lock.lock_file} is another user's, who prepares {folder.name} or was interrupted"
            raise CourseError(f"{whose}. Wait, ask for its removal, or choose another folder with --data-dir.") from None
        raise
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def work_folder(folder: Path, what: str) -> Iterator[Path]:
    """An empty hidden folder beside `folder`, to be used inside `alone`; afterwards it is removed, unless it was renamed."""
    work = folder.with_name(f".{folder.name}.{what}")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def statistics(parts: Parts) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, in 0..1, of the training images and of at most 10,000 evenly spaced unlabelled ones."""
    total, squares, pixels, unlabeled = np.zeros(3), np.zeros(3), 0, parts.get("unlabeled", ())
    rows = np.linspace(0, len(unlabeled) - 1, min(len(unlabeled), 10_000)).astype(np.int64)
    for piece in chain(chunks(parts["train_images"]), chunks(Rows(unlabeled, rows)) if len(rows) else ()):
        values = piece.astype(np.float32) / 255
        total += values.sum(axis=(0, 2, 3), dtype=np.float64)
        squares += np.square(values).sum(axis=(0, 2, 3), dtype=np.float64)
        pixels += values.size // 3
    mean = total / pixels
    return np.round(mean, 6).tolist(), np.round(np.sqrt(np.maximum(squares / pixels - mean**2, 0)), 6).tolist()


def identity(class_names: Sequence[str], parts: Parts) -> str:
    """16 hexadecimal digits, a hash of class names, labels and pixels: the same contents have the same, whatever they are called."""
    digest = hashlib.sha256(json.dumps(list(class_names)).encode())
    for part in PARTS:
        if part in parts:
            digest.update(f"{part} {tuple(parts[part].shape)}".encode())
            for piece in chunks(parts[part]):
                digest.update(np.ascontiguousarray(piece))
    return digest.hexdigest()[:16]


def resized_identity(original: str, size: int) -> str:
    """The identity of a copy at another size: it follows from the original, whichever version of torch made the pixels."""
    return hashlib.sha256(f"{original} at {size} pixels".encode()).hexdigest()[:16]


def write(folder: Path, parts: Parts, *, class_names: Sequence[str], source: str, options: Mapping, **facts) -> None:
    """Write a data set into `folder`, all or nothing, inside `alone`. CourseError if something else is there (it stays), or no space.

    facts: what else is known of it, such as the `identity` of a copy, which is computed from its contents otherwise.
    """
    if folder.exists() and not (folder / "about.json").exists() and (folder.is_file() or any(folder.iterdir())):
        way = "Choose another --name or --data-dir, or delete it yourself if it is the rest of a broken data set."
        raise CourseError(f"{folder} exists and is not a prepared data set, so nothing was written there. {way}")
    parts = set_aside(parts, "validation", 0.1, class_names)
    parts = {part: np.asarray(array, np.int64) if part.endswith("_labels") else array for part, array in parts.items()}
    needed = sum(int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize for array in parts.values())
    require_free(folder, needed, f"Preparing {folder.name}")
    with work_folder(folder, "partial") as work, work_folder(folder, "replaced") as replaced:
        for part, array in parts.items():  # written plainly, for the same reason as in `new_map`
            with open(work / f"{part}.npy", "wb") as file, tqdm(total=len(array), desc=f"Writing {part}", unit=" images", delay=1) as bar:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": tuple(map(int, array.shape))}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in chunks(array):
                    file.write(np.ascontiguousarray(piece).data)
                    bar.update(len(piece))
        written = {part: np.load(work / f"{part}.npy", mmap_mode="r") for part in parts}
        mean, std = statistics(written)
        pixels = [piece for array in written.values() if array.ndim == 4 for piece in chunks(array)]
        about = dict(
            format=FORMAT, id=uuid.uuid4().hex, name=folder.name, size=int(parts["train_images"].shape[-1]), source=source,
            class_names=list(class_names), counts={part: len(array) for part, array in sorted(parts.items())}, mean=mean, std=std,
            stored_values=[int(min(piece.min() for piece in pixels)), int(max(piece.max() for piece in pixels))],
            date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), options=dict(options),
        )  # fmt: skip
        about |= {"identity": identity(class_names, written)} | facts
        files.write_json(work / "about.json", about)
        if folder.exists():
            os.rename(folder, replaced / folder.name)
        os.rename(work, folder)


def made_once(folder: Path, make: Callable[[], Parts], *, options: Mapping, force: bool = False, **facts) -> tuple[bool, dict, dict]:
    """What is in `folder`, if whole and made with these `options`; else what `make` gives, kept there. -> (made now, about, parts)

    facts: class_names, source and so on, as for `write`. force: make it anyway. CourseError where the disk cannot take it.
    """

    def found() -> tuple[bool, dict, dict] | None:
        if force or not is_there(folder):
            return None
        try:
            about, parts = read(folder)
        except Damaged as error:
            warnings.warn(f"{error} It can be made again from here, so that is done now.", stacklevel=5)
            return None
        if about["options"].keys() != options.keys():  # somebody's images, in a folder that was renamed
            raise CourseError(f"{folder} holds another data set, from {about['source']}. Rename it, or choose another data_dir.")
        return (False, about, parts) if about["options"] == options else None

    try:
        if kept := found():
            return kept
        with alone(folder):
            if kept := found():  # another process made it while this one waited
                return kept
            write(folder, make(), options=options, **facts)
            return True, *read(folder)
    except OSError as error:
        raise CourseError(f"{folder.name} cannot be kept in {folder}: {files.reason(error)}. Choose another data_dir.") from None


def is_there(folder: Path) -> bool:
    """Whether `folder` holds a prepared data set, or what is left of one. CourseError where the system does not let us look."""
    with _reading(folder), suppress(FileNotFoundError, NotADirectoryError):
        return any(name == "about.json" or name.endswith(".npy") for name in os.listdir(folder))
    return False


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """-> (about, parts): images as copy-on-write memory maps, labels in memory.

    Damaged names a missing or damaged file; CourseError says what else stands in the way: permissions, the disk, the memory.
    """
    about, parts = read_about(folder), {}
    for part in (part for part in PARTS if part in about["counts"]):
        count, is_labels = about["counts"][part], part.endswith("_labels")
        with _reading(folder / f"{part}.npy"):
            array = np.load(folder / f"{part}.npy", mmap_mode="c", allow_pickle=False)
            expected = (np.int64, (count,)) if is_labels else (np.uint8, (count, 3, about["size"], about["size"]))
            if (array.dtype, array.shape) != expected:
                raise ValueError(f"it holds {array.dtype} {array.shape}, which is not what about.json says")
            if is_labels and count and not 0 <= array.min() <= array.max() < len(about["class_names"]):
                raise ValueError("it holds labels without a class")
            parts[part] = np.array(array) if is_labels else array
    return about, parts


def read_about(folder: Path) -> dict:
    """The content of about.json, checked; its name is the folder's. Errors are those of `read`."""
    with _reading(folder / "about.json"):
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {about['format']!r} and this version of sslcourse reads format {FORMAT}")
        lacks = [key for key, kind in ABOUT.items() if not isinstance(about[key], kind)]
        if lacks := lacks + [part for part in PARTS if part not in about["counts"] and part != "unlabeled"]:
            raise ValueError(f"it lacks {', '.join(lacks)}")
    return {**about, "name": folder.name}  # a folder that was renamed is what its folder says


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError, KeyError, TypeError, EOFError, SyntaxError) as error:
        way = f"Delete the folder {path.parent} and prepare the data set again."
        raise Damaged(f"{path} is damaged ({type(error).__name__}: {error}). {way}") from None
    except (OSError, MemoryError) as error:
        raise CourseError(f"{path} cannot be read: {files.reason(error)}.") from None
