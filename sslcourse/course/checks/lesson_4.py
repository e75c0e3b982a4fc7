"""The exercises of lesson 4: BYOL's loss, the moving average of the target, and two meters of collapse."""

import copy
import math
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.course.exercises import Exercise, Wrong, expect_close, expect_shape, expect_type, try_mistakes

# --- 4.1 ------------------------------------------------------------------------------------------------------------------------------


def my_byol_loss(p: Tensor, z: Tensor) -> Tensor:
    """2 − 2·cosine of prediction and target, averaged over the rows; z gets no gradient. p, z (N, D)."""
    return 2 - 2 * F.cosine_similarity(p, z.detach(), dim=1).mean()


def _unit(p: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return F.normalize(p, dim=1), F.normalize(z, dim=1)


def _of_units(measure):
    """A wrong loss: `measure` of the normalised rows."""
    return lambda p, z: measure(*_unit(p, z))


def _cosines(p: Tensor, z: Tensor) -> Tensor:
    return F.cosine_similarity(p, z, dim=1)


_PLAIN = "The rows are not normalised. The loss compares directions: divide each row of p and of z by its length, F.normalize(v, dim=1)."
_ONE_UNIT = "Only one of the two is normalised. Both p and z get rows of length 1."
_BYOL_MISTAKES = [
    (_PLAIN, lambda p, z: 2 - 2 * (p * z).sum(1).mean()),
    (_PLAIN, lambda p, z: (p - z).square().sum(1).mean()),
    (_PLAIN, F.mse_loss),
    (_PLAIN, lambda p, z: -(p * z).sum(1).mean()),
    (_ONE_UNIT, lambda p, z: 2 - 2 * (F.normalize(p, dim=1) * z).sum(1).mean()),
    (_ONE_UNIT, lambda p, z: 2 - 2 * (p * F.normalize(z, dim=1)).sum(1).mean()),
    (_ONE_UNIT, lambda p, z: (F.normalize(p, dim=1) - z).square().sum(1).mean()),
    (_ONE_UNIT, lambda p, z: (p - F.normalize(z, dim=1)).square().sum(1).mean()),
    (
        "Normalised over the batch. Each row gets length 1 over its features: dim=1.",
        lambda p, z: 2 - 2 * (F.normalize(p, dim=0) * F.normalize(z, dim=0)).sum(1).mean(),
    ),
    (
        "The cosines are taken over the batch, one for each feature. Take them over the features, one for each row: dim=1.",
        lambda p, z: 2 - 2 * F.cosine_similarity(p, z, dim=0).mean(),
    ),
    ("This is the sum over the rows. Take the mean.", lambda p, z: (2 - 2 * _cosines(p, z)).sum()),
    (
        "The squared differences are averaged over the features too, so the value is D times too small: sum over dim=1, then the mean.",
        _of_units(F.mse_loss),
    ),
    ("This is 1 − cosine, half of the loss. The squared distance of directions is 2 − 2·cosine.", lambda p, z: 1 - _cosines(p, z).mean()),
    ("This is minus the cosine: the same force, halved, but the loss here is 2 − 2·cosine.", lambda p, z: -_cosines(p, z).mean()),
    ("This is the cosine itself, which grows when p and z agree. A loss has to fall: 2 − 2·cosine.", lambda p, z: _cosines(p, z).mean()),
    ("The sign is turned round: 2 + 2·cosine is 4 when both agree. The loss is 2 − 2·cosine.", lambda p, z: 2 + 2 * _cosines(p, z).mean()),
    ("The 2 in front is missing: −2·cosine is negative when p and z agree. The loss is 2 − 2·cosine, at least 0.",
     lambda p, z: -2 * _cosines(p, z).mean()),
    (
        "This is the distance. The loss is the squared distance: no square root.",
        _of_units(lambda p, z: (p - z).norm(dim=1).mean()),
    ),
    (
        "Every row of p is compared with every row of z. Row i of p predicts row i of z only.",
        _of_units(lambda p, z: (2 - 2 * p @ z.T).mean()),
    ),
    (
        "The loss of the other direction is added to it. This function gets one pair (p, z); whoever calls it swaps the views.",
        lambda p, z: 4 - 4 * _cosines(p, z).mean(),
    ),
]  # fmt: skip


def _pair(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Predictions and targets that agree a little, with rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator)
    p = 0.6 * z + torch.randn(n, d, generator=generator)
    lengths = 0.5 + torch.rand(2, n, 1, generator=generator)
    return p * lengths[0], z * lengths[1]


def _check_byol_loss(answer) -> None:
    with torch.enable_grad():
        p, z = _pair(6, 5, 1)
        got = answer(p, z)
        if isinstance(got, Real):
            raise Wrong("The loss comes back as a plain number, and backward() needs the tensor. Leave .item() out.")
        if isinstance(got, Tensor) and got.shape == (6,):
            raise Wrong("This is one value for each row. Take the mean over the rows, so that the loss is one number.")
        expect_shape(got, (), "the loss")
        for hint, wrong in _BYOL_MISTAKES:
            try_mistakes(answer, (p, z), {hint: wrong})
        for n, d in ((6, 5), (9, 3), (1, 8)):
            p, z = _pair(n, d, n)
            hint = f"With {n} rows of {d} the value is off. One test: the loss is 0 when p = 3·z, and 4 when p = −z."
            expect_close(answer(p, z), my_byol_loss(p, z), hint, rtol=5e-4, atol=1e-5, what="the loss")
        _check_stop_gradient(answer)


def _check_stop_gradient(answer) -> None:
    p, z = (v.requires_grad_() for v in _pair(6, 5, 2))
    value = answer(p, z)
    if not value.requires_grad:
        raise Wrong("The value is right, but no gradient comes back. Detach z only: no torch.no_grad(), .item() or torch.tensor(...).")
    try:
        of_p, of_z = torch.autograd.grad(value, (p, z), allow_unused=True)
    except RuntimeError as error:
        raise Wrong(
            "The value is right, but backward() fails: a tensor that it still needs was changed in place. Make new ones: p = p / length."
        ) from error
    to_p, to_z = (g is not None and bool(g.any()) for g in (of_p, of_z))
    if to_z and not to_p:
        raise Wrong("The gradient is stopped at the wrong side: p is detached, so nothing would be learned. Detach z.")
    if to_z:
        raise Wrong("The value is right, but a gradient reaches z, so the target would be trained too. Stop it there: z.detach().")
    if not to_p:
        raise Wrong("The value is right, but no gradient reaches p, the side that learns. Detach z only.")
    (wanted,) = torch.autograd.grad(my_byol_loss(p, z), p)
    hint = "The value is right, but its gradient is not: a part of the graph is cut off. No .detach() on p's lengths."
    expect_close(of_p, wanted, hint, rtol=1e-3, atol=1e-5, what="the gradient")


# --- 4.2 ------------------------------------------------------------------------------------------------------------------------------


def ema_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """target = tau · target + (1 − tau) · online for every parameter, in place; buffers, gradients and online stay as they are."""
    with torch.no_grad():
        for t, o in zip(target.parameters(), online.parameters(), strict=True):
            t.mul_(tau).add_(o, alpha=1 - tau)


_EMA_MISTAKES = {  # hint -> what the parameter would be, from target t, online o and tau
    "Nothing moved. `t = tau * t + ...` only gives a new tensor the old name; change the tensor itself: t.mul_(...), t.copy_(...).": (
        lambda t, o, tau: t
    ),
    "The weights are swapped: tau is the part of the target that is kept, and 1 − tau the part that comes from the online network.": (
        lambda t, o, tau: (1 - tau) * t + tau * o
    ),
    "The target became the online network, as if tau were 0. Keep tau of the old target and add 1 − tau of the online network.": (
        lambda t, o, tau: o
    ),
    "(1 − tau)·online is added, but the old target was not multiplied by tau, so the weights grow.": lambda t, o, tau: t + (1 - tau) * o,
    "The old target is multiplied by tau, but the online network is added whole. Multiply it by 1 − tau.": lambda t, o, tau: tau * t + o,
    "The target only shrinks: tau·target is there, and (1 − tau)·online is missing.": lambda t, o, tau: tau * t,
    "The target moves away from the online network. A step towards it is target + (1 − tau)·(online − target).": (
        lambda t, o, tau: t - (1 - tau) * (o - t)
    ),
    "The second product used the target that the first had changed already: online gets (1 − tau)·tau. Compute both from the old values.": (
        lambda t, o, tau: tau * (t + (1 - tau) * o)
    ),
}


def _networks(seed: int) -> tuple[nn.Module, nn.Module]:
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


def _values(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in network.named_buffers()}


def _same(before: dict, after: dict) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def _check_ema(answer) -> None:
    for seed, tau in ((1, 0.9), (2, 0.75), (3, 0.0), (4, 1.0)):
        target, online = _networks(seed)
        tensors, old, new = list(target.parameters()), _values(target), _values(online)
        statistics, online_statistics = _statistics(target), _statistics(online)
        returned = answer(target, online, tau)
        _check_online(online, new, online_statistics)
        _check_form(target, online, tensors, old, returned)
        _check_values(target, old, new, tau)
        if not _same(statistics, _statistics(target)):
            raise Wrong(
                "The parameters are right, but the running statistics of batch normalisation changed too. They are buffers: "
                "go through parameters(), not state_dict()."
            )
        with torch.no_grad():
            for o in online.parameters():
                o.add_(1.0)
        _check_form_after(target, {name: tau * old[name] + (1 - tau) * new[name] for name in old})


def _check_online(online: nn.Module, values: dict, statistics: dict) -> None:
    if not _same(values, _values(online)):
        raise Wrong("The online network changed. Only the target moves; the online network belongs to the optimizer.")
    if not _same(statistics, _statistics(online)):
        raise Wrong("The running statistics of the online network changed. Leave everything of the online network alone.")
    if not all(p.requires_grad for p in online.parameters()):
        raise Wrong("The online network can no longer be trained: leave its requires_grad alone.")


def _check_form(target: nn.Module, online: nn.Module, tensors: list, old: dict, returned) -> None:
    now = list(target.parameters())
    shared = {id(p) for p in online.parameters()}
    if any(id(p) in shared for p in now):
        raise Wrong("The target holds the online network's own tensors now, so both are one network. Copy values, not references.")
    if len(now) != len(tensors) or any(a is not b for a, b in zip(now, tensors, strict=True)):
        raise Wrong("The target got new parameter tensors. Change the old ones in place, with t.mul_(...).add_(...) or t.copy_(...).")
    if any(p.grad_fn is not None for p in now):
        raise Wrong("The update was recorded for backward(), and the graph grows with every step. Do it inside `with torch.no_grad():`.")
    if any(p.requires_grad for p in now):
        raise Wrong("The target's parameters require gradients now. It is never trained: leave requires_grad as it was.")
    if isinstance(returned, nn.Module) and returned is not target and _same(old, _values(target)):
        raise Wrong("The function returns a new network, and the target that it was given did not move. Change the target in place.")


def _check_values(target: nn.Module, old: dict, new: dict, tau: float) -> None:
    got = _values(target)
    near = {name: torch.allclose(got[name], tau * old[name] + (1 - tau) * new[name], rtol=1e-4, atol=1e-5) for name in old}
    if all(near.values()):
        return
    for hint, wrong in _EMA_MISTAKES.items():
        if all(torch.allclose(got[name], wrong(old[name], new[name], tau), rtol=1e-4, atol=1e-5) for name in old):
            raise Wrong(hint)
    left = [name for name in old if torch.equal(got[name], old[name])]
    if left and all(near[name] for name in old if name not in left):
        raise Wrong(f"Some parameters did not move: {', '.join(left)}. Go through all of target.parameters(), whatever their kind or name.")
    wrong_ones = ", ".join(name for name, good in near.items() if not good)
    raise Wrong(
        f"With tau = {tau:g} these parameters are off: {wrong_ones}. By hand: target 10, online 0, tau 0.9 gives 9; "
        "tau = 1 changes nothing, tau = 0 copies."
    )


def _check_form_after(target: nn.Module, wanted: dict) -> None:
    got = _values(target)
    if not all(torch.allclose(got[name], wanted[name], rtol=1e-4, atol=1e-5) for name in wanted):
        raise Wrong("The target shares memory with the online network: when that is trained, the target moves along. Copy the numbers.")


# --- 4.3 ------------------------------------------------------------------------------------------------------------------------------


def spread_and_rank(z: Tensor) -> tuple[Tensor, Tensor]:
    """How evenly the directions of the rows spread (0 collapsed, 1 even), and how many dimensions they use. z (N, D)."""
    z = F.normalize(z, dim=1)
    spread = z.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5
    share = torch.linalg.svdvals(z)
    share = share / share.sum()
    return spread, torch.special.entr(share).sum().exp()


def _spread(z: Tensor, **options) -> Tensor:
    return z.std(**({"dim": 0, "correction": 0} | options)).mean()


def _directions(measure):
    """A wrong meter: `measure` of the normalised rows."""
    return lambda z: measure(F.normalize(z, dim=1))


def _shares(z: Tensor, power: float = 1) -> Tensor:
    values = torch.linalg.svdvals(z) ** power
    return values / values.sum()


def _perplexity(share: Tensor) -> Tensor:
    return torch.special.entr(share).sum().exp()


_LONG = "The rows are not normalised. Both meters are about directions: F.normalize(z, dim=1) first."
_COLUMNS = "Normalised over the batch. Each row gets length 1 over its features: dim=1."
_BAD_SPREADS = {
    _LONG: lambda z: _spread(z) * z.shape[1] ** 0.5,
    _COLUMNS: lambda z: _spread(F.normalize(z, dim=0)) * z.shape[1] ** 0.5,
    "The spread divides by N − 1. Use std(dim=0, correction=0), so that even directions give exactly 1.": _directions(
        lambda z: _spread(z, correction=1) * z.shape[1] ** 0.5
    ),
    "The spread is not compared with its healthy value 1/√D. Multiply the mean deviation by √D.": _directions(_spread),
    "The spread is multiplied by D. The healthy value is 1/√D, so multiply by √D.": _directions(lambda z: _spread(z) * z.shape[1]),
    "The spread is divided by √D. The healthy value is 1/√D, and dividing by that is multiplying by √D.": _directions(
        lambda z: _spread(z) / z.shape[1] ** 0.5
    ),
    "The spread is taken over the features of each row, dim=1. What tells images apart is that over the images, dim=0.": _directions(
        lambda z: _spread(z, dim=1) * z.shape[1] ** 0.5
    ),
    "The deviation is taken over all numbers at once, which is not 0 for equal rows. Take it over the images, dim=0, then the mean.": (
        _directions(lambda z: z.std(correction=0) * z.shape[1] ** 0.5)
    ),
    "This spread is a variance. Take the standard deviation, std in place of var.": _directions(
        lambda z: z.var(dim=0, correction=0).mean() * z.shape[1]
    ),
    "The deviations are added up over the features. Take their mean.": _directions(
        lambda z: z.std(dim=0, correction=0).sum() * z.shape[1] ** 0.5
    ),
}
_BAD_RANKS = {
    _LONG: lambda z: _perplexity(_shares(z)),
    _COLUMNS: lambda z: _perplexity(_shares(F.normalize(z, dim=0))),
    "The mean row is taken off before the singular values. Here it stays: of equal rows only rounding noise would be left.": _directions(
        lambda z: _perplexity(_shares(z - z.mean(0)))
    ),
    "The singular values are squared before they are divided by their sum. Take them as they are.": _directions(
        lambda z: _perplexity(_shares(z, 2))
    ),
    "This is the entropy. The effective rank is its exponential, so that D equal values give D.": _directions(
        lambda z: torch.special.entr(_shares(z)).sum()
    ),
    "The sign of the entropy is wrong, which gives one over the effective rank. The entropy is −Σ s·ln s.": _directions(
        lambda z: (-torch.special.entr(_shares(z)).sum()).exp()
    ),
    "The logarithm has base 2, and the exponential base e. Use one base: torch.log and torch.exp.": _directions(
        lambda z: (torch.special.entr(_shares(z)).sum() / math.log(2)).exp()
    ),
    "The singular values are not divided by their sum, so they are no shares, and their entropy means nothing.": _directions(
        lambda z: torch.special.entr(torch.linalg.svdvals(z)).sum().exp()
    ),
    "The shares come from a softmax. Divide the singular values by their sum.": _directions(
        lambda z: _perplexity(torch.linalg.svdvals(z).softmax(0))
    ),
    "This is the ordinary rank, which counts every singular value above rounding as one. The effective rank weighs them.": _directions(
        lambda z: torch.linalg.matrix_rank(z).float()
    ),
    "This is 1/Σ s², the participation ratio. The effective rank is the exponential of the entropy, −Σ s·ln s.": _directions(
        lambda z: 1 / _shares(z).square().sum()
    ),
}


def _rows(n: int, d: int, seed: int) -> Tensor:
    """Directions about a common one, using some dimensions more than others, with rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator) * torch.linspace(0.2, 1.5, d) + torch.linspace(1.0, 0.0, d)
    return z * (0.5 + 2 * torch.rand(n, 1, generator=generator))


def _two_numbers(got) -> list[Tensor]:
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        expect_type(got, (tuple, list))
        raise Wrong("Return two numbers: return spread, rank.")
    return [torch.as_tensor(v) if isinstance(v, (Tensor, Real)) else v for v in got]


def _check_meters(answer) -> None:
    z = _rows(9, 5, 4)
    got, wanted = _two_numbers(answer(z)), spread_and_rank(z)
    if all(isinstance(v, Tensor) and v.shape == () for v in got) and all(
        torch.isclose(v.double(), w.double(), rtol=1e-4) for v, w in zip(got[::-1], wanted, strict=True)
    ):
        raise Wrong("Both values are right, in the other order. Return the spread first.")
    for at, name, mistakes in ((0, "the spread", _BAD_SPREADS), (1, "the effective rank", _BAD_RANKS)):
        try_mistakes(lambda z, at=at: answer(z)[at], (z,), mistakes)
        hint = {
            0: "The value of the spread is off. By hand: the rows (1, 0), (−1, 0), (0, 1), (0, −1) have a spread of exactly 1.",
            1: "The value of the effective rank is off. By hand: the rows (1, 0), (−1, 0), (0, 1), (0, −1) have rank 2, and equal rows 1.",
        }[at]
        expect_close(got[at], wanted[at], hint, what=name)
    for rows in (_rows(40, 12, 5), _rows(6, 16, 6)):
        for value, w, name in zip(_two_numbers(answer(rows)), spread_and_rank(rows), ("the spread", "the effective rank"), strict=True):
            shape = f"{len(rows)} rows of {rows.shape[1]}"
            expect_close(value, w, f"Right for 9 rows of 5, but {name} is off for {shape}: is a number written in?", rtol=1e-3, what=name)
    flat = torch.ones(8, 4) * torch.arange(1.0, 9.0).unsqueeze(1)  # a collapsed batch, and singular values of exactly 0
    flat[:, 2:] = 0
    hint = "Right for healthy rows, but not for a collapsed batch: 0·ln 0 is NaN. torch.special.entr makes it 0, or clamp the shares."
    for value, w, name in zip(_two_numbers(answer(flat)), (0.0, 1.0), ("the spread", "the effective rank"), strict=True):
        expect_close(value, torch.as_tensor(w, dtype=torch.as_tensor(value).dtype), hint, atol=1e-2, what=name)


EXERCISES = {
    "4.1": Exercise("4.1", "BYOL's loss, with the gradient stopped", 10, 1, my_byol_loss, _check_byol_loss),
    "4.2": Exercise("4.2", "A step of the moving average", 15, 2, ema_update, _check_ema, may_change_inputs=True),
    "4.3": Exercise("4.3", "Two meters of collapse", 15, 2, spread_and_rank, _check_meters),
}
