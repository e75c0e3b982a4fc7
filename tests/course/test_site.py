import base64
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from sslcourse.course import selection
from sslcourse.course.commands import main as cli
from sslcourse.course.pages import made_folders, page_links, site, site_pages
from sslcourse.errors import CourseError

ROOT = Path(__file__).resolve().parents[2]
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")


def installed():
    try:
        site.check_installed()
    except CourseError as error:
        pytest.skip(str(error))


@pytest.fixture
def course(write_notebook, tmp_path):
    """A course of two lessons with a README, a glossary and a picture, in tmp_path; gives its folder of notebooks."""
    figure = new_output("display_data", data={"text/html": '<img alt="a red square" src="data:image/png;base64,AA"> 5 ± 1 %'})
    solution = {"tags": ["solution"], "jupyter": {"source_hidden": True}, "cellView": "form"}
    badge = "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/1)"
    write_notebook(
        "01_first.ipynb",
        new_markdown_cell(
            f"{badge}\n\nA [view](GLOSSARY.md#view), then [lesson 2](02_second.ipynb#The-Loss,-in-words). $x^2$ false negatives"
        ),
        new_markdown_cell("## Set-up"),
        "import sys  # plumbing",
        new_markdown_cell("## Exercise 1.1\n\n<details><summary>Hint</summary>\n\nThink of **squares**.\n\n</details>"),
        new_code_cell("# Solution of exercise 1.1\nanswer = 42", metadata=solution),
        new_code_cell("draw()", outputs=[figure]),
    )
    write_notebook("02_second.ipynb", new_markdown_cell("## The Loss, in words\n\nText. [Home](../README.md) [a file](../pyproject.toml)"))
    (tmp_path / "notebooks" / "pictures").mkdir()
    (tmp_path / "notebooks" / "pictures" / "lesson_1.png").write_bytes(PIXEL)
    (tmp_path / "notebooks" / "GLOSSARY.md").write_text('# Glossary\n\n<a id="view"></a>**View.** One of two. See [view](#view).\n')
    picture = '<img src="notebooks/pictures/lesson_1.png" alt="a curve">'
    table = f"| lesson | question |\n|---|---|\n| [1 First](notebooks/01_first.ipynb) <br> {picture} | How far? |"
    (tmp_path / "README.md").write_text(f"# A course\n\nWhat it is.\n\n## Lessons\n\n{table}\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[project.urls]\nRepository = "https://github.com/someone/x"\n')
    return tmp_path / "notebooks"


@pytest.fixture
def pages(course, tmp_path):
    """The site of that course."""
    installed()
    return site.build(tmp_path / "out", course)


def test_a_site_has_every_page_and_no_dead_link_and_loads_nothing_from_elsewhere(pages):
    names = {path.relative_to(pages.folder).as_posix() for path in pages.folder.rglob("*.html")}
    assert {"index.html", "README.html", "notebooks/01_first.html", "notebooks/02_second.html", "notebooks/GLOSSARY.html"} <= names
    assert pages.links.problems == [] and pages.warnings == [], (pages.links.problems, pages.warnings)
    assert {"https://colab.example/1", "https://github.com/someone/x/blob/main/pyproject.toml"} <= set(pages.links.outside)
    for path in pages.folder.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", path.read_text()), path


def test_a_lesson_keeps_its_figures_and_folds_solutions_and_set_up(pages):
    text = (pages.folder / "notebooks" / "01_first.html").read_text()
    assert 'alt="a red square"' in text and "badge.svg" not in text and "Open in Colab" in text
    assert "5\u00a0±\u00a01\u00a0%" in text
    for summary, code in (("Solution of exercise 1.1", "answer"), ("Code of the set-up", "plumbing")):
        folded = next(block for block in re.findall(r"<details.*?</details>", text, flags=re.S) if summary in block)
        assert code in folded and not re.match(r"<details[^>]*\bopen\b", folded)
    hint = next(block for block in re.findall(r"<details.*?</details>", text, flags=re.S) if "Hint" in block)
    assert "<strong>squares</strong>" in hint
    assert 'href="02_second.html#the-loss-in-words"' in text and 'href="GLOSSARY.html#view"' in text
    assert 'class="math' in text and "tex-svg-full.js" in text


def test_the_contents_page_shows_question_picture_and_alt_text(pages):
    text = (pages.folder / "index.html").read_text()
    assert "How far?" in text and 'alt="a curve"' in text and "What it is." in text
    assert re.search(r'href="notebooks/01_first.html"', text) and "How far" not in (pages.folder / "notebooks/02_second.html").read_text()


def test_the_search_knows_the_words_of_the_lessons(pages):
    index = (pages.folder / "searchindex.js").read_text()
    terms = json.loads(index[index.index("{") : index.rindex("}") + 1])["terms"]
    assert any(term.startswith("neg") for term in terms) and any(term.startswith("fals") for term in terms)
    assert "SHOW_SEARCH_SUMMARY = false" in (pages.folder / "_static" / "site.js").read_text()


def test_an_earlier_site_is_replaced_and_other_folders_are_left_alone(course, tmp_path):
    installed()
    out = tmp_path / "out"
    site.build(out, course)
    (course / "02_second.ipynb").unlink()
    assert not (site.build(out, course).folder / "notebooks/02_second.html").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CourseError, match="notes.txt"):
        site.build(out, course)
    assert (out / "notes.txt").read_text() == "mine" and (out / "index.html").exists()
    with pytest.raises(CourseError, match="01_first.ipynb"):
        site.build(course, course)
    assert not list(tmp_path.glob(".*.part"))


def test_a_failure_of_sphinx_is_one_sentence_and_the_earlier_site_stays(course, tmp_path, monkeypatch, capsys):
    installed()
    site.build(tmp_path / "out", course)
    failed = subprocess.CompletedProcess([], 2, "", "Extension error:\nno such theme\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert cli.main(["site", "--out", str(tmp_path / "out"), "--notebooks", str(course)]) == 1
    assert "no such theme" in capsys.readouterr().err and (tmp_path / "out" / "index.html").exists()


def test_missing_packages_are_named_with_the_way_to_get_them(course, tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("furo", "myst_nb") else real(name))
    assert cli.main(["site", "--out", str(tmp_path / "out"), "--notebooks", str(course)]) == 1
    said = capsys.readouterr().err
    assert "furo" in said and "myst-nb" in said and ".[site]" in said and not (tmp_path / "out").exists()


def test_the_command_lists_links_and_fails_for_dead_ones(course, tmp_path, capsys):
    installed()
    (course / "GLOSSARY.md").write_text("# Glossary\n\n[gone](#nowhere)\n")
    assert cli.main(["site", "--out", str(tmp_path / "out"), "--notebooks", str(course), "--list-links"]) == 1
    shown = capsys.readouterr()
    assert "https://colab.example/1" in shown.out and "index.html" in shown.out
    assert "nowhere" in shown.err and "view" in shown.err  # lesson 1 points to an entry that is gone


def test_dead_links_missing_anchors_and_files_from_elsewhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a><a href="b.html#not">2</a><a href="c.html">3</a><a href="#here">4</a><p id="here"></p>'
        '<a href="mailto:x@y">5</a><img src="data:image/png;base64,AA"><img src="gone.png"><script src="https://cdn.example/x.js"></script>'
    )
    (tmp_path / "b.html").write_text(
        '<a name="there"></a><link rel="stylesheet" href="//fonts.example/a.css"><a href="https://outside.example">6</a>'
    )
    found = page_links.check(tmp_path)
    assert found.outside == {"https://outside.example": {"b.html"}}
    assert len(found.problems) == 5
    for part in ("b.html#not", "c.html", "gone.png", "cdn.example", "fonts.example"):
        assert sum(part in problem for problem in found.problems) == 1, part


def test_text_is_changed_outside_code_only(course):
    pages = site_pages._Pages(course.parent, course, {course / "GLOSSARY.md"})
    path = course / "GLOSSARY.md"
    code = "```\n[a](../pyproject.toml) 5 ± 1 %\n```"
    assert pages.text(code, path) == code
    assert pages.text("![x](https://e.example/p.png) 5 ± 1 %", path) == "[x](https://e.example/p.png) 5\u00a0±\u00a01\u00a0%"
    assert pages.text("[x](#K-means,-twice)", path) == "[x](#k-means-twice)"
    assert pages.text("[x](gone.md)", path) == "[x](gone.md)"  # for the check of links to find


def test_columns_of_sentences_are_marked():
    row = '<td style="text-align:left">5</td><td style="text-align:left">a sentence that is longer than a word</td>'
    assert re.findall('class="long"[^>]*>(.*?)<', site_pages.widen_long_cells(row)) == ["a sentence that is longer than a word"]


def test_an_interrupted_folder_leaves_nothing_behind(tmp_path):
    with made_folders.replacing(tmp_path / "out", "site") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), made_folders.replacing(tmp_path / "out", "site") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "old").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(CourseError, match="old"):
        made_folders.check(tmp_path / "out", "slides")  # another kind
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="is a file"):
        made_folders.check(tmp_path / "file", "site")


def test_the_stored_lessons_make_a_site_without_a_dead_link(tmp_path):
    installed()
    made = site.build(tmp_path / "site")
    assert made.links.problems == [], "\n".join(made.links.problems)
    assert made.warnings == [], "\n".join(made.warnings)
    for notebook in selection.find_notebooks():
        stored = sum(output.count("<img ") for output in re.findall(r'"text/html": \[(.*?)\]\n', notebook.read_text(), flags=re.S))
        page = (made.folder / "notebooks" / f"{notebook.stem}.html").read_text()
        assert page.count('src="data:image/png') == stored > 0
