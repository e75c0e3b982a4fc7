"""Writing a file so that whoever looks sees the old one or the new one, never half of one; and names for files."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

ZIP = b"PK\x03\x04"  # what torch.save writes; torch's older formats are not read, for `weights_only` once did not hold there


def write_atomically(path: str | os.PathLike, content: bytes, keep: str | os.PathLike | None = None) -> Path:
    """Write beside the target, then rename. The folder is made if need be; an existing file keeps its permissions.

    keep: where the file that was there before goes, in the same folder; without it that file is gone.
    Raises OSError where the file cannot be written; nothing is left behind then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)  # mkstemp's files are the owner's alone
        if keep is not None and path.exists():
            _second_name(path, Path(keep))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _second_name(path: Path, keep: Path) -> None:
    """Give the file another name as well, which may have been another file's; it never has none."""
    between = keep.with_name(f".{keep.name}.part")
    between.unlink(missing_ok=True)
    try:
        os.link(path, between)
    except OSError:  # a file system without links
        shutil.copy2(path, between)
    os.replace(between, keep)


def sweep(folder: str | os.PathLike) -> None:
    """Delete what a killed process left half-written here; only where nobody else is writing."""
    for left in Path(folder).glob(".*.part"):
        left.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content) -> Path:
    """Write JSON, keys sorted, atomically. Raises ValueError for numbers that are not finite."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    return write_atomically(path, text.encode())


def slug(text: str) -> str:
    """The text as a part of a file's name: lower-case letters and digits with single hyphens, 60 at most."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "unnamed"


def plain(value):
    """NumPy's and torch's scalars as Python's own, inside dictionaries too: what checkpoints and JSON can hold."""
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return value.item() if hasattr(value, "item") else value
