"""Predictions and features that do not depend on how they are made, feature sets, and the vote of the nearest neighbours."""

import math

import pytest
import torch
from tiny import coloured, known_set
from torch import nn

from sslcourse import augment, evaluation, models

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = {"rtol": 0, "atol": 1e-4}  # convolutions may add up in another order when a batch has another size


def test_neither_order_nor_batches_matter(model, images):
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    expected = evaluation.predict(model, images)
    torch.testing.assert_close(expected, model.eval()(augment.evaluation(16)(images)), **CLOSE)
    larger = model(augment.evaluation(24)(images))
    torch.testing.assert_close(evaluation.predict(model, images, size=24), larger, **CLOSE)
    torch.testing.assert_close(evaluation.predict(model, images, transform=augment.evaluation(24)), larger, **CLOSE)
    torch.testing.assert_close(evaluation.predict(model, images[order]), expected[order], **CLOSE)
    many = evaluation.predict(model, images.repeat(11, 1, 1, 1))  # more than one batch
    torch.testing.assert_close(many, expected.repeat(11, 1), **CLOSE)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_does_not_matter_and_is_put_back_after_an_error_too(model, images, training):
    model.eval()
    expected = evaluation.predict(model, images)
    model.train(training)
    model.encoder.blocks[0].eval()  # a part that its owner keeps frozen
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    logits = evaluation.predict(model, images)
    assert torch.equal(logits, expected) and not logits.requires_grad
    with pytest.raises(ValueError, match="8 pixels"):
        evaluation.predict(model, torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_features_are_the_encoders_own_output(model, images):
    expected = model.encoder.eval()(augment.evaluation(16)(images))
    found = evaluation.features(model.encoder, images)
    assert found.shape == (50, 32) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected, **CLOSE)
    last = evaluation.features(model.encoder, images, block=-1)
    torch.testing.assert_close(last, found)  # the last block of a ResNet-9, pooled, is its output


@pytest.mark.parametrize("block", [1, 3, 6, -6])
def test_features_of_a_block_are_its_largest_values(model, images, block):
    maps = model.encoder.eval().feature_maps(augment.evaluation(16)(images))
    chosen = maps[block - 1] if block > 0 else maps[block]
    found = evaluation.features(model.encoder, images, block=block)
    torch.testing.assert_close(found, chosen.flatten(2).max(2).values, **CLOSE)


BANK, ROWS = torch.ones(40, 6), torch.ones(15, 6)


@pytest.mark.parametrize(("call", "told"), [
    *[(lambda encoder, images, b=block: evaluation.features(encoder, images, block=b), "blocks 1 to 6") for block in (0, 7, -7)],
    (lambda encoder, images: evaluation.neighbours(BANK, ROWS, 0), "k is 0"),
    (lambda encoder, images: evaluation.neighbours(BANK, ROWS, 41), "k is 41"),
    (lambda encoder, images: evaluation.knn_scores(BANK, torch.zeros(40).long(), ROWS, 4, temperature=0), "temperature"),
    (lambda encoder, images: evaluation.knn_scores(BANK, torch.zeros(39).long(), ROWS, 4), "39 labels"),
])  # fmt: skip
def test_impossible_blocks_and_neighbours_are_refused(model, images, call, told):
    with pytest.raises(ValueError, match=told):
        call(model.encoder, images)


def test_the_view_for_evaluation_is_that_of_the_augmentation(images):
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    expected = augment.evaluation(12, **options)(images)
    for augmentation in (augment.simclr(12, **options), augment.byol_views(12, **options)):
        torch.testing.assert_close(evaluation.evaluation_view(augmentation, 16)(images), expected)
    for other in (None, nn.Identity()):
        assert torch.equal(evaluation.evaluation_view(other, 16)(images), augment.evaluation(16)(images))


def image_set(validation=9):
    return known_set(*coloured(60, 3), *coloured(validation, 4), *coloured(6, 5))


def test_a_feature_set_holds_every_split(model):
    images = image_set()
    found = evaluation.feature_set(model.encoder, images)
    assert found.dim == 32 and found.class_names == images.class_names
    for name in ("train", "validation", "test"):
        rows, labels = found.split(name)
        assert torch.equal(rows, evaluation.features(model.encoder, getattr(images, f"{name}_images")))
        assert torch.equal(labels, getattr(images, f"{name}_labels"))
    found = evaluation.feature_set(model.encoder, image_set(validation=0), block=2)
    assert found.validation.shape == (0, 8) and len(found.validation_labels) == 0 and found.test.shape == (6, 8)


def test_the_number_of_threads_changes_no_bit():
    encoder, found = models.resnet9(8), []
    pictures = torch.randint(0, 256, (70, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for threads in (1, 2, 3):  # put back to one by the fixture
        torch.set_num_threads(threads)
        found += [evaluation.features(encoder, pictures) for _ in range(3)]  # with all of them, and with one
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(("per_class", "seed"), [(1, 0), (5, 1)])
def test_few_labels_are_those_of_the_image_set(model, per_class, seed):
    images = image_set()
    few = evaluation.feature_set(model.encoder, images).few_labels(per_class, seed)
    same = evaluation.feature_set(model.encoder, images.few_labels(per_class, seed))
    torch.testing.assert_close(few.train, same.train, **CLOSE)
    torch.testing.assert_close(few.test, same.test, **CLOSE)
    assert torch.equal(few.train_labels, same.train_labels) and len(few.train) == 3 * per_class


def points(n=40, queries=15):
    generator = torch.Generator().manual_seed(0)
    bank, rows = torch.randn(n, 6, generator=generator), torch.randn(queries, 6, generator=generator)
    return bank, torch.randint(0, 4, (n,), generator=generator), rows


def nearest(bank, row, k):
    """(cosine, index) of the k rows of the bank most alike to one row, by sorting."""
    cosines = [sum(x * y for x, y in zip(row, other, strict=True)) / (math.hypot(*row) * math.hypot(*other)) for other in bank.tolist()]
    return sorted(((cosine, i) for i, cosine in enumerate(cosines)), reverse=True)[:k]


def test_neighbours_against_sorting():
    bank, _, queries = points(queries=1030)  # more than one chunk
    similarity, index = evaluation.neighbours(bank, queries, 5)
    for q in (0, 7, 1023, 1024, 1029):
        found = nearest(bank, queries[q].tolist(), 5)
        assert index[q].tolist() == [i for _, i in found]
        assert similarity[q].tolist() == pytest.approx([s for s, _ in found], abs=1e-5)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (40, 0.5)])
def test_the_vote_against_adding_up(k, temperature):
    bank, labels, queries = points()
    scores = evaluation.knn_scores(bank, labels, queries, 4, k, temperature)
    for q, row in enumerate(queries.tolist()):
        votes = [sum(math.exp(s / temperature) for s, i in nearest(bank, row, k) if labels[i] == c) for c in range(4)]
        assert scores[q].tolist() == pytest.approx([v / sum(votes) for v in votes], abs=1e-5)
    lengths = torch.linspace(0.1, 10, 40).unsqueeze(1)  # they do not matter
    torch.testing.assert_close(evaluation.knn_scores(bank * lengths, labels, 7 * queries, 4, k, temperature), scores)


def test_in_views_has_each_labelled_image_in_several_views_and_leaves_the_other_splits(model):
    encoder, tiny_images = model.encoder, image_set()
    found = evaluation.feature_set(encoder, tiny_images, block=2)
    few, view = tiny_images.few_labels(2), augment.weak(tiny_images.size)
    seen = evaluation.in_views(found, encoder, few, view, repeats=3, block=2)
    assert seen.validation is found.validation and torch.equal(seen.train_labels, few.train_labels.repeat(3))
    assert not torch.equal(seen.train[: len(few.train_labels)], seen.train[len(few.train_labels) : 2 * len(few.train_labels)])
    assert torch.equal(seen.train, evaluation.in_views(found, encoder, few, view, repeats=3, block=2).train)
    plain = evaluation.in_views(found, encoder, few, augment.evaluation(few.size), repeats=1, block=2)
    torch.testing.assert_close(plain.train, found.few_labels(2).train, **CLOSE)
