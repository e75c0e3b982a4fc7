"""Figures: each function shows one picture, whose alternative text holds the numbers, and closes it."""

import base64
import html
import math
import re
import warnings

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from sslcourse import augment, evaluation, plots
from sslcourse.training import History


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, in order; afterwards no figure is left open."""
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw=False: displayed.append(data))
    plt.close("all")
    yield displayed
    assert plt.get_fignums() == []


def alt(shown):
    """The alternative text of the one picture, as a reader hears it."""
    assert len(shown) == 1
    code = shown[0]["text/html"]
    found = re.fullmatch(r'<img alt="([^"]*)" style="[^"]*" src="data:image/png;base64,([^"]*)">', code)
    assert found, code[:200]
    assert base64.b64decode(found[2]).startswith(b"\x89PNG")
    text = html.unescape(found[1])
    assert shown[0]["text/plain"] == f"[figure: {text}]"
    return text


def result():
    logits = torch.tensor([[4.0, 0, 0], [4, 0, 0], [0, 3, 0], [0, 0, 2], [1, 0, 0]])
    return evaluation.Result(logits, torch.tensor([0, 1, 1, 2, 1]), ["cat", "dog", "fish"])


def history(rows):
    return History(rows=[{"epoch": i + 1, **row} for i, row in enumerate(rows)])


PICTURES = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)


def test_images_as_bytes_and_as_views(shown):
    plots.images(PICTURES, ["one", "two", "three", "four\nlines", "five"], columns=2, title="Five things")
    assert alt(shown) == "Five things. 5 images in 3 rows of 2: one; two; three; four, lines; five."
    shown.clear()
    plots.images(augment.evaluation(8)(PICTURES))
    assert alt(shown) == "5 images in 1 row of 5: without titles."


def test_images_that_cannot_be_shown_are_refused(shown):
    with pytest.raises(ValueError, match="no images"):
        plots.images(PICTURES[:0])
    with pytest.raises(ValueError, match="5 images, 2 titles"):
        plots.images(PICTURES, ["a", "b"])
    assert not shown


def test_unnormalise_undoes_the_augmentations_last_step():
    assert torch.equal(plots.unnormalise(augment.evaluation(8)(PICTURES)), PICTURES)
    assert plots.unnormalise(torch.tensor([-99.0, 99, 0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_lines_tell_where_they_go(shown):
    plots.lines([1, 10, 100], {"ours": [0.2, 0.9, 0.75], "theirs": [0.1, 0.3, 0.5]}, title="It helps", xlabel="labels", ylabel="accuracy",
                errors={"ours": [0.1, math.nan, 0.1]}, chance=0.125, log_x=True, ylim=(0, 1))  # fmt: skip
    text = alt(shown)
    assert text.startswith("It helps. accuracy against labels, from 1 to 100: ")
    assert "ours goes from 0.2 to 0.75 (least 0.2, most 0.9)" in text and "theirs goes from 0.1 to 0.5" in text
    assert "guessing is at 0.125" in text


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
    assert told in alt(shown)


@pytest.mark.parametrize(("x", "whole"), [([1, 2, 3], True), ([0.1, 0.2, 0.9], False)])
def test_whole_numbers_get_ticks_at_whole_numbers(x, whole):
    _, axis = plt.subplots()
    plots.lines(x, {"a": [0.1, 0.2, 0.3]}, title="t", xlabel="pass", ylabel="y", ax=axis)
    ticks = axis.get_xticks()
    assert all(float(tick).is_integer() for tick in ticks) == whole
    plt.close(axis.figure)


def test_lines_on_a_given_axis_are_left_to_its_owner(shown):
    figure, axis = plt.subplots()
    plots.lines([1, 2], {"a": [1, 2], "b": [2, 1]}, title="T", xlabel="x", ylabel="y", ax=axis)
    assert not shown and len(axis.lines) == 2 and axis.get_legend() is not None
    plt.close(figure)


def test_many_points(shown):
    plots.lines(range(100), {"a": np.arange(100.0)}, title="T", xlabel="x", ylabel="y")
    assert "a goes from 0 to 99" in alt(shown)


def test_training_curves(shown):
    columns = ("loss", "validation_loss", "validation_accuracy")
    rows = [dict(zip(columns, row, strict=True)) for row in [(2.5, 2.25, 0.25), (1.5, 1.75, 0.5), (1.25, 2.0, 0.375)]]
    plots.training_curves(history(rows), title="Down", num_classes=10)
    text = alt(shown)
    for part in (
        "Down. Two panels over 3 epochs",
        "training loss goes from 2.50 to 1.25, lowest 1.25",
        "validation loss goes from 2.25 to 2.00, lowest 1.75",
        "guessing is 2.30",
        "guessing has 10 percent",
        "ends at 37.5 percent, the best epoch had 50.0",
    ):
        assert part in text


def test_training_curves_of_a_run_that_broke(shown):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.training_curves(history([{"loss": math.nan, "validation_loss": math.nan, "validation_accuracy": math.nan}]), title="Broken")
    assert "training loss is never finite" in alt(shown)


def test_sparse_lines_with_their_own_x(shown):
    series = {"ours": [math.nan, 0.5, math.nan, 0.75], "theirs": [0.25, math.inf], "lost": [math.nan]}
    x = {"ours": [1, 2, 3, 4], "theirs": [2, 8], "lost": [5]}
    plots.lines(x, series, title="T", xlabel="epoch", ylabel="kNN", sparse=True, errors={"ours": [1, 2, 3, 4]}, log_x=True)
    text = alt(shown)
    assert text.startswith("T. kNN against epoch, from 1 to 8: ours goes from 0.5 to 0.75 (least 0.5, most 0.75, epoch 2 to 4); ")
    assert "theirs goes from 0.25 to 0.25 (least 0.25, most 0.25, not finite from epoch 8, epoch 2 to 8)" in text
    assert text.endswith("lost is never finite.")


def test_sparse_points_are_joined(shown):
    figure, axis = plt.subplots()
    values = [0.1, math.nan, 0.3]
    for sparse in (True, False):
        plots.lines([1, 2, 3], {"a": values}, title="T", xlabel="x", ylabel="y", sparse=sparse, ax=axis)
    assert [len(line.get_xdata()) for line in axis.lines] == [2, 3] and not shown
    plt.close(figure)


def test_lines_without_their_x_are_refused(shown):
    for x, told in (({"b": [1]}, "'a' has 2 values and 0 x"), ([1, 2, 3], "'a' has 2 values and 3 x")):
        with pytest.raises(ValueError, match=told):
            plots.lines(x, {"a": [1, 2]}, title="T", xlabel="x", ylabel="y")
    assert not shown


PRETRAINED = [
    {"loss": 5.5, "chance_loss": 5.54, "knn_accuracy": math.nan, "feature_std": math.nan, "healthy_std": 0.125},
    {"loss": 4.0, "chance_loss": 5.54, "knn_accuracy": 0.25, "feature_std": 0.0625, "healthy_std": 0.125, "rotation_accuracy": 0.5},
    {"loss": 4.5, "chance_loss": 5.54, "knn_accuracy": math.nan, "feature_std": math.nan, "healthy_std": 0.125},
    {"loss": 3.5, "chance_loss": 5.54, "knn_accuracy": 0.5, "feature_std": 0.1, "healthy_std": 0.125, "feature_rank": 12.0},
]


def test_pretraining_curves(shown):
    plots.pretraining_curves(history(PRETRAINED), title="It learns", num_classes=10)
    assert alt(shown) == (
        "It learns. 4 panels over 4 epochs. Loss: training loss goes from 5.5 to 3.5 (least 3.5, most 5.5); chance is 5.54. "
        "Accuracy, %: kNN validation goes from 25 to 50 (least 25, most 50, epoch 2 to 4); "
        "rotation goes from 50 to 50 (least 50, most 50, epoch 2 to 2); "
        "guessing for kNN validation has 10; guessing for rotation has 25. "
        "Standard deviation: feature spread goes from 0.0625 to 0.1 (least 0.0625, most 0.1, epoch 2 to 4); healthy is 0.125. "
        "Effective rank: feature rank goes from 12 to 12 (least 12, most 12, epoch 4 to 4)."
    )


def test_epochs_have_ticks_at_whole_numbers(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "show", lambda figure, alt: drawn.append(figure))
    plots.pretraining_curves(history(PRETRAINED), title="T")
    plots.training_curves(history([{"loss": 1.0, "validation_loss": 1.0, "validation_accuracy": 0.5}] * 3), title="T")
    ticks = [tick for figure in drawn for axis in figure.axes for tick in axis.get_xticks()]
    assert len(drawn) == 2 and len(ticks) >= 12 and all(float(tick).is_integer() for tick in ticks)
    plt.close("all")


def test_guessing_is_drawn_where_accuracy_is(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "show", lambda figure, alt: drawn.append(figure))
    plots.pretraining_curves(history(PRETRAINED), title="T", num_classes=10)
    plots.pretraining_curves(history(PRETRAINED), title="T")
    plots.training_curves(history([{"loss": 1.0, "validation_loss": 1.0, "validation_accuracy": 0.5}]), title="T", num_classes=4)
    plots.bars({"a": 50.0, "b": 20.0}, title="T", ylabel="%", chance=10)
    dotted = [[line.get_ydata()[0] for line in figure.axes[1].lines if line.get_linestyle() == ":"] for figure in drawn[:3]]
    assert dotted == [[10.0, 25.0], [25.0], [25.0]]
    (axis,) = drawn[3].axes
    assert axis.texts[-1].get_text().strip() == "guessing, 10" and axis.get_ylim()[0] > axis.texts[-1].get_position()[1] > 1.5
    plt.close("all")


def test_pretraining_curves_leave_out_what_was_not_measured(shown):
    plots.pretraining_curves(history([{"loss": 2.0}, {"loss": math.nan}, {"loss": math.inf}]), title="Broken")
    expected = "1 panel over 3 epochs. Loss: training loss goes from 2 to 2 (least 2, most 2, not finite from epoch 2)."
    assert alt(shown) == f"Broken. {expected}"
    shown.clear()
    plots.pretraining_curves(history([{"knn_accuracy": 0.125}, {"loss": 2.0}]), title="Looked at before training")
    assert "training loss goes from 2 to 2 (least 2, most 2, epoch 2 to 2)" in alt(shown)  # a loss that was not taken did not break
    shown.clear()
    plots.pretraining_curves({"epoch": [1], "loss": [math.nan]}, title="T")
    assert "training loss is never finite" in alt(shown)
    with pytest.raises(ValueError, match="no column of pretraining"):
        plots.pretraining_curves(history([{"validation_loss": 1.0}]), title="T")


def test_matrix(shown):
    values = torch.tensor([[1.0, -0.5, 0.25], [-0.5, 1, 0.25], [0.25, 0.25, 1]], requires_grad=True)
    plots.matrix(values, title="Alike", row_names=list("abc"), column_names=list("abc"), colour_label="similarity")
    expected = "similarity from -0.5 to 1, mean on the diagonal 1, mean off the diagonal 0"
    assert alt(shown) == f"Alike. Matrix of 3 rows and 3 columns: {expected}."
    shown.clear()
    plots.matrix(values.masked_fill(torch.eye(3, dtype=torch.bool), -math.inf), title="T")
    assert alt(shown).endswith("from -0.5 to 0.25, nothing on the diagonal, mean off the diagonal 0; 3 cells are left empty.")


def test_a_square_matrix_of_two_kinds_of_things_has_no_diagonal(shown):
    plots.matrix([[10, 20], [0, 5]], title="T", row_names=["x", "y"], column_names=["a", "b"])
    assert alt(shown) == "T. Matrix of 2 rows and 2 columns: values from 0 to 20, least in row y, column a, most in row x, column b."


def test_an_oblong_matrix_names_its_ends(shown):
    plots.matrix([[10, 20, 30], [0, 5, 40]], title="T", row_names=["x", "y"], limits=(0, 100))
    assert alt(shown) == "T. Matrix of 2 rows and 3 columns: values from 0 to 40, least in row y, column 0, most in row y, column 2."


@pytest.mark.parametrize(("values", "limits", "colours", "ends"), [
    ([[-1, 3]], None, "RdBu_r", (-3, 3)), ([[1, 3]], None, "Blues", (1, 3)), ([[0.5, 1]], (-1, 1), "RdBu_r", (-1, 1)),
])  # fmt: skip
def test_the_colours_of_a_matrix(monkeypatch, values, limits, colours, ends):
    drawn = []
    monkeypatch.setattr(plots, "show", lambda figure, alt: drawn.append(figure))
    plots.matrix(values, title="T", limits=limits)
    picture = drawn[0].axes[0].images[0]
    assert picture.get_cmap().name == colours and picture.get_clim() == ends and len(drawn[0].axes[0].texts) == 2
    plots.matrix(np.ones((13, 13)), title="T")
    plots.matrix(np.ones((13, 13)), title="T", numbers=True)
    assert [len(figure.axes[0].texts) for figure in drawn[1:]] == [0, 169]
    plt.close("all")


def test_matrices_that_cannot_be_shown_are_refused(shown):
    for values in ([1.0, 2.0], [[math.nan]], np.zeros((0, 3))):
        with pytest.raises(ValueError, match="rows, columns"):
            plots.matrix(values, title="T")
    with pytest.raises(ValueError, match="2 rows, 1 names"):
        plots.matrix(np.ones((2, 2)), title="T", row_names=["a"])
    assert not shown


def test_bars(shown):
    plots.bars({"probe": 81.25, "kNN": 70.0}, title="Bars", ylabel="accuracy, %", errors={"probe": 1.5, "kNN": math.nan}, chance=10)
    assert alt(shown) == "Bars. accuracy, %: probe 81.2 ± 1.5; kNN 70.0; guessing 10.0."


def test_bars_without_errors_or_with_a_gap(shown):
    plots.bars({"one": 50.0, "lost": math.nan}, title="T", ylabel="y")
    assert alt(shown) == "T. y: one 50.0; lost nan."


def test_confusion(shown):
    plots.confusion(result(), title="Who is who")
    text = alt(shown)
    assert "3 classes" in text and "best cat with 100" in text and "worst dog with 33" in text and "dog taken for cat 2 times" in text


def test_confusion_without_mistakes_and_with_many_classes(shown):
    n = 25
    perfect = evaluation.Result(torch.eye(n), torch.arange(n), [f"class {i}" for i in range(n)])
    plots.confusion(perfect, title="Perfect")
    assert "25 classes" in alt(shown) and "no mistakes" in alt(shown)


def test_mistakes(shown):
    plots.mistakes(result(), PICTURES, title="Oh")
    text = alt(shown)
    assert text.startswith("Oh. 2 images") and text.count("dog, said cat") == 2
    assert text.index("96 % sure") < text.index("58 % sure")


def test_no_mistakes_are_said_and_not_shown(shown, capsys):
    plots.mistakes(evaluation.Result(torch.eye(3), torch.arange(3), list("abc")), PICTURES[:3], title="T")
    assert not shown and "no mistakes" in capsys.readouterr().out


@pytest.mark.parametrize(("truth", "told"), [(None, "60 percent."), (2, "60 percent; the true class, fish, gets 10.")])
def test_probabilities(shown, truth, told):
    plots.probabilities(torch.tensor([0.3, 0.6, 0.1]), ["cat", "dog", "fish"], title="How sure", truth=truth)
    assert alt(shown) == f"How sure. Probabilities over 3 classes: highest dog with {told}"


def test_a_title_cannot_break_out_of_its_attribute(shown):
    title = "a \"quoted\" <b>title</b> & 'more'"
    plots.bars({"x": 1.0}, title=title, ylabel="y")
    assert "<b>" not in shown[0]["text/html"] and alt(shown).startswith(title)


def test_the_style_can_be_set():
    with matplotlib.rc_context():
        plots.use_style()
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.COLOURS)
    assert len(set(plots.COLOURS)) == len(set(plots.MARKERS)) == 8
