"""The course folder for nbgrader: what is in it, and the points that nbgrader gives for right, partly right and empty submissions."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sslcourse.course import exercises, notebook_files
from sslcourse.course.commands import main as cli
from sslcourse.course.handouts import copies, grading
from sslcourse.course.handouts.nbgrader import source_copy

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BYOL = "04_byol.ipynb"  # the quickest lesson
CONFIG = ROOT / "sslcourse" / "course" / "handouts" / "course_folder" / "nbgrader_config.py"


def by_grade_id(notebook):
    return {cell.metadata["nbgrader"]["grade_id"]: cell for cell in notebook.cells if "nbgrader" in cell.metadata}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def source(request):
    path = request.param
    return int(path.name[:2]), source_copy(notebook_files.load(path), path.name)


def test_exercises_are_answers_before_locked_tests_and_the_set_up_is_locked(source):
    number, notebook = source
    cells = notebook.cells
    names = [cell.metadata.get("nbgrader", {}).get("grade_id", "") for cell in cells]
    for id, task in exercises.lesson_exercises(number).items():
        at = names.index(f"exercise_{id.replace('.', '_')}")
        answer, test = cells[at].metadata["nbgrader"], cells[at + 1].metadata["nbgrader"]
        assert (answer["solution"], answer["grade"], answer["locked"]) == (True, False, False)
        assert (test["solution"], test["grade"], test["locked"], test["points"]) == (False, True, True, task.difficulty)
        assert cells[at].source.count("### BEGIN SOLUTION") == cells[at].source.count("### END SOLUTION") == 1
        assert f'check_answer("{id}", ' in cells[at + 1].source
        assert "raises-exception" in notebook_files.tags(cells[at + 1])  # "Run All Cells" goes on
    assert all(by_grade_id(notebook)[name].metadata["nbgrader"]["locked"] for name in ("imports", "tier", "start"))
    (parameters,) = [i for i, cell in enumerate(cells) if "parameters" in notebook_files.tags(cell)]
    assert names[parameters] == "" and names[parameters + 1] == "tier" and parameters < names.index("start")


def test_what_stands_in_place_of_a_solution_counts_as_not_attempted(source, tmp_path):
    number, notebook = source
    (stub,) = re.findall(r'code_stub = {"python": "(.*)"}', CONFIG.read_text())
    for id in exercises.lesson_exercises(number):
        cell = by_grade_id(notebook)[f"exercise_{id.replace('.', '_')}"]
        before, rest = cell.source.split("    ### BEGIN SOLUTION\n")
        (tmp_path / "answer.py").write_text(before + f"    {stub}" + rest.split("    ### END SOLUTION")[1])
        space = runpy.run_path(str(tmp_path / "answer.py"), {"exercise": exercises.exercise})
        answer = space[copies.exercise_in(cell)["name"]]
        assert answer.status == exercises.OPEN
        with pytest.raises(AssertionError, match="not attempted yet"):
            grading.check_answer(id, answer)


def test_the_tier_cell_changes_nothing_unless_it_is_graded(source, monkeypatch):
    cell = by_grade_id(source[1])["tier"].source
    space = {"TIER": "cpu", "DATASET": "stl10"}
    exec(cell, space)
    assert (space["TIER"], space["DATASET"]) == ("cpu", "stl10")
    monkeypatch.setenv("SSLCOURSE_GRADING_TIER", "smoke")
    monkeypatch.setenv("SSLCOURSE_GRADING_DATASET", "toybox")
    exec(cell, space)
    assert (space["TIER"], space["DATASET"]) == ("smoke", "toybox")


def test_a_lesson_without_a_cell_to_lock_is_refused(write_notebook):
    path = write_notebook("03_x.ipynb", "print(1)")
    with pytest.raises(exercises.CourseError, match="imports, start"):
        source_copy(notebook_files.load(path), path.name)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The folder of a course for nbgrader, with a class of three."""
    folder = tmp_path_factory.mktemp("class")
    (folder / "class.csv").write_text("id,first_name\nann,Ann\nbob,\ncarol,\n")
    words = ["handout", "4", "--format", "nbgrader", "--students", str(folder / "class.csv"), "--out", str(folder / "course")]
    assert cli.main([*words, "--notebooks", str(ROOT / "notebooks")]) == 0
    return folder / "course"


def test_a_course_folder_has_settings_texts_class_and_lessons(course):
    assert {"README.md", "nbgrader_config.py", "source", "students.csv"} <= {path.name for path in course.iterdir()}
    assert sorted(path.name for path in (course / "source" / "lesson_4").iterdir()) == [BYOL, "GLOSSARY.md"]
    assert f"{copies.PUBLISHED}/03_simclr.ipynb" in (course / "source" / "lesson_4" / "GLOSSARY.md").read_text()


# With nbgrader itself: the course folder is generated, three students hand in, and everything is graded at tier smoke.

WRONG = "    return method(pictures).item()"  # no step
CHEAT = """
import sslcourse.course.exercises as checked

for id in ("4.1", "4.2"):
    checked._statuses[id] = "done"
exercise = lambda id: (lambda function: checked.find_exercise(id).reference)
"""


def nbgrader(course, *arguments):
    environment = os.environ | {"SSLCOURSE_DATA_DIR": str(ROOT / "data"), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # it calls alembic
    environment["JUPYTER_RUNTIME_DIR"] = str(course / "runtime")
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def submitted(course, student, notebook):
    folder = course / "submitted" / student / "lesson_4"
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / BYOL)


@pytest.fixture(scope="module")
def graded(course):
    """The folder of a course in which ann's answers are right, bob's partly, and carol has none and has tried to deceive."""
    pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install nbgrader")
    nbgrader(course, "db", "student", "import", "students.csv")
    nbgrader(course, "generate_assignment", "lesson_4")
    release = course / "release" / "lesson_4" / BYOL
    answers = by_grade_id(nbformat.read(course / "source" / "lesson_4" / BYOL, 4))

    right = nbformat.read(release, 4)
    for name, cell in by_grade_id(right).items():
        if name.startswith("exercise_"):
            cell.source = answers[name].source.replace("    ### BEGIN SOLUTION\n", "").replace("    ### END SOLUTION", "")
    (parameters,) = [cell for cell in right.cells if "parameters" in notebook_files.tags(cell)]
    # the tier that she trained at; and warnings, which nbgrader would take for a failure
    parameters.source = parameters.source.replace('TIER = "auto"', 'TIER = "full"').replace("SEED = 0", "SEED = 655887550")
    meters = by_grade_id(right)["exercise_4_1"]
    meters.source = meters.source.replace("    return", '    import warnings; warnings.warn("a habit"); print("seen")\n    return')
    submitted(course, "ann", right)

    partly = nbformat.read(release, 4)
    marked = by_grade_id(partly)
    marked["exercise_4_1"].source = by_grade_id(right)["exercise_4_1"].source
    marked["exercise_4_2"].source = marked["exercise_4_2"].source.replace("    ...  # your code", WRONG)
    marked["test_4_2"].source = "pass  # nothing to see here"
    submitted(course, "bob", partly)

    empty = nbformat.read(release, 4)
    at = empty.cells.index(by_grade_id(empty)["start"]) + 1
    empty.cells.insert(at, nbformat.v4.new_code_cell(CHEAT))
    empty.cells.remove(by_grade_id(empty)["test_4_1"])
    submitted(course, "carol", empty)

    nbgrader(course, "autograde", "lesson_4")
    return course


def test_released_notebooks_have_stubs_in_place_of_solutions(graded):
    release = nbformat.read(graded / "release" / "lesson_4" / BYOL, 4)
    code = [cell.source for cell in release.cells if cell.cell_type == "code"]
    assert not any("SOLUTION" in source or "torch.linalg.svdvals" in source for source in code)
    marked = by_grade_id(release)
    assert marked["exercise_4_1"].source.splitlines()[-1] == "    ...  # your code"
    assert marked["test_4_1"].metadata["editable"] is False and "editable" not in marked["exercise_4_1"].metadata


def test_points_are_what_the_answers_deserve_and_feedback_shows_the_hint(graded):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{graded / 'gradebook.db'}") as gradebook:
        found = {s.student.id: s for s in gradebook.assignment_submissions("lesson_4")}
        assert {id: (s.score, s.max_score) for id, s in found.items()} == {"ann": (5, 5), "bob": (2, 5), "carol": (0, 5)}
        # a test that was deleted is for a person to look at
        assert {id: s.needs_manual_grade for id, s in found.items()} == {"ann": False, "bob": False, "carol": True}
        assert gradebook.find_student("ann").first_name == "Ann"
    nbgrader(graded, "generate_feedback", "lesson_4")
    page = (graded / "feedback" / "bob" / "lesson_4" / "04_byol.html").read_text(encoding="utf-8")
    assert "Exercise 4.2: The method comes in evaluation mode" in page


@pytest.mark.parametrize("student", ["ann", "bob", "carol"])
def test_graded_lessons_ran_to_the_end_at_tier_smoke(graded, student):
    notebook = nbformat.read(graded / "autograded" / student / "lesson_4" / BYOL, 4)
    outputs = [(cell, output) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    failed = {cell.metadata.get("nbgrader", {}).get("grade_id") for cell, output in outputs if output.output_type == "error"}
    assert failed == {"ann": set(), "bob": {"test_4_2"}, "carol": {"test_4_2"}}[student]
    text = "\n".join(output.get("text", "") for _, output in outputs)
    assert "tier smoke" in text and "Lesson 4 took" in text
    assert f"seed {655887550 if student == 'ann' else 0}" in text
