"""Chance levels against simulation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslcourse import diagnostics
from sslcourse.losses import nt_xent

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_chance_of_a_classifier_that_says_nothing(classes):
    loss = F.cross_entropy(torch.zeros(5, classes, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1]))
    assert diagnostics.chance_loss("supervised", num_classes=classes) == pytest.approx(loss.item(), rel=1e-12)


def test_chance_of_four_rotations():
    assert diagnostics.chance_loss("rotation") == pytest.approx(1.3862943611198906, rel=1e-15)


@pytest.mark.parametrize("n", [2, 32, 256])
def test_chance_of_simclr_when_nothing_is_nearer_than_anything_else(n):
    expected = diagnostics.chance_loss("simclr", batch_size=n)
    assert expected == pytest.approx(math.log(2 * n - 1), rel=1e-15)
    assert nt_xent(torch.ones(n, 5), torch.ones(n, 5)).item() == pytest.approx(expected, rel=1e-6)
    # random directions at a high temperature: a similarity of at most 1 is divided by 100
    assert nt_xent(rows(n, 64), rows(n, 64, seed=1), temperature=100).item() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("n", "d", "temperature"), [(128, 64, 0.1), (128, 64, 0.2), (256, 128, 0.1), (256, 128, 0.5), (256, 16, 0.2)])
def test_chance_of_simclr_with_random_directions_at_a_low_temperature(n, d, temperature):
    losses = [nt_xent(rows(n, d, seed=s), rows(n, d, seed=s + 100), temperature).item() for s in range(8)]
    mean, error = np.mean(losses), np.std(losses, ddof=1) / len(losses) ** 0.5
    corrected = diagnostics.chance_loss("simclr", batch_size=n, dim=d, temperature=temperature)
    assert abs(corrected - mean) < 0.06 + 3 * error
    assert abs(corrected - mean) < abs(diagnostics.chance_loss("simclr", batch_size=n) - mean)
    assert corrected == pytest.approx(math.log(2 * n - 1) + 1 / (2 * d * temperature**2), rel=1e-15)


def test_chance_of_simclr_is_corrected_only_when_both_are_known():
    plain = diagnostics.chance_loss("simclr", batch_size=64)
    assert diagnostics.chance_loss("simclr", batch_size=64, dim=128) == plain
    assert diagnostics.chance_loss("simclr", batch_size=64, temperature=0.5) == plain
    assert diagnostics.chance_loss("simclr", batch_size=64, dim=128, temperature=0.5) == plain + 1 / 64


def test_chance_of_byol_with_independent_directions():
    loss = (2 - 2 * torch.cosine_similarity(rows(4000, 64), rows(4000, 64, seed=1))).mean()
    assert diagnostics.chance_loss("byol") == 2.0 == pytest.approx(loss.item(), abs=0.02)  # 2/sqrt(64·4000) is one standard error: 0.004


def barlow_twins_by_hand(z0, z1, lambda_param):
    z0, z1 = ((z - z.mean(0)) / z.std(0, correction=0) for z in (z0, z1))
    c = z0.T @ z1 / len(z0)
    diagonal = c.diagonal()
    return ((diagonal - 1).square().sum() + lambda_param * (c.square().sum() - diagonal.square().sum())).item()


@pytest.mark.parametrize(("n", "d", "lambda_param"), [(8, 64, 5e-3), (16, 32, 0.5), (64, 128, 0.02)])
def test_chance_of_barlow_twins_with_independent_columns(n, d, lambda_param):
    losses = [barlow_twins_by_hand(rows(n, d, seed=s), rows(n, d, seed=s + 1000), lambda_param) for s in range(200)]
    mean, error = np.mean(losses), np.std(losses, ddof=1) / len(losses) ** 0.5
    expected = diagnostics.chance_loss("barlow_twins", dim=d, batch_size=n, lambda_param=lambda_param)
    assert abs(expected - mean) < 3.5 * error < 0.03 * mean
    rule_of_thumb = d + lambda_param * d * (d - 1) / n
    assert abs(rule_of_thumb - mean) > 3.5 * error  # which is why it is not what is returned


def test_chance_of_barlow_twins_has_the_usual_lambda():
    given = diagnostics.chance_loss("barlow_twins", dim=512, batch_size=256, lambda_param=5e-3)
    assert diagnostics.chance_loss("barlow_twins", dim=512, batch_size=256) == given
    assert given == pytest.approx(512 + 5e-3 * 512**2 / 256, rel=0.005)  # the rule of thumb, for a large batch


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [
        ("moco", {}, r"chance_loss knows supervised, rotation, simclr, byol, barlow_twins, not 'moco'\."),
        ("supervised", {}, r"chance_loss\('supervised'\) needs num_classes, a whole number of at least 2, not None\."),
        ("supervised", {"num_classes": 1}, r"chance_loss\('supervised'\) needs num_classes, a whole number of at least 2, not 1\."),
        ("simclr", {"num_classes": 10}, r"chance_loss\('simclr'\) needs batch_size, a whole number of at least 2, not None\."),
        ("simclr", {"batch_size": 1}, r"chance_loss\('simclr'\) needs batch_size, a whole number of at least 2, not 1\."),
        ("simclr", {"batch_size": 64.5}, r"chance_loss\('simclr'\) needs batch_size, a whole number of at least 2, not 64\.5\."),
        ("barlow_twins", {"batch_size": 64}, r"chance_loss\('barlow_twins'\) needs dim, a whole number of at least 1, not None\."),
        ("barlow_twins", {"dim": 8}, r"chance_loss\('barlow_twins'\) needs batch_size, a whole number of at least 2, not None\."),
        ("barlow_twins", {"dim": 8, "batch_size": 1}, r"needs batch_size, a whole number of at least 2, not 1\."),
        ("simclr", {"batch_size": 9, "dim": 16, "temperature": 0.1}, r"at least 1/sqrt\(2·dim\), not 16 and 0\.1; leave them out"),
        ("simclr", {"batch_size": 9, "dim": 0, "temperature": 0.1}, r"a dim of at least 1 .* not 0 and 0\.1; leave them out"),
        ("simclr", {"batch_size": 9, "dim": 16, "temperature": -1}, r"not 16 and -1; leave them out for ln\(2N − 1\)\."),
        ("simclr", {"batch_size": 9, "dim": 16, "temperature": math.nan}, r"not 16 and nan; leave them out"),
    ],
)
def test_chance_says_what_it_needs(method, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        diagnostics.chance_loss(method, **arguments)
