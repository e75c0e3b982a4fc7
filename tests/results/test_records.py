"""Records: what they say, that they come back from their files, and that everything else is refused by name."""

import json
import math
import subprocess

import numpy as np
import pytest
import torch
from example_records import make
from hypothesis import given, settings
from hypothesis import strategies as st

from sslcourse import results
from sslcourse.errors import CourseError
from sslcourse.results import records


def test_a_record_comes_back_from_its_file_unchanged(tmp_path):
    original = make(settings={"learning rate": 0.1, "sizes": (1, 2)}, notes="naïve")
    path = results.write(original, tmp_path / "new" / "folder")
    assert path.name == "01-supervised-toybox-100.json"
    assert results.read_one(path) == original and results.read(path.parent) == [original]
    assert list(path.parent.iterdir()) == [path]  # nothing temporary is left
    assert results.read(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="record must contain"):
        results.write({"method": "x"}, tmp_path)


def test_a_record_says_how_it_was_made_and_a_wrong_one_is_refused():
    made = make(seed=[3, 4], metrics={"loss": {"value": torch.tensor(4.5), "unit": "number"}, "top1": torch.tensor(0.5)})
    assert made["seeds"] == [3, 4] and made["metrics"]["top1"]["runs"] == 2 and made["metrics"]["top1"]["value"] == 0.5
    assert made["metrics"]["loss"]["value"] == 4.5
    assert made["versions"]["torch"] == torch.__version__ and set(made["versions"]) == {"python", "torch", "torchvision", "sslcourse"}
    assert made["date"].endswith("Z") and made["device"] and made["schema"] == 1
    assert (made["git_commit"], made["git_clean"]) == records.git_state()
    metrics = [{"top1": math.nan}, {"top1": {"value": 0.5, "standard_error": math.inf}}]
    settings = [{"network": object()}, {"temperature": math.nan}]
    for wrong in [{"seconds": math.inf}, *({"metrics": m} for m in metrics), *({"settings": s} for s in settings)]:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make(**wrong)


def test_file_names_keep_tiers_seeds_and_two_long_runs_apart():
    names = {results.file_name(make(**c)) for c in ({}, {"tier": "smoke"}, {"seed": 1}, {"seed": [0, 1]}, {"labels": None}, {"labels": 50})}
    assert len(names) == 6
    assert results.file_name(make(tier="smoke", seed=3)) == "01-supervised-toybox-100-smoke-seed3.json"
    assert results.file_name(make(dataset="../../my photos", labels=None)) == "01-supervised-my-photos-all.json"
    long = [results.file_name(make(name="n" * 99, dataset="d" * 99, tier="t" * 99, seed=[*range(40), last])) for last in (40, 41)]
    assert long[0] != long[1] and max(map(len, long)) < 255
    changes = [{}, {"network": "ResNet-50"}, {"image_size": 96}, {"settings": {"view": 24}}, {"identity": "a"}, {"seed": 1}]
    assert len({results.file_name(make(tier="long run", **change)) for change in changes}) == len(changes)
    assert results.file_name(make(tier="long run")) == results.file_name(make(tier="long run", metrics={"top1": 0.1}, seconds=9))
    assert results.file_name(make(tier="long run")).startswith("01-supervised-toybox-100-long-run-resnet-9-32px-")


@pytest.mark.parametrize(("other", "named"), [
    ({"network": "ResNet-50"}, "network 'ResNet-9' there and 'ResNet-50' here"), ({"image_size": 96}, "image_size 32 there and 96 here"),
    ({"settings": {"lr": 0.1, "view": 24}}, "settings.view None there and 24 here"),
    ({"name": "Supervised!"}, "name "),  # of one name in files
    ({"identity": "b"}, "identity 'a' there and 'b' here"),
])  # fmt: skip
def test_a_record_of_another_experiment_is_not_written_over(other, named, tmp_path):
    first = make(settings={"lr": 0.1}, identity="a")
    path = results.write(first, tmp_path)
    with pytest.raises(CourseError, match=named) as refused:
        results.write(make(**({"settings": {"lr": 0.1}, "identity": "a"} | other)), tmp_path, "--out")
    assert "another folder as --out" in str(refused.value) and results.read(tmp_path) == [first]
    again = make(settings={"lr": 0.1, "minutes": 3}, metrics={"top1": 0.5}, seconds=1, device="Tesla T4")  # which does not know its images
    assert results.write(again, tmp_path) == path and results.read(tmp_path) == [again]
    path.write_text("not a record, and perhaps dear to somebody")
    with pytest.raises(CourseError, match="is no record"):
        results.write(first, tmp_path)
    assert "dear" in path.read_text()


def test_a_record_says_whether_the_working_tree_was_clean(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "sslcourse" / "results" / "records.py"))
    state = records.git_state.__wrapped__
    assert state() == (None, None)  # no repository
    (tmp_path / "sslcourse").mkdir()
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit, clean = state()
    assert len(commit) == 40 and clean is True
    (tmp_path / "sslcourse" / "new.py").write_text("")
    assert state() == (commit, False)
    monkeypatch.setenv("PATH", "")
    assert state() == (None, None)  # no git


def top1(**changes):
    return {"metrics": {"top1": {"value": 0.6, "runs": 3, "values": [0.5, 0.6, 0.7]} | changes}}


@pytest.mark.parametrize(("changes", "field"), [
    *[({name: ...}, name) for name in ("kind", "lesson", "labels", "image_size", "differs", "seeds", "metrics", "source")],
    ({"schema": 99}, "schema"), ({"labels": 1.5}, "labels"), ({"network": ["ResNet-9"]}, "network"), ({"lesson": True}, "lesson"),
    ({"seconds": 10**400}, "seconds"), ({"metrics": [0.5]}, "metrics"), ({"metrics": {"top1": 0.6}}, "metrics.top1"),
    ({"method": "\ud800"}, "surrogates"), ({"settings": {"lr": math.inf}}, "float"),
    (top1(value="0.6"), "value"),  # a file holds numbers as numbers
    (top1(value=10**400, unit="number"), "value"), (top1(standard_error=-0.1), "standard_error"), (top1(n=2.5), r"top1\.n "),
    (top1(runs=0), "runs"), (top1(values=[]), "values"), (top1(values=[0.5, 0.7]), "2 values for 3 runs"),
    (top1(values=[0.2, 0.2, 1.4]), r"values\[2\]"), (top1(values=[0.5, 0.6, 0.8]), "mean of 0.633"), (top1(unit="percent"), "unit"),
    (top1(mean=0.6), "mean"),
])  # fmt: skip
def test_a_damaged_record_is_left_out_by_name(tmp_path, changes, field):
    content = make(**top1()) | changes
    (tmp_path / "damaged.json").write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    results.write(make(method="whole"), tmp_path)
    with pytest.warns(UserWarning, match=field) as caught:
        assert [r["method"] for r in results.read(tmp_path)] == ["whole"]
    assert len(caught) == 1 and "damaged.json" in str(caught[0].message)


def test_foreign_and_broken_files_are_skipped_with_their_name(tmp_path):
    text = results.write(make(), tmp_path).read_text()
    wrong = {"broken": text[: len(text) // 2], "deep": "[" * 100_000, "foreign": '{"some": "thing"}'}
    wrong |= {"list": "[1, 2]", "nan": text.replace("0.873", "NaN"), "utf-16": "\ufeff{}"}
    for name, content in wrong.items():
        (tmp_path / f"{name}.json").write_bytes(content.encode("utf-16" if name == "utf-16" else "utf-8"))
    (tmp_path / "run-summary-01.json").write_text("{}")  # a lesson's own summary: not a record, and no surprise either
    with pytest.warns(UserWarning) as caught:
        assert len(results.read(tmp_path)) == 1
    assert all(f"{name}.json" in str(w.message) for name, w in zip(wrong, caught, strict=True))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_read_can_be_shown_and_written_again(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("records")
    content = make(metrics={"top1": results.over_runs([0.4, 0.5, 0.6], n=10), "loss": {"value": 2.5, "unit": "number"}}, seed=[0, 1, 2])
    assert results.read_one(results.write(content, folder)) == content
    place, key = content, data.draw(st.sampled_from(sorted(content)), label="key")
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans(), label="deeper"):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)), label="key")
    if data.draw(st.booleans(), label="taken out"):
        del place[key]
    else:
        place[key] = data.draw(anything, label="put in")
    (folder / "one.json").write_text(json.dumps(content))
    try:
        found = results.read_one(folder / "one.json")
    except ValueError as reason:
        assert str(reason).startswith("one.json: ")
        return
    filled = results.fill([found], [make()])
    results.overview(filled)._repr_markdown_()
    results.table(filled, [*found, "origin", "runs", "top1", "loss"])._repr_html_()
    assert results.read_one(results.write(found, folder / "again")) == found


def test_own_records_come_first_and_committed_ones_fill_the_gaps():
    own = [make(lesson=3, method="SimCLR", seed=7), make(lesson=3, method="SimCLR", seed=8)]
    committed = [make(), make(lesson=3, method="SimCLR"), make(lesson=3, method="SimCLR", labels=500), make(lesson=4, method="SimCLR")]
    filled = results.fill(own, committed)
    assert [(r["origin"], r["lesson"], r["labels"], r["seeds"]) for r in filled] == [
        ("this run", 3, 100, [7]), ("this run", 3, 100, [8]), ("shipped", 1, 100, [0]), ("shipped", 3, 500, [0]),
        ("shipped", 4, 100, [0]),
    ]  # fmt: skip
    filled[0]["metrics"]["top1"]["value"] = 0.0
    assert "origin" not in own[0] and own[0]["metrics"]["top1"]["value"] == 0.873  # copies, all the way down
    assert [r["origin"] for r in results.fill([], filled)] == ["shipped"] * 5  # whatever they were called before


def test_costs_are_kept_by_lesson_and_tier(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_REFERENCE", tmp_path)
    (tmp_path / "costs.json").write_text("{}")
    results.record_costs(1, "smoke", 20.04, 900_000_000, "cpu")
    results.record_costs(1, "cpu", 200.0, 1_100_000_000, "cpu")
    costs = results.measured_costs(1)
    assert list(costs) == ["cpu", "smoke"] and costs["smoke"]["seconds"] == 20.0 and costs["cpu"]["peak_memory"] == 1_100_000_000
    assert results.measured_costs(2) == {}


@pytest.mark.filterwarnings("error")
def test_what_comes_with_the_package_can_be_read():
    files = list((records._REFERENCE / "records").glob("*.json"))
    assert len(results.reference()) == len(files) > 100
    assert {results.file_name(found) for found in results.reference(1)} <= {file.name for file in files}
    assert results.original_projects(lesson=1)[0]["metrics"]["top1"] == 0.7332
    assert all(row["source"] == "original project" for row in results.original_projects())


@pytest.mark.parametrize("number", [0.5, torch.tensor(0.5), np.float64(0.5)])
def test_a_metric_over_runs_and_a_plain_number_in_its_full_form(number):
    found = results.over_runs([0.5, 0.7, 0.6], n=1000)
    assert found["value"] == pytest.approx(0.6) and found["standard_error"] == pytest.approx(0.1 / 3**0.5)  # sample deviation 0.1
    assert (found["n"], found["runs"], found["values"]) == (1000, 3, [0.5, 0.7, 0.6])  # in the order of the seeds
    assert results.over_runs([0.5])["standard_error"] is None  # one run says nothing about its own luck
    for wrong in ([], [0.5, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="one finite number a run"):
            results.over_runs(wrong)
    known = {"standard_error": None, "n": None, "values": None, "unit": "fraction"}
    assert records.metric(number, runs=2) == records.metric({"value": number}, runs=2) == known | {"value": 0.5, "runs": 2}
    assert records.metric({"value": 0.5, "values": [0.25, 0.75]})["runs"] == 2 and records.metric(found, runs=99) == found
