"""Figures: each has an alternative text made from its data, and what must be seen in it is where it belongs."""

import base64
import html
import io
import math
import re
import warnings
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from sslcourse import augment, evaluation, plots
from sslcourse.plots import style
from sslcourse.training import History

NAMES = ["cat", "dog", "fish"]
PICTURES = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TITLE = "\"What\" is <b>found</b> & 'more'"  # which must not break out of its attribute
PAIRS = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1]], requires_grad=True)


@pytest.fixture
def shown(monkeypatch):
    """The figures that were shown, in order, each with its alternative text as a reader hears it; afterwards none is left open."""
    drawn, figures, png = [], [], style.png
    monkeypatch.setattr(style, "png", lambda figure: (figures.append(figure), png(figure))[1])

    def display(data, raw):
        found = re.fullmatch(r'<img alt="([^"]*)" style="[^"]*" src="data:image/png;base64,([^"]*)">', data["text/html"])
        assert found and found[2] == data["image/png"] and base64.b64decode(found[2]).startswith(b"\x89PNG")
        alt = html.unescape(found[1])
        assert raw and data["text/plain"] == f"[figure: {alt}]"
        drawn.append(SimpleNamespace(figure=figures[-1], axes=figures[-1].axes, alt=alt))

    monkeypatch.setattr(style.display, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    plt.close("all")
    yield drawn
    assert plt.get_fignums() == []


def history(rows):
    return History(rows=[{"epoch": i + 1, **row} for i, row in enumerate(rows)])


def result(rows, labels=(0, 0, 1, 1, 2, 2)):
    """A Result whose predictions are these."""
    return evaluation.Result(5.0 * torch.eye(3)[list(rows)], torch.tensor(labels), NAMES)


FIRST, SECOND = result([0, 1, 1, 2, 0, 0]), result([0, 0, 1, 1, 2, 1])
DIFFERENCES = {"a": (5.0, 1.0, 9.0), "b": (-1.0, -4.0, 2.0), "c": (-0.04, -4.0, -0.01), "d": (2.0, math.nan, math.nan)}
COLUMNS = ("loss", "validation_loss", "validation_accuracy")
TRAINED = [dict(zip(COLUMNS, row, strict=True)) for row in [(2.5, 2.25, 0.25), (1.5, 1.75, 0.5)]]
PRETRAINED = [
    {"loss": 5.5, "chance_loss": 5.54, "knn_accuracy": math.nan, "feature_std": math.nan, "healthy_std": 0.125},
    {"loss": 4.0, "chance_loss": 5.54, "knn_accuracy": 0.25, "feature_std": 0.0625, "healthy_std": 0.125, "rotation_accuracy": 0.5},
    {"loss": 4.5, "chance_loss": 5.54, "knn_accuracy": 0.5, "feature_std": 0.1, "healthy_std": 0.125, "feature_rank": 12.0},
]
NEIGHBOURS = (PICTURES[:2], PICTURES.view(2, 3, 3, 8, 8))
MARKS = {"query_names": ["cat", "dog"], "right": [[True] * 3, [True, False, False]]}
SURE = evaluation.calibration(torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1]]).log(), torch.tensor([0, 1, 0]))
MISTAKEN = evaluation.Result(torch.tensor([[4.0, 0, 0], [2, 0, 0], [0, 3, 0]]), torch.tensor([0, 1, 0]), NAMES)

FIGURES = [  # (function, arguments, options, parts of its text in their order)
    ("bars", [{"a": 81.25, "b": 70.0}], {"ylabel": "%", "errors": {"a": 1.5}, "chance": 10}, "a 81.2 ± 1.5; b 70.0; guessing 10"),
    ("forest", [DIFFERENCES], {"xlabel": "points"}, "a +5.0, +1.0 to +9.0, without zero|with zero|c +0.0|+2.0, interval unknown"),
    ("strips", [{"honest": [1.0, 2.0, 3.0], "leaky": [4.0]}], {"xlabel": "points", "mark": 2.5, "mark_name": "reported"},
     "honest: 3 numbers from 1.0 to 3.0, mean 2.0, deviation 1.0|leaky: 1 numbers from 4.0 to 4.0|reported is at 2.5"),
    ("lines", [[1, 10, 100], {"ours": [0.2, 0.9, 0.75]}], {"xlabel": "labels", "ylabel": "a", "errors": {"ours": [0.1, math.nan, 0.1]},
     "chance": 0.125, "log_x": True, "ylim": (0, 1)}, "from 1 to 100|ours goes from 0.2 to 0.75 (least 0.2, most 0.9)|is at 0.125"),
    ("lines", [{"a": [2, 4], "b": [2, 8]}, {"a": [1, 2], "b": [1, math.inf]}], {"xlabel": "x", "ylabel": "y"}, "x 2 to 4|not finite from"),
    ("lines", [[1, 2], {"a": [math.nan] * 2}], {"xlabel": "x", "ylabel": "y"}, "a is never finite"),
    ("training_curves", [history(TRAINED)], {"num_classes": 4}, "2.5 to 1.5|2.25 to 1.75|1.39|goes from 25 to 50|validation is 25"),
    ("training_curves", [history([dict.fromkeys(COLUMNS, math.nan)])], {"num_classes": 4}, "training loss is never finite"),
    ("pretraining_curves", [history(PRETRAINED)], {"num_classes": 10}, "4 panels|5.5 to 4.5|chance is 5.54|kNN validation goes from 25 to|"
     "rotation has 50 at epoch 2|guessing for kNN validation is 10; guessing for rotation is 25|0.0625 to 0.1|healthy is 0.125|has 12 at"),
    ("pretraining_curves", [history([{"loss": 2.0}, {"loss": math.inf}])], {"num_classes": 3}, "1 panel|not finite from epoch 2"),
    ("scatter", [{"apart": PAIRS, "mixed": PAIRS[[0, 2, 1, 3]]}, [0, 0, 1, 1], NAMES], {}, "2 maps of 4|100 percent, mixed 0 percent"),
    ("matrix", [torch.eye(3).masked_fill(torch.eye(3) > 0, math.nan)], {}, "3 rows|nothing on the diagonal|3 cells"),
    ("matrix", [[[10, 20, 30], [0, 5, 40]]], {"row_names": ["x", "y"], "limits": (0, 100)}, "least in row y, column 0|row y, column 2"),
    ("confusion", [FIRST], {}, "3 classes|best cat with 50|worst fish with 0|fish taken for cat 2 times"),
    ("confusion", [evaluation.Result(torch.eye(25), torch.arange(25), [f"c{i}" for i in range(25)])], {}, "no mistakes"),
    ("confusion_difference", [FIRST, SECOND], {"names": ["before", "after"]}, "3 classes better|fish taken for cat 100 points less"),
    ("confusions_over_time", [[np.eye(3), FIRST.confusion], ["s0", "s1"], NAMES], {}, "s0: 100 percent|s1: 33 percent right"),
    ("images", [PICTURES[:3], ["one", "two\nlines", "three"], 2], {}, "3 images in 2 rows of 2: one; two, lines; three"),
    ("images", [augment.evaluation(8)(PICTURES)], {}, "6 images in 1 row of 6: without titles"),
    ("mistakes", [MISTAKEN, PICTURES], {}, "2 images|cat, said dog, 91 % sure; dog, said cat, 79 % sure"),
    ("neighbours", NEIGHBOURS, MARKS, "2 queries, each with 3 nearest images; 4 of 6 neighbours|cat: 3 right; dog: 1 right"),
    ("rotations", [PICTURES[:3]], {}, "12 images in 4 rows of 3: upright; turned 90°; turned 180°; turned 270°"),
    ("rotations", [PICTURES[:2], [0, 3], [0, 1]], {}, "upright, says 0° ✓; turned 90°, says 270° ✗. 1 of 2 answers are right"),
    ("probabilities", [torch.tensor([0.3, 0.6, 0.1]), NAMES], {"truth": 2}, "highest dog with 60 percent; the true class, fish, gets 10"),
    ("reliability", [{"mine": SURE}], {}, "70.0 percent sure and 66.7 percent right, expected calibration error 10.0|with 33"),
    ("coverage_and_precision", [[0.5, 0.9], [0.9, 0.0], [0.6, math.nan]], {"chosen": 0.94}, "90 to 0 (|60 to 60 (|not finite from|at 0.9"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "options", "told"), FIGURES)
def test_the_text_of_a_figure_holds_its_title_and_its_numbers(shown, name, given, options, told):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(plots, name)(*given, title=TITLE, **options)
    (figure,) = shown
    assert figure.alt.startswith(TITLE + ". ")
    places = [figure.alt.find(part) for part in told.split("|")]
    assert -1 not in places and places == sorted(places), figure.alt


def test_no_figure_is_left_without_such_a_text():
    helpers = {"show", "use_style", "fonts_for", "reference_line", "unnormalise"}
    assert {name for name, value in vars(plots).items() if type(value).__name__ == "function"} - helpers == {name for name, *_ in FIGURES}


def test_an_interval_with_zero_has_an_open_marker(shown):
    plots.forest(DIFFERENCES, title="T", xlabel="points")
    (axis,) = shown[0].axes
    markers = {line.get_ydata()[0]: line for line in axis.lines if line.get_marker() in ("o", "s")}
    assert [markers[i].get_markerfacecolor() == "white" for i in range(4)] == [False, True, False, True]
    assert sum(line.get_marker() == "|" for line in axis.lines) == 3  # no interval where none is known


def test_the_legend_of_many_lines_stands_beside_them_and_close_points_get_round_ticks(shown):
    names = [f"method number {i}" for i in range(13)]
    x = {n: [0.5 + 0.03 * i] for i, n in enumerate(names)}
    plots.lines(x, x, errors=dict.fromkeys(names, [0.1]), log_x=True, title="T", xlabel="minutes", ylabel="y")
    axis = shown[0].axes[0]
    assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1 and axis.get_xticks().tolist() == [0.5, 1]
    assert "method number 1 has 0.53 ± 0.1 at minutes 0.53" in shown[0].alt
    assert len({(line.get_color(), line.get_marker()) for line in axis.lines if line.get_marker() != "_"}) == 13  # a cap of an error bar


def test_ten_classes_have_ten_colours_that_the_colour_blind_can_tell_apart_and_ten_markers(shown):
    plots.scatter({"map": torch.rand(40, 2)}, torch.arange(40) % 10, [f"c{i}" for i in range(10)], title="T")
    drawn = shown[0].axes[0].collections
    assert len({dots.get_paths()[0].vertices.tobytes() for dots in drawn}) == 10
    protanopia = [0.152, 1.053, -0.205, 0.115, 0.786, 0.099, -0.004, -0.048, 1.052]  # after Machado et al. 2009
    for kind in (protanopia, [0.367, 0.861, -0.228, 0.28, 0.673, 0.047, -0.012, 0.043, 0.969]):  # and deuteranopia
        seen = (np.array([dots.get_facecolor()[0][:3] for dots in drawn]) ** 2.2 @ np.reshape(kind, (3, 3)).T).clip(0) ** (1 / 2.2)
        assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) > 0.1


@pytest.mark.parametrize(("x", "whole"), [([1, 2, 3], True), ([0.1, 0.2, 0.9], False)])
def test_lines_on_a_given_axis_are_left_to_its_owner_and_whole_numbers_get_whole_ticks(shown, x, whole):
    figure, axis = plt.subplots()
    plots.lines(x, {"a": [0.1, 0.2, 0.3], "b": [1, 2, 3]}, title="t", xlabel="pass", ylabel="y", ax=axis)
    assert not shown and len(axis.lines) == 2 and axis.get_legend() is not None
    assert all(float(tick).is_integer() for tick in axis.get_xticks()) == whole
    plt.close(figure)


def test_levels_of_guessing_and_joined_points_of_pretraining(shown):
    plots.pretraining_curves(history(PRETRAINED), title="T", num_classes=10)
    accuracy = shown[0].axes[1]
    assert [line.get_ydata()[0] for line in accuracy.lines if line.get_linestyle() == ":"] == [10, 25]
    assert [len(line.get_xdata()) for line in accuracy.lines][:2] == [2, 1]  # points that were looked at are joined


@pytest.mark.parametrize(("values", "limits", "colours", "ends"), [
    ([[-1, 3]], None, "RdBu_r", (-3, 3)), ([[1, 3]], None, "Blues", (1, 3)), ([[0.5, 1]], (-1, 1), "RdBu_r", (-1, 1)),
])  # fmt: skip
def test_the_colours_of_a_matrix(shown, values, limits, colours, ends):
    plots.matrix(values, title="T", limits=limits)
    picture = shown[0].axes[0].images[0]
    assert picture.get_cmap().name == colours and picture.get_clim() == ends and len(shown[0].axes[0].texts) == 2


def test_the_difference_of_two_confusions(shown):
    plots.confusion_difference(FIRST, SECOND, title="T", names=["before", "after"])
    axis = shown[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    assert texts[0, 2] == "−100" and texts[2, 2] == "+50" and (1, 2) in texts and (0, 1) not in texts
    np.testing.assert_allclose(axis.images[0].get_array()[2], [-100, 50, 50])
    assert axis.images[0].norm.vmin == -axis.images[0].norm.vmax  # no change is white
    with pytest.raises(ValueError, match="same images"):
        plots.confusion_difference(FIRST, result([0] * 6, labels=(0, 0, 1, 1, 2, 1)), title="T", names="ab")


def test_of_many_classes_the_most_confused_are_drawn_and_the_text_is_about_all(shown):
    said, names = torch.arange(25), [f"c{i}" for i in range(25)]
    said[24] = 3
    confused = evaluation.Result(torch.eye(25)[said], torch.arange(25), names)
    plots.confusion(confused, title="T")
    plots.confusions_over_time([confused.confusion] * 2, ["a", "b"], names, title="T")
    for figure in shown:
        drawn = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert len(drawn) == 20 and {"c3", "c24"} <= set(drawn) and "25 classes" in figure.alt and "c24 taken for c3" in figure.alt
    assert shown[0].axes[0].get_xlabel() == "predicted (20 of 25 classes)"


def test_unnormalise_undoes_the_augmentations_last_step():
    assert torch.equal(plots.unnormalise(augment.evaluation(8)(PICTURES)), PICTURES)
    assert plots.unnormalise(torch.tensor([-99.0, 99, 0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_no_mistakes_give_a_sentence_in_place_of_a_figure(shown, capsys):
    plots.mistakes(evaluation.Result(torch.eye(3), torch.arange(3), list("abc")), PICTURES, title="None")
    assert not shown and "no mistakes" in capsys.readouterr().out


def test_neighbours_are_marked_by_more_than_a_colour_and_images_turn_counter_clockwise(shown):
    plots.neighbours(*NEIGHBOURS, title="T", **MARKS)
    good, bad = shown[0].axes[7], shown[0].axes[8]  # of the second row
    assert (good.get_title(), bad.get_title()) == ("✓", "✗")
    assert good.spines["top"].get_linestyle() != bad.spines["top"].get_linestyle()
    plots.rotations(PICTURES[:3])
    turned = torch.rot90(PICTURES[0], 1, (1, 2)).permute(1, 2, 0)
    assert torch.equal(torch.as_tensor(shown[1].axes[3].images[0].get_array()), turned)


def test_reliability_leaves_out_empty_bins_and_names_each_classifier(shown):
    logits, labels = torch.eye(3)[[0, 1, 1, 2, 0, 0]], torch.tensor([0, 0, 1, 1, 2, 2])
    both = {"one": evaluation.calibration(logits, labels), "two": evaluation.calibration(3 * logits.roll(1, 0), labels, bins=5)}
    plots.reliability(both, title="T")
    top, below = shown[0].axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == [f"{n}: ECE {100 * c.ece:.1f} %" for n, c in both.items()]
    for points, found in zip(top.collections, both.values(), strict=True):
        seen = [k for k, count in enumerate(found.bin_count) if count]
        expected = [[100 * found.bin_confidence[k], 100 * found.bin_accuracy[k]] for k in seen]
        np.testing.assert_allclose(np.asarray(points.get_offsets()), expected)
    assert [steps.get_data().values.sum() for steps in below.patches] == pytest.approx([100, 100])


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_a_palette_makes_the_file_smaller_and_hardly_changes_a_pixel():
    figure, axis = plt.subplots(figsize=(4, 3))
    axis.plot([0, 1, 2], [1, 0, 2], color="#D55E00", linewidth=4)
    axis.imshow(np.random.default_rng(0).random((16, 16, 3)), extent=(0, 1, 0, 1))
    full = io.BytesIO()
    figure.savefig(full, format="png", bbox_inches="tight", facecolor="white")
    before, after = full.getvalue(), style.png(figure)
    assert len(after) < 0.7 * len(before) and after == style.png(figure)
    plt.close(figure)
    difference = np.abs(pixels(before) - pixels(after))
    assert difference.shape == pixels(before).shape and difference.mean() < 3
    assert (pixels(after) == (255, 255, 255)).all(2).mean() > 0.3  # white stays white
