"""The supervised baseline that lessons 2 to 7 read, and probes that are held against it."""

import re

import pytest
import torch
from tiny import coloured, known_set

from sslcourse import datasets, evaluation, models, results, training
from sslcourse.course import baseline, comparison
from sslcourse.course.lesson import Lesson

NETWORK = "ResNet-9, width 4"


@pytest.fixture
def images():
    return known_set(*coloured(30, 0), *coloured(12, 1), *coloured(12, 2))


@pytest.fixture
def lesson(tmp_path):
    return Lesson(2, "smoke", "coloured", 0, torch.device("cpu"), tmp_path, tmp_path / "results")


def make_encoder():
    return models.resnet9(4)


def known(lesson, images, right, validation, **changes):
    """A record of lesson 1 with these numbers of right answers among 12, seed by seed."""
    result = [evaluation.Result(torch.eye(3)[images.test_labels].roll(k, 0), images.test_labels, images.class_names) for k in right]
    about = {"network": NETWORK, "settings": {}} | changes
    found = baseline.record_of(lesson, dict(enumerate(result)), dict.fromkeys(range(len(right)), validation), images, 2, **about)
    return found | {"lesson": 1}


def test_of_lesson_1s_records_that_with_the_best_validation_accuracy_is_the_baseline(lesson, images):
    records = [known(lesson, images, (0, 0), 0.5), known(lesson, images, (1, 1, 1), 0.7, method="supervised, 900 steps")]
    records += [known(lesson, images, (0, 0, 0, 0), 0.9, network="another"), known(lesson, images, (0, 0), 0.9, method="supervised, no")]
    records[-1]["metrics"]["top1"]["values"] = None
    _ = [results.write(record, lesson.results_dir) for record in records]
    found = baseline.baselines(lesson, images, (2, 3), 2, (0, 1), NETWORK, make_encoder)
    assert found == {2: records[1]}  # nothing is known of three labels per class, and nothing is trained for them
    assert baseline.read(lesson, images, 2, (0, 1, 5), NETWORK) is None


def test_without_a_record_the_baseline_is_trained_over_the_same_labels(lesson, images, capsys):
    (record,) = baseline.baselines(lesson, images, (2,), 2, (0, 1), NETWORK, make_encoder).values()
    assert "left no record of 2 labels" in capsys.readouterr().out and record["lesson"] == 2
    assert record["seeds"] == [0, 1] and record["labels"] == 6 and set(record["metrics"]) == {"top1", "validation"}


def test_a_comparison_holds_frozen_and_fine_tuned_encoders_against_the_baseline_on_the_labels_of_their_seeds(lesson, images, monkeypatch):
    _ = [results.write(known(lesson, images, (1, 1), 0.5), lesson.results_dir)]
    encoders, untrained = ({seed: make_encoder() for seed in (0, 1)} for _ in range(2))
    about = {"per_class": 2, "network": NETWORK, "make_encoder": make_encoder}
    compared = baseline.Comparison(lesson, images, "ours", encoders, untrained, (2, 1), **about)
    found = {way: {n: list(runs) for n, runs in row.items()} for way, row in compared.tested.items()}
    assert found == dict.fromkeys(("ours, frozen", "untrained, probe", "ours, fine-tuned"), {2: [0, 1]})
    assert compared.tested["ours, frozen"][2][1].n == 12 and compared.main == 2 and len(compared.supervised) == 1
    found = compared.against("ours, frozen", 2)
    assert found.difference == pytest.approx(100 * sum(compared.tested["ours, frozen"][2][s].top1 for s in (0, 1)) / 2)  # less 0 % right
    told = compared.verdicts()
    assert told.count("2 labels per class") == 4
    assert all(name in told for name in ("fine-tuned ours", "frozen ours", "the untrained network"))
    drawn = {}
    monkeypatch.setattr(comparison.plots, "lines", lambda x, y, **options: drawn.update(x=x, y=y))
    compared.curves("ours, frozen")
    assert (drawn["x"]["supervised"], drawn["y"]["supervised"]) == ([2], (0.0,)) and set(drawn["x"]) == {*compared.tested, "supervised"}
    records, weak = {record["method"]: record["settings"] for record in compared.records({"epochs": 7})}, {"views": "weak"}
    assert records["ours, frozen"] == {"epochs": 7, "block": 2} | weak and records["untrained, probe"] == {"block": 1} | weak
    assert records["ours, fine-tuned"]["epochs"] == 7 and "supervised" not in records  # which was lesson 1's
    compared.keep(training.History(rows=[{"epoch": 1, "seconds": 60.0}]))
    kept = {n.method: n.about["minutes"] for n in models.read_networks(lesson.results_dir / "networks").values()}
    assert kept["ours"] == 1 and kept["ours, fine-tuned"] > 1
    assert re.fullmatch(r"ours, 6 labels: .* supervised 0\.0 ± 0\.0 % on coloured", compared.headline())


def test_what_was_tried_is_told_of_these_images_only(images):
    tried = baseline.tried(datasets.ImageSet(**(vars(images) | {"name": "toybox"})), "ResNet-9, width 16")
    assert tried is None and baseline.tried(images, NETWORK) is None  # these have 8 pixels a side
    assert all(len(row["validation"]) == len(row["seeds"]) > 2 for row in baseline._TRIED)
