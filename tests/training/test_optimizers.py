"""Schedules, parameter groups and LARS, against numbers worked out by hand."""

import copy
import math

import pytest
import torch
from tiny import new_model
from torch import nn

from sslcourse.training import optimizers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_cycle_rises_along_a_line_and_falls_along_a_cosine():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=99.0)
    schedule = optimizers.one_cycle(optimizer, lr=2.0, steps=20, warmup=0.25)
    seen = []
    for _ in range(20):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [2.0 * k / 5 for k in range(1, 6)] + [1 + math.cos(math.pi * k / 15) for k in range(15)]
    assert seen == pytest.approx(expected, abs=1e-12)
    assert max(seen) == 2.0
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_very_few_steps(steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = optimizers.one_cycle(optimizer, lr=1.0, steps=steps)
    for _ in range(steps):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1
        optimizer.step()
        schedule.step()


def rates(warmup, steps=8, lr=2.0, scale=1.0):
    optimizer = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters(), "lr_scale": scale}], lr=99.0)
    schedule = optimizers.one_cycle(optimizer, lr=lr, steps=steps, warmup=warmup)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_one_cycle_without_warmup_is_a_cosine():
    assert rates(warmup=0) == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(8)])


def test_one_cycle_scales_the_rate_of_a_group():
    assert rates(warmup=0.25, scale=0.1) == pytest.approx([0.1 * rate for rate in rates(warmup=0.25)])


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 5, math.nan])
def test_an_impossible_warmup_is_refused(warmup):
    with pytest.raises(ValueError, match=f"warmup is a part of the steps.*not {warmup}"):
        rates(warmup)


# --- groups ---------------------------------------------------------------------------------------------------------------------------


def test_weight_decay_groups_hold_every_trained_parameter_once():
    model = new_model()
    frozen = model.encoder.blocks[0][0].weight.requires_grad_(False)
    decayed, others = optimizers.decayed_and_not(model, 0.05)
    ids = [id(p) for group in (decayed, others) for p in group["params"]]
    assert len(set(ids)) == len(ids)
    assert set(ids) == {id(p) for p in model.parameters()} - {id(frozen)}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") and p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() == 1 for p in others["params"]) and others["params"]


def test_rates_of_parts():
    model = new_model()
    groups = optimizers.decayed_and_not(model, 0.05, {"encoder": 0.5, "encoder.blocks.0": 0.1})
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [
        (1.0, 0.05),
        (1.0, 0.0),
        (0.5, 0.05),
        (0.5, 0.0),
        (0.1, 0.05),
        (0.1, 0.0),
    ]
    scale_of = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert len(scale_of) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert scale_of[id(p)] == (1.0 if name.startswith("head") else 0.1 if name.startswith("encoder.blocks.0.") else 0.5), name


def test_a_part_is_a_whole_name():
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "header": nn.Linear(2, 2)})
    scaled = [p for g in optimizers.decayed_and_not(model, 0.0, {"head": 0.5}) if g["lr_scale"] == 0.5 for p in g["params"]]
    assert {id(p) for p in scaled} == {id(p) for p in model["head"].parameters()}


def test_a_rate_for_nothing_is_refused():
    with pytest.raises(ValueError, match="lr_scales names body, and no trained parameter of Classifier is called so"):
        optimizers.decayed_and_not(new_model(), 0.05, {"encoder": 0.5, "body": 0.5})
    model = new_model()
    model.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="lr_scales names encoder"):
        optimizers.decayed_and_not(model, 0.05, {"encoder": 0.5})
    with pytest.raises(ValueError, match="must not be negative"):
        optimizers.decayed_and_not(model, 0.05, {"head": -0.5})
    with pytest.raises(ValueError, match="No parameter of Classifier is trained"):
        optimizers.decayed_and_not(model.requires_grad_(False), 0.05)


# --- optimizers -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lars", optimizers.LARS)])
def test_an_optimizer_by_name(name, kind):
    made = optimizers.make_optimizer(name, new_model(), 0.1, 0.01, lr_scales={"encoder": 0.5})
    assert type(made) is kind and len(made.param_groups) == 4
    assert {group["weight_decay"] for group in made.param_groups} == {0.01, 0.0}
    if name == "sgd":
        assert all(group["nesterov"] and group["momentum"] == 0.9 for group in made.param_groups)


def test_sgd_without_momentum():
    made = optimizers.make_optimizer("sgd", new_model(), 0.1, 0.0, momentum=0)
    assert not made.param_groups[0]["nesterov"]


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer must be one of adamw, sgd, lars, not 'adam'"):
        optimizers.make_optimizer("adam", new_model(), 0.1, 0.0)


def parameter(values, gradient):
    p = nn.Parameter(torch.tensor(values))
    p.grad = torch.tensor(gradient)
    return p


def test_lars_against_two_steps_by_hand():
    # |p| = 5, |g| = 2 and 13: the trust ratio makes both steps a hundredth of |p| long, before momentum
    p = parameter([[3.0, 4.0]], [[2.0, 0.0]])
    optimizer = optimizers.LARS([p], lr=0.5, momentum=0.9, trust=0.01)
    optimizer.step()
    torch.testing.assert_close(p.data, torch.tensor([[3 - 0.5 * 0.05, 4.0]]))
    p.data, p.grad = torch.tensor([[0.0, 5.0]]), torch.tensor([[5.0, 12.0]])
    optimizer.step()
    velocity = [0.9 * 0.05 + 0.05 * 5 / 13, 0.05 * 12 / 13]
    torch.testing.assert_close(p.data, torch.tensor([[-0.5 * velocity[0], 5 - 0.5 * velocity[1]]]))


def test_lars_decays_matrices_before_it_measures_them():
    p = parameter([[3.0, 4.0]], [[0.1, -0.2]])
    optimizers.LARS([p], lr=1.0, weight_decay=0.2, trust=0.01).step()
    whole = torch.tensor([[0.1 + 0.6, -0.2 + 0.8]])  # the gradient and 0.2 · p
    torch.testing.assert_close(p.data, torch.tensor([[3.0, 4.0]]) - 0.05 * whole / whole.norm())


def test_lars_gives_vectors_plain_sgd_without_decay():
    ours, theirs = (parameter([3.0, 4.0], [2.0, -1.0]) for _ in range(2))
    optimizer, reference = optimizers.LARS([ours], lr=0.1, momentum=0.9, weight_decay=0.5), torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.data, theirs.data)


def test_lars_on_zeros_is_finite():
    still, blank = parameter([[3.0, 4.0]], [[0.0, 0.0]]), parameter([[0.0, 0.0]], [[1.0, 2.0]])
    idle = nn.Parameter(torch.ones(2, 2))  # no gradient at all
    optimizers.LARS([still, blank, idle], lr=0.1).step()
    assert still.tolist() == [[3.0, 4.0]] and idle.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    torch.testing.assert_close(blank.data, torch.tensor([[-0.1, -0.2]]))  # a ratio of 0 would keep it there for ever


def descend(optimizer, p, target, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (p - target).square().sum()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_lars_finds_the_minimum_of_a_parabola():
    target = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    p = nn.Parameter(torch.full((2, 2), 4.0))
    optimizer = optimizers.LARS([p], lr=1.0, momentum=0.5, trust=0.02)
    first = descend(optimizer, p, target, 1)
    descend(optimizer, p, target, 100)
    optimizer.param_groups[0]["lr"] = 0.01  # its steps have a fixed length, so the last ones have to be short
    assert descend(optimizer, p, target, 200) < 1e-3 * first


def test_lars_goes_on_exactly_from_its_state():
    target = torch.tensor([[1.0, -2.0]])
    p = nn.Parameter(torch.full((1, 2), 4.0))
    optimizer = optimizers.LARS([p], lr=0.1, momentum=0.9, weight_decay=0.01, trust=0.1)
    descend(optimizer, p, target, 5)
    other = nn.Parameter(p.detach().clone())
    again = optimizers.LARS([other], lr=7.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(optimizer, p, target, 5)
    descend(again, other, target, 5)
    assert torch.equal(p, other)


def test_lars_takes_a_closure():
    p = nn.Parameter(torch.ones(1, 2))
    optimizer = optimizers.LARS([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0 and p.sum() < 2


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "trust"])
def test_lars_refuses_negative_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must not be negative, and is -1"):
        optimizers.LARS([nn.Parameter(torch.ones(1))], **{"lr": 0.1, name: -1})
