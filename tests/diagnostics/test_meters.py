"""The meters: collapse against loops and known cases, the largest tensor, and what autograd keeps."""

import math

import numpy as np
import pytest
import torch

from sslcourse.diagnostics import LargestTensor, SavedForBackward, collapse, graph_size

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_collapse_against_loops():
    z = rows(12, 5) * torch.linspace(0.1, 4, 5, dtype=torch.float64) + 0.5
    lengths = [math.sqrt(sum(float(x) ** 2 for x in row)) for row in z]
    u = z.numpy() / np.array(lengths)[:, None]
    values = [math.sqrt(v) for v in np.linalg.eigvalsh(u.T @ u)]  # the singular values are the roots of the eigenvalues of uᵀu
    share = [v / sum(values) for v in values]
    found = collapse(z)
    assert found.std == pytest.approx(sum(math.sqrt(sum((c - sum(c) / 12) ** 2) / 12) for c in u.T) / 5, rel=1e-12)
    assert found.effective_rank == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), rel=1e-9)
    assert found.norm == pytest.approx(sum(lengths) / 12, rel=1e-12)
    assert (found.n, found.dim, found.healthy_std) == (12, 5, 5**-0.5)


def test_directions_spread_evenly_are_healthy_and_rows_of_zeros_have_none():
    eye = torch.eye(6, dtype=torch.float64)
    found = collapse(torch.cat([eye, -eye]) * 3)
    assert found.std == pytest.approx(found.healthy_std, rel=1e-14) and found.effective_rank == pytest.approx(6, rel=1e-14)
    assert "effective rank 6.0 of 6, mean length 3" in str(found)
    assert 9 < collapse(rows(10, 500)).effective_rank <= 10 and "of 10," in str(collapse(rows(10, 500)))
    found = collapse(torch.zeros(10, 4))
    assert (found.std, found.effective_rank, found.norm) == (0, 0, 0)
    half = collapse(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert half.std == pytest.approx((0.3 + 0.4) / 2) and half.effective_rank == pytest.approx(1) and half.norm == 2.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_point_is_a_complete_collapse(dtype):
    point = rows(1, 32, dtype=dtype)
    for z in (point.expand(50, 32), point * torch.linspace(1, 9, 50, dtype=dtype)[:, None]):
        precision = torch.finfo(dtype).eps if z.stride(0) else 1e-12  # a product is rounded to the dtype, a copy is not
        assert collapse(z).std < precision and collapse(z).effective_rank == pytest.approx(1, abs=100 * precision)
    noisy = collapse(rows(1, 32) + 1e-4 * rows(500, 32, seed=1))  # still a collapse: centred, the noise alone would have rank 31
    assert noisy.std < 1e-3 * noisy.healthy_std and noisy.effective_rank < 1.1


@pytest.mark.parametrize(("z", "error", "word"), [
    *((torch.ones(shape), ValueError, r"\(N, D\)") for shape in [(4,), (1, 3), (4, 0), (2, 3, 4)]),
    (torch.ones(4, 3).long(), TypeError, "int64"), (np.ones((4, 3)), TypeError, "ndarray"),
    *((torch.tensor([[1.0, 1], [1, bad], [bad, bad]]), ValueError, "2 of the 3 rows") for bad in (math.nan, math.inf)),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(z, error, word):
    with pytest.raises(error, match=word):
        collapse(z)


def test_largest_tensor_sees_the_block_of_a_broadcast_and_not_a_view():
    a = torch.randn(20, 7, requires_grad=True)
    with LargestTensor() as largest:
        (a @ a.T).sum().backward()
    assert largest.bytes == 20 * 20 * 4
    with LargestTensor() as largest:
        (a[:, None, :] * a[None, :, :]).sum().backward()
    assert largest.bytes == 20 * 20 * 7 * 4
    with LargestTensor() as largest:
        a.detach()[:, None, :].expand(20, 50, 7)
    assert largest.bytes == 20 * 7 * 4


def test_saved_for_backward_counts_a_block_once_and_for_as_long_as_its_graph_lives():
    layer, x = torch.nn.Linear(10, 4, bias=False), torch.randn(8, 10)
    with SavedForBackward(layer) as saved:
        assert saved.bytes == 0
        y = layer(x)  # needs x for the weight's gradient, and the weight itself is left out
        assert saved.bytes == 8 * 10 * 4
        squares = [y * y, y * y]  # the same y twice more: one block
        assert saved.bytes == 8 * 10 * 4 + 8 * 4 * 4
        del squares
        assert saved.bytes == 8 * 10 * 4
        y.sum().backward()
        assert saved.bytes == 0
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 10))  # what is unpacked is what was packed
    with SavedForBackward() as saved:
        kept = layer(x.clone().requires_grad_())
    after = layer(x)  # outside nothing is counted
    assert saved.bytes == (8 * 10 + 4 * 10) * 4 and kept.grad_fn is not None and after.grad_fn is not None


def test_graph_size_counts_the_operations_behind_a_tensor():
    x = torch.ones(2, requires_grad=True)
    assert graph_size(torch.ones(2)) == graph_size(x) == 0
    y = x.exp()
    assert graph_size(y + y.sum()) == 4  # exp, sum, add, and the node that fills x.grad
