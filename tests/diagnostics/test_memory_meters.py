"""The meters of memory: the largest tensor, and what autograd keeps."""

import torch

from sslcourse import diagnostics


def test_largest_tensor_sees_the_block_of_a_broadcast_and_not_a_view():
    a = torch.randn(20, 7, requires_grad=True)
    with diagnostics.LargestTensor() as of_the_product:
        (a @ a.T).sum().backward()
    assert of_the_product.bytes == 20 * 20 * 4
    with diagnostics.LargestTensor() as of_the_broadcast:
        (a[:, None, :] * a[None, :, :]).sum().backward()
    assert of_the_broadcast.bytes == 20 * 20 * 7 * 4
    with diagnostics.LargestTensor() as of_a_view:
        a.detach()[:, None, :].expand(20, 50, 7)
    assert of_a_view.bytes == 20 * 7 * 4


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
    with diagnostics.SavedForBackward() as with_the_weight:
        kept = layer(x.clone().requires_grad_())
        assert with_the_weight.bytes == (8 * 10 + 4 * 10) * 4
    after = layer(x)  # outside nothing is counted
    assert with_the_weight.bytes == (8 * 10 + 4 * 10) * 4 and kept.grad_fn is not None and after.grad_fn is not None


def test_a_sum_of_losses_holds_their_graphs_unless_backward_has_freed_them():
    layer, x = torch.nn.Linear(6, 6), torch.randn(3, 6)
    found = {}
    for step in (False, True):
        total = torch.zeros(())
        with diagnostics.SavedForBackward(layer) as saved:
            sizes = []
            for _ in range(4):
                loss = layer(x).exp().sum()
                if step:
                    loss.backward()
                total = total + loss
                sizes.append(saved.bytes)
        found[step] = sizes, diagnostics.graph_size(total)
    each = 3 * 6 * 4
    assert found[False][0] == [each * (1 + k) for k in range(1, 5)]  # an exp each, and x once
    assert found[True][0] == [0] * 4
    assert found[False][1] == found[True][1] > 4 * 3
    assert diagnostics.graph_size(torch.ones(2)) == 0 and diagnostics.graph_size(torch.ones(2, requires_grad=True)) == 0
