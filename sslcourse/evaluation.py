"""How good is it, and how sure can we be? Predictions, top-k accuracy, confusion, standard errors and comparisons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from sslcourse import augment
from sslcourse.loaders import TensorLoader
from sslcourse.training import autocast, choose_precision, evaluation_mode


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    *,
    size: int | None = None,
    transform: nn.Module | None = None,
    batch_size: int = 512,
    precision: str = "fp32",
) -> Tensor:
    """Logits of a classifier in evaluation mode, whatever mode it was in (which is put back).

    images: uint8 (N, 3, H, W). size: resize to it first. transform: uint8 -> normalised float; `augment.evaluation` when None.
    Returns float32 (N, classes) on the CPU. The order of the images and the size of the batches do not change a prediction.
    """
    device = next(model.parameters(), images).device
    precision = choose_precision(device, precision)
    transform = (transform if transform is not None else augment.evaluation(size or images.shape[2])).to(device)
    pieces = []
    with evaluation_mode(model):
        for (x,) in TensorLoader(images, batch_size=batch_size, device=device):
            with autocast(device, precision):
                pieces.append(model(transform(x).contiguous(memory_format=torch.channels_last)).float().cpu())
    return torch.cat(pieces)


@dataclass
class Result:
    """What `evaluate` found on N labelled images with C classes. Accuracies are fractions between 0 and 1."""

    logits: Tensor  # (N, C)
    labels: Tensor  # (N,)
    class_names: Sequence[str]

    @property
    def n(self) -> int:
        return len(self.labels)

    @cached_property
    def predictions(self) -> Tensor:
        """The most probable class of each image, (N,)."""
        return self.logits.argmax(1)

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, (N, C)."""
        return self.logits.softmax(1)

    @property
    def top1(self) -> float:
        return top_k(self.logits, self.labels, 1)

    @property
    def top3(self) -> float:
        """Part of the images whose class is among the three most probable; with three classes or fewer it is 1 and says nothing."""
        return top_k(self.logits, self.labels, 3)

    @property
    def standard_error(self) -> float:
        return standard_error(self.top1, self.n)

    @property
    def confidence_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of top1."""
        return wilson_interval(self.top1, self.n)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts (C, C): row is the true class, column the predicted one."""
        return confusion_matrix(self.labels.numpy(), self.predictions.numpy(), labels=range(self.logits.shape[1]))

    def worst_mistakes(self, k: int = 8) -> Tensor:
        """Indices of the k wrong predictions made with the most confidence, the most confident first."""
        confidence = self.probabilities.max(1).values
        wrong = (self.predictions != self.labels).nonzero().flatten()
        return wrong[confidence[wrong].argsort(descending=True)][:k]

    def most_confused(self, k: int = 3) -> list[tuple[str, str, int]]:
        """The k most frequent mistakes as (true class, predicted class, count)."""
        counts = self.confusion.copy()
        np.fill_diagonal(counts, 0)
        order = np.argsort(counts, axis=None)[::-1][:k]
        pairs = [np.unravel_index(i, counts.shape) for i in order]
        return [(self.class_names[t], self.class_names[p], int(counts[t, p])) for t, p in pairs if counts[t, p]]

    def __str__(self) -> str:
        return f"top-1 {100 * self.top1:.1f} ± {100 * self.standard_error:.1f} %, top-3 {100 * self.top3:.1f} % on {self.n} images"


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, class_names: Sequence[str] | None = None, **options) -> Result:
    """Predict in evaluation mode and hold the predictions against the labels. images uint8 (N, 3, H, W), labels int64 (N,).

    options: those of `predict`. Raises ValueError when there are no images, lengths differ, or a label is not a class.
    """
    if len(images) != len(labels) or not len(labels):
        raise ValueError(f"evaluate needs as many labels as images, and at least one: {len(images)} images, {len(labels)} labels.")
    logits = predict(model, images, **options)
    labels = labels.cpu()
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"Labels must lie in 0..{logits.shape[1] - 1}; these lie in {int(labels.min())}..{int(labels.max())}.")
    return Result(logits, labels, list(class_names) if class_names is not None else [str(c) for c in range(logits.shape[1])])


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Part of the rows whose label is among the k largest logits. logits (N, C), labels (N,)."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels.unsqueeze(1)).any(1).float().mean().item()


def standard_error(accuracy: float, n: int) -> float:
    """Standard error of an accuracy measured on n images: sqrt(a(1 − a)/n). It knows nothing of the luck of the training run."""
    if not 0 <= accuracy <= 1 or n < 1:
        raise ValueError(f"accuracy must lie in 0..1 and n be at least 1, not {accuracy} and {n}.")
    return math.sqrt(accuracy * (1 - accuracy) / n)


def wilson_interval(accuracy: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for an accuracy measured on n images that stays inside 0..1 and holds near its ends too (Wilson 1927)."""
    if not 0 <= accuracy <= 1 or n < 1:
        raise ValueError(f"accuracy must lie in 0..1 and n be at least 1, not {accuracy} and {n}.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of several runs and its standard error (sample deviation / sqrt(runs)); the error of a single run is unknown: NaN."""
    values = [float(v) for v in values]
    if not values:
        raise ValueError("mean_and_error needs at least one value.")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def paired_difference(first: Result, second: Result) -> tuple[float, float]:
    """top1 of the first less that of the second on the same images, and the standard error of the difference.

    The two share their images, so hard images cost both: the difference is known better than either accuracy.
    Raises ValueError when the labels differ.
    """
    if len(first.labels) != len(second.labels) or not torch.equal(first.labels, second.labels):
        raise ValueError("A paired difference needs two results on the same images in the same order.")
    difference = (first.predictions == first.labels).double() - (second.predictions == second.labels).double()
    return difference.mean().item(), (difference.std(correction=1) / math.sqrt(len(difference))).item()
