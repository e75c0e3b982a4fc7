"""The number to beat: supervised training on few labels, as lesson 1 defends it. Lessons 2 to 7 read it here, or train it now."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from sslcourse import augment, evaluation, models, plots, results, training
from sslcourse.course import comparison

METHOD, BATCH = "supervised", 64
_TRIED = json.loads((Path(results.__file__).parent / "reference" / "baseline_tried.json").read_text(encoding="utf-8"))


def tried(images, network: str) -> results.Table | None:
    """What was tried for the course's own baseline on these images with this network, with validation accuracy; None where nothing was."""
    found = [row for row in _TRIED if (row["dataset"], row["image_size"], row["network"]) == (images.name, images.size, network)]
    rows = [[r["labels"], r["views"], r["steps"], results.percent(*evaluation.mean_and_error(r["validation"]))] for r in found]
    header = ["labels", "views", "steps", "validation accuracy"]
    return results.Table(header, rows, "mean and standard error of five seeds") if found else None


def settings_of(lesson) -> dict:
    """How a supervised network is trained at this tier: at least so many steps and passes over its labels."""
    steps, passes = lesson.pick(smoke=20, cpu=200, gpu=1000), lesson.pick(smoke=1, cpu=4, gpu=20)
    return {"views": "strong", "steps": steps, "passes": passes, "batch_size": BATCH, "lr": 2e-3, "label_smoothing": 0.1}


def record_of(lesson, tested: Mapping, validation: Mapping, images, per_class: int, method: str = METHOD, **fields) -> dict:
    """A record of it. tested: seed -> Result on the test images; validation: seed -> accuracy, a fraction. fields: network, settings."""
    found = lesson.record_runs(method, list(tested.values()), images, per_class, seed=list(tested), **fields)
    found["metrics"]["validation"] = results.over_runs([validation[s] for s in tested], n=len(images.validation_labels))
    return found


def read(lesson, images, per_class: int, seeds: Sequence[int], network: str) -> dict | None:
    """The record of supervised training on per_class labels of each class: of those of lesson 1 the best on validation, None without any.

    The learner's records and those that came with the course count, of these images, labels and network, with a number of each seed.
    """
    wanted = {"dataset": lesson.dataset, "labels": per_class * images.num_classes, "network": network, "image_size": images.size}
    known = [r for r in results.read(lesson.results_dir) if r["tier"] == lesson.tier] + results.reference(lesson=1)
    known = [r for r in known if r["lesson"] == 1 and r["method"].split(",")[0] == METHOD and wanted.items() <= r.items()]
    known = [r for r in known if r["identity"] in (None, images.identity) and {*seeds} <= comparison.single_runs(r).keys()]
    return max(known, key=lambda record: record["metrics"].get("validation", {"value": 0})["value"], default=None)


def baselines(lesson, images, counts, main: int, seeds: Sequence[int], network: str, make_encoder: Callable) -> dict[int, dict]:
    """Labels a class -> the record of the baseline, where lesson 1 left one; that of the main number is trained now where it did not.

    network: the name of what make_encoder makes, such as "ResNet-9, width 16"; another network is no fair rival.
    """
    found = {n: read(lesson, images, n, seeds, network) for n in counts}
    if not found[main]:
        how, tested, validation = settings_of(lesson), {}, {}
        print(f"Lesson 1 left no record of {main} labels a class here, so the baseline is trained now, for only {how['steps']} steps.")
        for seed in seeds:
            labelled = images.few_labels(main, seed)
            torch.manual_seed(seed)
            model = models.Classifier(make_encoder(), images.num_classes).to(lesson.device)
            options = {name: how[name] for name in ("batch_size", "lr", "label_smoothing")} | {"seed": seed, "validate_every": 0}
            epochs = training.epochs_for(len(labelled.train_labels), how["steps"], how["passes"], BATCH)
            options |= {"augmentation": augment.strong(images.size), "name": f"supervised, {main} a class, seed {seed}"}
            history = training.fit_classifier(model, labelled, epochs, **options)
            tested[seed] = evaluation.evaluate(model, images.test_images, images.test_labels, images.class_names)
            validation[seed] = history.final.get("validation_accuracy", 0.0)
        found[main] = record_of(lesson, tested, validation, images, main, network=network, settings=how)
    return {n: record for n, record in found.items() if record}


def probes(groups: Mapping, images, counts: Sequence[int], split: str = "test", **options) -> dict[str, dict[int, dict]]:
    """Linear probes with few labels: name -> labels a class -> seed -> Result on a split.

    groups: name -> (encoders by the seed of their labels, the block to read). A probe sees its images in weak views, as the baseline sees
    them in strong ones. options: those of `evaluation.features`.
    """
    view, found = augment.weak(options.get("size") or images.size), {}
    for name, (encoders, block) in groups.items():
        found[name] = {n: {} for n in counts}
        for seed, encoder in encoders.items():
            whole = evaluation.feature_set(encoder, images.few_labels(1, seed), block=block, **options)
            for n in counts:
                seen = evaluation.in_views(whole, encoder, images.few_labels(n, seed), view, block=block, seed=seed)
                found[name][n][seed] = evaluation.linear_probe(seen, split=split)
    return found


def curves(tested: Mapping[str, Mapping[int, Mapping]], baselines: Mapping[int, Mapping], *, title: str, num_classes: int) -> None:
    """Test accuracy against labels a class, with standard errors over seeds. tested: as `probes` finds it. baselines: n -> its record."""
    x, series, errors = {}, {}, {}
    for name, row in tested.items():
        pairs = [evaluation.mean_and_error([100 * result.top1 for result in runs.values()]) for runs in row.values()]
        x[name], (series[name], errors[name]) = list(row), zip(*pairs, strict=True)
    top1 = [record["metrics"]["top1"] for record in baselines.values()]
    x[METHOD], series[METHOD] = list(baselines), [100 * found["value"] for found in top1]
    errors[METHOD] = [100 * (found["standard_error"] or math.nan) for found in top1]
    where = {"xlabel": "labelled images a class", "ylabel": "test accuracy, %", "log_x": True}
    plots.lines(x, series, errors=errors, title=title, chance=100 / num_classes, **where)
