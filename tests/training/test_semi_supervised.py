"""Pseudo-labels and FixMatch: the loss against an independent computation, averages, ramp, batches, looks, exact resuming, refusals."""

import math
import types

import pytest
import torch
from tiny import NeverTouched, coloured, image_set, same_weights, without_seconds
from torch import nn
from torch.nn import functional as F

from sslcourse import augment, datasets, losses, models, training
from sslcourse.loaders import PairedLoader, TensorLoader

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"epochs": 4, "batch_size": 6, "unlabeled_ratio": 2, "precision": "fp32", "progress": False}
KINDS = {"plain": models.PseudoLabeling, "fixmatch": models.FixMatch}
EACH = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class Half(nn.Module):
    """A strong view without randomness: darker, and mirrored."""

    def forward(self, images, generator=None):
        return augment.evaluation(images.shape[-1])((images // 2).flip(3))


def classifier(seed=0, dropout=0.2, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.Classifier(models.resnet9(4), classes, dropout)
        nn.init.normal_(model.head.weight, std=0.1)  # so that it is sure of some images and not of others
        model(torch.randn(32, 3, 8, 8))  # statistics that are not the first ones
        return model


def method(kind=models.FixMatch, seed=0, dropout=0.2, **options):
    return kind(classifier(seed, dropout), **options)


def few(labeled=9, unlabeled=40, **changes):
    """Nine labelled images of three classes, and forty others."""
    images, labels = coloured(labeled, 5)
    return image_set(**{"unlabeled": coloured(unlabeled, 6)[0], "train_images": images, "train_labels": labels} | changes)


def fit(made, images=None, **options):
    return training.fit_semi_supervised(made, images if images is not None else few(), **{**OPTIONS, **options})


# --- the ramp -------------------------------------------------------------------------------------------------------------------------


class Watched(models.PseudoLabeling):
    """Notes the weight that each forward pass used, and the batches that came."""

    def forward(self, images, labels, unlabeled):
        self.seen = [*getattr(self, "seen", []), (images.clone(), labels.clone(), unlabeled.clone(), self.weight.item())]
        return super().forward(images, labels, unlabeled)


@pytest.mark.parametrize("ramp", [(0.0, 0.4), (0.25, 0.75), (0.5, 0.5), (0.0, 0.0), (0.0, 1.0)])
def test_the_weight_rises_at_every_step(ramp):
    made = method(Watched, ramp=ramp, weight=2.0)
    log = fit(made)
    used = [weight for *_, weight in made.seen]
    steps = len(used)
    assert steps == 4 * (40 // 12) == log.final["step"]
    wanted = [losses.pseudo_label_weight(done, ramp[0] * steps, ramp[1] * steps, 2.0) for done in range(steps)]
    assert used == pytest.approx(wanted, rel=1e-6)
    per_pass = [sum(used[3 * k : 3 * k + 3]) / 3 for k in range(4)]
    assert log["pseudo_weight"] == pytest.approx(per_pass, rel=1e-5)
    assert made.weight.item() == 2.0  # where the ramp ends


# --- the batches ----------------------------------------------------------------------------------------------------------------------


def test_every_label_belongs_to_its_image_and_unlabelled_images_come_without():
    images = few()
    images.unlabeled_labels = NeverTouched()  # whoever looks for labels there is found out
    made = method(Watched)
    fit(made, images)
    known = {x.numpy().tobytes(): int(y) for x, y in zip(images.train_images, images.train_labels, strict=True)}
    others = {x.numpy().tobytes() for x in images.unlabeled}
    for x, y, u, _ in made.seen:
        assert x.shape == (6, 3, 8, 8) and u.shape == (12, 3, 8, 8)
        assert [known[one.numpy().tobytes()] for one in x] == y.tolist()
        assert all(one.numpy().tobytes() in others for one in u)
    for first in range(0, len(made.seen), 3):  # no unlabelled image comes twice in a pass
        passed = [one.numpy().tobytes() for *_, u, _ in made.seen[first : first + 3] for one in u]
        assert len(passed) == len(set(passed)) == 36


def paired(labeled=7, unlabeled=20, batch_size=3, ratio=2, **options):
    ours = TensorLoader(torch.arange(labeled), -torch.arange(labeled), batch_size=batch_size, shuffle=True, drop_last=True, seed=1)
    return PairedLoader(ours, TensorLoader(torch.arange(unlabeled), batch_size=batch_size * ratio, shuffle=True, drop_last=True, seed=2))


def one_pass(loader):
    return [[part.tolist() for part in batch] for batch in loader]


def test_the_labelled_images_go_round_as_often_as_a_pass_takes():
    loader = paired()
    assert len(loader) == 3  # 20 unlabelled images in sixes
    batches = [batch for _ in range(4) for batch in one_pass(loader)]
    assert loader.epoch == 4 and len(batches) == 12
    for x, y, u in batches:
        assert [-v for v in x] == y and len(x) == 3 and len(u) == 6
    for first in range(0, 12, 2):  # two labelled batches make a round
        assert len({v for x, *_ in batches[first : first + 2] for v in x}) == 6
    assert len({tuple(x) for x, *_ in batches}) > 6  # in a new order every time
    for first in range(0, 12, 3):
        assert len({v for *_, u in batches[first : first + 3] for v in u}) == 18


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_a_resumed_pair_goes_on_with_the_same_batches(passes):
    loader, resumed = paired(), paired()
    for _ in range(passes):
        one_pass(loader)
    state = loader.state_dict()
    wanted = [one_pass(loader) for _ in range(3)]
    resumed.load_state_dict(state)
    assert resumed.epoch == passes
    assert [one_pass(resumed) for _ in range(3)] == wanted


def test_more_labelled_images_than_a_pass_needs_are_all_seen_in_time():
    loader = paired(labeled=30, unlabeled=12)
    seen = {v for _ in range(5) for x, *_ in one_pass(loader) for v in x}
    assert len(loader) == 2 and seen == set(range(30))


def test_a_pair_wants_two_tensors_and_one_and_whole_batches():
    numbers = torch.arange(8)
    two, one = TensorLoader(numbers, numbers, batch_size=2, drop_last=True), TensorLoader(numbers, batch_size=4, drop_last=True)
    PairedLoader(two, one)
    with pytest.raises(ValueError, match="labeled must be a TensorLoader of 2 tensors with drop_last=True"):
        PairedLoader(one, one)
    with pytest.raises(ValueError, match="unlabeled must be a TensorLoader of 1 tensor with drop_last=True"):
        PairedLoader(two, two)
    with pytest.raises(ValueError, match="unlabeled must be"):
        PairedLoader(two, TensorLoader(numbers, batch_size=4))


# --- training -------------------------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_run_ends_with_the_same_bits(kind, stop_after, tmp_path):
    options = {"optimizer": "sgd", "lr": 0.02, "clip_norm": 1.0, "lr_scales": {"classifier.encoder": 0.5}}
    whole, part, rest = (method(kind, seed=seed) for seed in (0, 0, 7))
    log = fit(whole, **options)
    file = tmp_path / "run.pt"
    assert len(fit(part, checkpoint=file, stop_after=stop_after, **options).rows) == stop_after
    resumed = fit(rest, checkpoint=file, **options)  # into other weights, which the checkpoint replaces
    assert same_weights(whole, rest)  # the classifier's, the averaged and the weight of the ramp
    assert not same_weights(whole, part)
    assert without_seconds(resumed) == without_seconds(log)


@EACH
def test_a_run_repeats_and_leaves_the_random_state_alone(kind):
    first, second = method(kind), method(kind)
    torch.manual_seed(1)
    log = fit(first)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert without_seconds(fit(second)) == without_seconds(log)
    assert same_weights(first, second)
    third = method(kind)
    fit(third, seed=1)
    assert not same_weights(first, third)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    fit(method(), checkpoint=tmp_path / "run.pt", stop_after=1)
    for changed in ({"threshold": 0.5}, {"label_smoothing": 0.1}):
        with pytest.raises(Exception, match="threshold|options"):
            fit(method(**changed), checkpoint=tmp_path / "run.pt")


def test_both_kinds_of_images_teach():
    """Three colours from nine labels: the loss falls, and the averaged classifier is right."""
    made = method(threshold=0.8, average=0.9)
    log = fit(made, few(labeled=9, unlabeled=120), epochs=8, lr=1e-2)
    assert log["supervised_loss"][-1] < log["supervised_loss"][0]
    assert log["coverage"][-1] > log["coverage"][0]
    assert log.final["validation_accuracy"] > 0.6  # guessing has a third
    assert not made.training and not made.averaged.training


# --- looks ----------------------------------------------------------------------------------------------------------------------------


def test_a_look_measures_the_averaged_classifier_on_validation_images():
    images, seen = few(), {}
    options = {"look_every": 2, "on_look": lambda epoch, logits: seen.update({epoch: logits})}
    fit(method(weight=0.0, average=0.9), images, **options)  # without weight the threshold changes nothing but what is counted
    threshold = seen[4].softmax(1).amax(1).median().item()
    made = method(weight=0.0, average=0.9, threshold=threshold)
    log = fit(made, images, **options)
    assert list(seen) == [2, 4]
    made.averaged.eval()
    now = made.averaged(augment.evaluation(8)(images.validation_images)).detach()
    torch.testing.assert_close(seen[4], now, rtol=1e-4, atol=1e-5)
    for row in log.rows:
        if row["epoch"] not in seen:
            assert not {"validation_accuracy", "validation_loss", "pseudo_precision"} & set(row)
            continue
        logits, labels = seen[row["epoch"]], images.validation_labels
        right = logits.argmax(1) == labels
        sure = logits.softmax(1).max(1).values >= threshold
        assert row["epoch"] < 4 or (sure.any() and not sure.all())
        assert row["validation_accuracy"] == pytest.approx(right.double().mean().item())
        assert row["validation_loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
        if sure.any():
            assert row["pseudo_precision"] == pytest.approx(right[sure].double().mean().item())


def test_precision_is_left_out_where_nobody_is_sure():
    log = fit(method(threshold=1.0), epochs=1)
    assert "pseudo_precision" not in log.final and "validation_accuracy" in log.final


def test_nobody_looks_where_looks_are_switched_off():
    def never(epoch, logits):
        raise AssertionError("looked")

    log = fit(method(), epochs=2, look_every=0, on_look=never)
    assert len(log.rows) == 2
    assert set(log.final) == {"epoch", "step", "lr", "loss", "supervised_loss", "pseudo_loss", "pseudo_weight", "coverage", "seconds"}


# --- what is refused ------------------------------------------------------------------------------------------------------------------


def test_a_label_of_minus_one_is_refused_by_the_data_set_and_by_the_loss():
    pictures, labels = coloured(6, 0)
    labels[3] = -1
    rest = {"name": "x", "class_names": ["a", "b", "c"], "mean": (0.5,) * 3, "std": (0.2,) * 3}
    splits = {
        f"{split}_{kind}": value[:2] for split in ("validation", "test") for kind, value in (("images", pictures), ("labels", labels))
    }
    with pytest.raises(ValueError, match=r"train_labels contains -1: unlabelled images belong in \.unlabeled"):
        datasets.ImageSet(train_images=pictures, train_labels=labels, **splits, **rest)
    for kind in KINDS.values():
        with pytest.raises(ValueError, match="A label is -1: images without a label belong among the unlabelled ones"):
            method(kind)(pictures, labels, pictures)


def test_an_image_set_without_labels_is_refused():
    images, labels = coloured(0, 0)
    with pytest.raises(ValueError, match="no labelled training images"):
        fit(method(), few(train_images=images, train_labels=labels))


@pytest.mark.parametrize("ratio", [0, -1, 1.5])
def test_a_ratio_that_cannot_be_is_refused(ratio):
    with pytest.raises(ValueError, match=f"unlabeled_ratio .* not {ratio}"):
        fit(method(), unlabeled_ratio=ratio)


@pytest.mark.parametrize("norm", [0, -1.0, math.nan])
def test_a_norm_that_cannot_be_is_refused(norm):
    with pytest.raises(ValueError, match="clip_norm is the largest norm"):
        fit(method(), clip_norm=norm)


def test_anything_that_classifies_can_be_trained():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    made = models.FixMatch(plain, threshold=0.5)
    assert fit(made, epochs=1).final["coverage"] >= 0
    assert isinstance(few(), types.SimpleNamespace)
