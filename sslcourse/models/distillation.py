"""Self-distillation: a student learns to say of a small piece of an image what its teacher says of the whole."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment, losses
from sslcourse.devices import at_least_float32, sum_over_ranks, world_size
from sslcourse.models.methods import Method, ema_tau


class DINOHead(nn.Module):
    """Features (N, in_dim) -> logits (N, out_dim): an MLP, and the cosines of what it makes with out_dim prototypes, within -1..1.

    That is the paper's l2-normalised bottleneck and weight-normalised last layer, of length 1 (Caron et al. 2021, section 3.2, appendix C).
    """

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, out_dim: int):
        super().__init__()
        layers = [nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        self.prototypes = nn.Parameter(torch.randn(out_dim, bottleneck_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.mlp(x), dim=1), F.normalize(self.prototypes, dim=1))


class DINO(Method):
    """Say of any view what a slowly moving copy of the network says of a large one (Caron et al. 2021, arXiv 2104.14294). No negatives.

    hidden_dim, bottleneck_dim, out_dim: the head's, 2,048, 256 and 65,536 in the paper. local_crops, local_size: how many small views an
    image gets, and their pixels a side; the student alone sees them (section 3.1). tau0: where the moving average of the teacher starts
    (`ema_tau`; 0.996 in the paper). centering: take the teacher's mean logits off, a moving average with center_momentum; without it one
    dimension wins. sharpening: teacher_temperature, below student_temperature; without it 1 stands in its place, and all K dimensions
    become equally probable. The paper's warm-up of the temperature, and the frozen last layer of its first epoch, are left out.
    metrics: teacher_entropy, of its output for an image, and dimensions_used, exp(entropy) of its mean output, both as parts of the most
    there can be, ln K and K: 0 and 1/K where one dimension wins, 1 and 1 where all are equal, little and much in between;
    kl, from the student's output to the teacher's in nats: 0 in either collapse.
    """

    loss_name = "dino"
    shown = (
        "hidden_dim", "bottleneck_dim", "out_dim", "local_crops", "local_size", "student_temperature", "teacher_temperature",
        "center_momentum", "tau0", "centering", "sharpening",
    )  # fmt: skip

    def __init__(
        self, encoder: nn.Module, augmentation: nn.Module | None = None, *, hidden_dim: int = 256, bottleneck_dim: int = 64,
        out_dim: int = 256, local_crops: int = 4, local_size: int = 16, student_temperature: float = 0.1, teacher_temperature: float = 0.04,
        center_momentum: float = 0.9, tau0: float = 0.99, centering: bool = True, sharpening: bool = True,
    ):  # fmt: skip
        for name, value in (("center_momentum", center_momentum), ("tau0", tau0)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is the part of a moving average that a step keeps and must lie between 0 and 1, not {value}.")
        super().__init__(encoder, augmentation)
        self.head = DINOHead(self.feature_dim, hidden_dim, bottleneck_dim, out_dim)
        self.teacher = copy.deepcopy(nn.Sequential(encoder, self.head)).requires_grad_(False)
        self.register_buffer("center", torch.zeros(out_dim))
        self.hidden_dim, self.bottleneck_dim, self.out_dim = hidden_dim, bottleneck_dim, out_dim
        self.local_crops, self.local_size, self.tau0, self.center_momentum = local_crops, local_size, float(tau0), float(center_momentum)
        self.student_temperature, self.teacher_temperature = float(student_temperature), float(teacher_temperature) if sharpening else 1.0
        self.centering, self.sharpening = centering, sharpening

    def default_augmentation(self, size: int, **options) -> augment.MultiCrop:
        return augment.multi_crop(size, self.local_size, self.local_crops, **options)

    def chance_loss(self, batch_size: int) -> float:
        return losses.chance_loss(self.loss_name, dim=self.out_dim)

    def forward(self, images: Tensor) -> Tensor:
        first, second, *local = self.two_views(images)
        large = torch.cat([first, second])
        said = [self.head(self.encode(views)) for views in (large, *([torch.cat(local)] if local else []))]  # one pass for each size
        student = torch.cat(said).split(len(images))  # of each view (N, K)
        with torch.no_grad():
            teacher = self.teacher(large.contiguous(memory_format=torch.channels_last))  # (2N, K)
        pairs = [
            losses.dino_loss(s, t, self.center, self.student_temperature, self.teacher_temperature)
            for i, t in enumerate(teacher.chunk(2)) for k, s in enumerate(student) if k != i
        ]  # fmt: skip
        loss = torch.stack(pairs).mean()
        with torch.no_grad():
            output = ((at_least_float32(teacher) - self.center) / self.teacher_temperature).softmax(1)
            entropy, of_mean = torch.special.entr(output).sum(1).mean(), torch.special.entr(output.mean(0)).sum()
            self.metrics = {"teacher_entropy": entropy / math.log(self.out_dim), "dimensions_used": of_mean.exp() / self.out_dim}
            self.metrics["kl"] = loss.detach() - entropy
            if self.centering:  # equation 4, for the next batch
                mean = sum_over_ranks(at_least_float32(teacher).mean(0)) / world_size()
                self.center.lerp_(mean, 1 - self.center_momentum)
        return loss

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Move the teacher's weights towards the student's: teacher = tau · teacher + (1 − tau) · student."""
        student = [*self.encoder.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(list(self.teacher.parameters()), student, 1 - ema_tau(step, steps, self.tau0))
