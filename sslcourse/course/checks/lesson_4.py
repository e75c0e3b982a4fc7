"""The exercises of lesson 4: two meters of collapse, and a whole step of BYOL."""

import copy
import math
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse import augment, models
from sslcourse.course.checks import expect
from sslcourse.course.checks.expect import near, reject_if, two_views
from sslcourse.course.exercises import Exercise, Wrong


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


def byol_step(method: nn.Module, optimizer: torch.optim.Optimizer, pictures: Tensor, step: int, steps: int) -> float:
    """One step of BYOL in training mode, whatever the mode before, on uint8 pictures (N, 3, H, W). Returns the loss, a float.

    The mean over 2N rows of 2 − 2·cosine of what one view predicts and the target says about the other; then the target moves.
    """
    method.train()
    first, second = method.two_views(pictures)
    online = nn.Sequential(method.encoder, method.projector)
    p = method.predictor(online(torch.cat([first, second])))
    with torch.no_grad():
        z = method.target(torch.cat([second, first]))
    loss = distance(p, z).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    tau = kept(step, steps, method.tau0)
    with torch.no_grad():
        for t, o in zip(method.target.parameters(), online.parameters(), strict=True):
            t.mul_(tau).add_(o, alpha=1 - tau)
    return loss.item()


STEP_ERRORS = expect.STEP_ERRORS | {"a leaf Variable": "The move of the target is recorded for backward(). Do it inside torch.no_grad()."}


def distance(p: Tensor, z: Tensor) -> Tensor:
    return 2 - 2 * F.cosine_similarity(p, z)


def kept(step: int, steps: int, tau0: float) -> float:
    return 1 - (1 - tau0) * (math.cos(math.pi * step / steps) + 1) / 2


def wrong_losses(p: Tensor, z: Tensor) -> dict[str, list[Tensor]]:
    """hint -> losses of the predictions p, and of the target's z with the views in the other order."""
    right = distance(p, z)
    return {
        "Each view predicts itself. Swap the target's views: torch.cat([second, first]).": [distance(p, z.roll(len(z) // 2, 0)).mean()],
        "One direction only: each view has to predict the other. Take the mean over both.": [half.mean() for half in right.chunk(2)],
        "The loss is added up, over the two directions or over the rows. Take the mean of all 2N rows.": [2 * right.mean(), right.sum()],
        "This is half of the loss, 1 − cosine or −cosine. The squared distance is 2 − 2·cosine.": [right.mean() / 2],
        "The rows are not normalised. The loss compares directions: F.cosine_similarity, or F.normalize(v, dim=1) for p and z.":
            [F.mse_loss(p, z), (p - z).square().sum(1).mean(), 2 - 2 * (p * z).sum(1).mean()],
    }  # fmt: skip


def wrong_moves(t: Tensor, o: Tensor, before: Tensor, tau: float, tau0: float) -> dict[str, Tensor]:
    """hint -> the target after the step, from the old target t and the online weights, o now and those of before the step."""
    return {
        "The target moves towards online weights of before the step. The optimiser's step comes first.": tau * t + (1 - tau) * before,
        "tau is constant. It rises from method.tau0 to 1: put step and steps into the formula.": tau0 * t + (1 - tau0) * o,
        "The weights are swapped: tau of the target is kept, 1 − tau comes from online.": (1 - tau) * t + tau * o,
        "The target does not move. `t = ...` only gives a new tensor the old name; change it in place: t.mul_(...), t.copy_(...).": t,
    }


def state(*networks: nn.Module) -> list[Tensor]:
    """The parameters and the buffers of some networks, each as one row."""
    found = [t for network in networks for t in network.parameters()], [t for network in networks for t in network.buffers()]
    return [torch.cat([t.detach().flatten().double() for t in tensors]) for tensors in found]


def through(network, halves, calls) -> Tensor:
    """What a network makes of two halves of a batch, in one pass or one after the other, as it was called."""
    return network(torch.cat([*halves])) if len(calls) == 1 else torch.cat([network(half) for half in halves])


def check_step(answer) -> None:
    for n, step, steps, tau0 in ((6, 30, 100, 0.9), (9, 3, 4, 0.5)):
        torch.manual_seed(n)
        pictures, view = torch.randint(256, (n, 3, 4, 4)).byte(), augment.simclr(4)
        method = models.BYOL(expect.small_encoder(), augment.TwoViews(view, view), hidden_dim=6, out_dim=5, tau0=tau0, last_norm=False)
        target, online = method.target.requires_grad_(True), (method.encoder, method.projector)
        nn.init.normal_(target[0][1].weight, std=0.5)  # weights of its own
        twin, tensors, (old, _), (before, _) = copy.deepcopy(method).train(), [*target.parameters()], state(target), state(*online)
        parts = {"views": view, "encoder": online[0], "predictor": method.predictor, "target": target[0], "aim": target[1]}
        watched = expect.Watched(method, [p for net in (*online, method.predictor) for p in net.parameters()], **parts)
        with expect.hints_for_errors(STEP_ERRORS):
            got = answer(method, watched.optimizer, pictures, step, steps)
        calls = watched.calls
        check_passes(calls, n)
        views = watched.views(pictures)
        watched.check_mode("encoder", "predictor", "target")
        p = through(twin.predictor, through(twin.project, views, calls["encoder"]).chunk(2), calls["predictor"])
        z = through(copy.deepcopy(twin.target), views[::-1], calls["target"]).detach()
        reached = any(t.grad is not None and t.grad.any() for t in tensors)
        reject_if(reached, "A gradient reaches the target, so it would be trained too. Compute z inside torch.no_grad(), or z.detach().")
        loss, learns = distance(p, z).mean(), [p for net in (twin.encoder, twin.projector, twin.predictor) for p in net.parameters()]
        watched.check_step(loss, learns, wrong_losses(p, z))
        expect.plain_loss(got, loss)
        new = method.target is not target or [*map(id, target.parameters())] != [*map(id, tensors)]
        reject_if(new, "The target is a new network or has new parameters. Change the old ones in place, with t.mul_(...) or t.copy_(...).")
        check_move(state(target)[0], old, state(*online)[0], before, step, steps, tau0)
        for x, _, _ in calls["target"]:
            twin.target(x)
        averaged = "The target's running statistics are averaged too. They are buffers: go through parameters(), not state_dict()."
        reject_if(not near(state(target)[1], state(twin.target)[1]), averaged)


def check_passes(calls, n: int) -> None:
    """Reject a step in which a network did not see both views, or the predictor saw the target."""
    for name in ("predictor", "target"):
        rows = sum(len(call[0]) for call in calls[name])
        reject_if(rows == 0, f"The {name} is never called. Predictions come from method.predictor, what they aim at from method.target.")
        reject_if(rows < 2 * n, f"One direction only: the {name} sees {rows} rows of 2N = {2 * n}. Each view predicts the other.")
    both = any(near(x, aim) for x, _, _ in calls["predictor"] for _, aim, _ in calls["aim"])
    reject_if(both, "The predictor is applied to the target's projections too. Only the online network has one.")


def check_move(now: Tensor, old: Tensor, online: Tensor, before: Tensor, step: int, steps: int, tau0: float) -> None:
    tau = kept(step, steps, tau0)
    if near(now, tau * old + (1 - tau) * online):
        return
    for hint, wrong in wrong_moves(old, online, before, tau, tau0).items():
        reject_if(near(now, wrong), hint)
    raise Wrong(f"At step {step} of {steps} with tau0 = {tau0:g}, tau is {tau:.3f}: a weight of 10, with 0 online, becomes {10 * tau:.2f}.")


EXERCISES = [
    Exercise("4.1", "Two meters of collapse", 15, 2, spread_and_rank, check_meters, METER_MISTAKES),
    Exercise("4.2", "A whole step of BYOL", 40, 3, byol_step, check_step),
]
