"""Pretraining: any self-supervised method, on unlabelled images."""

from collections.abc import Mapping

from torch import Tensor, nn

from sslcourse import diagnostics
from sslcourse.devices import autocast, rank, world_size
from sslcourse.evaluation.features import evaluation_view, features, knn_scores
from sslcourse.loaders import loader_for
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
    called after each of the optimizer's steps, with their number counted from 1.
    images: a datasets.ImageSet, whose test split is never touched. epochs: passes over the unlabelled images.
    batch_size: images a step, shared by the processes where there are several; a last smaller batch is left out.
    look_every: epochs between two looks at the encoder, and once at the end; 0 never looks. A look measures how spread the features of the
    validation images are (`diagnostics.collapse`), and how many of them the nearest of 5,000 labelled training images classify rightly.
    options: lr, optimizer, weight_decay, clip_norm, guard, device, precision, seed, checkpoint, ...: those of `training.Options`.

    Returns the History, a row an epoch: epoch, step, lr, loss, chance_loss, the method's own metrics, seconds; at looks also feature_std,
    healthy_std, feature_rank, knn_accuracy. A loss that is not finite ends the run at the end of that epoch, with a warning.
    Schedule: Loshchilov and Hutter 2017, as in SimCLR (Chen et al. 2020, section 2.2).
    """
    options = make_ready(method, images, "unlabeled", epochs, batch_size=batch_size, warmup=warmup, name=name, **options)
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
        return chance | _look_at(method.encoder, images, view, precision)

    with one_gradient(method, device) as joint:
        return train(Run(method, loader, loss_of, epochs, options, facts), around(look, options))


def _look_at(encoder: nn.Module, images, view: nn.Module, precision: str) -> dict[str, float]:
    """Spread of the features of the validation images, and the accuracy of their nearest labelled neighbours."""
    z = features(encoder, images.validation_images, transform=view, precision=precision)
    if not z.isfinite().all():
        return {}  # the loss tells
    spread = diagnostics.collapse(z)
    row = {"feature_std": spread.std, "healthy_std": z.shape[1] ** -0.5, "feature_rank": spread.effective_rank}
    if len(images.train_labels) > LOOK_IMAGES:
        images = images.subset(train=LOOK_IMAGES)
    if len(images.train_labels):
        bank = features(encoder, images.train_images, transform=view, precision=precision)
        scores = knn_scores(bank, images.train_labels.cpu(), z, len(images.class_names))
        row["knn_accuracy"] = (scores.argmax(1) == images.validation_labels.cpu()).double().mean().item()
    return row
