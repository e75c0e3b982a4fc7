"""Does a classifier that says 90 % get nine of ten right? Calibration and temperature scaling (Guo et al. 2017, arXiv 1706.04599)."""

import math
from dataclasses import dataclass

import scipy  # its parts are imported where they are first used
import torch
from torch import Tensor
from torch.nn import functional as F

from sslcourse.evaluation.features import check_labels


@dataclass(frozen=True)
class Calibration:
    """How sure a classifier was of N images, and how often it was right; accuracies and confidences are fractions.

    ece: the mean over images of |accuracy − confidence| of the image's bin (equation 3). bin_…: of each bin from the least sure to the
    surest its means, NaN where it is empty, and its number of images.
    """

    ece: float
    bin_confidence: tuple[float, ...]
    bin_accuracy: tuple[float, ...]
    bin_count: tuple[int, ...]
    mean_confidence: float
    accuracy: float

    overconfidence = property(lambda self: self.mean_confidence - self.accuracy, doc="Above zero it promises too much.")


def calibration(logits, labels=None, bins: int = 10) -> Calibration:
    """Confidences, the largest probability of each image, against accuracies, in bins of equal width: above (m − 1)/bins up to m/bins.

    logits: an evaluation.Result, or float (N, C) with labels (N,). The ECE depends on N: compare those of equal numbers of images.
    """
    logits, labels = _checked(logits, labels)
    if bins < 1:
        raise ValueError(f"bins is a number of bins, at least 1, not {bins}.")
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.double)
    of = torch.bucketize(confidence.clamp_max(1), edges[1:-1])  # an edge belongs to the bin below it
    count = torch.bincount(of, minlength=bins)
    mean_confidence, mean_right = (torch.bincount(of, weights=v, minlength=bins) / count for v in (confidence, right))  # 0 / 0 is NaN
    ece = ((mean_right - mean_confidence).abs() * count).nansum() / len(labels)
    by_bin = (tuple(found.tolist()) for found in (mean_confidence, mean_right, count))
    return Calibration(ece.item(), *by_bin, confidence.mean().item(), right.mean().item())


def fit_temperature(logits, labels=None) -> float:
    """The temperature T for which softmax(logits / T) gives these labels the highest likelihood (temperature scaling, section 4.2).

    logits: an evaluation.Result of the validation images, or float (N, C) with labels (N,). T, 0.05 to 20, is above 1 for one too sure.
    """
    logits, labels = _checked(logits, labels)

    def nll(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    low, high = math.log(0.05), math.log(20)
    minimum = scipy.optimize.minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-6})  # one valley
    return math.exp(min((low, minimum.x, high), key=nll))


def _checked(logits, labels) -> tuple[Tensor, Tensor]:
    """Logits in double precision, (N, C), and labels, (N,), both on the CPU."""
    if labels is None:
        logits, labels = logits.logits, logits.labels
    logits, labels = torch.as_tensor(logits).detach().cpu().double(), torch.as_tensor(labels).cpu().long()
    if logits.dim() != 2 or labels.shape != logits.shape[:1] or not len(labels) or logits.shape[1] < 2:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"Logits are (N, C) and labels (N,), N at least 1 and C at least 2, not {shapes}.")
    if not logits.isfinite().all():
        raise ValueError("The logits hold NaN or inf: the network that made them is broken, so train it anew.")
    check_labels(labels, logits.shape[1])
    return logits, labels
