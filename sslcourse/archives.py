"""Unpack .zip and .tar files that a stranger may have made: all or nothing, and never outside the folder that was asked for."""

import errno
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from sslcourse import storage
from sslcourse.errors import CourseError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
MAX_BYTES = 50_000_000_000
MAX_ENTRIES = 3_000_000
MAX_RATIO = 200  # photos hardly shrink at all; a bomb shrinks a thousandfold
RATIO_FLOOR = 100_000_000  # bytes below which no ratio is suspicious
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, UnicodeError, ValueError)


def is_archive(path):
    """Whether the name is that of an archive that `extract` reads."""
    return str(path).lower().endswith(SUFFIXES)


def extract(archive, destination, *, max_bytes=MAX_BYTES, max_entries=MAX_ENTRIES, max_ratio=MAX_RATIO, progress=True):
    """Unpack `archive` into the new folder `destination` and return it as a Path.

    Regular files and folders only. CourseError that names the archive, and the entry where there is one, for: an entry that would land
    outside the folder (absolute, "..", a drive letter), a link or device, more than `max_bytes` bytes or `max_entries` entries in all,
    contents more than `max_ratio` times the archive's size (from 100 MB on), a password, a broken or shortened archive, a full disk. A .zip
    is checked before anything is written, a .tar entry by entry; after a failure nothing is left.
    """
    archive, destination = Path(archive), Path(destination)
    if not archive.is_file():
        raise CourseError(f"There is no file {archive}. Check the path.")
    if not is_archive(archive):
        raise CourseError(f"{archive.name} is not an archive that can be read: it must end in {', '.join(SUFFIXES)}. A folder works too.")
    if destination.exists():
        raise CourseError(f"{destination} exists already, so {archive.name} was not unpacked there. Delete it or choose another folder.")
    limits = _Limits(archive, max_bytes, max_entries, max_ratio)
    unpack = _unpack_zip if archive.name.lower().endswith(".zip") else _unpack_tar
    with storage.fresh_folder(destination) as work:
        try:
            with tqdm(unit="B", unit_scale=True, unit_divisor=1000, desc=f"Unpacking {archive.name}", disable=not progress) as bar:
                unpack(archive, work, limits, bar)
        except CourseError:
            raise
        except BROKEN as error:
            raise _broken(archive, error) from None
        except RuntimeError as error:  # what zipfile raises for an encrypted entry
            raise CourseError(f"{archive.name} cannot be unpacked ({error}). Unpack it yourself and give the folder.") from None
        except OSError as error:
            if error.errno in (None, 0):  # gzip and bz2 report damage this way
                raise _broken(archive, error) from None
            if error.errno == errno.ENOSPC:
                raise CourseError(f"The disk became full while {archive.name} was unpacked. Free some space and try again.") from None
            raise CourseError(f"{archive.name} has an entry that cannot be written: {error.strerror or error}. Nothing was kept.") from None
        os.rename(work, destination)
    return destination


def _broken(archive, error):
    return CourseError(f"{archive.name} is broken or incomplete ({str(error) or type(error).__name__}). Get it again; nothing was kept.")


class _Limits:
    """Counts what an archive claims to hold, and refuses when it is too much."""

    def __init__(self, archive, max_bytes, max_entries, max_ratio):
        self.archive, self.max_bytes, self.max_entries, self.max_ratio = archive, max_bytes, max_entries, max_ratio
        self.packed = max(1, archive.stat().st_size)
        self.bytes = self.entries = 0

    def count(self, size):
        self.entries += 1
        self.bytes += size
        if self.entries > self.max_entries:
            self._refuse(f"more than {self.max_entries:,} entries")
        if self.bytes > self.max_bytes:
            self._refuse(f"more than {storage.human(self.max_bytes)}")
        if self.bytes > RATIO_FLOOR and self.bytes > self.max_ratio * self.packed:
            self._refuse(f"{storage.human(self.bytes)} or more in a file of {storage.human(self.packed)}")

    def _refuse(self, what):
        raise CourseError(f"{self.archive.name} holds {what}, so it was not unpacked. If you trust it, unpack it and give the folder.")


def _target(work, name, archive):
    # Where an entry goes, or a refusal. Backslashes count as separators, because on some systems they are.
    clean = name.replace("\\", "/")
    parts = clean.split("/")
    if clean.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", clean) or "\0" in clean:
        raise CourseError(f"{archive.name} has an entry {name!r} that would land outside its folder, so it was not unpacked.")
    return work.joinpath(*(part for part in parts if part not in ("", ".")))


def _no_links(archive, name, kind):
    return CourseError(
        f"{archive.name} has an entry {name!r} that is a {kind}, so it was not unpacked. Pack it again with real files, or give the folder."
    )


def _save(source, target, made, bar):
    # -> bytes written. `made` remembers the folders that exist: asking the system again for each of 60,000 files takes seconds.
    if target.parent not in made:
        target.parent.mkdir(parents=True, exist_ok=True)
        made.add(target.parent)
    written = 0
    with open(target, "wb") as file:
        while data := source.read(1 << 20):
            file.write(data)
            written += len(data)
    bar.update(written)
    return written


def _unpack_zip(archive, work, limits, bar):
    with zipfile.ZipFile(archive) as file:
        entries = []
        for info in file.infolist():
            limits.count(info.file_size)
            target = _target(work, info.filename, archive)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _no_links(archive, info.filename, "link" if kind == stat.S_IFLNK else "device")
            entries.append((info, target))
        storage.require_free(work, limits.bytes, f"Unpacking {archive.name}")
        bar.reset(total=limits.bytes)
        made = set()
        for info, target in entries:
            if info.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            with file.open(info) as source:  # reads no more than the announced size, and checks the sum
                _save(source, target, made, bar)


def _unpack_tar(archive, work, limits, bar):
    made = set()
    with tarfile.open(archive) as file:
        while (info := file.next()) is not None:
            limits.count(max(0, info.size))
            target = _target(work, info.name, archive)
            if info.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif info.isreg():
                if limits.entries % 1000 == 1 or info.size > 1_000_000:
                    storage.require_free(work, info.size, f"Unpacking {archive.name}")
                with file.extractfile(info) as source:
                    written = _save(source, target, made, bar)
                if written != info.size:
                    raise EOFError(f"{info.name} is cut short")
            else:
                raise _no_links(archive, info.name, "link" if info.issym() or info.islnk() else "device")
            file.members = []  # otherwise it remembers every entry
        _check_end(file, limits)


def _check_end(file, limits):
    # tarfile takes a broken header after the first entry for the end of the archive. In a plain .tar a real end is a block of zeros; in a
    # compressed one, reading to the end of the stream makes gzip, xz and bz2 verify their sums (going back would unpack it all again).
    stream = file.fileobj
    if not isinstance(stream, io.BufferedReader):
        while data := stream.read(1 << 20):
            limits.count(len(data))
        return
    stream.seek(file.offset)
    block = stream.read(512)
    if any(block) or not block:
        raise tarfile.ReadError("it stops, or has an unreadable entry")
