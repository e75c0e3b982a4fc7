"""Get a data set ready: draw it, download it, or take it from an archive or folder of images."""

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, STL10

from sslcourse.datasets import archives, downloads, image_folders, prepared, toybox
from sslcourse.datasets.image_set import KNOWN, check_size, known_spelling, load
from sslcourse.errors import CourseError

# address of the archive, checksum that its source publishes (or None), bytes of disk that it takes: archive, unpacked and prepared
SOURCES = {
    "stl10": (STL10.url, f"md5:{STL10.tgz_md5}", 9_000_000_000),
    "cifar10": (CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", 600_000_000),
    "flowers": (
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        "sha256:4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c", 700_000_000,
    ),
    "cats-vs-dogs": (
        "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip",
        None, 3_200_000_000,
    ),
}  # fmt: skip
MIRROR = "SSLCOURSE_MIRROR"  # the address of a folder with the same files, for a class that shares one copy; checksums still hold
RESERVED = {"downloads", "con", "prn", "aux", "nul", "train", "test"}


@dataclass
class Report:
    """What `prepare` did: the folder, whether anything was made, a sentence, and the files that were skipped as (path, reason)."""

    folder: Path
    made: bool
    sentence: str
    skipped: list[tuple[str, str]] = field(default_factory=list)


def prepare(name, data_dir="data", *, source=None, size=None, strict=False, limit=None, force=False, keep_archive=False) -> Report:
    """Get the data set `name` ready in `data_dir`, for `datasets.load(name, data_dir)`. A second call does nothing and says so.

    name: toybox, stl10, cifar10, flowers, cats-vs-dogs, or with `source` a name of your own.
    source: the path of an archive or folder (images as at `image_folders.read`, or the original files of STL-10 or CIFAR-10).
    size: pixels, 8..512. Image folders are stored at this size (None: their own, or 96); the others get a second, resized copy.
    strict: refuse files that cannot be read, instead of skipping them. limit: at most that many images a class and split (and that many
    unlabelled ones a class). force: do it again even if it is there. keep_archive: keep the downloaded archive.

    CourseError for everything that can go wrong on the way, with nothing half-made left; ValueError or TypeError for a wrong size or limit.
    """
    check_size(size)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 3):
        raise ValueError(f"limit is {limit!r}; it must be a whole number of at least 3, so that each split gets an image of each class.")
    name, data_dir = known_spelling(name), Path(data_dir)
    _check_name(name, source)
    folder = data_dir / name
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if name == "toybox":
            if limit is not None:
                raise ValueError("limit= cannot be used with toybox, whose number of images is chosen when it is loaded.")
            made, about, _ = toybox.load(data_dir, size, force=force)
            return _report(data_dir / ("toybox" if about["size"] == toybox.SIZE else f"toybox-{about['size']}"), made)
        report = None if force else _ready(folder)
        if report is None:
            with prepared.alone(folder):
                report = None if force else _ready(folder)  # another process may have finished it while this one waited
                report = report or _from_source(folder, source, size, strict, limit, keep_archive)
    except OSError as error:
        raise CourseError(f"{name} cannot be prepared in {data_dir} ({error}). Choose another folder with --data-dir.") from None
    if size not in (None, prepared.read_about(folder)["size"]):
        load(name, data_dir, size=size)
        report.sentence += f" A copy at {size}×{size} is ready too."
    return report


def _check_name(name: str, source) -> None:
    size = re.search(r"-(\d{1,3})$", name)
    if source is None and name not in KNOWN:
        others = f"Available: {', '.join(KNOWN)}. Your own: --from photos.zip --name {name}"
        raise CourseError(f"There is no data set {name!r} to download. {others}")
    if source is not None and (name == "toybox" or name.lower() in RESERVED or name.endswith(".")):
        raise CourseError(f"The name {name!r} is taken. Choose another one with --name.")
    if source is not None and (name.startswith("toybox-") or (size and 8 <= int(size[1]) <= 512)):
        raise CourseError(f"The name {name!r} is how a resized copy is named. Choose another one with --name, such as {name}px.")


def _ready(folder: Path) -> Report | None:
    with contextlib.suppress(CourseError):  # what is missing or damaged is made again
        prepared.read(folder)
        return _report(folder, made=False)


def _report(folder: Path, made: bool, skipped: Sequence[tuple[str, str]] = (), remark: str = "") -> Report:
    about = prepared.read_about(folder)
    counts = about["counts"]
    parts = [f"{counts[key]:,} {part}" for part in ("unlabeled", *prepared.SPLITS) for key in (part, f"{part}_images") if key in counts]
    done = "is ready" if made else "was ready already, nothing was done (--force makes it again)"
    what = f"{len(about['class_names'])} classes, {about['size']}×{about['size']}, {' · '.join(parts)} images"
    return Report(folder, made, f"{about['name']} {done}: {what} in {folder}. {remark}".strip(), list(skipped))


def _from_source(folder: Path, source, size, strict, limit, keep_archive) -> Report:
    if source is None:
        archive, origin = _download(folder)
    else:
        archive, origin = Path(source).expanduser(), Path(source).name
        path, place = archive.resolve(), folder.resolve()
        if not path.exists():
            raise CourseError(f"There is no file or folder {source}. Check the path after --from.")
        if path == place or place in path.parents:
            raise CourseError(f"{source} lies where the prepared data set is to go ({folder}). Choose another --name or --data-dir.")
        if path.is_dir() and path in place.parents:
            raise CourseError(f"{folder} would lie inside {source}, among the images. Choose a --data-dir outside it.")
    with prepared.work_folder(folder, "unpacked") as work:
        try:
            found = _read(archive, work, size, strict, limit)
        except archives.Broken:
            if source is None:
                _remove(archive)  # the next call gets it again
            raise
        options = {"limit": limit, "skipped": len(found.skipped)}
        prepared.write(folder, found.parts, class_names=found.class_names, source=origin, options=options)
        found.parts.clear()  # the memory maps, before the files that they map are removed
    if source is None and not keep_archive:
        _remove(archive)
    return _report(folder, True, found.skipped, found.skipped_sentence())


def _remove(downloaded: Path) -> None:
    downloaded.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it may hold another download, or a part of one
        downloaded.parent.rmdir()


def _download(folder: Path) -> tuple[Path, str]:
    (url, checksum, disk), mirror = SOURCES[folder.name], os.environ.get(MIRROR)
    file = url.rpartition("/")[2]
    url, target = f"{mirror.rstrip('/')}/{file}" if mirror else url, folder.parent / "downloads" / file
    there = sum(path.stat().st_size for path in target.parent.glob(f"{file}*"))  # whole, or a part of it
    prepared.require_free(folder.parent, disk - there, f"Preparing {folder.name}")
    try:
        return downloads.fetch(url, target, checksum), url
    except CourseError:
        _remove(target)  # a part that can be resumed stays
        raise


def _read(source: Path, work: Path, size, strict, limit) -> image_folders.FolderImages:
    tree = image_folders.tree(source) if source.is_dir() else archives.spool(source, work / "spool")
    folders = [tree]
    for files in folders:  # grows while we walk along it
        for name in ORIGINALS.keys() & files.keys():
            class_names, parts = ORIGINALS[name](files, work)
            return image_folders.FolderImages(class_names, parts if limit is None else _limited(parts, len(class_names), limit))
        folders += [inner for inner in files.values() if isinstance(inner, dict)]
    return image_folders.read(tree, work, size, label=str(source), strict=strict, limit=limit)


def _limited(parts: prepared.Parts, classes: int, limit: int) -> prepared.Parts:
    limited = {"unlabeled": parts["unlabeled"][: limit * classes]} if "unlabeled" in parts else {}
    for split in ("train", "test"):
        labels = parts[f"{split}_labels"]
        rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:limit] for label in range(classes)]))
        limited |= {f"{split}_images": prepared.Rows(parts[f"{split}_images"], rows), f"{split}_labels": labels[rows]}
    return limited


def _check_files(files: archives.Tree, published: list) -> None:
    for name, md5 in published:
        with contextlib.suppress(KeyError, OSError, ValueError):  # missing, or empty
            if md5 == hashlib.md5(files[name].mapped()).hexdigest():
                continue
        raise CourseError(f"{name} is missing, damaged or changed. Get the archive again.")


def read_stl10(files: archives.Tree, work: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The files of stl10_binary -> (class names, parts), images memory-mapped (torchvision's reader takes all 2.6 GB into memory).

    Images are uint8 (N, 3, 96, 96) with each channel stored column by column, so the last two axes are swapped here. Labels are 1..10 on
    disk and 0..9 here. CourseError for a damaged file.
    """
    _check_files(files, [*STL10.train_list, *STL10.test_list])
    parts = {}
    for split, key in (("unlabeled", "unlabeled"), ("train", "train_images"), ("test", "test_images")):
        parts[key] = files[f"{split}_X.bin"].mapped().reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
    for split in ("train", "test"):
        parts[f"{split}_labels"] = files[f"{split}_y.bin"].mapped().astype(np.int64) - 1
    names = files[STL10.class_names_file].open().read().split() if STL10.class_names_file in files else []
    if len(names) != 10:
        raise CourseError(f"{STL10.class_names_file} is missing or damaged. Get the archive again.")
    return [name.decode(errors="replace") for name in names], parts


def read_cifar10(files: archives.Tree, work: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The files of cifar-10-batches-py -> (class names, parts): images uint8 (N, 3, 32, 32), labels int64 in 0..9.

    Unpickling can run a program, so only files with the published MD5 sums are read. CourseError names the one that is not so.
    """
    published = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    _check_files(files, published)
    (work / CIFAR10.base_folder).mkdir()
    for name, _ in published:
        (work / CIFAR10.base_folder / name).write_bytes(files[name].open().read())
    parts = {}
    for split in ("train", "test"):
        batches = CIFAR10(work, train=split == "train")
        parts[f"{split}_images"] = batches.data.transpose(0, 3, 1, 2)
        parts[f"{split}_labels"] = np.array(batches.targets, np.int64)
    return batches.classes, parts


ORIGINALS = {"train_X.bin": read_stl10, "test_X.bin": read_stl10, "data_batch_1": read_cifar10, "test_batch": read_cifar10}
