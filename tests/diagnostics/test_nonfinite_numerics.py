"""Faults that make a loss or a gradient NaN, each in its smallest form, and what find_nonfinite says of it. Then what must not be reported.

Where anomaly mode can be asked too, the operation that it names stands beside: often it is not the one that began.
"""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from tiny import coloured, simclr
from torch import nn

from sslcourse.diagnostics.nonfinite import find_nonfinite
from sslcourse.losses import nt_xent

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*degrees of freedom is", "ignore:The PyTorch API of nested tensors"),
]


def rows(n=8, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """A layer, then the faulty loss in forward, as the methods of this course have it."""

    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.loss = nn.Linear(4, 4), loss

    def forward(self, x):
        return self.loss(self.layer(x))


def constant(z):
    """The last dimension is the same in every row."""
    return z * torch.tensor([1.0, 1.0, 1.0, 0.0])


def standardised(z):
    z = constant(z)
    return ((z - z.mean(0)) / z.std(0)).pow(2).sum()


def rooted_outside(z):
    return (1 / (constant(z).var(0).sqrt() + 1e-3)).sum()


def powered_outside(z):
    return (1 / (constant(z).var(0) ** 0.5 + 1e-3)).sum()


def clamped_after(z):
    return (1 / (constant(z).var(0) ** 0.5).clamp(min=1e-3)).sum()


def rooted(z):
    return constant(z).var(0).sqrt().sum()


def one_pass_variance(z):
    z = z[:1].expand(8, 4) * 1e-3 + 1000.0  # all rows equal, far from 0
    variance = (z * z).mean(0) - z.mean(0) * z.mean(0) - 1e-3
    return variance.pow(0.5).sum()


def batch_of_one(z):
    return ((z[:1] - z[:1].mean(0)) / z[:1].std(0)).pow(2).sum()


def zero_row(z):
    z = z * torch.tensor([[0.0]] + [[1.0]] * 7)
    return (z / z.norm(dim=1, keepdim=True)).sum()


def hand_made_norm(z):
    return (z * 0).pow(2).sum(1).pow(0.5).sum()


def exp_form(z, temperature=0.01):
    z = F.normalize(torch.cat([z, z]))
    e = (z @ z.T / temperature).exp()
    n = len(z) // 2
    positive = e.diagonal(n).repeat(2)
    return -(positive / (e.sum(1) - e.diagonal())).log().mean()


def exp_form_in_half(z):
    z = F.normalize(torch.cat([z, z])).half()
    e = (z @ z.T / 0.1).exp()
    return e.sum(1).log().mean().float()


def overflow_that_a_division_hides(z):
    e = (F.normalize(torch.cat([z, z])) * 3).half()
    e = (e @ e.T).exp()
    return -(e.diagonal(8).repeat(2) / (e.sum(1) * 8)).log().mean().float()  # .../inf is 0, and only its logarithm is infinite


def minus_infinity_times_zero(z):
    return (z @ z.T + torch.eye(8) * -math.inf).logsumexp(1).mean()


def where_over_a_root(z):
    return torch.where(z > 0, (z * (z > 0)).sqrt(), 0.0).sum() + torch.where(z > 9, (0 * z).sqrt(), 0.0).sum()


def where_over_a_bad_value(z):
    return torch.where(z > 0, z.sqrt(), 0.0).sum()


def empty_mask(z):
    return F.cross_entropy(z, z.argmax(1), reduction="none")[z.softmax(1).amax(1) > 2].mean()


def correlation_in_half(z):
    z = (z * 1000).half()
    return (z.T @ z / len(z)).float().pow(2).sum()


def all_masked(z):
    return (z @ z.T).masked_fill(torch.ones(8, 8, dtype=torch.bool), -math.inf).softmax(1).sum()


def target_masked(z):
    return F.cross_entropy(z.masked_fill(torch.eye(8, 4, dtype=torch.bool), -math.inf), torch.arange(8) % 4)


def arc_of_cosine(z):
    z = torch.cat([z, z * 0 + 1])
    return torch.acos((F.normalize(z[8:]) * F.normalize(z[8:])).sum(1).clamp(-1, 1).mul(0).add(1) + 0 * z[:8].sum(1)).sum()


def log_of_softmax(z):
    return -(z * 1000).softmax(1).log()[:, 0].mean()


FAULTS = [  # loss, kind, operation, words of the cause, what anomaly mode names
    (standardised, "output", "aten.div", "constant dimension", "PowBackward0"),
    (rooted_outside, "gradient", "SqrtBackward0 (aten.div)", "inside the root", "SqrtBackward0|VarBackward0"),
    (powered_outside, "gradient", "PowBackward0 (aten.pow)", "put eps inside", "PowBackward0|VarBackward0"),
    (clamped_after, "gradient", "PowBackward0", "put eps inside", "PowBackward0"),
    (rooted, "gradient", "SqrtBackward0 (aten.div)", "inside the root", "VarBackward0"),
    (one_pass_variance, "output", "aten.pow", "negative number", "PowBackward0"),
    (batch_of_one, "output", "aten.std", "at least two rows", "PowBackward0"),
    (zero_row, "output", "aten.div", "row of zeros", "DivBackward0"),
    (hand_made_norm, "gradient", "PowBackward0 (aten.pow)", "infinite at 0", "PowBackward0"),
    (exp_form, "output", "aten.exp", "logsumexp", "LogBackward0|DivBackward0"),
    (exp_form_in_half, "output", "aten.sum", "65504", ""),
    (overflow_that_a_division_hides, "output", "aten.mul", "65504", ""),
    (minus_infinity_times_zero, "output", "aten.mul", "masked_fill", "LogsumexpBackward0|none"),
    (where_over_a_root, "gradient", "SqrtBackward0 (aten.div)", "infinite at 0", "SqrtBackward0"),
    (where_over_a_bad_value, "output", "aten.sqrt", "does not show it", "SqrtBackward0"),
    (empty_mask, "output", "aten.mean", "mean of nothing", "none"),
    (correlation_in_half, "output", "aten.mm", "65504", ""),
    (all_masked, "output", "aten._softmax", "everything is masked", "SoftmaxBackward0"),
    (target_masked, "output", "aten.masked_fill", "on purpose", ""),
    (arc_of_cosine, "gradient", "AcosBackward0 (aten.rsqrt)", "clamp", ""),
    (log_of_softmax, "output", "aten.log", "log_softmax", ""),
]


@pytest.mark.parametrize(("loss", "kind", "operation", "cause", "anomaly"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_each_fault_is_traced_to_the_operation_that_began(loss, kind, operation, cause, anomaly):
    found = find_nonfinite(Model(loss), rows())
    assert (found.kind, found.name, found.module) == (kind, "", "Model")
    assert found.operation.startswith(operation)
    assert cause in found.cause
    assert loss.__name__ in found.line and "test_nonfinite_numerics.py" in found.line
    assert found.place == "between its children, after layer"
    assert 0 < found.nan + found.inf <= found.total


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_the_same_in_a_loss_function_outside_of_the_model(fault):
    loss, kind, operation, cause, _ = fault
    found = find_nonfinite(nn.Linear(4, 4), rows(), loss_fn=loss)
    assert found.kind == ("loss" if kind == "output" else kind)
    assert found.name == loss.__name__ and found.operation.startswith(operation) and cause in found.cause


def named_by_anomaly_mode(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            try:
                model(x).backward()
            except RuntimeError as error:
                return str(error)
    return "none"


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_what_anomaly_mode_says_of_them(fault):
    said = named_by_anomaly_mode(Model(fault[0]), rows())
    assert any(name in said for name in fault[4].split("|"))


def test_the_repairs_are_not_reported():
    repairs = [
        lambda z: (1 / (constant(z).var(0) + 1e-6).sqrt()).sum(),
        lambda z: F.batch_norm(constant(z), None, None, training=True).pow(2).sum(),
        lambda z: F.normalize(z * torch.tensor([[0.0]] + [[1.0]] * 7)).sum(),  # its gradient is up to 1e12 there, and finite
        lambda z: (z * 0).norm(dim=1).sum(),
        lambda z: nt_xent(z, z + 0.1, temperature=0.01),
        lambda z: (z @ z.T).masked_fill(torch.eye(8, dtype=torch.bool), -math.inf).logsumexp(1).mean(),
        lambda z: (z @ z.T).fill_diagonal_(-math.inf).softmax(1).square().sum(),
        lambda z: (z @ z.T + torch.full((8, 8), -math.inf).triu(1)).log_softmax(1).exp().sum(),
        lambda z: torch.where(z > 0, torch.where(z > 0, z, 1.0).sqrt(), 0.0).sum(),
        lambda z: (F.cross_entropy(z, z.argmax(1), reduction="none") * (z.softmax(1).amax(1) > 2)).mean(),
        lambda z: nn.BatchNorm1d(4)(z * 1e-3).pow(2).sum(),
    ]
    for loss in repairs:
        assert find_nonfinite(Model(loss), rows(), optimizer=None) is None


def test_infinities_that_do_no_harm_are_passed_over_for_the_one_that_does():
    def loss(z):
        z.detach().mul(0).log()  # printed perhaps, and never used
        similarity = (z @ z.T).fill_diagonal_(-math.inf)
        weights = similarity.softmax(1)
        torch.where(z > 99, (z * 0).log(), z)
        return (weights.sum(1) * 0).sqrt().sum() + F.cross_entropy(similarity, torch.arange(8).roll(1))

    found = find_nonfinite(Model(loss), rows())
    assert (found.kind, found.operation) == ("gradient", "SqrtBackward0 (aten.div)")


def test_a_mask_that_is_too_low_for_half_precision_raises_torchs_error_with_the_place():
    def loss(z):
        return (z @ z.T).half().masked_fill(torch.eye(8, dtype=torch.bool), -9e15).softmax(1).float().sum()

    with pytest.raises(RuntimeError, match="cannot be converted") as caught:
        find_nonfinite(Model(loss), rows())
    assert any("find_nonfinite: raised by" in note and "Model" in note for note in caught.value.__notes__)


def test_batch_norm_of_one_row_raises_torchs_error():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        find_nonfinite(nn.BatchNorm1d(4), rows(1))


def test_half_precision_inside_autocast():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[2].weight.fill_(300.0)

    def forward(x):
        with torch.autocast("cpu", dtype=torch.float16):
            return model(x).float().logsumexp(1).mean()

    found = find_nonfinite(model, rows().abs() * 500, forward=forward)
    assert (found.kind, found.name, found.module, found.dtype) == ("output", "2", "Linear", torch.float16)
    assert "65504" in found.cause and found.inf
    assert find_nonfinite(model, rows(), forward=forward) is None


# --- what is healthy -------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Causal attention with its mask in a buffer, as language models have it."""

    def __init__(self, additive=True):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("mask", torch.full((5, 5), -math.inf).triu(1))

    def forward(self, x):
        return self.inner(x, x, x, attn_mask=self.mask, need_weights=False)[0].square().mean()


def test_causal_attention_with_its_mask_in_a_buffer_or_in_the_batch():
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(2, 5, 8)
    assert find_nonfinite(model, x) is None
    assert find_nonfinite(model) is None
    model.mask.fill_(-math.inf)
    found = find_nonfinite(model, x)
    assert found is None or ("attention" in found.operation or "softmax" in found.operation) and found.name.startswith("inner")
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    for mode in (True, False):
        assert find_nonfinite(layer.train(mode), {"src": x, "src_mask": mask}, loss_fn=lambda y: y.square().mean()) is None
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    assert find_nonfinite(layer, {"src": x, "src_key_padding_mask": padding}, loss_fn=lambda y: y[:, :3].square().mean()) is None


def test_the_fast_path_of_transformers_that_nests_tensors():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    batch = {"src": torch.randn(2, 5, 8), "src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])}
    for backward in (True, False):
        assert find_nonfinite(encoder, batch, loss_fn=lambda y: y[:, :3].square().mean(), backward=backward) is None
    with torch.no_grad():
        encoder.layers[1].linear1.weight.fill_(3e38)
    assert find_nonfinite(encoder, batch, backward=False).name.startswith("layers.1")


def test_a_batch_whose_minus_infinity_is_no_mask():
    x = rows()
    x[2, 1] = -math.inf
    found = find_nonfinite(nn.Linear(4, 4), x, loss_fn=lambda z: z.sum())
    assert (found.kind, found.name, found.inf) == ("input", "batch", 1)


def test_an_lstm_and_masked_log_probabilities():
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
    assert find_nonfinite(lstm, torch.randn(3, 7, 4), loss_fn=lambda y: y[0].square().mean()) is None

    class Masked(nn.Module):
        def forward(self, x):
            return x.masked_fill(x < 0, -math.inf).log_softmax(1)

    assert (
        find_nonfinite(Masked(), rows().index_fill(1, torch.tensor([0]), 1.0)) is None
    )  # no loss is known: -inf from a mask is an output like any other
    assert find_nonfinite(Masked(), -rows().abs()).operation == "aten._log_softmax"  # everything masked


def test_simclr_of_this_course():
    images = coloured(8, 0)[0]
    assert find_nonfinite(simclr(), images, optimizer=None) is None
    method = simclr(temperature=0.05)
    assert find_nonfinite(method, images, optimizer=torch.optim.AdamW(method.parameters(), lr=1e-3)) is None
    with torch.no_grad():
        method.projector[0].weight.zero_()
        method.projector[3].weight.zero_()
        method.projector[3].bias.zero_()
    with pytest.raises(ValueError, match="a row of zeros has none"):
        find_nonfinite(method, images)
