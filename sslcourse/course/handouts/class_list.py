"""Who is in a class, and a seed for each of them."""

import csv
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from sslcourse.errors import CourseError

COLUMNS = ("id", "first_name", "last_name", "email", "seed")  # `nbgrader db student import` knows all but the last, and skips that
_SAFE_ID = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[a-z0-9_][a-z0-9._@-]{0,63}(?<!\.)", re.IGNORECASE)  # on Windows, too


def read_students(path: str | Path) -> list[dict]:
    """The students of a file, in its order, each with what COLUMNS names. Lines that begin with # are skipped.

    The file has one id a line, or columns with names in the first row, `id` among them, between commas, semicolons or tabs.
    Raises CourseError for a file that cannot be read, and for an id that cannot be a folder's name or that comes twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(f"The class list {path} cannot be read ({error}). Give a text file with one student's id a line.") from None
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")] or [""]
    separator = next((mark for mark in ",;\t" if mark in lines[0]), ",")
    header = [name.strip().lower() for name in lines[0].split(separator)]
    if len(header) > 1 and "id" not in header:
        raise CourseError(f"The first line of {path} has columns, and none is called id. Begin with a line such as id,email.")
    students: dict[str, dict] = {}
    for row in csv.DictReader(lines[1:], header, delimiter=separator) if "id" in header else ({"id": line} for line in lines if line):
        name = (row["id"] or "").strip()
        if not _SAFE_ID.fullmatch(name):
            raise CourseError(f"{path}: {name!r} cannot be a folder's name. Ids are letters from a to z, digits and _ . @ -, 64 at most.")
        if name.lower() in students:  # some file systems take Ann and ann for one folder
            raise CourseError(f"{path}: {name!r} comes twice. Every student needs an id of their own.")
        students[name.lower()] = row | {"id": name, "seed": seed_of(name)}
    if not students:
        raise CourseError(f"The class list {path} names no student. Write one student's id a line.")
    return list(students.values())


def seed_of(name: str) -> int:
    """A seed made from an id alone, so that whoever joins a class changes nobody else's; in steps of ten, so that two share no run."""
    return 10 * (zlib.crc32(name.encode()) % 10**8)


def as_csv(students: Sequence[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(students)
    return text.getvalue()
