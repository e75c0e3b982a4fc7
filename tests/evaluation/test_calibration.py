"""Calibration: bins by hand and by another computation, classifiers that promise too much, and the temperature that repairs them."""

import math

import numpy as np
import pytest
import torch

from sslcourse import evaluation
from sslcourse.evaluation.calibration import TEMPERATURES, calibration, fit_temperature


def logits_of(confidences, classes=4):
    """Logits whose largest probability, that of class 0, is each of these."""
    p = torch.tensor(confidences, dtype=torch.double).unsqueeze(1)
    rest = ((1 - p) / (classes - 1)).expand(-1, classes - 1)
    return torch.cat([p, rest], 1).log()


def calibrated(n, seed=0, scale=2.0, classes=10):
    """Logits and labels drawn from their own softmax: a classifier that is right exactly as often as it says."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def test_four_images_by_hand():
    found = calibration(logits_of([0.55, 0.55, 0.85, 0.95]), torch.tensor([0, 1, 0, 0]))
    assert found.bin_count == (0, 0, 0, 0, 0, 2, 0, 0, 1, 1)
    assert found.bin_accuracy[5] == 0.5 and found.bin_accuracy[8] == found.bin_accuracy[9] == 1
    assert found.bin_confidence[5] == pytest.approx(0.55) and math.isnan(found.bin_confidence[0]) and math.isnan(found.bin_accuracy[0])
    assert found.ece == pytest.approx((2 * 0.05 + 0.15 + 0.05) / 4)
    assert (found.accuracy, found.n) == (0.75, 4) and found.mean_confidence == pytest.approx(2.9 / 4)
    assert found.overconfidence == pytest.approx(2.9 / 4 - 0.75)
    assert found.nll == pytest.approx(-(math.log(0.55) + math.log(0.15) + math.log(0.85) + math.log(0.95)) / 4)


def test_an_edge_belongs_to_the_bin_below_it():
    found = calibration(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), bins=2)  # both are 0.5 sure
    assert found.bin_count == (2, 0)
    assert calibration(torch.tensor([[900.0, 0.0]]), torch.tensor([0])).bin_count[-1] == 1  # wholly sure


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_against_another_computation(bins, scale):
    logits, labels = calibrated(3000, seed=bins)
    logits = logits * scale
    p = torch.softmax(logits.double(), 1).numpy()
    sure, right = p.max(1), p.argmax(1) == labels.numpy()
    ece = 0.0
    for m in range(bins):
        inside = (sure > m / bins) & (sure <= (m + 1) / bins)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    found = calibration(logits, labels, bins=bins)
    assert found.ece == pytest.approx(ece, abs=1e-12)
    assert found.nll == pytest.approx(-np.log(p[np.arange(3000), labels.numpy()]).mean())
    assert sum(found.bin_count) == 3000


def test_one_bin_knows_only_the_mean():
    logits, labels = calibrated(500)
    found = calibration(5 * logits, labels, bins=1)
    assert found.ece == pytest.approx(abs(found.overconfidence))


def test_who_says_what_is_true_is_calibrated_and_who_exaggerates_is_not():
    logits, labels = calibrated(20_000)
    honest, loud, shy = (calibration(scale * logits, labels) for scale in (1.0, 3.0, 0.3))
    assert honest.ece < 0.015 < 0.1 < min(loud.ece, shy.ece)
    assert loud.overconfidence > 0.1 and shy.overconfidence < -0.1 and abs(honest.overconfidence) < 0.01
    assert honest.accuracy == loud.accuracy == shy.accuracy
    assert honest.nll < min(loud.nll, shy.nll)


def test_a_result_is_taken_as_its_logits_and_labels():
    logits, labels = calibrated(200)
    result = evaluation.Result(logits, labels, [str(c) for c in range(10)])
    assert calibration(result) == calibration(logits, labels) or any(map(math.isnan, calibration(result).bin_accuracy))
    assert calibration(result, bins=5).ece == calibration(logits, labels, 5).ece
    assert fit_temperature(result) == fit_temperature(logits, labels)


# --- temperature ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exaggeration", [0.2, 1.0, 4.0, 10.0])
def test_the_temperature_undoes_an_exaggeration(exaggeration):
    logits, labels = calibrated(20_000, seed=3)
    found = fit_temperature(exaggeration * logits, labels)
    assert found == pytest.approx(exaggeration, rel=0.05)
    assert calibration(exaggeration * logits / found, labels).ece < 0.015


def test_the_temperature_is_where_the_slope_is_zero():
    logits, labels = calibrated(2000, seed=4)
    logits = 3 * logits
    found = fit_temperature(logits, labels)
    slope = [torch.nn.functional.cross_entropy(logits.double() / (found * f), labels).item() for f in (0.999, 1.0, 1.001)]
    assert slope[1] <= min(slope) + 1e-9
    log_t = torch.tensor(math.log(found), dtype=torch.double, requires_grad=True)
    torch.nn.functional.cross_entropy(logits.double() / log_t.exp(), labels).backward()
    assert abs(log_t.grad.item()) < 1e-5


def test_it_holds_on_images_that_it_was_not_fitted_on():
    logits, labels = calibrated(8000, seed=5)
    logits = 4 * logits
    found = fit_temperature(logits[:4000], labels[:4000])
    before, after = (calibration(logits[4000:] / t, labels[4000:]) for t in (1.0, found))
    assert after.ece < 0.3 * before.ece and after.nll < before.nll and after.accuracy == before.accuracy


def test_without_a_mistake_or_without_a_hint_it_stops_at_its_bounds():
    eye = torch.eye(5)
    assert fit_temperature(10 * eye, torch.arange(5)) == pytest.approx(TEMPERATURES[0])
    assert fit_temperature(10 * eye, (torch.arange(5) + 1) % 5) == pytest.approx(TEMPERATURES[1])  # always wrong: best to say nothing
    assert TEMPERATURES[0] <= fit_temperature(torch.zeros(6, 3), torch.arange(6) % 3) <= TEMPERATURES[1]


def test_the_huge_logits_of_a_probe_are_no_trouble():
    logits, labels = calibrated(1000, seed=6)
    wild = logits.clone()
    wild[:, -1] = -200.0  # a class that the probe has never seen
    assert math.isfinite(fit_temperature(1000 * wild, labels)) and math.isfinite(calibration(1000 * wild, labels).nll)


# --- what is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [calibration, fit_temperature])
@pytest.mark.parametrize(
    ("logits", "labels", "told"),
    [
        (torch.zeros(3, 2), torch.zeros(4), r"not \(3, 2\) and \(4,\)"),
        (torch.zeros(0, 2), torch.zeros(0), "N at least 1"),
        (torch.zeros(3, 1), torch.zeros(3), "C at least 2"),
        (torch.zeros(3), torch.zeros(3), "Logits are"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "NaN or inf"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), r"must lie in 0\.\.1; these lie in 0\.\.2"),
        (torch.zeros(2, 2), torch.tensor([-1, 0]), r"these lie in -1\.\.0"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(function, logits, labels, told):
    with pytest.raises(ValueError, match=told):
        function(logits, labels)


def test_logits_alone_and_no_bins_are_refused():
    with pytest.raises(TypeError, match="an evaluation.Result, or logits and labels, not one Tensor"):
        calibration(torch.zeros(3, 2))
    for bins in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"at least 1, not {bins}"):
            calibration(torch.zeros(3, 2), torch.zeros(3), bins=bins)
