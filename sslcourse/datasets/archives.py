"""Unpack .zip and .tar files that a stranger may have made, never outside the folder that was asked for."""

import io
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath

import numpy as np
from tqdm import tqdm

from sslcourse.datasets import prepared
from sslcourse.errors import CourseError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
MAX_ENTRIES = 3_000_000
MAX_BYTES = 50_000_000_000
MAX_RATIO = 200  # photos hardly shrink at all; a bomb shrinks a thousandfold
RATIO_FLOOR = 100_000_000  # bytes below which no ratio is suspicious
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OSError)


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


# Files by their paths. None is a link, or a folder, whose path ends with "/". Bytes that are not UTF-8 are surrogates in a path.
Files = dict[str, Piece | None]


def spool(archive: Path, file: Path) -> Files:
    """Unpack `archive` into the single new file `file`: much faster than making and deleting tens of thousands of small ones.

    CourseError that names the archive, and the entry where there is one, for: an entry that would land outside (absolute, "..", a drive
    letter), a link or device, more than MAX_ENTRIES entries or MAX_BYTES bytes or MAX_RATIO times the archive's size (from 100 MB on), a
    password or a compression that is not read here. `prepared.Damaged` for a damaged or shortened archive. OSError where the disk refuses.
    """
    found, total, most = {}, 0, min(MAX_BYTES, max(RATIO_FLOOR, MAX_RATIO * archive.stat().st_size))
    with archive.open("rb") as stream:
        head = stream.read(512).lstrip().lower()
    try:
        if not archive.name.lower().endswith(SUFFIXES) or head.startswith((b"rar!", b"7z\xbc\xaf")):
            raise RuntimeError(f"it is not an archive of the kinds that are read here, {', '.join(SUFFIXES)}")
        if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
            raise ValueError("a web page came in its place")
        with open(file, "wb") as out, tqdm(unit="B", unit_scale=True, unit_divisor=1000, desc=f"Unpacking {archive.name}") as bar:
            is_zip = head.startswith(b"pk") or (archive.suffix.lower() == ".zip" and not tarfile.is_tarfile(archive))
            entries = (_zip_entries if is_zip else _tar_entries)(archive, file.parent)  # whatever the ending says
            for count, (entry, size, is_plain, opened) in enumerate(entries, start=1):
                total += size
                path = PureWindowsPath(entry)  # it knows drives, and both kinds of slashes
                if count > MAX_ENTRIES or total > most:
                    raise RuntimeError(f"it holds more than {MAX_ENTRIES:,} entries or {prepared.human(most)}")
                if path.anchor or ".." in path.parts or "\0" in entry:
                    raise RuntimeError(f"it has an entry {entry!r} that would land outside its folder")
                if not is_plain:
                    raise RuntimeError(f"it has an entry {entry!r} that is a link or device")
                if opened is None:
                    found["".join(f"{part}/" for part in path.parts)] = None
                    continue
                start = out.tell()
                with opened() as source:
                    shutil.copyfileobj(source, out)
                found["/".join(path.parts)] = Piece(file, start, out.tell() - start)
                bar.update(out.tell() - start)
    except (RuntimeError, UnicodeDecodeError) as error:  # of zipfile: an encrypted entry, or a compression that it lacks, such as Deflate64
        told = "its names are not the UTF-8 that they claim to be" if isinstance(error, UnicodeDecodeError) else error
        raise CourseError(f"{archive.name} was not unpacked: {told}. Unpack it yourself, if you trust it, and give the folder.") from None
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno:  # gzip and bz2 report damage by an OSError without a number
            raise
        if "multiple disks" in str(error):
            raise CourseError(f"{archive.name} is one part of several. Unpack them yourself and give the folder.") from None
        raise prepared.Damaged(f"{archive.name} is broken or incomplete ({str(error) or type(error).__name__}). Get it again.") from None
    return found


def _zip_entries(archive: Path, folder: Path) -> Iterator[tuple]:
    # Yields an entry's name, its size, whether it is a regular file or a folder, and what opens it (None for a folder).
    with zipfile.ZipFile(archive) as file:
        prepared.require_free(folder, min(MAX_BYTES, sum(info.file_size for info in file.infolist())), f"Unpacking {archive.name}")
        for info in file.infolist():
            name, is_plain = info.filename, stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            if not info.flag_bits & 0x800:  # zipfile takes such names for those of DOS; most are UTF-8
                with suppress(UnicodeEncodeError):
                    name = name.encode("cp437").decode("utf-8", "surrogateescape")
            # an open entry gives no more than the announced size, and checks the sum
            yield name, info.file_size, is_plain, None if name.endswith(("/", "\\")) else partial(file.open, info)


def _tar_entries(archive: Path, folder: Path) -> Iterator[tuple]:
    with tarfile.open(archive, encoding="utf-8") as file:
        for count, info in enumerate(iter(file.next, None)):
            if count % 1000 == 0 or info.size > 1_000_000:
                prepared.require_free(folder, min(MAX_BYTES, info.size), f"Unpacking {archive.name}")
            yield info.name, info.size, info.isreg() or info.isdir(), None if info.isdir() else partial(file.extractfile, info)
            file.members = []  # otherwise it remembers every entry
        # tarfile takes a broken header for the end. At a real one stand zeros; in gzip, xz and bz2, reading on verifies their sums.
        if isinstance(file.fileobj, io.BufferedReader):
            file.fileobj.seek(file.offset)
            if file.fileobj.read(512) != bytes(512):
                raise tarfile.ReadError("it stops, or has an unreadable entry")
        while file.fileobj.read(1 << 20):
            pass
