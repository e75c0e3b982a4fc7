"""Results against loops; kNN, probe, fine-tuning and retrieval: what they choose and what they leave alone."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny import NeverTouched, coloured, encoder, image_set, known_set, same_weights

from sslcourse import augment, evaluation
from sslcourse.evaluation.protocols import top_k

pytestmark = pytest.mark.usefixtures("one_thread")


def random_result(n=200, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(n, classes, generator=generator), torch.randint(0, classes, (n,), generator=generator)
    return evaluation.Result(logits, labels, [f"class {c}" for c in range(classes)])


def result_from(predictions, labels):
    return evaluation.Result(torch.eye(3)[torch.tensor(predictions)], torch.tensor(labels), ["a", "b", "c"])


def test_accuracies_and_confusion_against_a_loop():
    result, confusion = random_result(), np.zeros((5, 5), int)
    for k in (1, 2, 3, 9):
        rows = zip(result.logits.tolist(), result.labels.tolist(), strict=True)
        right = sum(label in sorted(range(5), key=lambda c: -row[c])[:k] for row, label in rows)
        assert top_k(result.logits, result.labels, k) == pytest.approx(right / 200)
    assert result.top1 == top_k(result.logits, result.labels, 1) < result.top3 < 1 == random_result(classes=3).top3
    for label, prediction in zip(result.labels.tolist(), result.logits.argmax(1).tolist(), strict=True):
        confusion[label, prediction] += 1
    assert (result.confusion == confusion).all()
    assert result.standard_error == pytest.approx((result.predictions == result.labels).numpy().std() / 200**0.5)
    assert result.confidence_interval == evaluation.wilson_interval(result.top1, 200)
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(200))


def test_mistakes_of_a_result():
    result = result_from([1, 1, 1, 0, 2, 2, 0], [0, 0, 0, 2, 2, 2, 0])
    assert str(result) == "top-1 42.9 ± 18.7 %, top-3 100.0 % on 7 images"
    assert result.most_confused(5) == [("a", "b", 3), ("c", "a", 1)]
    assert result.confusion.tolist() == [[1, 3, 0], [0, 0, 0], [1, 0, 2]]  # a class that never occurs is kept
    right = result_from([0, 1], [0, 1])
    assert right.most_confused() == [] and len(right.worst_mistakes()) == 0
    logits = torch.tensor([[3.0, 0, 0], [0, 9, 0], [0, 1, 0], [5, 0, 0], [0, 0, 2]])
    result = evaluation.Result(logits, torch.tensor([1, 1, 0, 2, 0]), ["a", "b", "c"])
    assert result.worst_mistakes().tolist() == [3, 0, 4, 2] and result.worst_mistakes(2).tolist() == [3, 0]


def test_evaluate_holds_predictions_against_labels(model, images):
    labels = evaluation.predict(model, images).argmax(1)
    wrong = labels.clone()
    wrong[:10] = (wrong[:10] + 1) % 5
    result = evaluation.evaluate(model, images, wrong, list("vwxyz"))
    assert result.top1 == pytest.approx(0.8) and result.class_names == list("vwxyz")
    assert evaluation.evaluate(model, images, labels).class_names == list("01234")
    for n, wrong, told in ((50, [0] * 3, "3 labels"), (0, [], "0 images"), (1, [-1], "Labels"), (1, [5], "Labels")):
        with pytest.raises(ValueError, match=told):
            evaluation.evaluate(model, images[:n], torch.tensor(wrong))


def feature_set(n=60, d=8, classes=3, validation=45, spread=1.0):
    """A cloud around a point for each class."""
    generator = torch.Generator().manual_seed(0)
    centres, parts = 2 * torch.randn(classes, d, generator=generator), {}
    for name, count in (("train", n), ("validation", validation), ("test", 36)):
        labels = torch.arange(count) % classes
        parts |= {name: centres[labels] + spread * torch.randn(count, d, generator=generator), f"{name}_labels": labels}
    return evaluation.FeatureSet(**parts, class_names=[f"class {c}" for c in range(classes)])


MEASURES = pytest.mark.parametrize("measure", [evaluation.knn_accuracy, evaluation.linear_probe, evaluation.mlp_probe])


@MEASURES
@pytest.mark.parametrize(("split", "classes"), [("train", 3), ("validation", 3), ("test", 3), ("test", 2)])
def test_each_split_can_be_measured(measure, split, classes):
    found = feature_set(classes=classes)
    result = measure(found, split=split)
    assert torch.equal(result.labels, found.split(split)[1]) and result.class_names == found.class_names
    assert result.top1 > 0.8 and result.logits.isfinite().all() and result.logits.shape == (result.n, classes)
    torch.testing.assert_close(result.probabilities.sum(1), torch.ones(result.n))


def test_precision_of_retrieval_by_hand():
    bank, labels = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]]), torch.tensor([0, 1, 1, 1])
    queries = torch.tensor([[2.0, 0], [0, 3]]), torch.tensor([0, 1])
    found = evaluation.FeatureSet(bank, labels, *queries, bank[:0], labels[:0], ["a", "b"])
    nearest = evaluation.retrieve(found, k=2)
    assert nearest.indices.tolist() == [[0, 1], [2, 3]]
    assert nearest.right.tolist() == [[True, False], [True, True]] and nearest.precision == 0.75
    vote = evaluation.knn_accuracy(found, k=20, temperature=0.2)
    scores = evaluation.knn_scores(bank, labels, queries[0], 2, 4, 0.2)
    torch.testing.assert_close(vote.probabilities, scores, rtol=0, atol=1e-5)
    assert vote.settings == {"k": 4, "temperature": 0.2}


@pytest.mark.parametrize("c", [0.001, 0.1, 1.0])
def test_the_probe_is_scikit_learns_on_scaled_features(c):
    found = feature_set(spread=3.0)
    mean, std = found.train.mean(0).numpy(), found.train.std(0, correction=0).numpy()
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit((found.train.numpy() - mean) / std, found.train_labels.numpy())
    expected = theirs.predict_proba((found.test.numpy() - mean) / std)
    ours = evaluation.linear_probe(found, split="test", penalties=[c])
    np.testing.assert_allclose(ours.probabilities.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5])
def test_features_that_never_change_do_not_matter_to_the_probe(value):
    found = feature_set(spread=3.0)
    constant = torch.full((60, 2), value)
    elsewhere = constant + torch.tensor([0, 7])  # what does not change where it is trained cannot be used elsewhere
    wider = replace(found, train=torch.cat([found.train, constant], 1), validation=torch.cat([found.validation, elsewhere[:45]], 1))
    expected = evaluation.linear_probe(found).probabilities
    torch.testing.assert_close(evaluation.linear_probe(wider).probabilities, expected, rtol=0, atol=5e-3)


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
    assert evaluation.linear_probe(feature_set(spread=0.01), penalties=[1.0, 0.01, 0.1]).settings == {"C": 0.01, "features": 8}


def test_the_test_rows_are_not_touched_until_they_are_asked_for():
    found = feature_set(spread=5.0)
    other = replace(found, test=NeverTouched(), test_labels=NeverTouched())
    for measure in (evaluation.knn_accuracy, evaluation.linear_probe):
        assert torch.equal(measure(other).logits, measure(found).logits)
    assert evaluation.retrieve(other).precision == evaluation.retrieve(found).precision


@MEASURES
def test_classes_without_labelled_rows_are_never_predicted(measure):
    found = feature_set(classes=5, n=50)
    rows = found.train_labels % 2 == 1  # only classes 1 and 3
    result = measure(replace(found, train=found.train[rows], train_labels=found.train_labels[rows]))
    assert result.logits.shape == (45, 5) and result.logits.isfinite().all()
    assert set(result.predictions.tolist()) <= {1, 3} and 0.2 < result.top1 <= 0.4 and result.confusion.shape == (5, 5)


def test_what_cannot_be_probed_is_refused():
    found, none = feature_set(), feature_set(validation=0)
    for penalties in ((), (0.0, 1.0), (-1,), (math.nan, 1.0), (math.inf,)):
        with pytest.raises(ValueError, match="penalties"):
            evaluation.linear_probe(found, penalties=penalties)
    with pytest.raises(ValueError, match="give one value"):
        evaluation.linear_probe(none, split="test")
    assert evaluation.linear_probe(none, split="test", penalties=(0.1,)).top1 > 0.8
    for probe in (evaluation.linear_probe, evaluation.mlp_probe):
        with pytest.raises(ValueError, match="at least 2 classes"):
            probe(replace(found, train=found.train[::3], train_labels=found.train_labels[::3]))


def test_a_hidden_layer_reads_what_lies_in_no_line():
    rows = torch.rand(900, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    labels = (rows.prod(1) > 0).long()  # opposite quadrants have one class
    (train, test), (known, truth) = rows.split([600, 300]), labels.split([600, 300])
    found = evaluation.FeatureSet(train, known, test, truth, rows[:0], labels[:0], ["a", "b"])
    assert evaluation.linear_probe(found, penalties=[1.0]).top1 < 0.6
    bent = evaluation.mlp_probe(found, hidden=32, seed=3)
    assert bent.top1 > 0.9 and bent.settings == {"hidden": 32, "features": 2}
    assert torch.equal(bent.logits, evaluation.mlp_probe(found, hidden=32, seed=3).logits)


@pytest.mark.parametrize("measure", [evaluation.knn_accuracy, evaluation.linear_probe, evaluation.mlp_probe, evaluation.retrieve])
def test_what_cannot_be_measured_is_refused(measure):
    found = feature_set()
    with pytest.raises(TypeError, match="not Tensor"):
        measure(found.train)
    with pytest.raises(ValueError, match="no labelled training rows"):
        measure(replace(found, train=found.train[:0], train_labels=found.train_labels[:0]))
    with pytest.raises(ValueError, match="test split is empty"):
        measure(replace(found, test=found.test[:0], test_labels=found.test_labels[:0]), split="test")
    with pytest.raises(ValueError, match="'all'"):
        measure(found, split="all")
    for name in ("train", "test"):
        broken = found.split(name)[0].clone()
        broken[3, 1] = math.nan
        with pytest.raises(ValueError, match=f"{name} split hold NaN or inf"):
            measure(replace(found, **{name: broken}), split="test")


def tune(network, images=None, **options):
    options = {"epochs": 1, "batch_size": 16, "precision": "fp32", "progress": False} | options
    return evaluation.fine_tune(network, images or image_set(), **options)


def test_blocks_are_probed_on_validation_images_and_the_best_mean_is_kept():
    train, validation = coloured(48, 0), coloured(30, 1)
    probed = known_set(*train, *validation, train[0][:0], train[1][:0])  # no test images
    encoders = {seed: encoder(seed) for seed in (0, 4)}
    found = evaluation.probe_blocks(encoders, probed, per_class=5)
    assert list(found) == [*range(1, 1 + len(encoders[0].blocks))]
    for block, scores in found.items():
        by_hand = [evaluation.feature_set(e, probed, block=block).few_labels(5, s) for s, e in encoders.items()]
        assert scores == [100 * evaluation.linear_probe(rows).top1 for rows in by_hand]
    assert evaluation.best_block({1: [50.0, 60.0], 2: [90.0, 30.0], 3: [60.0, 60.0]}) == 2


def test_fine_tuning_leaves_the_encoder_alone():
    network = encoder().eval()
    network.blocks[0].train()
    network.blocks[1].requires_grad_(False)
    reference = copy.deepcopy(network)
    modes, grads = [m.training for m in network.modules()], [p.requires_grad for p in network.parameters()]
    result = tune(network, epochs=3)
    assert same_weights(network, reference) and all(p.grad is None for p in network.parameters())
    assert [m.training for m in network.modules()] == modes and [p.requires_grad for p in network.parameters()] == grads
    trained = result.model.encoder
    assert not {p.data_ptr() for p in trained.parameters()} & {p.data_ptr() for p in network.parameters()}
    for (name, ours), theirs in zip(trained.named_parameters(), network.parameters(), strict=True):
        assert not torch.equal(ours, theirs), name  # the frozen block too
    assert not result.model.training


def test_the_encoder_learns_at_its_own_rate():
    still, moving = (tune(encoder(), epochs=3, encoder_lr_scale=scale, lr=1e-3) for scale in (0.0, 1.0))
    start = dict(encoder().named_parameters())
    assert all(torch.equal(p, start[name]) for name, p in still.model.encoder.named_parameters())
    assert not any(torch.equal(p, start[name]) for name, p in moving.model.encoder.named_parameters())
    assert not torch.equal(still.model.head.weight, moving.model.head.weight) and still.model.head.bias.abs().sum() > 0


def test_the_seed_of_fine_tuning_decides_and_the_random_state_is_neither_heard_nor_moved():
    network, found = encoder(), []
    for state, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        found.append(tune(network, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0].logits, found[1].logits) and same_weights(found[0].model, found[1].model)
    assert not torch.equal(found[0].logits, found[2].logits)


def test_fine_tuning_learns_and_is_measured_at_its_size_on_the_split_that_is_named():
    result = tune(encoder(), augmentation=augment.weak(12, mean=(0.2, 0.3, 0.4)))
    seen = augment.evaluation(12, mean=(0.2, 0.3, 0.4))
    torch.testing.assert_close(result.logits, evaluation.predict(result.model, image_set().validation_images, transform=seen))
    tested = coloured(21, 2)
    result = tune(encoder(), image_set(test_images=tested[0], test_labels=tested[1]), epochs=12, lr=1e-2, split="test")
    assert torch.equal(result.labels, tested[1]) and torch.equal(result.logits, evaluation.predict(result.model, tested[0]))
    assert result.top1 > 0.8 and len(result.history.rows) == 12 and result.settings["lr_scales"] == {"encoder": 0.5}  # guessing: 0.33
    result = tune(encoder(), split="train")  # the test split complains when it is touched
    assert result.n == 48 and result.class_names == ["red", "green", "blue"]
    with pytest.raises(ValueError, match="'all'"):
        tune(encoder(), split="all")
    none = image_set(validation_images=torch.empty(0, 3, 8, 8, dtype=torch.uint8), validation_labels=torch.empty(0).long())
    with pytest.raises(ValueError, match="validation split is empty"):
        tune(encoder(), none)


def test_tsne_puts_neighbours_together_and_repeats_itself():
    which = torch.arange(60) % 3  # three clumps of rows far apart
    rows = 20 * torch.eye(12)[which] + 0.1 * torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    flat = evaluation.tsne(rows, perplexity=10)
    nearest = torch.cdist(flat, flat).fill_diagonal_(math.inf).argmin(1)
    assert torch.equal(which[nearest], which) and torch.equal(flat, evaluation.tsne(rows, perplexity=10))
    for perplexity in (0, -3, 60, math.nan):
        with pytest.raises(ValueError, match="perplexity"):
            evaluation.tsne(rows, perplexity=perplexity)
