"""Copies of a lesson: without solutions for students, with every exercise filled in for whoever teaches."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path

from sslcourse.course.notebook_files import strip_outputs, tags
from sslcourse.errors import CourseError

PUBLISHED = "https://github.com/sslcourse/sslcourse/blob/main/notebooks"  # where links lead to what was not copied
EXERCISE = re.compile(r'@exercise\("(?P<id>\d+\.\d+)"\)\ndef (?P<name>\w+)\((?P<arguments>[^:]*)\):\n(?P<docs> +""".*?"""\n)?', re.DOTALL)
_SOLUTION = re.compile(r"def solution_(?P<id>\d+_\d+)\((?P<arguments>[^:]*)\):\n(?P<body>.*)", re.DOTALL)
_BADGE = re.compile(r'^<a href="[^"]*"><img alt="Open in Colab".*\n?\n?', re.MULTILINE)
_LINK = re.compile(r"(\]\()([\w./-]+)(?=[#)])")
_CHOICE = re.compile(r"<details><summary>(?!Hint)(.*?)</summary>.*?</details>", re.DOTALL)


def student_copy(notebook, *, seed: int | None = None, answers: bool = True):
    """A copy without solutions and outputs. seed: the value that SEED gets. answers: whether explanations of quiz choices stay."""
    made = _bare(notebook)
    if not answers:
        leave_out_answers(made)
    for cell in made.cells:
        if seed is not None and "parameters" in tags(cell):
            cell.source = re.sub(r"^SEED = \d+", f"SEED = {seed}", cell.source, flags=re.MULTILINE)
    return made


def solved_copy(notebook, name: str, begin: str = "", end: str = ""):
    """A copy without outputs, with every exercise's solution between begin and end. CourseError, naming the notebook, if one is missing."""
    found = (_SOLUTION.search(cell.source) for cell in notebook.cells if "solution" in tags(cell))
    solutions = {(solution["id"].replace("_", "."), solution["arguments"]): solution["body"] for solution in found if solution}
    made = _bare(notebook)
    for cell in made.cells:
        if task := exercise_in(cell):
            body = solutions.get((task["id"], task["arguments"]))
            if body is None:
                wanted = f"solution_{task['id'].replace('.', '_')}({task['arguments']})"
                raise CourseError(f"{name} has no solution of exercise {task['id']}: a cell tagged 'solution' has to define {wanted}.")
            cell.source = task[0] + begin + body + end
    return made


def exercise_in(cell) -> re.Match | None:
    """The head of the exercise that a cell holds, down to its docstring: id, name, arguments, docs."""
    return EXERCISE.match(cell.source) if cell.cell_type == "code" else None


def _bare(notebook):
    """A copy without solutions, outputs, execution counts and the badge that opens the published lesson, which has the solutions."""
    made = strip_outputs(copy.deepcopy(notebook))
    made.cells = [cell for cell in made.cells if "solution" not in tags(cell)]
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = _BADGE.sub("", cell.source)
    return made


def leave_out_answers(notebook) -> None:
    """Make the choices of quizzes and of diagnoses a plain list, in place, and drop what is said about them. Hints stay."""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        kept, answered = [], False
        for block in re.split(r"\n{2,}", cell.source):
            listed = _CHOICE.sub(r"* \1", block)
            # A paragraph below the choices speaks of the right one, up to the next question or heading.
            answered = listed != block or (answered and not block.startswith(("#", "**")))
            if listed != block or not answered:
                kept.append(listed)
        text = "\n\n".join(kept).replace("Choose before you unfold.", "Choose one answer for each question.")
        cell.source = re.sub(r"Decide before you unfold( the answers)?", "Decide, and say why", text)


def with_links(text: str, folder: Path, beside: Sequence[str]) -> str:
    """Markdown of a file in `folder`, whose links to files other than those `beside` the copy lead to the published course."""
    away = {name for _, name in _LINK.findall(text) if name not in beside and (folder / name).is_file()}
    return _LINK.sub(lambda link: f"{link[1]}{PUBLISHED}/{link[2]}" if link[2] in away else link[0], text)
