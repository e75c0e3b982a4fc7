"""The pages as a reader opens them: from disk, in a browser without a network."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LESSONS = [path.stem for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"  # slides hide it, and lack it


@pytest.fixture
def reader(chromium):
    """reader(width, color_scheme=...) -> a page without a network; afterwards no error may have come up, nor a request to elsewhere."""
    contexts, wrong = [], []

    def asked(request, how=""):
        if request.url != BADGE and (how or request.url.startswith("http")):
            wrong.append(how + request.url[:200])

    def reader(width=1280, **options):
        contexts.append(chromium.new_context(offline=True, viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: asked(request, "failed: "))
        page.on("request", asked)
        return page

    yield reader
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pages of the stored lessons."""
    pytest.importorskip("myst_nb", reason='pip install -e ".[site]"')
    out = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-c", ROOT / "docs", ROOT / "notebooks", out], check=True)
    return out


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_every_page_opens_in_full(folder, reader, width, scheme):
    page = reader(width, color_scheme=scheme)
    for path in sorted(folder.glob("*.html")):
        page.goto(path.as_uri())
        formulas = page.locator("span.math, div.math").count()
        if formulas:
            page.wait_for_function(f"document.querySelectorAll('mjx-container').length === {formulas}")
            assert page.locator("[data-mjx-error]").count() == 0, path.name
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{path.name} is wider than {width}"
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0 && image.alt)"), path.name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(",")[:3])) > 384) == (scheme == "light"), background


def test_the_search_finds_false_negatives(folder, reader):
    page = reader()
    page.goto((folder / "index.html").as_uri())
    page.locator("input[name=q]").first.fill("false negatives")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.innerText.includes('found')")
    found = page.locator("#search-results li a")
    assert any("03_simclr.html" in link.get_attribute("href") for link in found.all())
    found.first.click()
    page.wait_for_load_state("load")
    assert "search.html" not in page.url


def test_solutions_and_hints_are_folded_and_open(folder, reader):
    page = reader()
    page.goto((folder / f"{LESSONS[0]}.html").as_uri())
    for summary in ("Solution of exercise", "Hint"):
        folded = page.locator("details", has=page.locator("summary", has_text=summary)).first
        content = folded.locator("xpath=./*[not(self::summary)]").first
        assert not content.is_visible()
        folded.locator("summary").click()
        assert content.is_visible()
