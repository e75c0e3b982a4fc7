"""Curves: the alternative text tells where each goes, what is not finite is said, and ticks are at whole epochs."""

import math
import warnings

import matplotlib.pyplot as plt
import pytest

from sslcourse import plots
from sslcourse.training import History


def history(rows):
    return History(rows=[{"epoch": i + 1, **row} for i, row in enumerate(rows)])


def test_lines_tell_where_they_go(shown):
    plots.lines([1, 10, 100], {"ours": [0.2, 0.9, 0.75], "theirs": [0.1, 0.3, 0.5]}, title="It helps", xlabel="labels", ylabel="accuracy",
                errors={"ours": [0.1, math.nan, 0.1]}, chance=0.125, log_x=True, ylim=(0, 1))  # fmt: skip
    assert shown[0].alt == (
        "It helps. accuracy against labels, from 1 to 100: ours goes from 0.2 to 0.75 (least 0.2, most 0.9); "
        "theirs goes from 0.1 to 0.5 (least 0.1, most 0.5); guessing is at 0.125."
    )


def test_lines_with_their_own_x(shown):
    plots.lines({"ours": [2, 4], "theirs": [2, 8]}, {"ours": [0.5, 0.75], "theirs": [0.25, math.inf]}, title="T", xlabel="x", ylabel="y")
    assert shown[0].alt == (
        "T. y against x, from 2 to 8: ours goes from 0.5 to 0.75 (least 0.5, most 0.75, x 2 to 4); "
        "theirs goes from 0.25 to 0.25 (least 0.25, most 0.25, not finite from x 8)."
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0, math.nan, math.inf], "loss goes from 1 to 1 (least 1, most 1, not finite from epoch 2)"),
        ([math.nan, 2.0, 3.0], "loss goes from 2 to 3 (least 2, most 3, not finite from epoch 1)"),
        ([math.nan] * 3, "loss is never finite"),
    ],
)
def test_lines_that_are_not_finite(shown, values, told):
    plots.lines([1, 2, 3], {"loss": values}, title="T", xlabel="epoch", ylabel="loss")
    assert told in shown[0].alt


@pytest.mark.parametrize(("x", "whole"), [([1, 2, 3], True), ([0.1, 0.2, 0.9], False)])
def test_lines_on_a_given_axis_are_left_to_its_owner_and_whole_numbers_get_whole_ticks(shown, x, whole):
    figure, axis = plt.subplots()
    plots.lines(x, {"a": [0.1, 0.2, 0.3], "b": [1, 2, 3]}, title="t", xlabel="pass", ylabel="y", ax=axis)
    assert not shown and len(axis.lines) == 2 and axis.get_legend() is not None
    assert all(float(tick).is_integer() for tick in axis.get_xticks()) == whole
    plt.close(figure)


@pytest.mark.parametrize(("x", "told"), [({"b": [1]}, "'a' has 2 values and 0 x"), ([1, 2, 3], "'a' has 2 values and 3 x")])
def test_lines_without_their_x_are_refused(shown, x, told):
    with pytest.raises(ValueError, match=told):
        plots.lines(x, {"a": [1, 2]}, title="T", xlabel="x", ylabel="y")
    assert not shown


def test_training_curves(shown):
    columns = ("loss", "validation_loss", "validation_accuracy")
    rows = [dict(zip(columns, row, strict=True)) for row in [(2.5, 2.25, 0.25), (1.5, 1.75, 0.5), (1.25, 2.0, 0.375)]]
    plots.training_curves(history(rows), title="Down", num_classes=4)
    assert shown[0].alt == (
        "Down. Two panels over 3 epochs: training loss goes from 2.50 to 1.25, lowest 1.25; validation loss goes from 2.25 to 2.00, "
        "lowest 1.75; the loss of guessing is 1.39; guessing has 25 percent; validation accuracy ends at 37.5 percent, the best epoch "
        "had 50.0."
    )
    assert [line.get_ydata()[0] for line in shown[0].axes[1].lines if line.get_linestyle() == ":"] == [25]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.training_curves(history([dict.fromkeys(columns, math.nan)]), title="Broken", num_classes=4)
    assert "training loss is never finite" in shown[1].alt


PRETRAINED = [
    {"loss": 5.5, "chance_loss": 5.54, "knn_accuracy": math.nan, "feature_std": math.nan, "healthy_std": 0.125},
    {"loss": 4.0, "chance_loss": 5.54, "knn_accuracy": 0.25, "feature_std": 0.0625, "healthy_std": 0.125, "rotation_accuracy": 0.5},
    {"loss": 4.5, "chance_loss": 5.54, "knn_accuracy": math.nan, "feature_std": math.nan, "healthy_std": 0.125},
    {"loss": 3.5, "chance_loss": 5.54, "knn_accuracy": 0.5, "feature_std": 0.1, "healthy_std": 0.125, "feature_rank": 12.0},
]


def test_pretraining_curves(shown):
    plots.pretraining_curves(history(PRETRAINED), title="It learns", num_classes=10)
    assert shown[0].alt == (
        "It learns. 4 panels over 4 epochs. Loss: training loss goes from 5.5 to 3.5 (least 3.5, most 5.5); chance is 5.54. "
        "Accuracy, %: kNN validation goes from 25 to 50 (least 25, most 50, epoch 2 to 4); "
        "rotation goes from 50 to 50 (least 50, most 50, epoch 2 to 2); "
        "guessing for kNN validation has 10; guessing for rotation has 25. "
        "Standard deviation: feature spread goes from 0.0625 to 0.1 (least 0.0625, most 0.1, epoch 2 to 4); healthy is 0.125. "
        "Effective rank: feature rank goes from 12 to 12 (least 12, most 12, epoch 4 to 4)."
    )
    ticks = [tick for axis in shown[0].axes for tick in axis.get_xticks()]
    assert len(ticks) >= 8 and all(float(tick).is_integer() for tick in ticks)
    accuracy = shown[0].axes[1]
    assert [line.get_ydata()[0] for line in accuracy.lines if line.get_linestyle() == ":"] == [10, 25]
    assert [len(line.get_xdata()) for line in accuracy.lines][:2] == [2, 1]  # points that were looked at are joined


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [{"loss": 2.0}, {"loss": math.nan}, {"loss": math.inf}],
            "1 panel over 3 epochs. Loss: training loss goes from 2 to 2 (least 2, most 2, not finite from epoch 2).",
        ),
        # a loss that was not taken did not break
        ([{"knn_accuracy": 0.125}, {"loss": 2.0}], "training loss goes from 2 to 2 (least 2, most 2, epoch 2 to 2)"),
        ([{"loss": math.nan, "feature_rank": math.nan}], "training loss is never finite. Effective rank: feature rank is never finite."),
    ],
)
def test_pretraining_curves_leave_out_what_was_not_measured(shown, rows, told):
    plots.pretraining_curves(history(rows), title="T", num_classes=10)
    assert told in shown[0].alt


def test_a_history_of_something_else_is_refused(shown):
    with pytest.raises(ValueError, match="no column of pretraining"):
        plots.pretraining_curves(history([{"validation_loss": 1.0}]), title="T", num_classes=10)
    assert not shown
