"""Training: one loop for classifiers and for every method of pretraining.

Nothing inside the loop waits for the device: losses are added up where they are computed and read once an epoch.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sslcourse import augment, diagnostics
from sslcourse.checkpoints import CHECKPOINT_FORMAT, History, load_checkpoint, plain, save_checkpoint  # noqa: F401  (public here too)
from sslcourse.features import evaluation_view, features, knn_scores
from sslcourse.loaders import TensorLoader
from sslcourse.models import to_channels_last
from sslcourse.nonfinite_guard import NonFiniteGuard
from sslcourse.optimizers import decayed_and_not, make_optimizer, one_cycle  # noqa: F401  (public here too)
from sslcourse.precision import PRECISIONS, autocast, choose_precision, evaluation_mode, seeded  # noqa: F401  (public here too)

WEIGHT_DECAY = {"adamw": 0.05, "sgd": 5e-4, "lars": 1e-6}
LOOK_IMAGES = 5_000  # labelled images that the kNN of a look searches, at most


def _run(
    model: nn.Module,
    loader: TensorLoader,
    loss_of: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
    look: Callable[[int, bool], dict | None],
    *,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    lr: float,
    warmup: float,
    clip_norm: float | None,
    guard: NonFiniteGuard | None,
    device: torch.device,
    precision: str,
    seed: int,
    settings: dict,
    checkpoint: str | os.PathLike | None,
    stop_after: int | None,
    progress: bool,
    name: str,
    stacklevel: int = 3,
) -> History:
    """The loop. loss_of(*batch) -> loss and further scalars; look(epoch, last) -> further columns, or None for no row at this epoch."""
    settings = plain(settings)
    schedule = one_cycle(optimizer, lr, epochs * len(loader), warmup)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler, "loader": loader}
    history = History(settings=settings)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    after_step = getattr(model, "after_step", None)  # a moving average, where a method keeps one
    steps = epochs * len(loader)
    with seeded(seed):
        if checkpoint and Path(checkpoint).exists():
            load_checkpoint(checkpoint, settings, parts, history)
        quiet = {} if progress else {"disable": True}  # not disable=False: that would overrule the environment's TQDM_DISABLE
        started = time.perf_counter() - history.final.get("seconds", 0.0)
        bar = tqdm(total=epochs, initial=loader.epoch, desc=name, unit="epoch", leave=False, file=sys.stderr, **quiet)
        model.train()
        last = epochs if stop_after is None else min(epochs, stop_after)
        step = loader.epoch * len(loader)
        while loader.epoch < last and not history.stopped:
            totals: dict[str, Tensor] = {}
            for batch in loader:
                step += 1
                if guard is not None:
                    guard.before(step, model)
                loss, others = loss_of(*batch)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                if guard is not None:  # before clipping, which would spread an infinity to all weights
                    guard.check(step, loss, model, optimizer, batch, forward=lambda batch: loss_of(*batch)[0], scaler=scaler)
                if clip_norm is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(trained, clip_norm)
                scaler.step(optimizer)
                scaler.update()
                _step(schedule, scaler)
                if after_step is not None:
                    after_step(step, steps)
                for key, value in {"loss": loss.detach(), **others}.items():
                    totals[key] = totals[key] + value if key in totals else value.clone()
            if guard is not None:
                guard.check_state(step, model, optimizer)
            epoch = loader.epoch
            means = {key: (total / len(loader)).item() for key, total in totals.items()}
            bar.update()
            if not math.isfinite(means["loss"]):
                history.stopped = f"The loss was {means['loss']} in epoch {epoch}; lower lr (it is {lr:g}) or look for bad inputs."
                warnings.warn(history.stopped, stacklevel=stacklevel)
            more = look(epoch, epoch == last or bool(history.stopped))
            if more is not None:
                rate = lr * schedule.lr_lambdas[0](schedule.last_epoch)  # before any factor of lr_scales
                row = {"epoch": epoch, "step": step, "lr": rate, **means, **more}
                row["seconds"] = time.perf_counter() - started
                history.rows.append(row)
                bar.set_postfix_str(_in_short(row))
                if checkpoint and not history.stopped:  # the last good one stays
                    save_checkpoint(checkpoint, settings, parts, history)
        bar.close()
    model.eval()
    return history


def _step(schedule: torch.optim.lr_scheduler.LambdaLR, scaler: torch.amp.GradScaler) -> None:
    if scaler.is_enabled() and schedule.last_epoch == 0:
        with warnings.catch_warnings():  # in fp16 the scaler leaves out first steps until its scale fits; torch takes that for a mistake
            warnings.filterwarnings("ignore", message=".*lr_scheduler")
            schedule.step()
    else:
        schedule.step()


def _in_short(row: Mapping[str, float]) -> str:
    """What the progress bar says beside the time."""
    texts = [f"loss {row['loss']:.3f}" + (f" (chance {row['chance_loss']:.3f})" if "chance_loss" in row else "")]
    texts += [
        f"{label} {100 * row[key]:.1f} %" for key, label in (("validation_accuracy", "validation"), ("knn_accuracy", "kNN")) if key in row
    ]
    texts += [f"std {row['feature_std']:.3f}"] if "feature_std" in row else []
    return ", ".join(texts)


def _check_budget(images, part: str, epochs: int, lr: float, seed: int) -> tuple[int, float, int]:
    """Epochs, rate and seed as Python's own numbers, which checkpoints can hold; or a sentence on what is wrong. part: learned from."""
    if not hasattr(images, part) or not hasattr(images, "validation_images"):
        raise TypeError(f"images must be a datasets.ImageSet, such as datasets.load gives, not {type(images).__name__}.")
    if int(epochs) != epochs or epochs < 1:
        raise ValueError(f"epochs is the number of passes over {part} and must be a whole number of at least 1, not {epochs}.")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be positive, not {lr}.")
    return int(epochs), float(lr), int(seed)


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
    lr_scales: Mapping[str, float] | None = None,
    augmentation: nn.Module | None = None,
    validate_every: int = 1,
    guard: NonFiniteGuard | None = None,
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
    lr: the peak of the one-cycle schedule. lr_scales: part of the model -> factor on its learning rate, such as {"encoder": 0.1}.
    augmentation: a module of `augment`; `augment.weak` of the images' size when None.
    validate_every: epochs between two looks at the validation split; 0 looks once, at the end. The test split is never touched.
    guard: a `diagnostics.NonFiniteGuard`; see `pretrain`.
    precision: auto, fp32, bf16 or fp16. seed: order of the images, augmentation and dropout; the caller's random state is left alone.
    checkpoint: a file, written at every look at the validation split; if it exists, the run goes on from it, and on a CPU with the same
    number of threads it ends with the same weights bit for bit. stop_after: stop when this epoch is done, as if interrupted.

    Returns the History: epoch, step, lr, loss (with label smoothing, in training mode), validation_loss, validation_accuracy, seconds.
    A loss that is not finite ends the run at the end of that epoch, with a warning.
    Loss and schedule: Müller et al. 2019 (label smoothing), Loshchilov and Hutter 2019 (AdamW), Smith 2018 (one cycle).
    """
    epochs, lr, seed = _check_budget(images, "train_images", epochs, lr, seed)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    precision = choose_precision(device, precision)
    to_channels_last(model.to(device))
    size = images.size
    augmentation = (augmentation if augmentation is not None else augment.weak(size)).to(device)
    view = evaluation_view(augmentation, size).to(device)
    batch_size = min(batch_size, len(images.train_labels))
    loader = TensorLoader(
        images.train_images, images.train_labels, batch_size=batch_size, shuffle=True, drop_last=True, seed=seed, device=device
    )
    settings = {
        "task": "fit_classifier", "epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay,
        "label_smoothing": label_smoothing, "lr_scales": dict(lr_scales or {}), "precision": precision, "seed": seed,
        "images": len(images.train_labels), "size": size, "augmentation": augmentation.extra_repr(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip

    def loss_of(x: Tensor, y: Tensor):
        x = augmentation(x).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            logits = model(x)
        return F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing), {}

    def look(epoch: int, last: bool) -> dict | None:
        if not last and not (validate_every and epoch % validate_every == 0):
            return None
        if not len(images.validation_labels):
            return {}
        seen = _loss_and_accuracy(model, images.validation_images, images.validation_labels, view, device, precision)
        return dict(zip(("validation_loss", "validation_accuracy"), seen, strict=True))

    optimizer = torch.optim.AdamW(decayed_and_not(model, weight_decay, lr_scales), lr=lr)
    return _run(
        model, loader, loss_of, look, optimizer=optimizer, epochs=epochs, lr=lr, warmup=0.2, clip_norm=None, guard=guard, device=device,
        precision=precision, seed=seed, settings=settings, checkpoint=checkpoint, stop_after=stop_after, progress=progress, name=name,
    )  # fmt: skip


def pretrain(
    method: nn.Module,
    images,
    epochs: int,
    *,
    batch_size: int = 128,
    lr: float = 2e-3,
    optimizer: str = "adamw",
    weight_decay: float | None = None,
    warmup: float = 0.1,
    clip_norm: float | None = None,
    guard: NonFiniteGuard | None = None,
    lr_scales: Mapping[str, float] | None = None,
    look_every: int = 5,
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    stop_after: int | None = None,
    progress: bool = True,
    name: str = "pretraining",
) -> History:
    """Train a method (`models.Rotation`, `models.SimCLR`, ...) on `images.unlabeled`, without any label.

    method: forward(uint8 (N, 3, H, W)) -> scalar loss; trained in place, left in evaluation mode. images: a datasets.ImageSet.
    epochs: passes over the unlabelled images. batch_size: images a step; a last smaller batch is left out. lr: the peak of a cosine
    schedule that rises along a line for the first `warmup` part of the steps. optimizer: adamw, sgd or lars; weight_decay: 0.05, 5e-4 and
    1e-6 for them when None, never on biases and normalisation. clip_norm: largest norm of the whole gradient; None does not clip.
    guard: a `diagnostics.NonFiniteGuard`, which stops at the first step whose loss, gradients or weights are not finite, names the cause,
    saves the batch, and leaves the last checkpoint as it was. lr_scales: part of the method -> factor on its learning rate.
    look_every: epochs between two looks at the encoder, and once at the end; 0 never looks. A look measures, in evaluation mode, how spread
    the features of the validation images are (`diagnostics.collapse`), and how many of them the nearest labelled training images (5,000 at
    most) classify rightly. Labels are used for this measuring only. The test split is never touched.
    device, precision, seed, checkpoint, stop_after: as in `fit_classifier`; the checkpoint is written after every epoch.
    A method may have after_step(step, steps): called after each of the optimizer's steps, with their number counted from 1.

    Returns the History, a row an epoch: epoch, step, lr, loss, chance_loss, the method's own metrics, seconds; at looks also feature_std,
    healthy_std, feature_rank, knn_accuracy. A loss that is not finite ends the run at the end of that epoch, with a warning.
    Schedule: Loshchilov and Hutter 2017, as in SimCLR (Chen et al. 2020, section 2.2).
    """
    epochs, lr, seed = _check_budget(images, "unlabeled", epochs, lr, seed)
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is the largest norm that a gradient may have and must be positive, or None, not {clip_norm}.")
    device = torch.device(device) if device is not None else next(method.parameters()).device
    precision = choose_precision(device, precision)
    if hasattr(method, "prepare"):
        method.prepare(images.size)
    to_channels_last(method.to(device))
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY.get(optimizer, 0.0)
    loader = TensorLoader(images.unlabeled, batch_size=batch_size, shuffle=True, drop_last=True, seed=seed, device=device)
    chance = method.chance_loss(batch_size) if hasattr(method, "chance_loss") else None
    augmentation = getattr(method, "augmentation", None)
    view = evaluation_view(augmentation, images.size)
    settings = {
        "task": "pretrain", "method": type(method).__name__, "epochs": epochs, "batch_size": batch_size, "lr": lr, "optimizer": optimizer,
        "weight_decay": weight_decay, "warmup": warmup, "clip_norm": clip_norm, "lr_scales": dict(lr_scales or {}), "precision": precision,
        "seed": seed, "images": len(images.unlabeled), "size": images.size, "augmentation": repr(augmentation),
        "options": method.extra_repr(),
        "parameters": sum(p.numel() for p in method.parameters()),
    }  # fmt: skip

    def loss_of(x: Tensor):
        with autocast(device, precision):
            loss = method(x)
        return loss, getattr(method, "metrics", {})

    def look(epoch: int, last: bool) -> dict:
        row = {} if chance is None else {"chance_loss": chance}
        if not look_every or not (last or epoch % look_every == 0) or len(images.validation_labels) < 2:
            return row
        return row | _look_at(method.encoder, images, view, precision)

    made = make_optimizer(optimizer, method, lr, weight_decay, lr_scales=lr_scales)
    return _run(
        method, loader, loss_of, look, optimizer=made, epochs=epochs, lr=lr, warmup=warmup, clip_norm=clip_norm, guard=guard, device=device,
        precision=precision, seed=seed, settings=settings, checkpoint=checkpoint, stop_after=stop_after, progress=progress, name=name,
    )  # fmt: skip


def _look_at(encoder: nn.Module, images, view: nn.Module, precision: str) -> dict[str, float]:
    """Spread of the features of the validation images, and the accuracy of their nearest labelled neighbours."""
    z = features(encoder, images.validation_images, transform=view, precision=precision)
    if not z.isfinite().all():
        return {}  # the loss tells
    spread = diagnostics.collapse(z)
    row = {"feature_std": spread.std, "healthy_std": z.shape[1] ** -0.5, "feature_rank": spread.effective_rank}
    if len(images.train_labels) > LOOK_IMAGES:
        images = images.subset(train=LOOK_IMAGES)
    labels = images.train_labels
    if len(labels):
        bank = features(encoder, images.train_images, transform=view, precision=precision)
        scores = knn_scores(bank, labels.cpu(), z, len(images.class_names))
        row["knn_accuracy"] = (scores.argmax(1) == images.validation_labels.cpu()).double().mean().item()
    return row
