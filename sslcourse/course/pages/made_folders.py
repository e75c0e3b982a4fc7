"""Folders that a command makes as a whole: made beside their place, then put there, and replaced only if nothing else lies in them."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslcourse.errors import CourseError

_LIST = ".made-by-sslcourse.json"


def check(out: str | Path, kind: str) -> Path:
    """The folder's absolute path. Raises CourseError where something lies there that was not made as this kind ("site", "slides")."""
    if not str(out).strip():
        raise CourseError("The folder to write to has no name. Give one, such as --out build.")
    folder = Path(out).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise CourseError(f"{out} is a file. Choose a folder of its own with --out.")
    there = _files(folder)
    if not there:
        return folder
    try:
        made = json.loads((folder / _LIST).read_text(encoding="utf-8"))
        own = set(made["files"]) if made["kind"] == kind else set()
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    foreign = sorted(there - own - {_LIST}) if own else sorted(there)
    if foreign:
        raise CourseError(
            f"{out} holds files that are not part of an earlier {kind}, such as {foreign[0]}. Choose another --out, or move them."
        )
    return folder


@contextmanager
def replacing(out: str | Path, kind: str) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `out` when the block ends, and is deleted if the block raises.

    Raises CourseError as `check` does, before and after the block, and where the folder cannot be written.
    """
    folder = check(out, kind)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    except OSError as error:
        raise CourseError(f"{out} cannot be written: {error.strerror}. Choose another folder with --out.") from None
    try:
        new = beside / "new"
        new.mkdir()
        yield new
        (new / _LIST).write_text(json.dumps({"kind": kind, "files": sorted(_files(new))}, indent=0) + "\n", encoding="utf-8")
        check(out, kind)  # it took a while
        old = beside / "old"
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} if folder.is_dir() else set()
