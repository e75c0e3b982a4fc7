"""Training: classifiers, every method of pretraining, and learning from labelled and unlabelled images together."""

import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment, diagnostics
from sslcourse.devices import PRECISIONS, autocast, choose_precision, evaluation_mode, seeded  # noqa: F401  (public here too)
from sslcourse.diagnostics.guard import NonFiniteGuard
from sslcourse.evaluation.features import evaluation_view, features, knn_scores, predict
from sslcourse.loaders import PairedLoader, TensorLoader
from sslcourse.models import to_channels_last
from sslcourse.streaming import loader_for
from sslcourse.training import distributed
from sslcourse.training.checkpoints import CHECKPOINT_FORMAT, History, load_checkpoint, save_checkpoint  # noqa: F401  (public here too)
from sslcourse.training.loop import Hooks, Stopped, check_budget, epochs_for, run_loop  # noqa: F401  (public here too)
from sslcourse.training.optimizers import decayed_and_not, make_optimizer, one_cycle  # noqa: F401  (public here too)

WEIGHT_DECAY = {"adamw": 0.05, "sgd": 5e-4, "lars": 1e-6}
LOOK_IMAGES = 5_000  # labelled images that the kNN of a look searches, at most


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
    epochs, lr, seed = check_budget(images, "train_images", epochs, lr, seed)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    precision = choose_precision(device, precision)
    to_channels_last(model.to(device))
    size = images.size
    augmentation = (augmentation if augmentation is not None else augment.weak(size)).to(device)
    view = evaluation_view(augmentation, size).to(device)
    batch_size = min(batch_size, len(images.train_labels))
    loader = loader_for(
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
    return run_loop(
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
    hooks: Hooks | None = None,
) -> History:
    """Train a method (`models.Rotation`, `models.SimCLR`, ...) on `images.unlabeled`, without any label.

    method: forward(uint8 (N, 3, H, W)) -> scalar loss; trained in place, left in evaluation mode. images: a datasets.ImageSet.
    epochs: passes over the unlabelled images, which are moved to the device once, or streamed to it where they do not fit
    (`streaming.loader_for`). batch_size: images a step; a last smaller batch is left out. lr: the peak of a cosine
    schedule that rises along a line for the first `warmup` part of the steps. optimizer: adamw, sgd or lars; weight_decay: 0.05, 5e-4 and
    1e-6 for them when None, never on biases and normalisation. clip_norm: largest norm of the whole gradient; None does not clip.
    guard: a `diagnostics.NonFiniteGuard`, which stops at the first step whose loss, gradients or weights are not finite, names the cause,
    saves the batch, and leaves the last checkpoint as it was. lr_scales: part of the method -> factor on its learning rate.
    look_every: epochs between two looks at the encoder, and once at the end; 0 never looks. A look measures, in evaluation mode, how spread
    the features of the validation images are (`diagnostics.collapse`), and how many of them the nearest labelled training images (5,000 at
    most) classify rightly. Labels are used for this measuring only. The test split is never touched.
    device, precision, seed, checkpoint, stop_after: as in `fit_classifier`; the checkpoint is written after every epoch.
    hooks: `training.Hooks`, for long runs: rows as they come, checkpoints inside an epoch, an orderly stop.
    With several processes (`distributed.process_group`) they share every batch, and train as one process would on the whole of it.
    A method may have after_step(step, steps): called after each of the optimizer's steps, with their number counted from 1.

    Returns the History, a row an epoch: epoch, step, lr, loss, chance_loss, the method's own metrics, seconds; at looks also feature_std,
    healthy_std, feature_rank, knn_accuracy. A loss that is not finite ends the run at the end of that epoch, with a warning.
    Schedule: Loshchilov and Hutter 2017, as in SimCLR (Chen et al. 2020, section 2.2).
    """
    epochs, lr, seed = check_budget(images, "unlabeled", epochs, lr, seed)
    device, precision = _make_ready(method, images, device, precision, clip_norm)
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY.get(optimizer, 0.0)
    part = (distributed.rank(), distributed.world_size())
    loader = loader_for(images.unlabeled, batch_size=batch_size, shuffle=True, drop_last=True, seed=seed, device=device, part=part)
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
            loss = joint(x)
        return loss, getattr(method, "metrics", {})

    def look(epoch: int, last: bool) -> dict:
        row = {} if chance is None else {"chance_loss": chance}
        if not look_every or not (last or epoch % look_every == 0) or len(images.validation_labels) < 2:
            return row
        return row | _look_at(method.encoder, images, view, precision)

    made = make_optimizer(optimizer, method, lr, weight_decay, lr_scales=lr_scales)
    with distributed.one_gradient(method, device) as joint:
        return run_loop(
            method, loader, loss_of, look, optimizer=made, epochs=epochs, lr=lr, warmup=warmup, clip_norm=clip_norm, guard=guard,
            device=device, precision=precision, seed=seed, settings=settings, checkpoint=checkpoint, stop_after=stop_after,
            progress=progress, name=name, hooks=hooks,
        )  # fmt: skip


def _make_ready(method: nn.Module, images, device, precision: str, clip_norm: float | None) -> tuple[torch.device, str]:
    """Put a method on its device, with its augmentation settled; the device and the precision to train in."""
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is the largest norm that a gradient may have and must be positive, or None, not {clip_norm}.")
    device = torch.device(device) if device is not None else next(method.parameters()).device
    precision = choose_precision(device, precision)
    if hasattr(method, "prepare"):
        method.prepare(images.size)
    to_channels_last(method.to(device))
    return device, precision


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


def fit_semi_supervised(
    method: nn.Module,
    images,
    epochs: int,
    *,
    batch_size: int = 16,
    unlabeled_ratio: int = 7,
    lr: float = 2e-3,
    optimizer: str = "adamw",
    weight_decay: float | None = None,
    warmup: float = 0.1,
    clip_norm: float | None = None,
    guard: NonFiniteGuard | None = None,
    lr_scales: Mapping[str, float] | None = None,
    look_every: int = 1,
    on_look: Callable[[int, Tensor], None] | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    stop_after: int | None = None,
    progress: bool = True,
    name: str = "training",
) -> History:
    """Train a `models.FixMatch` or `models.PseudoLabeling` on the labelled images and the unlabelled ones together.

    method: forward(uint8 images (B, 3, H, W), labels (B,), unlabelled uint8 images (M, 3, H, W)) -> scalar loss; trained in place, left in
    evaluation mode; `method.averaged` is the classifier to keep. images: a datasets.ImageSet, usually with few labels.
    epochs: passes over `images.unlabeled`; the labelled images go round as often as that takes. batch_size: labelled images a step, at most
    all there are; unlabeled_ratio: unlabelled images for each of them (the paper's µ). Every step sees both.
    lr, optimizer, weight_decay, warmup, clip_norm, guard, lr_scales: as in `pretrain`, lr_scales with names such as "classifier.encoder".
    look_every: epochs between two looks at the validation images, and once at the end; 0 never looks. on_look: called at each with epoch
    and validation logits (N, C). The test split is never touched.
    device, precision, seed, checkpoint, stop_after: as in `fit_classifier`; the checkpoint is written after every epoch.

    Returns the History, a row an epoch: epoch, step, lr, loss, supervised_loss, pseudo_loss, pseudo_weight, coverage, seconds; at looks
    also validation_loss and validation_accuracy of the averaged classifier, and pseudo_precision: of the validation images that it is
    sure of (at least the threshold), the part that it classifies rightly, where there are any.
    """
    epochs, lr, seed = check_budget(images, "unlabeled", epochs, lr, seed)
    if not len(images.train_labels):
        raise ValueError("There are no labelled training images, and pseudo-labels need some to begin with: use an ImageSet with labels.")
    if int(unlabeled_ratio) != unlabeled_ratio or unlabeled_ratio < 1:
        raise ValueError(
            f"unlabeled_ratio is a whole number of unlabelled images for each labelled one, at least 1, not {unlabeled_ratio}."
        )
    device, precision = _make_ready(method, images, device, precision, clip_norm)
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY.get(optimizer, 0.0)
    batch_size = min(batch_size, len(images.train_labels))
    options = {"shuffle": True, "drop_last": True, "device": device}
    loader = PairedLoader(
        loader_for(images.train_images, images.train_labels, batch_size=batch_size, seed=seed + 1, **options),
        loader_for(images.unlabeled, batch_size=min(batch_size * unlabeled_ratio, len(images.unlabeled)), seed=seed, **options),
    )
    view = evaluation_view(method.weak, images.size)
    settings = {
        "task": "fit_semi_supervised", "method": type(method).__name__, "epochs": epochs, "batch_size": batch_size,
        "unlabeled_ratio": unlabeled_ratio, "lr": lr, "optimizer": optimizer, "weight_decay": weight_decay, "warmup": warmup,
        "clip_norm": clip_norm, "lr_scales": dict(lr_scales or {}), "precision": precision, "seed": seed,
        "images": len(images.unlabeled), "labels": len(images.train_labels), "size": images.size,
        "augmentation": repr((method.weak, method.strong)), "options": method.extra_repr(),
        "parameters": sum(p.numel() for p in method.classifier.parameters()),
    }  # fmt: skip

    def loss_of(x: Tensor, y: Tensor, u: Tensor):
        with autocast(device, precision):
            loss = method(x, y, u)
        return loss, method.metrics

    def look(epoch: int, last: bool) -> dict:
        if not look_every or not (last or epoch % look_every == 0) or not len(images.validation_labels):
            return {}
        logits = predict(method.averaged, images.validation_images, transform=view, precision=precision)
        labels = images.validation_labels.cpu()
        if on_look is not None:
            on_look(epoch, logits)
        sure, right = logits.softmax(1).amax(1) >= method.threshold, logits.argmax(1) == labels
        row = {"validation_loss": F.cross_entropy(logits, labels).item(), "validation_accuracy": right.double().mean().item()}
        return row | ({"pseudo_precision": right[sure].double().mean().item()} if sure.any() else {})

    made = make_optimizer(optimizer, method, lr, weight_decay, lr_scales=lr_scales)
    return run_loop(
        method, loader, loss_of, look, optimizer=made, epochs=epochs, lr=lr, warmup=warmup, clip_norm=clip_norm, guard=guard, device=device,
        precision=precision, seed=seed, settings=settings, checkpoint=checkpoint, stop_after=stop_after, progress=progress, name=name,
    )  # fmt: skip
