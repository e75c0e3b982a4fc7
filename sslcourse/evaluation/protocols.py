"""What an encoder or a classifier is worth on labelled images: accuracy, kNN, linear probe, fine-tuning, retrieval, and maps to look at.

Everything that chooses, chooses on the validation split. The test split is measured only where `split="test"` says so.
"""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from sslcourse.devices import one_thread, seeded
from sslcourse.evaluation.uncertainty import standard_error, wilson_interval
from sslcourse.models import Classifier

from sslcourse.evaluation.features import (  # isort: skip
    FeatureSet, check_labels, check_split, evaluation_view, feature_set, knn_scores, neighbours, predict,
)  # fmt: skip

SMALL_PROBE = 300_000  # numbers; fitting fewer, threads on shared cores wait for each other far longer than they work
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # inverse strengths of the probe's weight penalty, scikit-learn's C


@dataclass
class Result:
    """What was found on N labelled images with C classes. Accuracies are fractions between 0 and 1."""

    logits: Tensor  # (N, C)
    labels: Tensor  # (N,)
    class_names: Sequence[str]
    settings: dict = field(default_factory=dict)  # what was chosen on the way, such as the probe's penalty
    model: nn.Module | None = None  # of `fine_tune` alone: the network that was trained, and its training.History
    history: object = None

    n = property(lambda self: len(self.labels))
    top1 = property(lambda self: top_k(self.logits, self.labels, 1))
    top3 = property(lambda self: top_k(self.logits, self.labels, 3))  # 1, which says nothing, where there are three classes or fewer
    standard_error = property(lambda self: standard_error(self.top1, self.n))
    confidence_interval = property(lambda self: wilson_interval(self.top1, self.n))

    predictions = cached_property(lambda self: self.logits.argmax(1))  # (N,)
    probabilities = cached_property(lambda self: self.logits.softmax(1))  # (N, C)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Counts (C, C): row is the true class, column the predicted one."""
        classes = self.logits.shape[1]
        return torch.bincount(self.labels * classes + self.predictions, minlength=classes**2).view(classes, classes).numpy()

    def worst_mistakes(self, k: int = 8) -> Tensor:
        """Indices of the k wrong predictions made with the most confidence, the most confident first."""
        confidence = self.probabilities.max(1).values
        wrong = (self.predictions != self.labels).nonzero().flatten()
        return wrong[confidence[wrong].argsort(descending=True)][:k]

    def most_confused(self, k: int = 3) -> list[tuple[str, str, int]]:
        """The k most frequent mistakes as (true class, predicted class, count)."""
        counts = self.confusion.copy()
        np.fill_diagonal(counts, 0)
        pairs = [divmod(int(i), len(counts)) for i in np.argsort(counts, axis=None)[::-1][:k]]
        return [(self.class_names[t], self.class_names[p], int(counts[t, p])) for t, p in pairs if counts[t, p]]

    def __str__(self) -> str:
        return f"top-1 {100 * self.top1:.1f} ± {100 * self.standard_error:.1f} %, top-3 {100 * self.top3:.1f} % on {self.n} images"


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, class_names: Sequence[str] | None = None, **options) -> Result:
    """`predict`, with its options, held against the labels: images uint8 (N, 3, H, W), labels int64 (N,), each a class, N at least 1."""
    if len(images) != len(labels) or not len(labels):
        raise ValueError(f"evaluate needs as many labels as images, and at least one: {len(images)} images, {len(labels)} labels.")
    logits = predict(model, images, **options)
    check_labels(labels, logits.shape[1])
    return Result(logits, labels.cpu(), list(class_names) if class_names is not None else [str(c) for c in range(logits.shape[1])])


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Part of the rows whose label is among the k largest logits. logits (N, C), labels (N,)."""
    return (logits.topk(min(k, logits.shape[1]), dim=1).indices == labels.unsqueeze(1)).any(1).double().mean().item()


def _rows_of(found, split: str) -> tuple[Tensor, Tensor]:
    """Features and labels of a split, where these and the training rows can be used."""
    if not isinstance(found, FeatureSet):
        raise TypeError(f"This needs a FeatureSet, from evaluation.feature_set(encoder, images), not {type(found).__name__}.")
    if not len(found.train):
        raise ValueError("There are no labelled training rows: use an ImageSet with train_images.")
    for name in ("train", split):
        if not found.split(name)[0].isfinite().all():
            raise ValueError(f"The features of the {name} split hold NaN or inf: the encoder that made them is broken, so train it anew.")
    return found.split(split)


def knn_accuracy(found: FeatureSet, *, k: int = 20, temperature: float = 0.1, split: str = "validation") -> Result:
    """The weighted vote of the k nearest training rows (Wu et al. 2018, section 3.4), for each row of a split. k is cut to their number."""
    rows, labels = _rows_of(found, split)
    scores = knn_scores(found.train, found.train_labels, rows, len(found.class_names), k, temperature)
    return Result(scores.clamp_min(1e-12).log(), labels, found.class_names, {"k": min(k, len(found.train)), "temperature": temperature})


def linear_probe(found: FeatureSet, *, split: str = "validation", penalties: Sequence[float] = PENALTIES) -> Result:
    """Logistic regression on frozen features, each scaled to mean 0 and deviation 1 over the training rows.

    After Zhang et al. 2016; Chen et al. 2020, section 2.3. penalties: values of scikit-learn's C, small is strong; that with the best
    accuracy on the validation split, the stronger of equals, is taken and noted in `.settings`. split: where the probe is then measured.
    """
    from sklearn.linear_model import LogisticRegression  # here, because the import takes a second

    rows, truth = _rows_of(found, split)
    penalties = sorted(float(c) for c in penalties)
    if not penalties or not all(0 < c < math.inf for c in penalties):
        raise ValueError(f"penalties must be positive numbers, at least one, not {penalties}.")
    if len(penalties) > 1 and not len(found.validation):
        raise ValueError("Choosing among penalties needs validation rows, and there are none; give one value, such as penalties=(0.1,).")
    (train, validation, rows), fitted = _scaled(found.train, found.validation, rows), []
    probe = LogisticRegression(max_iter=1000, warm_start=True)  # each penalty begins where the one before ended
    with one_thread() if train.size < SMALL_PROBE else nullcontext():
        for c in penalties:
            probe.set_params(C=c).fit(train, found.train_labels.numpy())
            accuracy = probe.score(validation, found.validation_labels.numpy()) if len(penalties) > 1 else 0.0
            fitted.append((accuracy, copy.deepcopy(probe)))
    probe = max(fitted, key=lambda pair: pair[0])[1]  # the first of equals
    scores = torch.from_numpy(probe.decision_function(rows)).double()
    if scores.dim() == 1:  # of two classes scikit-learn scores the second against the first
        scores = torch.stack([torch.zeros_like(scores), scores], 1)
    return _said(probe.classes_, scores.log_softmax(1), truth, found, {"C": probe.C})


def mlp_probe(found: FeatureSet, *, hidden: int = 256, split: str = "validation", seed: int = 0) -> Result:
    """A network of one hidden layer on frozen features, scaled as for `linear_probe`: what is in them, but not in a line.

    The original rotation networks were read with two such layers (Gidaris et al. 2018, section 4.1). scikit-learn's MLPClassifier with
    its own settings: ReLU, Adam, batches of 200 rows at most, 200 passes at most. hidden: units. seed: of its first weights and batches.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    rows, truth = _rows_of(found, split)
    if len(found.train_labels.unique()) < 2:
        raise ValueError("A probe needs labelled training rows of at least 2 classes.")
    train, rows = _scaled(found.train, rows)
    with one_thread() if train.size < SMALL_PROBE else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after 200 passes
        probe = MLPClassifier((hidden,), random_state=seed).fit(train, found.train_labels.numpy())
    return _said(probe.classes_, torch.from_numpy(probe.predict_log_proba(rows)), truth, found, {"hidden": hidden})


def _scaled(train: Tensor, *others: Tensor) -> list[np.ndarray]:
    """Rows with mean 0 and deviation 1 over the training rows."""
    wide = train.double()  # means of large numbers lose their digits in float32
    mean, std = wide.mean(0), wide.std(0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs(), std, math.inf)  # differences below float32's own are noise: such a feature becomes 0
    return [((rows.double() - mean) / std).float().numpy() for rows in (train, *others)]


def _said(classes: np.ndarray, log_p: Tensor, truth: Tensor, found: FeatureSet, settings: dict) -> Result:
    """Log probabilities (N, len(classes)) of the classes that a probe has seen, held against the truth; classes it never saw come last."""
    logits = torch.full((len(log_p), len(found.class_names)), -200.0)
    logits[:, torch.from_numpy(classes)] = log_p.clamp_min(-100).float()
    return Result(logits, truth, found.class_names, settings | {"features": found.dim})


def probe_blocks(
    encoders: Mapping[int, nn.Module], images, per_class: int, blocks: Sequence[int | None] | None = None, **options
) -> dict[int | None, list[float]]:
    """Block -> the validation accuracy of a linear probe on it, in percent, for each of the encoders: {seed of its labels: encoder}.

    One rule for all encoders: that block is probed further whose mean is the largest here, `best_block`. blocks: those to try, None
    among them for the encoder's output, which for a class token is no block's; all blocks where none are given. options: of `features`.
    """
    few, found = {seed: images.subset(test=0).few_labels(per_class, seed) for seed in encoders}, {}
    for block in blocks or range(1, 1 + len(next(iter(encoders.values())).blocks)):
        sets = [feature_set(encoder, few[seed], block=block, **options) for seed, encoder in encoders.items()]
        found[block] = [100 * linear_probe(each).top1 for each in sets]
    return found


def best_block(probed: Mapping[int | None, Sequence[float]]) -> int | None:
    """The block with the largest mean of what `probe_blocks` found, the first of equals."""
    return max(probed, key=lambda block: sum(probed[block]) / len(probed[block]))


def fine_tune(
    encoder: nn.Module, images, epochs: int, *, split: str = "validation", lr: float = 2e-3, encoder_lr_scale: float = 0.5, **options
) -> Result:
    """Train a copy of the encoder and a new linear layer on the labelled images, then measure on a split (Chen et al. 2020, section 4.2).

    images: an ImageSet. lr: of the new layer; the encoder's is encoder_lr_scale times that. options: those of `training.fit_classifier`.
    """
    from sslcourse import training  # which itself looks at features

    check_split(images, split)
    with seeded(int(options.get("seed", 0))):
        model = Classifier(copy.deepcopy(encoder).requires_grad_(True), len(images.class_names)).to(next(encoder.parameters()).device)
    history = training.fit_classifier(model, images, epochs, lr=lr, lr_scales={"encoder": encoder_lr_scale}, **options)
    view = evaluation_view(options.get("augmentation"), images.size)
    measured = evaluate(model, getattr(images, f"{split}_images"), getattr(images, f"{split}_labels"), images.class_names, transform=view)
    return replace(measured, settings=history.settings, model=model, history=history)


@dataclass
class Retrieval:
    """For each query of a split, its nearest training images and whether they show the same class, each (Q, k)."""

    indices: Tensor
    right: Tensor

    precision = property(lambda self: self.right.double().mean().item(), doc="Part of the neighbours that show the query's class.")


def retrieve(found: FeatureSet, *, k: int = 8, split: str = "validation") -> Retrieval:
    """The k training images most alike to each image of a split, by the cosine of their features, the most alike first."""
    rows, labels = _rows_of(found, split)
    indices = neighbours(found.train, rows, k)[1]
    return Retrieval(indices, found.train_labels[indices] == labels.unsqueeze(1))


def pca(rows: Tensor) -> Tensor:
    """Coordinates along the directions in which rows vary most: float (N, D) -> (N, 2). Distances are real, with much left out."""
    from sklearn.decomposition import PCA

    return torch.from_numpy(PCA(2, random_state=0).fit_transform(rows.numpy()))


def tsne(rows: Tensor, perplexity: float = 30) -> Tensor:
    """t-SNE (van der Maaten and Hinton 2008): float (N, D) -> (N, 2). perplexity: about how many neighbours count, below N."""
    from sklearn.manifold import TSNE

    with one_thread():  # its threads beside PyTorch's, more than there are cores, wait for each other far longer than they work
        return torch.from_numpy(TSNE(perplexity=perplexity, random_state=0, init="pca").fit_transform(rows.numpy()))
