"""The lessons as a course of nbgrader: exercises as autograded answers, each followed by a locked test with points.

nbgrader takes the solutions out and puts a stub in, which `exercise` knows for "not attempted"; so the released lesson goes on with
the reference. A test judges the learner's own function, so a grade depends neither on training nor on the tier, data or seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat

from sslcourse.course.exercises import find_exercise
from sslcourse.course.handouts import class_list, handout
from sslcourse.course.handouts.grading import points
from sslcourse.course.notebook_files import tags
from sslcourse.errors import CourseError

CONFIG, README, STUDENTS = "nbgrader_config.py", "README.md", "students.csv"
SETTINGS = (CONFIG, README, STUDENTS)  # whoever runs the course may change these
_SCHEMA = 3
_LOCKED = {"solution": False, "task": False, "locked": True}
_ANSWER = {"grade": False, "solution": True, "task": False, "locked": False}

_TIER_CELL = """# While the notebook is graded, the folder's nbgrader_config.py decides how much is trained.
import os

TIER = os.environ.get("SSLCOURSE_GRADING_TIER", TIER)
DATASET = os.environ.get("SSLCOURSE_GRADING_DATASET", DATASET)"""

_TEST_CELL = """# Exercise {id}: {points}. What is tested is your function, not the reference that stands in for it.
from sslcourse.course.handouts.grading import check_answer

check_answer("{id}", {name})"""

_CONFIG_FILE = '''"""Settings of nbgrader for this course. nbgrader reads them when it is run in this folder; change them as you like."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
course = Path(__file__).resolve().parent

c.CourseDirectory.course_id = "sslcourse"
c.CourseDirectory.root = str(course)
# What a lesson leaves beside itself, data sets and results, is neither collected nor graded.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "feedback", "data", "results"]

# What stands in place of a solution. The course takes a function that holds only `...` for one that was not attempted.
c.ClearSolutions.code_stub = {"python": "...  # your code"}

# A cell that takes longer, in seconds, is stopped, and grading goes on with the next one.
c.Execute.timeout = 300

# Kernels that are started from here, to grade, train as little as possible whatever the student chose. No grade depends on training.
os.environ.setdefault("SSLCOURSE_GRADING_TIER", "smoke")
os.environ.setdefault("SSLCOURSE_GRADING_DATASET", "toybox")
os.environ.setdefault("SSLCOURSE_DATA_DIR", str(course / "grading" / "data"))
os.environ.setdefault("SSLCOURSE_RESULTS_DIR", str(course / "grading" / "results"))
os.environ.setdefault("SSLCOURSE_HEADLESS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
'''


def assignment(name: str) -> str:
    """The assignment that a lesson's file becomes: '03_simclr.ipynb' -> 'lesson_3'."""
    return f"lesson_{int(name[:2])}"


def source_copy(notebook, name: str, *, answers: bool = True):
    """The instructor's version of a lesson, for `nbgrader generate_assignment`.

    Every exercise holds its solution between the marks that nbgrader looks for, and a locked test with points follows it. The cells
    that import, choose the tier and start the lesson are locked too; the parameters stay free. name: the notebook's, for errors.
    """
    made = handout.solved_copy(notebook, name, begin=["### BEGIN SOLUTION"], end=["### END SOLUTION"])
    made = made if answers else handout.without_answers(made)
    exercises = {task.cell.id: task for task in handout.tasks(made)}
    cells = []
    for cell in made.cells:
        cells.append(cell)
        if cell.id in exercises:
            task = exercises[cell.id]
            number = task.id.replace(".", "_")
            _mark(cell, f"exercise_{number}", **_ANSWER)
            cells.append(_test(task, f"test_{number}"))
        elif "parameters" in tags(cell):
            hidden = {"jupyter": {"source_hidden": True}, "cellView": "form"}
            cells.append(_mark(nbformat.v4.new_code_cell(_TIER_CELL, id="grading-tier", metadata=hidden), "tier", grade=False, **_LOCKED))
        elif cell.cell_type == "code" and "course.exercises import" in cell.source:
            _mark(cell, "imports", grade=False, **_LOCKED)
        elif cell.cell_type == "code" and "lesson = start(" in cell.source:
            _mark(cell, "start", grade=False, **_LOCKED)
    made.cells = cells
    marked = {cell.metadata["nbgrader"]["grade_id"] for cell in cells if "nbgrader" in cell.metadata}
    if lacking := {"imports", "tier", "start"} - marked:
        raise CourseError(f"{name} cannot be made into an assignment: it has no cell for {', '.join(sorted(lacking))}.")
    return made


def _mark(cell, grade_id: str, **facts):
    cell.metadata["nbgrader"] = {"schema_version": _SCHEMA, "grade_id": grade_id, "cell_type": cell.cell_type} | facts
    return cell


def _test(task: handout.Task, grade_id: str):
    worth = points(find_exercise(task.id))
    source = _TEST_CELL.format(id=task.id, name=task.function.name, points=f"{worth} point{'s' if worth > 1 else ''}")
    # "Run All Cells" goes on after a test that fails, as it does after an exercise that is not right.
    cell = nbformat.v4.new_code_cell(source, id=f"test-{task.id.replace('.', '-')}", metadata={"tags": ["raises-exception"]})
    return _mark(cell, grade_id, grade=True, points=worth, **_LOCKED)


def course_folder(notebooks: Mapping, folder: Path, students: Sequence[class_list.Student] = (), *, answers: bool = True) -> dict:
    """The course folder: path -> notebook or text. notebooks: the lessons by the names of their files, which lie in `folder`."""
    contents: dict = {CONFIG: _CONFIG_FILE, README: _readme(list(notebooks), bool(students))}
    if students:
        contents[STUDENTS] = class_list.students_csv(students)
    texts = handout.companions(folder)
    for name, notebook in notebooks.items():
        contents[f"source/{assignment(name)}/{name}"] = handout.with_links(source_copy(notebook, name, answers=answers), folder, [*texts])
        contents |= {f"source/{assignment(name)}/{text}": content for text, content in texts.items()}
    return contents


def _readme(names: Sequence[str], with_class: bool) -> str:
    example = assignment(names[0])
    stem = Path(names[0]).stem
    class_commands = f"nbgrader db student import {STUDENTS}\n" if with_class else ""
    seeds = (
        "* nbgrader releases one version to everybody. `seeds.csv` has a seed for each student, who writes it into the parameters, as\n"
        "  `SEED`. Points do not depend on it.\n"
        if with_class
        else ""
    )
    return f"""# The course with nbgrader

Every lesson is an assignment, `lesson_1` to `lesson_7`. `python -m sslcourse handout 1-7 --format nbgrader --out .` adds or renews
lessons here, and refuses to overwrite one that was edited.

The Python that grades needs this course and nbgrader 0.9 (`pip install "nbgrader>=0.9"`); that of the students needs the course. Run the
commands in this folder, where `nbgrader_config.py` is:

```
{class_commands}nbgrader generate_assignment {example}      # release/{example}, without solutions
nbgrader release_assignment {example}       # to the exchange; or give out release/{example} in any other way
nbgrader collect {example}                  # from the exchange; or put submitted/STUDENT/{example}/{stem}.ipynb there
nbgrader autograde {example}
nbgrader generate_feedback {example}        # feedback/STUDENT/{example}/{stem}.html
nbgrader export                             # grades.csv
```

## What is graded

A test follows each exercise and has as many points as the exercise has stars. It runs the course's own check on the function that the
student wrote; the hint is in the feedback. An exercise that was not attempted has 0 points, and neither it nor a wrong one stops the
lesson, which goes on with the reference. Students may run the tests as often as they like: they are the checks that they know from
`@exercise`. To change the points, edit the tests' cells in `source` before `generate_assignment`.

Tests, imports, and the cells that choose the tier and start the lesson are locked: nbgrader puts them back before it grades. A
test that was deleted has 0 points, and nbgrader marks the submission for a person to look at. The parameters are free, so students
train at the tier and with the data that suit them.

## What to know

* Students' notebooks are run from top to bottom, at tier smoke on toybox whatever they chose: a lesson is made to take 40 seconds at most
  on two CPU cores then. To change that, and the time that a cell may take, see `nbgrader_config.py`. A JupyterLab that is started in this
  folder reads it too.
* It is the students' code that runs, with your rights. Grade in a container, or as a user who owns nothing but this folder.
* The Validate button of nbgrader runs the whole lesson, training included, and gives each cell 30 seconds. Running the tests' cells says
  the same sooner.
* The check shares a process with the code that it checks. It does not believe `report()`, but whoever wants to deceive it can; and an
  answer that calls the package's own function is right by its values. Look at the answers, too.
* Whatever grading leaves, data and result records, is in `grading`, and can be deleted.
{seeds}"""
