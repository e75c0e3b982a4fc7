"""Who is in a class, and a seed for each: what per-student copies of the lessons are made from."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslcourse.course.lesson import SEEDS_WITHIN, check_seed
from sslcourse.errors import CourseError

TAKEN = max(SEEDS_WITHIN.values())  # seeds that a lesson takes at most: SEED to SEED + 4
STEP = 10  # between the seeds of two students, so that they share no run
_SEEDS = 10**8  # that many different ones: none has more than nine digits
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}(?<!\.)")  # nbgrader keeps + and * for itself
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows gives to no file
COLUMNS = ("id", "first_name", "last_name", "email")  # those that `nbgrader db student import` knows


@dataclass(frozen=True)
class Student:
    """One row of a class list. about: what else nbgrader wants to know, by the names of its columns."""

    id: str
    about: Mapping[str, str]


def read_students(path: str | Path) -> list[Student]:
    """The students of a file, in its order: one id a line, or a CSV whose first row names its columns, `id` among them.

    Empty lines and lines that begin with # are skipped; commas, semicolons and tabs separate columns. Ids become names of folders.
    Raises CourseError, naming file and line, for a file that cannot be read, an id that is no safe name, and one that comes twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise CourseError(f"The class list {path} cannot be read ({reason}). Give a text file with one student's id a line.") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise CourseError(f"The class list {path} names no student. Write one student's id a line.")
    separator = next((mark for mark in ",;\t" if mark in lines[0][1]), None)
    header = [cell.strip().lower() for cell in next(csv.reader([lines[0][1]], delimiter=separator or ","))]
    if "id" in header:
        lines = lines[1:]
    elif separator:
        raise CourseError(f"The first line of {path} has columns, and none is called id. Begin with a line such as {','.join(COLUMNS)}.")
    else:
        header = ["id"]
    students, seen = [], {}
    for number, line in lines:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator or ","))] if separator else [line.strip()]
        row = dict(zip(header, cells, strict=False))
        id = _checked(row.get("id", ""), f"Line {number} of {path}")
        if id.lower() in seen:  # some file systems take Ann and ann for one folder
            raise CourseError(
                f"Line {number} of {path}: {id} is the id of line {seen[id.lower()]} too. Every student needs one of their own."
            )
        seen[id.lower()] = number
        students.append(Student(id, {column: row[column] for column in COLUMNS[1:] if row.get(column)}))
    if not students:
        raise CourseError(f"The class list {path} names no student below its header.")
    return students


def _checked(id: str, place: str) -> str:
    if not _SAFE_ID.fullmatch(id) or _DEVICES.fullmatch(id):
        raise CourseError(
            f"{place}: {id!r} cannot be a folder's name. Ids are letters from a to z, digits and _ . @ -, 64 at most, "
            "and begin with a letter, a digit or _."
        )
    return id


def seeds_for(ids: Iterable[str], salt: str = "", before: Mapping[str, int] | None = None) -> dict[str, int]:
    """A seed for each id, made from the id and the salt alone, in steps of STEP, and no two alike.

    Should two ids come to the same number, one of them takes its next: whoever is in `before` (the seeds given earlier), then the
    one that comes first in the alphabet, keeps it. So neither the order of a list nor a student who joins changes anybody's seed.
    """
    found, taken = {}, set()
    for id in sorted(set(ids), key=lambda id: (id not in (before or {}), id)):
        attempt = 0
        while (seed := _drawn(id, salt, attempt)) in taken:
            attempt += 1
        taken.add(seed)
        found[id] = check_seed(seed)
    return found


def _drawn(id: str, salt: str, attempt: int) -> int:
    digest = hashlib.sha256("\0".join((salt, id, str(attempt))).encode()).digest()
    return STEP * (int.from_bytes(digest[:8], "big") % _SEEDS)


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds that somebody chose. Raises CourseError unless all are seeds that share no run."""
    for seed in seeds:
        check_seed(seed)
    for low, high in zip(sorted(seeds), sorted(seeds)[1:], strict=False):
        if high - low < TAKEN:
            raise CourseError(f"The seeds {low} and {high} share runs, because a lesson takes SEED to SEED + 4. Choose 0 10 20, say.")
    return list(seeds)


def seeds_csv(seeds: Mapping[str, int]) -> str:
    """The list of who has which seed, as CSV."""
    return _csv([("id", "seed"), *seeds.items()])


def read_seeds(path: Path) -> dict[str, int]:
    """What `seeds_csv` wrote; {} where there is no such file, or somebody made another one of it."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return {row["id"]: int(row["seed"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def students_csv(students: Sequence[Student]) -> str:
    """The class as `nbgrader db student import` reads it."""
    return _csv([COLUMNS, *((student.id, *(student.about.get(column, "") for column in COLUMNS[1:])) for student in students)])


def _csv(rows: Iterable) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
