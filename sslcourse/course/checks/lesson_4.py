"""The exercises of lesson 4: BYOL's loss, the moving average of the target, and two meters of collapse."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

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
    with torch.enable_grad():
        p, z = two_views(6, 5, 1)
        expect.loss(answer(p, z), rows=6)
        reject_mistakes(answer, my_byol_loss, BYOL_MISTAKES, lambda f: f(p, z))
        for n, d in ((6, 5), (9, 3), (1, 8)):
            pair = two_views(n, d, n)
            hint = f"With {n} rows of {d} the value is off. One test: the loss is 0 when p = 3·z, and 4 when p = −z."
            expect.close(answer(*pair), my_byol_loss(*pair), hint, rtol=5e-4, atol=1e-5, what="the loss")
        told = {"names": ("p", "z"), "else_moves": "the target would be trained too", "cut": "No .detach() on p's lengths."}
        expect.stopped_gradient(answer, my_byol_loss, two_views(6, 5, 2), learns=0, **told)


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
    "The second product used the target that the first had changed already: online gets (1 − tau)·tau. Compute both from the old values.":
        moved_to(lambda t, o, tau: tau * (t + (1 - tau) * o)),
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


def copied(named) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named}


def same(before: dict, after: dict) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def updated(update, seed: int, tau: float) -> Tensor:
    """The parameters of a fresh target after `update`, as one row."""
    target, online = target_and_online(seed)
    update(target, online, tau)
    return parameters_to_vector(target.parameters())


def check_ema(answer) -> None:
    for seed, tau in ((1, 0.9), (2, 0.75), (3, 0.0), (4, 1.0)):
        target, online = target_and_online(seed)
        tensors, old, new = list(target.parameters()), copied(target.named_parameters()), copied(online.named_parameters())
        statistics, online_statistics = copied(target.named_buffers()), copied(online.named_buffers())
        returned = answer(target, online, tau)
        reject_if(not same(new, copied(online.named_parameters())), "The online network changed. Only the target moves.")
        seen = "The running statistics of the online network changed. Leave it alone."
        reject_if(not same(online_statistics, copied(online.named_buffers())), seen)
        frozen = not all(p.requires_grad for p in online.parameters())
        reject_if(frozen, "The online network can no longer be trained: leave its requires_grad alone.")
        check_form(target, online, tensors, old, returned)
        reject_mistakes(answer, ema_update, EMA_MISTAKES, lambda f, seed=seed, tau=tau: updated(f, seed, tau), atol=1e-5)
        wanted = {name: tau * old[name] + (1 - tau) * new[name] for name in old}
        check_values(target, old, wanted, tau)
        buffers = "The running statistics of batch normalisation changed too. They are buffers: go through parameters(), not state_dict()."
        reject_if(not same(statistics, copied(target.named_buffers())), buffers)
        with torch.no_grad():
            for o in online.parameters():
                o.add_(1.0)
        now = copied(target.named_parameters())
        shared = "The target shares memory with the online network: when that is trained, the target moves along. Copy the numbers."
        reject_if(not all(near(now[name], wanted[name]) for name in wanted), shared)


def check_form(target: nn.Module, online: nn.Module, tensors: list, old: dict, returned) -> None:
    now = list(target.parameters())
    shared = {id(p) for p in online.parameters()}
    reject_if(any(id(p) in shared for p in now), "The target holds the online network's own tensors now. Copy values, not references.")
    renewed = [*map(id, now)] != [*map(id, tensors)]
    reject_if(renewed, "The target got new parameter tensors. Change the old ones in place, with t.mul_(...).add_(...) or t.copy_(...).")
    reject_if(any(p.grad_fn is not None for p in now), "The update was recorded for backward(). Do it inside `with torch.no_grad():`.")
    reject_if(any(p.requires_grad for p in now), "The target's parameters require gradients now. Leave requires_grad as it was.")
    elsewhere = isinstance(returned, nn.Module) and returned is not target and same(old, copied(target.named_parameters()))
    reject_if(elsewhere, "The function returns a new network, and the target that it was given did not move. Change the target in place.")


def check_values(target: nn.Module, old: dict, wanted: dict, tau: float) -> None:
    got = copied(target.named_parameters())
    off = [name for name in old if not near(got[name], wanted[name])]
    left = [name for name in off if torch.equal(got[name], old[name])]
    reject_if(left and left == off, f"Some parameters did not move: {', '.join(left)}. Go through all of target.parameters().")
    by_hand = "By hand: target 10, online 0, tau 0.9 gives 9; tau = 1 changes nothing, tau = 0 copies."
    reject_if(off, f"With tau = {tau:g} these parameters are off: {', '.join(off)}. {by_hand}")


def spread_and_rank(z: Tensor) -> tuple[Tensor, Tensor]:
    """How evenly the directions of the rows spread (0 collapsed, 1 even), and how many dimensions they use. z (N, D)."""
    z = F.normalize(z, dim=1)
    spread = z.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5
    values = torch.linalg.svdvals(z)
    return spread, torch.special.entr(values / values.sum()).sum().exp()


def deviation(z: Tensor, correction=0) -> Tensor:
    return z.std(dim=0, correction=correction).mean() * z.shape[1] ** 0.5


def entropy(values: Tensor) -> Tensor:
    return torch.special.entr(values / values.sum()).sum()


def meters(spread=deviation, rank=lambda values: entropy(values).exp(), unit=F.normalize, centre=lambda z: z):
    """Wrong meters: another spread of the rows or rank of their singular values v, or rows prepared otherwise."""
    return lambda z: (spread(unit(z)), rank(torch.linalg.svdvals(centre(unit(z)))))


METER_MISTAKES = {
    "The rows are not normalised. Both meters are about directions: F.normalize(z, dim=1) first.": meters(unit=lambda z: z),
    "The spread divides by N − 1. std(dim=0, correction=0) gives even directions exactly 1.": meters(lambda z: deviation(z, correction=1)),
    "This spread is a variance. Take the standard deviation, std.": meters(lambda z: z.var(dim=0, correction=0).mean() * z.shape[1]),
    "The mean row is taken off. Here it stays: of equal rows only rounding noise would be left.": meters(centre=lambda z: z - z.mean(0)),
    "The singular values are squared before they are divided. Take them as they are.": meters(rank=lambda v: entropy(v**2).exp()),
    "This is the entropy. The effective rank is its exponential, so that D equal values give D.": meters(rank=entropy),
}


def uneven_rows(n: int, d: int, seed: int) -> Tensor:
    """Directions about a common one, using some dimensions more than others, with rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator) * torch.linspace(0.2, 1.5, d) + torch.linspace(1.0, 0.0, d)
    return z * (0.5 + 2 * torch.rand(n, 1, generator=generator))


def check_meters(answer) -> None:
    z = uneven_rows(9, 5, 4)
    got, wanted = answer(z), spread_and_rank(z)
    expect.pair(got, wanted, "spread", "rank")
    by_hand = "By hand: the rows (1, 0), (−1, 0), (0, 1), (0, −1) have"
    flat = torch.ones(8, 4) * torch.arange(1.0, 9.0).unsqueeze(1)  # a collapsed batch, and singular values of exactly 0
    flat[:, 2:] = 0
    hints = {
        "the spread": f"The value of the spread is off. {by_hand} a spread of exactly 1.",
        "the effective rank": f"The value of the effective rank is off. {by_hand} rank 2, and equal rows 1.",
    }
    for at, (name, hint) in enumerate(hints.items()):
        reject_mistakes(answer, spread_and_rank, METER_MISTAKES, lambda f, at=at: f(z)[at])
        expect.close(got[at], wanted[at], hint, what=name)
        for rows in (uneven_rows(40, 12, 5), uneven_rows(6, 16, 6)):
            hint = f"Right for 9 rows of 5, but {name} is off for {len(rows)} rows of {rows.shape[1]}: is a number written in?"
            expect.close(answer(rows)[at], spread_and_rank(rows)[at], hint, rtol=1e-3, what=name)
        hint = "Right for healthy rows, but not for a collapsed batch: 0·ln 0 is NaN. torch.special.entr makes it 0, or clamp the shares."
        expect.close(answer(flat)[at], float(at), hint, atol=1e-2, what=name)


EXERCISES = [
    Exercise("4.1", "BYOL's loss, with the gradient stopped", 10, 1, my_byol_loss, check_byol_loss, BYOL_MISTAKES),
    Exercise("4.2", "A step of the moving average", 15, 2, ema_update, check_ema, EMA_MISTAKES, may_change_inputs=True),
    Exercise("4.3", "Two meters of collapse", 15, 2, spread_and_rank, check_meters, METER_MISTAKES),
]
