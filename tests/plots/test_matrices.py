"""Matrices: what their alternative text tells, their colours and signs, and what cannot be shown."""

import math

import numpy as np
import pytest
import torch

from sslcourse import evaluation, plots

NAMES = ["cat", "dog", "fish"]


def result(rows, labels=(0, 0, 1, 1, 2, 2), names=NAMES):
    """A Result whose predictions are these."""
    return evaluation.Result(5.0 * torch.eye(3)[list(rows)], torch.tensor(labels), names)


FIRST, SECOND = result([0, 1, 1, 2, 0, 0]), result([0, 0, 1, 1, 2, 1])
ALIKE = torch.tensor([[1.0, -0.5, 0.25], [-0.5, 1, 0.25], [0.25, 0.25, 1]], requires_grad=True)


@pytest.mark.parametrize(
    ("values", "options", "told"),
    [
        (
            ALIKE,
            {"row_names": list("abc"), "column_names": list("abc"), "colour_label": "similarity"},
            "3 rows and 3 columns: similarity from -0.5 to 1, mean on the diagonal 1, mean off the diagonal 0.",
        ),
        (
            ALIKE.masked_fill(torch.eye(3, dtype=torch.bool), -math.inf),
            {},
            "from -0.5 to 0.25, nothing on the diagonal, mean off the diagonal 0; 3 cells are left empty.",
        ),
        (  # a square matrix of two kinds of things has no diagonal
            [[10, 20], [0, 5]],
            {"row_names": ["x", "y"], "column_names": ["a", "b"]},
            "2 rows and 2 columns: values from 0 to 20, least in row y, column a, most in row x, column b.",
        ),
        (
            [[10, 20, 30], [0, 5, 40]],
            {"row_names": ["x", "y"], "limits": (0, 100)},
            "values from 0 to 40, least in row y, column 0, most in row y, column 2.",
        ),
    ],
)
def test_a_matrix_tells_what_it_holds(shown, values, options, told):
    plots.matrix(values, title="T", **options)
    assert shown[0].alt.startswith("T. Matrix of ") and shown[0].alt.endswith(told)


@pytest.mark.parametrize(("values", "limits", "colours", "ends"), [
    ([[-1, 3]], None, "RdBu_r", (-3, 3)), ([[1, 3]], None, "Blues", (1, 3)), ([[0.5, 1]], (-1, 1), "RdBu_r", (-1, 1)),
])  # fmt: skip
def test_the_colours_of_a_matrix(shown, values, limits, colours, ends):
    plots.matrix(values, title="T", limits=limits)
    picture = shown[0].axes[0].images[0]
    assert picture.get_cmap().name == colours and picture.get_clim() == ends and len(shown[0].axes[0].texts) == 2


def test_confusion(shown):
    plots.confusion(result([0, 0, 0, 0, 2, 2], labels=(0, 1, 1, 1, 2, 2)), title="Who is who")
    many = 25
    plots.confusion(evaluation.Result(torch.eye(many), torch.arange(many), [f"class {i}" for i in range(many)]), title="Perfect")
    assert shown[0].alt == (
        "Who is who. Confusion matrix of 3 classes in percent of each true class: best cat with 100, worst dog with 0; "
        "most frequent mistakes: dog taken for cat 3 times."
    )
    assert "25 classes" in shown[1].alt and shown[1].alt.endswith("no mistakes.") and not shown[1].axes[0].texts


def test_the_difference_of_two_confusions(shown):
    plots.confusion_difference(FIRST, SECOND, title="Better", names=["before", "after"])
    plots.confusion_difference(FIRST, FIRST, title="T", names=["a", "b"])
    assert shown[0].alt == (
        "Better. Confusion matrix of after less that of before, in points of each true class: after gets 3 classes better than before and "
        "0 worse; most gained by cat, +50 points, least by cat, +50; fish taken for dog 50 points more often; fish taken for cat 100 "
        "points less often."
    )
    assert "b gets 0 classes better than a and 0 worse" in shown[1].alt and "often" not in shown[1].alt
    axis = shown[0].axes[0]
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    assert texts[0, 2] == "−100" and texts[2, 2] == "+50" and (1, 2) in texts and (0, 1) not in texts
    np.testing.assert_allclose(axis.images[0].get_array()[2], [-100, 50, 50])
    assert axis.images[0].norm.vmin == -axis.images[0].norm.vmax  # no change is white


def test_confusions_over_time(shown):
    early, late = np.array([[2, 2, 0], [3, 1, 0], [0, 0, 0]]), torch.tensor([[4, 0, 0], [0, 4, 0], [0, 0, 0]])
    plots.confusions_over_time([early, late], ["step 0", "step 9"], NAMES, title="Learning")
    plots.confusions_over_time([np.eye(3)] * 5, list("abcde"), NAMES, title="Two rows of panels")
    assert shown[0].alt == (
        "Learning. 2 confusion matrices of 3 classes, averaged over classes: step 0: 38 percent right, most often dog taken for cat, 75 "
        "percent; step 9: 100 percent right."
    )
    grid = shown[1].axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (2, 3) and sum(len(axis.images) for axis in shown[1].axes) == 5


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda: plots.matrix([1.0, 2.0], title="T"), "rows, columns"),
        (lambda: plots.matrix([[math.nan]], title="T"), "rows, columns"),
        (lambda: plots.matrix(np.zeros((0, 3)), title="T"), "rows, columns"),
        (lambda: plots.matrix(np.ones((2, 2)), title="T", row_names=["a"]), "2 rows, 1 names"),
        (lambda: plots.confusion_difference(FIRST, result([0] * 6, labels=(0, 0, 1, 1, 2, 1)), title="T", names="ab"), "same images"),
        (lambda: plots.confusion_difference(FIRST, result([0, 0], labels=(0, 1)), title="T", names="ab"), "same images"),
        (lambda: plots.confusion_difference(FIRST, result([0] * 6, names=list("xyz")), title="T", names="ab"), "same classes"),
        (lambda: plots.confusions_over_time([], [], NAMES, title="T"), "none"),
        (lambda: plots.confusions_over_time([np.eye(3)], ["a", "b"], NAMES, title="T"), "2 titles"),
        (lambda: plots.confusions_over_time([np.eye(2)], ["a"], NAMES, title="T"), "each of 3 classes"),
    ],
)
def test_what_cannot_be_shown_is_refused(shown, draw, told):
    with pytest.raises(ValueError, match=told):
        draw()
    assert not shown
