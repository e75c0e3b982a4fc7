"""The table over runs with other seeds: against a computation by hand, whoever left the runs, and what is left out."""

import math

import pytest

from sslcourse import models, results
from sslcourse.course import runner, table_over_seeds
from sslcourse.course.commands.main import main
from sslcourse.files import write_json

TOP1 = {0: 0.5, 10: 0.6, 20: 0.7}


def leave_records(folder, number, seed, top1, labels=100, summary=True, **changes):
    """What a lesson leaves in its folder of results."""
    given = {"method": "supervised", "dataset": "toybox", "labels": labels, "tier": "smoke", "device": "cpu", "seconds": 1}
    given |= {"metrics": {"top1": results.over_runs([top1 - 0.1, top1 + 0.1]), "top3": {"value": 0.9}}, "seed": [seed, seed + 1]}
    path = results.write(results.record(number, "supervised", **(given | changes)), folder)
    if summary:
        write_json(folder / f"run-summary-{number:02d}.json", {"headline": f"{top1}", "records": [path.name]})


@pytest.fixture
def go(monkeypatch, write_notebook, code_digest, tmp_path):
    """The command `run` over two lessons that end at once; go.failing: the (number, seed) that fail."""
    write_notebook("01_first.ipynb")
    write_notebook("02_second.ipynb", parameters='TIER = "auto"\nSEED = 0\nBUDGET = 1.0\n')

    def execute(source, target, parameters, *rest):
        number, seed = int(source.name[:2]), parameters["SEED"]
        target.write_text("{}")
        if (number, seed) in go.failing:
            return "cell [2] (x) stopped with ValueError: no"
        leave_records(target.parent / "results", number, seed, TOP1.get(seed, 0.5) + number / 100)

    def go(*typed, out="out"):
        folders = ["--out", str(tmp_path / out), "--notebooks", str(tmp_path / "notebooks")]
        return main(["run", *typed, "--tier", "smoke", "--quiet", *folders])

    go.failing = set()
    monkeypatch.setattr(runner, "execute", execute)
    return go


def test_the_table_is_the_mean_over_the_seeds_with_its_standard_error(go, tmp_path, capsys):
    assert go("--seeds", "0", "10", "20") == 0
    out, told = tmp_path / "out", capsys.readouterr().out
    found = table_over_seeds.collect(table_over_seeds.run_folders(out))
    first, second = found.rows
    # By hand: (0.51 + 0.61 + 0.71) / 3; the deviation of 0.51, 0.61 and 0.71 is 0.1.
    assert first["metrics"]["top1"]["value"] == pytest.approx(0.61)
    assert first["metrics"]["top1"]["standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert first["metrics"]["top3"]["value"] == pytest.approx(0.9) and first["metrics"]["top3"]["standard_error"] == pytest.approx(0)
    assert (second["lesson"], second["labels"], second["runs"], second["seeds"]) == (2, 100, 3, [0, 10, 20]) and found.left_out == []
    assert found.text().splitlines()[0].split() == "lesson method dataset labels seeds runs top1 top3".split()
    assert "0, 10, 20" in told and "61.0 ± 5.8 %" in told and told.endswith(f"\n\n{found.text()}\n")
    for typed in ([], ["--markdown"]):
        assert main(["results", str(out), *typed]) == 0 and capsys.readouterr().out == f"{found.text(bool(typed))}\n"

    # A seed that fails is named and left out, and what it found before does not count.
    go.failing.add((2, 10))
    assert go("--seeds", "0", "10", "20", "--fresh") == 1
    assert "ValueError: no" in capsys.readouterr().out
    found = table_over_seeds.collect(table_over_seeds.run_folders(out))
    assert found.rows[0]["runs"] == 3 and found.rows[1]["seeds"] == [0, 20]
    assert found.rows[1]["metrics"]["top1"]["standard_error"] == pytest.approx(math.sqrt(0.02) / math.sqrt(2))
    assert found.left_out == ["Left out: 02_second of seed-10 (failed)."]


def test_a_single_seed_has_no_error_and_no_run_at_all_an_empty_table(go, capsys):
    go.failing.add((2, 0))
    go("--seeds", "0")
    told = capsys.readouterr().out
    assert "51.0 %" in told and "±" not in told and "Left out: 02_second of seed-0" in told
    assert table_over_seeds.collect([]).text().startswith("lesson")


def test_runs_in_folders_side_by_side_are_collected_whoever_ran_them(go, tmp_path, capsys):
    for place, seed, more in (("2", 20, ()), ("10", 0, ()), ("11", 20, ()), ("budget", 0, ("-p", "BUDGET", "3.0"))):
        go("2", "-p", "SEED", str(seed), *more, out=f"runs/{place}")
    leave_records(tmp_path / "runs" / "10" / "results", 2, 0, 0.3, labels=50, summary=False)  # left from before, with other labels
    papermill = tmp_path / "runs" / "papermill" / "results"
    leave_records(papermill, 1, 30, 0.5)
    leave_records(papermill, 7, 0, 0.5)
    for name in ("notes", "broken"):
        (tmp_path / "runs" / name).mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")

    folders = table_over_seeds.run_folders(tmp_path / "runs")
    assert [folder.name for folder in folders] == ["2", "10", "11", "broken", "budget", "papermill"]
    found = table_over_seeds.collect(folders)
    assert [(row["lesson"], row["seeds"], row["settings"].get("BUDGET")) for row in found.rows] == [
        (1, [30], None), (2, [20, 0], 1.0), (2, [0], 3.0), (7, ["papermill"], None)
    ]  # fmt: skip
    assert found.left_out == ["Left out: lesson 2 of 11, the same seed as in 2."]
    capsys.readouterr()
    assert main(["results", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == "lesson method dataset labels differs seeds runs top1 top3".split()
    assert "BUDGET 3.0" in printed[4] and "62.0 ± 10.0 %" in printed[3]

    # A run with other runs below it shows its own records first.
    leave_records(papermill.parent / "below" / "results", 1, 40, 0.4)
    assert main(["results", str(papermill.parent)]) == 0
    own, below = capsys.readouterr().out.split("\n\n")
    assert own.count("50.0") == 2 and "40.0 %" in below


def test_a_network_that_comes_with_the_package_is_no_sample_of_runs(tmp_path):
    for seed in (0, 10):
        folder = tmp_path / f"seed-{seed}" / "results"
        leave_records(folder, 7, seed, 0.5, settings={"encoder": models.SHIPPED})
    folders = table_over_seeds.run_folders(tmp_path)
    found = table_over_seeds.collect(folders)
    assert found.rows == [] and len(found.left_out) == 1
    assert len(table_over_seeds.collect(folders[:1]).rows) == 1  # what was measured once can be shown
    leave_records(folder, 7, 10, 0.6, labels=50, settings={"encoder": "this run"})
    assert [row["runs"] for row in table_over_seeds.collect(folders).rows] == [1, 1]
