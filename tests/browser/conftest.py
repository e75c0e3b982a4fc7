"""What the tests in a browser share: a Chromium, and a JupyterLab of their own. They run only when asked for:

    python -m pytest -m browser tests/browser

SSLCOURSE_SCREENSHOTS=build/browser also leaves pictures of every lesson, narrow and wide, light and dark.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Whatever lies in this folder has the marker `browser`, which the project's settings leave out by default."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, steered by playwright and without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason='playwright is not installed: pip install -e ".[browser]"')
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on the path: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots() -> Path | None:
    """Where pictures of the lessons are wanted; None where they are not."""
    folder = os.environ.get("SSLCOURSE_SCREENSHOTS")
    return (ROOT / folder).resolve() if folder else None


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory):
    """A JupyterLab with copies of all lessons, at tier smoke on a toybox that was drawn beforehand."""
    if find_spec("jupyterlab") is None or find_spec("jupyterlab_widgets") is None:
        pytest.skip('JupyterLab is not installed: pip install -e ".[lab]"')
    from jupyterlab_server import JupyterLabServer, copies_of

    folder = tmp_path_factory.mktemp("jupyterlab")
    data = folder / "data"
    subprocess.run([sys.executable, "-m", "sslcourse", "data", "--data-dir", str(data)], check=True, cwd=ROOT, capture_output=True)
    notebooks = copies_of(sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), folder / "notebooks")
    environment = {
        "SSLCOURSE_TIER": "smoke", "SSLCOURSE_DATASET": "toybox",
        "SSLCOURSE_DATA_DIR": str(data), "SSLCOURSE_RESULTS_DIR": str(folder / "results"),
        "OMP_NUM_THREADS": "1",  # a second run is compared with the first, and threads add up in any order
    }  # fmt: skip
    with JupyterLabServer(notebooks, folder / "server", environment) as server:
        yield server
