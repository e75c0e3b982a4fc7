"""The meters of memory: the largest tensor, and what autograd keeps."""

import torch

from sslcourse import diagnostics


def test_largest_tensor_sees_the_block_of_a_broadcast_and_not_a_view():
    a = torch.randn(20, 7, requires_grad=True)
    with diagnostics.LargestTensor() as largest:
        (a @ a.T).sum().backward()
    assert largest.bytes == 20 * 20 * 4
    with diagnostics.LargestTensor() as largest:
        (a[:, None, :] * a[None, :, :]).sum().backward()
    assert largest.bytes == 20 * 20 * 7 * 4
    with diagnostics.LargestTensor() as largest:
        a.detach()[:, None, :].expand(20, 50, 7)
    assert largest.bytes == 20 * 7 * 4


def test_saved_for_backward_counts_a_block_once_and_for_as_long_as_its_graph_lives():
    layer, x = torch.nn.Linear(10, 4, bias=False), torch.randn(8, 10)
    with diagnostics.SavedForBackward(layer) as saved:
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
    with diagnostics.SavedForBackward() as saved:
        kept = layer(x.clone().requires_grad_())
    after = layer(x)  # outside nothing is counted
    assert saved.bytes == (8 * 10 + 4 * 10) * 4 and kept.grad_fn is not None and after.grad_fn is not None


def test_graph_size_counts_the_operations_behind_a_tensor():
    x = torch.ones(2, requires_grad=True)
    assert diagnostics.graph_size(torch.ones(2)) == diagnostics.graph_size(x) == 0
    y = x.exp()
    assert diagnostics.graph_size(y + y.sum()) == 4  # exp, sum, add, and the node that fills x.grad
