"""Copies of the lessons for a class: without solutions and outputs for students, filled in for whoever teaches.

Functions here take a notebook as `notebook_files.load` gives it and return a changed one. `nbgrader_source` builds on them.
"""

import ast
import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

from sslcourse.course import notebook_files, selection
from sslcourse.course.handouts import class_list, handout_files
from sslcourse.course.handouts.class_list import Student
from sslcourse.course.lesson import check_seed
from sslcourse.course.notebook_files import tags
from sslcourse.errors import CourseError

# Where the links of a copy lead to what was not copied: pages, and files as they are.
PUBLISHED = "https://github.com/sslcourse/sslcourse/blob/main"
PUBLISHED_FILES = "https://github.com/sslcourse/sslcourse/raw/main"
COMPANIONS = ("GLOSSARY.md",)
_BADGE = re.compile(r"^\[!\[Open in Colab\].*\n?\n?", re.MULTILINE)
_LINK = re.compile(r"(!?\[[^\]]*\]\(|<(?:img|a)\b[^>]*?(?:src|href)=[\"'])([^)\s\"'#]+)")
_CHOICE = re.compile(r"<details><summary>(?!Hint</summary>)(.*?)</summary>.*?</details>", re.DOTALL)
_UNFOLD = {"Choose before you unfold.": "Choose one answer for each question.", "Decide before you unfold": "Decide, and say why"}


@dataclass(frozen=True)
class Task:
    """An exercise's cell in a notebook."""

    cell: nbformat.NotebookNode
    id: str  # "3.1"
    function: ast.FunctionDef


def tasks(notebook) -> list[Task]:
    """The cells of a notebook that begin an exercise with @exercise("3.1"), in order."""
    return [found for cell in notebook.cells if cell.cell_type == "code" and (found := _task(cell))]


def _task(cell) -> Task | None:
    if "@exercise" not in cell.source:
        return None
    for statement in ast.parse(cell.source).body:
        for decorator in statement.decorator_list if isinstance(statement, ast.FunctionDef) else []:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "exercise":
                return Task(cell, ast.literal_eval(decorator.args[0]), statement)
    return None


def student_copy(notebook, *, seed: int | None = None, answers: bool = True):
    """The notebook without solutions, outputs, and the badge that opens the published lesson, which has the solutions.

    seed: the value that SEED gets. answers: whether the explanations of quiz choices and of diagnosed faults stay.
    """
    made = _bare(notebook)
    made.cells = [cell for cell in made.cells if "solution" not in tags(cell)]
    made = made if seed is None else with_seed(made, seed)
    return made if answers else without_answers(made)


def solved_copy(notebook, name: str, begin: Sequence[str] = (), end: Sequence[str] = ()):
    """The notebook without outputs, every exercise filled in with its solution, so that `report()` shows all of them as done.

    The folded solution cells, which would say the same again, go. name: the notebook's, for error messages. begin, end: lines to put
    before and after every solution. Raises CourseError for an exercise that has no solution, or one that takes other arguments.
    """
    made = _bare(notebook)
    solutions = {}
    for cell in made.cells:
        if "solution" in tags(cell):
            functions = [s for s in ast.parse(cell.source).body if isinstance(s, ast.FunctionDef) and s.name.startswith("solution_")]
            solutions |= {function.name.removeprefix("solution_").replace("_", "."): (cell.source, function) for function in functions}
    for task in tasks(made):
        source, solution = solutions.get(task.id, (None, None))
        if solution is None or ast.unparse(solution.args) != ast.unparse(task.function.args):
            wanted = f"solution_{task.id.replace('.', '_')}({ast.unparse(task.function.args)})"
            raise CourseError(f"{name} has no solution of exercise {task.id}: a cell tagged 'solution' has to define {wanted}.")
        marked = [*(f"    {line}" for line in begin), *_body(source, solution), *(f"    {line}" for line in end)]
        task.cell.source = _with_body(task, marked)
    made.cells = [cell for cell in made.cells if "solution" not in tags(cell)]
    return made


def _body(source: str, function: ast.FunctionDef) -> list[str]:
    """The lines of a function's body, with the comments above its first statement."""
    lines = source.splitlines()
    first = function.body[0].lineno - 1
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return lines[first : function.end_lineno]


def _with_body(task: Task, body: Sequence[str]) -> str:
    """The cell's source with another body in its function; the docstring stays."""
    lines = task.cell.source.splitlines()
    statements = task.function.body
    described = ast.get_docstring(task.function) is not None
    start = statements[0].end_lineno if described else statements[0].lineno - 1
    return "\n".join([*lines[:start], *body, *lines[task.function.end_lineno :]])


def _bare(notebook):
    """A copy without outputs, execution counts and the Colab badge."""
    made = notebook_files.without_outputs(notebook_files.normalise(copy.deepcopy(notebook)))
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = _BADGE.sub("", cell.source)
    return made


def with_seed(notebook, seed: int):
    """A copy whose parameters cell has SEED = seed. Raises CourseError where there is no such parameter, or the seed is none."""
    made = copy.deepcopy(notebook)
    for cell in made.cells:
        if cell.cell_type != "code" or "parameters" not in tags(cell):
            continue
        for statement in ast.parse(cell.source).body:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id == "SEED" and statement.lineno == statement.end_lineno:
                lines = cell.source.splitlines()
                line, value = lines[statement.lineno - 1].encode(), statement.value  # the columns of ast count bytes
                changed = line[: value.col_offset] + str(check_seed(seed)).encode() + line[value.end_col_offset :]
                lines[statement.lineno - 1] = changed.decode()
                cell.source = "\n".join(lines)
                return made
    raise CourseError("A lesson has no SEED in its parameters cell, so no seed can be given to it.")


def without_answers(notebook):
    """A copy in which the choices of quizzes and of diagnoses are a plain list, and what is said about them is gone. Hints stay."""
    made = copy.deepcopy(notebook)
    for cell in made.cells:
        if cell.cell_type != "markdown":
            continue
        kept, answered = [], False
        for block in re.split(r"\n{2,}", cell.source):
            listed = _CHOICE.sub(r"* \1", block)
            # A paragraph below the choices speaks of the right one, up to the next question or heading.
            answered = listed != block or (answered and not block.startswith(("#", "**")))
            if listed != block or not answered:
                kept.append(listed)
        text = "\n\n".join(kept)
        for before, after in _UNFOLD.items():
            text = re.sub(re.escape(before) + ("( the answers)?" if not before.endswith(".") else ""), after, text)
        cell.source = text
    return made


def with_links(notebook, folder: Path, beside: Sequence[str] = ()):
    """A copy whose links and pictures, where they lead to files beside the lesson, lead to the published course.

    folder: that of the lesson. beside: names of files that are beside the copy too, and need no other link.
    """
    made = copy.deepcopy(notebook)
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = _text_with_links(cell.source, folder, beside)
    return made


def _text_with_links(text: str, folder: Path, beside: Sequence[str]) -> str:
    root = folder.resolve().parent

    def published(match: re.Match) -> str:
        target = folder / match[2]
        if match[2] in beside or ":" in match[2] or not target.exists() or not target.resolve().is_relative_to(root):
            return match[0]
        base = PUBLISHED_FILES if match[0].startswith(("!", "<img")) else PUBLISHED
        return f"{match[1]}{base}/{target.resolve().relative_to(root).as_posix()}"

    return _LINK.sub(published, text)


def companions(folder: Path, beside: Sequence[str] = ()) -> dict[str, str]:
    """The texts that go with every copy, by name: what lessons look words up in. folder and beside as in `with_links`."""
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in COMPANIONS if (folder / name).is_file()}
    return {name: _text_with_links(text, folder, [*beside, *texts]) for name, text in texts.items()}


@dataclass(frozen=True)
class Handout:
    """What was written: the folder, how many files, sentences about files that were left as they are, and the seeds of a class."""

    out: Path
    files: int
    notes: tuple[str, ...] = ()
    seeds: Mapping[str, int] | None = None


def make(
    chosen: Sequence[str | int] | None,
    out: str | Path,
    *,
    format: str = "plain",
    students: Sequence[Student] | None = None,
    seeds: Sequence[int] | None = None,
    salt: str = "",
    answers: bool = True,
    notebooks_dir: str | Path | None = None,
) -> Handout:
    """Write the copies of the chosen lessons into a folder.

    plain: out/student and out/solutions; with students, out/student/ID, a seed for each, and out/seeds.csv; with seeds, a folder
    out/student/seed-K for each. nbgrader: a course folder, see `nbgrader_source`. chosen: numbers, ranges, names; None for all.
    Files that the command wrote before are replaced, unless somebody has changed them since: then CourseError, and nothing is
    written. Also raises CourseError for lessons, seeds and folders that are not right.
    """
    paths = selection.matching(chosen, selection.find_notebooks(notebooks_dir))
    out = Path(out).expanduser().resolve()
    if out == paths[0].parent:
        raise CourseError(f"{out} is the folder of the lessons themselves. Choose another one for the copies.")
    if format == "nbgrader" and seeds:
        raise CourseError("nbgrader gives the same notebook to everybody: leave out --seeds, or name the class with --students.")
    if students and seeds:
        raise CourseError("Give either --students, who get a seed each, or --seeds.")
    by_student = _seeds_of(students, salt, out / "seeds.csv") if students else None
    given = {path.name: notebook_files.load(path) for path in paths}
    folder = paths[0].parent
    if format == "nbgrader":
        from sslcourse.course.handouts import nbgrader_source

        contents, keep = nbgrader_source.course_folder(given, folder, students or (), answers=answers), nbgrader_source.SETTINGS
    else:
        copies = {"student": None}
        if by_student or seeds:
            copies = {f"student/{id}": seed for id, seed in (by_student or {}).items()}
            copies |= {f"student/seed-{seed}": seed for seed in class_list.check_seeds(seeds or [])}
        solved = {name: solved_copy(notebook, name) for name, notebook in given.items()}
        plain = {name: student_copy(notebook, answers=answers) for name, notebook in given.items()}
        contents, keep = _linked(solved, folder, out, "solutions"), ()
        for place, seed in copies.items():
            seeded = plain if seed is None else {name: with_seed(notebook, seed) for name, notebook in plain.items()}
            contents |= _linked(seeded, folder, out, place)
    if by_student:
        contents["seeds.csv"] = class_list.seeds_csv(by_student)
    written, notes = handout_files.write(out, contents, keep)
    return Handout(out, written, tuple(notes), by_student)


def _linked(notebooks: Mapping, folder: Path, out: Path, place: str) -> dict:
    """Copies and their companions by their path below out, with links to what is or will be in the same place."""
    beside = [*notebooks, *(path.name for path in (out / place).glob("[0-9][0-9]_*.ipynb"))]
    texts = companions(folder, beside)
    linked = {name: with_links(notebook, folder, [*beside, *texts]) for name, notebook in notebooks.items()}
    return {f"{place}/{name}": content for name, content in (linked | texts).items()}


def _seeds_of(students: Sequence[Student], salt: str, earlier: Path) -> dict[str, int]:
    """A seed for each student. Raises CourseError where the class has other ones already, as with another salt."""
    before = class_list.read_seeds(earlier)
    found = class_list.seeds_for((student.id for student in students), salt, before)
    for id, seed in found.items():
        if before.get(id, seed) != seed:
            raise CourseError(
                f"{earlier} gives {id} the seed {before[id]}, and with this --salt it would be {seed}. "
                "Use the --salt of the first time, or choose another folder with --out."
            )
    return {student.id: found[student.id] for student in students}
