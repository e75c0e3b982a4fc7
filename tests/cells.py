"""The code cells of a lesson, run in this process: without Jupyter, and with whatever a test has put in the place of things."""

import json
import linecache
import os
import sys
import types
from pathlib import Path

import matplotlib

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def run(path: Path, **parameters) -> dict:
    """The names that the lesson leaves. parameters take the place of those in its cell. An error goes up, with the number of the cell."""
    matplotlib.use("agg")
    module = sys.modules["cells_of_a_lesson"] = types.ModuleType("cells_of_a_lesson")  # where dataclasses look for their names
    module.display = lambda *shown: None
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        source, name = "".join(cell["source"]), f"<{path.stem}, cell {number}>"
        linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # where `inspect` looks for it
        try:
            exec(compile(source, name, "exec"), vars(module))
        except BaseException as error:
            error.add_note(f"in cell {number} of {path.name}")
            raise
        if "parameters" in cell["metadata"].get("tags", ()):
            vars(module).update(parameters)
    return vars(module)


def leave_out(path: Path, unless: tuple[str, ...]) -> None:
    """Skip the test of a lesson that is not among these, by number; SSLCOURSE_TEST_LESSONS=all tests every one, for some minutes more."""
    if path.name[:2] not in unless and os.environ.get("SSLCOURSE_TEST_LESSONS") != "all":
        import pytest  # here, as `run` is used where there is none

        pytest.skip("SSLCOURSE_TEST_LESSONS is not 'all'")
