"""find_nonfinite on models of every kind: what it names."""

import copy
import dataclasses
import math
from unittest.mock import ANY

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from sslcourse.diagnostics.nonfinite import find_nonfinite

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:.torch.jit.script. is deprecated"),
]

CLASSES = 5


def resnet():
    return torchvision.models.resnet18(num_classes=CLASSES)


def mobilenet():
    return torchvision.models.mobilenet_v3_small(num_classes=CLASSES)


def vit():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES
    )


def made(build, seed=0):
    torch.manual_seed(seed)
    return build()


def images(n=2, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def cross_entropy(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)) % CLASSES)


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


# --- torchvision -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [resnet, mobilenet, vit])
def test_healthy_models_of_torchvision(build):
    model = made(build)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for mode in (True, False):
        assert find_nonfinite(model.train(mode), images(), loss_fn=cross_entropy, optimizer=optimizer) is None
    assert find_nonfinite(model) is None
    assert find_nonfinite(model, images()) is None


@pytest.mark.parametrize(
    ("build", "name", "module"),
    [
        (resnet, "layer2.0.downsample.0.weight", "Conv2d"),
        (mobilenet, "features.4.block.2.fc1.weight", "Conv2d"),
        (vit, "encoder.layers.encoder_layer_1.self_attention.in_proj_weight", "MultiheadAttention"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter(build, name, module, value):
    model = made(build)
    plant(model.get_parameter(name), value)
    for batch in (None, images()):
        found = find_nonfinite(model, batch)
        assert (found.kind, found.name, found.module) == ("parameter", name, module)
        assert found.nan == math.isnan(value) and found.inf == math.isinf(value)
        assert found.shape == tuple(model.get_parameter(name).shape) and 0 < found.largest < 10
        assert found.total == model.get_parameter(name).numel()
        assert "inf·0" in found.cause and found.operation is None


@pytest.mark.parametrize(("build", "name"), [(resnet, "layer3.1.bn2.running_var"), (mobilenet, "features.2.block.1.1.running_mean")])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_statistics_of_batch_normalisation(build, name, value):
    model = made(build)
    plant(model.get_buffer(name), value)
    for batch in (None, images()):
        found = find_nonfinite(model, batch, loss_fn=cross_entropy)
        assert (found.kind, found.name, found.module) == ("buffer", name, "BatchNorm2d")
        assert "stays in the running statistics" in found.cause


@pytest.mark.parametrize("build", [resnet, mobilenet, vit])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_pixel(build, value):
    x = images()
    plant(x, value)
    found = find_nonfinite(made(build), x, loss_fn=cross_entropy)
    assert (found.kind, found.name, found.nan + found.inf, found.total) == ("input", "batch", 1, x.numel())


@pytest.mark.parametrize(
    ("build", "path"),
    [(resnet, "layer3.0.conv2"), (mobilenet, "features.5.block.2"), (vit, "encoder.layers.encoder_layer_1.mlp.1")],
)
def test_an_operation_in_the_middle(build, path):
    model = made(build)
    parent, _, child = path.rpartition(".")
    wrong = Wrong(model.get_submodule(path), lambda y: (y - y).log() + y)
    setattr(model.get_submodule(parent), child, wrong)
    found = find_nonfinite(model, images(), loss_fn=cross_entropy)
    assert (found.kind, found.name, found.module, found.operation) == ("output", path, "Wrong", "aten.log")
    assert found.place == f"between its children, after {path}.inner"
    assert found.input_range == (0.0, 0.0) and found.inf == found.total and math.isnan(found.largest)
    wrong.spoil = lambda y: y + (y - y).sqrt()
    found = find_nonfinite(model, images(), loss_fn=cross_entropy)
    assert (found.kind, found.name) == ("gradient", path) and found.operation.startswith("SqrtBackward0")
    assert find_nonfinite(model, images(), loss_fn=cross_entropy, backward=False) is None


def test_the_culprit_and_not_the_container_that_holds_it():
    model = made(resnet)
    with torch.no_grad():
        model.layer2[1].conv1.weight.fill_(3e38)
    found = find_nonfinite(model, images())
    assert (found.kind, found.name, found.module) == ("output", "layer2.1.conv1", "Conv2d")
    assert "convolution" in found.operation and "learning rate too high" in found.cause
    assert found.place is None and "resnet.py" in found.line


# --- what is called, and how -----------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, first, second, extra=None):
        y = self.a(first) + self.b(second["x"][0])
        return {"loss": None, "y": (y if extra is None else y + extra,)}


@pytest.mark.parametrize(("path", "name"), [(0, "batch[0]"), (1, "batch[1]['x'][0]"), (2, "batch[2]")])
def test_nested_batches(path, name):
    batch = [torch.ones(4, 3), {"x": [torch.ones(4, 3), "a text", 3]}, torch.ones(4, 2)]
    assert find_nonfinite(Two(), batch, loss_fn=lambda out: out["y"][0].sum()) is None
    plant(batch[path] if path != 1 else batch[1]["x"][0])
    found = find_nonfinite(Two(), tuple(batch))
    assert (found.kind, found.name) == ("input", name)
    named = {"first": batch[0], "second": batch[1], "extra": batch[2]}
    assert find_nonfinite(Two(), named).name.startswith(f"batch['{list(named)[path]}']")


def test_an_output_that_is_nested():
    model = Two()
    batch = (torch.full((4, 3), 1e38), {"x": [torch.full((4, 3), 1e38)]})
    with torch.no_grad():
        model.b.weight.fill_(10.0)
    found = find_nonfinite(model, batch)
    assert (found.kind, found.name, found.operation) == ("output", "b", "aten.addmm")


def test_what_cannot_be_asked_is_said_in_a_sentence():
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="loss_fn must make a scalar .* shape \\(4, 2\\)"):
        find_nonfinite(model, torch.ones(4, 3), loss_fn=lambda y: y)
    with pytest.raises(ValueError, match="loss_fn must make a scalar .* a float"):
        find_nonfinite(model, torch.ones(4, 3), loss_fn=lambda y: y.sum().item())
    with pytest.raises(ValueError, match="give loss_fn"):
        find_nonfinite(model, torch.ones(4, 3), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_finding_reads_well():
    model = nn.Sequential(nn.Linear(3, 2), nn.Softmax(1))
    found = find_nonfinite(model, torch.zeros(4, 3), loss_fn=lambda p: (p - p).log().mean())
    text = str(found)
    assert text.startswith("First not finite: loss, in <lambda>, made by aten.log; float32 (4, 2): 0 NaN and 8 inf of 8 values, made from")
    assert "\nWhere: test_nonfinite.py, line " in text and "\nUsual cause: The logarithm of 0" in text and len(text.splitlines()) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.kind = "input"
    plant(model[0].bias)
    assert str(find_nonfinite(model)).startswith("First not finite: parameter 0.bias (Linear); float32 (2,): 1 NaN and 0 inf of 2 values")


def test_frozen_parts_shared_parts_and_callers_without_gradients():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared).requires_grad_(False)
    assert find_nonfinite(model, torch.ones(2, 3), loss_fn=lambda y: y.sum()) is None
    model.requires_grad_(True)
    with torch.no_grad():  # the search needs gradients whatever the caller has
        found = find_nonfinite(model, torch.ones(2, 3), loss_fn=lambda y: (y - y).sqrt().sum())
    assert found.operation.startswith("SqrtBackward0")
    with torch.inference_mode():
        assert find_nonfinite(model, torch.ones(2, 3), loss_fn=lambda y: (y - y).sqrt().sum()) == dataclasses.replace(found, line=ANY)


def test_a_scripted_part():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.ReLU())), nn.Linear(3, 1))
    assert find_nonfinite(model, torch.ones(2, 3), loss_fn=torch.sum) is None
    with torch.no_grad():
        model[0][0].weight.fill_(3e38)
    found = find_nonfinite(model, torch.ones(2, 3), loss_fn=torch.sum)
    assert (found.kind, found.name, found.operation) == ("output", "", "aten.addmm")  # its inside is not known


def test_checkpointed_parts_are_run_again_in_backward():
    from torch.utils.checkpoint import checkpoint

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = Wrong(nn.Linear(3, 3), lambda y: y + (y - y).sqrt()), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(checkpoint(self.layer, x, use_reentrant=False)).mean()

    found = find_nonfinite(Saving(), torch.ones(2, 3))
    assert found.kind == "gradient" and found.operation.startswith("SqrtBackward0")


# --- the optimizer ---------------------------------------------------------------------------------------------------------------------


class Overflowing(nn.Module):
    """The loss is finite and the gradient is infinite for the second of three batches; with a pow(2) as the last thing before the sum."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 4)

    def forward(self, x):
        z = self.head(self.layer(x).square().sum(1, keepdim=True).sqrt().expand(-1, 4))
        return z.pow(2).sum()


@pytest.mark.parametrize("clip", [True, False])
def test_infinite_gradient_then_nan_weights_then_the_loss_is_blamed(clip):
    model = made(Overflowing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    good, bad = torch.ones(4, 3), torch.zeros(4, 3)  # the root of 0
    assert find_nonfinite(model, good, optimizer=optimizer) is None
    found = find_nonfinite(model, bad, optimizer=optimizer)
    assert (found.kind, found.module) == ("gradient", "Overflowing") and found.operation.startswith("SqrtBackward0")
    assert found.place == "between its children, after layer"
    # what the original project saw instead: this step passes, and at the next one anomaly mode names the loss's own pow
    loss = model(bad)
    assert loss.isfinite()
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.warns(UserWarning, match="PowBackward0"), pytest.raises(RuntimeError, match="PowBackward0"):
        with torch.autograd.detect_anomaly():
            model(good).backward()
    found = find_nonfinite(model, good, optimizer=optimizer)
    assert (found.kind, found.name, found.nan) == ("parameter", "layer.weight", 12)


def test_a_gradient_and_a_state_that_are_stored():
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()
    plant(optimizer.state[model.bias]["exp_avg_sq"], math.inf)
    for batch in (None, x):
        found = find_nonfinite(model, batch, loss_fn=torch.sum, optimizer=optimizer)
        assert (found.kind, found.name) == ("optimizer state", "exp_avg_sq of bias")
    plant(model.bias.grad)
    for batch in (None, x):
        found = find_nonfinite(model, batch, loss_fn=torch.sum, optimizer=optimizer)
        assert (found.kind, found.name) == ("gradient", "bias") and "zero_grad" in found.cause
    assert find_nonfinite(model, x, loss_fn=lambda y: (y * math.nan).sum(), optimizer=optimizer).kind == "loss"


def test_what_the_step_itself_makes():
    x = torch.ones(4, 3)
    model = nn.Linear(3, 2)
    found = find_nonfinite(model, x, loss_fn=torch.sum, optimizer=torch.optim.SGD(model.parameters(), lr=math.inf))
    assert (found.kind, found.name) == ("parameter after the step", "weight") and "learning rate" in found.cause
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=False)
    found = find_nonfinite(model, x, loss_fn=lambda y: 1e25 * y.sum(), optimizer=optimizer)
    assert (found.kind, found.name) == ("optimizer state", "exp_avg_sq of weight") and "addcmul" in found.operation
    half = nn.Linear(3, 2).half()  # Adam's eps, 1e-8, is 0 in float16: 0/0 where a gradient is 0
    optimizer = torch.optim.Adam(half.parameters(), lr=1e-3)
    found = find_nonfinite(half, x.half(), loss_fn=lambda y: (0 * y).sum(), optimizer=optimizer)
    assert (found.kind, found.name) == ("parameter after the step", "weight") and "Adam's eps in float16" in found.cause


class CarelessLARS(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * (p.norm() / p.grad.norm()), alpha=group["lr"])


def test_lars_that_divides_by_the_norm_of_nothing():
    model = nn.Linear(3, 2)
    found = find_nonfinite(model, torch.zeros(4, 3), loss_fn=torch.sum, optimizer=CarelessLARS(model.parameters(), {"lr": 0.1}))
    assert (found.kind, found.name, found.operation) == ("parameter after the step", "weight", "aten.div")
    assert "in step: p.sub_(" in found.line and "LARS" in found.cause


def test_a_learning_rate_that_breaks_only_the_next_pass():
    model = made(lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e20)
    found = find_nonfinite(model, torch.ones(4, 3), loss_fn=lambda y: y.square().sum(), optimizer=optimizer)
    assert found.after_step and found.kind == "output" and found.module == "Linear"
    assert "in the pass after one step" in str(found) and "lower lr" in found.cause


def test_schedulers_count_no_step_and_optimizers_with_closures_take_none():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    before = copy.deepcopy(schedule.state_dict())
    assert find_nonfinite(model, torch.ones(4, 3), loss_fn=torch.sum, optimizer=optimizer) is None
    assert schedule.state_dict() == before
    with pytest.warns(UserWarning, match="before `optimizer.step"):  # torch still knows that the optimizer took none
        schedule.step()
    lbfgs = torch.optim.LBFGS(model.parameters())
    assert find_nonfinite(model, torch.ones(4, 3), loss_fn=lambda y: y.square().sum(), optimizer=lbfgs) is None


def test_statistics_that_one_batch_spoils_while_its_loss_is_finite():
    class Poisoned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            h = self.layer(x)
            self.norm(torch.cat([h.detach() * 1e30, h.detach()]))  # its variance overflows
            return h.sum()

    model = made(Poisoned)
    found = find_nonfinite(model, torch.randn(4, 3))
    assert (found.kind, found.name, found.module) == ("buffer", "norm.running_var", "BatchNorm1d")
    assert model.norm.running_var.isfinite().all()
