import base64
import json
import os
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from sslcourse.course import notebook_files, runner
from sslcourse.errors import CourseError

PNG = base64.b64encode(b"\x89PNG").decode()
FOLDED = {"tags": ["solution"], "jupyter": {"source_hidden": True}, "cellView": "form"}


def code(source="1", outputs=(), count=1, **metadata):
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def shown(**data):
    return new_output("display_data", data=data)


@pytest.fixture
def stored(write_notebook):
    """stored(*cells) -> path of a notebook in its stored form but for these cells."""

    def stored(*cells, parameters="TIER = 'auto'", metadata=None, form=True):
        path = write_notebook("01_first.ipynb", *cells, parameters=parameters, metadata=metadata)
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []) and cell.cell_type == "code":
                cell.execution_count = 1
        nbformat.write(notebook, path)
        return path

    return stored


def test_a_notebook_in_order_has_no_problems(stored):
    html = '<img alt="Two curves that fall" src="data:image/png;base64,AA">'
    cells = [code("x", [shown(**{"image/png": PNG, "text/html": html})], 2), code("def f(): pass", count=3, **FOLDED), code("", count=None)]
    assert notebook_files.problems(stored(*cells)) == []


WRONG = {
    "widget": (code("w", [shown(**{notebook_files.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "Box()"})], 2), "an output is a widget"),
    "timing": (code("x", count=2, execution={"iopub.execute_input": "2024-01-01"}), "hold timing \\(execution\\)"),
    "papermill": (code("x", count=2, papermill={"duration": 1}), "hold timing \\(papermill\\)"),
    "injected": (code("x", count=2, tags=["injected-parameters"]), "injected parameters"),
    "not run": (code("x", count=None), "execution counts are \\[1, None\\], not 1 to 2"),
    "out of order": (code("x", count=5), "execution counts are \\[1, 5\\]"),
    "error": (code("x", [new_output("error", ename="ValueError", evalue="v", traceback=[])], 2), "it stopped with ValueError"),
    "long": (code("\n".join(["x = 1"] * 41), count=2), "it has 41 lines; 40 is the most"),
    "solution": (code("x", count=2, tags=["solution"], jupyter={"source_hidden": True}), "has to be folded"),
    "bare figure": (code("x", [shown(**{"image/png": PNG, "text/plain": "<Figure>"})], 2), "a figure has no alt text"),
    "img": (code("x", [shown(**{"text/html": '<img src="data:">'})], 2), "an image in its output has no alt text"),
    "empty alt": (code("x", [shown(**{"text/html": '<img alt="" src="data:">'})], 2), "an image in its output has no alt text"),
    "markdown": (new_markdown_cell("![](picture.png)"), "an image in the text has no alt text"),
    "markdown html": (new_markdown_cell("<img src='picture.png'>"), "an image in the text has no alt text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_rule_names_its_cell(stored, name):
    cell, message = WRONG[name]
    found = notebook_files.problems(stored(cell))
    assert len(found) == 1, found
    assert re.search(message, found[0])
    assert found[0].startswith("Cell 2 (") or name in ("not run", "out of order")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "0 cells are tagged 'parameters'"),
        ("TIER = auto", "The parameters cell has more than literals: TIER = auto."),
        ("import os", "The parameters cell has more than assignments: import os."),
        ("A = B = 1", "more than assignments"),
        ("A = (", "is not Python"),
    ],
)
def test_the_parameters_cell_holds_literals_only(stored, source, message):
    (found,) = notebook_files.problems(stored(parameters=source))
    assert message in found


def test_file_wide_rules(stored):
    path = stored(code("x", [shown(**{"text/plain": "y" * 1_600_000})], 2), metadata={"widgets": {}, "papermill": {"duration": 1}})
    found = " ".join(notebook_files.problems(path))
    assert "1.6 MB; 1.5 MB is the most" in found and "widget state" in found and "papermill's timing" in found


def test_an_image_may_carry_its_alt_text_in_its_metadata(stored):
    described = new_output("display_data", data={"image/png": PNG}, metadata={"image/png": {"alt": "A curve"}})
    assert notebook_files.problems(stored(code("x", [described], 2))) == []


def test_parameters_are_read_with_their_values(stored):
    path = stored(parameters='# what\nTIER = "auto"  # how much\nSEED: int = -3\nSIZES = [1, 2]\nOFF = False')
    assert notebook_files.parameters(notebook_files.load(path)) == {"TIER": "auto", "SEED": -3, "SIZES": [1, 2], "OFF": False}


def test_clean_puts_right_what_it_can_and_keeps_the_rest(stored):
    result = new_output("execute_result", data={"text/plain": "3"}, execution_count=9)
    bar = "train:   0%|          | 0/10 [00:00<?, ?it/s]\rtrain: 100%|##########| 10/10 [00:01<00:00,  9.9it/s]\n"
    cells = [
        code(
            "print(1)",
            [new_output("stream", name="stdout", text="100 % done\n1\n")],
            7,
            execution={"iopub.status.busy": "2024-01-01"},
            papermill={},
            tags=[],
        ),
        code("SEED = 3", count=8, tags=["injected-parameters"]),
        code("3", [result, shown(**{notebook_files.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "Box()"})], 9, tags=["kept"]),
        code("bar", [new_output("stream", name="stderr", text=bar)], 10),
        code("warn", [new_output("stream", name="stderr", text=bar + "UserWarning: look\n")], 11),
    ]
    metadata = {
        "widgets": {"state": {}},
        "papermill": {},
        "sslcourse": {"requires": [1]},
        "language_info": {"name": "python", "version": "3.9"},
    }
    path = stored(*cells, metadata=metadata)
    os.chmod(path, 0o640)
    assert notebook_files.problems(path) != []
    assert notebook_files.clean(path) is True
    assert notebook_files.problems(path) == []
    notebook = nbformat.read(path, as_version=4)
    assert [c.source for c in notebook.cells[2:]] == ["print(1)", "3", "bar", "warn"]
    printed, three, bar, warned = notebook.cells[2:]
    assert printed.outputs[0].text == "100 % done\n1\n" and "tags" not in printed.metadata
    assert three.outputs == [result | {"execution_count": 3}] and three.metadata.tags == ["kept"]
    assert bar.outputs == [] and warned.outputs[0].text == "UserWarning: look\n"
    assert set(notebook.metadata) == {"kernelspec", "language_info", "sslcourse"} and "version" not in notebook.metadata.language_info
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert notebook_files.clean(path) is False  # once is enough


def test_cell_ids_become_unique_and_stay(stored):
    path = stored(code("a", count=2), code("b", count=3))
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3]["id"] = notebook.cells[2].id
    path.write_text(json.dumps(notebook))
    kept = notebook.cells[2].id
    assert any("no id of their own" in problem for problem in notebook_files.problems(path))
    notebook_files.clean(path)
    after = nbformat.read(path, as_version=4)
    ids = [cell.id for cell in after.cells]
    assert len(set(ids)) == len(ids) and ids[2] == kept


def test_strip_outputs_leaves_the_original_alone(stored, tmp_path):
    path = stored(code("x", [new_output("stream", text="y")], 2))
    before = path.read_bytes()
    copy = notebook_files.strip_outputs(path, tmp_path / "class" / "01.ipynb")
    cells = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells) and path.read_bytes() == before


def test_what_is_no_notebook_gets_a_sentence(tmp_path):
    (tmp_path / "x.ipynb").write_text("{}")
    for name, message in (("x.ipynb", "cannot be read as a notebook"), ("y.ipynb", "There is no notebook")):
        with pytest.raises(CourseError, match=message):
            notebook_files.problems(tmp_path / name)


def test_store_replaces_the_file_by_a_clean_run(write_notebook):
    cells = ["print(TIER, DATASET, SEED)", "import os; print(os.environ['SSLCOURSE_HEADLESS'], len(os.listdir(RESULTS_DIR or '.')))"]
    path = write_notebook("01_first.ipynb", cells[0], "import tempfile; assert tempfile.gettempdir() in RESULTS_DIR")
    parameters = nbformat.read(path, as_version=4).cells[1].source
    runner.store(path, tier="smoke", progress=False)
    assert notebook_files.problems(path) == []
    notebook = nbformat.read(path, as_version=4)
    assert [cell.source for cell in notebook.cells[1:3]] == [parameters, cells[0]]
    assert notebook.cells[2].outputs[0].text == "smoke toybox 0\n"


def test_a_run_that_fails_leaves_the_file_as_it_was(write_notebook):
    path = write_notebook("01_first.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CourseError, match="01_first.ipynb was not stored, because cell .*ZeroDivisionError"):
        runner.store(path, tier="smoke", progress=False)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
