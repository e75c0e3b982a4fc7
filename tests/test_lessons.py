"""The lessons as a whole: stored as they should be, and running headlessly at tier smoke with result records at the end."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sslcourse import models, results
from sslcourse.course import notebook_files
from sslcourse.course.exercises import find_exercise, judge

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
PARAMETERS = {"TIER": "auto", "DEVICE": "auto", "DATASET": "default", "SEED": 0, "DATA_DIR": "default", "RESULTS_DIR": "default", "SIZE": 0}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebooks_follow_the_rules_have_the_parts_of_a_lesson_and_were_computed_at_tier_cpu_on_toybox(path):
    assert notebook_files.problems(path) == []
    notebook = notebook_files.load(path)
    outputs = "\n".join(str(o.get("text", "")) for cell in notebook.cells for o in cell.get("outputs", []))
    assert "tier cpu" in outputs and "data set toybox" in outputs
    assert PARAMETERS.items() <= notebook_files.parameters(notebook).items()
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for part in ("Case file", "Break it", "Recap", "Further reading", "prediction"):
        assert part in text, f"{path.name} has no part {part!r}"
    folded = r"(?s)<details><summary>Hint.*?</details>"
    prose = len(re.findall(r"\w+", re.sub(rf"{folded}|\$[^$]*\$|`[^`]*`|\(https?:[^)]*\)|<[^>]*>", " ", text)))
    assert 2000 <= prose <= 3500, f"{prose} words of prose"
    open_cells = [c for c in notebook.cells if c.cell_type == "code" and not c.metadata.get("jupyter", {}).get("source_hidden")]
    visible = [line for cell in open_cells for line in cell.source.splitlines() if line.strip()]
    assert len(visible) <= (450 if path.stem.startswith("07") else 420)
    assert any("nbval-check-output" in notebook_files.tags(cell) for cell in notebook.cells)
    solutions = [cell for cell in notebook.cells if "solution" in notebook_files.tags(cell)]
    exercises = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.startswith("@exercise")]
    hints = [found for cell in notebook.cells if (found := re.findall("<summary>(Hint.*?)</summary>", cell.source))]
    assert 2 <= len(exercises) <= 4 and len(solutions) == len(hints) == len(exercises)
    assert all(of_one == ["Hint 1: a question", "Hint 2: the idea", "Hint 3: the lines, in words"] for of_one in hints)


def test_the_answers_of_a_quiz_stand_in_an_order_drawn_from_their_own_text_so_that_the_right_one_is_anywhere():
    places = []
    for cell in (cell for path in NOTEBOOKS for cell in notebook_files.load(path).cells if cell.cell_type == "markdown"):
        answers = re.findall(r"<details><summary>((?!Hint).*?)</summary>\s*(.*?)</details>", cell.source, flags=re.DOTALL)
        if len(answers) > 2:
            assert answers == sorted(answers, key=lambda answer: hashlib.sha1(answer[0].encode()).hexdigest())
            (right,) = [k for k, (_, why) in enumerate(answers) if why.startswith(("Right", "Yes"))]
            places += [right] if len(answers) == 3 else []
    assert len(places) > 20 and all(1 / 4 < places.count(k) / len(places) < 1 / 2 for k in range(3))


CLAIMS = r"\b(beats?|better than|worse than|outperform\w*|superior)\b"
MEASURED = r"top1|accuracy|\bknn"


def differences_of_accuracies(source):
    """The differences in a cell's code both of whose sides are accuracies."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            if all(re.search(MEASURED, ast.unparse(side)) for side in (node.left, node.right)):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_whoever_compares_results_in_a_lesson_asks_whether_the_difference_is_shown(path):
    assert list(differences_of_accuracies("gain = 100 * (ours.top1 - theirs.top1)")) == ["ours.top1 - theirs.top1"]  # which are found
    assert list(differences_of_accuracies("few_wrong = 100 - row['top1']")) == [] and re.search(CLAIMS, "ours beats theirs")
    for cell in notebook_files.load(path).cells:
        if cell.cell_type == "code" and "solution" not in notebook_files.tags(cell) and not cell.source.startswith("@exercise"):
            texts = [node.value for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Constant)]
            claimed = [text for text in texts if isinstance(text, str) and re.search(CLAIMS, text)]
            claimed += differences_of_accuracies(cell.source)
            assert not claimed or "paired_" in cell.source, f"{path.name} compares without paired_runs: {claimed}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_solutions_in_the_notebook_are_right_answers(path):
    names = "import math\nimport torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
    for cell in notebook_files.load(path).cells:
        if "solution" in notebook_files.tags(cell):
            space = {}
            exec(names + cell.source, space)  # the notebook's own code, as the learner would run it
            (name,) = [n for n in space if n.startswith("solution_")]
            id = ".".join(name.split("_")[1:])
            assert judge(find_exercise(id), space[name])[0] == "done", name


@pytest.fixture(scope="module")
def headless_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    environment = os.environ | {"SSLCOURSE_DATA_DIR": str(ROOT / "data")}
    command = [sys.executable, "-m", "sslcourse", "run", "--tier", "smoke", "--out", str(out), "--quiet"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done, out


def test_all_lessons_run_headlessly_at_smoke_and_leave_records_that_can_be_read(headless_run):
    done, out = headless_run
    assert done.returncode == 0 and len(NOTEBOOKS) == 8, done.stdout + done.stderr
    assert all((out / path.name).exists() and path.stem in done.stdout for path in NOTEBOOKS)
    records = results.read(out / "results")
    assert {record["lesson"] for record in records} == {int(path.name[:2]) for path in NOTEBOOKS}
    for record in records:
        assert (record["tier"], record["dataset"]) == ("smoke", "toybox") and record["versions"]["torch"]
        assert 0 <= record["metrics"]["top1"]["value"] <= 1
    summaries = [json.loads(path.read_text()) for path in (out / "results").glob(f"{results.SUMMARY_PREFIX}*.json")]
    assert all(summary["headline"] and summary["peak_memory"] > 0 for summary in summaries) and len(summaries) == len(NOTEBOOKS)


KEPT = {1: "supervised", 2: "rotation", 3: "SimCLR", 4: "BYOL", 5: "Barlow Twins"}  # and what was fine-tuned from an encoder


def test_headless_runs_leave_the_networks_that_lesson_7_needs(headless_run, recwarn):
    _, out = headless_run
    kept = models.read_networks(out / "results" / models.NETWORKS_FOLDER)
    assert not recwarn.list
    for number, method in KEPT.items():
        of_lesson = {n.method: n for n in kept.values() if n.about["lesson"] == number}
        tuned = method if number == 1 else f"{method}, fine-tuned"
        assert set(of_lesson) == {method, tuned}
        assert of_lesson[tuned].is_classifier and of_lesson[tuned].labels > 0 and len(of_lesson[tuned].about["class_names"]) == 10
        for network in of_lesson.values():
            assert (network.dataset, network.size, network.about["tier"]) == ("toybox", 32, "smoke") and network.about["minutes"] > 0
            assert network.is_classifier == (network.labels is not None)
