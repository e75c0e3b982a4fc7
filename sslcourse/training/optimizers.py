"""Optimizers and learning-rate schedules: which parameters decay, how the rate rises and falls, and LARS for large batches."""

import math
from collections.abc import Mapping

import torch
from torch import nn

WEIGHT_DECAY = {"adamw": 0.05, "sgd": 5e-4, "lars": 1e-6}  # where nothing else is said


def decayed_and_not(module: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None) -> list[dict]:
    """Parameter groups: weight decay on matrices and kernels, none on biases and normalisation (Goyal et al. 2017, section 5.3).

    lr_scales: a part's name, such as "encoder" -> factor on its learning rate; where several fit a parameter, the longest name decides.
    Raises ValueError for a name that no parameter has, a negative factor, and when there is nothing to train.
    """
    scales = dict(lr_scales or {})
    if scales and not min(scales.values()) >= 0:
        raise ValueError(f"lr_scales are factors on the learning rate and must not be negative: {scales}.")
    groups, met = {}, set()  # groups: (scale, whether it is decayed) -> parameters
    for name, p in module.named_parameters():
        if p.requires_grad:
            parts = [part for part in scales if name == part or name.startswith(part + ".")]
            met.update(parts)
            scale = float(scales[max(parts, key=len)]) if parts else 1.0
            groups.setdefault((scale, p.dim() > 1), []).append(p)
    if not groups:
        raise ValueError(f"No parameter of {type(module).__name__} is trained: set requires_grad on those that shall be.")
    if missing := set(scales) - met:
        raise ValueError(f"lr_scales names {', '.join(sorted(missing))}, and no trained parameter of {type(module).__name__} is called so.")
    order = sorted(groups, reverse=True)  # of each scale the matrices first
    return [{"params": groups[key], "weight_decay": float(weight_decay) if key[1] else 0.0, "lr_scale": key[0]} for key in order]


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, steps: int, warmup: float = 0.2) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate up along a line for the first `warmup` part of the steps, then down along a cosine to nothing.

    Called one cycle (Smith 2018) in supervised training, and in pretraining a cosine schedule with warm-up (Loshchilov and Hutter 2017).
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a part of the steps and must be at least 0 and below 1, not {warmup}.")
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step on each matrix is a fixed part of that matrix's length (You, Gitman, Ginsburg 2017, algorithm 1).

    trust: that part. Biases, normalisation and a matrix of zeros get plain SGD with momentum and no weight decay, as in SimCLR and BYOL.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                step = p.grad
                if p.dim() > 1:
                    step = step.add(p, alpha=group["weight_decay"])
                    length, gradient = p.norm(), step.norm()
                    fits = (length > 0) & (gradient > 0)  # stays on the device
                    step = step * torch.where(fits, group["trust"] * length / gradient, 1.0)
                if p not in self.state:
                    self.state[p]["velocity"] = torch.zeros_like(p)
                velocity = self.state[p]["velocity"].mul_(group["momentum"]).add_(step)
                p.add_(velocity, alpha=-group["lr"])


def make_optimizer(name: str, module: nn.Module, lr: float, weight_decay: float, lr_scales=None) -> torch.optim.Optimizer:
    """adamw (Loshchilov and Hutter 2019), sgd (Nesterov momentum of 0.9) or lars, over the groups of `decayed_and_not`.

    On CUDA the first two are fused: one kernel for many parameters, which itself leaves out a step that fp16 overflowed.
    """
    groups = decayed_and_not(module, weight_decay, lr_scales)
    fused = {"fused": True} if all(p.device.type == "cuda" for group in groups for p in group["params"]) else {}
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, **fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, **fused)
    if name == "lars":
        return LARS(groups, lr=lr)
    raise ValueError(f"optimizer must be one of {', '.join(WEIGHT_DECAY)}, not {name!r}.")
