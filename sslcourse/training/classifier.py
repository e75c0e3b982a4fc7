"""Training a classifier on labelled images."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment
from sslcourse.devices import autocast
from sslcourse.evaluation.features import evaluation_view, predict
from sslcourse.loaders import loader_for
from sslcourse.training.callbacks import around
from sslcourse.training.checkpoints import History
from sslcourse.training.loop import Run, make_ready, train


def fit_classifier(
    model: nn.Module, images, epochs: int, *, label_smoothing: float = 0.1, augmentation: nn.Module | None = None, validate_every: int = 1,
    batch_size: int = 64, warmup: float = 0.2, name: str = "training", **options,
) -> History:  # fmt: skip
    """Train a classifier on `images.train_images` with AdamW, a one-cycle schedule and label smoothing; watch the validation split.

    model: normalised float images (N, 3, size, size) -> logits (N, classes); trained in place, left in evaluation mode.
    images: a datasets.ImageSet, whose test split is never touched. epochs: passes over the labelled images.
    batch_size: at most the number of labelled images. augmentation: a module of `augment`; `augment.weak` when None.
    validate_every: epochs between two looks at the validation split, each of which gives a row; 0 looks once, at the end.
    options: lr, weight_decay, lr_scales, guard, device, precision, seed, checkpoint, ...: those of `training.Options`.

    Returns the History: epoch, step, lr, loss (with label smoothing, in training mode), validation_loss, validation_accuracy, seconds.
    A loss that is not finite ends the run at the end of that epoch, with a warning.
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
    facts["augmentation"] = augmentation.extra_repr()

    def loss_of(x: Tensor, y: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        x = augmentation(x).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            logits = model(x)
        return F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing), {}

    def look(epoch: int, last: bool) -> dict | None:
        if not last and not (validate_every and epoch % validate_every == 0):
            return None
        if not len(images.validation_labels):
            return {}
        logits, labels = predict(model, images.validation_images, transform=view, precision=precision), images.validation_labels.cpu()
        losses = [F.cross_entropy(*part, reduction="sum").item() for part in zip(logits.split(512), labels.split(512), strict=True)]
        right = (logits.argmax(1) == labels).sum().item()
        return {"validation_loss": sum(losses) / len(labels), "validation_accuracy": right / len(labels)}

    return train(Run(model, loader, loss_of, epochs, options, facts), around(look, options))


def epochs_for(labels: int, steps: int, passes: int = 1, batch_size: int = 64) -> int:
    """Epochs on so many labelled images that make at least `steps` steps (long enough for few) and `passes` passes (for many).

    An epoch takes whole batches only, and one of all images where they are fewer than batch_size.
    """
    return max(1, passes, steps // max(1, labels // batch_size))
