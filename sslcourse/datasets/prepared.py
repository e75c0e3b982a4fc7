"""A prepared data set on disk: a folder with `about.json` and one .npy file a part.

Parts are `train_images`, `train_labels`, the same for `validation` and `test`, and sometimes `unlabeled` and `folds`. Images are uint8
(N, 3, H, W), labels int64 (N,). The files are memory-mapped when they are read, so that opening 100,000 images takes no time and no memory.
"""

import errno
import json
import os
import shutil
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from sslcourse.errors import CourseError

FORMAT = 1
CHUNK = 8_000_000  # values handled at once: small enough for little memory, large enough for full disk speed
SPLITS = ("train", "validation", "test")
VALIDATION_FRACTION = 0.1
VALIDATION_SEED = 0
STATISTICS_SAMPLE = 10_000
BETWEEN_RENAMES = 10  # looks, 0.02 s apart, at a folder that another process may be replacing


# --- Views: things with a shape that give images by slice, so that a data set larger than memory can be copied ---


class Rows:
    """Some rows of an array, in the order of `rows`, picked only when sliced."""

    def __init__(self, source, rows):
        rows = np.asarray(rows)
        self.source, self.rows = (source.source, source.rows[rows]) if isinstance(source, Rows) else (source, rows)
        self.shape, self.dtype = (len(rows), *source.shape[1:]), source.dtype

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, piece):
        return self.source[self.rows[piece]]


class Resized:
    """Images (N, 3, H, W) uint8 seen at another size: bilinear with antialiasing, rounded to the nearest uint8 when sliced."""

    def __init__(self, source, size):
        self.source, self.size = source, size
        self.shape, self.dtype = (len(source), 3, size, size), np.dtype(np.uint8)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, piece):
        pixels = torch.from_numpy(np.array(self.source[piece])).float()
        if len(pixels) == 0:
            return np.empty((0, *self.shape[1:]), np.uint8)
        pixels = functional.interpolate(pixels, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return pixels.round_().clamp_(0, 255).to(torch.uint8).numpy()


def chunks(view):
    """Yield (start, stop, piece) over an array or a view, as many rows at a time as make about CHUNK values."""
    rows = max(1, CHUNK // max(1, int(np.prod(view.shape[1:]))))
    for start in range(0, len(view), rows):
        stop = min(start + rows, len(view))
        yield start, stop, view[start:stop]


def set_aside(labels, fraction, seed, class_names):
    """Split row numbers by class: -> (kept, aside), both int64 and in rising order.

    The rows are permuted once by `numpy.random.default_rng(seed).permutation(N)`. Of each class, the first round(fraction * n) in that
    order, at least one, are set aside. CourseError when a class has fewer than two images.
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    kept, aside = [], []
    for label, name in enumerate(class_names):
        rows = order[labels[order] == label]
        if len(rows) < 2:
            raise CourseError(
                f"Class {name!r} has {len(rows)} usable training image(s), too few to set one aside. Add images to it, or remove the class."
            )
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        aside.append(rows[:count])
        kept.append(rows[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(aside))


# --- Disk ---


def human(count):
    """Bytes as a person says them: 2640397119 -> '2.6 GB'."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{int(count)} bytes"


def require_free(folder, needed, what):
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
def fresh_folder(target):
    """A new, empty folder beside `target` to work in. It is gone afterwards, whatever happens, unless it was renamed.

    Folders of this kind that a killed process left behind more than a day ago are removed too.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}-*.partial"):
        try:
            if time.time() - stale.stat().st_mtime > 86_400:
                shutil.rmtree(stale, ignore_errors=True)
        except OSError:  # another process has just removed or renamed it
            continue
    folder = target.parent / f".{target.name}-{uuid.uuid4().hex[:12]}.partial"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder, target, seen):
    # -> whether it was this folder that was put there.
    # A rename onto a folder that is not empty fails on every system, so two processes cannot mix their files.
    for _ in range(10):
        try:
            os.rename(folder, target)
            return True
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.ENOTDIR) or not target.exists():
                raise
        _refuse_foreign(target)
        if _identity(target) != seen:
            return False  # another process has finished the same thing meanwhile: its folder stays, somebody may be reading it
        old = target.parent / f".{target.name}-{uuid.uuid4().hex[:12]}.partial"
        try:
            os.rename(target, old)
        except FileNotFoundError:
            continue
        shutil.rmtree(old, ignore_errors=True)
    raise CourseError(f"Another program keeps writing {target}. Stop it and try again.")


def _identity(folder):
    try:
        return (folder / "about.json").read_bytes()
    except OSError:
        return None


def _refuse_foreign(folder):
    # Only a folder that this module wrote may ever be replaced: a person's own photos are never deleted.
    for _ in range(BETWEEN_RENAMES):
        with suppress(FileNotFoundError):
            if not folder.exists() or (folder / "about.json").exists() or (folder.is_dir() and not any(folder.iterdir())):
                return
        time.sleep(0.02)  # it may have gone while it was looked at: another process is replacing it
    raise CourseError(
        f"{folder} exists and is not a prepared data set, so nothing was written there. Choose another --name or --data-dir, "
        "or delete it yourself if it is the rest of a broken data set."
    )


# --- Write ---


def complete(parts, class_names):
    """The same parts with a validation split: where it is missing, a stratified 10 % of train is set aside (`set_aside`, seed 0).

    If there are `folds` (row numbers of the whole train set), they are renumbered: row r below len(train) is train_images[r], and above it
    is validation_images[r - len(train)].
    """
    if "validation_images" in parts:
        return dict(parts)
    parts, images, labels = dict(parts), parts["train_images"], np.asarray(parts["train_labels"])
    kept, aside = set_aside(labels, VALIDATION_FRACTION, VALIDATION_SEED, class_names)
    for split, rows in (("train", kept), ("validation", aside)):
        parts[f"{split}_images"], parts[f"{split}_labels"] = Rows(images, rows), labels[rows]
    if "folds" in parts:
        renumbered = np.empty(len(labels), np.int64)
        renumbered[np.concatenate([kept, aside])] = np.arange(len(labels))
        parts["folds"] = renumbered[parts["folds"]]
    return parts


def describe(parts, *, name, class_names, source, options=None):
    """What about.json says of these (complete) parts: a dict with counts, mean and std per channel (in 0..1), where it came from, and when.

    Mean and std are taken over the training images and at most 10,000 evenly spaced unlabelled ones.
    """
    total, squares, pixels = np.zeros(3), np.zeros(3), 0
    sample = [parts["train_images"]]
    if "unlabeled" in parts:
        count = len(parts["unlabeled"])
        sample.append(Rows(parts["unlabeled"], np.linspace(0, count - 1, min(count, STATISTICS_SAMPLE)).astype(np.int64)))
    for view in sample:
        for _, _, piece in chunks(view):
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
        "options": options or {},
    }


def write(folder, parts, *, name, class_names, source, options=None, progress=True):
    """Write a prepared data set into `folder`, all or nothing. -> what about.json says.

    The files are written into a temporary folder beside it, which is renamed into place at the end and so replaces the prepared data set
    that was there before; if another process finished one meanwhile, that one stays. CourseError if the folder is something else than a
    prepared data set (it is never touched), or if the disk is too full, before anything is written.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    seen = _identity(folder)
    parts = complete(parts, class_names)
    needed = sum(int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize for array in parts.values())
    require_free(folder, needed, f"Preparing {name}")
    with fresh_folder(folder) as work:
        try:
            _write_parts(work, parts, name, progress)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise CourseError(f"The disk became full while {name} was written. Free some space, or choose another --data-dir.") from None
        stored = {part: np.load(work / f"{part}.npy", mmap_mode="r") for part in parts}
        about = describe(stored, name=name, class_names=class_names, source=source, options=options)
        del stored  # an open map would keep a folder from being renamed on some systems
        (work / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if _put_in_place(work, folder, seen):
            return about
    for _ in range(BETWEEN_RENAMES):
        with suppress(CourseError):
            return read_about(folder)
        time.sleep(0.02)  # yet another process is replacing it
    return read_about(folder)


def _write_parts(work, parts, name, progress):
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
                for start, stop, piece in chunks(array):
                    file.write(np.ascontiguousarray(piece).data)
                    bar.update(stop - start)


# --- Read ---


def read(folder):
    """-> (about, parts): the images as memory maps (copy on write, so nothing changes the files), labels in memory.

    CourseError that names the file if a part is missing, cut short, or not what about.json says.
    """
    folder = Path(folder)
    about = read_about(folder)
    parts = {}
    for part, count in about["counts"].items():
        array = _load_part(folder, part)
        image_shape = (count, 3, about["size"], about["size"])
        if _is_image(part):
            good = array.dtype == np.uint8 and array.shape == image_shape
        else:
            good = array.dtype == np.int64 and len(array) == count and array.ndim == (2 if part == "folds" else 1)
            array = np.array(array)
        if good and part.endswith("_labels"):
            good = array.size == 0 or (0 <= array.min() and array.max() < len(about["class_names"]))
        if not good:
            raise _damaged(folder / f"{part}.npy", f"it holds {array.dtype} {array.shape}, which is not what about.json says")
        parts[part] = array
    return about, parts


def read_about(folder):
    """The content of about.json, checked. CourseError if it is missing or damaged."""
    path = Path(folder) / "about.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    kinds = {"name": str, "size": int, "class_names": list, "counts": dict, "mean": list, "std": list, "source": str, "options": dict}
    if not isinstance(about, dict) or any(not isinstance(about.get(key), kind) for key, kind in kinds.items()):
        raise _damaged(path, "it lacks something that every prepared data set has")
    if about.get("format") != FORMAT:
        raise _damaged(path, f"it has format {about.get('format')!r} and this version of sslcourse reads format {FORMAT}")
    missing = {f"{split}_{what}" for split in SPLITS for what in ("images", "labels")} - about["counts"].keys()
    if missing or not all(isinstance(count, int) for count in about["counts"].values()):
        raise _damaged(path, f"its counts lack {', '.join(sorted(missing)) or 'a whole number'}")
    return about


def _is_image(part):
    return part == "unlabeled" or part.endswith("_images")


def _load_part(folder, part):
    path = folder / f"{part}.npy"
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path, reason):
    folder = path.parent
    return CourseError(f"{path} is damaged ({reason}). Delete the folder {folder} and prepare the data set again.")
