"""Methods beside each other: bars, intervals about zero, and points whose names stay apart."""

import math

import pytest

from sslcourse import plots


def test_bars(shown):
    plots.bars({"probe": 81.25, "kNN": 70.0}, title="Bars", ylabel="accuracy, %", errors={"probe": 1.5, "kNN": math.nan}, chance=10)
    plots.bars({"one": 50.0, "lost": math.nan}, title="T", ylabel="y")
    assert shown[0].alt == "Bars. accuracy, %: probe 81.2 ± 1.5; kNN 70.0; guessing 10.0."
    assert shown[1].alt == "T. y: one 50.0; lost nan."
    (axis,) = shown[0].axes
    assert axis.texts[-1].get_text().strip() == "guessing, 10" and axis.get_ylim()[0] > axis.texts[-1].get_position()[1] > 1.5


DIFFERENCES = {"a": (5.0, 1.0, 9.0), "b": (-1.0, -4.0, 2.0), "c": (-0.04, -4.0, -0.01), "d": (2.0, math.nan, math.nan)}


def test_forest_says_and_marks_which_intervals_hold_zero(shown):
    plots.forest(DIFFERENCES, title="Gains", xlabel="points")
    assert shown[0].alt == (
        "Gains. points, with intervals: a +5.0, +1.0 to +9.0, without zero; b -1.0, -4.0 to +2.0, with zero; "
        "c +0.0, -4.0 to +0.0, without zero; d +2.0, interval unknown."
    )
    (axis,) = shown[0].axes
    markers = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() in ("o", "s")}
    assert [markers[i].get_markerfacecolor() == "white" for i in range(4)] == [False, True, False, True]
    assert [markers[i].get_marker() for i in range(4)] == ["o", "s", "s", "o"]
    assert sum(line.get_marker() == "|" for line in axis.lines) == 3  # no interval where none is known
    assert [label.get_text() for label in axis.get_yticklabels()] == list(DIFFERENCES) and axis.get_ylim() == (3.5, -0.5)


POINTS = {"supervised": (0.4, 50.0, 2.0), "SimCLR, frozen": (2.0, 70.0, 1.0), "SimCLR, fine-tuned": (2.2, 70.5, math.nan)}


def test_cost_against_accuracy(shown):
    plots.cost_against_accuracy(POINTS, title="Worth it")
    plots.cost_against_accuracy({"only": (1.0, 50.0, 0.0)}, title="T")
    assert shown[0].alt == (
        "Worth it. Accuracy against minutes of training: supervised 50.0 ± 2.0 percent in 0.4 min; SimCLR, frozen 70.0 ± 1.0 percent "
        "in 2 min; SimCLR, fine-tuned 70.5 percent in 2.2 min."
    )
    assert "only 50.0 ± 0.0 percent in 1 min" in shown[1].alt


@pytest.mark.parametrize("spread", [1.0, 1.05, 3.0])
def test_names_of_points_stay_apart_and_inside(shown, spread):
    crowd = {f"method number {i}": (2.0 * spread**i, 60 + 3 * i % 8, 0.2) for i in range(8)}
    plots.cost_against_accuracy(crowd, title="T")
    shown[0].figure.canvas.draw()
    (axis,) = shown[0].axes
    boxes, frame = [text.get_window_extent() for text in axis.texts], axis.get_window_extent()
    assert sorted(text.get_text() for text in axis.texts) == sorted(crowd)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_names_that_have_no_room_are_written_all_the_same(shown):
    plots.cost_against_accuracy({f"a rather long name {i}": (2.0, 60.0, 1.0) for i in range(40)}, title="T")
    assert len(shown[0].axes[0].texts) == 40


@pytest.mark.parametrize("rows", [{}, {"x": (math.nan, 0, 1)}, {"x": (2, 0, 1)}, {"x": (1, 2, 0)}])
def test_differences_outside_their_interval_are_refused(rows, shown):
    with pytest.raises(ValueError, match="difference"):
        plots.forest(rows, title="T", xlabel="points")
    assert not shown


@pytest.mark.parametrize("rows", [{}, {"x": (0.0, 50.0, 1.0)}, {"x": (math.inf, 50.0, 1.0)}, {"x": (1.0, math.nan, 1.0)}])
def test_points_that_have_no_place_are_refused(rows, shown):
    with pytest.raises(ValueError, match="no point|'x'.*minutes"):
        plots.cost_against_accuracy(rows, title="T")
    assert not shown
