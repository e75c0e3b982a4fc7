"""Learning from a few labelled images and many unlabelled ones together."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.devices import autocast
from sslcourse.evaluation.features import evaluation_view, predict
from sslcourse.loaders import PairedLoader, loader_for
from sslcourse.training.callbacks import around
from sslcourse.training.checkpoints import History
from sslcourse.training.loop import Run, make_ready, train


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
    loader = PairedLoader(
        loader_for(images.train_images, images.train_labels, batch_size=batch_size, seed=seed + 1, **how),
        loader_for(images.unlabeled, batch_size=min(batch_size * unlabeled_ratio, len(images.unlabeled)), seed=seed, **how),
    )
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
        logits = predict(method.averaged, images.validation_images, transform=view, precision=precision)
        labels = images.validation_labels.cpu()
        if on_look is not None:
            on_look(epoch, logits)
        sure, right = logits.softmax(1).amax(1) >= method.threshold, logits.argmax(1) == labels
        row = {"validation_loss": F.cross_entropy(logits, labels).item(), "validation_accuracy": right.double().mean().item()}
        return row | ({"pseudo_precision": right[sure].double().mean().item()} if sure.any() else {})

    return train(Run(method, loader, loss_of, epochs, options, facts), around(look, options))
