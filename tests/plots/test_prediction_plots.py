# ruff: noqa: F811
"""Figures of predictions: the alternative text holds the numbers, names stay apart, and what cannot be drawn is refused in a sentence."""

import math

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pytest
import torch
from test_plots import alt, shown  # noqa: F401

from sslcourse import evaluation, plots
from sslcourse.evaluation.calibration import calibration
from sslcourse.plots import predictions as prediction_plots

NAMES = ["cat", "dog", "fish"]


def result(rows, labels=(0, 0, 1, 1, 2, 2)):
    """A Result whose predictions are these."""
    return evaluation.Result(5.0 * torch.eye(3)[list(rows)], torch.tensor(labels), NAMES)


FIRST, SECOND = result([0, 1, 1, 2, 0, 0]), result([0, 0, 1, 1, 2, 1])


@pytest.fixture
def figures(monkeypatch):
    """The figures themselves, before they are closed."""
    kept = []
    monkeypatch.setattr(prediction_plots, "show", lambda figure, alt: kept.append(figure))
    yield kept
    plots.plt.close("all")


# --- reliability ----------------------------------------------------------------------------------------------------------------------


def test_reliability_tells_confidence_accuracy_and_error(shown):
    found = calibration(torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1]]).log(), torch.tensor([0, 1, 0]))
    prediction_plots.reliability({"mine": found}, title="Sure")
    assert alt(shown) == (
        "Sure. Accuracy against confidence; on the diagonal they agree: mine is 70.0 percent sure and 66.7 percent right, expected "
        "calibration error 10.0; its surest bin, with 33 percent of the images, is 90 percent sure and 100 percent right."
    )


def test_reliability_leaves_out_empty_bins_and_names_each_classifier(figures):
    both = {"one": calibration(FIRST), "two": calibration(3 * SECOND.logits, SECOND.labels, bins=5)}
    prediction_plots.reliability(both, title="T")
    top, below = figures[0].axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == [f"{n}: ECE {100 * c.ece:.1f} %" for n, c in both.items()]
    for points, found in zip(top.collections, both.values(), strict=True):
        x, y = np.asarray(points.get_offsets()).T
        seen = [k for k, count in enumerate(found.bin_count) if count]
        np.testing.assert_allclose(x, [100 * found.bin_confidence[k] for k in seen])
        np.testing.assert_allclose(y, [100 * found.bin_accuracy[k] for k in seen])
    assert [steps.get_data().values.sum() for steps in below.patches] == pytest.approx([100, 100])


def test_no_calibration_is_refused(shown):
    with pytest.raises(ValueError, match="no calibration"):
        prediction_plots.reliability({}, title="T")


# --- thresholds -----------------------------------------------------------------------------------------------------------------------


def test_coverage_and_precision_at_the_chosen_threshold(shown):
    prediction_plots.coverage_and_precision(
        torch.tensor([0.5, 0.8, 0.95]), [0.9, 0.5, 0.25], np.array([0.6, 0.7, 0.9]), title="Sure", chosen=0.94
    )
    assert alt(shown) == (
        "Sure. Coverage and precision against the threshold, from 0.5 to 0.95: coverage goes from 90.0 to 25.0 percent; "
        "precision goes from 60.0 to 90.0 percent; at 0.95, nearest to the chosen 0.94, coverage 25.0 and precision 90.0."
    )


def test_a_precision_of_nothing_is_said(shown):
    prediction_plots.coverage_and_precision([0.5, 0.9, 1.0], [0.9, 0.1, 0.0], [0.6, 0.8, math.nan], title="T")
    assert alt(shown).endswith("precision goes from 60.0 to 80.0 percent at 0.9.")
    shown.clear()
    prediction_plots.coverage_and_precision([0.5, 0.9], [0.0, 0.0], [math.nan, math.nan], title="T")
    assert alt(shown).endswith("precision is never known.")


@pytest.mark.parametrize("values", [([], [], []), ([0.5], [1.0], [1.0, 0.5]), ([0.5, 0.6], [1.0], [1.0])])
def test_thresholds_without_numbers_are_refused(values, shown):
    with pytest.raises(ValueError, match="needs its coverage and its precision, not thresholds"):
        prediction_plots.coverage_and_precision(*values, title="T")
    assert not shown


# --- confusions -----------------------------------------------------------------------------------------------------------------------


def test_the_difference_of_two_confusions(shown):
    prediction_plots.confusion_difference(FIRST, SECOND, title="Better", names=["before", "after"])
    assert alt(shown) == (
        "Better. Confusion matrix of after less that of before, in points of each true class: after gets 3 classes better than before and "
        "0 worse; most gained by cat, +50 points, least by cat, +50; fish taken for dog 50 points more often; fish taken for cat 100 "
        "points less often."
    )


def test_signs_are_written_and_the_first_is_subtracted_from_the_second(figures):
    prediction_plots.confusion_difference(FIRST, SECOND, title="T", names=["a", "b"])
    axis = figures[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    assert texts[0, 2] == "−100" and texts[2, 2] == "+50" and (1, 2) in texts and (0, 1) not in texts
    image = axis.images[0]
    np.testing.assert_allclose(image.get_array()[2], [-100, 50, 50])
    assert image.norm.vmin == -image.norm.vmax  # no change is white


def test_no_change_is_told_as_none(shown):
    prediction_plots.confusion_difference(FIRST, FIRST, title="T", names=["a", "b"])
    assert "b gets 0 classes better than a and 0 worse" in alt(shown) and "often" not in alt(shown)


@pytest.mark.parametrize(
    ("second", "names", "told"),
    [
        (result([0, 0, 1, 1, 2, 2], labels=(0, 0, 1, 1, 2, 1)), ["a", "b"], "same images"),
        (result([0, 0], labels=(0, 1)), ["a", "b"], "same images"),
        (evaluation.Result(SECOND.logits, SECOND.labels, ["x", "y", "z"]), ["a", "b"], "same classes"),
        (SECOND, ["a"], r"names are those of the two classifiers, not \['a'\]"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(second, names, told, shown):
    with pytest.raises(ValueError, match=told):
        prediction_plots.confusion_difference(FIRST, second, title="T", names=names)
    assert not shown


def test_confusions_over_time(shown):
    early, late = np.array([[2, 2, 0], [3, 1, 0], [0, 0, 0]]), torch.tensor([[4, 0, 0], [0, 4, 0], [0, 0, 0]])
    prediction_plots.confusions_over_time([early, late], ["step 0", "step 9"], NAMES, title="Learning")
    assert alt(shown) == (
        "Learning. 2 confusion matrices of 3 classes, averaged over classes: step 0: 38 percent right, most often dog taken for cat, 75 "
        "percent; step 9: 100 percent right."
    )


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (5, 2, 3), (8, 2, 4), (9, 3, 3)])
def test_panels_fill_their_rows(figures, n, rows, columns):
    prediction_plots.confusions_over_time([np.eye(3)] * n, [str(i) for i in range(n)], NAMES, title="T")
    panels = [axis for axis in figures[0].axes if axis.get_title(loc="left") or axis.get_title() or not axis.axison]
    grid = figures[0].axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, columns) and sum(axis.axison for axis in panels) == n


@pytest.mark.parametrize(
    ("matrices", "titles", "told"),
    [([], [], "there has to be one"), ([np.eye(3)], ["a", "b"], "1 matrices, 2 titles"), ([np.eye(2)], ["a"], "each of 3 classes")],
)
def test_matrices_that_cannot_be_shown_are_refused(matrices, titles, told, shown):
    with pytest.raises(ValueError, match=told):
        prediction_plots.confusions_over_time(matrices, titles, NAMES, title="T")


# --- comparisons ----------------------------------------------------------------------------------------------------------------------

DIFFERENCES = {"a": (5.0, 1.0, 9.0), "b": (-1.0, -4.0, 2.0), "c": (-3.0, -4.0, -2.0), "d": (2.0, math.nan, math.nan)}


def test_forest_says_which_intervals_hold_zero(shown):
    prediction_plots.forest(DIFFERENCES, title="Gains", xlabel="points")
    assert alt(shown) == (
        "Gains. points, with intervals: a +5.0, +1.0 to +9.0, without zero; b -1.0, -4.0 to +2.0, with zero; "
        "c -3.0, -4.0 to -2.0, without zero; d +2.0, interval unknown."
    )


def test_forest_knows_no_minus_zero(shown):
    prediction_plots.forest({"a": (-0.04, -1.0, -0.01)}, title="T", xlabel="points")
    assert "a +0.0, -1.0 to +0.0, without zero" in alt(shown)


def test_forest_marks_them_by_more_than_a_colour(figures):
    prediction_plots.forest(DIFFERENCES, title="T", xlabel="points")
    axis = figures[0].axes[0]
    markers = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() in ("o", "s")}
    assert [markers[i].get_markerfacecolor() == "white" for i in range(4)] == [False, True, False, True]
    assert [markers[i].get_marker() for i in range(4)] == ["o", "s", "s", "o"]
    assert sum(line.get_marker() == "|" for line in axis.lines) == 3  # no interval where none is known
    assert [label.get_text() for label in axis.get_yticklabels()] == list(DIFFERENCES)
    assert axis.get_ylim() == (3.5, -0.5)  # the first row on top


@pytest.mark.parametrize("row", [(math.nan, 0, 1), (2, 0, 1), (-1, 0, 1), (1, 2, 0)])
def test_a_difference_outside_its_interval_is_refused(row, shown):
    with pytest.raises(ValueError, match="'x' needs a finite difference that lies in its interval"):
        prediction_plots.forest({"x": row}, title="T", xlabel="points")
    with pytest.raises(ValueError, match="no difference"):
        prediction_plots.forest({}, title="T", xlabel="points")


POINTS = {"supervised": (0.4, 50.0, 2.0), "SimCLR, frozen": (2.0, 70.0, 1.0), "SimCLR, fine-tuned": (2.2, 70.5, math.nan)}


def test_cost_against_accuracy(shown):
    prediction_plots.cost_against_accuracy(POINTS, title="Worth it")
    assert alt(shown) == (
        "Worth it. Accuracy against minutes of training: supervised 50.0 ± 2.0 percent in 0.4 min; SimCLR, frozen 70.0 ± 1.0 percent "
        "in 2 min; SimCLR, fine-tuned 70.5 percent in 2.2 min."
    )


@pytest.mark.parametrize("spread", [1.0, 1.05, 3.0])
def test_names_of_points_stay_apart_and_inside(figures, spread):
    crowd = {f"method number {i}": (2.0 * spread**i, 60 + 3 * i % 8, 0.2) for i in range(8)}
    prediction_plots.cost_against_accuracy(crowd, title="T")
    figures[0].canvas.draw()
    axis = figures[0].axes[0]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 8 and sorted(text.get_text() for text in axis.texts) == sorted(crowd)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axis.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_names_that_have_no_room_are_written_all_the_same(figures):
    prediction_plots.cost_against_accuracy({f"a rather long name {i}": (2.0, 60.0, 1.0) for i in range(40)}, title="T")
    assert len(figures[0].axes[0].texts) == 40


@pytest.mark.parametrize("row", [(0.0, 50.0, 1.0), (-1.0, 50.0, 1.0), (math.inf, 50.0, 1.0), (math.nan, 50.0, 1.0), (1.0, math.nan, 1.0)])
def test_points_that_have_no_place_are_refused(row, shown):
    with pytest.raises(ValueError, match="'x' needs more than 0 minutes"):
        prediction_plots.cost_against_accuracy({"x": row}, title="T")
    with pytest.raises(ValueError, match="no point"):
        prediction_plots.cost_against_accuracy({}, title="T")


def test_one_point_has_a_figure_too(shown):
    prediction_plots.cost_against_accuracy({"only": (1.0, 50.0, 0.0)}, title="T")
    assert "only 50.0 ± 0.0 percent in 1 min" in alt(shown)
