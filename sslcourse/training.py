"""Training: the loop, its schedule, mixed precision, checkpoints that resume exactly, and the History that it leaves.

Nothing inside the loop waits for the device: losses are added up where they are computed and read once an epoch.
"""

import io
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sslcourse import augment
from sslcourse.errors import CourseError
from sslcourse.files import write_atomically, write_json
from sslcourse.loaders import TensorLoader
from sslcourse.models import to_channels_last

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CHECKPOINT_FORMAT = 1


# --- precision ------------------------------------------------------------------------------------------------------------------------


def choose_precision(device: torch.device, precision: str = "auto") -> str:
    """The arithmetic of the forward pass: "auto" becomes what is faster on this device.

    On CUDA that is bf16 where the card computes it natively (compute capability 8 and later) and fp16 on older cards such as the T4.
    On a CPU it is bf16 where the processor has matrix tiles for it (Intel AMX: 2.3 times faster for a ResNet-9 of width 16 at 32×32,
    batch 256, two cores, torch 2.15) and fp32 elsewhere, where bf16 is emulated and slower.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return "bf16"
    return "fp32"


def autocast(device: torch.device, precision: str):
    """A context in which the forward pass runs in `precision`, one of fp32, bf16 and fp16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


# --- what a run leaves ----------------------------------------------------------------------------------------------------------------


@dataclass
class History:
    """One row of numbers an epoch (or every few), in order. `history["loss"]` is a column; NaN where a row has no such number."""

    rows: list[dict[str, float]] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    stopped: str = ""  # why the run ended early, in a sentence

    def __getitem__(self, name: str) -> list[float]:
        if not any(name in row for row in self.rows):
            known = sorted({key for row in self.rows for key in row})
            raise KeyError(f"History has no column {name!r}; it has {', '.join(known) or 'no rows yet'}.")
        return [row.get(name, math.nan) for row in self.rows]

    @property
    def final(self) -> dict[str, float]:
        return self.rows[-1] if self.rows else {}

    def save(self, path: str | os.PathLike) -> None:
        """Write it as JSON, which has no NaN: a number that is not finite becomes null."""
        rows = [{key: value if math.isfinite(value) else None for key, value in row.items()} for row in self.rows]
        write_json(path, {"rows": rows, "settings": self.settings, "stopped": self.stopped})


# --- checkpoints ----------------------------------------------------------------------------------------------------------------------


def save_checkpoint(path: str | os.PathLike, settings: dict, parts: dict[str, object], history: History) -> None:
    """Everything that a run needs to go on exactly: states of the parts, random generators, history. Written atomically."""
    state = {
        "format": CHECKPOINT_FORMAT,
        "settings": settings,
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "history": {"rows": history.rows, "stopped": history.stopped},
        "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []},
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise CourseError(f"{path} could not be written ({error.strerror}). Free some disk space or name another folder.") from error


def load_checkpoint(path: str | os.PathLike, settings: dict, parts: dict[str, object], history: History) -> None:
    """Put the states of `save_checkpoint` back into the parts, the history and the random generators.

    Raises CourseError when the file is not a checkpoint of this course, is damaged, or belongs to a run with other settings.
    """
    way_out = "Delete it to start the run anew, or name another file."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        known = state["format"] == CHECKPOINT_FORMAT
        theirs = dict(state["settings"])
    except Exception as error:  # torch raises many kinds for what is not its file; each means the same to the reader
        raise CourseError(f"{path} cannot be read as a checkpoint of this course ({type(error).__name__}). {way_out}") from error
    if not known:
        raise CourseError(f"{path} was written in checkpoint format {state['format']}; this version reads {CHECKPOINT_FORMAT}. {way_out}")
    differing = [f"{name} {theirs.get(name)!r} there and {value!r} here" for name, value in settings.items() if theirs.get(name) != value]
    if differing:
        raise CourseError(f"{path} belongs to a run with other settings: {'; '.join(differing)}. {way_out}")
    try:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        history.rows[:], history.stopped = state["history"]["rows"], state["history"]["stopped"]
        torch.set_rng_state(state["rng"]["cpu"])
        if state["rng"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CourseError(f"{path} does not fit this model or optimizer ({str(error).splitlines()[0]}). {way_out}") from error


# --- the pieces of the loop -----------------------------------------------------------------------------------------------------------


def decayed_and_not(module: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: weight decay on matrices and kernels, none on biases and normalisation (Goyal et al. 2017, section 5.3)."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.dim() <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, steps: int, warmup: float = 0.2) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate up along a line for the first `warmup` part of the steps, then down along a cosine to nothing (Smith 2018)."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    for group in optimizer.param_groups:
        group["lr"] = lr
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the whole model is in evaluation mode; afterwards each of its modules is in the mode it had, frozen parts too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def _loss_and_accuracy(model: nn.Module, images: Tensor, labels: Tensor, transform, device, precision: str) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in evaluation mode; the model's mode is put back afterwards."""
    loss, right = 0.0, 0
    with evaluation_mode(model):
        for x, y in TensorLoader(images, labels, batch_size=512, device=device):
            with autocast(device, precision):
                logits = model(transform(x).contiguous(memory_format=torch.channels_last)).float()
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            right += (logits.argmax(1) == y).sum().item()
    return loss / len(labels), right / len(labels)


def fit_classifier(
    model: nn.Module,
    images,
    epochs: int,
    *,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    augmentation: nn.Module | None = None,
    validate_every: int = 1,
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    stop_after: int | None = None,
    progress: bool = True,
    name: str = "training",
) -> History:
    """Train a classifier on `images.train_images` with AdamW, a one-cycle schedule and label smoothing; watch the validation split.

    model: normalised float images (N, 3, size, size) -> logits (N, classes); trained in place, left in evaluation mode.
    images: a datasets.ImageSet. epochs: passes over the labelled images. batch_size: at most the number of labelled images is used.
    lr: the peak of the one-cycle schedule. augmentation: a module of `augment`; `augment.weak` of the images' size when None.
    validate_every: epochs between two looks at the validation split; 0 looks once, at the end. The test split is never touched.
    precision: auto, fp32, bf16 or fp16. seed: order of the images, augmentation and dropout; the caller's random state is left alone.
    checkpoint: a file, written at every look at the validation split; if it exists, the run goes on from it, and on a CPU with the same
    number of threads it ends with the same weights bit for bit. stop_after: stop when this epoch is done, as if interrupted.

    Returns the History: epoch, step, lr, loss (with label smoothing, in training mode), validation_loss, validation_accuracy, seconds.
    A loss that is not finite ends the run at the end of that epoch, with a warning.
    Loss and schedule: Müller et al. 2019 (label smoothing), Loshchilov and Hutter 2019 (AdamW), Smith 2018 (one cycle).
    """
    if epochs < 1:
        raise ValueError(f"epochs is the number of passes over the labelled images and must be at least 1, not {epochs}.")
    if not lr > 0:
        raise ValueError(f"lr must be positive, not {lr}.")
    device = torch.device(device) if device is not None else next(model.parameters()).device
    precision = choose_precision(device, precision)
    to_channels_last(model.to(device))
    size = images.size
    augmentation = (augmentation if augmentation is not None else augment.weak(size)).to(device)
    plain = augment.evaluation(getattr(augmentation, "size", size)).to(device)
    batch_size = min(batch_size, len(images.train_labels))
    loader = TensorLoader(
        images.train_images, images.train_labels, batch_size=batch_size, shuffle=True, drop_last=True, seed=seed, device=device
    )
    optimizer = torch.optim.AdamW(decayed_and_not(model, weight_decay), lr=lr)
    schedule = one_cycle(optimizer, lr, epochs * len(loader))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    settings = {
        "task": "fit_classifier", "epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "label_smoothing": label_smoothing, "precision": precision, "seed": seed, "images": len(images.train_labels), "size": size,
        "augmentation": augmentation.extra_repr(), "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler, "loader": loader}
    history = History(settings=settings)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if checkpoint and Path(checkpoint).exists():
            load_checkpoint(checkpoint, settings, parts, history)
        quiet = {} if progress else {"disable": True}  # not disable=False: that would overrule the environment's TQDM_DISABLE
        started = time.perf_counter() - history.final.get("seconds", 0.0)
        bar = tqdm(total=epochs, initial=loader.epoch, desc=name, unit="epoch", leave=False, file=sys.stderr, **quiet)
        model.train()
        last = epochs if stop_after is None else min(epochs, stop_after)
        while loader.epoch < last and not history.stopped:
            total = torch.zeros((), device=device)
            for x, y in loader:
                x = augmentation(x).contiguous(memory_format=torch.channels_last)
                with autocast(device, precision):
                    logits = model(x)
                loss = F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                total += loss.detach()
            epoch = loader.epoch
            mean_loss = (total / len(loader)).item()
            bar.update()
            if not math.isfinite(mean_loss):
                history.stopped = f"The loss was {mean_loss} in epoch {epoch}; lower lr (it is {lr:g}) or look for bad inputs."
                warnings.warn(history.stopped, stacklevel=2)
            if history.stopped or epoch == last or (validate_every and epoch % validate_every == 0):
                row = {"epoch": epoch, "step": epoch * len(loader), "lr": schedule.get_last_lr()[0], "loss": mean_loss}
                if len(images.validation_labels):
                    row["validation_loss"], row["validation_accuracy"] = _loss_and_accuracy(
                        model, images.validation_images, images.validation_labels, plain, device, precision
                    )
                    bar.set_postfix_str(f"validation {100 * row['validation_accuracy']:.1f} %")
                row["seconds"] = time.perf_counter() - started
                history.rows.append(row)
                if checkpoint:
                    save_checkpoint(checkpoint, settings, parts, history)
        bar.close()
    model.eval()
    return history
