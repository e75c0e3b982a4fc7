"""Figures of predictions: the alternative text holds the numbers, and points stand where they should."""

import math

import numpy as np
import pytest
import torch

from sslcourse import plots
from sslcourse.evaluation import calibration


def test_probabilities(shown):
    plots.probabilities(torch.tensor([0.3, 0.6, 0.1]), ["cat", "dog", "fish"], title="How sure", truth=2)
    assert shown[0].alt == "How sure. Probabilities over 3 classes: highest dog with 60 percent; the true class, fish, gets 10."


def test_reliability_tells_confidence_accuracy_and_error(shown):
    found = calibration(torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1]]).log(), torch.tensor([0, 1, 0]))
    plots.reliability({"mine": found}, title="Sure")
    assert shown[0].alt == (
        "Sure. Accuracy against confidence; on the diagonal they agree: mine is 70.0 percent sure and 66.7 percent right, expected "
        "calibration error 10.0; its surest bin, with 33 percent of the images, is 90 percent sure and 100 percent right."
    )
    with pytest.raises(ValueError, match="no calibration"):
        plots.reliability({}, title="T")


def test_reliability_leaves_out_empty_bins_and_names_each_classifier(shown):
    logits, labels = torch.eye(3)[[0, 1, 1, 2, 0, 0]], torch.tensor([0, 0, 1, 1, 2, 2])
    both = {"one": calibration(logits, labels), "two": calibration(3 * logits.roll(1, 0), labels, bins=5)}
    plots.reliability(both, title="T")
    top, below = shown[0].axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == [f"{n}: ECE {100 * c.ece:.1f} %" for n, c in both.items()]
    for points, found in zip(top.collections, both.values(), strict=True):
        seen = [k for k, count in enumerate(found.bin_count) if count]
        expected = [[100 * found.bin_confidence[k], 100 * found.bin_accuracy[k]] for k in seen]
        np.testing.assert_allclose(np.asarray(points.get_offsets()), expected)
    assert [steps.get_data().values.sum() for steps in below.patches] == pytest.approx([100, 100])


@pytest.mark.parametrize(
    ("coverage", "precision", "told"),
    [
        ([0.9, 0.5, 0.25], [0.6, 0.7, 0.9], "precision goes from 60.0 to 90.0 percent; at 0.95, nearest to the chosen 0.94, coverage 25.0"),
        ([0.9, 0.1, 0.0], [0.6, 0.8, math.nan], "precision goes from 60.0 to 80.0 percent at 0.8;"),
        ([0.0] * 3, [math.nan] * 3, "precision is never known;"),
    ],
)
def test_coverage_and_precision(shown, coverage, precision, told):
    plots.coverage_and_precision(torch.tensor([0.5, 0.8, 0.95]), coverage, np.array(precision), title="Sure", chosen=0.94)
    start = f"from 0.5 to 0.95: coverage goes from {100 * coverage[0]:.1f} to {100 * coverage[-1]:.1f} percent; "
    assert start + told in shown[0].alt


@pytest.mark.parametrize("values", [([], [], []), ([0.5], [1.0], [1.0, 0.5]), ([0.5, 0.6], [1.0], [1.0])])
def test_thresholds_without_numbers_are_refused(values, shown):
    with pytest.raises(ValueError, match="coverage"):
        plots.coverage_and_precision(*values, title="T", chosen=0.5)
    assert not shown
