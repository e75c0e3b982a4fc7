"""Answers to the exercises of lesson 4, as learners write them."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from sslcourse import models
from sslcourse.course.checks.lesson_4 import deviation, distance, entropy, kept, meters


def meters_by_hand(z):
    z = z.double() / z.double().norm(dim=1, keepdim=True)
    spread = (z - z.mean(0)).pow(2).mean(0).sqrt().mean() / (1 / math.sqrt(z.shape[1]))
    values = torch.linalg.svd(z).S
    share = (values / values.sum()).clamp_min(1e-12)
    return spread.item(), math.exp(-float((share * share.log()).sum()))


def move(change):
    """The moving average, by a change of each parameter of the target."""

    def toward(method, online, tau):
        with torch.no_grad():
            for t, o in zip(method.target.parameters(), online.parameters(), strict=True):
                change(t, o, tau)

    return toward


average = move(lambda t, o, tau: t.mul_(tau).add_(o, alpha=1 - tau))


def move_the_state(method, online, tau):
    for value, other in zip(method.target.state_dict().values(), online.state_dict().values(), strict=True):
        value.copy_(tau * value + (1 - tau) * other)


def aim_at(m, first, second):
    return m.target(torch.cat([second, first]))


def step(mode=nn.Module.train, predict=lambda m, h: m.predictor(h), aim=aim_at, stop=True, loss=distance, move=average, tau=kept,
         order=("zero_grad", "backward", "step", "move"), keep=torch.Tensor.item):  # fmt: skip
    """An answer to 4.2 with one thing changed."""

    def train(method, optimizer, pictures, step, steps):
        mode(method)
        online = nn.Sequential(method.encoder, method.projector)
        first, second = method.two_views(pictures)
        p, z = predict(method, online(torch.cat([first, second]))), aim(method, first, second)
        value = loss(p, z.detach() if stop else z).mean()
        acts = {"zero_grad": optimizer.zero_grad, "backward": value.backward, "step": optimizer.step}
        acts["move"] = lambda: move(method, online, tau(step, steps, method.tau0))
        for name in order:
            acts[name]()
        return keep(value)

    return train


def step_in_two_passes(method, optimizer, pictures, step, steps):
    method.train()
    first, second = method.augmentation(pictures)
    loss = 0
    for one, other in ((first, second), (second, first)):
        p, z = method.predictor(method.projector(method.encoder(one))), method.target(other).detach()
        loss = loss + (F.normalize(p) - F.normalize(z)).square().sum(1).mean() / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    keep = models.ema_tau(step, steps, method.tau0)
    theirs = dict(nn.Sequential(method.encoder, method.projector).named_parameters())
    for name, t in method.target.named_parameters():
        t.data.copy_(keep * t.data + (1 - keep) * theirs[name].data)
    return float(loss.detach())


def step_of_the_package(method, optimizer, pictures, step, steps):
    loss = method.train()(pictures)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    method.after_step(step, steps)
    return loss.item()


move_a_copy = lambda m, *rest: average(setattr(m, "target", copy.deepcopy(m.target)) or m, *rest)  # noqa: E731
set_data = move(lambda t, o, tau: setattr(t, "data", tau * t.data + (1 - tau) * o.data))
RIGHT = {"4.1": [meters_by_hand], "4.2": [step_in_two_passes, step_of_the_package, step(move=set_data)]}

WRONG = {
    "4.1": {
        "value of the spread is off": meters(lambda z: deviation(z) + 0.1),
        "value of the effective rank is off": meters(rank=lambda v: entropy(v) / math.log(2)),
        "0·ln 0": meters(rank=lambda v: (-(v / v.sum() * (v / v.sum()).log()).sum()).exp()),
        "is a number written into": meters(rank=lambda v: entropy(v[:5]).exp()),
    },
    "4.2": {
        "reaches the target, so": step(stop=False),
        "of before the step": step(order=("zero_grad", "backward", "move", "step")), "tau is constant": step(tau=lambda k, n, tau0: tau0),
        "weights are swapped": step(tau=lambda *a: 1 - kept(*a)), "does not move": step(order=("zero_grad", "backward", "step")),
        "a new network": step(move=move_a_copy), "with 0 online": step(tau=lambda *a: kept(*a) - 0.05),
        "statistics are averaged": step(move=move_the_state), "is recorded": step(move=move(torch.enable_grad()(lambda t, *_: t.mul_(2)))),
        "applied to the target's": step(aim=lambda m, *views: m.predictor(aim_at(m, *views))),
        "predictor is never called": step(predict=lambda m, h: h), "target is never called": step(aim=lambda m, *v: torch.randn(12, 5)),
        "predicts itself": step(aim=lambda m, *v: m.target(torch.cat(v))), "half of the loss": step(loss=lambda *v: distance(*v) / 2),
        "Take the mean over both": [step(loss=lambda p, z, k=k: distance(p, z).chunk(2)[k]) for k in (0, 1)],
        "predictor sees 6 rows": step(predict=lambda m, h: m.predictor(h[:6]), aim=lambda m, first, second: m.target(second)),
        "added up": step(loss=lambda p, z: 2 * distance(p, z)),
        "rows are not normalised": step(loss=F.mse_loss), "takes 2 steps": step(order=("zero_grad", "backward", "step", "step", "move")),
        "still there": step(order=("backward", "step", "move")), "finds no gradient": step(order=("backward", "zero_grad", "step", "move")),
        "no step": step(order=("zero_grad", "backward", "move")),
        "stays in it": [step(mode=nn.Module.eval), step(mode=lambda m: m.train().target.eval())],
        "as a tensor": step(keep=torch.Tensor.detach), "the number returned": step(keep=lambda loss: loss.item() + 1),
    },
}
