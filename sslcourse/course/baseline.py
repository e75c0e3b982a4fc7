"""The number to beat: supervised training on few labels, as lesson 1 defends it. Lessons 2 to 7 read it here, or train it now."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from sslcourse import augment, evaluation, models, results, training
from sslcourse.course import comparison

METHOD, BATCH = "supervised", 64
ENCODER_LR_SCALE = 0.5  # in fine-tuning, of the rate of the new head
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
    """Labels per class -> the record of the baseline, where lesson 1 left one; that of the main number is trained now where it did not.

    network: the name of what make_encoder makes, such as "ResNet-9, width 16"; another network is no fair rival.
    """
    found = {n: read(lesson, images, n, seeds, network) for n in counts}
    if not found[main]:
        how, tested, validation = settings_of(lesson), {}, {}
        print(f"Lesson 1 left no record of {main} labels per class here, so the baseline is trained now, for only {how['steps']} steps.")
        for seed in seeds:
            labelled = images.few_labels(main, seed)
            torch.manual_seed(seed)
            model = models.Classifier(make_encoder(), images.num_classes).to(lesson.device)
            options = {name: how[name] for name in ("batch_size", "lr", "label_smoothing")} | {"seed": seed, "validate_every": 0}
            epochs = training.epochs_for(len(labelled.train_labels), how["steps"], how["passes"], BATCH)
            options |= {"augmentation": augment.strong(images.size), "name": f"supervised, {main} per class, seed {seed}"}
            history = training.fit_classifier(model, labelled, epochs, **options)
            tested[seed] = evaluation.evaluate(model, images.test_images, images.test_labels, images.class_names)
            validation[seed] = history.final.get("validation_accuracy", 0.0)
        found[main] = record_of(lesson, tested, validation, images, main, network=network, settings=how)
    return {n: record for n, record in found.items() if record}


class Comparison:
    """A pretraining, read by probes and fine-tuned, against the baseline and an untrained network: seed by seed, on the same labels.

    name: of the pretraining, such as "SimCLR". encoders, untrained: encoders by seed. blocks: what probes read of the one and of the other.
    network: the name of what make_encoder makes. frozen: what tables call a probe. Probes see weak views, fine-tuning strong ones.

    tested: way -> labels per class -> seed -> Result on the test images. supervised: labels per class -> record of the baseline.
    percents: both, in percent. main: the labels per class with which the network is fine-tuned, per_class unless a class has fewer.
    """

    def __init__(
        self, lesson, images, name: str, encoders: Mapping, untrained: Mapping, blocks: Sequence[int], *, per_class: int, network: str,
        make_encoder: Callable, frozen: str = "frozen",
    ):  # fmt: skip
        smallest_class = int(torch.bincount(images.train_labels).min())
        self.lesson, self.images, self.name, self.network, self.encoders = lesson, images, name, network, encoders
        self.main, self.steps = min(per_class, smallest_class), lesson.pick(smoke=10, cpu=200, gpu=600)  # of fine-tuning, at least
        counts = sorted({n for n in (*lesson.pick(smoke=(2,), cpu=(2, 4, 10, 20, 50)), self.main) if n <= smallest_class})
        self.frozen, self.floor, self.tuned = f"{name}, {frozen}", "untrained, probe", f"{name}, fine-tuned"
        self.said = {self.frozen: f"frozen {name}" if frozen == "frozen" else f"the {name} probe", self.tuned: f"fine-tuned {name}"}
        self.said |= {self.floor: "the untrained network", METHOD: "supervised training"}
        self.blocks = dict(zip((self.frozen, self.floor), blocks, strict=True))
        self.supervised = baselines(lesson, images, counts, self.main, list(encoders), network, make_encoder)
        groups = {self.frozen: encoders, self.floor: untrained}
        self.tested = {way: probes(group, images, counts, block=self.blocks[way]) for way, group in groups.items()}
        self.tested[self.tuned] = {self.main: {seed: self.fine_tune(seed) for seed in encoders}}
        found = {way: {n: {s: 100 * r.top1 for s, r in runs.items()} for n, runs in row.items()} for way, row in self.tested.items()}
        self.percents = found | {METHOD: {n: comparison.single_runs(record) for n, record in self.supervised.items()}}

    def fine_tune(self, seed: int) -> evaluation.Result:
        """The pretrained encoder of this seed with a new head, trained further on the labels of this seed; seen on the test images."""
        epochs = training.epochs_for(self.main * self.images.num_classes, self.steps, self.lesson.pick(smoke=1, cpu=4))
        how = {"encoder_lr_scale": ENCODER_LR_SCALE, "augmentation": augment.strong(self.images.size), "batch_size": BATCH}
        how |= {"seed": seed, "validate_every": 0, "split": "test", "name": f"{self.main} per class, fine-tuned, seed {seed}"}
        return evaluation.fine_tune(self.encoders[seed], self.images.few_labels(self.main, seed), epochs, **how)

    def against(self, way: str, n: int, labels: int | None = None) -> evaluation.uncertainty.PairedRuns:
        """A way with n labels per class, less the baseline with as many, or with so many labels per class."""
        return evaluation.paired_runs(self.percents[way][n], self.percents[METHOD][labels or n])

    def verdicts(self) -> str:
        """Every comparison of these runs in a sentence, as a list in Markdown."""
        pairs = [(self.main, self.frozen, self.floor), (self.main, self.tuned, self.frozen), (self.main, self.tuned, METHOD)]
        told = "Seed by seed, on the same labels:\n"
        for n, first, second in [*pairs, *((n, self.frozen, METHOD) for n in self.supervised)]:
            found = evaluation.paired_runs(self.percents[first][n], self.percents[second][n])
            told += f"\n* {n} labels per class: {found.verdict(self.said[first], self.said[second])}"
        return told

    def curves(self, way: str) -> None:
        """Test accuracy against labels per class, with standard errors over seeds; the title says what became of this way."""
        title = f"{self.main} labels per class: {self.against(way, self.main).headline(self.said[way], METHOD)}"
        comparison.label_curves(self.percents, title=title, classes=self.images.num_classes)

    def headline(self) -> str:
        """What the lesson found, in a line."""
        runs = {way: self.percents[way][self.main].values() for way in (self.frozen, self.tuned, METHOD)}
        told = [results.percent(*evaluation.mean_and_error([value / 100 for value in found])) for found in runs.values()]
        labels = self.main * self.images.num_classes
        return f"{self.name}, {labels} labels: {told[0]} frozen, {told[1]} fine-tuned, supervised {told[2]} on {self.lesson.dataset}"

    def records(self, settings: Mapping) -> list[dict]:
        """Of every way and number of labels, and of the baseline where it was trained here. settings: of the pretraining."""
        how = {way: {"block": block, "views": "weak"} for way, block in self.blocks.items()}
        how[self.frozen] = dict(settings) | how[self.frozen]
        how[self.tuned] = dict(settings) | {"steps": self.steps, "encoder_lr_scale": ENCODER_LR_SCALE, "views": "strong"}
        found = [record for record in self.supervised.values() if record["lesson"] == self.lesson.number]
        for way, row in self.tested.items():
            about = {"seed": list(self.encoders), "network": self.network, "settings": how[way]}
            found += [self.lesson.record_runs(way, list(runs.values()), self.images, n, **about) for n, runs in row.items()]
        return found

    def keep(self, history) -> None:
        """Keep the first seed's encoder for lesson 7, and what fine-tuning made of it. history: of its pretraining."""
        seed, size = next(iter(self.encoders)), self.images.size
        tuned = self.tested[self.tuned][self.main][seed]
        minutes = [log.final["seconds"] / 60 for log in (history, tuned.history)]
        self.lesson.keep(self.encoders[seed], method=self.name, size=size, block=self.blocks[self.frozen], minutes=minutes[0])
        about = {"labels": self.main * self.images.num_classes, "class_names": self.images.class_names, "size": size}
        self.lesson.keep(tuned.model, method=self.tuned, minutes=sum(minutes), **about)


def probes(encoders: Mapping, images, counts: Sequence[int], *, block: int | None) -> dict[int, dict]:
    """Linear probes on the test images, few labels, weak views: labels per class -> seed -> Result. encoders: by the labels' seed."""
    view, found = augment.weak(images.size), {n: {} for n in counts}
    for seed, encoder in encoders.items():
        whole = evaluation.feature_set(encoder, images.few_labels(1, seed), block=block)
        for n in counts:
            seen = evaluation.in_views(whole, encoder, images.few_labels(n, seed), view, block=block, seed=seed)
            found[n][seed] = evaluation.linear_probe(seen, split="test")
    return found
