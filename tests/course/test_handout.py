"""Copies of the lessons for a class: what is taken out, what is filled in, and that nobody's work is overwritten."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sslcourse.course import exercises, notebook_files
from sslcourse.course.commands import main as cli
from sslcourse.course.handouts import copies
from sslcourse.errors import CourseError

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
    """The folder of two small lessons and a glossary."""
    exercise = '@exercise("3.1")\ndef double(x, by=2):\n    """x -> a number"""\n    ...  # your code'
    solution = "# Solution of exercise 3.1\ndef solution_3_1(x, by=2):\n    # by hand\n    y = by * x\n\n    return y"
    folded = nbformat.v4.new_code_cell(solution, metadata={"tags": ["solution"]})
    badge = '<a href="https://colab.example/03_x.ipynb"><img alt="Open in Colab" src="https://colab.example/badge.svg"></a>'
    badge += "\n\nSee [lesson 4](04_y.ipynb#top)."
    hint = "<details><summary>Hint</summary>\n\nTwice. $[a](b)$ [gone](gone.md) [word](GLOSSARY.md#word)\n\n</details>"
    path = write_notebook("03_x.ipynb", exercise, folded, *map(nbformat.v4.new_markdown_cell, (badge, hint, QUIZ)))
    write_notebook("04_y.ipynb", "print(SEED)")
    (path.parent / "GLOSSARY.md").write_text("[three](03_x.ipynb) [four](04_y.ipynb)")
    return path.parent


@pytest.fixture
def make(small, tmp_path):
    """make(words of the command) -> its exit status; the copies go to tmp_path/out."""
    return lambda words="": cli.main(["handout", *words.split(), "--out", str(tmp_path / "out"), "--notebooks", str(small)])


def text_of(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells)


def read(path):
    return text_of(nbformat.read(path, 4))


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_student_copies_have_no_solutions_and_no_outputs(lesson):
    original = notebook_files.load(lesson)
    made = copies.student_copy(original, seed=655887550)
    assert notebook_files.parameters(made) == notebook_files.parameters(original) | {"SEED": 655887550}
    wanted = exercises.lesson_exercises(int(lesson.name[:2]))
    tasks = [task for cell in made.cells if (task := copies.exercise_in(cell))]
    assert [task["id"] for task in tasks] == list(wanted)
    assert all(cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None) for cell in made.cells)
    text = text_of(made)
    assert "solution_" not in text and "colab-badge" not in text and text.count("<summary>Hint 1:") == len(tasks)
    assert len(original.cells) - len(made.cells) == len(tasks)  # nothing but the solutions went
    assert any(cell.get("outputs") for cell in original.cells)  # the one that was given is as it was
    text = text_of(copies.student_copy(original, answers=False))
    assert all(name.startswith("Hint ") for name in re.findall(r"<summary>(.*?)</summary>", text)) and "unfold" not in text
    assert not re.search(r"(?m)^(Right|Not quite|Yes|Neither|Not this one)\b[.:]", text)


def test_solved_copies_hold_right_answers(lesson):
    made = copies.solved_copy(notebook_files.load(lesson), lesson.name)
    names = "import math\nimport torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
    for task, cell in ((copies.exercise_in(cell), cell) for cell in made.cells if copies.exercise_in(cell)):
        space = {"exercise": exercises.exercise}
        exec(names + cell.source, space)
        assert space[task["name"]].status == exercises.DONE, task["id"]
        assert task["docs"]  # what the arguments are is still said


def test_filling_in_keeps_docstring_and_comments_names_what_has_no_solution_and_quizzes_lose_answers(small):
    made = copies.solved_copy(notebook_files.load(small / "03_x.ipynb"), "03_x.ipynb", begin="    # begin\n", end="\n    # end")
    head = '@exercise("3.1")\ndef double(x, by=2):\n    """x -> a number"""\n'
    (cell,) = [cell for cell in made.cells if copies.exercise_in(cell)]
    assert cell.source == head + "    # begin\n    # by hand\n    y = by * x\n\n    return y\n    # end"
    notebook = notebook_files.load(small / "03_x.ipynb")
    (cell,) = [cell for cell in notebook.cells if "solution" in notebook_files.tags(cell)]
    cell.source = "def solution_3_1(x):\n    return x"
    with pytest.raises(CourseError, match=r"solution_3_1\(x, by=2\)"):
        copies.solved_copy(notebook, "03_x.ipynb")
    made = copies.student_copy(notebook_files.load(small / "03_x.ipynb"), answers=False)
    question = "## Quiz\n\nChoose one answer for each question.\n\n**What is 1 + 1?**\n\n* 1\n* 2\n\n**And 2 + 2?**\n\n* 4"
    assert text_of(made).endswith(f"{question}\n\n## Limits\n\nNone.") and "<summary>Hint</summary>\n\nTwice." in text_of(made)


def test_plain_copies_link_to_what_was_copied_or_to_the_published_course(make, tmp_path):
    assert make("3 --without-quiz-answers") == 0
    out = tmp_path / "out"
    assert files_of(out / "solutions") == ["03_x.ipynb", "GLOSSARY.md"]
    assert files_of(out / "student") == ["03_x.ipynb", "GLOSSARY.md", "START.md"]
    assert all(word in (out / "student" / "START.md").read_text() for word in ("pip install", "jupyter lab 03_x.ipynb", "Hand in"))
    assert (out / "student" / "GLOSSARY.md").read_text() == f"[three](03_x.ipynb) [four]({copies.PUBLISHED}/04_y.ipynb)"
    text = read(out / "student" / "03_x.ipynb")
    assert f"[lesson 4]({copies.PUBLISHED}/04_y.ipynb#top)" in text
    assert "$[a](b)$ [gone](gone.md) [word](GLOSSARY.md#word)" in text
    assert "on your fingers" in read(out / "solutions" / "03_x.ipynb") and "on your fingers" not in text


@pytest.mark.parametrize("words, places", [("--students {}", ["ann", "bob"]), ("--seeds 0 10", ["seed-0", "seed-10"])])
def test_a_copy_for_each_student_or_seed(make, tmp_path, words, places):
    (tmp_path / "class.txt").write_text("bob\nann\n")
    assert make(words.format(tmp_path / "class.txt")) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in (out / "student").iterdir()) == places
    seeds = {"ann": 776633470, "bob": 237671040, "seed-0": 0, "seed-10": 10}
    for place in places:
        assert f"SEED = {seeds[place]}\n" in read(out / "student" / place / "04_y.ipynb")
    if "ann" in places:
        assert (out / "students.csv").read_text() == "id,first_name,last_name,email,seed\nbob,,,,237671040\nann,,,,776633470\n"
    assert "SEED = 0" in read(out / "solutions" / "04_y.ipynb")


def test_only_an_empty_folder_is_filled(make, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert make() == 0 and make() == 1
    assert str(tmp_path / "out") in capsys.readouterr().err


@pytest.mark.parametrize("words", ["9", "--format nbgrader --seeds 0", "--students gone.txt", "--format nbgrader"])
def test_what_cannot_be_made_leaves_nothing_behind(make, tmp_path, capsys, words):
    assert make(words) == 1
    assert not (tmp_path / "out").exists() and len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture(scope="module")
def handed_out(tmp_path_factory):
    """A folder with copies of one lesson for one student."""
    folder = tmp_path_factory.mktemp("class")
    (folder / "class.txt").write_text("ann\n")
    words = ["handout", "4", "--students", str(folder / "class.txt"), "--out", str(folder / "out"), "--without-quiz-answers"]
    assert cli.main([*words, "--notebooks", str(ROOT / "notebooks")]) == 0
    return folder / "out"


@pytest.mark.parametrize("place, seed", [("student/ann", 776633470), ("solutions", 0)])
def test_the_copies_run(handed_out, place, seed):
    notebook = handed_out / place / BYOL
    environment = os.environ | {"SSLCOURSE_DATA_DIR": str(ROOT / "data"), "SSLCOURSE_HEADLESS": "1", "TQDM_DISABLE": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "SSLCOURSE_TIER": "smoke", "SSLCOURSE_DATASET": "toybox"}
    command = [sys.executable, "-m", "papermill", notebook, handed_out / "done.ipynb", "--cwd", notebook.parent, "--no-progress-bar"]
    done = subprocess.run(command, cwd=notebook.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = "\n".join(str(output) for cell in nbformat.read(handed_out / "done.ipynb", 4).cells for output in cell.get("outputs", []))
    assert "tier smoke" in shown and f"seed {seed}" in shown and "Lesson 4 took" in shown
    assert ("✓ done" in shown) == (place == "solutions") and ("· not attempted" in shown) == (place != "solutions")
    assert (notebook.parent / "results").is_dir()  # beside the copy, and nowhere else
