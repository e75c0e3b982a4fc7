"""The number to beat: supervised training on few labels, as lesson 1 defends it. Lessons 2 to 7 read it here, or train it now."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from sslcourse import augment, evaluation, models, results, training

METHOD = "supervised"
BATCH = 64
VIEWS = {"none": augment.evaluation, "weak": augment.weak, "strong": augment.strong}
_TRIED = json.loads((Path(results.__file__).parent / "reference" / "baseline_tried.json").read_text(encoding="utf-8"))


def tried(images, network: str) -> results.Table | None:
    """What was tried for the course's own baseline on these images with this network, by validation accuracy; None where nothing was."""
    found = [row for row in _TRIED if (row["dataset"], row["image_size"], row["network"]) == (images.name, images.size, network)]
    counts = sorted({row["labels"] for row in found})
    cells = {(row["views"], row["steps"], row["labels"]): row["validation"] for row in found}

    def told(values):
        mean, error = evaluation.mean_and_error([100 * value for value in values])
        return f"{mean:.1f} ± {error:.1f} %" if len(values) > 1 else f"{mean:.1f} %"

    ways = dict.fromkeys((row["views"], row["steps"]) for row in found)
    rows = [[*way, *(told(cells[*way, n]) if (*way, n) in cells else "–" for n in counts)] for way in ways]
    runs = max((len(row["validation"]) for row in found), default=0)
    header = ["views", "steps", *(f"{n} labels" for n in counts)]
    return results.Table(header, rows, f"validation accuracy, mean and standard error of {runs} seeds") if found else None


def settings_of(lesson) -> dict:
    """How a supervised network is trained at this tier: at least so many steps and passes over its labels."""
    steps, passes = lesson.pick(smoke=20, cpu=300, gpu=1000), lesson.pick(smoke=1, cpu=4, gpu=20)
    return {"views": "strong", "steps": steps, "passes": passes, "batch_size": BATCH, "lr": 2e-3, "label_smoothing": 0.1}


def record_of(
    lesson, tested: Mapping[int, evaluation.Result], validation: Mapping[int, float], images, per_class: int, method: str = METHOD, **fields
) -> dict:  # fmt: skip
    """A record of it. tested: seed -> Result on the test images; validation: seed -> accuracy, a fraction. fields: network, settings."""
    found = lesson.record_runs(method, list(tested.values()), images, per_class, seed=list(tested), **fields)
    found["metrics"]["validation"] = results.over_runs([validation[s] for s in tested], n=len(images.validation_labels))
    return found


def baseline(lesson, images, per_class: int, seeds: Sequence[int], network: str, make_encoder: Callable) -> dict:
    """The record of supervised training on per_class labels of each class: of those of lesson 1 the best on validation, or one made now.

    Learner's records and those that came with the course count, of these images, labels and network. network: the name of what
    make_encoder makes, such as "ResNet-9, width 16"; another network is no fair rival.
    """
    wanted = {"dataset": lesson.dataset, "labels": per_class * images.num_classes, "network": network, "image_size": images.size}
    known = [r for r in results.read(lesson.results_dir) if r["tier"] == lesson.tier] + results.reference(lesson=1)
    known = [r for r in known if r["lesson"] == 1 and r["method"].split(",")[0] == METHOD and wanted.items() <= r.items()]
    known = [r for r in known if r["identity"] in (None, images.identity) and len({*seeds} & {*r["seeds"]}) == len(seeds)]
    if known:
        return max(known, key=lambda record: record["metrics"].get("validation", {"value": 0})["value"])
    print(f"Lesson 1 left no record of {wanted['labels']} labels here, so its baseline is trained now, {len(seeds)} times.")
    how, tested, validation = settings_of(lesson), {}, {}
    for seed in seeds:
        labelled = images.few_labels(per_class, seed)
        torch.manual_seed(seed)
        model = models.Classifier(make_encoder(), images.num_classes).to(lesson.device)
        options = {name: how[name] for name in ("batch_size", "lr", "label_smoothing")} | {"seed": seed, "validate_every": 0}
        epochs = training.epochs_for(len(labelled.train_labels), how["steps"], how["passes"], BATCH)
        name = f"supervised, {per_class} a class, seed {seed}"
        history = training.fit_classifier(model, labelled, epochs, augmentation=augment.strong(images.size), name=name, **options)
        tested[seed] = evaluation.evaluate(model, images.test_images, images.test_labels, images.class_names)
        validation[seed] = history.final.get("validation_accuracy", 0.0)
    return record_of(lesson, tested, validation, images, per_class, network=network, settings=how)
