"""Which folder an option means, whether it can be written to, and writing so that nobody ever sees half a file."""

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sslcourse.errors import CourseError

_REASONS = {  # what a failed call of the system means to its user
    (errno.ENOSPC,): "the disk is full", (errno.EDQUOT,): "your quota on this disk is used up",
    (errno.EACCES, errno.EPERM): "you have no permission for it", (errno.EROFS,): "it lies on a read-only disk",
    (errno.ENOMEM,): "there is not enough memory", (errno.ENODEV, errno.ENXIO, errno.EIO): "the device that it lies on does not answer",
}
ZIP = b"PK\x03\x04"  # what torch.save writes; torch's older formats are not read, for `weights_only` once did not hold there


def repository_root(start: Path | None = None) -> Path | None:
    """The nearest folder upwards that holds this project's pyproject.toml; None if there is none."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if re.search(r'^name\s*=\s*"sslcourse"', (folder / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE):
                return folder
    return None


def folder_of(value: str | Path, named: str, default: str, base: Path | None = None) -> Path:
    """The folder that an option or a parameter means, absolute.

    named: "DATA_DIR" or "--data-dir", for messages. "default" asks the environment variable (SSLCOURSE_DATA_DIR), then means the folder
    `default` of the repository around the working directory. base: where other relative paths begin, the working directory without it.
    Raises CourseError for what is no path of a folder: nothing, an address, the path of a file.
    """
    root = repository_root(base) or base or Path.cwd()
    if isinstance(value, (str, Path)) and str(value) == "default":
        variable = "SSLCOURSE_" + named.strip("-").replace("-", "_").upper()
        value, named, base = (os.environ[variable], variable, root) if os.environ.get(variable) else (default, named, root)
    folder = path_of(value, named, base)
    if folder.exists() and not folder.is_dir():
        raise CourseError(f"{named} is {str(value)!r}, which is a file; it has to be the path of a folder.")
    return folder


def path_of(value: str | Path, named: str, base: Path | None = None) -> Path:
    """A path as the user gave it, absolute. CourseError for nothing, an address, or what the system does not take or show."""
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise CourseError(f"{named} is {value!r}; it has to be a path on this computer.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(value)):  # a Path has one slash left of two
        raise CourseError(f"{named} is {str(value)!r}, an address; it has to be a path on this computer. Copy or mount it first.")
    try:
        path = ((base or Path.cwd()) / Path(value).expanduser()).resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a home that nobody has, a circle of links, a zero in the name
        raise CourseError(f"{named} is {str(value)!r}, which cannot be used: {reason(error)}.") from None
    return path


def out_of_memory(error: Exception) -> bool:
    """Whether this is what Python, or PyTorch on a GPU or a CPU, says when memory runs out."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def reason(error: Exception) -> str:
    """Why the system refused, in words."""
    if out_of_memory(error):
        return _REASONS[(errno.ENOMEM,)]
    return next((told for codes, told in _REASONS.items() if getattr(error, "errno", None) in codes), f"the system says {error}")


def check_writable(folder: str | os.PathLike, named: str) -> None:
    """Raise CourseError unless files can be written into this folder, which need not exist yet; nothing is left behind."""
    folder = Path(folder)
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.NamedTemporaryFile(dir=there, prefix=".", suffix=".part") as probe:
            probe.write(bytes(4096))
    except OSError as error:
        told = reason(error) if there.is_dir() else f"{there} is a file"
        raise CourseError(f"Nothing can be written to {folder}: {told}. Give another folder as {named}.") from None


def write_atomically(path: str | os.PathLike, content: bytes | Callable, keep: str | os.PathLike | None = None) -> Path:
    """Write beside the target, then rename. The folder is made if need be; an existing file keeps its permissions.

    content: what is written, or a function that writes it into the open file, piece by piece.
    keep: where the file that was there before goes, in the same folder; without it that file is gone.
    Raises CourseError where the file cannot be written; nothing is left behind then.
    """
    path, temporary = Path(path), ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            content(stream) if callable(content) else stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)  # mkstemp's files are the owner's alone
        if keep is not None and path.exists():  # the old file gets a second name first, so that there always is one
            Path(keep).unlink(missing_ok=True)
            try:
                os.link(path, keep)
            except OSError:  # a file system without links
                os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        refused = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save adds a complaint of its own
        if not isinstance(refused, OSError):
            raise
        raise CourseError(f"{path} could not be written: {reason(refused)}. Make room, or name another folder.") from error
    return path


def sweep(folder: str | os.PathLike) -> None:
    """Delete what a killed process left half-written here; only where nobody else is writing."""
    for left in Path(folder).glob(".*.part"):
        left.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content) -> Path:
    """Write JSON, keys sorted, atomically. Raises ValueError for numbers that are not finite."""
    return write_atomically(path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode())


def slug(text: str) -> str:
    """The text as a part of a file's name: lower-case letters and digits with single hyphens, 60 at most."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "unnamed"


def differences(there: Mapping, here: Mapping) -> str:
    """In words what two descriptions do not agree in; "" where they do. An identity that one of them does not know is no difference."""
    unknown = None in (there.get("identity"), here.get("identity"))
    told = []
    for name in {**there, **here}:
        pair = [there.get(name), here.get(name)]
        if pair[0] == pair[1] or (unknown and name == "identity"):
            continue
        options = [re.findall(r"\w+=(?:\(.*?\)|\[.*?\]|[^,\s)]+)", value) if isinstance(value, str) else [] for value in pair]
        if all(options):  # of long descriptions what differs
            pair = [", ".join(option for option in own if option not in other) for own, other in (options, options[::-1])]
        told.append(f"{name} {pair[0]!r} there and {pair[1]!r} here")
    return "; ".join(told)


def plain(value):
    """NumPy's and torch's scalars as Python's own, inside dictionaries too: what checkpoints and JSON can hold."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return value.item() if hasattr(value, "item") else value
