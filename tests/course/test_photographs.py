"""What lessons show of photographs without one: curves and verdicts from records, maps from facts; and what comes with the package."""

import dataclasses
import json

import example_records
import pytest
import torch
from tiny import coloured

from sslcourse import datasets, evaluation, models, results
from sslcourse.course import comparison, photographs


def record(method, labels, values, **changes):
    metrics = {"top1": results.over_runs(values, n=100)}
    given = {"method": method, "labels": labels, "metrics": metrics, "seed": [0, 1, 2], "tier": comparison.LONG, "dataset": "cifar10-jpeg"}
    return example_records.make(**(given | changes))


SHORT, LONG = {"epochs": 9}, {"epochs": 40}
RECORDS = [
    record("SimCLR, frozen", 500, [0.6, 0.61, 0.63], settings=SHORT), record("SimCLR, frozen", 50, [0.4, 0.41, 0.42], settings=SHORT),
    record("SimCLR, frozen", 500, [0.7, 0.7, 0.7], settings=LONG), record("SimCLR, fine-tuned", 500, [0.6, 0.5, 0.7], settings=SHORT),
    record("supervised", 500, [0.5, 0.5, 0.52]), record("SimCLR, frozen", 500, [0.9, 0.9, 0.9], tier="cpu"),
    record("BYOL, frozen", 500, [0.4, 0.5, 0.52]),
]  # fmt: skip


def test_the_pretraining_with_most_numbers_of_labels_is_drawn_with_its_verdicts(monkeypatch, capsys):
    monkeypatch.setattr(results, "reference", lambda: RECORDS)
    assert photographs.percents()["SimCLR, frozen"] == {5: pytest.approx({0: 40, 1: 41, 2: 42}), 50: pytest.approx({0: 60, 1: 61, 2: 63})}
    photographs.curves("SimCLR")
    told, found = capsys.readouterr().out, evaluation.paired_runs([60, 61, 63], [50, 50, 52])
    assert f"CIFAR-10, 50 labels per class: {found.headline('frozen SimCLR', 'supervised')}" in told
    assert f"50 labels per class: {found.verdict('frozen SimCLR', 'supervised training')}" in told
    assert "between fine-tuned SimCLR and supervised training is not shown" in told and told.count("* ") == 2
    photographs.curves("BYOL")
    assert capsys.readouterr().out.count("* ") == 1  # supervised training is not compared with itself


def test_pictures_are_shown_where_the_photographs_are_at_hand(tmp_path, monkeypatch, capsys):
    parts = [tensor for k, n in enumerate((60, 60, 60)) for tensor in coloured(n, k)]
    images = datasets.ImageSet("coloured", ["red", "green", "blue"], (0.5,) * 3, (0.2,) * 3, *parts)
    photographs.pictures("cifar10-simclr", images)
    assert "this cell shows neighbours and mistakes" in capsys.readouterr().out
    monkeypatch.setattr(models.saved, "ENCODERS", tmp_path)
    models.save_network(tmp_path / "tiny.safetensors", models.resnet9(4), method="SimCLR", dataset="cifar10", size=8)
    photographs.pictures("tiny", dataclasses.replace(images, name="cifar10"))
    assert "3 queries, each with 7 nearest images" in capsys.readouterr().out


def test_each_encoder_that_comes_with_the_package_has_facts_without_photographs_and_a_card(capsys):
    if not (names := models.pretrained_encoders()):
        pytest.skip("no encoder comes with the package yet")
    assert sum(path.stat().st_size for path in models.saved.ENCODERS.iterdir()) < 20e6
    for name in names:
        network, kept = models.load_network(name), json.loads((models.saved.ENCODERS / f"{name}.json").read_text())
        classes = len(kept["class_names"])
        assert network.origin == models.SHIPPED and network.about["epochs"] > 0 and not network.labels
        assert torch.tensor(kept["similarity"]).shape == (classes, classes) and kept["probe"].keys() == kept["maps"].keys()
        assert all(torch.tensor(points).shape == (len(kept["labels"]), 2) for points in kept["maps"].values())
        assert set(kept) == {"class_names", "labels", "maps", "similarity", "probe"} and len(json.dumps(kept)) < 60_000
        card = (models.saved.ENCODERS / f"{name}.md").read_text(encoding="utf-8")
        assert all(part in card for part in (f"# {name}", network.method, "## Good at", "## Bad at", f"evaluate {name}"))
        photographs.seen_by(name)
        assert f"{len(kept['labels'])} images of {classes} classes" in capsys.readouterr().out
