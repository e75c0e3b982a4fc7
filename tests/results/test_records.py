import json
import math
import subprocess
import sys

import pytest
import torch
from example_records import make
from hypothesis import given, settings
from hypothesis import strategies as st

from sslcourse import results


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


def test_file_names_stay_short_and_apart_for_many_seeds():
    names = [results.file_name(make(name="n" * 99, dataset="d" * 99, tier="t" * 99, seed=[*range(40), last])) for last in (40, 41)]
    assert names[0] != names[1] and max(map(len, names)) < 255


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


def damaged(**changes):
    """The text of a record's file with these fields put in, or taken out where the value is `...`."""
    content = make() | changes
    return json.dumps({key: value for key, value in content.items() if value is not ...})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": ...}, "'labels'"),
        ({"labels": -5}, "'labels'"),
        ({"image_size": ...}, "'image_size'"),
        ({"image_size": "32"}, "'image_size'"),
        ({"network": ["ResNet-9"]}, "'network'"),
        ({"settings": None}, "'settings'"),
        ({"differs": ...}, "'differs'"),
        ({"lesson": 0}, "'lesson'"),
        ({"lesson": True}, "'lesson'"),
        ({"seconds": 10**400}, "'seconds'"),
        ({"seeds": []}, "'seeds'"),
        ({"seeds": [2**63]}, "'seeds'"),
        ({"labels": 10**30}, "'labels'"),
        ({"metrics": {}}, "'metrics'"),
        ({"metrics": [0.5]}, "'metrics'"),
        ({"method": "\ud800"}, "not readable as JSON"),
        ({"settings": {"lr": 1e999}}, "Infinity"),
        ({"metrics": {"top1": {"value": 87.3}}}, "fraction between 0 and 1"),
        ({"metrics": {"top1": {"value": 0.5, "values": [0.4, 0.7]}}}, "mean of 0.55"),
    ],
)
def test_a_damaged_record_is_left_out_by_name(tmp_path, changes, reason):
    (tmp_path / "damaged.json").write_text(damaged(**changes))
    results.write(make(method="whole"), tmp_path)
    with pytest.warns(UserWarning, match=reason) as caught:
        assert [r["method"] for r in results.read(tmp_path)] == ["whole"]
    assert len(caught) == 1 and "damaged.json" in str(caught[0].message)


def test_a_number_beyond_every_float_is_refused_where_a_file_says_it_in_ten_letters(tmp_path):
    path = tmp_path / "damaged.json"
    path.write_text(damaged(settings={"lr": 0.125}).replace("0.125", "1e999"))
    with pytest.raises(ValueError, match="damaged.json"):
        results.read_one(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_read_can_be_shown_chosen_and_written_again(tmp_path_factory, data):
    content = make(metrics={"top1": results.over_runs([0.4, 0.5, 0.6], n=10), "loss": {"value": 2.5, "unit": "number"}}, seed=[0, 1, 2])
    place = content
    key = data.draw(st.sampled_from(sorted(place)), label="key")
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans(), label="deeper"):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)), label="key")
    if data.draw(st.booleans(), label="taken out"):
        del place[key]
    else:
        place[key] = data.draw(anything, label="put in")
    folder = tmp_path_factory.mktemp("records")
    (folder / "one.json").write_text(json.dumps(content))
    try:
        found = results.read_one(folder / "one.json")
    except ValueError as reason:
        assert str(reason).startswith("one.json: ")
        return
    filled = results.fill([found], results.reference())
    assert results.select(filled, labels=found["labels"], method=found["method"])
    results.readme_table(filled)
    results.table(filled, [*found, "origin", "runs", "top1", "loss"])._repr_html_()
    assert results.read_one(results.write(found, folder / "again")) == found


def test_a_record_without_single_runs_is_still_one(tmp_path):
    old = make()
    del old["metrics"]["top1"]["values"]
    assert results.read_one(results.write(old, tmp_path)) == old


def test_single_runs_come_back_in_the_order_of_the_seeds(tmp_path):
    made = make(seed=[5, 3, 4], metrics={"top1": results.over_runs([0.7, 0.5, 0.6], n=1000)})
    top1 = results.read_one(results.write(made, tmp_path))["metrics"]["top1"]
    assert top1["values"] == [0.7, 0.5, 0.6] and top1["runs"] == 3


def test_select_takes_values_and_several_accepted_values():
    records = [make(lesson=k, labels=n, seed=[0, 1]) for k in (1, 2) for n in (None, 100, 500)]
    assert results.select(records, lesson=2, labels=[100, 500]) == records[4:]
    assert results.select(records, labels=(None,)) == [records[0], records[3]] == results.select(records, labels=None)
    assert results.select(records, seeds=[0, 1], lesson=range(2, 5)) == records[3:]  # a list is also a value
    assert results.select(records, dataset="stl10") == [] == results.select([], anything="goes")
    with pytest.raises(ValueError, match="no record has a field 'label'; choose from .*labels"):
        results.select(records, label=100)
    rows = [*records, *results.original_projects(1)]  # plain rows have fewer fields
    assert results.select(rows, tier="cpu") == records


def test_own_records_come_first_and_committed_ones_fill_the_gaps():
    own = [make(lesson=3, method="SimCLR", seed=7), make(lesson=3, method="SimCLR", seed=8)]
    committed = [make(), make(lesson=3, method="SimCLR"), make(lesson=3, method="SimCLR", labels=500), make(lesson=4, method="SimCLR")]
    filled = results.fill(own, committed)
    assert [(r["origin"], r["lesson"], r["labels"], r["seeds"]) for r in filled] == [
        ("this run", 3, 100, [7]),
        ("this run", 3, 100, [8]),
        ("committed", 1, 100, [0]),
        ("committed", 3, 500, [0]),
        ("committed", 4, 100, [0]),
    ]
    filled[0]["metrics"]["top1"]["value"] = 0.0
    assert "origin" not in own[0] and own[0]["metrics"]["top1"]["value"] == 0.873  # copies, all the way down
    assert [r["origin"] for r in results.fill([], filled)] == ["committed"] * 5  # whatever they were called before


def test_a_quick_look_of_ones_own_does_not_hide_the_committed_result_of_the_tier_asked_for():
    smoke, committed = [make(tier="smoke")], [make(), make(tier="gpu", labels=500)]
    assert [(r["tier"], r["origin"]) for r in results.fill(smoke, committed, tier="cpu")] == [("cpu", "committed")]
    assert [(r["tier"], r["origin"]) for r in results.fill(smoke, committed, tier="smoke")] == [("smoke", "this run")]
    assert [(r["tier"], r["origin"]) for r in results.fill(smoke, committed)] == [("smoke", "this run"), ("gpu", "committed")]


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


def test_what_comes_with_the_package_can_be_read():
    assert results.original_projects(lesson=1)[0]["metrics"]["top1"] == 0.7332
    assert all(row["source"] == "original project" for row in results.original_projects())
    assert "73.3 %" in str(results.table([*results.reference(1), *results.original_projects(1)]))
    assert results.measured_costs(99) == {}


def test_the_library_does_not_import_the_course():
    code = "import sys, sslcourse.results; print([m for m in sys.modules if m.startswith('sslcourse.course')])"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) == []
