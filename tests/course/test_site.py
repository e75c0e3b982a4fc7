"""The lessons as pages, as slides and in exports: what Sphinx and nbconvert make of notebooks."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nbconvert.exporters import LatexExporter, MarkdownExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from sslcourse.course import notebook_files

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
needs_site = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("myst_nb", "furo", "nbconvert", "sphinx-mathjax-offline")),
    reason='the extra "site" is not installed',
)


def sphinx(source, out):
    """Make pages as `make site` does; -> the finished process."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs", "-d", out / "doctrees", source, out]
    return subprocess.run(command, capture_output=True, text=True)


def loaded(page: str) -> list[str]:
    """The addresses that a page would fetch by itself."""
    return [*re.findall(r'<(?:script|img|iframe)\b[^>]*?\bsrc="([^"]+)', page), *re.findall(r'<link\b[^>]*?\bhref="([^"]+)', page)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder with the pages of the stored lessons."""
    out = tmp_path_factory.mktemp("site")
    done = sphinx(ROOT / "notebooks", out)
    assert done.returncode == 0, done.stderr  # a dead link is one
    return out


@needs_site
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_shows_every_figure_folds_solutions_and_loads_nothing_from_elsewhere(pages, path):
    page = (pages / f"{path.stem}.html").read_text(encoding="utf-8")
    notebook = notebook_files.load(path)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    stored = sum("".join(output.get("data", {}).get("text/html", "")).count("<img ") for output in outputs)
    assert page.count('src="data:image/png') == stored > 0
    folded = re.findall(r"<details.*?</details>", page, flags=re.DOTALL)
    assert not any(re.match(r"<details[^>]*\bopen\b", block) for block in folded)
    solutions = [block for block in folded if "Solution of exercise" in block]
    assert len(solutions) == sum("solution" in notebook_files.tags(cell) for cell in notebook.cells) > 0
    assert page.count("solution_") == sum(block.count("solution_") for block in solutions) > 0
    assert 'href="GLOSSARY.html#' in page and "Open in Colab" in page and "tex-svg-full.js" in page
    assert not [address for address in loaded(page) if address.startswith(("http", "//"))]


@needs_site
@pytest.mark.parametrize("dead", [[], ["[x](gone.md)", "[x](other.md#nowhere)", "[x](#here)", "![x](gone.png)"]], ids=["fine", "dead"])
def test_a_dead_link_is_an_error(tmp_path, dead):
    (tmp_path / "pages").mkdir()
    page = "# Pages\n\n[fine](other.md#view)\n\n{}\n\n```{{toctree}}\nother\n```\n"
    (tmp_path / "pages" / "index.md").write_text(page.format("\n\n".join(dead)))
    (tmp_path / "pages" / "other.md").write_text('# Other\n\n<a id="view"></a>**View.** See [itself](#view) and [above](#other).\n')
    done = sphinx(tmp_path / "pages", tmp_path / "out")
    assert (done.returncode != 0) == bool(dead), done.stderr
    assert done.stderr.count("WARNING") == len(dead), done.stderr


@needs_site
def test_slides_follow_the_metadata_and_need_nothing_but_reveal(tmp_path, write_notebook):
    def cell(text, kind="-", *tags, **more):
        make = new_code_cell if more or tags else new_markdown_cell
        return make(text, metadata={"slideshow": {"slide_type": kind}, "tags": list(tags)}, **more)

    figure = new_output("display_data", data={"text/html": '<img alt="a red square" src="data:image/png;base64,AA">'})
    path = write_notebook(
        "03_x.ipynb", cell("## First $x^2$", "slide"), cell("draw_it()", "subslide", "slides-hide-input", outputs=[figure]),
        cell("@exercise('3.1')", "-", "slides-hide-output", outputs=[new_output("stream", text="not attempted")]), cell("a hint", "notes"),
        cell("secret = 1", "skip", "solution"), parameters=None,
    )
    config = ROOT / "docs" / "slides" / "nbconvert_config.py"
    command = [sys.executable, "-m", "nbconvert", "--to", "slides", "--config", config, "--reveal-prefix", "reveal.js", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    page = (path.parent / "03_x.slides.html").read_text(encoding="utf-8")
    body = page[page.index('<div class="slides">') :]
    assert body.count("<section>") == 2 + 3  # two stacks, of one and of two slides
    assert "draw_it" not in body and "not attempted" not in body and "secret" not in body
    assert 'alt="a red square"' in body and re.search(r'<aside class="notes">.*a hint', body, flags=re.DOTALL)
    assert set(loaded(page)) == {
        "reveal.js/dist/reveal.css", "reveal.js/dist/theme/white.css", "reveal.js/dist/reveal.js",
        "reveal.js/plugin/notes/notes.js", "data:image/png;base64,AA",
    }  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_solution_is_on_a_page_or_a_slide_unfolded(path):
    cells = notebook_files.load(path).cells
    assert cells[0].metadata["slideshow"]["slide_type"] == "slide"
    for cell in cells:
        kind, tags = cell.metadata.get("slideshow", {}).get("slide_type"), notebook_files.tags(cell)
        if "solution" in tags:
            assert kind == "skip" and "hide-input" in tags
        if cell.source.startswith("<details><summary>Hint"):
            assert kind == "notes"
        if "@exercise(" in cell.source:
            assert kind != "skip" and "slides-hide-output" in tags


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exports_keep_every_figure_and_do_not_ask_latex_for_the_badge(path):
    notebook = notebook_files.load(path)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    figures = [output for output in shown if "<img" in output.data.get("text/html", "")]
    assert figures == [output for output in shown if "image/png" in output.data]
    alone = new_notebook(cells=[new_code_cell(outputs=figures)])  # texts would need pandoc
    text, files = LatexExporter().from_notebook_node(alone)
    assert text.count(r"\adjustimage{max size") == len(files["outputs"]) == len(figures) > 0
    page, _ = MarkdownExporter().from_notebook_node(notebook)
    assert len(re.findall('<img alt="[^"]{20,}" style="[^"]*" src="data:image/png', page)) == len(figures)
    assert "@exercise" in page and "def solution_" not in page
    assert not [cell for cell in notebook.cells if cell.cell_type == "markdown" and re.search(r"!\[[^]]*\]\(http", cell.source)]
