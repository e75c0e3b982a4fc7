"""The lessons as a course of nbgrader: exercises as autograded answers, each followed by a locked test with points.

nbgrader takes the solutions out and puts a stub in, which `exercise` knows for "not attempted"; so the released lesson goes on with
the reference. A test judges the learner's own function, so a grade depends neither on training nor on the tier, data or seed.
The course's settings and its README lie in the folder course_folder.
"""

from nbformat.v4 import new_code_cell

from sslcourse.course.exercises import find_exercise
from sslcourse.course.handouts import copies
from sslcourse.course.notebook_files import tags
from sslcourse.errors import CourseError

_TIER_CELL = """# While the notebook is graded, the folder's nbgrader_config.py decides how much is trained.
import os

TIER = os.environ.get("SSLCOURSE_GRADING_TIER", TIER)
DATASET = os.environ.get("SSLCOURSE_GRADING_DATASET", DATASET)"""

_TEST_CELL = """# Exercise {id}: {points}. What is tested is your function, not the reference that stands in for it.
from sslcourse.course.handouts.grading import check_answer

check_answer("{id}", {name})"""


def source_copy(notebook, name: str, *, answers: bool = True):
    """The instructor's version of a lesson, for `nbgrader generate_assignment`: solutions between marks, and a locked test after each.

    A test has a point for each star of difficulty. The cells that import, choose the tier and start the lesson are locked too.
    Raises CourseError, naming the notebook, if one of these is missing.
    """
    made = copies.solved_copy(notebook, name, begin="    ### BEGIN SOLUTION\n", end="\n    ### END SOLUTION")
    if not answers:
        copies.leave_out_answers(made)
    cells = []
    for cell in made.cells:
        cells.append(cell)
        if task := copies.exercise_in(cell):
            number, points = task["id"].replace(".", "_"), find_exercise(task["id"]).difficulty
            _mark(cell, f"exercise_{number}", solution=True, locked=False)
            source = _TEST_CELL.format(id=task["id"], name=task["name"], points=f"{points} point{'s' * (points > 1)}")
            # "Run All Cells" goes on after a test that fails, as it does after an exercise that is not right.
            test = new_code_cell(source, id=f"test-{number}", metadata={"tags": ["raises-exception"]})
            cells.append(_mark(test, f"test_{number}", grade=True, points=points))
        elif "parameters" in tags(cell):
            hidden = {"jupyter": {"source_hidden": True}, "cellView": "form"}
            cells.append(_mark(new_code_cell(_TIER_CELL, id="grading-tier", metadata=hidden), "tier"))
        elif cell.cell_type == "code" and "course.exercises import" in cell.source:
            _mark(cell, "imports")
        elif cell.cell_type == "code" and "lesson = start(" in cell.source:
            _mark(cell, "start")
    made.cells = cells
    if lacking := {"imports", "tier", "start"} - {cell.metadata.get("nbgrader", {}).get("grade_id") for cell in cells}:
        raise CourseError(f"{name} cannot be made into an assignment: it has no cell for {', '.join(sorted(lacking))}.")
    return made


def _mark(cell, grade_id: str, *, grade: bool = False, solution: bool = False, locked: bool = True, **points):
    facts = {"grade": grade, "solution": solution, "task": False, "locked": locked} | points
    cell.metadata["nbgrader"] = {"schema_version": 3, "grade_id": grade_id, "cell_type": cell.cell_type} | facts
    return cell
