"""Files that a command writes into a folder which others use too: nothing half-made, and nobody's work lost."""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sslcourse.course import notebook_files
from sslcourse.course.runner import read_json
from sslcourse.errors import CourseError
from sslcourse.files import write_atomically, write_json

_LEDGER = ".handout.json"  # what was written, with its SHA-256


def write(out: Path, contents: Mapping, keep: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Write files below a folder, which is made if need be. Returns how many, and a sentence for each that was left as it is.

    contents: path below the folder -> text or notebook. A file that is there already is replaced if it is as this function left it.
    If it is not, one of `keep` stays, and for any other CourseError is raised before anything is written.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".handout-") as scratch:
            new = {name: _stage(Path(scratch) / name, content) for name, content in contents.items()}
            ledger = read_json(out / _LEDGER)
            changed = [name for name, digest in new.items() if not _may_replace(out / name, digest, ledger.get(name))]
            lost = [name for name in changed if name not in keep]
            if lost:
                more = f", and {len(lost) - 1} more," if lost[1:] else ""
                raise CourseError(
                    f"{out / lost[0]}{more} would be overwritten, and is not as this command left it. "
                    "Move it away, or choose another folder with --out. Nothing was written."
                )
            written = {name: digest for name, digest in new.items() if name not in changed}
            for name in written:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(scratch) / name, out / name)
            write_json(out / _LEDGER, ledger | written)
    except OSError as error:
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise CourseError(f"{out} cannot be written ({error.strerror or error}). Choose another folder with --out.") from None
    return len(written), [f"{out / name} was changed since it was written, and stays as it is." for name in changed]


def _stage(path: Path, content) -> str:
    """Write a file where nobody looks yet; its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        write_atomically(path, content.encode())
    else:
        notebook_files.save(content, path)
    return _digest(path)


def _may_replace(path: Path, new: str, recorded: str | None) -> bool:
    if not os.path.lexists(path):
        return True
    return path.is_file() and _digest(path) in (new, recorded)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
