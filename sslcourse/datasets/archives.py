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
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from sslcourse.datasets import prepared as storage
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
    _check_readable(archive)
    if destination.exists():
        raise CourseError(f"{destination} exists already, so {archive.name} was not unpacked there. Delete it or choose another folder.")
    with storage.fresh_folder(destination) as work:
        _unpack(archive, work, _ToFolder(work), _Limits(archive, max_bytes, max_entries, max_ratio), progress)
        os.rename(work, destination)
    return destination


def spool(archive, file, *, max_bytes=MAX_BYTES, max_entries=MAX_ENTRIES, max_ratio=MAX_RATIO, progress=True):
    """Unpack `archive` into the single new file `file`, and return its top folder as a Member, which is read like a Path.

    Tens of thousands of small images take seconds this way; making and deleting as many files can take minutes. Checks as at `extract`.
    """
    archive, file = Path(archive), Path(file)
    _check_readable(archive)
    root = Member(archive.name, "", file)
    try:
        with open(file, "xb") as out:
            _unpack(archive, file.parent, _ToSpool(root, out), _Limits(archive, max_bytes, max_entries, max_ratio), progress)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return root


def first_names(archive, count=20):
    """Yield the names, without folders, of the first entries of an archive: enough to see what it is. Errors as at `extract`."""
    archive = Path(archive)
    _check_readable(archive)
    with _explained(archive):
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                yield from (_last(name) for name in file.namelist()[:count])
        else:
            with tarfile.open(archive) as file:
                while len(file.members) < count and (info := file.next()) is not None:
                    yield _last(info.name)


def _last(name):
    return name.rstrip("/").rpartition("/")[2]


class Member:
    """A file or folder inside a spooled archive: the few methods of pathlib.Path that reading images needs."""

    def __init__(self, name, inside, spool_file, span=None):
        self.name, self.inside, self.spool_file, self.span = name, inside, spool_file, span
        self.children = {}

    def is_dir(self):
        return self.span is None

    def iterdir(self):
        return iter(self.children.values())

    def open(self, mode="rb"):
        start, stop = self.span
        with open(self.spool_file, mode) as file:
            file.seek(start)
            return io.BytesIO(file.read(stop - start))

    def __str__(self):
        return self.inside or self.name


class _ToFolder:
    """Puts entries into a folder on disk."""

    def __init__(self, folder):
        self.folder, self.made = folder, set()

    def add_folder(self, parts):
        self.folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)

    def add_file(self, parts, source):
        target = self.folder.joinpath(*parts)
        if target.parent not in self.made:  # asking the system again for each of 60,000 files takes seconds
            target.parent.mkdir(parents=True, exist_ok=True)
            self.made.add(target.parent)
        with open(target, "wb") as file:
            return _copy(source, file)


class _ToSpool:
    """Puts entries one after the other into a file, and remembers where each is in a tree of Members."""

    def __init__(self, root, out):
        self.root, self.out = root, out

    def add_folder(self, parts):
        folder = self.root
        for depth, part in enumerate(parts, start=1):
            folder = folder.children.setdefault(part, Member(part, "/".join(parts[:depth]), folder.spool_file))
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{folder} is both a file and a folder")
        return folder

    def add_file(self, parts, source):
        folder, start = self.add_folder(parts[:-1]), self.out.tell()
        if not parts or (parts[-1] in folder.children and folder.children[parts[-1]].is_dir()):
            raise IsADirectoryError(errno.EISDIR, f"{'/'.join(parts)!r} is both a file and a folder")
        written = _copy(source, self.out)
        folder.children[parts[-1]] = Member(parts[-1], "/".join(parts), folder.spool_file, (start, start + written))
        return written


def _copy(source, out):
    written = 0
    while data := source.read(1 << 20):
        out.write(data)
        written += len(data)
    return written


def _check_readable(archive):
    if not archive.is_file():
        raise CourseError(f"There is no file {archive}. Check the path.")
    if not is_archive(archive):
        raise CourseError(f"{archive.name} is not an archive that can be read: it must end in {', '.join(SUFFIXES)}. A folder works too.")


def _unpack(archive, folder, sink, limits, progress):
    unpack = _unpack_zip if archive.name.lower().endswith(".zip") else _unpack_tar
    with tqdm(unit="B", unit_scale=True, unit_divisor=1000, desc=f"Unpacking {archive.name}", disable=not progress) as bar:
        with _explained(archive):
            unpack(archive, folder, sink, limits, bar)


@contextmanager
def _explained(archive):
    # What the libraries raise for a bad archive, as sentences.
    try:
        yield
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


def _parts(name, archive):
    # Where an entry goes: the names of its folders and its own. Backslashes count as separators, because on some systems they are.
    clean = name.replace("\\", "/")
    parts = clean.split("/")
    if clean.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", clean) or "\0" in clean:
        raise CourseError(f"{archive.name} has an entry {name!r} that would land outside its folder, so it was not unpacked.")
    return [part for part in parts if part not in ("", ".")]


def _no_links(archive, name, kind):
    return CourseError(
        f"{archive.name} has an entry {name!r} that is a {kind}, so it was not unpacked. Pack it again with real files, or give the folder."
    )


def _unpack_zip(archive, folder, sink, limits, bar):
    with zipfile.ZipFile(archive) as file:
        entries = []
        for info in file.infolist():
            limits.count(info.file_size)
            parts = _parts(info.filename, archive)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _no_links(archive, info.filename, "link" if kind == stat.S_IFLNK else "device")
            entries.append((info, parts))
        storage.require_free(folder, limits.bytes, f"Unpacking {archive.name}")
        bar.reset(total=limits.bytes)
        for info, parts in entries:
            if info.is_dir():
                sink.add_folder(parts)
                continue
            with file.open(info) as source:  # reads no more than the announced size, and checks the sum
                bar.update(sink.add_file(parts, source))


def _unpack_tar(archive, folder, sink, limits, bar):
    with tarfile.open(archive) as file:
        while (info := file.next()) is not None:
            limits.count(max(0, info.size))
            parts = _parts(info.name, archive)
            if info.isdir():
                sink.add_folder(parts)
            elif info.isreg():
                if limits.entries % 1000 == 1 or info.size > 1_000_000:
                    storage.require_free(folder, info.size, f"Unpacking {archive.name}")
                with file.extractfile(info) as source:
                    written = sink.add_file(parts, source)
                bar.update(written)
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
