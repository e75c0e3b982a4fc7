"""Learning from labelled and unlabelled images at once: a classifier that labels images for itself."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment, losses
from sslcourse.devices import evaluation_mode


class PseudoLabeling(nn.Module):
    """A classifier that learns from a few labelled images, and from what it says itself of unlabelled ones (Lee 2013).

    classifier: normalised images (N, 3, H, W) -> logits (N, C), such as `models.Classifier`. It is trained, and makes pseudo-labels in
    evaluation mode; `averaged`, a moving average of its weights and batch statistics, is what is evaluated.
    weak: the augmentation of labelled images and of those that get a pseudo-label; None takes `augment.weak` at the images' size.
    strong: the augmentation of the images that learn from it; None is the weak view itself, as in plain pseudo-labelling.
    threshold: the least probability of a pseudo-label, 0 to 1. weight: of the unlabelled images in the loss; ramp: (start, end) of its rise
    from 0, as parts of all steps. average: how much of the averaged weights a step keeps at most, in the first steps
    (1 + step)/(10 + step); 0 evaluates the classifier's own weights.
    metrics: supervised_loss; pseudo_loss, before its weight; pseudo_weight; coverage, the part of the unlabelled images that pass.
    """

    usual_views = {"weak": augment.weak}

    def __init__(
        self, classifier: nn.Module, *, weak: nn.Module | None = None, strong: nn.Module | None = None, threshold: float = 0.0,
        weight: float = 1.0, ramp: tuple[float, float] = (0.0, 0.4), average: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        for name, value in (("threshold", threshold), ("average", average)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}.")
        if len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1] <= 1:
            raise ValueError(f"ramp is (start, end) as parts of all steps, with 0 <= start <= end <= 1, not {ramp}.")
        self.classifier = classifier
        self.averaged = copy.deepcopy(classifier).requires_grad_(False) if average else classifier
        self.weak, self.strong = weak, strong
        self.threshold, self.ramp, self.average, self.final_weight = float(threshold), tuple(map(float, ramp)), average, float(weight)
        first = losses.pseudo_label_weight(0, *self.ramp, weight)
        self.register_buffer("weight", torch.tensor(first, dtype=torch.float32))  # on the device, so that nobody waits for it
        self.metrics: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, weight={self.final_weight}, ramp={self.ramp}, average={self.average}"

    def prepare(self, size: int) -> None:
        """Settle on the views, for images of this many pixels a side, where none were given."""
        for name, make in self.usual_views.items():
            if getattr(self, name) is None:
                setattr(self, name, make(size).to(self.weight.device))

    def pseudo_logits(self, images: Tensor) -> Tensor:
        """What the classifier says of uint8 images (N, 3, H, W) in their weak view: logits (N, C), without gradient."""
        return self._answers(self.weak(images))

    @torch.no_grad()
    def _answers(self, views: Tensor) -> Tensor:
        with evaluation_mode(self.classifier):
            return self.classifier(views.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor, labels: Tensor, unlabeled: Tensor) -> Tensor:
        """images uint8 (B, 3, H, W) with labels int64 (B,), unlabeled uint8 (M, 3, H, W) -> scalar loss."""
        if labels.device.type == "cpu" and len(labels) and int(labels.min()) < 0:
            raise ValueError(f"A label is {int(labels.min())}: images without a label belong among the unlabelled ones.")
        self.prepare(images.shape[-1])
        x = self.weak(images)
        if self.strong is None:
            u = self.weak(unlabeled)
            weak_logits = self._answers(u)
        else:
            weak_logits, u = self.pseudo_logits(unlabeled), self.strong(unlabeled)
        both = torch.cat([x, u]).contiguous(memory_format=torch.channels_last)
        logits = self.classifier(both).float()  # together, so that batch statistics are of both
        supervised = F.cross_entropy(logits[: len(x)], labels)
        pseudo = losses.pseudo_label_loss(weak_logits.float(), logits[len(x) :], self.threshold)
        with torch.no_grad():
            passing = weak_logits.float().softmax(1).amax(1) >= self.threshold
            self.metrics = {"supervised_loss": supervised.detach(), "pseudo_loss": pseudo.detach()}
            self.metrics |= {"pseudo_weight": self.weight.clone(), "coverage": passing.float().mean()}
        return supervised + self.weight * pseudo

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        start, end = (part * steps for part in self.ramp)
        self.weight.fill_(losses.pseudo_label_weight(step, start, end, self.final_weight))
        if self.averaged is self.classifier:
            return
        moved = 1 - min(self.average, (1 + step) / (10 + step))
        mine, theirs = self.averaged.state_dict(), self.classifier.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floats], [theirs[name] for name in floats], moved)
        for name in mine.keys() - set(floats):  # how many batches the statistics have seen
            mine[name].copy_(theirs[name])


class FixMatch(PseudoLabeling):
    """The weak view labels, where it is sure, and the strong view learns (Sohn et al. 2020, arXiv 2001.07685).

    Arguments as in `PseudoLabeling`, with the paper's defaults but for the average, which suits short runs (the paper has 0.999 for a
    million steps); strong: None takes `augment.strong` at the images' size.
    """

    usual_views = {"weak": augment.weak, "strong": augment.strong}

    def __init__(self, classifier: nn.Module, **options):
        super().__init__(classifier, **({"threshold": 0.95, "ramp": (0.0, 0.0), "average": 0.99} | options))
