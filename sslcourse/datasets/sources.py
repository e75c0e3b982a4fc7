"""Get a data set ready: draw it, download it, or take it from an archive or folder of images."""

import contextlib
import os
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, STL10

from sslcourse import datasets
from sslcourse.datasets import archives, downloads, image_folders
from sslcourse.datasets import prepared as storage
from sslcourse.errors import CourseError


@dataclass(frozen=True)
class Source:
    """Where a data set's archive is, the checksum that its source publishes (or None), and how much disk preparing it takes, in bytes."""

    url: str
    checksum: str | None
    disk: int

    @property
    def filename(self):
        return self.url.rpartition("/")[2]


# Every address of the course's data, in one place. `disk` is archive + unpacked + prepared.
SOURCES = {
    "stl10": Source(STL10.url, f"md5:{STL10.tgz_md5}", 9_000_000_000),
    "cifar10": Source(CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", 600_000_000),
    "flowers": Source(
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        "sha256:4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
        700_000_000,
    ),
    "cats-vs-dogs": Source(
        "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip",
        None,
        3_200_000_000,
    ),
}
MIRROR = "SSLCOURSE_MIRROR"  # the address of a folder with the same files, for a class that shares one copy; checksums still hold
RESERVED = {"downloads", "con", "prn", "aux", "nul", "train", "test"}


@dataclass
class Report:
    """What `prepare` did: the folder, whether anything was made, a sentence, and the files that were skipped as (path, reason)."""

    folder: Path
    made: bool
    sentence: str
    skipped: list = field(default_factory=list)


def prepare(name, data_dir="data", *, source=None, size=None, strict=False, limit=None, force=False, keep_archive=False, progress=True):
    """Get the data set `name` ready in `data_dir`, for `datasets.load(name, data_dir)`. -> Report

    name: toybox, stl10, cifar10, flowers, cats-vs-dogs, or with `source` a name of your own.
    source: an archive or folder that you have (image folders as at `image_folders.read`, or the original files of STL-10 or CIFAR-10).
    size: pixels, 8..512. Image folders are stored at this size (None: their own, or 96); the others get a second, resized copy.
    strict: refuse files that cannot be read, instead of skipping and counting them. limit: at most that many images a class and split (and
    that many unlabelled ones a class), for a quick look. force: do it again even if it is there. keep_archive: keep the downloaded archive.

    A second call does nothing and says so. After a failure nothing half-made is left; an interrupted download continues next time.
    CourseError, with a sentence, for everything that can go wrong on the way; ValueError for a wrong size or limit.
    """
    datasets.check_size(size)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 3):
        raise ValueError(f"limit is {limit!r}; it must be a whole number of at least 3, so that each split gets an image of each class.")
    name = check_name(name, source)
    data_dir = Path(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"The folder {data_dir} cannot be made ({error.strerror}). Choose another one with --data-dir.") from None
    if name == "toybox":
        return _toybox(data_dir, size, force, limit)
    folder = data_dir / name
    report = None if force else _already(folder, name)
    if report is None:
        try:
            report = _from_source(name, folder, source, size, strict, limit, keep_archive, progress)
        except CourseError:
            report = None if force else _already(folder, name)  # another process may have finished it, and removed the archive
            if report is None:
                raise
    if size not in (None, storage.read_about(folder)["size"]):
        images = datasets.load(name, data_dir, size=size)
        report.sentence += f" A copy at {images.size}×{images.size} is ready too."
    return report


def check_name(name, source=None):
    """The name as it is stored. CourseError if it cannot be used, or if nothing says where its images are."""
    name = datasets.known_spelling(name)
    if source is None:
        if name not in datasets.KNOWN:
            known = ", ".join(datasets.KNOWN)
            raise CourseError(
                f"There is no data set {name!r} to download. Available: {known}. Your own images: --from photos.zip --name {name}"
            )
        return name
    if name == "toybox" or name.lower() in RESERVED or name.endswith("."):
        raise CourseError(f"The name {name!r} is taken. Choose another one with --name.")
    size = re.search(r"-(\d{1,3})$", name)
    if name.startswith("toybox-") or (size and 8 <= int(size[1]) <= 512):
        raise CourseError(f"The name {name!r} is how a resized copy is named. Choose another one with --name, such as {name}px.")
    return name


def _toybox(data_dir, size, force, limit):
    if limit is not None:
        raise ValueError("limit= cannot be used with toybox, whose number of images is chosen when it is loaded.")
    try:
        made, about, _ = datasets.draw_toybox(data_dir, size, force=force, must_keep=True)
    except OSError as error:
        raise CourseError(f"toybox cannot be written to {data_dir} ({error.strerror}). Choose another folder with --data-dir.") from None
    done = "is ready" if made else "was ready already, nothing was done (--force draws it again)"
    folder = data_dir / ("toybox" if about["size"] == datasets.TOYBOX_SIZE else f"toybox-{about['size']}")
    return Report(folder, made, f"toybox {done}: {_counts(about)} in {folder}.")


def _already(folder, name):
    # A Report if the data set is there and whole. One that is damaged is made again.
    if not (folder / "about.json").exists():
        return None
    try:
        about, _ = storage.read(folder)
    except CourseError:
        return None
    sentence = f"{name} was ready already, nothing was done (--force prepares it again): {_counts(about)} in {folder}."
    return Report(folder, False, sentence)


def _counts(about):
    counts = about["counts"]
    parts = [f"{counts[key]:,} {part}" for part in ("unlabeled", *storage.SPLITS) for key in (part, f"{part}_images") if key in counts]
    return f"{len(about['class_names'])} classes, {about['size']}×{about['size']}, {' · '.join(parts)} images"


def _from_source(name, folder, source, size, strict, limit, keep_archive, progress):
    if source is not None:
        archive, origin = Path(source).expanduser(), Path(source).name
        if not archive.exists():
            raise CourseError(f"There is no file or folder {source}. Check the path after --from.")
        if archive.resolve() == folder.resolve() or folder.resolve() in archive.resolve().parents:
            raise CourseError(f"{source} lies where the prepared data set is to go ({folder}). Choose another --name or --data-dir.")
        if archive.is_dir() and archive.resolve() in folder.resolve().parents:
            raise CourseError(f"{folder} would lie inside {source}, among the images. Choose a --data-dir outside it.")
    else:
        archive, origin = _download(name, folder.parent, progress), source_url(name)
    with storage.fresh_folder(folder) as work:
        class_names, parts, skipped = _convert(archive, work, size, strict, limit, progress)
        options = {"limit": limit, "skipped": len(skipped)}
        about = storage.write(folder, parts, name=name, class_names=class_names, source=origin, options=options, progress=progress)
        del parts  # the memory maps, before the files that they map are removed
    if source is None and not keep_archive:
        archive.unlink(missing_ok=True)
        if not any(archive.parent.iterdir()):
            archive.parent.rmdir()
    sentence = f"{name} is ready: {_counts(about)} in {folder}."
    if skipped:
        sentence += " " + image_folders.FolderImages(class_names, 0, {}, skipped).skipped_sentence()
    return Report(folder, True, sentence, skipped)


def source_url(name):
    """The address of a data set's archive: the one in SOURCES, or the same file in the folder that SSLCOURSE_MIRROR names."""
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{SOURCES[name].filename}" if mirror else SOURCES[name].url


def _download(name, data_dir, progress):
    target = data_dir / "downloads" / SOURCES[name].filename
    there = sum(path.stat().st_size for path in (target, target.with_name(target.name + ".part")) if path.exists())
    storage.require_free(data_dir, SOURCES[name].disk - there, f"Preparing {name}")
    try:
        return downloads.fetch(source_url(name), target, checksum=SOURCES[name].checksum, progress=progress)
    except BaseException:
        with contextlib.suppress(OSError):
            target.parent.rmdir()  # only an empty folder goes: a part that can be resumed stays
        raise


# --- Layouts ---


ORIGINALS = {"train_X.bin": "stl10", "test_X.bin": "stl10", "data_batch_1": "cifar10", "test_batch": "cifar10"}


def _convert(source, work, size, strict, limit, progress):
    # -> class names, parts for storage.write, skipped files. Whether it is an original is seen from the files' names.
    if source.is_dir():
        found = next((path for name in ORIGINALS for path in sorted(source.rglob(name))), None)
    else:
        found = next((name for name in archives.first_names(source) if name in ORIGINALS), None)
        if found:
            unpacked = archives.extract(source, work / "unpacked", progress=progress)
            found = next(path for path in sorted(unpacked.rglob(found)))
    if found:
        read = {"stl10": read_stl10, "cifar10": read_cifar10}[ORIGINALS[found.name]]
        class_names, parts = read(found.parent)
        return class_names, _limited(parts, len(class_names), limit), []
    folder = source if source.is_dir() else archives.spool(source, work / "spool", progress=progress)
    images = image_folders.read(folder, size, strict=strict, limit=limit, workspace=work, progress=progress)
    return images.class_names, images.parts, images.skipped


def _limited(parts, classes, limit):
    if limit is None:
        return parts
    limited = {}
    for split in storage.SPLITS:
        if f"{split}_labels" in parts:
            labels = parts[f"{split}_labels"]
            rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:limit] for label in range(classes)]))
            limited[f"{split}_images"], limited[f"{split}_labels"] = storage.Rows(parts[f"{split}_images"], rows), labels[rows]
    if "unlabeled" in parts:
        limited["unlabeled"] = parts["unlabeled"][: limit * classes]
    return limited


def read_stl10(folder):
    """The folder stl10_binary -> (class names, parts), images memory-mapped.

    Images are uint8 (N, 3, 96, 96) with each channel stored column by column, so the last two axes are swapped here. Labels are 1..10 on
    disk and 0..9 here. `folds` are the ten official folds, int64 (10, 1000) row numbers of train. CourseError if a file is missing or cut.
    """
    folder = Path(folder)

    def images(name):
        path = _existing(folder / name)
        count, rest = divmod(path.stat().st_size, 3 * 96 * 96)
        if rest or not count:
            raise CourseError(f"{name} has {path.stat().st_size:,} bytes, no whole number of STL-10 images. Get the archive again.")
        return np.memmap(path, np.uint8, "r", shape=(count, 3, 96, 96)).transpose(0, 1, 3, 2)

    def labels(name, count):
        values = np.fromfile(_existing(folder / name), np.uint8).astype(np.int64) - 1
        if len(values) != count or values.min() < 0 or values.max() > 9:
            raise CourseError(f"{name} does not hold {count:,} labels from 1 to 10. Get the archive again.")
        return values

    parts = {"unlabeled": images("unlabeled_X.bin")}
    for split in ("train", "test"):
        parts[f"{split}_images"] = images(f"{split}_X.bin")
        parts[f"{split}_labels"] = labels(f"{split}_y.bin", len(parts[f"{split}_images"]))
    class_names = _existing(folder / STL10.class_names_file).read_text().split()
    if len(class_names) != 10:
        raise CourseError(f"{STL10.class_names_file} names {len(class_names)} classes instead of 10. Get the archive again.")
    path = folder / STL10.folds_list_file
    if path.exists():
        try:
            folds = np.array([line.split() for line in path.read_text().splitlines() if line.strip()], dtype=np.int64)
        except ValueError:
            folds = np.empty(0, np.int64)
        if folds.ndim != 2 or folds.min() < 0 or folds.max() >= len(parts["train_images"]):
            raise CourseError(f"{path.name} is not a table of row numbers. Get the archive again.")
        parts["folds"] = folds
    return class_names, parts


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dicts, lists, strings, numbers and NumPy arrays. Any other name is refused, because loading it could run a program."""

    # _codecs.encode only turns text into bytes: it is how a Python 3 pickle of protocol 2 writes them.
    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            module = "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
        elif (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path):
    try:
        with _existing(path).open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except CourseError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CourseError(f"{path.name} is not a file of CIFAR-10 ({error}). Get the archive again.") from None


def read_cifar10(folder):
    """The folder cifar-10-batches-py -> (class names, parts): images uint8 (N, 3, 32, 32), labels int64 in 0..9.

    CourseError if a file is missing, damaged, or holds anything but plain values and arrays.
    """
    folder = Path(folder)
    meta = _unpickle(folder / CIFAR10.meta["filename"])
    parts = {}
    try:
        class_names = [str(name) for name in meta[CIFAR10.meta["key"]]]
        for split, names in (("train", CIFAR10.train_list), ("test", CIFAR10.test_list)):
            batches = [_unpickle(folder / name) for name, _ in names]
            images = np.concatenate([batch["data"].reshape(-1, 3, 32, 32) for batch in batches])
            labels = np.concatenate([np.asarray(batch["labels"], np.int64) for batch in batches])
            if images.dtype != np.uint8 or len(images) != len(labels) or labels.min() < 0 or labels.max() >= len(class_names):
                raise ValueError(f"its {split} images and labels do not fit")
            parts[f"{split}_images"], parts[f"{split}_labels"] = images, labels
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CourseError(f"The files in {folder.name} are not those of CIFAR-10 ({error}). Get the archive again.") from None
    return class_names, parts


def _existing(path):
    if not path.is_file():
        raise CourseError(f"{path.name} is missing in {path.parent.name}. Get the archive again.")
    return path
