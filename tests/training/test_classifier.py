"""Training a classifier: exact resume, random state, what is reported, and what is refused."""

import io
import json
import math
import sys

import numpy as np
import pytest
import torch
from tiny import image_set, new_model, same_weights, without_seconds
from torch.nn import functional as F

from sslcourse import augment, models, training
from sslcourse.errors import CourseError

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"epochs": 6, "batch_size": 16, "precision": "fp32", "progress": False}


def fit(model, images=None, **options):
    return training.fit_classifier(model, images or image_set(), **{**OPTIONS, **options})


def test_epochs_make_the_steps_on_few_labels_and_the_passes_on_many():
    assert training.epochs_for(100, 250) == 250  # one step of 64 an epoch
    assert training.epochs_for(640, 250) == 25
    assert training.epochs_for(5_000, 250, passes=25) == 25  # 78 steps an epoch, so more than 250
    assert training.epochs_for(10, 250, batch_size=10) == 250 and training.epochs_for(5_000, 10) == 1
    history = fit(new_model(), epochs=training.epochs_for(48, 7, batch_size=16), batch_size=16)  # 3 steps an epoch
    assert history.final["step"] == 6


def test_the_bar_leaves_nothing_behind_in_a_notebook(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", kernel)
    fit(new_model(), epochs=2, progress=True)
    drawn = kernel.getvalue()
    assert "2/2" in drawn and not drawn.rpartition("\r")[0].rpartition("\r")[2].strip() and drawn.endswith("\r")
    monkeypatch.undo()
    assert capsys.readouterr().err == ""
    fit(new_model(), epochs=2, progress=True)  # in a terminal, what is printed stays free of bars
    told = capsys.readouterr()
    assert told.out == "" and "2/2" in told.err


# --- the run --------------------------------------------------------------------------------------------------------------------------


def test_a_run_in_bf16_keeps_its_weights_in_fp32():
    model = new_model()
    history = fit(model, epochs=1, precision="bf16")
    assert history.settings["precision"] == "bf16" and math.isfinite(history.final["loss"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_it_learns_what_colour_alone_decides():
    model = new_model()
    history = fit(model, epochs=12, lr=1e-2)
    assert history.final["validation_accuracy"] > 0.8  # guessing: 0.33
    assert history.final["loss"] < history["loss"][0]
    assert not model.training


def test_a_row_an_epoch_with_every_number():
    history = fit(new_model(), epochs=3)
    assert history["epoch"] == [1, 2, 3] and history["step"] == [3, 6, 9]
    assert set(history.final) == {"epoch", "step", "lr", "loss", "validation_loss", "validation_accuracy", "seconds"}
    assert history["seconds"] == sorted(history["seconds"])
    assert history.final["lr"] == pytest.approx(0, abs=1e-9)
    assert history.stopped == ""


@pytest.mark.parametrize(("validate_every", "epochs"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (0, [5])])
def test_how_often_it_looks_at_the_validation_split(validate_every, epochs):
    assert fit(new_model(), epochs=5, validate_every=validate_every)["epoch"] == epochs


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_the_loss_that_is_reported_is_smoothed_and_the_validation_loss_is_not(label_smoothing):
    # nothing moves at such a rate, so the numbers can be computed again from the first weights
    images = image_set(n=16)
    model = new_model()
    model.dropout.p = 0.0
    reference = new_model().train()
    reference.dropout.p = 0.0
    history = fit(model, images, epochs=1, lr=1e-12, label_smoothing=label_smoothing, augmentation=augment.evaluation(8))
    logits = reference(augment.evaluation(8)(images.train_images))
    expected = F.cross_entropy(logits, images.train_labels, label_smoothing=label_smoothing).item()
    assert history.final["loss"] == pytest.approx(expected, abs=1e-5)
    model.eval()
    expected = F.cross_entropy(model(augment.evaluation(8)(images.validation_images)), images.validation_labels).item()
    assert history.final["validation_loss"] == pytest.approx(expected, abs=1e-5)


def test_more_images_a_batch_than_there_are():
    assert fit(new_model(), image_set(n=9), epochs=2, batch_size=64)["step"] == [1, 2]


def test_no_validation_images():
    images = image_set(validation_images=torch.empty(0, 3, 8, 8, dtype=torch.uint8), validation_labels=torch.empty(0, dtype=torch.long))
    assert "validation_loss" not in fit(new_model(), images, epochs=1).final


@pytest.mark.parametrize("before", [0, 123])
def test_the_seed_decides_and_the_callers_random_state_is_left_alone(before):
    torch.manual_seed(before)
    state = torch.get_rng_state()
    model = new_model()
    fit(model, epochs=2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(999)
    again, other = new_model(), new_model()
    fit(again, epochs=2, seed=7)
    fit(other, epochs=2, seed=8)
    assert same_weights(model, again) and not same_weights(model, other)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"lr": 0.0}, {"lr": math.nan}, {"precision": "double"}, {"batch_size": 0}])
def test_impossible_options_are_refused_with_a_sentence(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}.*\.$"):
        fit(new_model(), **options)


def test_what_is_no_data_set_is_refused_with_a_sentence():
    with pytest.raises(TypeError, match="datasets.ImageSet.*not Tensor"):
        training.fit_classifier(new_model(), torch.zeros(8, 3, 8, 8), 1)


def test_the_rate_that_is_reported_is_before_any_factor():
    scaled = fit(new_model(), epochs=4, lr_scales={"encoder": 3.0})
    assert scaled["lr"] == fit(new_model(), epochs=4)["lr"] and scaled["lr"][0] > 0


def test_validation_images_are_seen_as_the_training_images_are():
    view = {"mean": (0.2, 0.3, 0.4), "std": (0.1, 0.2, 0.3)}
    model = new_model()
    images = image_set()
    history = fit(model, images, epochs=1, augmentation=augment.weak(12, **view))
    logits = model(augment.evaluation(12, **view)(images.validation_images))
    assert history.final["validation_loss"] == pytest.approx(F.cross_entropy(logits, images.validation_labels).item(), abs=1e-4)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_warning(tmp_path):
    model = new_model()
    with torch.no_grad():
        model.head.bias[0] = math.nan
    file = tmp_path / "run.pt"
    with pytest.warns(UserWarning, match=r"The loss was nan in epoch 1; lower lr \(it is 0.002\)"):
        history = fit(model, checkpoint=file)
    assert history["epoch"] == [1] and "epoch 1" in history.stopped
    history.save(tmp_path / "history.json")
    assert json.loads((tmp_path / "history.json").read_text())["rows"][0]["loss"] is None
    assert not file.exists()  # nothing of it is kept as a state to go on from


# --- resuming -------------------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_exactly_as_an_uninterrupted_one(tmp_path):
    whole, first, second = new_model(), new_model(), new_model(seed=1)  # the second's own weights must not matter
    expected = fit(whole)
    half = fit(first, checkpoint=tmp_path / "run.pt", stop_after=3)
    assert half["epoch"] == [1, 2, 3] and not same_weights(first, whole)
    torch.manual_seed(4321)
    resumed = fit(second, checkpoint=tmp_path / "run.pt")
    assert same_weights(second, whole)
    assert without_seconds(resumed) == without_seconds(expected)
    assert resumed["seconds"] == sorted(resumed["seconds"])
    # interrupted at an epoch at which it does not look at the validation split
    fit(new_model(), checkpoint=tmp_path / "other.pt", stop_after=3, validate_every=2)
    third = new_model()
    fit(third, checkpoint=tmp_path / "other.pt", validate_every=2)
    assert same_weights(third, whole)


def test_numbers_of_numpy_do_not_spoil_a_checkpoint(tmp_path):
    numbers = {"lr": np.float64(1e-3), "seed": np.int64(3), "epochs": np.int64(2), "weight_decay": np.float32(0.1)}
    options = {**numbers, "lr_scales": {"encoder": np.float64(0.5)}, "checkpoint": tmp_path / "run.pt"}
    fit(new_model(), stop_after=1, **options)
    assert fit(new_model(), **options)["epoch"] == [1, 2]


def test_a_finished_run_is_not_run_again(tmp_path):
    model = new_model()
    history = fit(model, epochs=2, checkpoint=tmp_path / "run.pt")
    other = new_model(seed=1)
    again = fit(other, epochs=2, checkpoint=tmp_path / "run.pt")
    assert again.rows == history.rows and same_weights(model, other)


def test_stopping_where_it_stopped_before_does_nothing(tmp_path):
    fit(new_model(), checkpoint=tmp_path / "run.pt", stop_after=2)
    assert fit(new_model(), checkpoint=tmp_path / "run.pt", stop_after=2)["epoch"] == [1, 2]


@pytest.mark.parametrize("changed", [{"lr": 1e-3}, {"epochs": 7}, {"batch_size": 8}, {"seed": 1}, {"label_smoothing": 0.0}])
def test_a_checkpoint_of_other_settings_is_refused_with_a_sentence(changed, tmp_path):
    fit(new_model(), checkpoint=tmp_path / "run.pt", stop_after=1)
    ((name, value),) = changed.items()
    with pytest.raises(CourseError, match=rf"run\.pt belongs to a run with other settings: {name} .* there and {value} here\. Delete it"):
        fit(new_model(), checkpoint=tmp_path / "run.pt", **changed)


def test_a_checkpoint_of_another_augmentation_or_model_is_refused(tmp_path):
    fit(new_model(), checkpoint=tmp_path / "run.pt", stop_after=1)
    with pytest.raises(CourseError, match="augmentation"):
        fit(new_model(), checkpoint=tmp_path / "run.pt", augmentation=augment.simclr(8))
    with pytest.raises(CourseError, match="parameters"):
        fit(models.Classifier(models.resnet9(5), 3), checkpoint=tmp_path / "run.pt")
