# ruff: noqa: F811
"""Figures of embeddings: the alternative text holds the numbers, and what cannot be drawn is refused in a sentence."""

import math

import matplotlib

matplotlib.use("Agg")
import pytest
import torch
from test_plots import alt, shown  # noqa: F401

from sslcourse import augment
from sslcourse.plots import embeddings as embedding_plots

PICTURES = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
QUERIES, FOUND = PICTURES[:2], PICTURES.view(2, 3, 3, 8, 8)


def test_neighbours_are_counted(shown):
    embedding_plots.neighbours(
        QUERIES, FOUND, title="Alike", query_names=["cat", "dog"], found_names=[["cat"] * 3, ["dog", "cat", "fish"]],
        right=torch.tensor([[True] * 3, [True, False, False]]),
    )  # fmt: skip
    assert alt(shown) == (
        "Alike. 2 queries, each with 3 nearest images; 4 of 6 neighbours are of the query's class. "
        "cat: cat, cat, cat, 3 right; dog: dog, cat, fish, 1 right."
    )


def test_neighbours_without_names_or_marks(shown):
    embedding_plots.neighbours(QUERIES[:1], FOUND[:1], title="T")
    assert alt(shown) == "T. 1 query with 3 nearest images."
    shown.clear()
    embedding_plots.neighbours(QUERIES, FOUND, title="T", right=[[True, False, True], [False] * 3])
    assert alt(shown).endswith("2 of 6 neighbours are of the query's class. query 1: 2 right; query 2: 0 right.")


def test_a_neighbour_is_marked_by_more_than_a_colour(shown, monkeypatch):
    looks = []
    monkeypatch.setattr(embedding_plots, "show", lambda figure, alt: looks.append(figure))
    embedding_plots.neighbours(QUERIES[:1], FOUND[:1], title="T", right=[[True, False, True]], found_names=[["a", "b", "c"]])
    good, bad = looks[0].axes[2], looks[0].axes[3]
    assert (good.get_title(), bad.get_title()) == ("✓ a", "✗ b")
    assert good.spines["top"].get_linestyle() != bad.spines["top"].get_linestyle()
    embedding_plots.plt.close(looks[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"queries": PICTURES[:3]}, "needs its neighbours"),
        ({"found": PICTURES}, "needs its neighbours"),
        ({"found": FOUND[:, :0]}, "needs its neighbours"),
        ({"right": [True, False]}, "2 × 3 neighbours"),
        ({"query_names": ["a"]}, "2 queries, 1 names"),
        ({"found_names": [["a"] * 3, ["a"] * 2]}, "2 rows of 3 texts"),
    ],
)
def test_neighbours_that_cannot_be_shown_are_refused(shown, change, told):
    with pytest.raises(ValueError, match=told):
        embedding_plots.neighbours(**({"queries": QUERIES, "found": FOUND, "title": "T"} | change))
    assert not shown


PAIRS = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1]], requires_grad=True)


def test_scatter_says_how_well_classes_stay_together(shown):
    panels = {"apart": PAIRS, "mixed": PAIRS[[0, 2, 1, 3]], "same place": torch.zeros(4, 2), "again": PAIRS}
    embedding_plots.scatter(panels, torch.tensor([0, 0, 1, 1]), ["cat", "dog"], title="Maps")
    text = alt(shown)
    assert text.startswith("Maps. 4 maps of 4 images of 2 classes; points whose nearest neighbour on the map is of the same class: ")
    assert "apart 100 percent, mixed 0 percent" in text and "again 100 percent." in text


def test_many_classes_have_looks_of_their_own(shown, monkeypatch):
    looks = []
    monkeypatch.setattr(embedding_plots, "show", lambda figure, alt: looks.append(figure))
    n = 24
    embedding_plots.scatter({"map": torch.rand(n, 2)}, list(range(n)), [f"class {i}" for i in range(n)], title="T")
    drawn = looks[0].axes[0].collections
    kinds = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in drawn}
    assert len(drawn) == len(kinds) == n and len(looks[0].legends[0].get_texts()) == n
    embedding_plots.plt.close(looks[0])


@pytest.mark.parametrize(
    ("panels", "labels", "told"),
    [
        ({}, [0, 1], "no maps"),
        ({"map": torch.zeros(3, 2)}, [0, 1], "each of 2 labels"),
        ({"map": torch.zeros(2, 3)}, [0, 1], "each of 2 labels"),
        ({"map": torch.full((2, 2), math.nan)}, [0, 1], "finite point"),
        ({"map": torch.zeros(2, 2)}, [0, 2], "between 0 and 1"),
        ({"map": torch.zeros(1, 2)}, [0], "two or more"),
    ],
)
def test_maps_that_cannot_be_shown_are_refused(shown, panels, labels, told):
    with pytest.raises(ValueError, match=told):
        embedding_plots.scatter(panels, labels, ["cat", "dog"], title="T")
    assert not shown


def test_similarity_histogram(shown):
    groups = {"same": torch.tensor([0.5, 1.0], requires_grad=True), "other": torch.tensor([-0.25, 0.25, math.nan])}
    embedding_plots.similarity_histogram(groups, title="Alike")
    assert alt(shown) == (
        "Alike. Distribution of cosine similarity: same has mean 0.75 and standard deviation 0.25 (2 values); "
        "other has mean 0 and standard deviation 0.25 (2 values, and 1 not finite)."
    )


def test_similarities_of_a_collapsed_network(shown):
    embedding_plots.similarity_histogram({"all": torch.ones(9)}, title="T", xlabel="likeness")
    assert alt(shown) == "T. Distribution of likeness: all has mean 1 and standard deviation 0 (9 values)."


@pytest.mark.parametrize("groups", [{}, {"a": []}, {"a": [1.0], "b": [math.nan]}])
def test_a_histogram_of_nothing_is_refused(shown, groups):
    with pytest.raises(ValueError, match="at least one"):
        embedding_plots.similarity_histogram(groups, title="T")
    assert not shown


def test_rotations_of_upright_pictures(shown, monkeypatch):
    embedding_plots.rotations(augment.evaluation(8)(PICTURES[:3]), title="Turned")
    assert alt(shown) == "Turned. 12 images in 4 rows of 3: upright; turned 90°; turned 180°; turned 270°."
    sheets = []
    monkeypatch.setattr(embedding_plots, "images", lambda pictures, *args, **kwargs: sheets.append(pictures))
    embedding_plots.rotations(PICTURES[:3])
    assert torch.equal(sheets[0][3], torch.rot90(PICTURES[0], 1, (1, 2)))


def test_rotations_with_answers(shown):
    embedding_plots.rotations(PICTURES[:3], [0, 3, 2], torch.tensor([0, 1, 2]), title="Guessed", columns=2)
    text = alt(shown)
    assert text.startswith("Guessed. 3 images in 2 rows of 2: upright, says 0° ✓; turned 90°, says 270° ✗; turned 180°, says 180° ✓.")
    assert text.endswith(" 2 of 3 answers are right.")
    shown.clear()
    embedding_plots.rotations(PICTURES[:2], truth=[3, 0])
    assert alt(shown) == "2 images in 1 row of 2: turned 270°; upright."


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"answers": [0] * 6}, "need the truth"),
        ({"truth": [0]}, "6 images, 1 truths"),
        ({"truth": [0] * 6, "answers": [0]}, "1 answers"),
        ({"truth": [4] * 6}, "0, 1, 2 or 3"),
        ({"pictures": PICTURES[..., :4]}, "square"),
        ({"pictures": PICTURES[:0]}, "no images"),
    ],
)
def test_rotations_that_cannot_be_shown_are_refused(shown, arguments, told):
    with pytest.raises(ValueError, match=told):
        embedding_plots.rotations(**({"pictures": PICTURES} | arguments))
    assert not shown
