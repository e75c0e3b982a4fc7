"""What lesson 7 lays side by side: who takes part, records in a row, the final table, and figures of repeated runs."""

import math
import re
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import example_records
import pytest
import torch
from tiny import encoder, new_model, same_weights

from sslcourse import models, results
from sslcourse.course import comparison
from sslcourse.course.lesson import Lesson, network_file_name

ABOUT = {"dataset": "toybox", "size": 8, "tier": "cpu"}


def keep(folder, model, **about):
    about = ABOUT | about
    return models.save_network(folder / network_file_name(**about), model, **about)


def test_networks_of_the_data_set_take_part_in_the_order_of_lessons(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "reference_networks", lambda device="cpu": {})
    keep(tmp_path, encoder(), method="SimCLR", lesson=3)
    keep(tmp_path, encoder(), method="rotation", lesson=2, block=3)
    keep(tmp_path, new_model(), method="supervised", lesson=1, labels=30)
    keep(tmp_path, encoder(), method="BYOL", lesson=4, dataset="flowers")
    keep(tmp_path, encoder(), method="Barlow Twins", lesson=5, tier="smoke")
    images = SimpleNamespace(name="toybox", size=8, identity="these")
    found = comparison.taking_part(tmp_path, images, tier="cpu")
    assert list(found) == ["supervised", "rotation", "SimCLR"]
    assert [comparison.is_pretrained(network) for network in found.values()] == [False, True, True]
    elsewhere = comparison.taking_part(tmp_path, SimpleNamespace(name="flowers-2"), tier="cpu")
    assert list(elsewhere) == ["rotation", "SimCLR", "BYOL"]  # encoders of any data set, no classifier of other classes
    keep(tmp_path, encoder(), method="BYOL", lesson=4, identity="others", image_size=8)
    assert list(comparison.taking_part(tmp_path, images, tier="cpu")) == list(found)
    assert re.fullmatch(r"Left out, .* called toybox too: 04-byol-toybox\.\n", capsys.readouterr().out)
    shown = str(comparison.roster(found))
    assert "encoder, block 3" in shown and "encoder, its output" in shown and re.search(r"supervised +classifier +toybox +30 ", shown)


def test_committed_networks_fill_in_and_the_fewest_labels_and_the_smallest_seed_have_the_methods_name():
    def kept(method, lesson, origin="this run", **about):
        return models.Network(torch.nn.Identity(), ABOUT | {"method": method, "lesson": lesson} | about, origin)

    own = [kept("supervised", 1, labels=n, seed=seed) for n, seed in [(50, 1), (10, 3), (10, 0)]]
    own += [kept("BYOL", 4), kept("SimCLR", 3, tier="smoke")]
    committed = [kept(method, lesson, "shipped", tier="gpu") for method, lesson in [("BYOL", 4), ("SimCLR", 3), ("rotation", 2)]]
    found = comparison.filled(dict(enumerate(own)), dict(enumerate(committed)), tier="cpu", dataset="toybox")
    assert list(found) == ["supervised", "supervised, 50 labels", "rotation", "SimCLR", "BYOL"]
    assert [network.origin for network in found.values()] == ["this run"] * 2 + ["shipped"] * 2 + ["this run"]
    assert found["supervised"].labels == 10 and found["supervised"].about["seed"] == 0


def test_a_fresh_encoder_is_of_the_first_ones_kind():
    like = [models.Network(encoder(width=8), ABOUT | {"method": "SimCLR", "size": 16})]
    state = torch.get_rng_state()
    made, again, other = (
        comparison.fresh(like, lambda: pytest.fail("not asked for"), dataset="toybox", size=8, seed=seed, device="cpu")
        for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert made.encoder.recipe == like[0].encoder.recipe and made.size == 16 and not made.model.training
    assert same_weights(made.model, again.model) and not same_weights(made.model, other.model)
    assert comparison.network_name(made) == "ResNet-9, width 8"
    alone = comparison.fresh([], encoder, dataset="toybox", size=8, seed=0, device="cpu")
    assert alone.size == 8 and alone.encoder.recipe["width"] == 4
    assert "just made" in str(comparison.roster({comparison.RANDOM: alone}))


def record(method="SimCLR, frozen", top1=0.5, error=0.01, lesson=3, seeds=(0, 1, 2), **changes):
    metric = {"value": top1, "standard_error": error, "n": 2000}
    return example_records.make(lesson=lesson, method=method, seed=list(seeds), metrics={"top1": metric}, **changes)


def test_records_stand_in_a_row_a_method_and_a_column_a_number_of_labels():
    records = [record(labels=100, top1=0.66), record(labels=500, top1=0.84), record(method="supervised", lesson=1, labels=100, top1=0.5)]
    records.append(record(labels=100, top1=0.11, seeds=[0]))  # fewer runs
    table = comparison.by_labels(results.fill(records, []))
    assert table.header == ["lesson", "method", "100", "500", "network", "tier", "origin"]
    assert table.rows[0][:4] == ["1", "supervised", "50.0 ± 1.0 %", "–"]
    assert table.rows[1][:4] == ["3", "SimCLR, frozen", "66.0 ± 1.0 %", "84.0 ± 1.0 %"]
    assert table.rows[1][-1] == "this run"


def test_single_runs_belong_to_their_seeds_and_the_first_lessons_whole_runs_count():
    def runs(method, lesson, *values, **changes):
        return example_records.make(lesson=lesson, method=method, metrics={"top1": results.over_runs(values)}, labels=40, **changes)

    given = [runs("supervised", 2, 0.4, 0.5, seed=[0, 1]), runs("supervised, longer", 1, 0.5, 0.75, seed=[4, 7])]
    given[1]["metrics"]["validation"] = {"value": 0.6}  # which decides between baselines of lesson 1
    given.append(runs("supervised", 1, 0.8, 0.9, seed=[4, 7]))
    given += [runs("untrained, probe", 2, 0.1, 0.2, seed=[0, 1]), runs(comparison.RANDOM, 3, 0.2, 0.3, seed=[0, 1])]
    given += [runs("BYOL, frozen", 4, 0.2, 0.3, seed=[0, 1], tier="long run"), runs("SimCLR, frozen", 3, 0.2, seed=[0])]
    assert comparison.single_runs(given[1]) == {4: 50.0, 7: 75.0} and comparison.single_runs(record()) == {}
    found = comparison.whole_runs(given, 40)
    assert found == {"supervised": {4: 50.0, 7: 75.0}, comparison.RANDOM: {0: 10.0, 1: 20.0}} and not comparison.whole_runs(given, 50)


def test_work_is_counted_in_forward_views():
    given = [record(settings={"epochs": 5, "unlabelled": 6000}), record("Barlow Twins, frozen")]
    given.append(record("rotation, probe", settings={"pretraining_epochs": 3, "images": 6000}))
    given += [record("supervised", settings={"epochs": 9, "images": 1}), record("BYOL, frozen", settings={"epochs": 10, "unlabelled": 100})]
    given.append(record("rotation + FixMatch", settings={"passes": 6, "rotation_passes": 3, "unlabelled": 6000}))
    assert comparison.views_seen(given) == {"SimCLR": 60_000, "rotation": 72_000, "rotation + FixMatch": 144_000, "BYOL": 4_000}


def ours(records):
    """Our rows of the final table: method -> the cells from the accuracy on."""
    return {row[2]: row[3:] for row in comparison.final_table(records).rows if row[1] == "ours"}


def test_our_row_has_as_many_labels_or_fewer():
    records = [record(dataset="cifar10-jpeg", labels=n, top1=n / 10_000) for n in (500, 4000, 6000)]
    records.append(record(dataset="cifar10", labels=4000, top1=0.9, seeds=[0]))  # fewer runs
    assert ours(records)["SimCLR, frozen"][:2] == ["40.0 ± 1.0 %", "4,000"]
    assert "SimCLR, frozen" not in ours(records[2:3]) and "BYOL, frozen" not in ours(records)


def test_without_records_every_task_is_open_and_a_stand_in_is_named_as_such_and_leaves_it_open():
    names = [task["name"] for task in comparison.TASKS]
    assert comparison.open_tasks([]) == names and len(names) == 7
    table = comparison.final_table([])
    assert [row[0] for row in table.rows if row[0]] == names
    assert [row[1:3] + row[-1:] for row in table.rows if row[1] == "ours"] == [["ours", "–", "open: not run yet"]] * 7
    on_cifar = [record("BYOL, frozen", 0.5, lesson=4, dataset="cifar10-jpeg", labels=n) for n in (500, 5000)]
    (row,) = [row for row in comparison.final_table(on_cifar).rows if row[1] == "stand-in"]
    assert row[2:5] == ["BYOL, frozen", "50.0 ± 1.0 %", "5,000"] and row[6] == "" and row[7].startswith("cifar10 in its place, as JPEG")
    assert any("BYOL" in name for name in comparison.open_tasks(on_cifar))
    there = comparison.final_table([*on_cifar, record("BYOL, frozen", 0.6, lesson=4, dataset="stl10", labels=5000)]).rows
    assert not any(row[1] == "stand-in" for row in there)


def test_a_gain_is_ours_less_the_reported_of_the_same_kind():
    given = {"dataset": "stl10", "labels": 5000, "lesson": 4, "image_size": 96}
    records = [record("BYOL, frozen", 0.752, 0.003, **given), record("BYOL, fine-tuned", 0.7489, 0.004, **given)]
    rows = ours(results.fill([], records))
    error = 100 * math.hypot(0.003, math.sqrt(0.722 * 0.278 / 8000))
    assert rows["BYOL, frozen"][3] == f"+3.0 ± {error:.1f}"
    assert rows["BYOL, fine-tuned"][3].startswith("−2.0 ± ")  # against the one from scratch, not the one from ImageNet's weights
    assert "96 px, 3 seeds, tier cpu, shipped" in rows["BYOL, frozen"][-1]
    fewer = ours(results.fill([], [record("BYOL, frozen", 0.6, 0.003, **given | {"labels": 500})]))
    assert fewer["BYOL, frozen"][3] == "–"  # a tenth of the labels is another task
    twins = record("Barlow Twins, frozen", dataset="stl10", labels=5000, lesson=5)  # a NaN was reported
    flowers = record("rotation, probe", 0.80, dataset="flowers", labels=350, lesson=2)  # on an unknown number of test images
    rows = ours([twins, flowers])
    assert rows["Barlow Twins, frozen"][3] == "–" and rows["rotation, probe"][3] == "+5.0"


def test_what_was_reported_is_what_the_package_says_elsewhere():
    known = {(row["dataset"], row["labels"], row["metrics"]["top1"]) for row in results.original_projects()}
    reported = [(task["dataset"], row["labels"], row["top1"]) for task in comparison.TASKS for row in task["reported"]]
    told = {row for row in reported if row[2] is not None}
    assert told == known | {("stl10", 5000, 0.886), ("stl10", 5000, 0.7708)}  # the rows of ImageNet weights stand in lesson 7 alone


def test_a_long_run_stands_beside_the_row_of_the_lesson():
    given = {"dataset": "cifar10-jpeg", "labels": 5000}
    lessons, long = record(top1=0.63, **given), record(top1=0.72, tier="long run", settings={"epochs": 60}, **given)
    own = [lessons | {"seeds": [4, 5, 6]}]  # which takes the place of the committed lesson's alone
    rows = comparison.final_table(results.fill(own, [long, lessons])).rows
    rows = [row for row in rows if row[1] == "ours" and row[2] == "SimCLR, frozen"]
    assert [row[3] for row in rows] == ["63.0 ± 1.0 %", "72.0 ± 1.0 %"]
    assert "3 seeds, tier cpu" in rows[0][-1]
    assert "one pretraining of 60 epochs, 3 draws of labels" in rows[1][-1] and "tier" not in rows[1][-1]
    scratch = record("supervised", tier="long run", settings={"split": "test"}, dataset="stl10", labels=5000)
    assert ours([scratch])["supervised"][-1].endswith("3 seeds, long run")


def test_the_story_so_far_has_the_earlier_lessons_of_this_data_set_with_as_many_labels_or_with_any(tmp_path, monkeypatch):
    lesson = Lesson(3, "cpu", "toybox", 0, torch.device("cpu"), tmp_path, tmp_path)
    monkeypatch.setattr(results, "reference", lambda: [])
    assert comparison.so_far(lesson, 4) is None
    for number, method, n in [(1, "supervised", 4), (2, "rotation, probe", 10), (3, "SimCLR, frozen", 4), (1, "supervised", 40)]:
        results.write(example_records.make(lesson=number, method=method, labels=10 * n, name=f"{method}-{n}-a-class"), tmp_path)
    results.write(example_records.make(lesson=1, name="supervised-4-a-class", labels=20, dataset="flowers"), tmp_path)
    rows = {n: [(row[1], row[2]) for row in comparison.so_far(lesson, n).rows] for n in (4, 5)}
    assert rows == {4: [("supervised", "40")], 5: [("supervised", "40"), ("rotation, probe", "100"), ("supervised", "400")]}
