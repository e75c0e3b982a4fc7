"""TEACHING.md and GLOSSARY.md agree with what they speak of: sections, exercises, cells, numbers, commands, links and terms."""

import functools
import re
from itertools import takewhile
from pathlib import Path

import nbformat
import pytest

from sslcourse import results
from sslcourse.course.commands import main as cli
from sslcourse.course.exercises import lesson_exercises

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
TEACHING, GLOSSARY = (FOLDER / name for name in ("TEACHING.md", "GLOSSARY.md"))
LESSONS = {int(path.name[:2]): path for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))}
each_lesson = pytest.mark.parametrize("number", LESSONS)


@functools.cache
def cells(number: int) -> list:
    return nbformat.read(LESSONS[number], 4).cells


def prose(number: int) -> str:
    return "\n".join(cell.source for cell in cells(number) if cell.cell_type == "markdown")


def everything_shown(number: int) -> str:
    """Prose and outputs of a stored lesson, without Markdown's stars; of a figure, its alt text."""
    parts = [prose(number)]
    for output in (output for cell in cells(number) for output in cell.get("outputs", [])):
        parts += [output.get("text", ""), *(output.get("data", {}).get(f"text/{kind}", "") for kind in ("markdown", "plain"))]
    return "\n".join(parts).replace("*", "").replace("\\", "")


def chapters() -> dict[int, str]:
    """What TEACHING.md says about each lesson; 0: about the whole."""
    parts = re.split(r"^## Lesson (\d)$", TEACHING.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {0: parts[0]} | {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def table(text: str, header: str) -> list[list[str]]:
    """The rows of the Markdown table with this header line."""
    rows = takewhile(lambda line: line.startswith("|"), text.split(f"{header}\n", 1)[1].splitlines()[1:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@each_lesson
def test_a_plan_fills_ninety_minutes_with_sections_that_are_in_the_lesson(number):
    plan = table(chapters()[number], "| minutes | what happens | sections | who |")
    assert sum(int(row[0]) for row in plan) == 90
    named = [title for row in plan if row[2] != "–" for title in row[2].split(" · ")]
    titles = re.findall(r"^##+ (.+)$", prose(number), flags=re.MULTILINE)
    titles += [title.partition(":")[0] for title in titles if title.startswith("Exercise ")]  # which may be named by its number alone
    assert len(named) > 5 and [title for title in named if title not in titles] == []


@each_lesson
def test_a_chapter_lists_the_exercises_as_they_are(number):
    rows = table(chapters()[number], "| exercise | difficulty | minutes | what the hints catch |")
    wanted = [[f"{task.id} {task.title}", "★" * task.difficulty, str(task.minutes)] for task in lesson_exercises(number).values()]
    assert [row[:3] for row in rows] == wanted and all(row[3] for row in rows)


@each_lesson
def test_cells_that_a_chapter_names_are_in_the_lesson(number):
    named, sources = re.findall(r"begins `([^`]+)`", chapters()[number]), [c.source for c in cells(number) if c.cell_type == "code"]
    assert named and [start for start in named if not any(source.startswith(start) for source in sources)] == []


# a decimal, a number with thousands, a share: 57.1, 5.3e+08, 1,290, 82 %
NUMBER = re.compile(r"(?<![\d.,])(?:\d+\.\d+(?:e[+-]\d+)?|\d{1,3}(?:,\d{3})+|\d+ %)(?!\d)")


@each_lesson
def test_numbers_of_a_chapter_are_shown_by_the_lesson(number):
    named = [n for n in NUMBER.findall(re.sub(r"`[^`]*`", "", chapters()[number])) if n not in lesson_exercises(number)]
    shown = everything_shown(number).replace(" percent", " %")
    missing = [n for n in named if not re.search(rf"(?<![\d.,]){re.escape(n)}(?!\d|[.,]\d)", shown)]
    assert len(named) > 5 and missing == [], "numbers in TEACHING.md that the stored lesson does not show"


def test_no_lesson_took_more_memory_than_the_pages_say_on_two_cores():
    assert [row[0][1] for row in table(chapters()[0], "| lesson | smoke | cpu |")] == [str(number) for number in LESSONS]
    measured = [results.measured_costs(number)["cpu"] for number in LESSONS]
    assert all(costs["peak_memory"] < 2.4e9 and costs["cores"] == 2 for costs in measured)


def test_commands_exist_with_their_options(capsys):
    named = [typed.split() for typed in re.findall(r"`python -m sslcourse ([^`]+)`", chapters()[0])]
    assert {"run", "handout", "results"} <= {words[0] for words in named}
    for words in named:
        assert cli.main([words[0], "--help"]) == 0, " ".join(words)
        told = capsys.readouterr().out
        assert [word for word in words if word.startswith("--") and word not in told] == [], " ".join(words)


def anchors(path: Path) -> set[str]:
    """Fragments that lead somewhere in a Markdown file: HTML ids, and headings as GitHub names them."""
    text = path.read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return set(re.findall(r'<a id="([^"]+)"></a>', text)) | {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(text: str, page: Path) -> list[str]:
    dead = []
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (fragment and target.suffix == ".md" and fragment not in anchors(target)):
            dead.append(link)
    return dead


PAGES = [TEACHING, GLOSSARY, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/RESULTS.md"))]


@pytest.mark.parametrize("page", [*PAGES, *LESSONS.values()], ids=lambda page: page.name)
def test_every_link_within_the_project_leads_somewhere(page):
    text = page.read_text(encoding="utf-8") if page.suffix == ".md" else prose(int(page.name[:2]))
    assert dead_links(text, page) == []


ENTRY = re.compile(r'^((?:<a id="[^"]+"></a>)+)\*\*(.+?)\*\*(.*) \[Lesson (\d)\]\((\S+)\)$', flags=re.MULTILINE)
# how a lesson says it, where it uses other words than the headword and its synonyms
SAID_AS = {"Label efficiency": "worth in labels", "Leak": "leaks", "Frozen features": "frozen", "Rotation prediction": "rotations"}


def entries() -> list[tuple[list[str], str, str, int, str]]:
    """(ids, term, the text behind the term, the number of its lesson, the link) of each entry."""
    found = ENTRY.findall(GLOSSARY.read_text(encoding="utf-8"))
    return [(re.findall(r'id="([^"]+)"', ids), term.rstrip("."), text.strip(), int(n), link) for ids, term, text, n, link in found]


def test_glossary_is_in_alphabetical_order_with_an_anchor_each_and_its_terms_are_used_by_the_lesson_named():
    terms = [term for _, term, *_ in entries()]
    assert len(terms) == len(re.findall(r'^<a id="', GLOSSARY.read_text(encoding="utf-8"), flags=re.MULTILINE)), "anchor without entry"
    assert terms == sorted(set(terms), key=lambda term: re.sub(r"[^a-z ]", "", term.lower()))
    ids = [i for own, *_ in entries() for i in own]
    assert len(ids) == len(set(ids))
    for own, term, *_ in entries():
        assert re.sub(r"[^a-z -]", "", term.lower()).replace(" ", "-") in own, f"{term}: no anchor of that name"
    for ids, term, text, number, link in entries():
        assert link == LESSONS[number].name, term
        other_names = re.match(r"\(([^)]*\)?[^)]*?)\)\.|", text)[1]  # in brackets
        said = [SAID_AS.get(term, term), term, *term.split(" and "), *(other_names or "").split(", "), *ids]
        forms = [re.sub(r"[^a-z0-9 ]", " ", name.lower()).strip() for name in said]
        lesson = re.sub(r"[^a-z0-9 ]", " ", prose(number).lower())
        assert any(form and re.search(rf"\b{re.escape(form)}", lesson) for form in forms), f"lesson {number} does not speak of {term}"
