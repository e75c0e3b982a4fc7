"""The number to beat: supervised training on few labels, as lesson 1 defends it. Lessons 2 to 7 read it here, or train it now."""

from collections.abc import Callable, Mapping, Sequence

import torch

from sslcourse import augment, evaluation, models, results, training

METHOD = "supervised"
BATCH = 64
PASSES = 8  # over the labelled images at least, so that many labels get more steps


def steps_for(lesson) -> int:
    """How many steps a supervised network gets at this tier, at least."""
    return lesson.pick(smoke=10, cpu=300, gpu=1000)


def train(
    lesson, images, per_class: int, seed: int, make_encoder: Callable, view: Callable = augment.strong, steps: int = 0, **options
) -> tuple[models.Classifier, training.History]:
    """A fresh classifier, trained on per_class labels of each class, and its History.

    view: from pixels a side to an augmentation. steps: 0 takes those of the tier. options: those of `training.fit_classifier`.
    """
    labelled = images.few_labels(per_class, seed)
    torch.manual_seed(seed)
    model = models.Classifier(make_encoder(), images.num_classes).to(lesson.device)
    epochs = training.epochs_for(len(labelled.train_labels), steps or steps_for(lesson), PASSES, BATCH)
    how = {"batch_size": BATCH, "seed": seed, "validate_every": 0, "augmentation": view(images.size)}
    how["name"] = f"supervised, {per_class} a class, seed {seed}"
    return model, training.fit_classifier(model, labelled, epochs, **(how | options))


def record_of(
    lesson, tested: Mapping[int, evaluation.Result], images, per_class: int, network: str, validation: Mapping[int, float]
) -> dict:  # fmt: skip
    """The record of the baseline. tested: seed -> Result on the test images; validation: seed -> accuracy on the validation images."""
    seeds = list(tested)
    settings = {"steps": steps_for(lesson), "passes": PASSES, "batch_size": BATCH, "lr": 2e-3, "label_smoothing": 0.1, "views": "strong"}
    found = lesson.record_runs(METHOD, list(tested.values()), images, per_class, seed=seeds, network=network, settings=settings)
    found["metrics"]["validation"] = results.over_runs([validation[seed] for seed in seeds], n=len(images.validation_labels))
    return found


def baseline(lesson, images, per_class: int, seeds: Sequence[int], network: str, make_encoder: Callable) -> dict:
    """The record of supervised training on per_class labels of each class: lesson 1's own, or the course's, or one trained now.

    network: the name of what make_encoder makes, such as "ResNet-9, width 16"; another network is no fair rival.
    """
    wanted = {"method": METHOD, "dataset": lesson.dataset, "labels": per_class * images.num_classes, "network": network}
    wanted["image_size"] = images.size
    own = [r for r in results.read(lesson.results_dir) if r["tier"] == lesson.tier]
    for record in [*own, *results.reference(lesson=1)]:
        fits = all(record.get(name) == value for name, value in wanted.items())
        if fits and record["lesson"] == 1 and record["identity"] in (None, images.identity) and len({*seeds} & {*record["seeds"]}) > 1:
            return record
    print(f"Lesson 1 left no record of {wanted['labels']} labels here, so its baseline is trained now, {len(seeds)} times.")
    tested, validation = {}, {}
    for seed in seeds:
        model, history = train(lesson, images, per_class, seed, make_encoder)
        tested[seed] = evaluation.evaluate(model, images.test_images, images.test_labels, images.class_names)
        validation[seed] = history.final["validation_accuracy"]
    return record_of(lesson, tested, images, per_class, network, validation)
