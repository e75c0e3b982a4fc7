"""The supervised baseline that lessons 2 to 7 read, and probes that are held against it."""

import pytest
import torch
from tiny import coloured

from sslcourse import datasets, evaluation, models, results
from sslcourse.course import baseline
from sslcourse.course.lesson import Lesson

NETWORK = "ResNet-9, width 4"


@pytest.fixture
def images():
    parts = [tensor for k, n in enumerate((30, 12, 12)) for tensor in coloured(n, k)]
    return datasets.ImageSet("coloured", ["red", "green", "blue"], (0.5,) * 3, (0.2,) * 3, *parts)


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
    assert found == {2: records[1]}  # nothing is known of three labels a class, and nothing is trained for them
    assert baseline.read(lesson, images, 2, (0, 1, 5), NETWORK) is None


def test_without_a_record_the_baseline_is_trained_over_the_same_labels(lesson, images, capsys):
    (record,) = baseline.baselines(lesson, images, (2,), 2, (0, 1), NETWORK, make_encoder).values()
    assert "left no record of 2 labels" in capsys.readouterr().out and record["lesson"] == 2
    assert record["seeds"] == [0, 1] and record["labels"] == 6 and set(record["metrics"]) == {"top1", "validation"}


def test_probes_see_the_labels_of_their_seed_in_views_and_are_drawn_beside_the_baseline(lesson, images, monkeypatch):
    encoders = {seed: make_encoder() for seed in (0, 1)}
    tested = baseline.probes({"ours": (encoders, 2)}, images, (2, 5))
    assert [list(runs) for runs in tested["ours"].values()] == [[0, 1], [0, 1]] and tested["ours"][5][1].n == 12
    told = {}
    monkeypatch.setattr(baseline.plots, "lines", lambda x, series, **options: told.update(x=x, series=series))
    baseline.curves(tested, {2: known(lesson, images, (0, 0), 0.5)}, title="", num_classes=3)
    assert told["x"] == {"ours": [2, 5], "supervised": [2]} and told["series"]["supervised"] == [100.0]


def test_what_was_tried_is_told_of_these_images_only(images):
    tried = baseline.tried(datasets.ImageSet(**(vars(images) | {"name": "toybox"})), "ResNet-9, width 16")
    assert tried is None and baseline.tried(images, NETWORK) is None  # these have 8 pixels a side
    assert all(len(row["validation"]) == len(row["seeds"]) > 2 for row in baseline._TRIED)
