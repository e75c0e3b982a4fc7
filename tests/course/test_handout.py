"""Copies of the lessons for a class: what is taken out, what is filled in, and that nothing in the folder is lost."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sslcourse.course import exercises, notebook_files
from sslcourse.course.commands import main as cli
from sslcourse.course.handouts import handout, handout_files
from sslcourse.course.handouts.class_list import Student
from sslcourse.errors import CourseError
from sslcourse.files import write_json

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BYOL = "04_byol.ipynb"  # the quickest lesson
QUIZ = """## Quiz

Choose before you unfold.

**What is 1 + 1?**

<details><summary>1</summary>Not quite.</details>
<details><summary>2</summary>Right. Count
on your fingers.</details>

**And 2 + 2?**

<details><summary>4</summary>Right.</details>

So much for sums.

## Limits

None."""


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def lesson(request):
    return request.param


@pytest.fixture
def small(write_notebook):
    """Two small lessons; the folder they are in."""
    exercise = '@exercise("3.1")\ndef double(x, by=2):\n    """x -> a number"""\n    ...  # your code\n\n\nprint(double(1))'
    solution = "# Solution of exercise 3.1\ndef solution_3_1(x, by=2):\n    # by hand\n    y = by * x\n\n    return y"
    hint = "<details><summary>Hint</summary>\n\nTwice.\n\n</details>"
    folded = nbformat.v4.new_code_cell(solution, metadata={"tags": ["solution"]})
    badge = "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/03_x.ipynb)\n\nSee [lesson 4](04_y.ipynb#top)."
    pictures = "![a curve](pictures/curve.png) <img src='pictures/curve.png' alt='it'> [none](pictures/none.png) $[a](b)$ [more](MORE.md)"
    cells = [nbformat.v4.new_markdown_cell(text) for text in (badge, pictures, hint, QUIZ)]
    path = write_notebook("03_x.ipynb", exercise, folded, *cells)
    write_notebook("04_y.ipynb", "print(SEED)")
    (path.parent / "pictures").mkdir()
    (path.parent / "pictures" / "curve.png").write_bytes(b"")
    (path.parent / "MORE.md").write_text("more")
    return path.parent


def text_of(path):
    return "\n\n".join(cell.source for cell in nbformat.read(path, 4).cells)


# What is in the copies


def test_student_copies_have_no_solutions_and_no_outputs(lesson):
    original = notebook_files.load(lesson)
    made = handout.student_copy(original)
    assert len(handout.tasks(made)) == len(exercises.lesson_exercises(int(lesson.name[:2])))
    for cell in made.cells:
        assert "solution" not in notebook_files.tags(cell)
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)
    text = "\n".join(cell.source for cell in made.cells)
    assert "solution_" not in text and "colab-badge" not in text
    assert text.count("<summary>Hint</summary>") == len(handout.tasks(made))
    gone = len([cell for cell in original.cells if "solution" in notebook_files.tags(cell)])
    assert len(made.cells) == len(original.cells) - gone and gone == len(handout.tasks(made))
    assert any(cell.get("outputs") for cell in original.cells)  # the one that was given is as it was


def test_nothing_else_in_a_lesson_needs_a_solution_cell(lesson):
    for cell in handout.student_copy(notebook_files.load(lesson)).cells:
        assert not re.search(r"solution_\d", cell.source)


def test_solved_copies_hold_right_answers(lesson):
    number = int(lesson.name[:2])
    made = handout.solved_copy(notebook_files.load(lesson), lesson.name)
    names = "import math\nimport torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
    found = handout.tasks(made)
    assert {task.id for task in found} == set(exercises.lesson_exercises(number))
    for task in found:
        space = {"exercise": exercises.exercise}
        exec(names + task.cell.source, space)
        assert space[task.function.name].status == exercises.DONE, task.id
        assert '"""' in task.cell.source  # what the arguments are is still said


def test_filling_in_keeps_docstring_comments_and_what_follows(small):
    made = handout.solved_copy(notebook_files.load(small / "03_x.ipynb"), "03_x.ipynb", begin=["# begin"], end=["# end"])
    head = '@exercise("3.1")\ndef double(x, by=2):\n    """x -> a number"""\n'
    body = "    # begin\n    # by hand\n    y = by * x\n\n    return y\n    # end\n"
    assert handout.tasks(made)[0].cell.source == head + body + "\n\nprint(double(1))"


@pytest.mark.parametrize("solution", ["def solution_3_1(x): return x", "def solution_3_2(x, by=2): return x"])
def test_an_exercise_without_a_solution_is_named(small, solution):
    notebook = notebook_files.load(small / "03_x.ipynb")
    (cell,) = [cell for cell in notebook.cells if "solution" in notebook_files.tags(cell)]
    cell.source = solution
    with pytest.raises(CourseError, match=r"03_x.ipynb has no solution of exercise 3.1: .* define solution_3_1\(x, by=2\)"):
        handout.solved_copy(notebook, "03_x.ipynb")


def test_seeds_go_into_the_parameters_cell(lesson):
    original = notebook_files.load(lesson)
    made = handout.with_seed(original, 655887550)
    assert notebook_files.parameters(made) == notebook_files.parameters(original) | {"SEED": 655887550}
    (line,) = [line for cell in made.cells for line in cell.source.splitlines() if line.startswith("SEED = ")]
    assert line.startswith("SEED = 655887550  # a whole number")


def test_seeds_behind_other_letters_on_their_line(write_notebook):
    path = write_notebook("03_x.ipynb", parameters='NAME = "Zoë"; SEED = 0  # größer')
    assert handout.with_seed(notebook_files.load(path), 7).cells[1].source == 'NAME = "Zoë"; SEED = 7  # größer'


def test_a_lesson_without_a_seed_is_refused(write_notebook):
    path = write_notebook("03_x.ipynb", parameters="TIER = 1")
    with pytest.raises(CourseError, match="no SEED"):
        handout.with_seed(notebook_files.load(path), 7)


def test_quizzes_without_answers(small):
    made = handout.student_copy(notebook_files.load(small / "03_x.ipynb"), answers=False)
    (quiz,) = [cell.source for cell in made.cells if "Quiz" in cell.source]
    assert quiz == (
        "## Quiz\n\nChoose one answer for each question.\n\n**What is 1 + 1?**\n\n* 1\n* 2\n\n**And 2 + 2?**\n\n* 4\n\n## Limits\n\nNone."
    )
    assert any("<summary>Hint</summary>\n\nTwice." in cell.source for cell in made.cells)


def test_no_lesson_gives_an_answer_away_without_answers(lesson):
    text = "\n\n".join(cell.source for cell in handout.without_answers(notebook_files.load(lesson)).cells)
    assert set(re.findall(r"<summary>(.*?)</summary>", text)) == {"Hint"}
    assert "unfold" not in text
    assert not re.search(r"(?m)^(Right|Not quite|Yes|Neither|Not this one)\b[.:]", text)


def test_links_lead_to_what_was_copied_or_to_the_published_course(small):
    made = handout.with_links(notebook_files.load(small / "03_x.ipynb"), small, ["MORE.md"])
    text = "\n".join(cell.source for cell in made.cells)
    assert f"[lesson 4]({handout.PUBLISHED}/notebooks/04_y.ipynb#top)" in text
    assert f"![a curve]({handout.PUBLISHED_FILES}/notebooks/pictures/curve.png)" in text
    assert f"<img src='{handout.PUBLISHED_FILES}/notebooks/pictures/curve.png' alt='it'>" in text
    assert "[none](pictures/none.png) $[a](b)$ [more](MORE.md)" in text
    assert "(https://colab.example/03_x.ipynb)" in text


def test_published_addresses_are_those_of_the_project():
    project = (ROOT / "pyproject.toml").read_text()
    repository = re.search(r'Repository = "(.*)"', project)[1]
    assert handout.PUBLISHED.startswith(f"{repository}/blob/") and handout.PUBLISHED_FILES.startswith(f"{repository}/raw/")


# What is in the folder


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != ".handout.json")


def test_plain_copies(small, tmp_path):
    (small / "GLOSSARY.md").write_text("[three](03_x.ipynb) [four](04_y.ipynb)")
    made = handout.make([3], tmp_path / "out", notebooks_dir=small)
    assert files_of(tmp_path / "out") == ["solutions/03_x.ipynb", "solutions/GLOSSARY.md", "student/03_x.ipynb", "student/GLOSSARY.md"]
    assert made.files == 4 and made.seeds is None
    glossary = tmp_path / "out" / "student" / "GLOSSARY.md"
    assert glossary.read_text() == f"[three](03_x.ipynb) [four]({handout.PUBLISHED}/notebooks/04_y.ipynb)"
    handout.make([4], tmp_path / "out", notebooks_dir=small)  # a week later
    assert glossary.read_text() == "[three](03_x.ipynb) [four](04_y.ipynb)"
    assert (tmp_path / "out" / "student" / "03_x.ipynb").exists()


def test_a_copy_for_each_student(small, tmp_path):
    students = [Student("bob", {}), Student("ann", {})]
    made = handout.make(None, tmp_path / "out", students=students, notebooks_dir=small)
    names = ["03_x.ipynb", "04_y.ipynb"]
    assert files_of(tmp_path / "out") == [
        "seeds.csv",
        *(f"{place}/{name}" for place in ("solutions", "student/ann", "student/bob") for name in names),
    ]
    assert (tmp_path / "out" / "seeds.csv").read_text() == "id,seed\nbob,727207370\nann,655887550\n"
    for id, seed in made.seeds.items():
        for name in names:
            assert notebook_files.parameters(notebook_files.load(tmp_path / "out" / "student" / id / name))["SEED"] == seed
    assert notebook_files.parameters(notebook_files.load(tmp_path / "out" / "solutions" / "03_x.ipynb"))["SEED"] == 0


def test_another_salt_for_the_same_class_is_refused(small, tmp_path):
    students = [Student("ann", {})]
    handout.make([3], tmp_path / "out", students=students, salt="autumn", notebooks_dir=small)
    before = (tmp_path / "out" / "seeds.csv").read_text()
    with pytest.raises(CourseError, match=r"seeds.csv gives ann the seed \d+, and with this --salt it would be 655887550"):
        handout.make([4], tmp_path / "out", students=students, notebooks_dir=small)
    assert (tmp_path / "out" / "seeds.csv").read_text() == before


def test_a_copy_for_each_seed(small, tmp_path):
    handout.make([4], tmp_path / "out", seeds=[0, 10], notebooks_dir=small)
    assert files_of(tmp_path / "out") == ["solutions/04_y.ipynb", "student/seed-0/04_y.ipynb", "student/seed-10/04_y.ipynb"]
    assert "SEED = 10" in text_of(tmp_path / "out" / "student" / "seed-10" / "04_y.ipynb")


def test_answers_stay_in_the_solutions(small, tmp_path):
    handout.make([3], tmp_path / "out", answers=False, notebooks_dir=small)
    assert "on your fingers" in text_of(tmp_path / "out" / "solutions" / "03_x.ipynb")
    assert "on your fingers" not in text_of(tmp_path / "out" / "student" / "03_x.ipynb")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"format": "nbgrader", "seeds": [0]}, "the same notebook to everybody"),
        ({"students": [Student("ann", {})], "seeds": [0]}, "either --students"),
        ({"seeds": [0, 3]}, "share runs"),
        ({"chosen": [9]}, "There is no lesson '9'"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(small, tmp_path, options, sentence):
    with pytest.raises(CourseError, match=sentence):
        handout.make(**({"chosen": None, "out": tmp_path / "out", "notebooks_dir": small} | options))
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_lessons_is_refused(small):
    with pytest.raises(CourseError, match="the folder of the lessons themselves"):
        handout.make(None, small, notebooks_dir=small)


# Nothing is lost, nothing is half-made


def test_the_same_again_changes_nothing_and_the_files_of_others_stay(small, tmp_path):
    out = tmp_path / "out"
    (out / "student").mkdir(parents=True)
    (out / "student" / "notes.txt").write_text("mine")
    handout.make(None, out, notebooks_dir=small)
    before = {name: (out / name).read_bytes() for name in files_of(out)}
    handout.make(None, out, notebooks_dir=small)
    assert {name: (out / name).read_bytes() for name in files_of(out)} == before
    assert (out / "student" / "notes.txt").read_text() == "mine"


def test_copies_that_nobody_changed_are_renewed(small, tmp_path):
    handout.make(None, tmp_path / "out", notebooks_dir=small)
    handout.make(None, tmp_path / "out", answers=False, notebooks_dir=small)
    assert "on your fingers" not in text_of(tmp_path / "out" / "student" / "03_x.ipynb")


def test_work_in_a_copy_is_not_overwritten(small, tmp_path):
    out = tmp_path / "out"
    handout.make(None, out, notebooks_dir=small)
    mine = out / "student" / "03_x.ipynb"
    mine.write_text(mine.read_text().replace("...  # your code", "return 2 * x"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CourseError, match=r"student/03_x.ipynb would be overwritten, and is not as this command left it"):
        handout.make(None, out, answers=False, notebooks_dir=small)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("there", ["file", "folder"])
def test_a_name_that_somebody_else_has_taken_is_not_overwritten(small, tmp_path, there):
    place = tmp_path / "out" / "student" / "04_y.ipynb"
    place.parent.mkdir(parents=True)
    place.write_text("{}") if there == "file" else place.mkdir()
    with pytest.raises(CourseError, match="04_y.ipynb would be overwritten"):
        handout.make(None, tmp_path / "out", notebooks_dir=small)
    assert files_of(tmp_path / "out") == (["student/04_y.ipynb"] if there == "file" else [])


def test_a_file_in_place_of_the_folder_is_named(small, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(CourseError, match="out cannot be written .*--out"):
        handout.make(None, tmp_path / "out", notebooks_dir=small)


def test_a_full_disk_leaves_nothing_behind(small, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handout_files.notebook_files, "save", full)
    with pytest.raises(CourseError, match="No space left on device"):
        handout.make(None, tmp_path / "out", notebooks_dir=small)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_command_can_be_repeated(small, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(handout_files, "write_json", stop)  # everything is in its place, and nobody has written down what
    with pytest.raises(KeyboardInterrupt):
        handout.make(None, tmp_path / "out", notebooks_dir=small)
    monkeypatch.setattr(handout_files, "write_json", write_json)
    handout.make(None, tmp_path / "out", notebooks_dir=small)
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert sorted(left) == [".handout.json", "solutions", "student"]
    assert set(json.loads((tmp_path / "out" / ".handout.json").read_text())) == set(files_of(tmp_path / "out"))


# The command


def test_the_command_says_what_it_made(small, tmp_path, capsys):
    (tmp_path / "class.txt").write_text("ann\nbob\n")
    arguments = ["handout", "3", "--out", str(tmp_path / "out"), "--students", str(tmp_path / "class.txt"), "--notebooks", str(small)]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "4 files written" in said and f"2 students, who has which seed: {tmp_path / 'out'}/seeds.csv." in said


@pytest.mark.parametrize(
    "arguments, status, sentence",
    [
        ([], 2, "--out"),
        (["--out", "x", "--salt", "a"], 1, "--salt changes the seeds of a class"),
        (["--out", "x", "--seeds", "ten"], 2, "not a seed"),
        (["--out", "x", "--seeds", "0", "--students", "y"], 2, "not allowed with"),
        (["--out", "x", "--students", "nobody.txt"], 1, "nobody.txt cannot be read"),
    ],
)
def test_a_wrong_command_line_gets_a_sentence(capsys, arguments, status, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["handout", *arguments]) == status
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# From top to bottom, elsewhere than in the repository


def run_with_papermill(notebook, out, **parameters):
    given = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    environment = os.environ | {"SSLCOURSE_DATA_DIR": str(ROOT / "data"), "SSLCOURSE_HEADLESS": "1", "TQDM_DISABLE": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "SSLCOURSE_TIER": "smoke", "SSLCOURSE_DATASET": "toybox"}
    command = [sys.executable, "-m", "papermill", str(notebook), str(out), "--cwd", str(notebook.parent), "--no-progress-bar", *given]
    done = subprocess.run(command, cwd=notebook.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return "\n".join(str(output) for cell in nbformat.read(out, 4).cells for output in cell.get("outputs", []))


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    out = tmp_path_factory.mktemp("class")
    handout.make([4], out, students=[Student("ann", {})], answers=False, notebooks_dir=ROOT / "notebooks")
    return out


def test_a_student_s_copy_runs_with_a_seed_of_its_own(handed_out):
    shown = run_with_papermill(handed_out / "student" / "ann" / BYOL, handed_out / "ann.ipynb")
    assert "tier smoke" in shown and "seed 655887550" in shown and "Lesson 4 took" in shown
    assert "✓ done" not in shown and "· not attempted" in shown
    assert (handed_out / "student" / "ann" / "results").is_dir()  # beside the copy, and nowhere else


def test_the_solutions_run_and_every_exercise_is_done(handed_out):
    shown = run_with_papermill(handed_out / "solutions" / BYOL, handed_out / "solved.ipynb")
    assert "seed 0" in shown and "Lesson 4 took" in shown
    assert "✓ done" in shown and "· not attempted" not in shown and "✗ see the hint" not in shown
