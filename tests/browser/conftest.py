"""What the tests in a browser share: a Chromium, and a JupyterLab of their own. They run only when asked for, with -m browser."""

import shutil
from pathlib import Path

import pytest

from sslcourse import datasets

HERE = Path(__file__).resolve().parent


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
def toybox(tmp_path_factory):
    """A folder with toybox, drawn beforehand."""
    folder = tmp_path_factory.mktemp("data")
    datasets.load("toybox", folder)
    return folder
