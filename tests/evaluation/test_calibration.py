"""Calibration: bins by hand and by another computation, classifiers that promise too much, and the temperature that repairs them."""

import math

import pytest
import torch

from sslcourse import evaluation
from sslcourse.evaluation import calibration, fit_temperature


def calibrated(n, seed=0, classes=10):
    """Logits and labels drawn from their own softmax: a classifier that is right exactly as often as it says."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def test_an_edge_belongs_to_the_bin_below_it_and_the_temperature_stops_at_its_bounds():
    assert calibration(torch.zeros(2, 2), torch.tensor([0, 1]), bins=2).bin_count == (2, 0)  # both are 0.5 sure
    assert calibration(torch.tensor([[900.0, 0.0]]), torch.tensor([0])).bin_count[-1] == 1  # wholly sure
    eye = torch.eye(5)
    assert fit_temperature(10 * eye, torch.arange(5)) == pytest.approx(0.05)
    assert fit_temperature(10 * eye, (torch.arange(5) + 1) % 5) == pytest.approx(20)  # always wrong: best to say nothing
    assert 0.05 <= fit_temperature(torch.zeros(6, 3), torch.arange(6) % 3) <= 20


@pytest.mark.parametrize(("bins", "scale"), [(1, 1.0), (7, 0.3), (10, 5.0)])
def test_against_another_computation(bins, scale):
    logits, labels = calibrated(3000, seed=bins)
    p = torch.softmax(scale * logits.double(), 1).numpy()
    sure, right, ece = p.max(1), p.argmax(1) == labels.numpy(), 0.0
    found = calibration(scale * logits, labels, bins=bins)
    for m in range(bins):
        inside = (sure > m / bins) & (sure <= (m + 1) / bins)
        means = (sure[inside].mean(), right[inside].mean()) if inside.any() else (math.nan, math.nan)
        assert (found.bin_confidence[m], found.bin_accuracy[m]) == pytest.approx(means, nan_ok=True) and found.bin_count[m] == inside.sum()
        ece += inside.mean() * abs(means[1] - means[0]) if inside.any() else 0
    assert found.ece == pytest.approx(ece) and sum(found.bin_count) == 3000
    assert (found.mean_confidence, found.accuracy) == pytest.approx((sure.mean(), right.mean()))
    assert found.overconfidence == pytest.approx(sure.mean() - right.mean())
    result = evaluation.Result(scale * logits, labels, [])
    assert calibration(result, bins=bins).ece == found.ece and fit_temperature(result) == fit_temperature(scale * logits, labels)


@pytest.mark.parametrize("exaggeration", [0.2, 1.0, 10.0])
def test_the_temperature_undoes_an_exaggeration_on_other_images_too(exaggeration):
    logits, labels = calibrated(40_000, seed=3)
    logits = exaggeration * logits
    found = fit_temperature(logits[::2], labels[::2])
    assert found == pytest.approx(exaggeration, rel=0.05)
    assert calibration(logits[1::2] / found, labels[1::2]).ece < 0.02


@pytest.mark.parametrize("function", [calibration, fit_temperature])
@pytest.mark.parametrize(("logits", "labels", "told"), [
    (torch.zeros(3, 2), torch.zeros(4), "Logits"), (torch.zeros(3, 1), torch.zeros(3), "Logits"),
    (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "NaN or inf"), (torch.zeros(2, 2), torch.tensor([0, 2]), "Labels"),
])  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(function, logits, labels, told):
    with pytest.raises(ValueError, match=told):
        function(logits, labels)
    with pytest.raises(ValueError, match="bins"):
        calibration(torch.zeros(3, 2), torch.zeros(3), bins=0)
