"""Every lesson in a real JupyterLab: opened, run with its controls alive, explored, filled in rightly and wrongly, and run again."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from lab_page import WAITING, LabPage
from lab_server import jupyterlab

from sslcourse.course.handouts.copies import EXERCISE

LESSONS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PATIENCE = 600  # seconds for a whole lesson at tier smoke: far more than it takes, on any machine
NOT_SHOWN = "This setting cannot be shown"  # what an explorer says when the function behind it fails


class OpenLesson(NamedTuple):
    """A lesson in a page, run once."""

    lab: LabPage
    first: list[dict]  # its cells after that run
    exercises: list[tuple[int, re.Match]]  # the index of the cell, and the head of each exercise down to its docstring
    solutions: list[int]


@pytest.fixture(scope="module", params=LESSONS, ids=lambda path: path.stem)
def lesson(request, chromium, toybox, tmp_path_factory):
    """A copy of one lesson, opened and run from top to bottom at tier smoke."""
    pytest.importorskip("jupyterlab", reason='JupyterLab is not installed: pip install -e ".[lab]"')
    folder = tmp_path_factory.mktemp("jupyterlab")
    (folder / "notebooks").mkdir()
    shutil.copyfile(request.param, folder / "notebooks" / request.param.name)
    environment = {
        "SSLCOURSE_TIER": "smoke", "SSLCOURSE_DATASET": "toybox",
        "SSLCOURSE_DATA_DIR": str(toybox), "SSLCOURSE_RESULTS_DIR": str(folder / "results"),
        "OMP_NUM_THREADS": "1",  # a second run is compared with the first, and threads add up in any order
    }  # fmt: skip
    with jupyterlab(folder / "notebooks", folder / "server", environment) as server:
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
        lab = LabPage(context.new_page(), server, request.param.name)
        lab.open()
        outputs = [output for cell in lab.cells() for output in cell["outputs"]]
        stored = sum("".join(output.get("data", {}).get("text/html", "")).count("<img") for output in outputs)
        drawn = "() => [...document.querySelectorAll('.jp-OutputArea-output img')].filter(img => img.naturalWidth).length"
        assert lab.page.evaluate(drawn) >= stored, "some stored figures are not to be seen in a notebook that was only opened"
        lab.run_all(PATIENCE)
        first = lab.cells()
        exercises = [(i, found) for i, cell in enumerate(first) if (found := EXERCISE.match(cell["source"]))]
        yield OpenLesson(lab, first, exercises, [i for i, cell in enumerate(first) if "solution" in cell["tags"]])
        context.close()


def test_runs_from_top_to_bottom_without_an_error(lesson):
    assert lesson.lab.errors() == []
    ran = [cell for cell in lesson.first if cell["type"] == "code" and cell["source"].strip()]
    assert [cell["count"] for cell in ran] == list(range(1, len(ran) + 1))
    assert "Traceback" not in lesson.lab.server.log()


def test_solutions_are_folded_until_they_are_clicked(lesson):
    assert len(lesson.solutions) == len(lesson.exercises) > 0
    for index in lesson.solutions:
        cell = lesson.lab.scroll_to(index)
        assert not cell.locator(".cm-content").is_visible(), f"the solution in cell {index} is in sight"
    cell.locator(".jp-InputPlaceholder").click()
    assert "def solution_" in cell.locator(".cm-content").inner_text()
    cell.locator(".jp-InputCollapser").click()


def test_every_control_changes_what_is_shown(lesson):
    lab, idle = lesson.lab, []
    with_controls = lab.cells_with_controls()
    made = [i for i, cell in enumerate(lesson.first) if re.search(r"^(explore|switchboard|guessing_game)\(", cell["source"], re.M)]
    assert with_controls == made and made
    for index in with_controls:
        idle += _play(lab, index) if "guessing_game" in lesson.first[index]["source"] else _move_everything(lab, index)
        assert NOT_SHOWN not in " ".join(lab.shown(index)), f"cell {index}"
    assert not idle, f"controls that change nothing: {idle}"
    assert lab.errors() == []


def _move_everything(lab, index: int) -> list[str]:
    """Move each slider by a step and to both ends, choose each entry of each menu, tick each box; -> what changed nothing."""
    cell, idle = lab.scroll_to(index), []

    def tried(name, action):
        if not lab.changes(index, action):
            idle.append(f"cell {index}: {name}")
        assert NOT_SHOWN not in " ".join(lab.shown(index)), f"cell {index}, {name}: {lab.shown(index)}"

    for slider in cell.locator(".widget-slider").all():
        name, handle = slider.locator(".widget-label").inner_text(), slider.locator(".noUi-handle")
        at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        for key in ("ArrowLeft" if at_end else "ArrowRight", "Home", "End"):
            tried(f"{name} ({key})", lambda handle=handle, key=key: handle.press(key))
    button = cell.locator("button.jupyter-button")
    for menu in cell.locator("select").all():
        for entry in reversed(menu.locator("option").all_inner_texts()):  # the first entry is the one that is shown already

            def choose(menu=menu, entry=entry):
                menu.select_option(label=entry)
                if button.count():
                    button.first.click()

            tried(entry, choose)
    for box in cell.locator("input[type=checkbox]").all():
        tried("box", box.click)
    return idle


def _play(lab, index: int) -> list[str]:
    """Play a guessing game to its end and begin again; -> the buttons that changed nothing."""
    cell, idle = lab.scroll_to(index), []
    *choices, again = cell.locator("button.jupyter-button").all()
    for turn in range(100):
        if not choices[0].is_enabled():
            break
        choice = choices[turn % len(choices)]
        if not lab.changes(index, choice.click):
            idle.append(f"cell {index}: {choice.inner_text()} in turn {turn}")
    assert "The end" in " ".join(lab.shown(index))
    assert lab.changes(index, again.click) and choices[0].is_enabled()
    return idle


@pytest.mark.parametrize("width", [800, 1280])
def test_pictures_tables_and_controls_fit_their_page(lesson, width):
    lesson.lab.set_width(width)
    assert lesson.lab.overflowing() == []


def test_exercises_are_judged_in_their_cells(lesson):
    """Right and then wrong, so that the next test runs the lesson with wrong answers in it."""
    lab = lesson.lab
    for (index, exercise), solution in zip(lesson.exercises, lesson.solutions, strict=True):
        number = exercise["id"]
        assert f"Exercise {number}. Not attempted yet." in lab.cell(index).locator(".jp-OutputArea").inner_text()
        body = lesson.first[solution]["source"].partition("):\n")[2]
        assert re.match(rf"✓ Exercise {number}\..* right\.", said := lab.write_and_run(index, exercise[0] + body)), said
        said = lab.write_and_run(index, exercise[0] + "    return -1")
        assert said.startswith(f"✗ Exercise {number}.") and "goes on with the reference" in said
    assert lab.errors() == []


def test_restart_and_run_all_goes_well_with_wrong_answers_in_it(lesson):
    """And with somebody who plays with the first slider while the cells below it are running."""
    lab = lesson.lab
    sliders = [index for index in lab.cells_with_controls() if lab.cell(index).locator(".noUi-handle").count()]
    lab.restart_and_run_all()
    for index in sliders[:1]:
        lab.cell(index).locator(".noUi-handle").first.press("Home", timeout=1000 * PATIENCE)  # when it is there again
        assert lab.page.evaluate(WAITING), "the lesson was over before the slider was moved"
    lab.wait_until_idle(PATIENCE)
    assert lab.errors() == []


def test_a_lesson_that_is_saved_and_opened_again_says_where_its_controls_work(lesson):
    lab, with_controls = lesson.lab, lesson.lab.cells_with_controls()
    lab.save_and_open_again()
    for index in with_controls:
        said = lab.cell(index).locator(".jp-Cell-outputArea").inner_text()
        assert "JupyterLab and Colab once this cell is run" in said and "model not found" not in said
