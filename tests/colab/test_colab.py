"""Colab's versions and the course's agree on paper, and the check that runs the lessons there sees what it is meant to see."""

import asyncio
import os
import re
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


def test_nothing_that_colab_has_is_too_old_for_the_course():
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in PINS)}
    assert len(pinned) == len(PINS)
    dependencies = [Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
    for requirement in dependencies:
        if requirement.name in pinned:
            assert requirement.specifier.contains(pinned[requirement.name]), f"the set-up cell would upgrade {requirement.name} in Colab"
    assert {requirement.name for requirement in dependencies} <= set(pinned)  # so Colab downloads nothing but the course itself


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pictures_and_links_of_a_lesson_work_in_colab(path):
    assert run_lessons.missing_files(nbformat.read(path, as_version=4), path.parent) == []


def test_pictures_and_links_that_do_not_work_in_colab_are_found(tmp_path):
    text = "[a](GLOSSARY.md#x) ![b](pictures/x.png) <img alt='' src='y.png'> <a href=\"02_two.ipynb\">z</a> [![c](d.svg)](03_three.ipynb)"
    harmless = "[a](https://example.org) [b](#part) ![c](data:image/png;base64,xx) `[d](code.md)` $$[e](math)$$ ![f](attachment:x.png)"
    output = nbformat.v4.new_output("display_data", {"text/html": "<img src='z.png'>", "text/plain": "[no](link.md)"})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), nbformat.v4.new_markdown_cell(harmless)])
    notebook.cells.append(nbformat.v4.new_code_cell("[x](y)", outputs=[output]))
    (tmp_path / "GLOSSARY.md").touch()
    found = " ".join(run_lessons.missing_files(notebook, tmp_path))
    assert re.findall(r"\w+\.(?:png|svg|md|ipynb)", found) == ["x.png", "y.png", "d.svg", "z.png", "02_two.ipynb", "03_three.ipynb"]


CELLS = """
import sys, matplotlib.pyplot as plt
assert "google.colab" in sys.modules
from sslcourse.course.widgets import explore, switchboard
def plot(*values): plt.figure(figsize=(1, 1)); plt.plot(values)
---
explore(lambda height, kind, scale: plot(0, height, len(kind), scale), height=(0.0, 2.0, 0.5, 1.0), kind=["a", "bc"], scale=[1, 2])
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
    stand_in = colab_environment.HERE / "stand_in"
    variables = {name: value for name, value in os.environ.items() if name not in ("SSLCOURSE_HEADLESS", "MPLBACKEND")}
    variables |= {"PYTHONPATH": f"{stand_in}{os.pathsep}{ROOT}", "IPYTHONDIR": str(tmp_path / "i")}
    problems, controls = asyncio.run(front_end.run(notebook, Path(sys.executable), tmp_path, variables, tmp_path / "specs"))
    assert controls == 3 + 1 + 1 + 2 + 2, problems
    division, key, end = problems
    assert division.startswith("cell 3") and "ZeroDivisionError" in division
    assert key.startswith("cell 5") and "KeyError" in key
    assert end.startswith("it stopped with ZeroDivisionError")
