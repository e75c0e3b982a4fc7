"""The budget of tier gpu, kept by arithmetic: what a lesson computes, counted without training it.

A lesson's cells run as they are, on images of noise with the sizes of CIFAR-10. In place of a training, one step of a few images is
counted, and multiplied by the images of a step and the number of steps; an encoder computes the features of a few images, for all.
"""

import importlib
import math

import pytest
import torch
from cells import NOTEBOOKS, leave_out, run
from sklearn.linear_model import LogisticRegression
from torch.utils.flop_counter import FlopCounterMode

from sslcourse import datasets, diagnostics, evaluation
from sslcourse.datasets import sources
from sslcourse.models.encoders import Encoder
from sslcourse.training import tasks
from sslcourse.training.callbacks import Rows

MOST = 5e15  # floating-point operations of a lesson, forward and backward: ten minutes of a T4 at 8 TFLOP/s
FEW = 4  # images that are counted, for many
HAND_MADE = "loops in cells, encoders only"
features = importlib.import_module("sslcourse.evaluation.features")  # `evaluation.features` is a function
SPLITS = {"train": 45_000, "validation": 5_000, "test": 10_000}  # of CIFAR-10, all without labels to pretraining


class Operations:
    """What was counted, by the name of the training. Methods stand in for `tasks.train`, `Encoder.forward`, `features._in_batches`."""

    def __init__(self):
        self.really = {"train": tasks.train, "forward": Encoder.forward, "in_batches": features._in_batches}
        self.counts, self.factor, self.name = {}, 1.0, HAND_MADE

    def add(self, name, times, compute):
        before = self.name, self.factor
        self.name, self.factor = name, times
        try:
            with FlopCounterMode(display=False) as counter:
                return compute()
        finally:
            self.note(counter.get_total_flops())
            self.name, self.factor = before

    def note(self, operations):
        self.counts[self.name] = self.counts.get(self.name, 0) + self.factor * operations

    def forward(self, encoder, x):
        """The features of the first few images, for all of them; notes the operations that `add` does not see, and twice as many back."""
        with FlopCounterMode(display=False) as counter:
            few = self.really["forward"](encoder, x[:FEW])
        others = counter.get_total_flops() * (len(x) / len(few) - (self.name != HAND_MADE))
        self.note(others)
        if few.requires_grad:
            few.register_hook(lambda gradient: self.note(2 * others))
        return few[torch.arange(len(x)) % len(few)]

    def train(self, run, callbacks):
        if run.options.guard is not None:  # a tiny run that is to end in an error
            return self.really["train"](run, callbacks)
        batch = next(iter(run.loader))
        few = [part[: math.ceil(FEW * len(part) / len(batch[-1]))] for part in batch]
        times = run.last_epoch * len(run.loader) * len(batch[-1]) / len(few[-1])
        run.model.train()
        self.add(run.options.name.split(",")[0], times, lambda: run.loss_of(*few)[0].backward())
        metrics = {"loss": 1.0} | {name: float(value) for name, value in getattr(run.model, "metrics", {}).items()}
        for step in sorted({1, run.steps // 12, run.steps // 3, run.steps} - {0}):  # where lesson 5 looks at its matrix
            getattr(run.model, "after_step", lambda *_: None)(step, run.steps)
        run.model.eval()
        look = next(callback.look for callback in callbacks if isinstance(callback, Rows))
        for epoch in range(1, run.last_epoch + 1):
            if (seen := look(epoch, epoch == run.last_epoch)) is not None:
                row = {"epoch": epoch, "step": epoch * len(run.loader), "lr": run.options.lr, **metrics, **seen, "seconds": float(epoch)}
                run.history.rows.append(row)
        return run.history

    def in_batches(self, model, compute, images, *rest):
        few = self.add("evaluation", len(images) / FEW, lambda: self.really["in_batches"](model, compute, images[:FEW], *rest))
        return few[torch.arange(len(images)) % len(few)] + 0.1 * torch.randn(len(images), *few.shape[1:])


def noise(name="", data_dir="", size=None, device="cpu", *, shortcut=False, upright=True, seed=0, **counts):
    """An ImageSet in the place of what `datasets.load` reads."""
    generator, parts, size = torch.Generator().manual_seed(seed), {}, size or 32
    some = torch.randint(0, 256, (100, 3, size, size), generator=generator, dtype=torch.uint8)
    for part, count in (SPLITS | counts).items():
        images, labels = some[torch.arange(count) % 100], torch.arange(count) % 10
        parts |= {"unlabeled": images} if part == "unlabeled" else {f"{part}_images": images, f"{part}_labels": labels}
    return datasets.ImageSet(name, [f"class {k}" for k in range(10)], (0.5,) * 3, (0.25,) * 3, **parts)


@pytest.fixture
def operations(monkeypatch, tmp_path, one_thread):
    counting = Operations()
    monkeypatch.setattr(tasks, "train", counting.train)
    monkeypatch.setattr(Encoder, "forward", lambda encoder, x: counting.forward(encoder, x))
    monkeypatch.setattr(features, "_in_batches", counting.in_batches)
    monkeypatch.setattr(datasets, "load", noise)
    monkeypatch.setattr(sources, "prepare", lambda *what: None)
    monkeypatch.setattr("sklearn.linear_model.LogisticRegression", lambda **options: LogisticRegression(**options | {"max_iter": 2}))
    monkeypatch.setattr(evaluation, "tsne", lambda rows, perplexity=30: rows[:, :2])
    collapse = diagnostics.collapse
    monkeypatch.setattr(diagnostics, "collapse", lambda z: collapse(z[:, :64]))  # of 2,048 columns it would take seconds
    monkeypatch.setenv("SSLCOURSE_RESULTS_DIR", str(tmp_path))
    monkeypatch.setenv("SSLCOURSE_HEADLESS", "1")
    monkeypatch.setenv("SSLCOURSE_DEVICE", "cpu")
    return counting


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_at_tier_gpu_is_ten_minutes_of_a_t4(path, operations):
    leave_out(path, unless=("02", "03", "06"))  # those that are nearest to it
    run(path, TIER="gpu")
    total = sum(operations.counts.values())
    for name, count in operations.counts.items():
        print(f"{count:10.2e} {name}")
    print(f"{total:10.2e} {path.stem}")
    assert operations.counts and total <= MOST, f"{total:.2g} operations"
