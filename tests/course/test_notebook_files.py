import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from sslcourse.course import notebook_files, runner
from sslcourse.errors import CourseError

PNG = base64.b64encode(b"\x89PNG").decode()
FOLDED = {"tags": ["solution"], **notebook_files.FOLDED}
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "Box()"}


def code(source="1", outputs=(), count=2, **metadata):
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def shown(**data):
    return new_output("display_data", data=data)


@pytest.fixture
def stored(write_notebook):
    """stored(*cells) -> path of a notebook in its stored form but for these cells."""

    def stored(*cells, parameters="# what\nTIER: str = 'auto'  # how much", metadata=None):
        path = write_notebook("01_first.ipynb", parameters=parameters)
        notebook = notebook_files.load(path)
        for cell in notebook.cells[1:]:
            cell.execution_count = 1
        notebook = notebook_files.normalise(notebook)
        notebook.cells += cells
        notebook.metadata.update(metadata or {})
        notebook_files.save(notebook, path)
        return path

    return stored


def test_a_notebook_in_order_has_no_problems_and_others_may_be_too_large_or_in_another_form(stored):
    html = '<img alt="Two curves that fall" src="data:image/png;base64,AA">'
    described = new_output("display_data", data={"image/png": PNG}, metadata={"image/png": {"alt": "A curve"}})
    cells = [code("x", [shown(**{"image/png": PNG, "text/html": html}), described]), code("def f(): pass", count=3, **FOLDED)]
    path = stored(*cells, code("", count=None))
    assert notebook_files.problems(path) == [] and notebook_files.parameters(notebook_files.load(path)) == {"TIER": "auto"}
    form, size = notebook_files.problems(stored(code("x", [shown(**{"text/plain": "y" * 2_100_000})]), metadata={"widgets": {}}))
    assert "stored form" in form and "2.1 MB; 2.0 MB is the most" in size


FORM, IMAGE = "not in its stored form", "an image in .* has no alt text"
WRONG = {
    "widget": (code("w", [shown(**WIDGET)]), FORM), "timing": (code("x", execution={"iopub.execute_input": "2024-01-01"}), FORM),
    "injected": (code("x", tags=["injected-parameters"]), FORM), "not run": (code("x", count=None), "execution counts are"),
    "error": (code("x", [new_output("error", ename="ValueError", evalue="v", traceback=[])]), "Cell 2 .*stopped with ValueError"),
    "long": (code("\n".join(["x = 1"] * 41)), "Cell 2 .*41 lines; 40 is the most"),
    "solution": (code("x", tags=["solution"], jupyter={"source_hidden": True}), "Cell 2 .*a solution is folded"),
    "bare figure": (code("x", [shown(**{"image/png": PNG, "text/plain": "<Figure>"})]), "Cell 2 .*a figure has no alt text"),
    "empty alt": (code("x", [shown(**{"text/html": '<img alt="" src="data:">'})]), IMAGE),
    "markdown": (new_markdown_cell("![](picture.png)"), IMAGE),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_rule_finds_its_fault_and_nothing_else(stored, name):
    cell, message = WRONG[name]
    (found,) = notebook_files.problems(stored(cell))
    assert re.search(message, found)


LITERALS = [(None, "0 cells are tagged"), ("TIER = auto", "auto"), ("import os", "import os"), ("A = B = 1", "B"), ("A = (", "Python")]


@pytest.mark.parametrize(("source", "message"), LITERALS)
def test_the_parameters_cell_holds_literals_only(stored, source, message):
    (found,) = notebook_files.problems(stored(parameters=source))
    assert message in found


def test_clean_puts_right_what_it_can_and_keeps_the_rest(stored):
    result = new_output("execute_result", data={"text/plain": "3"}, execution_count=9)
    printed = new_output("stream", name="stdout", text="100 % done\n1\n")
    cells = [
        code("print(1)", [printed], 7, execution={"iopub.status.busy": "2024-01-01"}, papermill={}, tags=[]),
        code("SEED = 3", count=8, tags=["injected-parameters"]), code("3", [result, shown(**WIDGET)], 9, tags=["kept"]),
    ]
    path = stored(*cells, metadata={"widgets": {}, "papermill": {}, "colab": {}, "language_info": {"name": "python", "version": "3.9"}})
    os.chmod(path, 0o640)
    assert notebook_files.clean(path) is True and notebook_files.problems(path) == []
    notebook = notebook_files.load(path)
    assert [c.source for c in notebook.cells[2:]] == ["print(1)", "3"]
    first, three = notebook.cells[2:]
    assert first.outputs == [printed] and "tags" not in first.metadata
    assert three.outputs == [result | {"execution_count": 3}] and three.metadata.tags == ["kept"]
    assert set(notebook.metadata) == {"kernelspec", "language_info", "colab"} and "version" not in notebook.metadata.language_info
    assert os.stat(path).st_mode & 0o777 == 0o640 and notebook_files.clean(path) is False  # once is enough


def test_cell_ids_become_unique_and_stay(stored):
    path = stored(code("a"), code("b", count=3))
    notebook = nbformat.read(path, as_version=4)
    kept = notebook.cells[3]["id"] = notebook.cells[2].id
    path.write_text(json.dumps(notebook))
    assert "ids" in notebook_files.problems(path)[0]
    notebook_files.clean(path)
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert len(set(ids)) == len(ids) and ids[2] == kept and notebook_files.problems(path) == []


def test_strip_outputs_takes_out_what_a_run_has_left(stored):
    cells = notebook_files.strip_outputs(notebook_files.load(stored(code("x", [new_output("stream", text="y")])))).cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells[1:])


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[]", '{"cells": [{}], "nbformat": 4, "nbformat_minor": 5}'])
def test_what_is_no_notebook_gets_a_sentence(tmp_path, text):
    if text is not None:
        (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(CourseError, match="notebook .*x.ipynb|x.ipynb cannot be read"):
        notebook_files.problems(tmp_path / "x.ipynb")


def test_store_replaces_the_file_by_a_clean_run_or_leaves_it_as_it_was(write_notebook):
    path = write_notebook("01_first.ipynb", "print(TIER, DATASET, SEED)", "import tempfile; assert tempfile.gettempdir() in RESULTS_DIR")
    sources = [cell.source for cell in notebook_files.load(path).cells]
    runner.store(path, "smoke", "toybox")
    notebook = notebook_files.load(path)
    assert notebook_files.problems(path) == [] and [cell.source for cell in notebook.cells] == sources
    assert notebook.cells[2].outputs[0].text == "smoke toybox 0\n"
    before = write_notebook("01_first.ipynb", "1 / 0").read_bytes()
    with pytest.raises(CourseError, match="01_first.ipynb .*ZeroDivisionError"):
        runner.store(path, "smoke", "toybox")
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_nbval_keeps_a_lesson_in_one_process_however_tests_are_distributed(write_notebook):
    path = write_notebook("01_first.ipynb", *(f"x{i + 1} = x{i} + 1" for i in range(1, 5)), parameters="x1 = 1")
    shutil.copy(Path(__file__).parents[2] / "notebooks" / "conftest.py", path.parent)
    how = ["-n", "2", "--dist", "load", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *how, path.parent], cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
