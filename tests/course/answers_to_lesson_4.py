"""Answers to the exercises of lesson 4, as learners write them."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from sslcourse import losses
from sslcourse.course.checks.lesson_4 import deviation, ema_update, entropy, meters, my_byol_loss


def loss_by_distance(p, z):
    with torch.no_grad():
        aim = z / z.norm(dim=1, keepdim=True)
    return (p / p.norm(dim=1, keepdim=True) - aim).pow(2).sum(1).mean()


def loss_spoils_its_graph(p, z):
    value = my_byol_loss(p, z)
    with torch.no_grad():
        p /= p.norm(dim=1, keepdim=True)
    return value


def loss_changes_its_input(p, z):
    z.data /= z.data.norm(dim=1, keepdim=True)
    return my_byol_loss(p, z)


@torch.no_grad()
def ema_by_name_and_copy(target, online, tau):
    theirs = dict(online.named_parameters())
    for name, t in target.named_parameters():
        t.copy_(tau * t + (1 - tau) * theirs[name])
    return target


def ema_through_data(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.data = tau * t.data + (1 - tau) * o.data


def ema_recorded(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.mul_(tau).add_((1 - tau) * o)


def ema_new_parameters(target, online, tau):
    for t, o in zip(target, online, strict=True):
        for name, old in [*t.named_parameters()]:
            setattr(t, name, nn.Parameter(tau * old + (1 - tau) * getattr(o, name).detach(), requires_grad=False))


def ema_by_reference(target, online, tau):
    for k in range(len(target)):
        target[k] = online[k]


def ema_shares_data(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.data = o.data if tau == 0 else tau * t.data + (1 - tau) * o.data


def ema_new_network(target, online, tau):
    moved = copy.deepcopy(target)
    ema_update(moved, online, tau)
    return moved


@torch.no_grad()
def ema_of_the_state(target, online, tau):
    theirs = online.state_dict()
    for name, value in target.state_dict().items():
        value.copy_(tau * value + (1 - tau) * theirs[name])


@torch.no_grad()
def ema_of_matrices_only(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        if t.dim() > 1:
            t.copy_(tau * t + (1 - tau) * o)


def meters_by_hand(z):
    z = z.double() / z.double().norm(dim=1, keepdim=True)
    spread = (z - z.mean(0)).pow(2).mean(0).sqrt().mean() / (1 / math.sqrt(z.shape[1]))
    values = torch.linalg.svd(z).S
    share = (values / values.sum()).clamp_min(1e-12)
    return spread.item(), math.exp(-float((share * share.log()).sum()))


RIGHT = {"4.1": [losses.byol_loss, loss_by_distance], "4.2": [ema_by_name_and_copy, ema_through_data], "4.3": [meters_by_hand]}

WRONG = {
    "4.1": {
        "a gradient reaches z": lambda p, z: 2 - 2 * F.cosine_similarity(p, z).mean(),
        "wrong side": lambda p, z: 2 - 2 * F.cosine_similarity(p.detach(), z).mean(),
        "no gradient comes back": [torch.no_grad()(my_byol_loss), lambda p, z: my_byol_loss(p.detach(), z)],
        "its gradient is not": lambda p, z: 2 - 2 * (p / p.detach().norm(dim=1, keepdim=True) * F.normalize(z.detach())).sum(1).mean(),
        "backward() fails": loss_spoils_its_graph, "changes its input z": loss_changes_its_input,
        "p = 3·z": lambda p, z: my_byol_loss(p, z) + 0.05,
    },
    "4.2": {
        "recorded for backward": ema_recorded,
        "require gradients now": lambda target, online, tau: ema_update(target.requires_grad_(True), online, tau),
        "new parameter tensors": ema_new_parameters, "own tensors": ema_by_reference, "shares memory": ema_shares_data,
        "returns a new network": ema_new_network, "online network changed": lambda target, online, tau: ema_update(online, target, tau),
        "no longer be trained": lambda target, online, tau: ema_update(target, online.requires_grad_(False), tau),
        "running statistics of batch normalisation changed": ema_of_the_state, "numbers did not move": ema_of_matrices_only,
        "By hand": lambda target, online, tau: ema_update(target, online, 0.9),
    },
    "4.3": {
        "value of the spread is off": meters(lambda z: deviation(z) + 0.1),
        "value of the effective rank is off": meters(rank=lambda v: entropy(v) / math.log(2)),
        "0·ln 0": meters(rank=lambda v: (-(v / v.sum() * (v / v.sum()).log()).sum()).exp()),
        "is a number written into": meters(rank=lambda v: entropy(v[:5]).exp()),
    },
}
