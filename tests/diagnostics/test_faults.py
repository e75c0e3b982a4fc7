"""Faults that make a loss or a gradient NaN, each in its smallest form: what find_nonfinite says of them, and what it must not report."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import coloured, simclr
from torch import nn

from sslcourse.diagnostics import find_nonfinite
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


def with_zero_row(z):
    return z * torch.tensor([[0.0]] + [[1.0]] * 7)


FAULTS = {  # besides those of the course's clinic: loss, kind, operation, words of the cause
    "standardised": (lambda z: (constant(z - z.mean(0)) / constant(z).std(0)).sum(), "output", "aten.div", "constant dimension"),
    "eps after the power": (lambda z: (1 / (constant(z).var(0) ** 0.5 + 1e-3)).sum(), "gradient", "PowBackward0 (aten.pow)", "eps inside"),
    "where": (lambda z: torch.where(z > 0, z.sqrt(), 0.0).sum(), "output", "aten.sqrt", "does not show it"),
    "all masked": (lambda z: z.masked_fill(z < 99, -math.inf).softmax(1).sum(), "output", "aten._softmax", "everything is masked"),
    "target masked": (
        lambda z: F.cross_entropy(z.masked_fill(torch.eye(8, 4) > 0, -math.inf), torch.arange(8) % 4),
        "output", "aten.masked_fill", "on purpose",
    ),
    "arc of cosine": (lambda z: torch.acos(1 + 0 * z).sum(), "gradient", "AcosBackward0 (aten.rsqrt)", "clamp"),
    "log of softmax": (lambda z: -(z * 1000).softmax(1).log()[:, 0].mean(), "output", "aten.log", "log_softmax"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_traced_to_the_operation_that_began(fault):
    loss, kind, operation, cause = FAULTS[fault]
    found = find_nonfinite(Model(loss), rows())
    assert (found.kind, found.name, found.module) == (kind, "", "Model")
    assert found.operation.startswith(operation) and cause in found.cause
    assert "test_faults.py, line" in found.line and found.place == "between its children, after layer"
    assert 0 < found.nan + found.inf <= found.total
    what, where, why = str(found).splitlines()
    assert operation in what and f"of {found.total} values" in what and found.place in where and found.line in where and cause in why
    layer = Model(loss).layer  # the same outside of the model
    found = find_nonfinite(layer, rows(), forward=lambda x: loss(layer(x)))
    assert found.kind == ("loss" if kind == "output" else kind) and found.operation.startswith(operation)


def test_the_repairs_are_not_reported():
    repairs = [  # further ones are in the clinic
        lambda z: F.batch_norm(constant(z), None, None, training=True).pow(2).sum(),
        lambda z: F.normalize(with_zero_row(z)).sum(),  # its gradient is up to 1e12 there, and finite
        lambda z: nt_xent(z, z + 0.1, temperature=0.01),
        lambda z: (z @ z.T).masked_fill(torch.eye(8, dtype=torch.bool), -math.inf).logsumexp(1).mean(),
        lambda z: (z @ z.T + torch.full((8, 8), -math.inf).triu(1)).log_softmax(1).exp().sum(),
    ]
    for loss in repairs:
        assert find_nonfinite(Model(loss), rows()) is None
    assert find_nonfinite(simclr(temperature=0.05), coloured(8, 0)[0]) is None


def test_infinities_that_do_no_harm_are_passed_over_for_the_one_that_does():
    def loss(z):
        z.detach().mul(0).log()  # printed perhaps, and never used
        similarity = (z @ z.T).fill_diagonal_(-math.inf)
        weights = similarity.softmax(1)
        torch.where(z > 99, (z * 0).log(), z)
        return (weights.sum(1) * 0).sqrt().sum() + F.cross_entropy(similarity, torch.arange(8).roll(1))

    found = find_nonfinite(Model(loss), rows())
    assert (found.kind, found.operation) == ("gradient", "SqrtBackward0 (aten.div)")
    class Masked(nn.Module):
        def forward(self, x):
            return x.masked_fill(x < 0, -math.inf).log_softmax(1)

    x = -rows().abs()
    assert find_nonfinite(Masked(), x).operation == "aten._log_softmax"  # everything masked
    x[:, 0] = 1  # no loss is known: -inf from a mask is an output like any other
    assert find_nonfinite(Masked(), x) is None


class Attention(nn.Module):
    """Causal attention with its mask in a buffer, as language models have it."""

    def __init__(self):
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
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    padded = {"src": x, "src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])}
    for batch in ({"src": x, "mask": nn.Transformer.generate_square_subsequent_mask(5)}, padded):
        for mode in (True, False):
            assert find_nonfinite(encoder.train(mode), batch) is None
    encoder.eval().requires_grad_(False)  # the fast path, which nests tensors
    assert find_nonfinite(encoder, padded) is None
    encoder.layers[1].linear1.weight.fill_(3e38)
    assert find_nonfinite(encoder, padded).name.startswith("layers.1")
