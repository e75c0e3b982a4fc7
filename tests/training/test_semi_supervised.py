"""Training on labelled and unlabelled images together: the ramp, the batches, what is learned, what a look measures."""

import pytest
import torch
from tiny import NeverTouched, coloured, image_set, undecided
from torch.nn import functional as F

from sslcourse import augment, losses, models, training

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"epochs": 4, "batch_size": 6, "unlabeled_ratio": 2, "precision": "fp32", "progress": False}


def method(kind=models.FixMatch, **options):
    return kind(undecided(), **options)


def few(labeled=9, unlabeled=40, **changes):
    """Nine labelled images of three classes, and forty others."""
    images, labels = coloured(labeled, 5)
    return image_set(**{"unlabeled": coloured(unlabeled, 6)[0], "train_images": images, "train_labels": labels} | changes)


def fit(made, images=None, **options):
    return training.fit_semi_supervised(made, images if images is not None else few(), **{**OPTIONS, **options})


class Watched(models.PseudoLabeling):
    """Notes the weight that each forward pass used, and the batches that came."""

    def forward(self, images, labels, unlabeled):
        self.seen = [*getattr(self, "seen", []), (images.clone(), labels.clone(), unlabeled.clone(), self.weight.item())]
        return super().forward(images, labels, unlabeled)


@pytest.mark.parametrize("ramp", [(0.25, 0.75), (0.5, 0.5), (0.0, 0.0)])
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


def test_both_kinds_of_images_teach():
    """Three colours from nine labels: the loss falls, and the averaged classifier is right."""
    made = method(threshold=0.8, average=0.9)
    log = fit(made, few(labeled=9, unlabeled=120), epochs=8, lr=1e-2)
    assert log["supervised_loss"][-1] < log["supervised_loss"][0]
    assert log["coverage"][-1] > log["coverage"][0]
    assert log.final["validation_accuracy"] > 0.6  # guessing has a third
    assert not made.training and not made.averaged.training


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


def test_a_ratio_and_a_set_without_labels_are_refused():
    for ratio in (0, 1.5):
        with pytest.raises(ValueError, match="unlabeled_ratio"):
            fit(method(), unlabeled_ratio=ratio)
    with pytest.raises(ValueError, match="no labelled"):
        fit(method(), few(labeled=0))
