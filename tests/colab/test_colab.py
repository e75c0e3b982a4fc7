"""Colab's versions and the course's agree on paper, and the check that runs the lessons there sees what it is meant to see."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import colab_environment
import front_end
import nbformat
import pytest
import run_lessons
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PINS = [line for line in colab_environment.VERSIONS.read_text().splitlines() if line and not line.startswith("#")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def test_the_list_has_exact_versions_and_each_name_once():
    for line in PINS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    names = [canonicalize_name(line.split("==")[0]) for line in PINS]
    assert len(set(names)) == len(names)


def test_nothing_that_colab_has_is_too_old_for_the_course():
    pinned = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in PINS}
    dependencies = [Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
    for requirement in dependencies:
        if requirement.name in pinned:
            assert requirement.specifier.contains(pinned[requirement.name]), f"the set-up cell would upgrade {requirement.name} in Colab"
    missing = {requirement.name for requirement in dependencies} - set(pinned)
    assert missing == {"papermill"}  # all that Colab has to download, with what papermill needs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pictures_and_links_of_a_lesson_work_in_colab(path):
    assert run_lessons.missing_files(nbformat.read(path, as_version=4), path.parent) == []


def test_pictures_and_links_that_do_not_work_in_colab_are_found(tmp_path):
    text = "[a](GLOSSARY.md#x) ![b](pictures/x.png) <img alt='' src='y.png'> <a href=\"02_two.ipynb\">z</a> [![c](d.svg)](03_three.ipynb)"
    harmless = "[a](https://example.org) [b](#part) ![c](data:image/png;base64,xx) `[d](code.md)` $$[e](math)$$ ![f](attachment:x.png)"
    output = nbformat.v4.new_output("display_data", {"text/html": "<img src='z.png'>", "text/plain": "[no](link.md)"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), nbformat.v4.new_markdown_cell(harmless)])
    notebook.cells.append(nbformat.v4.new_code_cell("[x](y)", outputs=[output]))
    pictures, links = run_lessons.needed_files(notebook)
    assert pictures == ["pictures/x.png", "y.png", "d.svg", "z.png"] and links == ["GLOSSARY.md#x", "02_two.ipynb", "03_three.ipynb"]
    (tmp_path / "GLOSSARY.md").touch()
    (tmp_path / "03_three.ipynb").touch()
    found = run_lessons.missing_files(notebook, tmp_path)
    assert len(found) == 5 and "02_two.ipynb" in found[-1] and all("picture" in sentence for sentence in found[:4])


def test_what_was_installed_on_top_upgraded_or_installed_once_more():
    before = {"numpy==2.1.3": (1, 1), "torch==2.11.0": (2, 2), "pillow==11.3.0": (3, 3), "tqdm==4.67.1": (4, 4)}
    after = {"numpy==2.1.3": (1, 1), "torch==2.12.0": (9, 9), "pillow==11.3.0": (8, 8), "papermill==2.7.0": (7, 7)}
    added, touched = colab_environment.changes(before, after)
    assert added == ["papermill==2.7.0", "torch==2.12.0"] and touched == ["pillow==11.3.0", "torch==2.11.0", "tqdm==4.67.1"]


def test_an_environment_is_put_back_as_it_was(tmp_path, monkeypatch):
    environment, calls = colab_environment.Environment(tmp_path), []
    monkeypatch.setattr(environment, "installed", lambda: {"numpy==2.1.3": (1, 1), "parso==0.8.7": (2, 2), "papermill==2.7.0": (3, 3)})
    monkeypatch.setattr(environment, "pip", lambda *arguments: calls.append((*arguments[:2], *sorted(arguments[2:]))))
    environment.restore(["numpy==2.1.3", "parso==0.8.5"])
    assert calls == [("uninstall", "--yes", "papermill", "parso"), ("install", "--no-deps", "parso==0.8.5")]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(colab_environment.CourseError, match="something else"):
        colab_environment.Environment.prepared(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_the_copy_has_what_is_not_committed_and_leaves_out_what_git_ignores(tmp_path):
    root = tmp_path / "checkout"
    root.mkdir()
    for name, text in ((".gitignore", "/data/\n"), ("kept.py", "1"), ("gone.py", "1")):
        (root / name).write_text(text)
    git = ["git", "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    (root / "gone.py").unlink()
    (root / "kept.py").write_text("2")
    (root / "new.py").write_text("3")
    (root / "data").mkdir()
    (root / "data" / "big.bin").write_text("4")
    copy = colab_environment.copy_as_repository(root, tmp_path / "copy", "autumn")
    listed = subprocess.run(["git", "ls-tree", "-r", "--name-only", "autumn"], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert listed.split() == [".gitignore", "kept.py", "new.py"] and (copy / "kept.py").read_text() == "2"


CELLS = """
import sys, matplotlib.pyplot as plt
assert "google.colab" in sys.modules
from sslcourse.course.widgets import explore, switchboard
def plot(*values): plt.figure(figsize=(1, 1)); plt.plot(values)
---
explore(lambda height, kind, log: plot(0, height, len(kind), log), height=(0.0, 2.0, 0.5, 1.0), kind=["a", "bc"], log=False)
---
explore(lambda height, unused: plot(0, height), height=(1, 5, 1, 2), unused=True)
---
explore(lambda kind: plot({"a": 1, "b": 2}[kind]), kind=["a", "b", "c"])
---
def wrong(power): return plot(1 / (power - 3))
explore(wrong, power=(1, 3, 1, 2))
---
switchboard(lambda fault: plot({"none": 0, "one": 1}[fault]), {"none": "no fault", "one": "a fault"})
---
switchboard(lambda fault: plot({"none": 0}[fault]), {"none": "no fault", "one": "a fault"})
---
1 / 0
"""


def test_the_front_end_moves_controls_and_notices_what_does_not_work(tmp_path):
    """With the versions of this environment; the script does the same with Colab's."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS.split("---")])
    variables = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(colab_environment.STAND_IN), str(ROOT)]),
        "IPYTHONDIR": str(tmp_path / "i"),
    }
    variables.pop("SSLCOURSE_HEADLESS", None)
    variables.pop("MPLBACKEND", None)
    (tmp_path / "specs").mkdir()
    session = asyncio.run(front_end.run(notebook, Path(sys.executable), tmp_path, variables, tmp_path / "specs"))
    problems = json.dumps(session.problems, indent=1)
    assert session.controls == 3 + 2 + 1 + 1 + 2 + 2, problems
    assert [problem.split(":")[0].split(" (")[0] for problem in session.problems] == [
        "cell 2",
        "cell 4",
        "cell 6",
        "it stopped with ZeroDivisionError",
    ]
    assert "'unused' was moved" in session.problems[0] and "stayed as it was" in session.problems[0]
    assert "ZeroDivisionError" in session.problems[1] and "KeyError" in session.problems[2]
