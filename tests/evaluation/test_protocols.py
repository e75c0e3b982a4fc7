"""Results and comparisons against loops and counting; kNN, probe, fine-tuning and retrieval: what they choose and what they leave alone."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny import NeverTouched, coloured, image_set, same_weights

from sslcourse import augment, datasets, evaluation, models

pytestmark = pytest.mark.usefixtures("one_thread")


def random_result(n=200, classes=5, seed=0, names=None):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(n, classes, generator=generator), torch.randint(0, classes, (n,), generator=generator)
    return evaluation.Result(logits, labels, names or [f"class {c}" for c in range(classes)])


def result_from(predictions, labels, classes=3, names=("a", "b", "c")):
    return evaluation.Result(torch.eye(classes)[torch.tensor(predictions)], torch.tensor(labels), list(names))


# --- measures -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
def test_top_k_against_a_loop(k):
    result = random_result()
    right = 0
    for row, label in zip(result.logits.tolist(), result.labels.tolist(), strict=True):
        right += label in sorted(range(len(row)), key=lambda c: -row[c])[:k]
    assert evaluation.top_k(result.logits, result.labels, k) == pytest.approx(right / 200)


def test_top1_and_top3_of_a_result():
    result = random_result()
    assert result.top1 == evaluation.top_k(result.logits, result.labels, 1)
    assert result.top3 == evaluation.top_k(result.logits, result.labels, 3) > result.top1
    assert result.n == 200
    few = random_result(classes=3)
    assert few.top3 == 1


@pytest.mark.parametrize("k", [0, -1])
def test_an_impossible_k_is_refused(k):
    with pytest.raises(ValueError, match=f"k must be at least 1, not {k}"):
        evaluation.top_k(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), k)


def test_confusion_against_a_loop():
    result = random_result()
    expected = np.zeros((5, 5), int)
    for label, prediction in zip(result.labels.tolist(), result.logits.argmax(1).tolist(), strict=True):
        expected[label, prediction] += 1
    assert (result.confusion == expected).all()
    assert np.trace(result.confusion) / result.n == pytest.approx(result.top1)


def test_confusion_keeps_classes_that_never_occur():
    assert result_from([0, 0], [0, 0]).confusion.tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_most_confused_pairs_and_only_mistakes():
    result = result_from([1, 1, 1, 0, 2, 2, 0], [0, 0, 0, 2, 2, 2, 0])
    assert result.most_confused(5) == [("a", "b", 3), ("c", "a", 1)]
    assert result.confusion[0].tolist() == [1, 3, 0]
    assert result_from([0, 1], [0, 1]).most_confused() == []


def test_worst_mistakes_come_most_confident_first():
    logits = torch.tensor([[3.0, 0, 0], [0, 9, 0], [0, 1, 0], [5, 0, 0], [0, 0, 2]])
    result = evaluation.Result(logits, torch.tensor([1, 1, 0, 2, 0]), ["a", "b", "c"])
    assert result.worst_mistakes().tolist() == [3, 0, 4, 2]
    assert result.worst_mistakes(2).tolist() == [3, 0]
    assert len(result_from([0, 1], [0, 1]).worst_mistakes()) == 0


def test_probabilities_sum_to_one():
    torch.testing.assert_close(random_result().probabilities.sum(1), torch.ones(200))


def test_a_result_reads_as_a_sentence():
    assert str(result_from([0, 1, 0, 0], [0, 1, 2, 2])) == "top-1 50.0 ± 25.0 %, top-3 100.0 % on 4 images"


def test_the_error_and_the_interval_of_a_result():
    result = random_result()
    assert result.standard_error == pytest.approx((result.predictions == result.labels).numpy().std() / 200**0.5)
    assert result.confidence_interval == evaluation.wilson_interval(result.top1, 200)
    assert result.confidence_interval[0] < result.top1 < result.confidence_interval[1]


# --- comparing -------------------------------------------------------------------------------------------------------------------------


def test_paired_difference_against_counting():
    first, second = random_result(seed=1), random_result(seed=2)
    second.labels = first.labels
    only_first = ((first.predictions == first.labels) & (second.predictions != first.labels)).sum().item()
    only_second = ((first.predictions != first.labels) & (second.predictions == first.labels)).sum().item()
    difference, error = evaluation.paired_difference(first, second)
    assert difference == pytest.approx((only_first - only_second) / 200) == pytest.approx(first.top1 - second.top1)
    exact = math.sqrt((only_first + only_second - (only_first - only_second) ** 2 / 200) / 199 / 200)
    assert error == pytest.approx(exact)


def test_paired_difference_against_a_bootstrap():
    first = random_result(n=400, seed=1)
    logits = first.logits.clone()
    logits[::10] = -logits[::10]  # the second agrees but for every tenth image
    second = evaluation.Result(logits, first.labels, first.class_names)
    right = np.stack([(r.predictions == r.labels).numpy() for r in (first, second)]).astype(float)
    rows = np.random.default_rng(0).integers(0, 400, (4000, 400))
    bootstrap = (right[0][rows] - right[1][rows]).mean(1).std()
    _, error = evaluation.paired_difference(first, second)
    assert error == pytest.approx(bootstrap, rel=0.1)
    assert error < math.hypot(first.standard_error, second.standard_error) / 1.5


def test_paired_difference_of_a_result_and_itself():
    assert evaluation.paired_difference(random_result(), random_result()) == (0, 0)


def test_paired_difference_needs_the_same_images():
    for other in (random_result(seed=5), random_result(n=100)):
        with pytest.raises(ValueError, match="same images in the same order"):
            evaluation.paired_difference(random_result(), other)


# --- predictions ----------------------------------------------------------------------------------------------------------------------


def test_evaluate_holds_predictions_against_labels(model, images):
    labels = evaluation.predict(model, images).argmax(1)
    wrong = labels.clone()
    wrong[:10] = (wrong[:10] + 1) % 5
    result = evaluation.evaluate(model, images, wrong, list("vwxyz"))
    assert result.top1 == pytest.approx(0.8) and result.class_names == list("vwxyz")
    assert evaluation.evaluate(model, images, labels).class_names == list("01234")


def test_bad_input_is_refused_with_a_sentence(model, images):
    with pytest.raises(ValueError, match="50 images, 3 labels"):
        evaluation.evaluate(model, images, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="0 images, 0 labels"):
        evaluation.evaluate(model, images[:0], torch.zeros(0, dtype=torch.long))
    for label in (-1, 5):
        with pytest.raises(ValueError, match=rf"0\.\.4; these lie in .*{label}"):
            evaluation.evaluate(model, images[:1], torch.tensor([label]))
    with pytest.raises(ValueError, match="precision"):
        evaluation.predict(model, images, precision="double")
    with pytest.raises(ValueError, match="uint8"):
        evaluation.predict(model, images.float())


# --- kNN and retrieval ----------------------------------------------------------------------------------------------------------------


def feature_set(n=60, d=8, classes=3, validation=45, test=36, seed=0, spread=1.0):
    """A cloud around a point for each class."""
    generator = torch.Generator().manual_seed(seed)
    centres, parts = 2 * torch.randn(classes, d, generator=generator), {}
    for name, count in (("train", n), ("validation", validation), ("test", test)):
        labels = torch.arange(count) % classes
        parts |= {name: centres[labels] + spread * torch.randn(count, d, generator=generator), f"{name}_labels": labels}
    return evaluation.FeatureSet(**parts, class_names=[f"class {c}" for c in range(classes)])


MEASURES = pytest.mark.parametrize("measure", [evaluation.knn_accuracy, evaluation.linear_probe])


@MEASURES
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_each_split_can_be_measured(measure, split):
    found = feature_set()
    result = measure(found, split=split)
    assert torch.equal(result.labels, found.split(split)[1]) and result.class_names == found.class_names
    assert result.top1 > 0.8 and result.logits.isfinite().all()  # guessing: 0.33
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(result.n))


def test_knn_is_the_vote_of_the_training_rows():
    found = feature_set(spread=4.0)
    result = evaluation.knn_accuracy(found, k=5, temperature=0.2, split="test")
    scores = evaluation.knn_scores(found.train, found.train_labels, found.test, 3, 5, 0.2)
    assert torch.equal(result.predictions, scores.argmax(1))
    torch.testing.assert_close(result.probabilities, scores, rtol=0, atol=1e-5)
    assert result.settings == {"k": 5, "temperature": 0.2}
    assert evaluation.knn_accuracy(found.few_labels(2), k=20).settings["k"] == 6


def test_precision_of_retrieval_by_hand():
    bank = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    found = evaluation.FeatureSet(
        bank,
        torch.tensor([0, 1, 1, 1]),
        torch.tensor([[2.0, 0], [0, 3]]),
        torch.tensor([0, 1]),
        bank[:0],
        torch.empty(0).long(),
        ["a", "b"],
    )
    nearest = evaluation.retrieve(found, k=2)
    assert nearest.indices.tolist() == [[0, 1], [2, 3]]
    assert nearest.right.tolist() == [[True, False], [True, True]] and nearest.precision == 0.75
    assert nearest.similarities[:, 0].tolist() == pytest.approx([1, 1])
    assert evaluation.retrieve(found, k=4).precision == pytest.approx((1 + 3) / 8)


# --- linear probe ---------------------------------------------------------------------------------------------------------------------


def test_the_probe_is_scikit_learns_on_scaled_features():
    found = feature_set(spread=3.0)
    mean, std = found.train.mean(0).numpy(), found.train.std(0, correction=0).numpy()
    for c in (0.001, 0.1, 1.0):
        theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit((found.train.numpy() - mean) / std, found.train_labels.numpy())
        expected = theirs.predict_proba((found.test.numpy() - mean) / std)
        ours = evaluation.linear_probe(found, split="test", penalties=[c])
        np.testing.assert_allclose(ours.probabilities.numpy(), expected, atol=2e-3)
        chosen = evaluation.linear_probe(found, split="test", penalties=[c / 10, c])  # where it began is not where it ends
        if chosen.settings["C"] == c:
            np.testing.assert_allclose(chosen.probabilities.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0), (1e6, 0), (1, 100), (1e3, -1e4)])
def test_scale_and_shift_of_features_do_not_matter_to_the_probe(scale, shift):
    found = feature_set(spread=3.0)
    moved = replace(found, **{name: found.split(name)[0] * scale + shift for name in ("train", "validation", "test")})
    first, second = evaluation.linear_probe(found), evaluation.linear_probe(moved)
    assert first.settings == second.settings
    torch.testing.assert_close(second.probabilities, first.probabilities, rtol=0, atol=5e-3)


@pytest.mark.parametrize("value", [0.0, 1e-3, 0.1, 1e5])
def test_features_that_never_change_do_not_matter_to_the_probe(value):
    found = feature_set(spread=3.0)
    wider = {name: torch.cat([found.split(name)[0], torch.full((len(found.split(name)[0]), 2), value)], 1) for name in ("train", "test")}
    last = torch.full((45, 2), value)
    last[:, 1] += 7  # what does not change where it is trained cannot be used elsewhere
    found_wider = replace(found, **wider, validation=torch.cat([found.validation, last], 1))
    torch.testing.assert_close(
        evaluation.linear_probe(found_wider).probabilities, evaluation.linear_probe(found).probabilities, rtol=0, atol=5e-3
    )


def test_the_penalty_is_chosen_on_the_validation_split_alone():
    # the test rows are the validation rows with the opposite labels, so that what is best on one is worst on the other
    found, penalties = feature_set(n=40, d=12, classes=2, validation=200, spread=6.0), (1e-4, 1.0)
    opposite = {"test": found.validation, "test_labels": 1 - found.validation_labels}
    for labels in (found.validation_labels, 1 - found.validation_labels):
        found = replace(found, **opposite, validation_labels=labels)
        alone = [evaluation.linear_probe(found, penalties=[c]).top1 for c in penalties]
        chosen = evaluation.linear_probe(found, split="test", penalties=penalties)
        assert alone[0] != alone[1] and chosen.settings["C"] == penalties[alone.index(max(alone))]
        same = evaluation.linear_probe(found, split="test", penalties=[chosen.settings["C"]])  # its weights, not those of the last penalty
        torch.testing.assert_close(chosen.probabilities, same.probabilities, rtol=0, atol=5e-3)


def test_the_test_rows_do_not_matter_to_what_is_chosen():
    found = feature_set(spread=5.0)
    other = replace(found, test=NeverTouched(), test_labels=NeverTouched())
    first, second = evaluation.linear_probe(found), evaluation.linear_probe(other)
    assert first.settings == second.settings and torch.equal(first.logits, second.logits)
    assert evaluation.knn_accuracy(other).top1 == evaluation.knn_accuracy(found).top1
    assert evaluation.retrieve(other).precision == evaluation.retrieve(found).precision


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [2, 3])
def test_rows_far_away_have_finite_logits(classes):
    found = feature_set(classes=classes)
    result = evaluation.linear_probe(replace(found, test=1e5 * found.test), split="test")
    assert result.logits.isfinite().all() and result.top1 > 0.8


def test_of_equal_penalties_the_stronger_is_taken():
    assert evaluation.linear_probe(feature_set(spread=0.01), penalties=[1.0, 0.01, 0.1]).settings == {"C": 0.01, "features": 8}


@MEASURES
def test_classes_without_labelled_rows_are_never_predicted(measure):
    found = feature_set(classes=5, n=50)
    rows = found.train_labels % 2 == 1  # only classes 1 and 3
    result = measure(replace(found, train=found.train[rows], train_labels=found.train_labels[rows]))
    assert result.logits.shape == (45, 5) and result.logits.isfinite().all()
    assert set(result.predictions.tolist()) <= {1, 3}
    assert 0.2 < result.top1 <= 0.4 and result.top1 <= result.top3 <= 1
    assert result.confusion.shape == (5, 5) and result.confusion.sum() == 45 and result.most_confused()
    assert str(result) and len(result.worst_mistakes()) == 8


@MEASURES
def test_two_classes(measure):
    result = measure(feature_set(classes=2), split="test")
    assert result.logits.shape == (36, 2) and result.top1 > 0.8 and result.top3 == 1
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(36))


def test_one_penalty_needs_no_validation_rows():
    found = feature_set(validation=0)
    with pytest.raises(ValueError, match=r"none; give one value, such as penalties=\(0.1,\)"):
        evaluation.linear_probe(found, split="test")
    assert evaluation.linear_probe(found, split="test", penalties=(0.1,)).top1 > 0.8


@pytest.mark.parametrize("penalties", [(), (0.0, 1.0), (-1,), (math.nan, 1.0), (math.inf,)])
def test_impossible_penalties_are_refused(penalties):
    with pytest.raises(ValueError, match="penalties must be positive numbers"):
        evaluation.linear_probe(feature_set(), penalties=penalties)


@pytest.mark.parametrize("measure", [evaluation.knn_accuracy, evaluation.linear_probe, evaluation.retrieve])
def test_what_cannot_be_measured_is_refused_with_a_sentence(measure):
    found = feature_set()
    with pytest.raises(TypeError, match=r"FeatureSet, from evaluation.feature_set\(encoder, images\), not Tensor"):
        measure(found.train)
    with pytest.raises(ValueError, match="no labelled training rows"):
        measure(replace(found, train=found.train[:0], train_labels=found.train_labels[:0]))
    with pytest.raises(ValueError, match="The test split is empty.*another split"):
        measure(replace(found, test=found.test[:0], test_labels=found.test_labels[:0]), split="test")
    with pytest.raises(ValueError, match="split is one of"):
        measure(found, split="all")
    for name in ("train", "test"):
        broken = found.split(name)[0].clone()
        broken[3, 1] = math.nan
        with pytest.raises(ValueError, match=f"features of the {name} split hold NaN or inf"):
            measure(replace(found, **{name: broken}), split="test")


def test_a_probe_of_one_class_is_refused():
    found = feature_set()
    one = found.train_labels == 1
    with pytest.raises(ValueError, match="at least two classes"):
        evaluation.linear_probe(replace(found, train=found.train[one], train_labels=found.train_labels[one]))


# --- fine-tuning ----------------------------------------------------------------------------------------------------------------------


def encoder(seed=0):
    torch.manual_seed(seed)
    made = models.resnet9(4)
    made(torch.randn(16, 3, 8, 8))  # statistics that are not the first ones
    return made


TUNE = {"epochs": 3, "batch_size": 16, "precision": "fp32", "progress": False}


def tune(network, images=None, **options):
    return evaluation.fine_tune(network, images or image_set(), **{**TUNE, **options})


def test_fine_tuning_leaves_the_encoder_alone():
    network = encoder().eval()
    network.blocks[0].train()
    network.blocks[1].requires_grad_(False)
    reference = copy.deepcopy(network)
    modes, grads = [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]
    result = tune(network)
    assert same_weights(network, reference)
    assert [m.training for m in network.modules()] == modes and [p.requires_grad for p in network.parameters()] == grads
    assert all(p.grad is None for p in network.parameters())
    trained = result.model.encoder
    assert not {p.data_ptr() for p in trained.parameters()} & {p.data_ptr() for p in network.parameters()}
    for (name, ours), theirs in zip(trained.named_parameters(), network.parameters(), strict=True):
        assert not torch.equal(ours, theirs), name  # the frozen block too
    assert not result.model.training


def test_fine_tuning_learns_and_says_how():
    result = tune(encoder(), epochs=12, lr=1e-2)
    assert isinstance(result, evaluation.Result) and result.n == 30 and result.class_names == ["red", "green", "blue"]
    assert result.top1 > 0.8  # guessing: 0.33
    assert len(result.history.rows) == 12 and result.settings["lr_scales"] == {"encoder": 0.5}
    assert result.top1 == pytest.approx(result.history.final["validation_accuracy"])


def test_the_encoder_learns_at_its_own_rate():
    still, moving = (tune(encoder(), encoder_lr_scale=scale, lr=1e-3) for scale in (0.0, 1.0))
    start = dict(encoder().named_parameters())
    assert all(torch.equal(p, start[name]) for name, p in still.model.encoder.named_parameters())
    assert not any(torch.equal(p, start[name]) for name, p in moving.model.encoder.named_parameters())
    assert not torch.equal(still.model.head.weight, moving.model.head.weight) and still.model.head.bias.abs().sum() > 0


def test_the_seed_of_fine_tuning_decides():
    first, again, other = (tune(encoder(seed=0), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.logits, again.logits) and same_weights(first.model, again.model)
    assert not torch.equal(first.logits, other.logits)


def test_fine_tuning_neither_hears_nor_moves_the_random_state():
    network = encoder()
    torch.manual_seed(1)
    expected = tune(network, epochs=1, seed=3).logits
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(tune(network, epochs=1, seed=3).logits, expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_fine_tuning_is_measured_on_the_split_that_is_named():
    images = image_set()  # its test split complains when it is touched
    assert tune(encoder(), images, epochs=1, split="train").n == 48
    with pytest.raises(AssertionError, match="the test split was touched"):
        tune(encoder(), images, epochs=1, split="test")
    tested = coloured(21, 2)
    result = tune(encoder(), image_set(test_images=tested[0], test_labels=tested[1]), epochs=1, split="test")
    assert torch.equal(result.labels, tested[1])
    assert torch.equal(result.logits, evaluation.predict(result.model, tested[0]))


def test_fine_tuning_is_measured_at_the_size_it_was_trained_at():
    view = augment.weak(12, mean=(0.2, 0.3, 0.4))
    result = tune(encoder(), epochs=1, augmentation=view)
    seen = augment.evaluation(12, mean=(0.2, 0.3, 0.4))
    torch.testing.assert_close(result.logits, evaluation.predict(result.model, image_set().validation_images, transform=seen))
    assert result.top1 == pytest.approx(result.history.final["validation_accuracy"])


def test_impossible_splits_of_fine_tuning_are_refused_before_it_trains():
    with pytest.raises(ValueError, match="split is one of train, validation, test, not 'all'"):
        tune(encoder(), split="all")
    none = image_set(validation_images=torch.empty(0, 3, 8, 8, dtype=torch.uint8), validation_labels=torch.empty(0).long())
    with pytest.raises(ValueError, match="The validation split is empty"):
        tune(encoder(), none)


def test_from_images_to_every_measure():
    """The way a lesson goes: an ImageSet, few labels, one feature set, and everything that is measured on it."""
    parts = {}
    for seed, name in enumerate(("train", "validation", "test")):
        parts[f"{name}_images"], parts[f"{name}_labels"] = coloured(45, seed)
    images = datasets.ImageSet(name="coloured", class_names=["red", "green", "blue"], mean=(0.5,) * 3, std=(0.25,) * 3, **parts)
    network = encoder()
    few = evaluation.feature_set(network, images).few_labels(5, seed=1)
    for result in (evaluation.knn_accuracy(few, split="test"), evaluation.linear_probe(few, split="test")):
        assert result.n == 45 and result.top1 > 0.6  # guessing: 0.33; what is told apart is a colour
    assert 0.4 < evaluation.retrieve(few, k=3, split="test").precision <= 1
    assert tune(network, images.few_labels(5, seed=1), split="test").n == 45


# --- maps -----------------------------------------------------------------------------------------------------------------------------


def clumps(n=60, dim=12):
    """Three clumps of rows far apart, and which each row belongs to."""
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.eye(dim)[:3]
    which = torch.arange(n) % 3
    return centres[which] + 0.1 * torch.randn(n, dim, generator=generator), which


def test_pca_keeps_the_distances_of_rows_that_lie_in_a_plane():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 2, generator=generator) @ torch.linalg.qr(torch.randn(9, 2, generator=generator)).Q.T
    flat = evaluation.pca(rows)
    assert flat.shape == (40, 2)
    torch.testing.assert_close(torch.pdist(flat), torch.pdist(rows), rtol=1e-4, atol=1e-4)


def test_tsne_puts_neighbours_together_and_repeats_itself():
    rows, which = clumps()
    flat = evaluation.tsne(rows, perplexity=10)
    nearest = torch.cdist(flat, flat).fill_diagonal_(math.inf).argmin(1)
    assert torch.equal(which[nearest], which)
    assert torch.equal(flat, evaluation.tsne(rows, perplexity=10))


@pytest.mark.parametrize("perplexity", [0, -3, 60, math.nan])
def test_a_perplexity_that_cannot_be_is_refused(perplexity):
    with pytest.raises(ValueError, match="perplexity is about a number of neighbours"):
        evaluation.tsne(clumps()[0], perplexity=perplexity)
