"""Sheets of images: what their alternative text tells, how right and wrong are marked, and what cannot be shown."""

import pytest
import torch

from sslcourse import augment, evaluation, plots

PICTURES = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)


def test_images_as_bytes_and_as_views(shown):
    plots.images(PICTURES[:5], ["one", "two", "three", "four\nlines", "five"], columns=2, title="Five things")
    plots.images(augment.evaluation(8)(PICTURES))
    assert shown[0].alt == "Five things. 5 images in 3 rows of 2: one; two; three; four, lines; five."
    assert shown[1].alt == "6 images in 1 row of 6: without titles."


def test_unnormalise_undoes_the_augmentations_last_step():
    assert torch.equal(plots.unnormalise(augment.evaluation(8)(PICTURES)), PICTURES)
    assert plots.unnormalise(torch.tensor([-99.0, 99, 0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_mistakes_come_most_confident_first(shown, capsys):
    logits = torch.tensor([[4.0, 0, 0], [4, 0, 0], [0, 3, 0], [0, 0, 2], [1, 0, 0]])
    plots.mistakes(evaluation.Result(logits, torch.tensor([0, 1, 1, 2, 1]), ["cat", "dog", "fish"]), PICTURES, title="Oh")
    plots.mistakes(evaluation.Result(torch.eye(3), torch.arange(3), list("abc")), PICTURES, title="None")
    assert len(shown) == 1 and "no mistakes" in capsys.readouterr().out
    text = shown[0].alt
    assert text.startswith("Oh. 2 images") and text.count("dog, said cat") == 2
    assert text.index("96 % sure") < text.index("58 % sure")


NEIGHBOURS = {
    "queries": PICTURES[:2], "found": PICTURES.view(2, 3, 3, 8, 8), "query_names": ["cat", "dog"],
    "right": torch.tensor([[True] * 3, [True, False, False]]),
}  # fmt: skip


def test_neighbours_are_counted_and_marked_by_more_than_a_colour(shown):
    plots.neighbours(**NEIGHBOURS, title="Alike")
    assert shown[0].alt == (
        "Alike. 2 queries, each with 3 nearest images; 4 of 6 neighbours are of the query's class. cat: 3 right; dog: 1 right."
    )
    good, bad = shown[0].axes[7], shown[0].axes[8]  # of the second row
    assert (good.get_title(), bad.get_title()) == ("✓", "✗")
    assert good.spines["top"].get_linestyle() != bad.spines["top"].get_linestyle()


def test_rotations_alone_and_with_answers(shown):
    plots.rotations(augment.evaluation(8)(PICTURES[:3]), title="Turned")
    plots.rotations(PICTURES[:3], [0, 3, 2], torch.tensor([0, 1, 2]), title="Guessed", columns=2)
    assert shown[0].alt == "Turned. 12 images in 4 rows of 3: upright; turned 90°; turned 180°; turned 270°."
    turned = torch.rot90(PICTURES[0], 1, (1, 2)).permute(1, 2, 0)
    assert torch.equal(torch.as_tensor(shown[0].axes[3].images[0].get_array()), turned)
    assert shown[1].alt == (
        "Guessed. 3 images in 2 rows of 2: upright, says 0° ✓; turned 90°, says 270° ✗; turned 180°, says 180° ✓. 2 of 3 answers are right."
    )


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda: plots.images(PICTURES[:0]), "no images"),
        (lambda: plots.images(PICTURES, ["a", "b"]), "6 images, 2 titles"),
        (lambda: plots.neighbours(**NEIGHBOURS | {"queries": PICTURES[:3]}, title="T"), "queries"),
        (lambda: plots.neighbours(**NEIGHBOURS | {"found": PICTURES}, title="T"), "found"),
        (lambda: plots.neighbours(**NEIGHBOURS | {"found": NEIGHBOURS["found"][:, :0]}, title="T"), "found"),
        (lambda: plots.neighbours(**NEIGHBOURS | {"right": [True, False]}, title="T"), "right"),
        (lambda: plots.neighbours(**NEIGHBOURS | {"query_names": ["a"]}, title="T"), "query_names"),
        (lambda: plots.rotations(PICTURES, [0] * 6), "true number"),
        (lambda: plots.rotations(PICTURES, [0], [0] * 6), "Each of 6 images"),
        (lambda: plots.rotations(PICTURES[..., :4]), "square"),
        (lambda: plots.rotations(PICTURES[:0]), "no images"),
    ],
)
def test_what_cannot_be_shown_is_refused(shown, draw, told):
    with pytest.raises(ValueError, match=told):
        draw()
    assert not shown
