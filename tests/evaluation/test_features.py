"""Predictions and features that do not depend on how they are made, feature sets, and the vote of the nearest neighbours."""

import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F

from sslcourse import augment, datasets
from sslcourse.evaluation import features

pytestmark = pytest.mark.usefixtures("one_thread")


CLOSE = {"rtol": 0, "atol": 1e-4}  # convolutions may add up in another order when a batch has another size


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_batches_do_not_matter(model, images, batch_size):
    torch.testing.assert_close(
        features.predict(model, images, batch_size=batch_size), features.predict(model, images, batch_size=16), **CLOSE
    )


def test_order_does_not_matter(model, images):
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(features.predict(model, images[order]), features.predict(model, images)[order], **CLOSE)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_does_not_matter_and_is_put_back(model, images, training):
    model.eval()
    expected = features.predict(model, images)
    model.train(training)
    model.encoder.blocks[0].eval()  # a part that its owner keeps frozen
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    logits = features.predict(model, images)
    assert torch.equal(logits, expected) and not logits.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_mode_is_put_back_after_an_error(model):
    model.train()
    with pytest.raises(ValueError, match="8 pixels"):
        features.predict(model, torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert model.training


def test_predictions_are_what_the_model_says(model, images):
    expected = model.eval()(augment.evaluation(16)(images))
    torch.testing.assert_close(features.predict(model, images), expected, **CLOSE)
    expected = model(augment.evaluation(24)(images))
    torch.testing.assert_close(features.predict(model, images, size=24), expected, **CLOSE)
    torch.testing.assert_close(features.predict(model, images, transform=augment.evaluation(24)), expected, **CLOSE)


def test_a_model_without_parameters_can_be_evaluated(images):
    class Brightness(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    assert features.predict(Brightness(), images).shape == (50, 3)


# --- features -------------------------------------------------------------------------------------------------------------------------


def test_features_are_the_encoders_own_output(model, images):
    expected = model.encoder.eval()(augment.evaluation(16)(images))
    found = features.features(model.encoder, images, precision="fp32", batch_size=16)
    assert found.shape == (50, 32) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("block", [1, 3, 6, -1, -6])
@pytest.mark.parametrize("grid", [1, 2])
def test_features_of_a_block_are_the_largest_values_in_each_cell(model, images, block, grid):
    maps = model.encoder.eval().feature_maps(augment.evaluation(16)(images))
    chosen = maps[block - 1] if block > 0 else maps[block]
    side = chosen.shape[2] // grid
    cells = [
        chosen[:, :, side * i : side * (i + 1), side * j : side * (j + 1)].amax((2, 3)) for i in range(grid) for j in range(grid)
    ]  # grid² times (N, channels)
    found = features.features(model.encoder, images, block=block, grid=grid, precision="fp32")
    assert found.shape == (50, chosen.shape[1] * grid**2)
    torch.testing.assert_close(found, torch.stack(cells, 2).flatten(1), **CLOSE)


def test_the_last_block_of_a_resnet9_pooled_is_its_output(model, images):
    torch.testing.assert_close(
        features.features(model.encoder, images, block=-1, precision="fp32"), features.features(model.encoder, images, precision="fp32")
    )


def test_features_in_bfloat16_are_about_the_same(model, images):
    for options in ({}, {"block": 2, "grid": 2}):
        half, whole = (features.features(model.encoder, images, precision=p, **options) for p in ("bf16", "fp32"))
        assert half.dtype == torch.float32 and (half - whole).abs().max() < 0.05 * whole.abs().max()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"grid": 2}, "grid=2 needs a block"),
        ({"block": 0}, "block is 0; this encoder has blocks 1 to 6"),
        ({"block": 7}, "block is 7"),
        ({"block": -7}, "block is -7"),
        ({"block": 2, "grid": 0}, "grid is the number of cells a side and must be at least 1, not 0"),
        ({"precision": "double"}, "precision must be one of"),
    ],
)
def test_impossible_blocks_are_refused(model, images, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        features.features(model.encoder, images, **options)


def test_an_encoder_without_maps_has_no_blocks(images):
    with pytest.raises(ValueError, match="Flatten has no feature_maps"):
        features.features(nn.Flatten(), images, block=1)


# --- what an encoder should see -------------------------------------------------------------------------------------------------------


def test_the_view_for_evaluation_is_that_of_the_augmentation(images):
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    expected = augment.evaluation(12, **options)(images)
    for augmentation in (augment.simclr(12, **options), augment.byol_views(12, **options)):
        torch.testing.assert_close(features.evaluation_view(augmentation, 16)(images), expected)
    for other in (None, nn.Identity()):
        assert torch.equal(features.evaluation_view(other, 16)(images), augment.evaluation(16)(images))


# --- feature sets ---------------------------------------------------------------------------------------------------------------------


def image_set(n=60, classes=3, validation=9, test=6):
    parts, generator = {}, torch.Generator().manual_seed(3)
    for name, count in (("train", n), ("validation", validation), ("test", test)):
        parts[f"{name}_images"] = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        parts[f"{name}_labels"] = torch.randint(0, classes, (count,), generator=generator)
    return datasets.ImageSet(name="noise", class_names=list("abcde")[:classes], mean=(0.5,) * 3, std=(0.25,) * 3, **parts)


def test_a_feature_set_holds_every_split(model):
    images = image_set()
    found = features.feature_set(model.encoder, images, precision="fp32")
    assert found.dim == 32 and found.class_names == ["a", "b", "c"]
    for name in ("train", "validation", "test"):
        rows, labels = found.split(name)
        assert torch.equal(rows, features.features(model.encoder, getattr(images, f"{name}_images"), precision="fp32"))
        assert torch.equal(labels, getattr(images, f"{name}_labels"))
    assert features.feature_set(model.encoder, images, block=2, grid=2).dim == 32
    with pytest.raises(ValueError, match="split is one of train, validation, test, not 'all'"):
        found.split("all")


def test_an_empty_split_has_features_of_the_same_width(model):
    found = features.feature_set(model.encoder, image_set(validation=0))
    assert found.validation.shape == (0, 32) and len(found.validation_labels) == 0 and found.test.shape == (6, 32)


@pytest.mark.parametrize(("per_class", "seed"), [(1, 0), (5, 0), (5, 1)])
def test_few_labels_are_those_of_the_image_set(model, per_class, seed):
    images = image_set()
    few = features.feature_set(model.encoder, images, precision="fp32").few_labels(per_class, seed)
    same = features.feature_set(model.encoder, images.few_labels(per_class, seed), precision="fp32")
    torch.testing.assert_close(few.train, same.train, **CLOSE)
    assert torch.equal(few.train_labels, same.train_labels) and len(few.train) == 3 * per_class
    torch.testing.assert_close(few.test, same.test, **CLOSE)


def test_too_few_labels_are_refused_as_by_the_image_set(model):
    with pytest.raises(ValueError, match="fewer than per_class=50"):
        features.feature_set(model.encoder, image_set()).few_labels(50)


# --- neighbours -----------------------------------------------------------------------------------------------------------------------


def points(n=40, queries=15, d=6, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bank, rows = torch.randn(n, d, generator=generator), torch.randn(queries, d, generator=generator)
    return bank, torch.randint(0, classes, (n,), generator=generator), rows


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_neighbours_against_sorting(chunk):
    bank, _, queries = points()
    similarity, index = features.neighbours(bank, queries, 5, chunk)
    for q, row in enumerate(queries.tolist()):
        found = sorted(((cosine(row, other), i) for i, other in enumerate(bank.tolist())), reverse=True)[:5]
        assert index[q].tolist() == [i for _, i in found]
        assert similarity[q].tolist() == pytest.approx([s for s, _ in found], abs=1e-5)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (7, 1.0), (40, 0.5)])
def test_the_vote_against_adding_up(k, temperature):
    bank, labels, queries = points()
    scores = features.knn_scores(bank, labels, queries, 4, k, temperature)
    torch.testing.assert_close(scores.sum(1), torch.ones(15))
    for q, row in enumerate(queries.tolist()):
        nearest = sorted(((cosine(row, other), label) for other, label in zip(bank.tolist(), labels.tolist(), strict=True)), reverse=True)[
            :k
        ]
        votes = [sum(math.exp(s / temperature) for s, label in nearest if label == c) for c in range(4)]
        assert scores[q].tolist() == pytest.approx([v / sum(votes) for v in votes], abs=1e-5)


def test_one_neighbour_against_scikit_learn():
    bank, labels, queries = points(n=200, queries=100)
    theirs = KNeighborsClassifier(1, metric="cosine").fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
    assert features.knn_scores(bank, labels, queries, 4, k=1).argmax(1).tolist() == theirs.tolist()


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-300])
def test_at_a_low_temperature_the_nearest_decides(temperature):
    bank, labels, queries = points()
    scores = features.knn_scores(bank, labels, queries, 4, k=10, temperature=temperature)
    assert torch.equal(scores.argmax(1), features.knn_scores(bank, labels, queries, 4, k=1).argmax(1))
    torch.testing.assert_close(scores.sum(1), torch.ones(15))


def test_at_a_high_temperature_every_neighbour_counts_alike():
    bank, labels, queries = points()
    scores = features.knn_scores(bank, labels, queries, 4, k=40, temperature=1e9)
    torch.testing.assert_close(scores, F.one_hot(labels, 4).float().mean(0).expand(15, 4))


def test_the_length_of_a_feature_does_not_matter_to_the_vote():
    bank, labels, queries = points()
    lengths = torch.linspace(0.1, 10, 40).unsqueeze(1)
    torch.testing.assert_close(features.knn_scores(bank * lengths, labels, 7 * queries, 4), features.knn_scores(bank, labels, queries, 4))


def test_impossible_neighbours_are_refused():
    bank, labels, queries = points()
    for k in (0, 41):
        with pytest.raises(ValueError, match=f"k is {k}; it must lie between 1 and 40"):
            features.neighbours(bank, queries, k)
    with pytest.raises(ValueError, match="same D"):
        features.neighbours(bank, queries[:, :3], 1)
    with pytest.raises(ValueError, match="temperature must be positive, not 0"):
        features.knn_scores(bank, labels, queries, 4, temperature=0)
    with pytest.raises(ValueError, match="40 rows, 39 labels"):
        features.knn_scores(bank, labels[1:], queries, 4)
    assert features.knn_scores(bank, labels, queries, 4, k=1000).shape == (15, 4)  # k is cut
