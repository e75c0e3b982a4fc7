"""find_nonfinite leaves no trace: the model, the batch and the random states are what they were, bit for bit."""

import random

import numpy as np
import pytest
import torch
from test_search import made
from tiny import coloured, simclr
from torch import nn
from torch.nn.modules import module as hooks

from sslcourse.diagnostics import find_nonfinite

pytestmark = pytest.mark.usefixtures("one_thread")


def bits(value):
    """Something that is equal only for equal bits, NaN included."""
    return value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def everything(model):
    state = {name: bits(value) for name, value in model.state_dict().items()}
    grads = {name: (id(p.grad), None if p.grad is None else bits(p.grad)) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    numbers = (bits(torch.get_rng_state()), repr(np.random.get_state()), random.getstate())
    versions = [t._version for t in [*model.parameters(), *model.buffers()]]
    attributes = [(sorted(vars(module)), id(vars(module).get("metrics"))) for module in model.modules()]
    return state, grads, modes, numbers, versions, attributes, len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)


class Restless(nn.Module):
    """Changes its parameters, buffers, gradients, attributes, mode and the batch in forward, and draws random numbers of every kind."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))
        self.metrics = {}

    def forward(self, x):
        x.mul_(2)
        with torch.no_grad():
            self.layer.weight.mul_(0.9)
        self.seen = self.seen + random.random() + np.random.rand()
        self.metrics = {"a": 1}
        self.zero_grad()
        self.new_attribute = torch.ones(1)
        self.norm.eval()
        return self.drop(self.norm(self.layer(x))).square().mean()


@pytest.mark.parametrize("kind", [Restless, simclr])
@pytest.mark.parametrize("fault", ["none", "gradient", "forward", "exception"])
def test_everything_is_left_as_it_was(kind, fault):
    model = made(kind)
    x = coloured(8, 0)[0] if kind is simclr else torch.ones(4, 3)
    model.eval()
    next(model.children()).train()
    outstanding, used = model(x.clone()), x.clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def bad(batch):
        loss = model(batch)
        if fault == "exception":
            raise RuntimeError("out of luck")
        return loss + {"none": loss, "gradient": (loss - loss).sqrt(), "forward": (loss - loss).log()}[fault]

    before = everything(model)
    if fault == "exception":
        with pytest.raises(RuntimeError, match="out of luck"):
            find_nonfinite(model, used, forward=bad)
    else:
        assert (find_nonfinite(model, used, forward=bad) is None) == (fault == "none")
    assert everything(model) == before
    assert torch.equal(used, x)
    outstanding.backward()  # a graph from before is still good
