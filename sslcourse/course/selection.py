"""What a headless run is asked for, checked before anything starts: which lessons, with which parameters, on which data."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslcourse.course import lesson as lessons
from sslcourse.course import notebook_files
from sslcourse.errors import CourseError
from sslcourse.files import folder_of, repository_root

_RESERVED = {"TIER": "--tier", "DEVICE": "--device", "DATASET": "--dataset", "RESULTS_DIR": "--out"}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list", tuple: "a tuple", dict: "a dict"}


@dataclass(frozen=True)
class Notebook:
    """A lesson's file, and what a run needs to know of it."""

    path: Path
    parameters: Mapping
    sources: Sequence[tuple[str, str]]  # type and text of each cell

    number = property(lambda self: int(self.path.name[:2]))

    def takes(self, values: Mapping) -> dict:
        """Those of the values that its parameters cell has a name for."""
        return {name: value for name, value in values.items() if name in self.parameters}


def read_notebook(path: Path) -> Notebook:
    """Read a lesson. Raises CourseError, naming the file, if it is no notebook, or its parameters cell holds more than literals."""
    notebook = notebook_files.load(path)
    try:
        return Notebook(path, notebook_files.parameters(notebook), [(cell.cell_type, cell.source) for cell in notebook.cells])
    except ValueError as error:
        raise CourseError(f"{path.name} cannot be run with parameters: {error}.") from None


def find_notebooks(notebooks_dir: str | Path | None = None) -> list[Path]:
    """The lessons' files in order. By default those of the repository that the working directory, or else this package, lies in."""
    if notebooks_dir is None:
        root = repository_root() or repository_root(Path(__file__).parent)
        if root is None:
            raise CourseError("There are no lessons here. Run this inside the course's folder, or name theirs with --notebooks.")
        notebooks_dir = root / "notebooks"
    folder = folder_of(notebooks_dir, "--notebooks", "notebooks")
    if found := sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        return found
    raise CourseError(f"There are no lessons in {folder}; their files are named like 03_simclr.ipynb.")


def select(chosen: Sequence[str | int] | None, notebooks_dir: str | Path | None = None) -> list[Path]:
    """The lessons' files behind numbers, ranges, names or files, in the order of the course; all of them for None or [].

    Raises CourseError, with the names there are, for a choice that fits none.
    """
    found, wanted = find_notebooks(notebooks_dir), set()
    for selector in [part.strip() for item in chosen or [] for part in str(item).split(",") if part.strip()]:
        if not (matches := [path for path in found if _matches(selector, path)]):
            names = ", ".join(path.stem for path in found)
            raise CourseError(f"There is no lesson {selector!r}. Choose by number (3), range (3-5) or name: {names}.")
        wanted.update(matches)
    return [path for path in found if path in wanted or not wanted]


def _matches(selector: str, path: Path) -> bool:
    if span := re.fullmatch(r"(\d+)(?:-(\d+))?", selector):
        return int(span[1]) <= int(path.name[:2]) <= int(span[2] or span[1])
    return Path(selector).name.lower().removesuffix(".ipynb") in (path.stem.lower(), path.stem.lower()[3:])


def check_parameters(notebooks: Sequence[Notebook], given: Mapping) -> dict:
    """The given values, as every selected notebook takes them. Raises CourseError for a name or a type that one of them does not have."""
    values = {}
    for name, value in given.items():
        if name in _RESERVED:
            raise CourseError(f"{name} is set with {_RESERVED[name]}, not as a parameter.")
        if lacking := [notebook.path.stem for notebook in notebooks if name not in notebook.parameters]:
            shared = sorted(set.intersection(*(set(notebook.parameters) for notebook in notebooks)) - set(_RESERVED))
            raise CourseError(f"{name} is not a parameter of {', '.join(lacking)}; all of them take {', '.join(shared) or 'none'}.")
        for notebook in notebooks:
            value = _as_type_of(notebook.parameters[name], value, f"{name} of {notebook.path.stem}")
        # Lessons run inside their own folder, and whoever typed a path meant it from here.
        is_path = name.endswith("_DIR") and isinstance(value, str) and value != "default"
        values[name] = str(folder_of(value, name, "data")) if is_path else lessons.check_parameter(name, value)
    return values


def _as_type_of(like, value, name: str):
    """value as the type that the parameters cell has; a text, as from the command line, is read as that type."""
    given = value
    if isinstance(value, str) and not isinstance(like, str):
        try:
            value = ast.literal_eval(value.capitalize() if isinstance(like, bool) else value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass  # it stays a text
    if like is None or type(value) is type(like):
        return value
    if isinstance(like, float) and type(value) is int:
        return float(value)
    raise CourseError(f"{name} has to be {_KINDS.get(type(like), 'a literal')}, such as {like!r}, not {given!r}.")


def check_dataset(dataset: str, notebooks: Sequence[Notebook], values: Mapping) -> tuple[str, str | None]:
    """-> the folder where the lessons look for data, and the identity of the data set there; CourseError as for `lesson.find_data`."""
    base, given = notebooks[0].path.parent, dict(notebooks[0].parameters) | values
    data_dir = folder_of(given.get("DATA_DIR", "default"), "DATA_DIR", "data", repository_root(base) or base)
    return str(data_dir), lessons.find_data(dataset, data_dir, given.get("LABELS_PER_CLASS", 1))
