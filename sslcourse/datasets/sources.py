"""Get a data set ready: draw it, download it, or take it from an archive or folder of images."""

import contextlib
import hashlib
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from torchvision.datasets import CIFAR10, STL10

from sslcourse import files
from sslcourse.datasets import archives, downloads, image_folders, prepared, toybox
from sslcourse.datasets.image_set import KNOWN, check_size, known_spelling, load
from sslcourse.errors import CourseError

# address of the archive, checksum that its source publishes (or None), bytes of disk that it takes: archive, unpacked and prepared
SOURCES = {
    "stl10": (STL10.url, f"md5:{STL10.tgz_md5}", 9_000_000_000), "cifar10": (CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", 600_000_000),
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
RESERVED = {"toybox", "downloads", "con", "prn", "aux", "nul", "train", "test"}


@dataclass
class Report:
    """Whether `prepare` made it now; what it did, in a sentence; lines on classes, pixels and the rules that were applied."""

    made: bool
    sentence: str
    details: list[str]


def prepare(name, data_dir="data", *, source=None, size=None, strict=False, limit=None, force=False, keep_archive=False) -> Report:
    """Get the data set `name` ready in `data_dir`, for `datasets.load(name, data_dir)`.

    A second call does nothing and says so; with another source, size, limit or strictness it is refused, unless `force` is given.
    name: one of datasets.KNOWN, or with `source` a name of your own. source: the path of an archive or folder (images as at
    `image_folders.read`, or the original files of STL-10 or CIFAR-10). size: pixels, 8..512, at which image folders are stored (None: their
    own, or 96); the others get a second, resized copy. strict: refuse files that cannot be read, instead of skipping them. limit: at most
    that many images per class and split (and that many unlabelled ones per class). keep_archive: keep the downloaded archive.
    CourseError for everything that can go wrong on the way, with nothing half-made left; ValueError for a wrong size or limit.
    """
    check_size(size)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 3):
        raise ValueError(f"limit is {limit!r}; it must be a whole number of at least 3, so that each split gets an image of each class.")
    name, data_dir = known_spelling(name), files.folder_of(data_dir, "data_dir", "data")
    _check_name(name, source)
    folder = data_dir / name
    asked = {"size": size, "limit": limit, "strict": strict, "fingerprint": None}
    try:
        if source is not None:
            source = files.path_of(source, "--from")
            asked["fingerprint"] = _fingerprint(source)
        data_dir.mkdir(parents=True, exist_ok=True)
        if name == "toybox":
            if limit is not None:
                raise ValueError("limit= cannot be used with toybox, whose number of images is chosen when it is loaded.")
            made, about, _ = toybox.load(data_dir, size, force=force)
            return _report(data_dir / about["name"], made)
        report = None if force else _ready(folder, asked)
        if report is None:
            files.check_writable(data_dir, "--data-dir")
            with prepared.alone(folder):  # another process may have finished it while this one waited
                report = (None if force else _ready(folder, asked)) or _from_source(folder, source, asked, keep_archive)
    except (OSError, MemoryError) as error:
        where = f" ({error.filename})" if getattr(error, "filename", None) else ""
        raise CourseError(f"{name} cannot be prepared in {data_dir}: {files.reason(error)}{where}. Another folder: --data-dir.") from None
    if size not in (None, prepared.read_about(folder)["size"]):
        load(name, data_dir, size=size)
        report.sentence += f" A copy at {size}×{size} is ready too."
    return report


def _check_name(name: str, source) -> None:
    if source is None:
        if name in KNOWN:
            return
        others = f"Available: {', '.join(KNOWN)}. Your own: --from photos.zip --name {name}"
        raise CourseError(f"There is no data set {name!r} to download. {others}")
    size = re.search(r"-(\d{1,3})$", name)
    if name.lower() in RESERVED or name.endswith(".") or name.startswith("toybox-") or (size and 8 <= int(size[1]) <= 512):
        raise CourseError(f"The name {name!r} is taken, or is how a resized copy is named. Choose another one with --name.")


def _fingerprint(source: Path) -> str:
    # A hash that another source, or one to which something was added, does not share: of an archive, or of the names and sizes of files.
    if not source.exists():
        raise CourseError(f"There is no file or folder {source}. Check the path after --from.")
    if source.is_file():
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    digest = hashlib.sha256()
    for path, file in sorted(image_folders.tree(source).items()):
        if not any(map(image_folders.is_hidden, path.split("/"))):
            digest.update(f"{path} {file and file.file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _ready(folder: Path, asked: dict) -> Report | None:
    if not prepared.is_there(folder):
        return None
    with contextlib.suppress(prepared.Damaged):  # it is made again
        about = prepared.read_about(folder)
        was = about["options"]
        same = was["fingerprint"] == asked["fingerprint"] or (was["original"] and asked["fingerprint"] is None)  # or originals
        another_size = "size" in was and asked["size"] not in (was["size"], about["size"])
        differences = {
            f"from another source, or before this one changed ({about['source']})": not same,
            f"size {about['size']}, not {asked['size'] or 'the default'}": another_size,
            f"limit {was.get('limit') or 'none'}, not {asked['limit'] or 'none'}": asked["limit"] != was.get("limit"),
            f"{was.get('skipped', 0):,} files skipped, which strict refuses": asked["strict"] and was.get("skipped"),
        }
        if told := [difference for difference, holds in differences.items() if holds]:
            way = "Keep it and choose another --name, or replace it with --force."
            raise CourseError(f"{folder.name} is there already, and was prepared otherwise: {'; '.join(told)}. {way}")
        prepared.read(folder)
        return _report(folder, made=False)


def _report(folder: Path, made: bool, remark: str = "") -> Report:
    about = prepared.read_about(folder)
    names, counts = about["class_names"], about["counts"]
    parts = [f"{counts[key]:,} {part}" for part in ("unlabeled", *prepared.SPLITS) for key in (part, f"{part}_images") if key in counts]
    done = "is ready" if made else "was ready already, nothing was done (--force makes it again)"
    what = f"{len(names)} classes, {about['size']}×{about['size']}, {' · '.join(parts)} images"
    of_class = [np.bincount(np.load(folder / f"{split}_labels.npy"), minlength=len(names)) for split in prepared.SPLITS]
    rows = [f"{name} {' · '.join(f'{n:,}' for n in row)}" for name, row in zip(names, np.stack(of_class, 1), strict=True)]
    details = [f"Images of each class ({' · '.join(prepared.SPLITS)}): {image_folders.listed(rows)}."]
    if len(rows) > image_folders.NAMED:
        total = np.sum(of_class, 0)
        details.append(f"The smallest class is {rows[total.argmin()]}, the largest {rows[total.argmax()]}.")
    if "values" in about:
        (low, high), (lowest, highest) = about["values"], about["stored_values"]
        details.append(f"Values of the pixels: {low:g}..{high:g} in the files, {lowest}..{highest} as they are kept.")
    sentence = f"{about['name']} {done}: {what} in {folder}. {remark}".strip()
    return Report(made, sentence, details + about.get("rules", []))


def _from_source(folder: Path, source: Path | None, asked: dict, keep_archive: bool) -> Report:
    if source is not None and (source.is_relative_to(folder) or folder.is_relative_to(source)):
        raise CourseError(f"The prepared data set would go to {folder}, where {source} lies. Choose another --name or --data-dir.")
    archive, origin = _download(folder) if source is None else (source, source.name)
    with prepared.work_folder(folder, "unpacked") as work:
        try:
            found, original = _read(archive, work, asked["size"], asked["strict"], asked["limit"])
        except prepared.Damaged as error:
            if source is not None:
                raise
            _remove(archive)
            raise CourseError(f"{error} What was downloaded was removed: the same command downloads it again.") from None
        options = {"limit": asked["limit"], "skipped": len(found.skipped), "original": original, "fingerprint": asked["fingerprint"]}
        options |= {} if original else {"size": asked["size"]}
        if "validation_images" not in found.parts:
            found.rules.append("There is no validation folder, so 10 % of each class of train were set aside for it.")
        facts = dict(source=origin, options=options, values=found.values, rules=found.rules)
        prepared.write(folder, found.parts, class_names=found.class_names, **facts)
        found.parts.clear()  # the memory maps, before the files that they map are removed
    if source is None and not keep_archive:
        _remove(archive)
    return _report(folder, True, found.skipped_sentence())


def _remove(downloaded: Path) -> None:
    downloaded.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it may hold another download, or a part of one
        downloaded.parent.rmdir()


def _download(folder: Path) -> tuple[Path, str]:
    (url, checksum, disk), mirror = SOURCES[folder.name], os.environ.get(MIRROR)
    file, host = url.rpartition("/")[2], mirror or urlsplit(url).hostname
    url, target = f"{mirror.rstrip('/')}/{file}" if mirror else url, folder.parent / "downloads" / file
    there = sum(path.stat().st_size for path in target.parent.glob(f"{file}*"))  # whole, or a part of it
    prepared.require_free(folder.parent, disk - there, f"Preparing {folder.name}")
    try:
        if not target.exists():
            size = KNOWN[folder.name].download_bytes
            fast, slow = (f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s" for seconds in (size / 2e7, size / 1e6))
            cost = f"{prepared.human(size)} from {host}, about {fast} at 20 MB/s and {slow} at 1 MB/s"
            print(f"{folder.name} is downloaded once: {cost}.", flush=True)
        return downloads.fetch(url, target, checksum), url
    except CourseError:
        _remove(target)  # a part that can be resumed stays
        raise


def _read(source: Path, work: Path, size, strict, limit) -> tuple[image_folders.FolderImages, bool]:
    # What is there, and whether it is an original: nearly all the published files, not only something with the name of one.
    found, folders = image_folders.tree(source) if source.is_dir() else archives.spool(source, work / "spool"), {}
    for path, file in found.items():
        folders.setdefault(path.rpartition("/")[0], {})[path.rpartition("/")[2]] = file
    for inside in folders.values():
        for data, read in ((STL10, read_stl10), (CIFAR10, read_cifar10)):
            names = [name for name, _ in (*data.train_list, *data.test_list)]
            if 2 * sum(inside.get(name) is not None for name in names) > len(names):
                class_names, parts = read(inside)
                parts = parts if limit is None else _limited(parts, len(class_names), limit)
                return image_folders.FolderImages(class_names, parts), True
    return image_folders.read(found, work, size, label=str(source), strict=strict, limit=limit), False


def _limited(parts: prepared.Parts, classes: int, limit: int) -> prepared.Parts:
    limited = {"unlabeled": parts["unlabeled"][: limit * classes]} if "unlabeled" in parts else {}
    for split in ("train", "test"):
        labels = parts[f"{split}_labels"]
        rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:limit] for label in range(classes)]))
        limited |= {f"{split}_images": prepared.Rows(parts[f"{split}_images"], rows), f"{split}_labels": labels[rows]}
    return limited


def _check_files(inside: archives.Files, published: list) -> None:
    for name, md5 in published:
        with contextlib.suppress(KeyError, AttributeError, OSError, ValueError):  # missing, a link, or empty
            if md5 == hashlib.md5(inside[name].mapped()).hexdigest():
                continue
        raise CourseError(f"{name} is missing, damaged or changed. Get the archive again.")


def read_stl10(inside: archives.Files) -> tuple[list[str], dict[str, np.ndarray]]:
    """The files of stl10_binary -> (class names, parts), images memory-mapped (torchvision's reader takes all 2.6 GB into memory).

    Images are uint8 (N, 3, 96, 96) with each channel stored column by column, so the last two axes are swapped here. Labels are 1..10 on
    disk and 0..9 here. CourseError for a damaged file.
    """
    _check_files(inside, [*STL10.train_list, *STL10.test_list])
    parts = {}
    for split, key in (("unlabeled", "unlabeled"), ("train", "train_images"), ("test", "test_images")):
        parts[key] = inside[f"{split}_X.bin"].mapped().reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)
    for split in ("train", "test"):
        parts[f"{split}_labels"] = inside[f"{split}_y.bin"].mapped().astype(np.int64) - 1
    names = inside[STL10.class_names_file].open().read().split() if STL10.class_names_file in inside else []
    if len(names) != 10:
        raise CourseError(f"{STL10.class_names_file} is missing or damaged. Get the archive again.")
    return [name.decode(errors="replace") for name in names], parts


def read_cifar10(inside: archives.Files) -> tuple[list[str], dict[str, np.ndarray]]:
    """The files of cifar-10-batches-py -> (class names, parts): images uint8 (N, 3, 32, 32), labels int64 in 0..9.

    Unpickling can run a program, so only files with the published MD5 sums are read. CourseError names the one that is not so.
    """
    meta = CIFAR10.meta["filename"]
    _check_files(inside, [*CIFAR10.train_list, *CIFAR10.test_list, (meta, CIFAR10.meta["md5"])])
    parts = {}
    for split, published in (("train", CIFAR10.train_list), ("test", CIFAR10.test_list)):
        batches = [pickle.load(inside[name].open(), encoding="latin1") for name, _ in published]
        parts[f"{split}_images"] = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        parts[f"{split}_labels"] = np.concatenate([batch["labels"] for batch in batches]).astype(np.int64)
    return pickle.load(inside[meta].open(), encoding="latin1")[CIFAR10.meta["key"]], parts
