"""Networks from elsewhere, such as torchvision's and timm's, as encoders that `evaluation` can measure."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment
from sslcourse.devices import evaluation_mode
from sslcourse.errors import CourseError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what most networks are trained with


class Backbone(nn.Module):
    """A copy of a trained network without its classifier: images normalised as in this course (N, 3, H, W) -> (N, feature_dim).

    network: timm's (forward_features and forward_head); torchvision's, without the last linear layer of its fc, classifier, heads or head;
    or any that makes features (N, D), or maps (N, D, h, w), of which the mean is taken. size: pixels a side that it expects, to which
    images are resized. mean, std: what it expects them to be normalised with, per channel, in 0..1. It has no blocks to choose from.
    """

    blocks = ()

    def __init__(self, network: nn.Module, size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__()
        self.network, self.size = copy.deepcopy(network), int(size)
        for name, value in {"our_mean": augment.MEAN, "our_std": augment.STD, "mean": mean, "std": std}.items():
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1))
        heads = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        heads = [name for name in heads if name.split(".")[0] in ("fc", "classifier", "heads", "head")]
        if heads and not hasattr(network, "forward_head"):
            parent, _, last = heads[-1].rpartition(".")
            setattr(self.network.get_submodule(parent), last, nn.Identity())
        self.to(next(network.parameters(), self.mean).device)
        with torch.no_grad(), evaluation_mode(self):
            self.feature_dim = self(torch.zeros_like(self.mean).expand(1, 3, self.size, self.size)).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        pieces = [x] if self.training or torch.is_grad_enabled() else x.split(64)  # `evaluation` brings hundreds, and these are large
        return torch.cat([self._features(piece) for piece in pieces])

    def _features(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        x, network = (x * self.our_std + self.our_mean - self.mean) / self.std, self.network
        timms = hasattr(network, "forward_head")
        x = network.forward_head(network.forward_features(x), pre_logits=True) if timms else network(x)
        if not isinstance(x, Tensor) or x.dim() not in (2, 4):
            raise ValueError(f"This {type(network).__name__} makes neither features (N, D) nor maps (N, D, h, w) of images.")
        return x.mean((2, 3)) if x.dim() == 4 else x


def pretrained_backbone(name: str, device: str | torch.device = "cpu") -> tuple[Backbone, str]:
    """A network of torchvision or timm, by its name there: the encoder with the weights that they recommend, and whose weights these are.

    They download the weights once. What expects more than 224 pixels a side, as DINOv2 does, is read at 224 where it can be. CourseError
    for a name that neither has, where timm is needed and missing, and when the weights cannot be had.
    """
    import torchvision

    try:
        if name in torchvision.models.list_models(module=torchvision.models):
            weights = torchvision.models.get_model_weights(name).DEFAULT
            network, views = torchvision.models.get_model(name, weights=weights), weights.transforms()
            how, origin = (views.crop_size[0], views.mean, views.std), f"torchvision's {name}, made with the labels of ImageNet"
        else:
            import timm

            network = timm.create_model(name, pretrained=True, num_classes=0)
            expects = network.pretrained_cfg
            size, origin = expects["input_size"][-1], f"timm's {name}, weights {expects.get('tag') or 'as they come'}"
            if size > 224 and hasattr(network, "set_input_size"):
                size = 224
                network.set_input_size(img_size=size)
            how = size, expects["mean"], expects["std"]
    except ImportError as error:
        known = "torchvision has no network of this name, and timm, which has most others, is not installed: pip install timm."
        raise CourseError(f"{name!r}: {known}") from error
    except (OSError, RuntimeError) as error:
        way_out = "Check the name, and the network connection."
        raise CourseError(f"{name!r} cannot be had from torchvision or timm ({error}). {way_out}") from error
    return Backbone(network, *how).to(device).eval(), origin
