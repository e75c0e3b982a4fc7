"""Measures against loops and known values, comparisons, and predictions that do not depend on how they are made."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sslcourse import augment, evaluation, models


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are too small for two to be of use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


# --- how sure -------------------------------------------------------------------------------------------------------------------------


def test_standard_error_of_a_coin():
    assert evaluation.standard_error(0.5, 100) == pytest.approx(0.05)
    assert evaluation.standard_error(1.0, 10) == 0
    result = random_result()
    assert result.standard_error == pytest.approx((result.predictions == result.labels).numpy().std() / 200**0.5)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # from Newcombe 1998 (Statistics in Medicine 17, table I), method 3: the score interval without continuity correction
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_against_published_values(right, n, low, high):
    assert evaluation.wilson_interval(right / n, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_solves_its_equation():
    # its ends p are where the observed accuracy lies z standard errors, at p, away
    for accuracy, n, confidence, z in ((0.7, 50, 0.95, 1.959964), (0.9, 400, 0.99, 2.575829)):
        for end in evaluation.wilson_interval(accuracy, n, confidence):
            assert abs(accuracy - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-5)


def test_wilson_interval_stays_inside_and_is_symmetric():
    for n in (1, 10, 1000):
        low, high = evaluation.wilson_interval(1.0, n)
        assert 0 < low < high <= 1
        assert evaluation.wilson_interval(0.0, n) == pytest.approx((1 - high, 1 - low))
    result = random_result()
    assert result.confidence_interval == evaluation.wilson_interval(result.top1, 200)
    assert result.confidence_interval[0] < result.top1 < result.confidence_interval[1]


@pytest.mark.parametrize("function", [evaluation.standard_error, evaluation.wilson_interval])
@pytest.mark.parametrize(("accuracy", "n"), [(-0.1, 10), (1.1, 10), (50, 10), (0.5, 0), (math.nan, 10)])
def test_impossible_accuracies_are_refused_with_a_sentence(function, accuracy, n):
    with pytest.raises(ValueError, match=f"not {accuracy} and {n}"):
        function(accuracy, n)


def test_mean_and_error_of_several_runs():
    assert evaluation.mean_and_error([0.6, 0.7, 0.8]) == pytest.approx((0.7, 0.1 / 3**0.5))
    mean, error = evaluation.mean_and_error([0.6])
    assert mean == 0.6 and math.isnan(error)
    with pytest.raises(ValueError, match="at least one value"):
        evaluation.mean_and_error([])


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


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = models.Classifier(models.resnet9(4), 5, dropout=0.5)
    nn.init.normal_(model.head.weight)
    model(torch.randn(32, 3, 16, 16))  # statistics that are not the first ones
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (50, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


CLOSE = {"rtol": 0, "atol": 1e-4}  # convolutions may add up in another order when a batch has another size


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_batches_do_not_matter(model, images, batch_size):
    torch.testing.assert_close(
        evaluation.predict(model, images, batch_size=batch_size), evaluation.predict(model, images, batch_size=16), **CLOSE
    )


def test_order_does_not_matter(model, images):
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(evaluation.predict(model, images[order]), evaluation.predict(model, images)[order], **CLOSE)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_does_not_matter_and_is_put_back(model, images, training):
    model.eval()
    expected = evaluation.predict(model, images)
    model.train(training)
    model.encoder.blocks[0].eval()  # a part that its owner keeps frozen
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    logits = evaluation.predict(model, images)
    assert torch.equal(logits, expected) and not logits.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_mode_is_put_back_after_an_error(model):
    model.train()
    with pytest.raises(ValueError, match="8 pixels"):
        evaluation.predict(model, torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert model.training


def test_predictions_are_what_the_model_says(model, images):
    expected = model.eval()(augment.evaluation(16)(images))
    torch.testing.assert_close(evaluation.predict(model, images), expected, **CLOSE)
    expected = model(augment.evaluation(24)(images))
    torch.testing.assert_close(evaluation.predict(model, images, size=24), expected, **CLOSE)
    torch.testing.assert_close(evaluation.predict(model, images, transform=augment.evaluation(24)), expected, **CLOSE)


def test_evaluate_holds_predictions_against_labels(model, images):
    labels = evaluation.predict(model, images).argmax(1)
    wrong = labels.clone()
    wrong[:10] = (wrong[:10] + 1) % 5
    result = evaluation.evaluate(model, images, wrong, list("vwxyz"))
    assert result.top1 == pytest.approx(0.8) and result.class_names == list("vwxyz")
    assert evaluation.evaluate(model, images, labels).class_names == list("01234")


def test_a_model_without_parameters_can_be_evaluated(images):
    class Brightness(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    assert evaluation.predict(Brightness(), images).shape == (50, 3)


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
