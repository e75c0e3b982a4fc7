"""What an encoder makes of images, and the vote of the nearest neighbours: measuring that needs no training."""

from dataclasses import dataclass, replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment, datasets
from sslcourse.datasets.prepared import SPLITS
from sslcourse.devices import OneOrAll, cudnn, evaluation_mode, seeded
from sslcourse.display import progress_bar
from sslcourse.loaders import TensorLoader

BATCH_SIZE = 512
_threads: WeakKeyDictionary[nn.Module, OneOrAll] = WeakKeyDictionary()  # what each network was faster with


def evaluation_view(augmentation: nn.Module | None, size: int) -> augment.Augmentation:
    """What an encoder trained with this augmentation should see: its size (or `size` where it has none) and normalisation, not random."""
    augmentation = getattr(augmentation, "first", augmentation)  # of two views
    if not isinstance(augmentation, augment.Augmentation):
        return augment.evaluation(getattr(augmentation, "size", size))
    return augment.evaluation(augmentation.size, mean=augmentation.mean.flatten().tolist(), std=augmentation.std.flatten().tolist())


@torch.no_grad()
def _in_batches(model: nn.Module, compute, images: Tensor, size, transform) -> Tensor:
    """compute(normalised batch), for all images, with the model in evaluation mode; float32 on the CPU."""
    device = next(model.parameters(), images).device
    transform = (transform if transform is not None else augment.evaluation(size or images.shape[2])).to(device)
    one_or_all, pieces = _threads.setdefault(model, OneOrAll()), []
    with evaluation_mode(model), cudnn(allow_tf32=False):  # which some cards have, and fp32 shall mean the same on all
        with progress_bar(len(images), "computing features", "image", delay=2) as bar:
            for (x,) in TensorLoader(images, batch_size=BATCH_SIZE, device=device):
                x = transform(x).contiguous(memory_format=torch.channels_last)
                pieces.append((one_or_all(partial(compute, x), len(x)) if device.type == "cpu" else compute(x)).float().cpu())
                bar.update(len(x))
    return torch.cat(pieces)


def predict(model: nn.Module, images: Tensor, *, size: int | None = None, transform=None) -> Tensor:
    """Logits of a classifier in evaluation mode; its own mode is put back: uint8 (N, 3, H, W) -> float32 (N, classes) on the CPU.

    size: resize to it first. transform: uint8 -> normalised float; `augment.evaluation` when None.
    """
    return _in_batches(model, model, images, size, transform)


def features(encoder: nn.Module, images: Tensor, *, block: int | None = None, size: int | None = None, transform=None) -> Tensor:
    """What an encoder makes of images, in evaluation mode, before any head: uint8 (N, 3, H, W) -> float32 (N, D) on the CPU.

    block: None takes the encoder's own output, D = feature_dim. A number takes the map after that block, counted from 1 (-1 is the last),
    and of each channel the largest value, or of a `models.vit` the mean (`pool_maps`): D = channels. size, transform: as in `predict`;
    those that the encoder was trained with.
    """
    if block is None:
        return _in_batches(encoder, encoder, images, size, transform)
    blocks = len(encoder.blocks)
    if block == 0 or not -blocks <= block <= blocks:
        raise ValueError(f"block is {block}; this encoder has blocks 1 to {blocks}, or -1 for the last.")
    upto = block if block > 0 else blocks + 1 + block
    return _in_batches(encoder, lambda x: encoder.pool_maps(encoder.feature_maps(x, upto)[-1]), images, size, transform)


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise ValueError unless each label is a class."""
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"Labels must lie in 0..{classes - 1}; these lie in {int(labels.min())}..{int(labels.max())}.")


def check_split(found, name: str) -> None:
    """Raise ValueError unless an ImageSet or a FeatureSet has images in this split."""
    if name not in SPLITS:
        raise ValueError(f"split is one of {', '.join(SPLITS)}, not {name!r}.")
    if not len(getattr(found, f"{name}_labels")):
        raise ValueError(f"The {name} split is empty, so nothing can be measured on it: name another split.")


@dataclass
class FeatureSet:
    """Features and labels of a data set's three splits: features float32 (N, D), labels int64 (N,)."""

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    test: Tensor
    test_labels: Tensor
    class_names: list[str]

    dim = property(lambda self: self.train.shape[1])

    def few_labels(self, per_class: int = 10, seed: int = 0) -> "FeatureSet":
        """The same with `per_class` labelled rows per class: the images that `ImageSet.few_labels` chooses with this seed."""
        rows = datasets.few_rows(self.train_labels, self.class_names, per_class, seed)
        return replace(self, train=self.train[rows], train_labels=self.train_labels[rows])

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Features and labels of "train", "validation" or "test"; ValueError where there are none."""
        check_split(self, name)
        return getattr(self, name), getattr(self, f"{name}_labels")


def feature_set(encoder: nn.Module, images, **options) -> FeatureSet:
    """Features of all three splits of an ImageSet. options: those of `features`."""
    pictures = {name: getattr(images, f"{name}_images") for name in SPLITS}
    rows = {name: features(encoder, part, **options) for name, part in pictures.items() if len(part)}
    none = next(iter(rows.values()), torch.zeros(0, 0))[:0]
    labels = {f"{name}_labels": getattr(images, f"{name}_labels").cpu() for name in SPLITS}
    return FeatureSet(**{name: rows.get(name, none) for name in SPLITS}, **labels, class_names=list(images.class_names))


def in_views(found: FeatureSet, encoder: nn.Module, images, view: nn.Module, *, repeats: int = 0, seed: int = 0, **options) -> FeatureSet:
    """The FeatureSet with other training rows: those of `repeats` random views of each labelled image of an ImageSet.

    A probe that is trained on them sees its few images as augmented as a supervised network does (Chen et al. 2020, appendix B.6, have
    crops and flips). view: uint8 -> normalised float. repeats: 0 makes about 1,000 rows, 2 to 20 of each image.
    options: those of `features` with which `found` was made.
    """
    repeats = repeats or min(20, max(2, 1000 // max(1, len(images.train_labels))))
    pictures, labels = (part.repeat(repeats, *[1] * (part.dim() - 1)) for part in (images.train_images, images.train_labels.cpu()))
    with seeded(seed):
        return replace(found, train=features(encoder, pictures, transform=view, **options), train_labels=labels)


def neighbours(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of bank (N, D) most alike to each of queries (Q, D), by cosine, best first -> similarities (Q, k), indices (Q, k)."""
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}; it must lie between 1 and {len(bank)}, the rows of the bank.")
    bank = F.normalize(bank.float(), dim=1)
    found = [(F.normalize(rows.float(), dim=1) @ bank.T).topk(k, dim=1) for rows in queries.split(1024)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def knn_scores(bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int = 20, temperature: float = 0.1) -> Tensor:
    """The weighted vote of the k nearest neighbours (Wu et al. 2018, section 3.4): (Q, num_classes), each row sums to 1.

    bank (N, D) with labels (N,), queries (Q, D); k is cut to N. A neighbour's vote has weight exp(cosine / temperature).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}.")
    if len(labels) != len(bank):
        raise ValueError(f"Each row of the bank needs its label: {len(bank)} rows, {len(labels)} labels.")
    similarity, index = neighbours(bank, queries, min(k, len(bank)))
    weight = ((similarity - similarity[:, :1]).double() / temperature).softmax(1).float()  # the same vote as with exp, cannot overflow
    return weight.new_zeros(len(queries), num_classes).scatter_add_(1, labels.to(bank.device)[index], weight)
