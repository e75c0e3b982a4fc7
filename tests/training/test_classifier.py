"""Training a classifier: what it learns, what is reported and when."""

import pytest
import torch
from tiny import image_set, new_model
from torch.nn import functional as F

from sslcourse import augment, training

pytestmark = pytest.mark.usefixtures("one_thread")


def fit(model, images=None, **options):
    how = {"epochs": 6, "batch_size": 16, "precision": "fp32", "progress": False}
    return training.fit_classifier(model, images or image_set(), **{**how, **options})


def test_epochs_make_the_steps_on_few_labels_and_the_passes_on_many():
    assert training.epochs_for(100, 250) == 250  # one step of 64 an epoch
    assert training.epochs_for(640, 250) == 25
    assert training.epochs_for(5_000, 250, passes=25) == 25  # 78 steps an epoch, so more than 250
    assert training.epochs_for(10, 250, batch_size=10) == 250 and training.epochs_for(5_000, 10) == 1


def test_few_images_are_one_batch_without_validation_split_and_others_give_rows_with_every_number():
    nothing = {"validation_images": torch.empty(0, 3, 8, 8, dtype=torch.uint8), "validation_labels": torch.empty(0, dtype=torch.long)}
    history = fit(new_model(), image_set(n=9, **nothing), epochs=2, batch_size=64)
    assert history["step"] == [1, 2] and "validation_loss" not in history.final
    history = fit(new_model(), epochs=3)
    assert history["epoch"] == [1, 2, 3] and history["step"] == [3, 6, 9] and history.stopped == ""
    assert list(history.final) == ["epoch", "step", "lr", "loss", "validation_loss", "validation_accuracy", "seconds"]
    assert history["seconds"] == sorted(history["seconds"]) and history.final["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("validate_every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [1, 2, 4, 5]), (0, [5])])
def test_how_often_it_looks_at_the_validation_split(validate_every, epochs):
    assert fit(new_model(), epochs=5, validate_every=validate_every)["epoch"] == epochs


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_the_loss_that_is_reported_is_smoothed_and_the_validation_loss_is_not(label_smoothing):
    # nothing moves at such a rate, so the numbers can be computed again from the first weights
    images, model, reference = image_set(n=16), new_model(), new_model().train()
    model.dropout.p = reference.dropout.p = 0.0
    plain = augment.evaluation(12, mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    history = fit(model, images, epochs=1, lr=1e-12, label_smoothing=label_smoothing, augmentation=plain)
    expected = F.cross_entropy(reference(plain(images.train_images)), images.train_labels, label_smoothing=label_smoothing)
    assert history.final["loss"] == pytest.approx(expected.item(), abs=1e-5)
    logits = model(plain(images.validation_images))  # seen as the others are; and the model is left in evaluation mode
    assert history.final["validation_loss"] == pytest.approx(F.cross_entropy(logits, images.validation_labels).item(), abs=1e-5)
    assert history.final["validation_accuracy"] == (logits.argmax(1) == images.validation_labels).double().mean().item()
