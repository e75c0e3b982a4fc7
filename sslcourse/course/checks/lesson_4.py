"""The exercises of lesson 4: BYOL's loss, the moving average of the target, and two meters of collapse."""

import copy
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import near, reject_if, reject_mistakes, two_views
from sslcourse.course.exercises import Exercise


def my_byol_loss(p: Tensor, z: Tensor) -> Tensor:
    """2 − 2·cosine of prediction and target, averaged over the rows; z gets no gradient. p, z (N, D)."""
    return 2 - 2 * F.cosine_similarity(p, z.detach(), dim=1).mean()


BYOL_MISTAKES = {
    "The rows are not normalised. The loss compares directions: divide each row of p and of z by its length, F.normalize(v, dim=1).":
        [F.mse_loss, lambda p, z: (p - z).square().sum(1).mean(), lambda p, z: 2 - 2 * (p * z).sum(1).mean(),
         lambda p, z: -(p * z).sum(1).mean()],
    "The cosines are taken over the batch. Take one for each row: dim=1.": lambda p, z: 2 - 2 * F.cosine_similarity(p, z, dim=0).mean(),
    "The squared differences are averaged over the features too, D times too small: sum over dim=1 first.":
        lambda p, z: F.mse_loss(F.normalize(p), F.normalize(z)),
    "This is 1 − cosine, half of the loss. The squared distance is 2 − 2·cosine.": lambda p, z: 1 - F.cosine_similarity(p, z).mean(),
    "This is minus the cosine: the same force, halved, but the loss here is 2 − 2·cosine.": lambda p, z: -F.cosine_similarity(p, z).mean(),
    "This is the distance. The loss is its square: no root.": lambda p, z: (F.normalize(p) - F.normalize(z)).norm(dim=1).mean(),
}


def check_byol_loss(answer) -> None:
    expect.loss(answer(*two_views(6, 5, 1)), rows=6)
    for n, d in ((6, 5), (9, 3), (1, 8)):
        hint = f"With {n} rows of {d} the value is off. One test: the loss is 0 when p = 3·z, and 4 when p = −z."
        expect.agree(answer, my_byol_loss, two_views(n, d, n), hint, BYOL_MISTAKES, "the loss", rtol=5e-4, atol=1e-5)
    told = {"names": ("p", "z"), "else_moves": "the target would be trained too", "cut": "No .detach() on p's lengths."}
    expect.gradients(answer, my_byol_loss, two_views(6, 5, 2), learns=[0], **told)


def ema_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target = tau · target + (1 − tau) · online for every parameter, in place; buffers, gradients and online stay as they are."""
    with torch.no_grad():
        for t, o in zip(target.parameters(), online.parameters(), strict=True):
            t.mul_(tau).add_(o, alpha=1 - tau)


def moved_to(change):
    """A wrong update: every parameter t of the target becomes change(t, o, tau), where o is that of the online network."""

    @torch.no_grad()
    def update(target, online, tau):
        for t, o in zip(target.parameters(), online.parameters(), strict=True):
            t.copy_(change(t, o, tau))

    return update


EMA_MISTAKES = {
    "Nothing moved. `t = ...` only gives a new tensor the old name; change it in place: t.mul_(...), t.copy_(...).":
        moved_to(lambda t, o, tau: t),
    "The weights are swapped: tau of the target is kept, 1 − tau comes from online.": moved_to(lambda t, o, tau: (1 - tau) * t + tau * o),
    "(1 − tau)·online is added, but the target not multiplied by tau, so the weights grow.": moved_to(lambda t, o, tau: t + (1 - tau) * o),
    "The old target is multiplied by tau, but online is added whole. Multiply it by 1 − tau.": moved_to(lambda t, o, tau: tau * t + o),
    "The target only shrinks: tau·target is there, and (1 − tau)·online is missing.": moved_to(lambda t, o, tau: tau * t),
}


def target_and_online(seed: int) -> tuple[nn.Module, nn.Module]:
    """A frozen target and an online network of one shape, with different weights and different running statistics."""
    torch.manual_seed(seed)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    target = copy.deepcopy(online).requires_grad_(False)
    with torch.no_grad():
        for network in (online, target):
            for tensor in (*network.parameters(), network[1].running_mean):
                tensor.copy_(0.5 + torch.randn_like(tensor))
    network[1].num_batches_tracked += 7
    return target, online


def state(network: nn.Module) -> list[Tensor]:
    """The parameters and the buffers of a network, each as one row."""
    return [torch.cat([t.detach().flatten().double() for t in tensors]) for tensors in (network.parameters(), network.buffers())]


def updated(update, seed: int, tau: float) -> Tensor:
    """The parameters of a fresh target after `update`, as one row."""
    target, online = target_and_online(seed)
    update(target, online, tau)
    return state(target)[0]


def check_ema(answer) -> None:
    for seed, tau in ((1, 0.9), (2, 0.75), (3, 0.0), (4, 1.0)):
        target, online = target_and_online(seed)
        tensors, theirs, (old, statistics) = [*target.parameters()], state(online), state(target)
        returned = answer(target, online, tau)
        changed = not all(map(torch.equal, theirs, state(online)))
        reject_if(changed, "The online network changed, its parameters or its running statistics. Only the target moves.")
        frozen = not all(p.requires_grad for p in online.parameters())
        reject_if(frozen, "The online network can no longer be trained: leave its requires_grad alone.")
        now = [*target.parameters()]
        shared = {*map(id, now)} & {*map(id, online.parameters())}
        reject_if(shared, "The target holds the online network's own tensors now. Copy values, not references.")
        renewed = [*map(id, now)] != [*map(id, tensors)]
        reject_if(renewed, "The target got new parameter tensors. Change the old ones in place: t.mul_(...).add_(...) or t.copy_(...).")
        reject_if(any(p.grad_fn for p in now), "The update was recorded for backward(). Do it inside `with torch.no_grad():`.")
        reject_if(any(p.requires_grad for p in now), "The target's parameters require gradients now. Leave requires_grad as it was.")
        got, got_statistics = state(target)
        elsewhere = isinstance(returned, nn.Module) and returned is not target and torch.equal(got, old)
        reject_if(elsewhere, "The function returns a new network, and the target that it was given is as it was. Change it in place.")
        reject_mistakes(answer, ema_update, EMA_MISTAKES, lambda f, seed=seed, tau=tau: updated(f, seed, tau), atol=1e-5)
        wanted = updated(ema_update, seed, tau)
        off = ~got.isclose(wanted, rtol=1e-4, atol=1e-5)
        left = off.any() and torch.equal(got[off], old[off])
        reject_if(left, f"{off.sum()} of {len(off)} numbers did not move. Go through all of target.parameters().")
        by_hand = "By hand: target 10, online 0, tau 0.9 gives 9; tau = 1 changes nothing, tau = 0 copies."
        reject_if(off.any(), f"With tau = {tau:g}, {off.sum()} of {len(off)} numbers are off. {by_hand}")
        buffers = "The running statistics of batch normalisation changed too. They are buffers: go through parameters(), not state_dict()."
        reject_if(not torch.equal(got_statistics, statistics), buffers)
        with torch.no_grad():
            for o in online.parameters():
                o.add_(1.0)
        shared = "The target shares memory with the online network: when that is trained, the target moves along. Copy the numbers."
        reject_if(not near(state(target)[0], wanted), shared)


def spread_and_rank(z: Tensor) -> tuple[Tensor, Tensor]:
    """How evenly the directions of the rows spread (0 collapsed, 1 even), and how many dimensions they use. z (N, D)."""
    return meters()(z)


def deviation(z: Tensor, correction=0) -> Tensor:
    return z.std(dim=0, correction=correction).mean() * z.shape[1] ** 0.5


def entropy(values: Tensor) -> Tensor:
    return torch.special.entr(values / values.sum()).sum()


def meters(spread=deviation, rank=lambda values: entropy(values).exp(), unit=F.normalize, centre=lambda z: z):
    """The two meters; wrong ones take another spread of the rows or rank of their singular values v, or rows prepared otherwise."""
    return lambda z: (spread(unit(z)), rank(torch.linalg.svdvals(centre(unit(z)))))


METER_MISTAKES = {
    "The rows are not normalised. Both meters are about directions: F.normalize(z, dim=1) first.": meters(unit=lambda z: z),
    "The spread divides by N − 1. std(dim=0, correction=0) gives even directions exactly 1.": meters(lambda z: deviation(z, correction=1)),
    "This spread is a variance. Take the standard deviation, std.": meters(lambda z: z.var(dim=0, correction=0).mean() * z.shape[1]),
    "The mean row is taken off. Here it stays: of equal rows only rounding noise would be left.": meters(centre=lambda z: z - z.mean(0)),
    "The singular values are squared before they are divided. Take them as they are.": meters(rank=lambda v: entropy(v**2).exp()),
    "This is the entropy. The effective rank is its exponential, so that D equal values give D.": meters(rank=entropy),
}


def check_meters(answer) -> None:
    z = two_views(9, 5, 4)[:1]
    expect.pair(answer(*z), spread_and_rank(*z), "spread", "rank")
    flat = torch.ones(8, 4) * torch.arange(1.0, 9.0).unsqueeze(1)  # a collapsed batch, and singular values of exactly 0
    flat[:, 2:] = 0
    hand = "By hand: the rows (1, 0), (−1, 0), (0, 1), (0, −1) have a spread of exactly 1 and rank 2; equal rows have 0 and 1."
    for at, name in enumerate(("the spread", "the effective rank")):
        hint, more = f"The value of {name} is off. {hand}", [two_views(40, 12, 5)[:1], two_views(6, 16, 6)[:1]]
        expect.agree(answer, spread_and_rank, z, hint, METER_MISTAKES, name, itemgetter(at), more, rtol=1e-3)
        hint = "Right for healthy rows, but not for a collapsed batch: 0·ln 0 is NaN. torch.special.entr makes it 0, or clamp the shares."
        expect.close(answer(flat)[at], float(at), hint, atol=1e-2, what=name)


EXERCISES = [
    Exercise("4.1", "BYOL's loss, with the gradient stopped", 10, 1, my_byol_loss, check_byol_loss, BYOL_MISTAKES),
    Exercise("4.2", "A step of the moving average", 15, 2, ema_update, check_ema, EMA_MISTAKES),
    Exercise("4.3", "Two meters of collapse", 15, 2, spread_and_rank, check_meters, METER_MISTAKES),
]
