"""Pretraining: resumed exactly after a real kill, what a row says, what is never touched, and what is refused."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import METHODS, coloured, image_set, rotation, same_weights, simclr, without_seconds
from torch import nn

from sslcourse import augment, datasets, diagnostics, evaluation, models, training
from sslcourse.diagnostics.guard import NonFiniteError, NonFiniteGuard
from sslcourse.errors import CourseError
from sslcourse.training import optimizers

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"epochs": 4, "batch_size": 16, "precision": "fp32", "progress": False, "look_every": 2}


EACH = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def pretrain(method, images=None, **options):
    return training.pretrain(method, images if images is not None else image_set(), **{**OPTIONS, **options})


# --- resuming -------------------------------------------------------------------------------------------------------------------------

KILLED = {
    "rotation": {"optimizer": "lars", "lr": 0.5, "weight_decay": 1e-4},
    "simclr": {"clip_norm": 0.5, "lr_scales": {"encoder": 0.5}},
}

CHILD = """
import json, sys, time
import torch
torch.set_num_threads(1)
import tiny
from sslcourse import training
name, options = json.loads(sys.argv[1])
method = tiny.METHODS[name]()
method.after_step = lambda step, steps: time.sleep(0.02)  # so that nobody comes too late to kill it
training.pretrain(method, tiny.image_set(), checkpoint=sys.argv[2], **options)
print("It finished before it was killed.")
"""


def epoch_of(file):
    """The epoch after which this checkpoint was written, 0 when there is none."""
    if not file.exists():
        return 0
    state = torch.load(io.BytesIO(file.read_bytes()), weights_only=True)
    return state["history"]["rows"][-1]["epoch"]


def killed_in_training(name, file):
    """Train in another process until there is a checkpoint of epoch 5 of 10, and kill that process. Returns the epoch that is left."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, json.dumps([name, {**OPTIONS, "epochs": 10, **KILLED[name]}]), str(file)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        patience = time.monotonic() + 120
        while epoch_of(file) < 5:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < patience, "no checkpoint of epoch 5 after two minutes"
            time.sleep(0.005)
    finally:
        process.kill()  # SIGKILL: nothing in that process runs after this
        output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    return epoch_of(file)


@pytest.mark.parametrize("name", KILLED)
def test_a_run_that_was_killed_ends_exactly_as_an_uninterrupted_one(name, tmp_path):
    make, options = METHODS[name], KILLED[name]
    whole, again = make(), make(seed=1)  # the second's own weights must not matter
    expected = pretrain(whole, epochs=10, **options)
    left = killed_in_training(name, tmp_path / "run.pt")
    assert 5 <= left < 10
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".pt") == ["run.previous.pt", "run.pt"]
    torch.manual_seed(4321)
    resumed = pretrain(again, epochs=10, checkpoint=tmp_path / "run.pt", **options)
    assert same_weights(again, whole)
    assert without_seconds(resumed) == without_seconds(expected)
    assert len(expected.rows) == 10 and not same_weights(whole, make())


@EACH
@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"optimizer": "lars", "lr": 0.5}, {"precision": "bf16", "clip_norm": 1.0}])
def test_a_run_in_two_parts_ends_exactly_as_one(make, options, tmp_path):
    whole, first, second = make(), make(), make(seed=1)
    expected = pretrain(whole, **options)
    half = pretrain(first, checkpoint=tmp_path / "run.pt", stop_after=2, **options)
    assert half["epoch"] == [1, 2] and not same_weights(first, whole)
    resumed = pretrain(second, checkpoint=tmp_path / "run.pt", **options)
    assert same_weights(second, whole) and without_seconds(resumed) == without_seconds(expected)
    assert resumed["seconds"] == sorted(resumed["seconds"])


@EACH
def test_a_finished_run_is_not_run_again(make, tmp_path):
    method, other = make(), make(seed=1)
    history = pretrain(method, epochs=2, checkpoint=tmp_path / "run.pt")
    assert pretrain(other, epochs=2, checkpoint=tmp_path / "run.pt").rows == history.rows
    assert same_weights(method, other) and not other.training


@pytest.mark.parametrize(
    "changed",
    [{"lr": 1e-3}, {"epochs": 7}, {"batch_size": 8}, {"seed": 1}, {"optimizer": "sgd"}, {"weight_decay": 0.5}, {"warmup": 0.3},
     {"clip_norm": 1.0}, {"lr_scales": {"encoder": 0.5}}, {"precision": "bf16"}],
)  # fmt: skip
def test_a_checkpoint_of_other_settings_is_refused_with_a_sentence(changed, tmp_path):
    pretrain(simclr(), checkpoint=tmp_path / "run.pt", stop_after=1)
    name = next(iter(changed))
    with pytest.raises(CourseError, match=rf"run\.pt belongs to a run with other settings: .*{name} .* there and .* here.*\. Delete it"):
        pretrain(simclr(), checkpoint=tmp_path / "run.pt", **changed)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: simclr(temperature=0.5), "temperature=0.2, views_together=True' there and 'temperature=0.5"),
        (lambda: simclr(views_together=False), "views_together=False' here"),
        (lambda: simclr(augmentation=augment.simclr(8, strength=0.5)), "augmentation 'Augmentation"),
        (lambda: simclr(width=5), "parameters"),
        (rotation, "method 'SimCLR' there and 'Rotation' here"),
    ],
)
def test_a_checkpoint_of_another_method_is_refused_with_a_sentence(make, sentence, tmp_path):
    pretrain(simclr(), checkpoint=tmp_path / "run.pt", stop_after=1)
    with pytest.raises(CourseError, match=f"other settings: .*{sentence}"):
        pretrain(make(), checkpoint=tmp_path / "run.pt")


def test_a_checkpoint_of_other_images_is_refused(tmp_path):
    pretrain(simclr(), checkpoint=tmp_path / "run.pt", stop_after=1)
    with pytest.raises(CourseError, match="images 48 there and 64 here"):
        pretrain(simclr(), image_set(n=64), checkpoint=tmp_path / "run.pt")


def test_numbers_of_numpy_do_not_spoil_a_checkpoint(tmp_path):
    numbers = {
        "lr": np.float64(1e-3),
        "seed": np.int64(3),
        "epochs": np.int64(2),
        "weight_decay": np.float32(0.1),
        "warmup": np.float64(0.2),
    }
    pretrain(rotation(), checkpoint=tmp_path / "run.pt", stop_after=1, **numbers)
    history = pretrain(rotation(), checkpoint=tmp_path / "run.pt", **numbers)
    assert history["epoch"] == [1, 2]
    history.save(tmp_path / "history.json")


# --- random numbers -------------------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("before", [0, 123])
def test_the_seed_decides_and_the_callers_random_state_is_left_alone(make, before):
    torch.manual_seed(before)
    state = torch.get_rng_state()
    method, again, other = make(), make(), make()
    pretrain(method, epochs=2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(999)
    pretrain(again, epochs=2, seed=7)
    pretrain(other, epochs=2, seed=8)
    assert same_weights(method, again) and not same_weights(method, other)


def test_looking_does_not_change_what_is_learned():
    often, never = simclr(), simclr()
    pretrain(often, look_every=1)
    pretrain(never, look_every=0)
    assert same_weights(often, never)


# --- what it reports ------------------------------------------------------------------------------------------------------------------

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


def test_the_last_row_has_a_look_also_where_it_is_stopped(tmp_path):
    history = pretrain(rotation(), epochs=6, look_every=5, checkpoint=tmp_path / "run.pt", stop_after=3)
    assert [("knn_accuracy" in row) for row in history.rows] == [False, False, True]


def test_it_need_not_look():
    assert not AT_LOOKS & set(pretrain(rotation(), epochs=2, look_every=0).final)


@pytest.mark.parametrize("n", [0, 1])
def test_it_does_not_look_where_there_is_nothing_to_see(n):
    images, labels = coloured(n, 1)
    assert not AT_LOOKS & set(pretrain(rotation(), image_set(validation_images=images, validation_labels=labels), epochs=1).final)


def test_without_labelled_images_it_looks_at_the_features_only():
    images, labels = coloured(0, 1)
    row = pretrain(rotation(), image_set(train_images=images, train_labels=labels), epochs=1).final
    assert AT_LOOKS & set(row) == AT_LOOKS - {"knn_accuracy"}


@pytest.mark.parametrize("view", [None, augment.simclr(12, mean=(0.2, 0.3, 0.4)), augment.byol_views(16)])
def test_a_look_is_what_evaluation_measures(view):
    method, images = simclr(augmentation=view), image_set(n=40)
    row = pretrain(method, images, epochs=2).final
    seen = {"transform": evaluation.evaluation_view(method.augmentation, 8), "precision": "fp32"}
    bank, rows = (evaluation.features(method.encoder, getattr(images, f"{name}_images"), **seen) for name in ("train", "validation"))
    found = evaluation.FeatureSet(bank, images.train_labels, rows, images.validation_labels, rows, images.validation_labels, list("rgb"))
    assert row["knn_accuracy"] == evaluation.knn_accuracy(found).top1
    spread = diagnostics.collapse(rows)
    assert (row["feature_std"], row["feature_rank"]) == (spread.std, spread.effective_rank)
    assert row["healthy_std"] == spread.healthy_std == 32**-0.5


def test_a_look_at_many_labelled_images_takes_some_of_every_class(monkeypatch):
    monkeypatch.setattr(training, "LOOK_IMAGES", 15)
    images, labels = coloured(90, 0)
    order = labels.argsort()  # the first 15 are all of one class
    validation, test = coloured(30, 1), (images[:0], labels[:0])
    spread = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    sets = dict(zip(("train", "validation", "test"), ((images[order], labels[order]), validation, test), strict=True))
    parts = {f"{name}_{kind}": part for name, pair in sets.items() for kind, part in zip(("images", "labels"), pair, strict=True)}
    row = pretrain(simclr(), datasets.ImageSet("coloured", ["red", "green", "blue"], **spread, **parts), epochs=2).final
    assert row["knn_accuracy"] > 0.6  # from one class alone it cannot be more than 0.34


def test_no_label_is_learned_from_and_the_test_split_is_never_touched():
    images, method, other = image_set(), simclr(), simclr()
    pretrain(method, images)  # its test split complains when it is touched
    shuffled = images.train_labels.flip(0)
    pretrain(
        other, image_set(train_labels=shuffled, train_images=images.train_images.flip(0), validation_labels=images.validation_labels * 0)
    )
    assert same_weights(method, other)


# --- what it learns -------------------------------------------------------------------------------------------------------------------


def upright(n, seed):
    """Images whose upper half is brighter: their quarter turns can be told apart."""
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    images[:, :, :4] += 120
    return images


def test_rotation_learns_which_way_is_up():
    history = pretrain(rotation(), image_set(unlabeled=upright(64, 0)), epochs=10, lr=1e-2, look_every=0)
    assert history["loss"][0] > 0.5 * math.log(4) and history.final["loss"] < 0.25 * math.log(4)
    assert history.final["rotation_accuracy"] > 0.9  # guessing: 0.25


def test_simclr_learns_what_its_views_share():
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 200, (64, 3, 1, 1), generator=generator) + torch.randint(0, 56, (64, 3, 8, 8), generator=generator)
    method = simclr(augmentation=augment.weak(8))  # flips and shifts, which leave an image its colour
    history = pretrain(method, image_set(unlabeled=colours.byte()), epochs=15, lr=1e-2, look_every=0)
    assert history.final["loss"] < history["loss"][0] - 0.3
    assert history.final["loss"] < history.final["chance_loss"] - 1


@EACH
def test_mean_loss_and_metric_of_an_epoch(make):
    # at such a rate nothing moves but the batch statistics, which training does not use
    method, view = make(augmentation=augment.evaluation(8)), augment.evaluation(8)
    history = pretrain(method, epochs=1, lr=1e-12, look_every=0)
    reference = make(augmentation=view).train()
    loader = training.TensorLoader(image_set().unlabeled, batch_size=16, shuffle=True, drop_last=True, seed=0)
    seen = [(reference(x).item(), *[value.item() for value in reference.metrics.values()]) for (x,) in loader]
    expected = torch.tensor(seen).mean(0).tolist()
    assert [history.final["loss"], history.final[next(iter(method.metrics))]] == pytest.approx(expected, abs=1e-4)


# --- how it steps ---------------------------------------------------------------------------------------------------------------------


class Counting(models.Rotation):
    """Writes down what its hook is told."""

    def after_step(self, step, steps):
        self.__dict__.setdefault("told", []).append((step, steps))


def counting():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Counting(models.resnet9(4))


def test_the_hook_after_a_step_is_told_its_number(tmp_path):
    method = counting()
    pretrain(method, epochs=4)
    assert method.told == [(step, 12) for step in range(1, 13)]
    first, second = counting(), counting()
    pretrain(first, epochs=4, checkpoint=tmp_path / "run.pt", stop_after=3)
    pretrain(second, epochs=4, checkpoint=tmp_path / "run.pt")
    assert first.told + second.told == method.told and len(first.told) == 9


@pytest.mark.parametrize(("optimizer", "decay"), [("adamw", 0.05), ("sgd", 5e-4), ("lars", 1e-6)])
def test_each_optimizer_has_its_weight_decay(optimizer, decay, monkeypatch):
    made = []
    original = optimizers.make_optimizer
    monkeypatch.setattr(training, "make_optimizer", lambda *args, **options: made.append(original(*args, **options)) or made[-1])
    history = pretrain(rotation(), epochs=1, optimizer=optimizer, lr_scales={"encoder": 0.1})
    assert history.settings["weight_decay"] == decay
    assert [(g["lr_scale"], g["weight_decay"]) for g in made[0].param_groups] == [(1.0, decay), (1.0, 0.0), (0.1, decay), (0.1, 0.0)]
    assert pretrain(rotation(), epochs=1, optimizer=optimizer, weight_decay=0.0).settings["weight_decay"] == 0.0


def test_clipping_limits_the_step():
    start = rotation()
    length = {}
    for clip in (None, 1e-3):
        method = rotation()
        pretrain(method, epochs=1, optimizer="sgd", lr=0.1, weight_decay=0.0, clip_norm=clip, look_every=0)
        moved = [(a - b).square().sum() for a, b in zip(method.parameters(), start.parameters(), strict=True)]
        length[clip] = torch.stack(moved).sum().sqrt().item()
    # three steps of at most lr · 1e-3, which Nesterov's momentum of 0.9 makes (1.9 + 2.71 + 3.44) times as long
    assert 0 < length[1e-3] <= 0.1 * 1e-3 * 8.1 < length[None]


def test_frozen_parts_stay_as_they_are():
    method, start = simclr(), simclr()
    method.encoder.blocks[0].requires_grad_(False)
    pretrain(method, epochs=1)
    assert torch.equal(method.encoder.blocks[0][0].weight, start.encoder.blocks[0][0].weight)
    assert not torch.equal(method.encoder.blocks[1][0].weight, start.encoder.blocks[1][0].weight)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@EACH
def test_half_precision_keeps_the_weights_in_fp32(make, precision):
    method = make()
    history = pretrain(method, epochs=1, precision=precision)
    assert history.settings["precision"] == precision and math.isfinite(history.final["loss"])
    assert {p.dtype for p in method.parameters()} == {torch.float32} and all(p.isfinite().all() for p in method.parameters())


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


def test_an_image_set_of_the_course():
    parts = {}
    for seed, name in enumerate(("train", "validation", "test")):
        parts[f"{name}_images"], parts[f"{name}_labels"] = coloured(32, seed)
    images = datasets.ImageSet(name="coloured", class_names=["red", "green", "blue"], mean=(0.5,) * 3, std=(0.25,) * 3, **parts)
    assert pretrain(simclr(), images, epochs=1).settings["images"] == 32


# --- what goes wrong ------------------------------------------------------------------------------------------------------------------


@EACH
def test_a_loss_that_is_not_finite_ends_the_run_with_a_warning(make, tmp_path):
    method, file = make(), tmp_path / "run.pt"
    pretrain(method, checkpoint=file, stop_after=2)
    broken = make()
    broken.after_step = lambda step, steps: step == 8 and nn.init.constant_(broken.encoder.blocks[0][0].weight, math.nan)
    with pytest.warns(UserWarning, match=r"The loss was nan in epoch 3; lower lr \(it is 0.002\)") as caught:
        history = pretrain(broken, checkpoint=file)
    assert caught[0].filename == __file__  # it points to where pretrain was called
    assert history["epoch"] == [1, 2, 3] and "epoch 3" in history.stopped
    assert math.isfinite(history["loss"][1]) and math.isnan(history["loss"][2]) and not AT_LOOKS & set(history.final)
    history.save(tmp_path / "history.json")
    assert json.loads((tmp_path / "history.json").read_text())["rows"][2]["loss"] is None
    # the last good checkpoint is still there, and a run without the fault goes on from it as if nothing had happened
    whole, again = make(), make(seed=1)
    expected = pretrain(whole)
    assert pretrain(again, checkpoint=file)["loss"] == expected["loss"] and same_weights(again, whole)


@EACH
def test_a_guard_stops_at_the_first_bad_step_and_keeps_the_last_checkpoint(make, tmp_path):
    method, file = make(), tmp_path / "run.pt"
    pretrain(method, checkpoint=file, stop_after=2)
    kept = file.read_bytes()
    broken = make()
    broken.after_step = lambda step, steps: step == 8 and nn.init.constant_(broken.encoder.blocks[0][0].weight, math.nan)
    guard = NonFiniteGuard(tmp_path / "found")
    with pytest.raises(NonFiniteError, match="step 8|step 9") as caught:
        pretrain(broken, checkpoint=file, guard=guard)
    assert "encoder.blocks.0.0.weight" in str(caught.value)
    assert file.read_bytes() == kept


@EACH
def test_a_guard_changes_nothing_in_a_healthy_run(make, tmp_path):
    alone, guarded = make(), make()
    pretrain(alone, clip_norm=0.5)
    pretrain(guarded, clip_norm=0.5, guard=NonFiniteGuard(tmp_path))
    assert same_weights(alone, guarded) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "epochs .*at least 1, not 0"),
        ({"epochs": 1.5}, "epochs .*whole number.*not 1.5"),
        ({"lr": 0.0}, "lr must be positive, not 0.0"),
        ({"lr": math.nan}, "lr must be positive, not nan"),
        ({"batch_size": 0}, "batch_size must be a positive whole number, not 0"),
        ({"batch_size": 49}, "48 rows, batch_size 49. Take a smaller batch_size"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, lars, not 'adam'"),
        ({"warmup": 1.0}, "warmup"),
        ({"clip_norm": 0.0}, "clip_norm .*positive, or None, not 0.0"),
        ({"lr_scales": {"body": 0.1}}, "lr_scales names body"),
        ({"precision": "double"}, "precision must be one of"),
    ],
)
def test_impossible_options_are_refused_with_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=rf"{sentence}.*\.$"):
        pretrain(rotation(), **options)


def test_simclr_cannot_learn_from_one_image_a_batch():
    with pytest.raises(ValueError, match="batch_size"):
        pretrain(simclr(), batch_size=1)


@pytest.mark.parametrize("images", [torch.zeros(32, 3, 8, 8, dtype=torch.uint8), "toybox", None])
def test_what_is_no_data_set_is_refused_with_a_sentence(images):
    with pytest.raises(TypeError, match=f"images must be a datasets.ImageSet.*not {type(images).__name__}"):
        training.pretrain(rotation(), images, 1)


def test_images_that_are_not_uint8_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="uint8 images"):
        pretrain(rotation(), image_set(unlabeled=torch.zeros(32, 3, 8, 8)))


@pytest.mark.parametrize("name", ["run.pt", None])
def test_a_run_that_is_asked_to_stop_says_whether_it_can_go_on(tmp_path, name):
    hooks = training.Hooks()
    hooks.on_row = lambda row, history: setattr(hooks, "asked", True)
    kept = tmp_path / name if name else None
    way_on = "The same call goes on from there" if name else "It had no checkpoint file, so the same call begins anew"
    with pytest.raises(training.Stopped, match=f"Stopped as asked, after step . {way_on}".replace("step .", r"step \d+\.")):
        training.pretrain(simclr(), image_set(), **OPTIONS, hooks=hooks, checkpoint=kept)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".pt"] == ([name] if name else [])
