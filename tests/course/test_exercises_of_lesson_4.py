"""Lesson 4's exercises: the solution and other right answers pass, and each likely mistake gets its own hint."""

import copy
import math

import pytest
import torch
from answers import judge_of, standard_tests
from torch import nn
from torch.nn import functional as F

from sslcourse import diagnostics, losses, models
from sslcourse.course.checks.lesson_4 import EXERCISES, ema_update, my_byol_loss, spread_and_rank

judged = judge_of(EXERCISES)


# --- 4.1 ---


def loss_by_loops(p, z):
    total = 0
    for a, b in zip(p, z.detach(), strict=True):
        total = total + 2 - 2 * (a @ b) / (a.norm() * b.norm())
    return total / len(p)


def loss_by_distance(p, z):
    with torch.no_grad():
        aim = z / z.norm(dim=1, keepdim=True)
    return (p / p.norm(dim=1, keepdim=True) - aim).pow(2).sum(1).mean()


def loss_in_double(p, z):
    return (2 - 2 * (F.normalize(p.double()) * F.normalize(z.double()).detach()).sum(1)).mean().float()


def loss_on_units(measure):
    return lambda p, z: measure(F.normalize(p), F.normalize(z.detach()))


def loss_not_normalised(p, z):
    return 2 - 2 * (p * z.detach()).sum(1).mean()


def loss_mse_not_normalised(p, z):
    return F.mse_loss(p, z.detach())


def loss_p_not_normalised(p, z):
    return 2 - 2 * (p * F.normalize(z)).sum(1).mean()


def loss_z_not_normalised(p, z):
    return (F.normalize(p) - z).pow(2).sum(1).mean()


def loss_normalised_over_batch(p, z):
    return 2 - 2 * (F.normalize(p, dim=0) * F.normalize(z, dim=0)).sum(1).mean()


def loss_cosine_over_batch(p, z):
    return 2 - 2 * F.cosine_similarity(p, z, dim=0).mean()


def loss_summed(p, z):
    return (2 - 2 * F.cosine_similarity(p, z)).sum()


def loss_half(p, z):
    return 1 - F.cosine_similarity(p, z).mean()


def loss_both_directions(p, z):
    return 2 - 2 * F.cosine_similarity(p, z).mean() + 2 - 2 * F.cosine_similarity(z, p).mean()


def loss_without_stop(p, z):
    return 2 - 2 * F.cosine_similarity(p, z).mean()


def loss_stopped_at_p(p, z):
    return 2 - 2 * F.cosine_similarity(p.detach(), z).mean()


def loss_stopped_at_both(p, z):
    return my_byol_loss(p.detach(), z)


def loss_without_graph(p, z):
    with torch.no_grad():
        return my_byol_loss(p, z)


def loss_lengths_detached(p, z):
    return 2 - 2 * (p / p.detach().norm(dim=1, keepdim=True) * F.normalize(z.detach())).sum(1).mean()


def loss_spoils_its_graph(p, z):
    value = my_byol_loss(p, z)
    with torch.no_grad():
        p /= p.norm(dim=1, keepdim=True)
    return value


def loss_as_number(p, z):
    return my_byol_loss(p, z).item()


def loss_per_row(p, z):
    return 2 - 2 * F.cosine_similarity(p, z.detach())


def loss_off_by_a_little(p, z):
    return my_byol_loss(p, z) + 0.05


def loss_changes_its_input(p, z):
    p, z = p.detach(), z.detach()
    p /= p.norm(dim=1, keepdim=True)
    return (2 - 2 * (p * F.normalize(z)).sum(1)).mean()


# --- 4.2 ---


def ema_by_lerp(target, online, tau):
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - tau)


@torch.no_grad()
def ema_by_name_and_copy(target, online, tau):
    theirs = dict(online.named_parameters())
    for name, t in target.named_parameters():
        t.copy_(tau * t + (1 - tau) * theirs[name])
    return target


def ema_through_data(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.data = tau * t.data + (1 - tau) * o.data


def ema_with(change):
    """An update that writes change(target, online, tau) into every parameter."""

    @torch.no_grad()
    def answer(target, online, tau):
        for t, o in zip(target.parameters(), online.parameters(), strict=True):
            t.copy_(change(t, o, tau))

    return answer


def ema_rebinds_names(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t = tau * t + (1 - tau) * o


def ema_recorded(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.mul_(tau).add_((1 - tau) * o)


def ema_unfreezes(target, online, tau):
    ema_update(target, online, tau)
    target.requires_grad_(True)


def ema_new_parameters(target, online, tau):
    for t, o in zip(target, online, strict=True):
        for name in ("weight", "bias"):
            if hasattr(t, name):
                mixed = tau * getattr(t, name) + (1 - tau) * getattr(o, name)
                setattr(t, name, nn.Parameter(mixed.detach(), requires_grad=False))


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


def ema_moves_online(target, online, tau):
    ema_update(online, target, tau)


def ema_freezes_online(target, online, tau):
    ema_update(target, online.requires_grad_(False), tau)


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


@torch.no_grad()
def ema_mixed_in_place_twice(target, online, tau):
    for t, o in zip(target.parameters(), online.parameters(), strict=True):
        t.add_(o, alpha=1 - tau).mul_(tau)


def ema_with_fixed_tau(target, online, tau):
    ema_update(target, online, 0.9)


def ema_misspelled(target, online, tau):
    for t in target.parameters():
        t.mull_(tau)


# --- 4.3 ---


def meters_by_hand(z):
    z = z.double() / z.double().norm(dim=1, keepdim=True)
    spread = (z - z.mean(0)).pow(2).mean(0).sqrt().mean() / (1 / math.sqrt(z.shape[1]))
    values = torch.linalg.svd(z).S
    share = (values / values.sum()).clamp_min(1e-12)
    return spread.item(), math.exp(-float((share * share.log()).sum()))


def meters_from_covariance(z):
    z = F.normalize(z).double()
    share = torch.linalg.eigvalsh(z.T @ z).clamp_min(0).sqrt()
    share = share / share.sum()
    return z.var(0, correction=0).sqrt().mean() * z.shape[1] ** 0.5, torch.distributions.Categorical(share).entropy().exp()


def meters(spread=None, rank=None):
    """An answer with one of the two meters changed; both get normalised rows."""

    def answer(z):
        u, right = F.normalize(z), spread_and_rank(z)
        return spread(u) if spread else right[0], rank(torch.linalg.svdvals(u)) if rank else right[1]

    return answer


def meters_not_normalised(z):
    share = torch.linalg.svdvals(z) / torch.linalg.svdvals(z).sum()
    return z.std(0, correction=0).mean() * z.shape[1] ** 0.5, torch.special.entr(share).sum().exp()


def meters_rank_not_normalised(z):
    return spread_and_rank(z)[0], meters_not_normalised(z)[1]


def meters_over_batch(z):
    return meters_not_normalised(F.normalize(z, dim=0))


def meters_rank_centred(z):
    u = F.normalize(z)
    return spread_and_rank(z)[0], meters_not_normalised(u - u.mean(0))[1]


def entropy(share):
    return -(share * share.log()).sum()


def part(values, power=1):
    return values**power / (values**power).sum()


def deviation(z, **options):
    return z.std(**{"dim": 0, "correction": 0} | options).mean() * z.shape[1] ** 0.5


def meters_swapped(z):
    return spread_and_rank(z)[::-1]


def meters_one_value(z):
    return spread_and_rank(z)[0]


RIGHT = [
    ("4.1", my_byol_loss),
    ("4.1", losses.byol_loss),
    ("4.1", loss_by_loops),
    ("4.1", loss_by_distance),
    ("4.1", loss_in_double),
    ("4.2", ema_update),
    ("4.2", ema_by_lerp),
    ("4.2", ema_by_name_and_copy),
    ("4.2", ema_through_data),
    ("4.2", ema_with(lambda t, o, tau: o + tau * (t - o))),
    ("4.3", spread_and_rank),
    ("4.3", meters_by_hand),
    ("4.3", meters_from_covariance),
]

WRONG = [
    ("4.1", loss_not_normalised, "rows are not normalised"),
    ("4.1", loss_p_not_normalised, "Only one of the two"),
    ("4.1", loss_normalised_over_batch, "Normalised over the batch"),
    ("4.1", loss_cosine_over_batch, "cosines are taken over the batch"),
    ("4.1", loss_summed, "sum over the rows"),
    ("4.1", loss_on_units(F.mse_loss), "D times too small"),
    ("4.1", loss_half, "1 − cosine"),
    ("4.1", loss_on_units(lambda p, z: -(p * z).sum(1).mean()), "minus the cosine"),
    ("4.1", loss_on_units(lambda p, z: (p * z).sum(1).mean()), "cosine itself"),
    ("4.1", loss_on_units(lambda p, z: 2 + 2 * (p * z).sum(1).mean()), "sign is turned round"),
    ("4.1", loss_on_units(lambda p, z: -2 * (p * z).sum(1).mean()), "2 in front is missing"),
    ("4.1", loss_on_units(lambda p, z: (p - z).norm(dim=1).mean()), "no square root"),
    ("4.1", loss_on_units(lambda p, z: (2 - 2 * p @ z.T).mean()), "every row of z"),
    ("4.1", loss_both_directions, "other direction is added"),
    ("4.1", loss_without_stop, "a gradient reaches z"),
    ("4.1", loss_stopped_at_p, "wrong side"),
    ("4.1", loss_without_graph, "no gradient comes back"),
    ("4.1", loss_lengths_detached, "its gradient is not"),
    ("4.1", loss_spoils_its_graph, "backward() fails"),
    ("4.1", loss_as_number, "plain number"),
    ("4.1", loss_per_row, "one value for each row"),
    ("4.1", loss_off_by_a_little, "p = 3·z"),
    ("4.2", ema_rebinds_names, "Nothing moved"),
    ("4.2", ema_with(lambda t, o, tau: (1 - tau) * t + tau * o), "weights are swapped"),
    ("4.2", ema_with(lambda t, o, tau: o), "as if tau were 0"),
    ("4.2", ema_with(lambda t, o, tau: t + (1 - tau) * o), "weights grow"),
    ("4.2", ema_with(lambda t, o, tau: tau * t + o), "added whole"),
    ("4.2", ema_with(lambda t, o, tau: tau * t), "only shrinks"),
    ("4.2", ema_with(lambda t, o, tau: t - (1 - tau) * (o - t)), "moves away"),
    ("4.2", ema_mixed_in_place_twice, "second product"),
    ("4.2", ema_recorded, "recorded for backward"),
    ("4.2", ema_unfreezes, "require gradients now"),
    ("4.2", ema_new_parameters, "new parameter tensors"),
    ("4.2", ema_by_reference, "own tensors"),
    ("4.2", ema_shares_data, "shares memory"),
    ("4.2", ema_new_network, "returns a new network"),
    ("4.2", ema_moves_online, "online network changed"),
    ("4.2", ema_freezes_online, "no longer be trained"),
    ("4.2", ema_of_the_state, "running statistics of batch normalisation changed"),
    ("4.2", ema_of_matrices_only, "Some parameters did not move"),
    ("4.2", ema_with_fixed_tau, "By hand"),
    ("4.2", ema_misspelled, "AttributeError"),
    ("4.3", meters_not_normalised, "rows are not normalised"),
    ("4.3", meters_over_batch, "Normalised over the batch"),
    ("4.3", meters(lambda z: deviation(z, correction=1)), "divides by N − 1"),
    ("4.3", meters(lambda z: deviation(z) / z.shape[1] ** 0.5), "not compared with its healthy value"),
    ("4.3", meters(lambda z: deviation(z) * z.shape[1] ** 0.5), "multiplied by D"),
    ("4.3", meters(lambda z: deviation(z) / z.shape[1]), "divided by √D"),
    ("4.3", meters(lambda z: deviation(z, dim=1)), "features of each row"),
    ("4.3", meters(lambda z: z.std(correction=0) * z.shape[1] ** 0.5), "all numbers at once"),
    ("4.3", meters(lambda z: z.var(0, correction=0).mean() * z.shape[1]), "is a variance"),
    ("4.3", meters(lambda z: z.std(0, correction=0).sum() * z.shape[1] ** 0.5), "added up"),
    ("4.3", meters(lambda z: deviation(z) + 0.1), "value of the spread is off"),
    ("4.3", meters_rank_centred, "mean row is taken off"),
    ("4.3", meters(rank=lambda v: entropy(part(v, 2)).exp()), "squared before"),
    ("4.3", meters(rank=lambda v: entropy(part(v))), "This is the entropy"),
    ("4.3", meters(rank=lambda v: (-entropy(part(v))).exp()), "sign of the entropy"),
    ("4.3", meters(rank=lambda v: -(part(v) * part(v).log2()).sum()), "value of the effective rank is off"),
    ("4.3", meters(rank=lambda v: (-(part(v) * part(v).log2()).sum()).exp()), "base 2"),
    ("4.3", meters(rank=lambda v: entropy(v).exp()), "not divided by their sum"),
    ("4.3", meters(rank=lambda v: entropy(v.softmax(0)).exp()), "softmax"),
    ("4.3", meters(rank=lambda v: (v > 1e-6).sum().float()), "ordinary rank"),
    ("4.3", meters(rank=lambda v: 1 / part(v).square().sum()), "participation ratio"),
    ("4.3", meters(rank=lambda v: entropy(part(v)).exp()), "0·ln 0"),
    ("4.3", meters_swapped, "other order"),
    ("4.3", meters_one_value, "Expected"),
]

SAME_HINT = [
    ("4.1", loss_mse_not_normalised, "rows are not normalised"),
    ("4.1", loss_z_not_normalised, "Only one of the two"),
    ("4.1", loss_stopped_at_both, "no gradient comes back"),
    ("4.1", loss_changes_its_input, "no gradient comes back"),
    ("4.3", meters_rank_not_normalised, "rows are not normalised"),
]


test_right_answers_are_accepted, test_each_mistake_gets_its_own_hint, test_hints_differ_within_an_exercise = standard_tests(
    EXERCISES, RIGHT, WRONG, SAME_HINT
)


def test_untouched_functions_are_not_attempted():
    def my_byol_loss(p, z):
        """The loss of BYOL."""
        ...

    def ema_update(target, online, tau):
        pass

    def spread_and_rank(z):
        raise NotImplementedError

    for number, answer in (("4.1", my_byol_loss), ("4.2", ema_update), ("4.3", spread_and_rank)):
        assert judged(number, answer)[0] == "not attempted"


def test_gradients_are_checked_where_autograd_is_off():
    with torch.no_grad():
        assert judged("4.1", my_byol_loss)[0] == "done"
        assert "a gradient reaches z" in judged("4.1", loss_without_stop)[1]
        assert judged("4.2", ema_update)[0] == "done"


def test_a_loss_that_normalises_in_place_is_rejected():
    def answer(p, z):
        z.data /= z.data.norm(dim=1, keepdim=True)
        return my_byol_loss(p, z)

    status, message = judged("4.1", answer)
    assert status == "hint" and "changes its input z" in message


def test_references_equal_the_package():
    p, z = torch.randn(7, 5), torch.randn(7, 5)
    torch.testing.assert_close(my_byol_loss(p, z), losses.byol_loss(p, z))
    seen = diagnostics.collapse(z)
    spread, rank = spread_and_rank(z)
    assert spread.item() == pytest.approx(seen.std / seen.healthy_std, rel=1e-4) and rank.item() == pytest.approx(
        seen.effective_rank, rel=1e-4
    )
    torch.manual_seed(0)
    method = models.BYOL(models.resnet9(4), hidden_dim=8, out_dim=4, tau0=0.8)
    with torch.no_grad():
        for p in (*method.encoder.parameters(), *method.projector.parameters()):
            p.add_(torch.randn_like(p))
    online, mine = nn.Sequential(method.encoder, method.projector), copy.deepcopy(method.target)
    ema_update(mine, online, models.ema_tau(3, 10, 0.8))
    method.after_step(3, 10)
    for a, b in zip(mine.parameters(), method.target.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_references_give_known_values():
    p = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert my_byol_loss(p, 5 * p).item() == pytest.approx(0.0) and my_byol_loss(p, -p).item() == pytest.approx(4.0)
    assert my_byol_loss(p, p.flip(0)).item() == pytest.approx(2.0)
    spread, rank = spread_and_rank(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, -1.0]]))
    assert (spread.item(), rank.item()) == (pytest.approx(1.0), pytest.approx(2.0))
