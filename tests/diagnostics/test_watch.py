"""find_nonfinite leaves no trace: the model, the optimizer, the batch and the random states are what they were, bit for bit."""

import random

import numpy as np
import pytest
import torch
from test_nonfinite import images, made, mobilenet
from tiny import coloured, simclr
from torch import nn

from sslcourse.diagnostics.nonfinite import find_nonfinite

pytestmark = pytest.mark.usefixtures("one_thread")


def bits(value):
    """Something that is equal only for equal bits, NaN included."""
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous().view(-1).clone().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return repr(value)


def everything(model, optimizer):
    state = {name: bits(value) for name, value in model.state_dict().items()}
    grads = {name: (id(p.grad), None if p.grad is None else bits(p.grad)) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    hooks = [[len(v) for k, v in sorted(vars(m).items()) if "hook" in k and hasattr(v, "__len__")] for m in model.modules()]
    numbers = (bits(torch.get_rng_state()), repr(np.random.get_state()), random.getstate())
    kept = [(key, id(v), bits(v)) for p in model.parameters() for key, v in optimizer.state.get(p, {}).items()]
    groups = [{key: bits(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    versions = [t._version for t in [*model.parameters(), *model.buffers()]]
    attributes = [(sorted(vars(module)), id(vars(module).get("metrics"))) for module in model.modules()]
    return state, grads, modes, hooks, numbers, kept, len(optimizer.state), groups, versions, attributes


class Restless(nn.Module):
    """Changes its parameters, buffers, attributes, mode and the batch in forward, and draws random numbers of every kind."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))
        self.metrics, self.fail = {}, False

    def forward(self, x):
        x.mul_(2)
        with torch.no_grad():
            self.layer.weight.mul_(0.9)
        self.seen = self.seen + random.random() + np.random.rand()
        self.metrics = {"a": 1}
        self.new_attribute = torch.ones(1)
        self.norm.eval()
        y = self.drop(self.norm(self.layer(x)))
        if self.fail:
            raise RuntimeError("out of luck")
        return y.square().mean()


@pytest.mark.parametrize("optimized", ["sgd", "adamw", "fresh"])
@pytest.mark.parametrize(
    ("kind", "fault"),
    [(kind, fault) for kind in (Restless, simclr) for fault in ("none", "gradient", "forward", "exception")] + [(mobilenet, "none")],
)
def test_everything_is_left_as_it_was(kind, fault, optimized):
    model = made(kind)
    x = coloured(8, 0)[0] if kind is simclr else torch.ones(4, 3) if kind is Restless else images()
    loss_fn = (lambda y: y.square().mean()) if kind is mobilenet else lambda y: y
    optimizer = (torch.optim.SGD if optimized == "sgd" else torch.optim.AdamW)(model.parameters(), lr=0.01)
    if optimized != "fresh":
        loss_fn(model(x.clone())).backward()
        optimizer.step()
    model.eval()
    list(model.children())[0].train()
    outstanding = loss_fn(model(x.clone()))
    used = x.clone()

    def bad(y):
        loss = loss_fn(y)
        if fault == "gradient":
            return loss + (loss - loss).sqrt()
        if fault == "forward":
            return loss + (loss - loss).log()
        if fault == "exception":
            raise RuntimeError("out of luck")
        return loss

    before = everything(model, optimizer)
    if fault == "exception":
        with pytest.raises(RuntimeError, match="out of luck"):
            find_nonfinite(model, used, loss_fn=bad, optimizer=optimizer)
        if kind is Restless:
            model.fail = True
            with pytest.raises(RuntimeError, match="out of luck"):
                find_nonfinite(model, used)
            model.fail = False
    else:
        found = find_nonfinite(model, used, loss_fn=bad, optimizer=optimizer)
        assert (found is None) == (fault == "none")
    after = everything(model, optimizer)
    for one, other in zip(before, after, strict=True):
        assert one == other
    assert torch.equal(used, x)
    outstanding.backward()  # a graph from before is still good


def test_the_step_that_comes_next_is_repeated_with_its_random_numbers():
    class Unlucky(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            y = self.layer(x).square().mean()
            return y / (torch.rand(()) > 0.5)

    model, x = Unlucky(), torch.ones(2, 3)
    torch.manual_seed(0)
    for _ in range(12):
        found = find_nonfinite(model, x)
        assert (found is None) == bool(model(x).isfinite())
