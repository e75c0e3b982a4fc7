"""Pretraining: what a row says, what a look measures, what is never touched, and what is learned."""

import math

import pytest
import torch
from tiny import METHODS, coloured, image_set, known_set, rotation, same_weights, simclr
from torch import nn

from sslcourse import augment, diagnostics, evaluation, models, training
from sslcourse.devices import seeded
from sslcourse.loaders import TensorLoader
from sslcourse.training import tasks

pytestmark = pytest.mark.usefixtures("one_thread")


def pretrain(method, images=None, **options):
    how = {"epochs": 4, "batch_size": 16, "precision": "fp32", "progress": False, "look_every": 2}
    return training.pretrain(method, images if images is not None else image_set(), **{**how, **options})


ALWAYS = {"epoch", "step", "lr", "loss", "chance_loss", "seconds"}
AT_LOOKS = {"feature_std", "healthy_std", "feature_rank", "knn_accuracy"}


@pytest.mark.parametrize(("make", "metric"), [(rotation, "rotation_accuracy"), (simclr, "positive_similarity")])
def test_a_row_an_epoch_and_more_at_looks(make, metric):
    method = make()
    history = pretrain(method, epochs=5, look_every=2)
    assert history["epoch"] == [1, 2, 3, 4, 5] and history["step"] == [3, 6, 9, 12, 15]
    for row in history.rows:
        assert set(row) == ALWAYS | {metric} | (AT_LOOKS if row["epoch"] in (2, 4, 5) else set())
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
    assert history["chance_loss"] == [method.chance_loss(16)] * 5
    assert history.final["lr"] == pytest.approx(0, abs=1e-9) and max(history["lr"]) <= 2e-3
    assert history.stopped == "" and not method.training


def test_it_looks_at_what_there_is_also_where_it_is_stopped():
    images, labels = coloured(0, 1)
    history = pretrain(rotation(), image_set(train_images=images, train_labels=labels), epochs=6, look_every=5, stop_after=2)
    assert [AT_LOOKS & set(row) for row in history.rows] == [set(), AT_LOOKS - {"knn_accuracy"}]
    assert not AT_LOOKS & set(pretrain(rotation(), image_set(validation_images=images, validation_labels=labels), epochs=1).final)


@pytest.mark.parametrize(("method", "options", "named"), [
    (simclr, {"batch_size": 1}, "batch_size"), (rotation, {"images": image_set(unlabeled=torch.zeros(32, 3, 8, 8))}, "uint8 images"),
])  # fmt: skip
def test_batches_and_images_that_cannot_be_are_refused(method, options, named):
    with pytest.raises(ValueError, match=named):
        pretrain(method(), **options)


@pytest.mark.parametrize("view", [None, augment.simclr(12, mean=(0.2, 0.3, 0.4))])
def test_a_look_is_what_evaluation_measures(view):
    method, images = simclr(augmentation=view), image_set(n=40)
    row = pretrain(method, images, epochs=2).final
    seen = {"transform": evaluation.evaluation_view(method.augmentation, 8)}
    bank, rows = (evaluation.features(method.encoder, getattr(images, f"{name}_images"), **seen) for name in ("train", "validation"))
    found = evaluation.FeatureSet(bank, images.train_labels, rows, images.validation_labels, rows, images.validation_labels, list("rgb"))
    assert row["knn_accuracy"] == evaluation.knn_accuracy(found).top1
    spread = diagnostics.collapse(rows)
    assert (row["feature_std"], row["feature_rank"]) == (spread.std, spread.effective_rank)
    assert row["healthy_std"] == spread.healthy_std == 32**-0.5


def test_a_look_at_many_labelled_images_takes_some_of_every_class(monkeypatch):
    monkeypatch.setattr(tasks, "LOOK_IMAGES", 15)
    images, labels = coloured(90, 0)
    order = labels.argsort()  # the first 15 are all of one class
    row = pretrain(simclr(), known_set(images[order], labels[order], *coloured(30, 1), images[:0], labels[:0]), epochs=2).final
    assert row["knn_accuracy"] > 0.6  # from one class alone it cannot be more than 0.34


def test_no_label_is_learned_from_and_the_test_split_is_never_touched():
    images, method, other = image_set(), simclr(), simclr()
    pretrain(method, images)  # its test split complains when it is touched
    labels = {"train_labels": images.train_labels * 0, "validation_labels": images.validation_labels * 0}
    pretrain(other, image_set(**labels))
    assert same_weights(method, other)


def upright(n, seed):
    """Images whose upper half is brighter: their quarter turns can be told apart."""
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    images[:, :, :4] += 120
    return images


def test_rotation_learns_which_way_is_up():
    history = pretrain(rotation(), image_set(unlabeled=upright(64, 0)), epochs=10, lr=1e-2, look_every=0)
    assert history["loss"][0] > 0.5 * math.log(4) and history.final["loss"] < 0.25 * math.log(4)
    assert history.final["rotation_accuracy"] > 0.9  # guessing: 0.25


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_mean_loss_and_metrics_of_an_epoch(make):
    # at such a rate nothing moves but the batch statistics, which training does not use
    method, view = make(augmentation=augment.evaluation(8)), augment.evaluation(8)
    history = pretrain(method, epochs=1, lr=1e-12, look_every=0)
    reference = make(augmentation=view).train()
    loader = TensorLoader(image_set().unlabeled, batch_size=16, shuffle=True, drop_last=True, seed=0)
    with seeded(0):  # what MAE hides is drawn
        seen = [(reference(x).item(), *[value.item() for value in reference.metrics.values()]) for (x,) in loader]
    expected = torch.tensor(seen).mean(0).tolist()
    assert [history.final[name] for name in ("loss", *method.metrics)] == pytest.approx(expected, abs=1e-4)


def test_any_module_with_an_encoder_can_be_trained():
    class Reconstruction(nn.Module):
        """Guess the mean colour."""

        def __init__(self):
            super().__init__()
            self.encoder, self.head = models.resnet9(4), nn.Linear(32, 3)

        def forward(self, images):
            x = augment.evaluation(8)(images)
            return (self.head(self.encoder(x)) - x.mean((2, 3))).square().mean()

    torch.manual_seed(0)
    history = pretrain(Reconstruction(), epochs=6, lr=1e-2)
    assert "chance_loss" not in history.final and history.final["loss"] < history["loss"][0]
    assert AT_LOOKS <= set(history.final)
