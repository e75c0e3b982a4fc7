"""Schedules, parameter groups and LARS, against numbers worked out by hand."""

import math

import pytest
import torch
from tiny import new_model
from torch import nn

from sslcourse.training import optimizers

pytestmark = pytest.mark.usefixtures("one_thread")


def rates(warmup, steps=8, lr=2.0, scale=1.0):
    optimizer = torch.optim.SGD([{"params": nn.Linear(1, 1).parameters(), "lr_scale": scale}], lr=99.0)
    schedule = optimizers.one_cycle(optimizer, lr=lr, steps=steps, warmup=warmup)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*seen, schedule.get_last_lr()[0]]


def test_one_cycle_rises_along_a_line_and_falls_along_a_cosine():
    line, cosine = [2.0 * k / 5 for k in range(1, 6)], [1 + math.cos(math.pi * k / 15) for k in range(16)]
    assert rates(0.25, steps=20) == pytest.approx(line + cosine, abs=1e-12)
    assert rates(0) == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(9)], abs=1e-12)
    assert all(0 < rate <= 2 for rate in rates(0.2, 1)[:-1] + rates(0.2, 3)[:-1])
    assert rates(0.25, scale=0.1) == pytest.approx([0.1 * rate for rate in rates(0.25)], abs=1e-12)


def test_groups_hold_every_trained_parameter_once_with_its_decay_and_the_rate_of_its_part():
    model = new_model()
    frozen = model.encoder.blocks[0][0].weight.requires_grad_(False)
    decayed, others = optimizers.decayed_and_not(model, 0.05)
    ids = [id(p) for group in (decayed, others) for p in group["params"]]
    assert len(set(ids)) == len(ids) and set(ids) == {id(p) for p in model.parameters()} - {id(frozen)}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert all(p.dim() > 1 for p in decayed["params"]) and all(p.dim() == 1 for p in others["params"]) and others["params"]
    model = new_model()
    groups = optimizers.decayed_and_not(model, 0.05, {"encoder": 0.5, "encoder.blocks.0": 0.1})
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [(s, d) for s in (1.0, 0.5, 0.1) for d in (0.05, 0.0)]
    scale_of = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    for name, p in model.named_parameters():
        assert scale_of[id(p)] == (1.0 if name.startswith("head") else 0.1 if name.startswith("encoder.blocks.0.") else 0.5), name


@pytest.mark.parametrize(("frozen", "scales", "named"), [
    ("", {"encoder": 0.5, "body": 0.5}, "names body"), ("encoder", {"encoder": 0.5}, "names encoder"),
    ("", {"head": -0.5}, "negative"), ("all", {}, "No parameter")
])  # fmt: skip
def test_a_rate_for_nothing_is_refused(frozen, scales, named):
    model = new_model()
    {"encoder": model.encoder, "all": model}.get(frozen, nn.Module()).requires_grad_(False)
    with pytest.raises(ValueError, match=named):
        optimizers.decayed_and_not(model, 0.05, scales)


def parameter(values, gradient):
    p = nn.Parameter(torch.tensor(values))
    p.grad = torch.tensor(gradient)
    return p


def test_lars_against_steps_by_hand_and_decays_matrices_before_it_measures_them():
    # |p| = 5, |g| = 2 and 13: both steps are a hundredth of |p| long, before momentum
    p = parameter([[3.0, 4.0]], [[2.0, 0.0]])
    optimizer = optimizers.LARS([p], lr=0.5, momentum=0.9, trust=0.01)
    optimizer.step()
    torch.testing.assert_close(p.data, torch.tensor([[3 - 0.5 * 0.05, 4.0]]))
    p.data, p.grad = torch.tensor([[0.0, 5.0]]), torch.tensor([[5.0, 12.0]])
    optimizer.step()
    velocity = [0.9 * 0.05 + 0.05 * 5 / 13, 0.05 * 12 / 13]
    torch.testing.assert_close(p.data, torch.tensor([[-0.5 * velocity[0], 5 - 0.5 * velocity[1]]]))
    p = parameter([[3.0, 4.0]], [[0.1, -0.2]])
    optimizers.LARS([p], lr=1.0, weight_decay=0.2, trust=0.01).step()
    whole = torch.tensor([[0.1 + 0.6, -0.2 + 0.8]])  # the gradient and 0.2 · p
    torch.testing.assert_close(p.data, torch.tensor([[3.0, 4.0]]) - 0.05 * whole / whole.norm())


def test_lars_gives_vectors_plain_sgd_without_decay_and_on_zeros_is_finite():
    ours, theirs = (parameter([3.0, 4.0], [2.0, -1.0]) for _ in range(2))
    optimizer, reference = optimizers.LARS([ours], lr=0.1, momentum=0.9, weight_decay=0.5), torch.optim.SGD([theirs], lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.data, theirs.data)
    still, blank = parameter([[3.0, 4.0]], [[0.0, 0.0]]), parameter([[0.0, 0.0]], [[1.0, 2.0]])
    idle = nn.Parameter(torch.ones(2, 2))  # no gradient at all
    optimizers.LARS([still, blank, idle], lr=0.1).step()
    assert still.tolist() == [[3.0, 4.0]] and idle.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    torch.testing.assert_close(blank.data, torch.tensor([[-0.1, -0.2]]))  # a ratio of 0 would keep it there for ever
