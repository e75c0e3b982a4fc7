"""What all trainings have in common: exact resuming, random numbers, refusals, what ends a run, and what is called on the way."""

import functools
import io
import itertools
import math
import re
import sys
import types

import numpy as np
import pytest
import torch
from tiny import byol, image_set, new_model, rotation, same_weights, simclr, without_seconds
from torch import nn

from sslcourse import augment, display, models, training
from sslcourse.diagnostics import NonFiniteError, NonFiniteGuard
from sslcourse.errors import CourseError
from sslcourse.training import callbacks

pytestmark = pytest.mark.usefixtures("one_thread")


def fixmatch(seed=0, **options):
    return models.FixMatch(new_model(seed), **{"threshold": 0.4, **options})


# name -> what makes the model, what trains it and how, and what its encoder is called in lr_scales
KINDS = {
    "classifier": (new_model, training.fit_classifier, {"batch_size": 16, "validate_every": 2}, "encoder"),
    "simclr": (simclr, training.pretrain, {"batch_size": 16, "look_every": 2}, "encoder"),
    "fixmatch": (fixmatch, training.fit_semi_supervised, {"batch_size": 6, "unlabeled_ratio": 2}, "classifier.encoder"),
    "byol": (byol, training.pretrain, {"batch_size": 16, "look_every": 2, "lr_scales": {"predictor": 5.0}}, "encoder"),
}
EACH = pytest.mark.parametrize("kind", ["classifier", "simclr", "fixmatch"])


def fit(kind, model, images=None, epochs=4, **options):
    _, train, how, _ = KINDS[kind]
    images = images if images is not None else image_set()
    return train(model, images, epochs, **{"precision": "fp32", "progress": False, **how, **options})


def make(kind, seed=0):
    return KINDS[kind][0](seed)


class AtStep(training.Callback):
    """Does something after this step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def after_step(self, run):
        if run.step == self.step:
            self.what(run)


@EACH
@pytest.mark.parametrize("faster", [1, 2])
def test_the_faster_number_of_threads_is_measured_once_and_leaves_no_other_trace(kind, faster, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pace, clock, said = {faster: 1, 3 - faster: 3}, itertools.count(), []
    own_clock = types.SimpleNamespace(perf_counter=lambda: next(clock) * pace[torch.get_num_threads()])
    monkeypatch.setattr(callbacks, "time", own_clock)
    plain, measured, second = make(kind), make(kind), make(kind)
    torch.set_num_threads(faster)
    expected = fit(kind, plain)
    torch.set_num_threads(2)
    fit(kind, measured, checkpoint=tmp_path / "run.pt", stop_after=2, callbacks=[training.FasterThreads(said.append)])
    pace.update({faster: 3, 3 - faster: 1})  # the neighbour comes, or goes
    resumed = fit(kind, second, checkpoint=tmp_path / "run.pt", callbacks=[training.FasterThreads(said.append)])
    assert same_weights(second, plain) and without_seconds(resumed) == without_seconds(expected)
    assert resumed.settings["threads"] == faster and said == [said[0]] * 2 and f"{faster} of 2 threads" in said[0]
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "threads" not in fit(kind, make(kind), epochs=1, callbacks=[training.FasterThreads(said.append)]).settings and len(said) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"optimizer": "lars", "lr": 0.5, "precision": "bf16"}, {"optimizer": "sgd", "clip_norm": 0.5}])
def test_a_run_in_two_parts_ends_exactly_as_one(kind, options, tmp_path):
    whole, first, second = make(kind), make(kind), make(kind, 1)  # the second's own weights must not matter
    expected = fit(kind, whole, **options)
    half = fit(kind, first, checkpoint=tmp_path / "run.pt", stop_after=3, **options)
    assert half.final["epoch"] == 3 and not same_weights(first, whole)
    torch.manual_seed(4321)
    resumed = fit(kind, second, checkpoint=tmp_path / "run.pt", **options)
    assert same_weights(second, whole) and not second.training
    rows = without_seconds(resumed)
    assert rows[-1] == without_seconds(expected)[-1] and resumed["seconds"] == sorted(resumed["seconds"])
    again = fit(kind, make(kind), checkpoint=tmp_path / "run.pt", **options)  # a finished run is not run again
    assert again.rows == resumed.rows


@EACH
def test_a_run_that_is_stopped_inside_an_epoch_goes_on_exactly(kind, tmp_path):
    whole, second, stop = make(kind), make(kind, 1), training.StopWhenAsked()
    expected = fit(kind, whole)
    ask = AtStep(5, lambda run: setattr(stop, "asked", True))
    with pytest.raises(training.Stopped, match=r"after step 5\. The same call goes on"):
        fit(kind, make(kind), checkpoint=tmp_path / "run.pt", callbacks=[ask, stop])
    resumed = fit(kind, second, checkpoint=tmp_path / "run.pt")
    assert same_weights(second, whole) and without_seconds(resumed) == without_seconds(expected)
    with pytest.raises(training.Stopped, match="no checkpoint"):
        fit(kind, make(kind), callbacks=[stop])


@pytest.mark.parametrize(("kind", "other", "options", "named"), [
    ("simclr", lambda: simclr(temperature=0.5, augmentation=augment.simclr(8, strength=0.5)), {}, "augmentation .*temperature"),
    ("simclr", lambda: simclr(width=5), {"lr": 1e-3, "optimizer": "sgd"}, "lr .* there and .*optimizer .*weight_decay .*parameters"),
    ("simclr", rotation, {"images": image_set(n=64), "epochs": 7, "seed": 1}, "seed .*epochs .*method .*images"),
    ("classifier", new_model, {"label_smoothing": 0.0, "augmentation": augment.simclr(8)}, "label_smoothing .*augmentation"),
    ("classifier", new_model, {"batch_size": 8, "clip_norm": 1.0, "warmup": 0.3}, "batch_size .*warmup .*clip_norm"),
    ("fixmatch", fixmatch, {"unlabeled_ratio": 3, "lr_scales": {"classifier.head": 0.5}}, "lr_scales .*unlabeled_ratio"),
    ("fixmatch", lambda: fixmatch(threshold=0.5), {"precision": "bf16"}, "precision .*options"),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused_by_name(kind, other, options, named, tmp_path):
    fit(kind, make(kind), checkpoint=tmp_path / "run.pt", stop_after=1)
    with pytest.raises(CourseError, match=f"other settings: .*{named}"):
        fit(kind, other(), checkpoint=tmp_path / "run.pt", **options)


@EACH
def test_numbers_of_numpy_do_not_spoil_a_checkpoint(kind, tmp_path):
    numbers = {"lr": np.float64(1e-3), "seed": np.int64(3), "epochs": np.int64(2), "weight_decay": np.float32(0.1)}
    numbers["lr_scales"] = {KINDS[kind][3]: np.float64(0.5)}
    fit(kind, make(kind), checkpoint=tmp_path / "run.pt", stop_after=1, **numbers)
    history = fit(kind, make(kind), checkpoint=tmp_path / "run.pt", **numbers)
    assert history.final["epoch"] == 2


@EACH
def test_the_seed_decides_and_the_callers_random_state_is_left_alone(kind):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, again, other = make(kind), make(kind), make(kind)
    fit(kind, first, epochs=2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(999)
    fit(kind, again, epochs=2, seed=7)
    fit(kind, other, epochs=2, seed=8)
    assert same_weights(first, again) and not same_weights(first, other)


@EACH
def test_looking_does_not_change_what_is_learned(kind):
    often, never = make(kind), make(kind)
    name = "validate_every" if kind == "classifier" else "look_every"
    fit(kind, often, **{name: 1})
    fit(kind, never, **{name: 0})
    assert same_weights(often, never)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@EACH
def test_half_precision_keeps_the_weights_in_fp32(kind, precision):
    model = make(kind)
    history = fit(kind, model, epochs=1, precision=precision)
    assert history.settings["precision"] == precision and math.isfinite(history.final["loss"])
    assert {p.dtype for p in model.parameters()} == {torch.float32} and all(p.isfinite().all() for p in model.parameters())


def test_clipping_limits_the_step():
    start, length = rotation(), {}
    for clip in (None, 1e-3):
        method = rotation()
        fit("simclr", method, epochs=1, optimizer="sgd", lr=0.1, weight_decay=0.0, clip_norm=clip, look_every=0)
        moved = [(a - b).square().sum() for a, b in zip(method.parameters(), start.parameters(), strict=True)]
        length[clip] = torch.stack(moved).sum().sqrt().item()
    # three steps of at most lr · 1e-3, which Nesterov's momentum of 0.9 makes (1.9 + 2.71 + 3.44) times as long
    assert 0 < length[1e-3] <= 0.1 * 1e-3 * 8.1 < length[None]


@pytest.mark.parametrize(("optimizer", "decay"), [("adamw", 0.05), ("sgd", 5e-4), ("lars", 1e-6)])
def test_each_optimizer_has_its_weight_decay_and_parts_their_rates(optimizer, decay):
    seen = []
    look = AtStep(1, lambda run: seen.extend([type(run.optimizer).__name__, *run.optimizer.param_groups]))
    history = fit("simclr", rotation(), epochs=1, optimizer=optimizer, lr_scales={"encoder": 0.1}, callbacks=[look])
    kind, *groups = seen
    assert kind.lower() == optimizer and history.settings["weight_decay"] == decay
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [(1.0, decay), (1.0, 0.0), (0.1, decay), (0.1, 0.0)]
    assert max(history["lr"]) == max(fit("simclr", rotation(), epochs=1, optimizer=optimizer)["lr"])  # before any factor


def test_callbacks_are_called_at_their_moments_and_the_method_is_told_its_steps():
    told, method = [], rotation()

    class Told(training.Callback):
        def __getattribute__(self, moment):
            return lambda run: told.append((moment, run.step))

    method.after_step = lambda step, steps: told.append(("method", step, steps))
    fit("simclr", method, image_set(n=16), epochs=2, callbacks=[Told()])
    step = ["before_step", "after_backward"]
    expected = [("start", 0)]
    for k in (1, 2):
        expected += [*[(moment, k) for moment in step], ("method", k, 2), ("after_step", k), ("after_epoch", k)]
    assert told == [*expected, ("end", 2)]


def test_the_bar_moves_by_step_with_loss_and_remaining_time_and_leaves_nothing_behind(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(display, "tqdm", functools.partial(display.tqdm, mininterval=0, miniters=1))
    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    with monkeypatch.context() as notebook:
        notebook.setattr(sys, "stdout", kernel)
        history = fit("classifier", new_model(), epochs=2, progress=True)
    drawn, steps = kernel.getvalue(), history.final["step"]
    assert all(f"{step}/{steps} [" in drawn for step in range(steps)) and re.search(r"\[00:0\d<00:0\d, .*step.*, loss \d\.\d", drawn)
    assert not drawn.rpartition("\r")[0].rpartition("\r")[2].strip() and drawn.endswith("\r")
    assert capsys.readouterr().err == ""
    fit("classifier", new_model(), epochs=2, progress=True)  # in a log file
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit("classifier", new_model(), epochs=2, progress=True)  # in a terminal, what is printed stays free of bars
    told = capsys.readouterr()
    assert told.out == "" and f"{steps - 1}/{steps} [" in told.err


def spoil(run):
    nn.init.constant_(next(iter(run.model.parameters())), math.nan)


@EACH
def test_a_loss_that_is_not_finite_ends_the_run_with_a_warning_and_the_last_good_checkpoint_stays(kind, tmp_path):
    file, per_epoch = tmp_path / "run.pt", 4 if "unlabeled_ratio" in KINDS[kind][2] else 3
    with pytest.warns(UserWarning, match=r"nan in epoch 3; lower lr") as caught:
        history = fit(kind, make(kind), checkpoint=file, callbacks=[AtStep(2 * per_epoch + 1, spoil)], checkpoint_every=1)
    assert caught[-1].filename == __file__  # it points to where the training was called
    assert history.final["epoch"] == 3 and math.isnan(history.final["loss"]) and "epoch 3" in history.stopped
    state = torch.load(file, weights_only=True)  # of the step that spoiled it: its loss was finite still
    assert state["parts"]["loader"].get("unlabeled", state["parts"]["loader"])["batch"] == 1
    (tmp_path / "run.previous.pt").replace(file)  # a run without the fault goes on from the one before as if nothing had happened
    whole, again = make(kind), make(kind, 1)
    expected = fit(kind, whole)
    assert fit(kind, again, checkpoint=file).final["loss"] == expected.final["loss"] and same_weights(again, whole)


@EACH
def test_a_guard_stops_at_the_bad_step_and_keeps_the_last_checkpoint(kind, tmp_path):
    guard = NonFiniteGuard(tmp_path / "found")
    with pytest.raises(NonFiniteError, match=r"step [89]\b.*weight"):
        fit(kind, make(kind), checkpoint=tmp_path / "run.pt", guard=guard, callbacks=[AtStep(8, spoil)], checkpoint_every=1)
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["parts"]["model"].values())
    assert (tmp_path / "found" / "nonfinite.txt").exists()


@EACH
def test_a_guard_changes_nothing_in_a_healthy_run(kind, tmp_path):
    alone, guarded = make(kind), make(kind)
    fit(kind, alone, clip_norm=0.5)
    fit(kind, guarded, clip_norm=0.5, guard=NonFiniteGuard(tmp_path), checkpoint=tmp_path / "run.pt")
    assert same_weights(alone, guarded) and {path.name for path in tmp_path.iterdir()} <= {"run.pt", "run.previous.pt"}


@EACH
@pytest.mark.parametrize("options", [
    {"epochs": 0}, {"epochs": 1.5}, {"lr": math.nan}, {"batch_size": 0}, {"optimizer": "adam"}, {"warmup": 1.0}, {"clip_norm": 0.0},
    {"lr_scales": {"body": 0.1}}, {"precision": "double"}
])  # fmt: skip
def test_impossible_options_are_refused_by_name(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        fit(kind, make(kind), **options)


@EACH
def test_unknown_options_and_what_is_no_data_set_are_refused(kind):
    with pytest.raises(TypeError, match="rate"):
        fit(kind, make(kind), rate=0.1)
    for images in (torch.zeros(32, 3, 8, 8, dtype=torch.uint8), "toybox"):
        with pytest.raises(TypeError, match=f"ImageSet.*not {type(images).__name__}"):
            fit(kind, make(kind), images)
