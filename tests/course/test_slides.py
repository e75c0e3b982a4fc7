import base64
import re
import struct
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from sslcourse.course import notebook_files, selection
from sslcourse.course.commands import main as cli
from sslcourse.course.pages import slides
from sslcourse.errors import CourseError

pytest.importorskip("markdown_it", reason='the extra "site" is not installed')
slide_cells = pytest.importorskip("sslcourse.course.pages.slide_cells")

SOLUTION = {"tags": ["solution"], "jupyter": {"source_hidden": True}, "cellView": "form"}


def figure(width=600, height=300, alt="a curve"):
    head = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", width, height)).decode()
    return new_output("display_data", data={"text/html": f'<img alt="{alt}" src="data:image/png;base64,{head}AAAA">'})


def deck(*cells):
    notebook = nbformat.v4.new_notebook(cells=[new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return slide_cells.deck(notebook)


def kinds(notebook):
    return [(cell.metadata["slideshow"]["slide_type"], cell.source.splitlines()[0] if cell.source else "") for cell in notebook.cells]


def visible(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.metadata["slideshow"]["slide_type"] != "notes")


def notes(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.metadata["slideshow"]["slide_type"] == "notes")


def test_headings_begin_slides():
    made = deck(new_markdown_cell("# Lesson\n\nText.\n\n## One\n\nText.\n\n### Below\n\nText."))
    begun = [kind for kind in kinds(made) if kind[0] != "-"]
    assert begun == [("slide", "# Lesson"), ("slide", "## One"), ("subslide", "### Below")]
    assert made.metadata["title"] == "Lesson"


def test_set_up_records_explorers_and_solutions_are_left_out():
    made = deck(
        new_markdown_cell("# Lesson\n\n## Set-up\n\nThe next cell holds every setting."),
        "import sys",
        new_code_cell("TIER = 'auto'", metadata={"tags": ["parameters"]}),
        "lesson = start(1, tier=TIER)",
        new_markdown_cell("## Idea"),
        new_code_cell("# Solution of exercise 1.1\nsecret = 1", metadata=SOLUTION),
        "explore(draw, a=(0, 1))",
        "lesson.record_runs('x', [])",
        "report()",
        "x = 1  # kept",
    )
    text = "\n".join(cell.source for cell in made.cells)
    for gone in ("import sys", "TIER", "start(", "Set-up", "setting", "secret", "explore", "record_runs", "report"):
        assert gone not in text, gone
    assert "x = 1  # kept" in text and "## Idea" in text


def test_a_record_keeps_its_table_and_not_its_code():
    table = new_output("execute_result", data={"text/html": "<table><tr><td>1</td></tr></table>"})
    made = deck(new_code_cell("lesson.record_runs('x', [])", outputs=[new_output("stream", text="written"), table]))
    assert "record_runs" not in visible(made) and [len(cell.outputs) for cell in made.cells if cell.cell_type == "code"] == [1]


def test_a_hint_is_in_the_notes_and_the_exercise_alone_on_its_slide():
    task = "### Exercise 1.1: a loss\n\n*About 5 minutes.*\n\n" + "Write it without a loop. " * 20
    made = deck(
        new_markdown_cell(task),
        new_code_cell("@exercise('1.1')\ndef loss(x):\n    ...", outputs=[new_output("display_data", data={"text/html": "Not attempted"})]),
        new_markdown_cell("<details><summary>Hint</summary>\n\nUse `sum`.\n\n* one\n\n</details>"),
        "check = loss(1)",
    )
    assert visible(made).count("Write it without a loop.") == 20  # in full, however long
    assert "Use `sum`." in notes(made) and "Use `sum`." not in visible(made) and "Not attempted" not in str(made.cells)
    order = [kind for kind, _ in kinds(made)]
    assert order.index("notes") < order.index("subslide")  # of the exercise's own slide
    begun = [name for kind, name in kinds(made) if kind in ("slide", "subslide")]
    assert begun == ["### Exercise 1.1: a loss", '<p class="again">Exercise 1.1: a loss</p>']
    assert kinds(made).index(("-", "check = loss(1)")) > kinds(made).index(("subslide", begun[1]))


def test_the_answers_of_a_quiz_are_in_the_notes():
    made = deck(
        new_markdown_cell(
            "## Quiz\n\n**Why?**\n\n<details><summary>Because.</summary>Right.</details>\n<details><summary>No.</summary>Wrong.</details>"
        )
    )
    assert "* Because.\n* No." in visible(made) and "Right." not in visible(made) and "**Because.** Right." in notes(made)


def test_a_long_paragraph_is_shortened_and_whole_in_the_notes():
    text = "This sentence has a number, 0.5, and a formula $a. b$ in it. " * 8 + "The end."
    made = deck(new_markdown_cell(f"## One\n\n{text}\n\n$$ x = 1 $$\n\nShort."))
    assert text in notes(made) and "The end." not in visible(made) and "$$ x = 1 $$" in visible(made) and "Short." in visible(made)
    short = slide_cells.first_sentences(text)
    assert slide_cells.KEPT <= len(short) < 2 * slide_cells.KEPT and short.endswith("in it.")
    closed = slide_cells.first_sentences("A" * 185 + " is $1. 2. 3. 4. 5. 6. 7$ and so on. " + "B" * 200)
    assert closed.count("$") == 2 and closed.endswith("so on.")


def test_long_code_is_cut_between_statements():
    one = "def f{0}():\n" + "\n".join(f"    x{row} = {row}" for row in range(14))
    made = deck("\n\n\n".join(one.format(number) for number in range(3)))
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert [re.findall(r"def f\d", cell.source) for cell in code] == [["def f0"], ["def f1"], ["def f2"]]
    assert sum(kind in ("slide", "subslide") for kind, _ in kinds(made)) == 3


def test_code_that_only_draws_gives_way_to_its_figure():
    made = deck(
        new_code_cell('plots.lines([1], title="x")', outputs=[figure()]),
        new_code_cell("def f():\n    pass\n\n\nsay(f())", outputs=[figure()]),
    )
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert [bool(cell.outputs) for cell in code] == [True, False, True] and "plots" not in visible(made) and "say(" not in visible(made)
    assert all(slide_cells.OUTPUT_ONLY in cell.metadata["tags"] for cell in code if cell.outputs)


def test_links_lead_to_slides_or_become_words():
    notebook = nbformat.v4.new_notebook(
        cells=[new_markdown_cell("A [view](GLOSSARY.md#view), [next](02_b.ipynb), [paper](https://e.example/p).")]
    )
    source = slide_cells.deck(notebook, {"02_b.ipynb": "02_b.slides.html"}).cells[0].source
    assert source == "A view, [next](02_b.slides.html), [paper](https://e.example/p)."


@pytest.mark.parametrize("path", selection.find_notebooks(), ids=lambda path: path.stem)
def test_every_figure_and_heading_of_a_lesson_is_on_a_slide_and_no_solution_is(path):
    notebook = notebook_files.load(path)
    before = str(notebook)
    made = slide_cells.deck(notebook)
    assert str(notebook) == before
    shown = "".join(str(cell.get("outputs", "")) for cell in made.cells)
    assert shown.count("data:image/png") == str([cell.get("outputs", "") for cell in notebook.cells]).count("data:image/png") > 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^#{1,3} (?!Set-up).+$", cell.source, flags=re.M):
                assert heading in visible(made), heading
            for hint in re.findall(r"<summary>Hint</summary>(.*?)</details>", cell.source, flags=re.S):
                assert re.sub(r"\[([^\[\]]+)\]\([^()]+\)", r"\1", hint.strip()) in notes(made), hint
        elif "solution" in notebook_files.tags(cell):
            assert cell.source.splitlines()[1] not in visible(made)
    assert "<details" not in visible(made) and "Not attempted" not in shown
    assert len([kind for kind, _ in kinds(made) if kind in ("slide", "subslide")]) < 100


@pytest.fixture
def reveal(tmp_path):
    """What stands in for a copy of reveal.js."""
    folder = tmp_path / "package"
    for name in ("dist/reveal.js", "dist/reveal.js.map", "dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js", "LICENSE"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def lesson(write_notebook):
    """One small lesson with a figure and a formula; gives its folder."""
    pytest.importorskip("nbconvert", reason='the extra "site" is not installed')
    try:
        slides.site.mathjax()
    except CourseError as error:
        pytest.skip(str(error))
    return write_notebook("01_first.ipynb", new_markdown_cell("## One\n\n$x^2$"), new_code_cell("draw_it()", outputs=[figure()])).parent


def test_slides_with_a_local_reveal_load_nothing_from_elsewhere(lesson, reveal, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["slides", "1", "--out", str(out), "--reveal", str(reveal), "--notebooks", str(lesson)]) == 0
    text = (out / "01_first.slides.html").read_text()
    loaded = re.findall(r"<(?:script|link|img)\b[^>]*?(?:src|href)=\"([^\"]+)\"", text)
    files = [name for name in loaded if not name.startswith("data:")]
    assert "reveal.js/plugin/notes/notes.js" in files and all((out / name).is_file() for name in files), files
    assert "import mermaid" not in text and 'alt="a curve"' in text and "draw_it()" not in text
    assert (out / "reveal.js" / "LICENSE").is_file() and not (out / "reveal.js" / "dist" / "reveal.js.map").exists()
    assert 'href="01_first.slides.html"' in (out / "index.html").read_text() and "network" not in capsys.readouterr().out
    cli.main(["slides", "--out", str(out), "--reveal", str(reveal), "--notebooks", str(lesson)])  # earlier slides are replaced
    (out / "mine.txt").write_text("")
    assert cli.main(["slides", "--out", str(out), "--reveal", str(reveal), "--notebooks", str(lesson)]) == 1
    assert "mine.txt" in capsys.readouterr().err


def test_slides_without_a_local_reveal_say_that_they_need_the_network(lesson, tmp_path, capsys):
    assert cli.main(["slides", "--out", str(tmp_path / "out"), "--notebooks", str(lesson)]) == 0
    assert "from the network" in capsys.readouterr().out and not (tmp_path / "out" / "reveal.js").exists()


def test_a_folder_that_is_not_reveal_is_refused_before_anything_is_written(lesson, reveal, tmp_path, capsys):
    (reveal / "dist" / "reveal.css").unlink()
    assert cli.main(["slides", "--out", str(tmp_path / "out"), "--reveal", str(reveal), "--notebooks", str(lesson)]) == 1
    assert "reveal.css" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (reveal / "dist" / "reveal.css").write_text("")
    (reveal / "plugin" / "notes" / "notes.js").rename(reveal / "dist" / "notes.js")
    with pytest.raises(CourseError, match="notes.js"):
        slides.find_notes(reveal)
    (reveal / "dist" / "plugin").mkdir()
    (reveal / "dist" / "plugin" / "notes.js").write_text("")
    assert slides.find_notes(Path(reveal)) == "dist/plugin/notes.js"  # as in version 6
    assert cli.main(["slides", "9", "--out", str(tmp_path / "out"), "--reveal", str(reveal), "--notebooks", str(lesson)]) == 1
