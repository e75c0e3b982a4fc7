"""find_nonfinite on models of every kind: what it names."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from sslcourse.diagnostics import find_nonfinite

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")]

CLASSES = 5


def resnet():
    return torchvision.models.resnet18(num_classes=CLASSES)


def vit():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES
    )


def made(build, seed=0):
    torch.manual_seed(seed)
    return build()


def images(n=2, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def cross_entropy_of(model):
    return lambda x: F.cross_entropy(model(x), torch.arange(len(x)) % CLASSES)


def plant(tensor, value=math.nan):
    with torch.no_grad():
        tensor.view(-1)[1] = value


class Wrong(nn.Module):
    """Stands for a module and spoils what it made, in the place of its own forward."""

    def __init__(self, inner, spoil):
        super().__init__()
        self.inner, self.spoil = inner, spoil

    def forward(self, *inputs, **options):
        return self.spoil(self.inner(*inputs, **options))


@pytest.mark.parametrize("build", [resnet, vit])
def test_healthy_models_of_torchvision(build):
    model = made(build)
    for mode in (True, False):
        assert find_nonfinite(model.train(mode), images(), forward=cross_entropy_of(model)) is None
    assert find_nonfinite(model) is None
    assert find_nonfinite(model, images()) is None


@pytest.mark.parametrize(("build", "name", "module"), [
    (resnet, "layer2.0.downsample.0.weight", "Conv2d"), (resnet, "layer3.1.bn2.running_var", "BatchNorm2d"),
    (vit, "encoder.layers.encoder_layer_1.self_attention.in_proj_weight", "MultiheadAttention"),
])  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_parameter_and_the_statistics_of_batch_normalisation(build, name, module, value):
    model = made(build)
    tensor = model.state_dict()[name]
    plant(tensor, value)
    for batch in (None, images()):
        found = find_nonfinite(model, batch)
        assert (found.kind, found.name, found.module) == ("buffer" if "running" in name else "parameter", name, module)
        assert found.nan == math.isnan(value) and found.inf == math.isinf(value)
        assert found.shape == tuple(tensor.shape) and found.total == tensor.numel() and 0 < found.largest < 10
        assert ("reset_running_stats" if "running" in name else "inf·0") in found.cause and found.operation is None


@pytest.mark.parametrize(("build", "path"), [(resnet, "layer3.0.conv2"), (vit, "encoder.layers.encoder_layer_1.mlp.1")])
def test_an_operation_in_the_middle(build, path):
    model = made(build)
    wrong = Wrong(model.get_submodule(path), lambda y: (y - y).log() + y)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, wrong)
    found = find_nonfinite(model, images(), forward=cross_entropy_of(model))
    assert (found.kind, found.name, found.module, found.operation) == ("output", path, "Wrong", "aten.log")
    assert found.place == f"between its children, after {path}.inner"
    assert found.input_range == (0.0, 0.0) and found.inf == found.total and math.isnan(found.largest)
    wrong.spoil = lambda y: y + (y - y).sqrt()
    found = find_nonfinite(model, images(), forward=cross_entropy_of(model))
    assert (found.kind, found.name) == ("gradient", path) and found.operation.startswith("SqrtBackward0")
    assert find_nonfinite(model, images()) is None  # without a loss


def test_the_culprit_and_not_the_container_that_holds_it():
    model = made(resnet)
    nn.init.constant_(model.layer2[1].conv1.weight, 3e38)
    found = find_nonfinite(model, images())
    assert (found.kind, found.name, found.module) == ("output", "layer2.1.conv1", "Conv2d")
    assert "convolution" in found.operation and "learning rate" in found.cause
    assert found.place is None and "resnet.py" in found.line


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, first, second, extra=None):
        y = self.a(first) + self.b(second["x"][0])
        return {"loss": None, "y": (y if extra is None else y + extra,)}


def test_nested_batches_and_outputs():
    inputs = {"first": torch.ones(4, 3), "second": {"x": [torch.ones(4, 3), "a text", 3]}, "extra": torch.ones(4, 2)}
    assert find_nonfinite(Two(), inputs) is None
    assert find_nonfinite(Two(), list(inputs.values())) is None
    plant(inputs["extra"])
    assert find_nonfinite(Two(), tuple(inputs.values())).name == "batch[2]"
    plant(inputs["second"]["x"][0])
    assert find_nonfinite(Two(), inputs).name == "batch['second']['x'][0]"
    model = Two()
    nn.init.constant_(model.b.weight, 10.0)
    found = find_nonfinite(model, (torch.full((4, 3), 1e38), {"x": [torch.full((4, 3), 1e38)]}))
    assert (found.kind, found.name, found.operation) == ("output", "b", "aten.addmm")


def test_frozen_parts_shared_parts_and_callers_without_gradients():
    shared = nn.Linear(3, 3)
    model, x = nn.Sequential(shared, nn.Tanh(), shared).requires_grad_(False), torch.ones(2, 3)
    assert find_nonfinite(model, x, forward=lambda x: model(x).sum()) is None
    model.requires_grad_(True)
    for mode in (torch.no_grad(), torch.inference_mode()):  # the search needs gradients whatever the caller has
        with mode:
            assert find_nonfinite(model, x, forward=lambda x: (model(x) * 0).sqrt().sum()).operation.startswith("SqrtBackward0")


def test_a_scripted_part_and_one_that_backward_runs_again():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU())), nn.Linear(3, 1))
    assert find_nonfinite(model, torch.ones(1, 3)) is None
    nn.init.constant_(model[0][0].weight, 3e38)
    found = find_nonfinite(model, torch.ones(1, 3))
    assert (found.kind, found.name, found.operation) == ("output", "0", "aten.addmm")  # its inside is not known
    layer = Wrong(nn.Linear(3, 3), lambda y: y + (y - y).sqrt())
    found = find_nonfinite(layer, torch.ones(2, 3), forward=lambda x: checkpoint(layer, x, use_reentrant=False).mean())
    assert found.kind == "gradient" and found.operation.startswith("SqrtBackward0")


class Overflowing(nn.Module):
    """For a batch of zeros the loss is finite and the gradient infinite."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.layer(x).square().sum(1, keepdim=True).sqrt().expand(-1, 4)).pow(2).sum()


def test_a_gradient_and_a_state_that_are_stored():
    model, x = nn.Linear(3, 1), torch.ones(1, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()
    plant(model.weight.grad)
    found = find_nonfinite(model, x)
    assert (found.kind, found.name) == ("gradient", "weight") and "zero_grad" in found.cause
    assert find_nonfinite(model, x, forward=lambda x: model(x).sum() * math.nan).kind == "loss"
    plant(optimizer.state[model.weight]["exp_avg_sq"], math.inf)
    for batch in (None, x):
        found = find_nonfinite(model, batch, optimizer=optimizer)
        assert (found.kind, found.name) == ("optimizer state", "exp_avg_sq of weight")


def test_statistics_that_one_batch_spoils_while_its_loss_is_finite():
    model = made(lambda: nn.ModuleList([nn.Linear(3, 3), nn.BatchNorm1d(3)]))

    def loss(x):
        h = model[0](x)
        model[1](torch.cat([h.detach() * 1e30, h.detach()]))  # its variance overflows
        return h.sum()

    found = find_nonfinite(model, torch.randn(4, 3), forward=loss)
    assert (found.kind, found.name, found.module) == ("buffer", "1.running_var", "BatchNorm1d")
    assert model[1].running_var.isfinite().all()
