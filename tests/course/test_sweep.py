"""Sweeps over seeds: where their runs lie, the table over them against a computation by hand, and what is refused."""

import json
import math
from pathlib import Path

import pytest

from sslcourse import models, results
from sslcourse.course import runner, sweep
from sslcourse.course.commands import main as cli
from sslcourse.course.execution import LessonRun
from sslcourse.errors import CourseError
from sslcourse.files import write_json

TOP1 = {0: 0.5, 10: 0.6, 20: 0.7}


def leave_records(folder, number, seed, top1, labels=100, summary=True, **changes):
    """What a lesson leaves in its folder of results."""
    given = {"method": "supervised", "dataset": "toybox", "labels": labels, "tier": "smoke", "device": "cpu", "seconds": 1}
    given |= {"metrics": {"top1": results.over_runs([top1 - 0.1, top1 + 0.1]), "top3": {"value": 0.9}}, "seed": [seed, seed + 1]}
    path = results.write(results.record(number, "supervised", **(given | changes)), folder)
    if summary:
        write_json(folder / f"run-summary-{number:02d}.json", {"headline": f"{top1}", "records": [path.name]})
    return path


@pytest.fixture
def lessons(monkeypatch, write_notebook, data_sets, code_digest):
    """Two lessons that end at once; .failing: the (number, seed) that fail, .ran: what ran."""
    write_notebook("01_first.ipynb")
    write_notebook("02_second.ipynb", parameters='TIER = "auto"\nDATASET = "default"\nSEED = 0\nRESULTS_DIR = "default"\nBUDGET = 1.0\n')

    class Lessons:
        failing, ran = set(), []

    def run_one(name, number, target, parameters, summary, progress, **rest):
        seed = parameters["SEED"]
        Lessons.ran.append((number, seed))
        if (number, seed) in Lessons.failing:
            return LessonRun(number, name, "failed", seconds=1.0, error="cell [2] (x) stopped with ValueError: no")
        target.write_text("{}")
        path = leave_records(Path(parameters["RESULTS_DIR"]), number, seed, TOP1.get(seed, 0.5) + number / 100)
        return LessonRun(number, name, "done", str(target), 1.0, headline="fine", records=(path.name,))

    Lessons.failing, Lessons.ran = set(), []
    monkeypatch.setattr(runner, "run_one", run_one)
    return Lessons


@pytest.fixture
def go(tmp_path, lessons):
    def go(chosen=None, seeds=(0, 10, 20), **options):
        options = {"tier": "smoke", "out": tmp_path / "out", "notebooks_dir": tmp_path / "notebooks", "progress": False} | options
        return sweep.sweep(chosen, seeds, **options)

    return go


def test_the_table_is_the_mean_over_the_seeds_with_its_standard_error(go, tmp_path, lessons, capsys):
    runs, found = go()
    assert lessons.ran == [(number, seed) for seed in TOP1 for number in (1, 2)]
    assert [r.name for r in runs[:3]] == ["01_first, seed 0", "02_second, seed 0", "01_first, seed 10"]
    first, second = found.rows
    # By hand: (0.51 + 0.61 + 0.71) / 3; the deviation of 0.51, 0.61 and 0.71 is 0.1.
    assert first["metrics"]["top1"]["value"] == pytest.approx(0.61)
    assert first["metrics"]["top1"]["standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert first["metrics"]["top3"]["value"] == pytest.approx(0.9) and first["metrics"]["top3"]["standard_error"] == pytest.approx(0)
    assert (second["lesson"], second["labels"], second["runs"], second["seeds"]) == (2, 100, 3, [0, 10, 20])
    head, _, one, two = str(found.table()).splitlines()
    assert head.split() == "lesson method dataset labels seeds runs top1 top3".split()
    assert one.split("  ")[0] == "1" and "0, 10, 20" in one and "61.0 ± 5.8 %" in one and "90.0 ± 0.0 %" in one
    assert "62.0 ± 5.8 %" in two
    assert "[3/6] 01_first, seed 10: tier smoke, data set toybox" in capsys.readouterr().out

    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == "seed-0 seed-10 seed-20 sweep.json sweep.md".split()
    assert sorted(p.name for p in (out / "seed-10").glob("[!.]*")) == ["01_first.ipynb", "02_second.ipynb", "results", "run.json"]
    stored = json.loads((out / "sweep.json").read_text())
    assert stored["seeds"] == [0, 10, 20] and stored["rows"] == found.rows and stored["left_out"] == []
    assert stored["rows"][0]["metrics"]["top1"]["values"] == pytest.approx([0.51, 0.61, 0.71])
    assert (out / "sweep.md").read_text() == found.table()._repr_markdown_() + "\n"

    assert cli.main(["results", str(out)]) == 0
    assert capsys.readouterr().out == f"{found.table()}\n"
    assert cli.main(["results", str(out), "--markdown"]) == 0
    assert capsys.readouterr().out == (out / "sweep.md").read_text()


def test_a_sweep_goes_on_where_it_was_and_one_seed_of_it_is_a_plain_run(go, lessons, tmp_path):
    go(seeds=[0])
    lessons.ran.clear()
    runs, found = go(seeds=[0, 10])
    assert lessons.ran == [(1, 10), (2, 10)] and [r.status for r in runs] == ["done before"] * 2 + ["done"] * 2
    assert found.rows[0]["seeds"] == [0, 10]
    lessons.ran.clear()
    folders = {"out": tmp_path / "out" / "seed-10", "notebooks_dir": tmp_path / "notebooks"}
    assert [r.status for r in runner.run(tier="smoke", parameters={"SEED": 10}, progress=False, **folders)] == ["done before"] * 2
    go(seeds=[0], resume=False)
    assert lessons.ran == [(1, 0), (2, 0)]


def test_a_seed_that_failed_is_named_and_left_out(go, lessons, tmp_path, capsys):
    go(seeds=[0, 10, 20])  # its old records are there, and do not count
    lessons.failing.add((2, 10))
    runs, found = go(seeds=[0, 10, 20], resume=False)
    assert [r.ok for r in runs] == [True, True, True, False, True, True]
    first, second = found.rows
    assert first["runs"] == 3 and second["seeds"] == [0, 20]
    assert second["metrics"]["top1"]["value"] == pytest.approx(0.62)
    assert second["metrics"]["top1"]["standard_error"] == pytest.approx(math.sqrt(0.02) / math.sqrt(2))
    assert found.left_out == ["Left out: 02_second, seed 10 (failed: cell [2] (x) stopped with ValueError: no)."]
    assert found.text().splitlines()[-1] == found.left_out[0] == (tmp_path / "out" / "sweep.md").read_text().splitlines()[-1]

    (tmp_path / "out" / "seed-10" / "02_second.failed.ipynb").write_text("{}")
    capsys.readouterr()
    assert cli.main(["results", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "0, 20 " in printed and printed.splitlines()[-1] == "Left out: 02_second of seed-10 (failed)."


def test_a_single_seed_has_no_error_and_no_run_at_all_an_empty_table(go, lessons):
    _, found = go(["1"], seeds=[0])
    assert "51.0 %" in str(found.table()) and "±" not in str(found.table())
    lessons.failing.add((2, 0))
    _, found = go(["2"], seeds=[0])
    assert found.rows == [] and "02_second, seed 0 (failed" in found.text()


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        ([], {}, "at least one seed"),
        ([0, 3, 3], {}, "Seed 3 is given twice"),
        ([0, -1], {}, "SEED is -1"),
        ([0, 2**32], {}, "SEED is 4294967296"),
        ([0, "1"], {}, "SEED is '1'"),
        ([0, 10], {"parameters": {"SEED": 1}}, "with --seeds or one with -p SEED, not both"),
        ([0, 10], {"parameters": {"BUDGET": 2.0}}, "BUDGET is not a parameter of 01_first"),
        ([0, 10], {"jobs": 0}, "jobs is 0"),
        ([0, 10], {"tier": "huge"}, "TIER is 'huge'"),
    ],
)
def test_nothing_starts_when_something_is_wrong(go, lessons, tmp_path, seeds, options, message):
    with pytest.raises(CourseError, match=message):
        go(seeds=seeds, **options)
    assert not lessons.ran and not (tmp_path / "out").exists()


def test_the_folders_are_held_meanwhile(go, tmp_path, lessons):
    (tmp_path / "out").mkdir()
    for held in (tmp_path / "out", runner.writable(tmp_path / "out" / "seed-10")):
        with runner.only_run(held), pytest.raises(CourseError, match=f"Another run .* is using {held}\\."):
            go()
    assert not lessons.ran


def test_seeds_that_share_runs_are_told(go, capsys):
    assert sweep.too_close([0, 10, 20], "cpu") is None and sweep.too_close([0, 3], "cpu") is None and sweep.too_close([7], "gpu") is None
    assert "SEED to SEED + 2" in sweep.too_close([0, 10, 12], "cpu") and "SEED to SEED + 4" in sweep.too_close([4, 0], "gpu")
    go(["1"], seeds=[0, 1])
    assert capsys.readouterr().err == sweep.too_close([0, 1], "smoke") + "\n"
    go(["1"], seeds=[0, 10])
    assert capsys.readouterr().err == ""


def test_runs_in_folders_side_by_side_are_collected_whoever_ran_them(lessons, tmp_path, capsys):
    folders = {"notebooks_dir": tmp_path / "notebooks", "tier": "smoke", "progress": False}
    for place, seed, more in (("2", 20, {}), ("10", 0, {}), ("11", 20, {}), ("budget", 0, {"BUDGET": 3.0})):
        runner.run(["2"], out=tmp_path / "runs" / place, parameters={"SEED": seed} | more, **folders)
    leave_records(tmp_path / "runs" / "10" / "results", 2, 0, 0.3, labels=50, summary=False)  # left from before, with other labels
    (tmp_path / "runs" / "notes").mkdir()
    papermill = tmp_path / "runs" / "papermill" / "results"
    leave_records(papermill, 1, 30, 0.5)
    leave_records(papermill, 7, 0, 0.5)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")

    found = sweep.collect(sweep.run_folders(tmp_path / "runs"))
    assert [(row["lesson"], row["seeds"], row["places"], row["parameters"]) for row in found.rows] == [
        (1, [30], ["papermill"], {}),
        (2, [20, 0], ["2", "10"], {"BUDGET": 1.0}),
        (2, [0], ["budget"], {"BUDGET": 3.0}),
        (7, ["papermill"], ["papermill"], {}),
    ]
    assert found.left_out == ["Left out: lesson 2 of 11, the same seed as in 2."]
    capsys.readouterr()
    assert cli.main(["results", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == "lesson method dataset labels parameters seeds runs top1 top3".split()
    assert "BUDGET 3.0" in printed[4] and "62.0 ± 10.0 %" in printed[3] and printed[-1] == found.left_out[0]

    # A run with other runs below it shows its own records first.
    assert cli.main(["results", str(tmp_path / "runs" / "papermill")]) == 0
    own = capsys.readouterr().out
    papermill.parent.joinpath("below").mkdir()
    leave_records(papermill.parent / "below" / "results", 1, 40, 0.4)
    assert cli.main(["results", str(tmp_path / "runs" / "papermill")]) == 0
    both = capsys.readouterr().out
    assert both.startswith(own + "\n") and "40.0 %" in both[len(own) :]


def test_a_network_that_comes_with_the_package_is_no_sample_of_runs(tmp_path):
    for seed in (0, 10):
        folder = tmp_path / f"seed-{seed}" / "results"
        leave_records(folder, 7, seed, 0.5, settings={"encoder": models.COMMITTED})
    folders = sweep.run_folders(tmp_path)
    assert folders == [tmp_path / "seed-0", tmp_path / "seed-10"]
    found = sweep.collect(folders)
    assert found.rows == [] and found.left_out[0].startswith("Left out: supervised: each measured on one network that comes with")
    assert len(sweep.collect(folders[:1]).rows) == 1  # what was measured once can be shown
    leave_records(folder, 7, 10, 0.6, settings={"encoder": models.THIS_RUN})
    assert [row["runs"] for row in sweep.collect(folders).rows] == [1, 1]


def test_what_is_typed_reaches_the_sweep(monkeypatch, capsys):
    asked = []

    def stand_in(chosen, seeds, **options):
        asked.append((chosen, seeds, options))
        return [LessonRun(1, "01_first, seed 0", "done", seconds=1.0)], sweep.Collected([], ["Left out: nothing."])

    monkeypatch.setattr(sweep, "sweep", stand_in)
    assert cli.main(["run", "2", "3", "--seeds", "0", "10", "--tier", "cpu", "--jobs", "2", "--out", "sweeps", "-p", "BUDGET", "2"]) == 0
    chosen, seeds, options = asked[0]
    assert (chosen, seeds, options["jobs"], options["out"], options["parameters"]) == (["2", "3"], [0, 10], 2, "sweeps", {"BUDGET": "2"})
    assert capsys.readouterr().out.rstrip().endswith("Left out: nothing.")
    assert cli.main(["run", "--record-costs", "--jobs", "2"]) == 1 and "leave out --jobs and --seeds" in capsys.readouterr().err
    for wrong in (["--jobs", "0"], ["--jobs", "many"], ["--seeds"], ["--seeds", "0", "simclr"], ["--seeds", "0.5"]):
        assert cli.main(["run", *wrong]) == 2
    assert "name the lessons before --seeds" in capsys.readouterr().err


NOTEBOOK = """
from pathlib import Path
from sslcourse import results
from sslcourse.files import write_json
about = {"method": "supervised", "dataset": DATASET, "labels": 100, "tier": TIER, "device": "cpu", "seconds": 1, "seed": [SEED, SEED + 1]}
made = results.record(1, "supervised", metrics={"top1": 0.5 + SEED / 100}, **about)
write_json(Path(RESULTS_DIR) / "run-summary-01.json", {"headline": f"seed {SEED}", "records": [results.write(made, RESULTS_DIR).name]})
"""


def test_the_whole_way_in_processes_of_their_own(write_notebook, data_sets, code_digest, tmp_path, capsys):
    write_notebook("01_first.ipynb", NOTEBOOK)
    folders = ["--out", str(tmp_path / "out"), "--notebooks", str(tmp_path / "notebooks")]
    assert cli.main(["run", "1", "--tier", "smoke", "--seeds", "10", "20", "--jobs", "2", *folders]) == 0
    told = capsys.readouterr()
    assert told.err == "" and "seed 10" in told.out and "seed 20" in told.out
    assert "10, 20  2     65.0 ± 5.0 %" in told.out
