import json
import math
import subprocess
import sys

import pytest
import torch

from sslcourse import results


def make(**changes):
    given = dict(
        method="Supervised",
        dataset="toybox",
        labels=100,
        metrics={"top1": {"value": 0.873, "standard_error": 0.004, "n": 1000}},
        seed=0,
        tier="cpu",
        device=torch.device("cpu"),
        seconds=12.34567,
        image_size=32,
        network="ResNet-9",
    )
    lesson, name = changes.pop("lesson", 1), changes.pop("name", "supervised")
    return results.record(lesson, name, **(given | changes))


def test_a_record_comes_back_from_its_file_unchanged(tmp_path):
    original = make(settings={"learning rate": 0.1, "sizes": (1, 2)}, notes="naïve")
    path = results.write(original, tmp_path / "new" / "folder")
    assert path.name == "01-supervised-toybox-100.json"
    assert results.read_one(path) == original
    assert results.read(path.parent) == [original]
    assert list(path.parent.iterdir()) == [path]  # nothing temporary is left


def test_a_record_says_how_it_was_made():
    made = make(seed=[3, 4])
    assert made["seeds"] == [3, 4] and made["metrics"]["top1"]["runs"] == 2
    assert made["versions"]["torch"] == torch.__version__ and set(made["versions"]) == {"python", "torch", "torchvision", "sslcourse"}
    assert made["date"].endswith("Z") and made["device"] and made["schema"] == 1
    assert made["git_commit"] is None or len(made["git_commit"]) == 40


def test_file_names_keep_tiers_and_seeds_apart():
    names = {results.file_name(make(**c)) for c in ({}, {"tier": "smoke"}, {"seed": 1}, {"seed": [0, 1]}, {"labels": None}, {"labels": 50})}
    assert len(names) == 6
    assert results.file_name(make(tier="smoke", seed=3)) == "01-supervised-toybox-100-smoke-seed3.json"
    assert results.file_name(make(dataset="../../my photos", labels=None)) == "01-supervised-my-photos-all.json"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_values_that_are_not_finite_are_refused_by_name(value):
    with pytest.raises(ValueError, match="metric top1 is"):
        make(metrics={"top1": value})
    with pytest.raises(ValueError, match="standard error of metric top1"):
        make(metrics={"top1": {"value": 0.5, "standard_error": value}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"top1": 87.3}}, "fraction between 0 and 1"),
        ({"metrics": {"top1": {"mean": 1}}}, "give value"),
        ({"metrics": {"top1": "high"}}, "top1 is a number"),
        ({"metrics": {}}, "at least one metric"),
        ({"seed": []}, "at least one seed"),
        ({"source": "rumour"}, "source is one of"),
        ({"method": ""}, "method is a text"),
        ({"labels": -1}, "labels is a number"),
        ({"settings": {"network": object()}}, "do not fit into JSON"),
        ({"settings": {"temperature": math.nan}}, "do not fit into JSON"),
        ({"seconds": math.inf}, "seconds is inf"),
    ],
)
def test_wrong_records_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_tensors_and_other_units_are_accepted():
    made = make(metrics={"loss": {"value": torch.tensor(4.5), "unit": "number"}, "top1": torch.tensor(0.5)})
    assert made["metrics"]["loss"]["value"] == 4.5 and made["metrics"]["top1"]["value"] == 0.5


def test_foreign_and_broken_files_are_skipped_with_their_name_and_reason(tmp_path):
    good = results.write(make(), tmp_path)
    text = good.read_text()
    (tmp_path / "broken.json").write_text(text[: len(text) // 2])
    (tmp_path / "foreign.json").write_text('{"some": "thing"}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "huge.json").write_text(" " * 1_000_001)
    (tmp_path / "nan.json").write_text(text.replace("0.873", "NaN"))
    (tmp_path / "typed.json").write_text(text.replace('"lesson": 1', '"lesson": "1"'))
    (tmp_path / "future.json").write_text(text.replace('"schema": 1', '"schema": 99'))
    (tmp_path / "run-summary-01.json").write_text("{}")  # a lesson's own summary: not a record, and no surprise either
    with pytest.warns(UserWarning) as caught:
        assert len(results.read(tmp_path)) == 1
    messages = [str(w.message) for w in caught]
    names = ["binary", "broken", "deep", "foreign", "future", "huge", "list", "nan", "typed"]
    assert len(messages) == len(names) and all(f"{n}.json" in m for n, m in zip(names, messages, strict=True))
    assert "form 99" in messages[4] and "'lesson'" in messages[8]


def test_reading_a_missing_folder_gives_nothing(tmp_path):
    assert results.read(tmp_path / "nowhere") == []


def test_write_refuses_what_is_not_a_record(tmp_path):
    with pytest.raises(ValueError, match="not a record"):
        results.write({"method": "x"}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = results.write(make(), tmp_path)
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        results.write(make(notes="newer"), tmp_path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_git_commit_never_fails(monkeypatch):
    results.git_commit.cache_clear()
    monkeypatch.setattr(results.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(subprocess.TimeoutExpired("git", 10)))
    assert results.git_commit() is None
    results.git_commit.cache_clear()


def test_costs_are_kept_by_lesson_and_tier(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_REFERENCE", tmp_path)
    (tmp_path / "costs.json").write_text("{}")
    results.record_costs(1, "smoke", 20.04, 900_000_000, "cpu")
    results.record_costs(1, "cpu", 200.0, 1_100_000_000, "cpu")
    costs = results.measured_costs(1)
    assert list(costs) == ["cpu", "smoke"] and costs["smoke"]["seconds"] == 20.0 and costs["cpu"]["peak_memory"] == 1_100_000_000
    assert results.measured_costs(2) == {}


def test_percent():
    assert results.percent(0.873, 0.004) == "87.3 ± 0.4 %"
    assert results.percent(1 / 3) == "33.3 %"


def test_a_metric_over_runs_is_their_mean_with_its_standard_error():
    metric = results.over_runs([0.5, 0.6, 0.7], n=1000)
    assert metric["value"] == pytest.approx(0.6)
    assert metric["standard_error"] == pytest.approx(0.1 / 3**0.5)  # sample deviation 0.1, three runs
    assert (metric["n"], metric["runs"]) == (1000, 3)
    assert results.over_runs([0.5])["standard_error"] is None  # one run says nothing about its own luck


def test_what_comes_with_the_package_can_be_read():
    assert results.original_projects(lesson=1)[0]["metrics"]["top1"] == 0.7332
    assert all(row["source"] == "original project" for row in results.original_projects())
    assert "73.3 %" in str(results.table([*results.reference(1), *results.original_projects(1)]))
    assert results.measured_costs(99) == {}


def test_a_table_sets_ours_beside_others():
    paper = {"source": "paper", "method": "SimCLR", "dataset": "CIFAR-10", "metrics": {"top1": 0.906}, "differs": "ResNet-50, 1000 epochs"}
    made = results.table([make(), paper])
    assert made.header == ["method", "source", "dataset", "labels", "top1", "differs"]
    assert made.rows[0] == ["Supervised", "ours", "toybox", "100", "87.3 ± 0.4 %", "–"]
    assert made.rows[1] == ["SimCLR", "paper", "CIFAR-10", "–", "90.6 %", "ResNet-50, 1000 epochs"]
    assert str(made).splitlines()[1].startswith("----------  -----")
    assert made._repr_markdown_().splitlines()[1] == "| --- | --- | --- | --- | --- | --- |"


def test_a_table_escapes_what_it_shows_and_chooses_columns():
    row = {"method": "<script>|x", "labels": 5000, "metrics": {"loss": {"value": 1.23456, "unit": "number"}}}
    made = results.table(
        [row, make(labels=None, metrics={"loss": {"value": 2, "unit": "number"}})], columns=["method", "labels", "loss", "nothing"]
    )
    assert made.rows == [["<script>|x", "5,000", "1.235", "–"], ["Supervised", "all", "2", "–"]]
    assert "<script>" not in made._repr_html_() and "&lt;script&gt;" in made._repr_html_()
    assert "\\|x" in made._repr_markdown_()
    with pytest.raises(ValueError, match="source of a row"):
        results.table([{"source": "rumour"}])
    assert str(results.table([])).startswith("method")


def test_the_library_does_not_import_the_course():
    code = "import sys, sslcourse.results; print([m for m in sys.modules if m.startswith('sslcourse.course')])"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) == []
