"""Unpack .zip and .tar files that a stranger may have made, never outside the folder that was asked for."""

import io
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO

import numpy as np
from tqdm import tqdm

from sslcourse.datasets import prepared
from sslcourse.errors import CourseError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
MAX_ENTRIES = 3_000_000
MAX_BYTES = 50_000_000_000
MAX_RATIO = 200  # photos hardly shrink at all; a bomb shrinks a thousandfold
RATIO_FLOOR = 100_000_000  # bytes below which no ratio is suspicious
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, ValueError, OSError)


class Broken(CourseError):
    """The archive is damaged: it has to be got again."""


@dataclass(frozen=True)
class Piece:
    """A file, or a part of a larger one: `size` bytes from `start` on, -1 for all that follow."""

    file: Path
    start: int = 0
    size: int = -1

    def open(self) -> io.BytesIO:
        with open(self.file, "rb") as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.size))

    def mapped(self) -> np.ndarray:
        """The bytes, uint8, mapped from disk. ValueError if there are none."""
        return np.memmap(self.file, np.uint8, "r", self.start, None if self.size < 0 else self.size)


Tree = dict[str, "Tree | Piece"]  # a folder: from the names in it to further folders and files


def spool(archive: Path, file: Path, progress: bool = True) -> Tree:
    """Unpack `archive` into the single new file `file`: regular files and folders only. What is there after an error is for the caller.

    Tens of thousands of small images take seconds this way; making and deleting as many files takes minutes on a busy disk.

    CourseError that names the archive, and the entry where there is one, for: an entry that would land outside (absolute, "..", a drive
    letter), a link or device, more than MAX_ENTRIES entries or MAX_BYTES bytes or MAX_RATIO times the archive's size (from 100 MB on), a
    password. Broken for a damaged or shortened archive. OSError where the disk refuses.
    """
    name = archive.name.lower()
    if not name.endswith(SUFFIXES):
        raise CourseError(f"{archive.name} is not an archive that can be read: it must end in {', '.join(SUFFIXES)}. A folder works too.")
    entries = (_zip_entries if name.endswith(".zip") else _tar_entries)(archive, file.parent)
    bar = tqdm(unit="B", unit_scale=True, unit_divisor=1000, desc=f"Unpacking {archive.name}", disable=not progress)
    tree = {}
    try:
        with open(file, "wb") as out, bar:
            for parts, source in entries:
                folder = tree
                for part in parts[:-1] if source else parts:
                    folder = folder.setdefault(part, {})
                    if not isinstance(folder, dict):
                        raise ValueError(f"{'/'.join(parts)} lies in a file")
                if source:
                    start = out.tell()
                    shutil.copyfileobj(source, out)
                    folder[parts[-1]] = Piece(file, start, out.tell() - start)
                    bar.update(out.tell() - start)
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno:  # gzip and bz2 report damage by an OSError without a number
            raise
        raise Broken(f"{archive.name} is broken or incomplete ({str(error) or type(error).__name__}). Get it again.") from None
    except RuntimeError as error:  # what zipfile raises for an encrypted entry
        raise CourseError(f"{archive.name} cannot be unpacked ({error}). Unpack it yourself and give the folder.") from None
    return tree


class _Check:
    """Looks at each entry of an archive before it is unpacked, and counts."""

    def __init__(self, archive: Path):
        self.archive = archive.name
        self.most = min(MAX_BYTES, max(RATIO_FLOOR, MAX_RATIO * archive.stat().st_size))
        self.bytes = self.entries = 0

    def entry(self, name: str, size: int, is_plain: bool) -> list[str]:
        self.entries += 1
        self.bytes += size
        if self.entries > MAX_ENTRIES or self.bytes > self.most:
            what = f"{MAX_ENTRIES:,} entries" if self.entries > MAX_ENTRIES else prepared.human(self.most)
            raise CourseError(f"{self.archive} holds more than {what}, so it was not unpacked. If you trust it, give the unpacked folder.")
        path = PureWindowsPath(name)  # it knows drives, and both kinds of slashes
        if path.anchor or ".." in path.parts or "\0" in name:
            raise CourseError(f"{self.archive} has an entry {name!r} that would land outside its folder, so it was not unpacked.")
        if not is_plain:
            raise CourseError(f"{self.archive} has an entry {name!r} that is a link or device, so it was not unpacked. Pack it again.")
        return list(path.parts)


def _zip_entries(archive: Path, folder: Path) -> Iterator[tuple[list[str], IO[bytes] | None]]:
    # Yield the names of an entry's folders and its own, and the open file; None for a folder.
    check, entries = _Check(archive), []
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            entries.append((info, check.entry(info.filename, info.file_size, is_plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))))
        prepared.require_free(folder, check.bytes, f"Unpacking {archive.name}")
        for info, parts in entries:
            with file.open(info) as source:  # reads no more than the announced size, and checks the sum
                yield parts, None if info.is_dir() else source


def _tar_entries(archive: Path, folder: Path) -> Iterator[tuple[list[str], IO[bytes] | None]]:
    check = _Check(archive)
    with tarfile.open(archive) as file:
        for info in iter(file.next, None):
            parts = check.entry(info.name, info.size, is_plain=info.isreg() or info.isdir())
            if check.entries % 1000 == 1 or info.size > 1_000_000:
                prepared.require_free(folder, info.size, f"Unpacking {archive.name}")
            yield parts, file.extractfile(info)
            file.members = []  # otherwise it remembers every entry
        # tarfile takes a broken header for the end. In a plain .tar, zeros stand at a real end; in a compressed one, reading on makes
        # gzip, xz and bz2 verify their sums.
        if isinstance(file.fileobj, io.BufferedReader):
            file.fileobj.seek(file.offset)
            if file.fileobj.read(512) != bytes(512):
                raise tarfile.ReadError("it stops, or has an unreadable entry")
        while file.fileobj.read(1 << 20):
            pass
