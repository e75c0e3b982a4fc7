"""The three trainings: pretraining on unlabelled images, a classifier on labelled ones, and both together."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment, diagnostics
from sslcourse.devices import autocast, rank, world_size
from sslcourse.evaluation.features import evaluation_view, features, knn_scores, predict
from sslcourse.loaders import PairedLoader, loader_for
from sslcourse.training.callbacks import around
from sslcourse.training.checkpoints import History
from sslcourse.training.distributed import one_gradient
from sslcourse.training.loop import Run, make_ready, train

LOOK_IMAGES = 5_000  # labelled images that the kNN of a look searches, at most


def pretrain(
    method: nn.Module, images, epochs: int, *, look_every: int = 5, batch_size: int = 128, warmup: float = 0.1, name: str = "pretraining",
    **options,
) -> History:  # fmt: skip
    """Train a method (`models.Rotation`, `models.SimCLR`, ...) on `images.unlabeled`, without any label.

    method: forward(uint8 (N, 3, H, W)) -> scalar loss; trained in place, left in evaluation mode. It may have after_step(step, steps),
    called after each of the optimizer's steps, counted from 1. images: a datasets.ImageSet, whose test split is never touched.
    epochs: passes over the unlabelled images. batch_size: images a step, of all processes together, at most all; a last smaller one is out.
    look_every: epochs between two looks at the encoder, and once at the end; 0 never looks. A look measures how spread the features of the
    validation images are (`diagnostics.collapse`), and how many of them the nearest of 5,000 labelled training images classify rightly.
    options: those of `training.Options`. Schedule: Loshchilov and Hutter 2017, as in SimCLR (Chen et al. 2020, section 2.2).
    Returns the History, a row an epoch: epoch, step, lr, loss, chance_loss, the method's own metrics, seconds; at looks also feature_std,
    healthy_std, feature_rank, knn_accuracy. A loss that is not finite ends the run at the end of that epoch, with a warning.
    """
    options = make_ready(method, images, "unlabeled", epochs, batch_size=batch_size, warmup=warmup, name=name, **options)
    options.batch_size = batch_size = min(batch_size, len(images.unlabeled))
    device, precision, part = options.device, options.precision, (rank(), world_size())
    loader = loader_for(images.unlabeled, batch_size=batch_size, shuffle=True, drop_last=True, seed=options.seed, device=device, part=part)
    chance = {"chance_loss": method.chance_loss(batch_size)} if hasattr(method, "chance_loss") else {}
    augmentation = getattr(method, "augmentation", None)
    view = evaluation_view(augmentation, images.size)
    facts = {"task": "pretrain", "method": type(method).__name__, "images": len(images.unlabeled), "size": images.size}
    facts |= {"augmentation": repr(augmentation), "options": method.extra_repr()}

    def loss_of(x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        with autocast(device, precision):
            loss = joint(x)
        return loss, getattr(method, "metrics", {})

    def look(epoch: int, last: bool) -> dict:
        if not look_every or not (last or epoch % look_every == 0) or len(images.validation_labels) < 2:
            return chance
        return chance | _look_at(method.encoder, images, view)

    with one_gradient(method, device) as joint:
        return train(Run(method, loader, loss_of, epochs, options, facts), around(look, options))


def _look_at(encoder: nn.Module, images, view: nn.Module) -> dict[str, float]:
    """Spread of the features of the validation images, and the accuracy of their nearest labelled neighbours."""
    z = features(encoder, images.validation_images, transform=view)
    if not z.isfinite().all():
        return {}  # the loss tells
    spread = diagnostics.collapse(z)
    row = {"feature_std": spread.std, "healthy_std": z.shape[1] ** -0.5, "feature_rank": spread.effective_rank}
    if len(images.train_labels) > LOOK_IMAGES:
        images = images.subset(train=LOOK_IMAGES)
    if len(images.train_labels):
        bank = features(encoder, images.train_images, transform=view)
        scores = knn_scores(bank, images.train_labels.cpu(), z, len(images.class_names))
        row["knn_accuracy"] = (scores.argmax(1) == images.validation_labels.cpu()).double().mean().item()
    return row


def fit_classifier(
    model: nn.Module, images, epochs: int, *, label_smoothing: float = 0.1, augmentation: nn.Module | None = None, validate_every: int = 1,
    batch_size: int = 64, warmup: float = 0.2, name: str = "training", **options,
) -> History:  # fmt: skip
    """Train a classifier on `images.train_images` with AdamW, a one-cycle schedule and label smoothing; watch the validation split.

    model: normalised float images (N, 3, size, size) -> logits (N, classes); trained in place, left in evaluation mode.
    images: a datasets.ImageSet, whose test split is never touched. epochs: passes over the labelled images. batch_size: at most all.
    augmentation: a module of `augment`; None is `augment.weak`. validate_every: epochs between two looks at the validation split, each of
    which gives a row, besides one after the first epoch; 0 looks once, at the end. options: those of `training.Options`.
    Returns the History: epoch, step, lr, loss (with label smoothing, in training mode), validation_loss, validation_accuracy, seconds.
    Müller et al. 2019 (label smoothing), Loshchilov and Hutter 2019 (AdamW), Smith 2018 (one cycle).
    """
    options = make_ready(model, images, "train_images", epochs, batch_size=batch_size, warmup=warmup, name=name, **options)
    options.batch_size = min(batch_size, len(images.train_labels))
    device, precision, size = options.device, options.precision, images.size
    augmentation = (augmentation if augmentation is not None else augment.weak(size)).to(device)
    view = evaluation_view(augmentation, size).to(device)
    how = {"batch_size": options.batch_size, "shuffle": True, "drop_last": True, "seed": options.seed, "device": device}
    loader = loader_for(images.train_images, images.train_labels, **how)
    facts = {"task": "fit_classifier", "label_smoothing": label_smoothing, "images": len(images.train_labels), "size": size}
    facts["augmentation"] = repr(augmentation)

    def loss_of(x: Tensor, y: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        x = augmentation(x).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            logits = model(x)
        return F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing), {}

    def look(epoch: int, last: bool) -> dict | None:
        if not last and not (validate_every and (epoch == 1 or epoch % validate_every == 0)):
            return None
        if not len(images.validation_labels):
            return {}
        logits, labels = predict(model, images.validation_images, transform=view), images.validation_labels.cpu()
        losses = [F.cross_entropy(*part, reduction="sum").item() for part in zip(logits.split(512), labels.split(512), strict=True)]
        right = (logits.argmax(1) == labels).sum().item()
        return {"validation_loss": sum(losses) / len(labels), "validation_accuracy": right / len(labels)}

    return train(Run(model, loader, loss_of, epochs, options, facts), around(look, options))


def epochs_for(labels: int, steps: int, passes: int = 1, batch_size: int = 64) -> int:
    """Epochs on so many labelled images that make at least `steps` steps (long enough for few) and `passes` passes (for many)."""
    return max(1, passes, steps // max(1, labels // batch_size))


def fit_semi_supervised(
    method: nn.Module, images, epochs: int, *, unlabeled_ratio: int = 7, look_every: int = 1,
    on_look: Callable[[int, Tensor], None] | None = None, batch_size: int = 16, warmup: float = 0.1, name: str = "training", **options,
) -> History:  # fmt: skip
    """Train a `models.FixMatch` or `models.PseudoLabeling` on the labelled images and the unlabelled ones together.

    method: forward(uint8 images (B, 3, H, W), labels (B,), unlabelled uint8 images (M, 3, H, W)) -> scalar loss; trained in place, left in
    evaluation mode; `method.averaged` is the classifier to keep. images: a datasets.ImageSet, whose test split is never touched.
    epochs: passes over `images.unlabeled`; the labelled images go round as often as that takes. batch_size: labelled images a step, at most
    all there are; unlabeled_ratio: unlabelled images for each of them (the paper's µ). Every step sees both.
    look_every: epochs between two looks at the validation images, and once at the end; 0 never looks. on_look: called at each with epoch
    and validation logits (N, C). options: as in `pretrain`; lr_scales with names such as "classifier.encoder".
    Returns the History, a row an epoch: epoch, step, lr, loss, supervised_loss, pseudo_loss, pseudo_weight, coverage, seconds; at looks
    also validation_loss and validation_accuracy of the averaged classifier, and pseudo_precision: the part that it classifies rightly of
    the validation images that it is sure of (at least the threshold), where there are any.
    """
    if int(unlabeled_ratio) != unlabeled_ratio or unlabeled_ratio < 1:
        raise ValueError(f"unlabeled_ratio is the unlabelled images for each labelled one, a whole number from 1, not {unlabeled_ratio}.")
    options = make_ready(method, images, "unlabeled", epochs, batch_size=batch_size, warmup=warmup, name=name, **options)
    if not len(images.train_labels):
        raise ValueError("There are no labelled training images, and pseudo-labels need some to begin with: use an ImageSet with labels.")
    options.batch_size = batch_size = min(batch_size, len(images.train_labels))
    device, precision, seed = options.device, options.precision, options.seed
    how = {"shuffle": True, "drop_last": True, "device": device}
    labeled = loader_for(images.train_images, images.train_labels, batch_size=batch_size, seed=seed + 1, **how)
    unlabeled = loader_for(images.unlabeled, batch_size=min(batch_size * unlabeled_ratio, len(images.unlabeled)), seed=seed, **how)
    view = evaluation_view(method.weak, images.size)
    facts = {"task": "fit_semi_supervised", "method": type(method).__name__, "unlabeled_ratio": unlabeled_ratio, "size": images.size}
    facts |= {"images": len(images.unlabeled), "labels": len(images.train_labels), "options": method.extra_repr()}
    facts["augmentation"] = repr((method.weak, method.strong))

    def loss_of(x: Tensor, y: Tensor, u: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        with autocast(device, precision):
            loss = method(x, y, u)
        return loss, method.metrics

    def look(epoch: int, last: bool) -> dict:
        if not look_every or not (last or epoch % look_every == 0) or not len(images.validation_labels):
            return {}
        logits = predict(method.averaged, images.validation_images, transform=view)
        labels = images.validation_labels.cpu()
        if on_look is not None:
            on_look(epoch, logits)
        sure, right = logits.softmax(1).amax(1) >= method.threshold, logits.argmax(1) == labels
        row = {"validation_loss": F.cross_entropy(logits, labels).item(), "validation_accuracy": right.double().mean().item()}
        return row | ({"pseudo_precision": right[sure].double().mean().item()} if sure.any() else {})

    return train(Run(method, PairedLoader(labeled, unlabeled), loss_of, epochs, options, facts), around(look, options))
