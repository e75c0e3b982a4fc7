"""What the losses are when nothing was learned, against simulation and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslcourse.losses import barlow_twins_loss, byol_loss, chance_loss, nt_xent

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 4, 10, 100])
def test_a_classifier_that_says_nothing(classes):
    loss = F.cross_entropy(torch.zeros(5, classes, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1]))
    assert chance_loss("supervised", num_classes=classes) == pytest.approx(loss.item(), rel=1e-12)
    if classes == 4:
        assert chance_loss("rotation") == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("n", [2, 32, 256])
def test_simclr_when_nothing_is_nearer_than_anything_else(n):
    expected = chance_loss("simclr", batch_size=n)
    assert expected == pytest.approx(math.log(2 * n - 1), rel=1e-15)
    assert nt_xent(torch.ones(n, 5), torch.ones(n, 5)).item() == pytest.approx(expected, rel=1e-6)
    # random directions at a high temperature: a similarity of at most 1 is divided by 100
    assert nt_xent(rows(n, 64), rows(n, 64, seed=1), temperature=100).item() == pytest.approx(expected, abs=0.005)


def test_byol_with_independent_directions():
    loss = byol_loss(rows(4000, 64), rows(4000, 64, seed=1))
    assert chance_loss("byol") == 2.0 == pytest.approx(loss.item(), abs=0.02)  # 2/sqrt(64·4000) is one standard error: 0.004


@pytest.mark.parametrize(("n", "d", "lambda_param"), [(8, 64, 5e-3), (16, 32, 0.5), (64, 128, 0.02)])
def test_barlow_twins_with_independent_columns(n, d, lambda_param):
    losses = [barlow_twins_loss(rows(n, d, seed=s), rows(n, d, seed=s + 1000), lambda_param).item() for s in range(200)]
    mean, error = np.mean(losses), np.std(losses, ddof=1) / len(losses) ** 0.5
    expected = chance_loss("barlow_twins", dim=d, batch_size=n, lambda_param=lambda_param)
    assert abs(expected - mean) < 3.5 * error < 0.03 * mean
    rule_of_thumb = d + lambda_param * d * (d - 1) / n
    assert abs(rule_of_thumb - mean) > 3.5 * error  # which is why it is not what is returned


@pytest.mark.parametrize(
    ("method", "arguments", "named"),
    [
        ("moco", {}, "moco"),
        ("supervised", {}, "num_classes"),
        ("supervised", {"num_classes": 1}, "num_classes"),
        ("simclr", {"num_classes": 10}, "batch_size"),
        ("simclr", {"batch_size": 1}, "batch_size"),
        ("simclr", {"batch_size": 64.5}, "batch_size"),
        ("barlow_twins", {"batch_size": 64}, "dim"),
        ("barlow_twins", {"dim": 8, "batch_size": 1}, "batch_size"),
    ],
)
def test_it_says_what_it_needs(method, arguments, named):
    with pytest.raises(ValueError, match=named):
        chance_loss(method, **arguments)
