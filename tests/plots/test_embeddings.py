"""Figures of embeddings: the alternative text holds the numbers, and what cannot be drawn is refused in a sentence."""

import math

import pytest
import torch

from sslcourse import plots

PAIRS = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1]], requires_grad=True)


def test_scatter_says_how_well_classes_stay_together(shown):
    panels = {"apart": PAIRS, "mixed": PAIRS[[0, 2, 1, 3]], "same place": torch.zeros(4, 2), "again": PAIRS}
    plots.scatter(panels, torch.tensor([0, 0, 1, 1]), ["cat", "dog"], title="Maps")
    looks = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in shown[0].axes[0].collections}
    assert len(looks) == 2  # by more than a colour
    text = shown[0].alt
    assert text.startswith("Maps. 4 maps of 4 images of 2 classes; points whose nearest neighbour on the map is of the same class: ")
    assert "apart 100 percent, mixed 0 percent" in text and "again 100 percent." in text


@pytest.mark.parametrize(
    ("panels", "labels", "told"),
    [
        ({}, [0, 1], "no maps"),
        ({"map": torch.zeros(3, 2)}, [0, 1], "each of 2 labels"),
        ({"map": torch.zeros(2, 3)}, [0, 1], "each of 2 labels"),
        ({"map": torch.full((2, 2), math.nan)}, [0, 1], "finite point"),
        ({"map": torch.zeros(2, 2)}, [0, 2], "between 0 and 1"),
        ({"map": torch.zeros(2, 2)}, [0, -1], "between 0 and 1"),
        ({"map": torch.zeros(1, 2)}, [0], "two or more"),
    ],
)
def test_maps_that_cannot_be_shown_are_refused(shown, panels, labels, told):
    with pytest.raises(ValueError, match=told):
        plots.scatter(panels, labels, ["cat", "dog"], title="T")
    assert not shown


def test_similarity_histogram(shown):
    groups = {"same": torch.tensor([0.5, 1.0], requires_grad=True), "other": torch.tensor([-0.25, 0.25, math.nan])}
    plots.similarity_histogram(groups, title="Alike")
    plots.similarity_histogram({"all": torch.ones(9)}, title="Collapsed")
    assert shown[0].alt == (
        "Alike. Distribution of cosine similarity: same has mean 0.75 and standard deviation 0.25 (2 values); "
        "other has mean 0 and standard deviation 0.25 (2 values, and 1 not finite)."
    )
    assert shown[1].alt.endswith("all has mean 1 and standard deviation 0 (9 values).")


@pytest.mark.parametrize("groups", [{}, {"a": []}, {"a": [1.0], "b": [math.nan]}])
def test_a_histogram_of_nothing_is_refused(shown, groups):
    with pytest.raises(ValueError, match="at least one"):
        plots.similarity_histogram(groups, title="T")
    assert not shown
