"""The training loop: schedule, groups, exact resume, checkpoints that are refused, random state, precision, and what is left behind."""

import json
import math
import pickle
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslcourse import augment, models, training
from sslcourse.errors import CourseError

pytestmark = pytest.mark.usefixtures("one_thread")


class NeverTouched:
    """Stands where the test split is, and complains about every use."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test split was touched ({name})")

    def __len__(self):
        raise AssertionError("the test split was touched (len)")

    def __getitem__(self, index):
        raise AssertionError("the test split was touched")


def coloured(n, seed, classes=3, size=8):
    """Images whose class is the channel that is bright."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 80, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % classes
    images[torch.arange(n), labels] += 150
    return images, labels


def image_set(n=48, validation=30, **changes):
    train, validated = coloured(n, 0), coloured(validation, 1)
    fields = {
        "name": "coloured", "size": 8, "class_names": ["red", "green", "blue"], "unlabeled": train[0],
        "train_images": train[0], "train_labels": train[1], "validation_images": validated[0], "validation_labels": validated[1],
        "test_images": NeverTouched(), "test_labels": NeverTouched(),
    }  # fmt: skip
    return types.SimpleNamespace(**{**fields, **changes})


def new_model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.Classifier(models.resnet9(4), 3)


OPTIONS = {"epochs": 6, "batch_size": 16, "precision": "fp32", "progress": False}


def fit(model, images=None, **options):
    return training.fit_classifier(model, images or image_set(), **{**OPTIONS, **options})


def same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


# --- pieces ---------------------------------------------------------------------------------------------------------------------------


def test_one_cycle_rises_along_a_line_and_falls_along_a_cosine():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=99.0)
    schedule = training.one_cycle(optimizer, lr=2.0, steps=20, warmup=0.25)
    seen = []
    for _ in range(20):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [2.0 * k / 5 for k in range(1, 6)] + [1 + math.cos(math.pi * k / 15) for k in range(15)]
    assert seen == pytest.approx(expected, abs=1e-12)
    assert max(seen) == 2.0
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_very_few_steps(steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = training.one_cycle(optimizer, lr=1.0, steps=steps)
    for _ in range(steps):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1
        optimizer.step()
        schedule.step()


def test_weight_decay_groups_hold_every_trained_parameter_once():
    model = new_model()
    frozen = model.encoder.blocks[0][0].weight.requires_grad_(False)
    decayed, others = training.decayed_and_not(model, 0.05)
    ids = [id(p) for group in (decayed, others) for p in group["params"]]
    assert len(set(ids)) == len(ids)
    assert set(ids) == {id(p) for p in model.parameters()} - {id(frozen)}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") and p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() == 1 for p in others["params"]) and others["params"]


def test_evaluation_mode_puts_every_module_back():
    model = new_model().train()
    model.encoder.eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(KeyError), training.evaluation_mode(model):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert [m.training for m in model.modules()] == before and model.training and not model.encoder.training


# --- precision ------------------------------------------------------------------------------------------------------------------------


def test_precision_is_chosen_or_taken():
    cpu = torch.device("cpu")
    assert training.choose_precision(cpu) in ("fp32", "bf16")
    for name in ("fp32", "bf16", "fp16"):
        assert training.choose_precision(cpu, name) == name
    with pytest.raises(ValueError, match="auto, fp32, bf16, fp16, not 'half'"):
        training.choose_precision(cpu, "half")


@pytest.mark.parametrize(("tiles", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu_depends_on_its_matrix_tiles(tiles, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert training.choose_precision(torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_on_a_gpu_depends_on_its_generation(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert training.choose_precision(torch.device("cuda")) == expected


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_computes_in_the_precision(precision, kind):
    with training.autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind


def test_a_run_in_bf16_keeps_its_weights_in_fp32():
    model = new_model()
    history = fit(model, epochs=1, precision="bf16")
    assert history.settings["precision"] == "bf16" and math.isfinite(history.final["loss"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# --- the run --------------------------------------------------------------------------------------------------------------------------


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
    # its checkpoint remembers why, and does not go on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fit(new_model(), checkpoint=file)
    assert again.stopped == history.stopped and len(again.rows) == 1


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


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def damaged(kind, good, witness):
    state = torch.load(good, weights_only=True)
    if kind == "truncated":
        good.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    elif kind == "empty":
        good.write_bytes(b"")
    elif kind == "text":
        good.write_text("these are not the weights you are looking for")
    elif kind == "malicious":
        torch.save({**state, "parts": Malicious(str(witness))}, good)
    elif kind == "malicious pickle":
        good.write_bytes(pickle.dumps(Malicious(str(witness)), protocol=2))
    elif kind == "foreign":
        torch.save(new_model().state_dict(), good)
    elif kind == "a list":
        torch.save([1, 2, 3], good)
    elif kind == "no settings":
        torch.save({**state, "settings": None}, good)
    elif kind == "future":
        torch.save({**state, "format": 99}, good)
    elif kind == "no parts":
        torch.save({**state, "parts": {}}, good)
    elif kind == "no random state":
        torch.save({**state, "rng": {}}, good)
    elif kind == "odd weights":
        state["parts"]["model"]["head.weight"] = torch.zeros(2, 2)
        torch.save(state, good)


@pytest.mark.parametrize(
    "kind",
    ["truncated", "empty", "text", "malicious", "malicious pickle", "foreign", "a list", "no settings", "future", "no parts",
     "no random state", "odd weights"],
)  # fmt: skip
def test_a_damaged_or_foreign_checkpoint_is_refused_and_nothing_in_it_runs(kind, tmp_path):
    file, witness = tmp_path / "run.pt", tmp_path / "witness"
    fit(new_model(), checkpoint=file, stop_after=1)
    damaged(kind, file, witness)
    with pytest.raises(CourseError, match=r"run\.pt .*Delete it to start the run anew, or name another file\."):
        fit(new_model(), checkpoint=file)
    assert not witness.exists()


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_half_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CourseError, match="could not be written.*another folder"):
        fit(new_model(), epochs=1, checkpoint=tmp_path / "file" / "run.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    fit(new_model(), checkpoint=file, stop_after=1)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CourseError, match="No space left on device"):
        fit(new_model(), checkpoint=file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


# --- History --------------------------------------------------------------------------------------------------------------------------


def test_history_gives_columns_and_says_what_it_has():
    history = training.History(rows=[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "accuracy": 0.5}])
    assert history["loss"] == [2.0, 1.0] and history.final["epoch"] == 2
    assert math.isnan(history["accuracy"][0]) and history["accuracy"][1] == 0.5
    with pytest.raises(KeyError, match="no column 'top1'; it has accuracy, epoch, loss"):
        history["top1"]
    with pytest.raises(KeyError, match="no rows yet"):
        training.History()["loss"]
    assert training.History().final == {}


def test_history_is_saved_as_json(tmp_path):
    history = fit(new_model(), epochs=1)
    file = tmp_path / "new" / "history.json"
    history.save(file)
    assert json.loads(file.read_text()) == {"rows": history.rows, "settings": history.settings, "stopped": ""}
