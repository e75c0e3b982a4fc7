"""The loss on pseudo-labels and its weight: against loops in float64, at the threshold, without a passing row."""

import math

import pytest
import torch

from sslcourse.losses import pseudo_label_loss, pseudo_label_weight

pytestmark = pytest.mark.usefixtures("one_thread")


def logits(n, c, seed, sharpness=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(n, c, generator=generator, dtype=torch.float64)).to(dtype)


def by_loops(weak, strong, threshold):
    """The loss and its gradient in the strong logits, in Python's own float64."""
    n, total, gradient = len(weak), [], []
    for w, s in zip(weak.double().tolist(), strong.double().tolist(), strict=True):
        label = max(range(len(w)), key=w.__getitem__)
        passes = 1 / math.fsum(math.exp(v - w[label]) for v in w) >= threshold
        total_of_exps = math.fsum(math.exp(v - s[label]) for v in s)
        total.append(passes * math.log(total_of_exps))
        gradient.append([passes * (math.exp(v - s[label]) / total_of_exps - (k == label)) / n for k, v in enumerate(s)])
    return math.fsum(total) / n, torch.tensor(gradient, dtype=torch.float64)


def loss_and_gradient(weak, strong, threshold):
    weak, strong = weak.clone().requires_grad_(), strong.clone().requires_grad_()
    loss = pseudo_label_loss(weak, strong, threshold)
    loss.backward()
    assert weak.grad is None, "nothing flows into the view that labels"
    return loss.item(), strong.grad


def passing(weak, threshold):
    """How many rows pass: a strong view without opinion costs ln C for each of them."""
    n, c = weak.shape
    return pseudo_label_loss(weak, torch.zeros_like(weak), threshold).item() * n / math.log(c)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("n, c", [(1, 2), (5, 3), (64, 10), (7, 100)])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_it_equals_a_computation_by_loops(n, c, threshold, dtype, rtol):
    weak, strong = logits(n, c, 1, dtype=dtype), logits(n, c, 2, dtype=dtype)
    wanted, wanted_gradient = by_loops(weak, strong, threshold)
    loss, gradient = loss_and_gradient(weak, strong, threshold)
    assert loss == pytest.approx(wanted, rel=rtol, abs=1e-15)
    rtol = max(10 * rtol, torch.finfo(dtype).eps)  # the gradient has the precision of the rows
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=rtol, atol=rtol / n)


def test_the_threshold_itself_passes():
    even = torch.zeros(3, 2, dtype=torch.float64)  # probabilities of exactly one half
    assert passing(even, 0.5) == pytest.approx(3)
    assert passing(even, 0.5 + 1e-9) == 0


@pytest.mark.parametrize("damaged", [0, 1], ids=["weak", "strong"])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_nan_is_not_hidden(damaged, threshold):
    views = logits(6, 3, 1, sharpness=0.1), logits(6, 3, 2)
    views[damaged][2, 1] = math.nan
    assert pseudo_label_loss(*views, threshold).isnan()


def test_the_weights_of_the_paper_and_a_ramp_without_length_is_a_switch():
    epochs = {0: 0.0, 50: 0.0, 100: 0.0, 225: 0.75, 350: 1.5, 599: 3 * 499 / 500, 600: 3.0, 601: 3.0, 10_000: 3.0}
    for epoch, wanted in epochs.items():
        assert pseudo_label_weight(epoch, 100, 600, 3) == pytest.approx(wanted, abs=1e-12)
    assert [pseudo_label_weight(step, 5, 5, 2.0) for step in (0, 4, 5, 6)] == [0.0, 0.0, 2.0, 2.0]
    assert pseudo_label_weight(0, 0, 0, 1.0) == 1.0
