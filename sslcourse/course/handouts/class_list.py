"""Who is in a class, and a seed for each of them."""

import csv
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from sslcourse.errors import CourseError

COLUMNS = ("id", "first_name", "last_name", "email", "seed")  # `nbgrader db student import` knows all but the last, and skips that
IDS = ("id", "studentid", "userid", "username", "login", "email")
_ALSO = {"mail": "email", "emailaddress": "email", "firstname": "first_name", "lastname": "last_name", "surname": "last_name"}
_NO_IDS = {"name", "names", "fullname", "first_name", "last_name", "student", "students", "user", "users"}  # headings of other columns
_SAFE_ID = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[a-z0-9_][a-z0-9._@-]{0,63}(?<!\.)", re.IGNORECASE)  # on Windows, too


def read_students(path: str | Path) -> list[dict]:
    """The students of a file, in its order, each with what COLUMNS names. Rows that begin with # are skipped, and empty ones.

    The file has one id a line, or a first row with the names of its columns, between commas, semicolons or tabs; ids stand in the first of
    the columns IDS that there is. CourseError for a file that cannot be read, and for an id that cannot be a folder's name or comes twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CourseError(f"The class list {path} cannot be read ({error}). Give a text file with one student's id a line.") from None
    kept = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    first = re.sub('"[^"]*"', "", kept.partition("\n")[0])
    separator = next((mark for mark in ",;\t" if mark in first), ",")
    rows = [row for row in csv.reader(io.StringIO(kept), delimiter=separator, skipinitialspace=True) if "".join(row).strip()]
    names = [re.sub("[^a-z0-9]+", "", name.lower()) for name in rows[0]] if rows else []
    header = [_ALSO.get(name, name) for name in names]
    column = next((name for name in IDS if name in header), None)
    if column is None and (len(header) > 1 or header and header[0] in _NO_IDS):
        told = f"{path} has the columns {', '.join(rows[0])}, and none is called {', '.join(IDS[:-1])} or {IDS[-1]}"
        raise CourseError(f"{told}. Begin with a line such as id,email.")
    students: dict[str, dict] = {}
    for row in [dict(zip(header, row, strict=False)) for row in rows[1:]] if column else ({"id": row[0]} for row in rows):
        name = row.get(column or "id", "").strip()
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
