"""What is put on top of an encoder: a classifier, heads, and one module for each method of pretraining."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment, losses
from sslcourse.devices import at_least_float32


def small_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer near zero, so that the first loss is that of guessing, ln(out_features)."""
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(layer.bias)
    return layer


class Classifier(nn.Module):
    """An encoder and one linear layer, with dropout between them: normalised images (N, 3, H, W) -> logits (N, num_classes)."""

    def __init__(self, encoder: nn.Module, num_classes: int, dropout: float = 0.2):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}.")
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = small_linear(encoder.feature_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.encoder(x)))


class ProjectionHead(nn.Sequential):
    """Features (N, in_dim) -> projections (N, out_dim): linear, batch normalisation, ReLU, linear (Chen et al. 2020, section 2.1).

    layers: linear layers in all; 1 is a linear head. last_norm: batch normalisation without scale or shift on the output too.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int = 2, last_norm: bool = False):
        for name, value in (("in_dim", in_dim), ("hidden_dim", hidden_dim), ("out_dim", out_dim), ("layers", layers)):
            if int(value) != value or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value}.")
        parts, width = [], in_dim
        for _ in range(layers - 1):  # the bias would be taken away again by the batch normalisation that follows
            parts += [nn.Linear(width, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)]
            width = hidden_dim
        parts.append(nn.Linear(width, out_dim, bias=not last_norm))
        super().__init__(*parts, *([nn.BatchNorm1d(out_dim, affine=False)] if last_norm else []))


class PredictionHead(ProjectionHead):
    """Projections (N, in_dim) -> predictions (N, out_dim) of another projection: a head of two layers (Grill et al. 2020)."""


class Method(nn.Module):
    """What the methods share. forward(images uint8 (N, 3, H, W)) -> scalar loss.

    encoder: what is kept. augmentation: a module of `augment`; None takes the method's own at the size of the first images it sees, which
    default_augmentation(size, **options) makes. loss_name: what `losses.chance_loss` calls the loss. shown: the options that a checkpoint
    compares. metrics: numbers of the last forward beside the loss, as detached scalars on the device.
    """

    loss_name: str
    shown: tuple[str, ...] = ()

    def __init__(self, encoder: nn.Module, augmentation: nn.Module | None):
        super().__init__()
        self.feature_dim = encoder.feature_dim
        self.encoder, self.augmentation = encoder, augmentation
        self.metrics: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.shown)

    def prepare(self, size: int) -> None:
        """Settle on the method's own augmentation, for images of this many pixels a side, where none was given."""
        if self.augmentation is None:
            device = next((p.device for p in self.parameters()), None)
            self.augmentation = self.default_augmentation(size).to(device)

    def augment(self, images: Tensor) -> Tensor | list[Tensor]:
        """The views of uint8 images, on their device."""
        self.prepare(images.shape[-1])
        return self.augmentation(images)

    def two_views(self, images: Tensor) -> tuple[Tensor, ...]:
        """Two views of every image, each (N, 3, size, size); of a `MultiCrop` its small ones too."""
        self.prepare(images.shape[-1])
        if isinstance(self.augmentation, augment.TwoViews):
            return tuple(self.augmentation(images))
        return tuple(self.augmentation(torch.cat([images, images])).chunk(2))

    def chance_loss(self, batch_size: int) -> float:
        """The loss when nothing has been learned."""
        return losses.chance_loss(self.loss_name, batch_size=batch_size)

    def encode(self, views: Tensor) -> Tensor:
        """Normalised views (N, 3, H, W) -> features (N, feature_dim)."""
        return self.encoder(views.contiguous(memory_format=torch.channels_last))


def four_rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every image by 0, 1, 2 and 3 quarter turns counter-clockwise: x (N, 3, H, H) -> images (4N, 3, H, H), labels (4N,) int64.

    All images unturned first, then all by one turn, and so on (Gidaris et al. 2018, section 2.2).
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[2] != x.shape[3]:
        kind = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__} (of two views?)"
        raise ValueError(f"Quarter turns need one tensor of square images (N, 3, H, H), not {kind}.")
    return torch.cat([torch.rot90(x, k, dims=(2, 3)) for k in range(4)]), torch.arange(4, device=x.device).repeat_interleave(len(x))


class Rotation(Method):
    """RotNet (Gidaris et al. 2018): tell by how many quarter turns an image was rotated. N images become 4N. metrics: rotation_accuracy."""

    loss_name, default_augmentation = "rotation", staticmethod(augment.weak)

    def __init__(self, encoder: nn.Module, augmentation: nn.Module | None = None):
        super().__init__(encoder, augmentation)
        self.head = small_linear(self.feature_dim, 4)

    def logits(self, views: Tensor) -> Tensor:
        """Normalised views (N, 3, H, W) -> (N, 4), one score for each number of quarter turns."""
        return self.head(self.encode(views))

    def forward(self, images: Tensor) -> Tensor:
        turned, turns = four_rotations(self.augment(images))
        logits = at_least_float32(self.logits(turned))
        self.metrics = {"rotation_accuracy": (logits.detach().argmax(1) == turns).float().mean()}
        return F.cross_entropy(logits, turns)


class TwoViewMethod(Method):
    """What the methods that compare two views share: a `ProjectionHead` on the encoder, whose output they compare."""

    def __init__(self, encoder: nn.Module, augmentation: nn.Module | None, *head, **options):
        super().__init__(encoder, augmentation)
        self.projector = ProjectionHead(self.feature_dim, *head, **options)

    def extra_repr(self) -> str:
        widths = [layer.out_features for layer in self.projector if isinstance(layer, nn.Linear)]
        head = f"projector={widths}, last_norm={isinstance(self.projector[-1], nn.BatchNorm1d)}"
        return ", ".join(filter(None, [head, super().extra_repr()]))

    def project(self, views: Tensor) -> Tensor:
        """Normalised views (N, 3, H, W) -> projections (N, out_dim), of the network that is trained."""
        return self.projector(self.encode(views))


class SimCLR(TwoViewMethod):
    """Two views of an image shall be more alike than views of different images (Chen, Kornblith, Norouzi, Hinton 2020).

    hidden_dim, out_dim, layers: the projection head's. temperature: that of the NT-Xent loss. views_together: encode both views in one
    pass, so that batch normalisation sees both. metrics: positive_similarity, the mean cosine of the two views' projections.
    """

    loss_name, default_augmentation = "simclr", staticmethod(augment.simclr)
    shown = ("temperature", "views_together")

    def __init__(
        self, encoder: nn.Module, augmentation: nn.Module | None = None, *, hidden_dim: int = 256, out_dim: int = 64, layers: int = 2,
        last_norm: bool = False, temperature: float = 0.2, views_together: bool = True,
    ):  # fmt: skip
        super().__init__(encoder, augmentation, hidden_dim, out_dim, layers, last_norm)
        self.temperature, self.views_together = temperature, views_together

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.two_views(images)
        if self.views_together:
            z0, z1 = self.project(torch.cat([first, second])).chunk(2)
        else:
            z0, z1 = self.project(first), self.project(second)
        with torch.no_grad():
            self.metrics = {"positive_similarity": F.cosine_similarity(z0.float(), z1.float()).mean()}
        return losses.nt_xent(z0, z1, self.temperature, gather_distributed=True)


class BYOL(TwoViewMethod):
    """Predict what a slowly moving copy of the network makes of the other view (Grill et al. 2020). No negatives.

    hidden_dim, out_dim: of both heads. tau0: where the moving average of the target starts (`ema_tau`; 0.996 in the paper, for 1,000
    epochs). last_norm: batch normalisation without scale on the projections (none in the paper); only their rank then tells of a collapse.
    predictor, stop_gradient, moving_average: the three parts that can be taken away. Without the moving average the target is the online
    network itself, and only then has stop_gradient=False an effect: the loss pulls at both its sides.
    metrics: projection_std, the spread of the online projections' directions times the root of their dimension (1 is even, 0 collapsed);
    target_similarity, the mean cosine of prediction and target.
    """

    loss_name, default_augmentation = "byol", staticmethod(augment.byol_views)

    def __init__(
        self, encoder: nn.Module, augmentation: nn.Module | None = None, *, hidden_dim: int = 256, out_dim: int = 128, tau0: float = 0.98,
        last_norm: bool = True, predictor: bool = True, stop_gradient: bool = True, moving_average: bool = True,
    ):  # fmt: skip
        if not 0 <= tau0 <= 1:
            raise ValueError(f"tau0 is the part of the target that a step keeps and must lie between 0 and 1, not {tau0}.")
        super().__init__(encoder, augmentation, hidden_dim, out_dim, last_norm=last_norm)
        self.predictor = PredictionHead(out_dim, hidden_dim, out_dim) if predictor else nn.Identity()
        self.target = copy.deepcopy(nn.Sequential(encoder, self.projector)).requires_grad_(False) if moving_average else None
        self.tau0, self.stop_gradient = float(tau0), stop_gradient

    def extra_repr(self) -> str:
        parts = {"predictor": not isinstance(self.predictor, nn.Identity), "stop_gradient": self.stop_gradient}
        parts |= {"moving_average": self.target is not None, "tau0": self.tau0}
        return ", ".join([super().extra_repr(), *(f"{name}={value}" for name, value in parts.items())])

    def forward(self, images: Tensor) -> Tensor:
        views = torch.cat(self.two_views(images))  # (2N, 3, size, size)
        z = self.project(views)
        predicted = self.predictor(z)  # (2N, out_dim)
        with torch.no_grad():  # z keeps the gradient that it has
            aim = z if self.target is None else self.target(views.contiguous(memory_format=torch.channels_last))
        aim = aim.roll(len(images), dims=0)  # each view predicts the other one
        with torch.no_grad():
            spread = F.normalize(z.float(), dim=1).std(0, correction=0).mean() * z.shape[1] ** 0.5
            alike = F.cosine_similarity(predicted.float(), aim.float()).mean()
            self.metrics = {"projection_std": spread, "target_similarity": alike}
        return losses.byol_loss(predicted, aim, stop_gradient=self.stop_gradient)

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Move the target's weights towards the online ones: target = tau * target + (1 - tau) * online (equation 1)."""
        if self.target is not None:
            online = [*self.encoder.parameters(), *self.projector.parameters()]
            torch._foreach_lerp_(list(self.target.parameters()), online, 1 - ema_tau(step, steps, self.tau0))


def ema_tau(step: int, steps: int, tau0: float) -> float:
    """The part of the target that step number `step` of `steps` keeps: from tau0 at the first to 1 at the last (Grill et al. 2020, 3.1)."""
    if steps < 1 or not 0 <= step <= steps:
        raise ValueError(f"step has to lie between 0 and steps, and steps be at least 1; they are {step} and {steps}.")
    return 1 - (1 - tau0) * (math.cos(math.pi * step / steps) + 1) / 2


class BarlowTwins(TwoViewMethod):
    """Make the cross-correlation of two views' projections the identity matrix (Zbontar, Jing, Misra, LeCun, Deny 2021).

    hidden_dim, out_dim, layers: the projection head's, 8,192 wide in the paper. lambda_param: weight of the elements beside the diagonal.
    scale: factor on the whole loss. metrics: diagonal, the mean correlation of a dimension with itself in the other view.
    """

    loss_name, default_augmentation = "barlow_twins", staticmethod(augment.barlow_views)
    shown = ("lambda_param", "scale")

    def __init__(
        self, encoder: nn.Module, augmentation: nn.Module | None = None, *, hidden_dim: int = 256, out_dim: int = 256, layers: int = 2,
        lambda_param: float = 0.02, scale: float = 1.0,
    ):  # fmt: skip
        if not scale > 0:
            raise ValueError(f"scale is a factor on the loss and must be positive, not {scale}.")
        super().__init__(encoder, augmentation, hidden_dim, out_dim, layers)
        self.lambda_param, self.scale, self.out_dim = lambda_param, scale, out_dim

    def chance_loss(self, batch_size: int) -> float:
        return self.scale * losses.chance_loss(self.loss_name, batch_size=batch_size, dim=self.out_dim, lambda_param=self.lambda_param)

    def forward(self, images: Tensor) -> Tensor:
        z0, z1 = self.project(torch.cat(self.two_views(images))).chunk(2)
        c = losses.cross_correlation(z0, z1, gather_distributed=True)
        self.metrics = {"diagonal": c.detach().diagonal().mean()}
        return self.scale * losses.distance_from_identity(c, self.lambda_param).to(at_least_float32(z0).dtype)
