"""Shared by the tests of the course's machinery."""

from unittest.mock import Mock

import pytest

from sslcourse.course import lesson as lessons


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No setting of the person who runs the tests reaches them, and no lesson of one test reaches the next."""
    for name in ("TIER", "DEVICE", "DATASET", "DATA_DIR", "RESULTS_DIR", "HEADLESS"):
        monkeypatch.delenv(f"SSLCOURSE_{name}", raising=False)
    monkeypatch.setattr(lessons, "_current", None)


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """lesson.start in an empty folder, which leaves the figures' style to others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sslcourse.plots.use_style", Mock())
    return lessons.start


PARAMETERS = 'TIER = "auto"  # how much to do\nDATASET = "default"\nSEED = 0\nRESULTS_DIR = "default"\n'


@pytest.fixture
def write_notebook(tmp_path):
    """write(name, *cells) -> path: a small lesson with a parameters cell, in tmp_path/notebooks."""
    import nbformat

    def write(name, *cells, parameters=PARAMETERS, metadata=None):
        notebook = nbformat.v4.new_notebook(metadata=metadata or {})
        notebook.cells = [nbformat.v4.new_markdown_cell(f"# {name}")]
        if parameters is not None:
            notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
        notebook.cells += [nbformat.v4.new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
        path = tmp_path / "notebooks" / name
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write


@pytest.fixture
def code_digest(monkeypatch):
    """A digest of the package that stays, whoever is editing it meanwhile; gives the real one."""
    from sslcourse.course import runner

    real = runner.code_digest
    monkeypatch.setattr(runner, "code_digest", lambda: "digest")
    return real


@pytest.fixture
def go(tmp_path, code_digest):
    """runner.run on the test's own notebooks, without progress bars."""
    from sslcourse.course import runner

    def go(chosen=None, **options):
        options = {"tier": "smoke", "out": tmp_path / "out", "notebooks_dir": tmp_path / "notebooks", "progress": False} | options
        return runner.run(chosen, **options)

    return go
