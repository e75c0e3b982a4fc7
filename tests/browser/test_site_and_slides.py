"""The site and the slides as a reader opens them: from disk, in a browser without a network.

The slides need a copy of reveal.js: SSLCOURSE_REVEAL=package, after `npm pack reveal.js@5` and `tar xzf`.
"""

import os
from pathlib import Path

import pytest

from sslcourse.course import selection
from sslcourse.course.pages import site, slides
from sslcourse.errors import CourseError

LESSONS = [path.stem for path in selection.find_notebooks()]


class Reader:
    """A page without a network; `wrong` collects errors of the console, failed files, and whatever is asked of anywhere else."""

    def __init__(self, chromium, **options):
        self.context = chromium.new_context(offline=True, **options)
        self.page = self.context.new_page()
        self.wrong = []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url[:200]}"))
        self.page.on("request", self._asked)

    def _asked(self, request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(request.url)

    def open(self, path: Path, query: str = ""):
        self.page.goto(path.as_uri() + query)
        self.page.wait_for_load_state("load")
        return self.page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site of the stored lessons."""
    try:
        site.check_installed()
    except CourseError as error:
        pytest.skip(str(error))
    return site.build(tmp_path_factory.mktemp("site") / "site").folder


@pytest.fixture
def reader(chromium):
    """reader(width=..., color_scheme=...) -> Reader; afterwards nothing may have gone wrong in any of them."""
    readers = []

    def reader(width=1280, height=900, **options):
        readers.append(Reader(chromium, viewport={"width": width, "height": height}, **options))
        return readers[-1]

    yield reader
    for one in readers:
        one.context.close()
    assert [wrong for one in readers for wrong in one.wrong] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_every_page_opens_in_full(folder, reader, screenshots, width, scheme):
    one = reader(width, color_scheme=scheme)
    for path in sorted(folder.rglob("*.html")):
        page = one.open(path)
        formulas = page.locator("span.math, div.math").count()
        if formulas:
            page.wait_for_function(f"document.querySelectorAll('mjx-container').length === {formulas}")
            assert page.locator("[data-mjx-error]").count() == 0, path.name
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{path.name} is wider than {width}"
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0 && image.alt)"), path.name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(",")[:3])) > 384) == (scheme == "light"), background
        if screenshots:
            page.screenshot(path=str(screenshots / "site" / f"{path.stem}-{width}-{scheme}.png"), full_page=True)


def test_the_search_finds_false_negatives(folder, reader):
    one = reader()
    page = one.open(folder / "index.html")
    page.locator("input[name=q]").first.fill("false negatives")
    page.keyboard.press("Enter")
    found = page.locator("#search-results li a")
    found.first.wait_for()
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.innerText.includes('found')")
    assert any("03_simclr.html" in found.nth(index).get_attribute("href") for index in range(found.count()))
    found.first.click()
    page.wait_for_load_state("load")
    assert "search.html" not in page.url


@pytest.mark.parametrize("stem", LESSONS)
def test_solutions_and_hints_are_folded_and_open(folder, reader, stem):
    page = reader().open(folder / "notebooks" / f"{stem}.html")
    for summary in ("Solution of exercise", "Hint"):
        folded = page.locator("details", has=page.locator("summary", has_text=summary))
        assert folded.count() >= 2
        first = folded.first
        content = first.locator("xpath=./*[not(self::summary)]").first
        assert first.get_attribute("open") is None and not content.is_visible()
        first.locator("summary").click()
        assert content.is_visible()


def test_the_switch_changes_the_colours_and_lessons_follow_each_other(folder, reader):
    one = reader(color_scheme="light")
    page = one.open(folder / "notebooks" / f"{LESSONS[0]}.html")
    seen = set()
    for _ in range(3):  # the system's, light, dark
        seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.locator(".theme-toggle:visible").first.click()
    assert len(seen) == 2
    page.locator("a.next-page").click()
    page.wait_for_load_state("load")
    assert page.url.endswith(f"{LESSONS[1]}.html")
    page.locator("a.prev-page").click()
    page.wait_for_load_state("load")
    assert page.url.endswith(f"{LESSONS[0]}.html")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The slides of all lessons with a local copy of reveal.js."""
    reveal = os.environ.get("SSLCOURSE_REVEAL")
    if not reveal:
        pytest.skip("SSLCOURSE_REVEAL names no copy of reveal.js")
    return slides.export([], tmp_path_factory.mktemp("slides") / "slides", reveal=reveal).folder


@pytest.mark.parametrize("stem", LESSONS)
def test_no_slide_is_too_full_but_for_tables_that_scroll(shown, reader, screenshots, stem):
    page = reader(height=720).open(shown / f"{stem}.slides.html")
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    for number in range(page.evaluate("Reveal.getTotalSlides()")):
        page.wait_for_function("Reveal.getCurrentSlide().dataset.fitted === 'yes'")
        look = (
            "slide => [slide.scrollHeight > slide.clientHeight + 1, slide.querySelector('table') !== null, slide.innerText.includes('$')]"
        )
        full, has_table, has_raw_formula = page.evaluate(f"({look})(Reveal.getCurrentSlide())")
        assert has_table or not full, f"slide {number} of {stem}"
        assert page.evaluate("[...Reveal.getCurrentSlide().querySelectorAll('img')].every(image => image.width > 200 && image.alt)")
        code = page.evaluate("[...Reveal.getCurrentSlide().querySelectorAll('pre')].map(box => box.innerText).join('').includes('$')")
        assert code or not has_raw_formula, f"slide {number} of {stem}"
        if screenshots:
            page.screenshot(path=str(screenshots / "slides" / f"{stem}-{number:03}.png"))
        page.evaluate("Reveal.next()")


def test_the_speakers_notes_open_beside_the_slides(shown, reader):
    one = reader(height=720)
    page = one.open(shown / f"{LESSONS[2]}.slides.html")
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    with one.context.expect_page() as opened:
        page.keyboard.press("s")
    opened.value.wait_for_selector(".speaker-controls-notes:not(.hidden)")
    assert len(opened.value.locator(".speaker-controls-notes").inner_text()) > 100
