"""The benchmark of throughput: that its turns measure what they say. Its numbers are nobody's test."""

import re
import sys
from pathlib import Path

import pytest
import torch

from sslcourse import models

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # as for a script that is called
import throughput  # noqa: E402


def options_of(*arguments):
    return throughput.parse([*"--device cpu --precision fp32 --width 4 --batch 6 --size 8".split(), *arguments])


@pytest.fixture
def images():
    return throughput.image_set(throughput.smooth_images(13, 8))


def test_the_same_two_views_are_given_each_time(images):
    with_augmentation, made_before = (throughput.new_method(options_of(), made) for made in (False, True))
    torch.manual_seed(3)
    first = made_before(images.unlabeled[:6])
    views = made_before.augmentation.views
    assert made_before(images.unlabeled[6:12]).isfinite() and made_before.augmentation.views is views
    torch.manual_seed(3)
    torch.testing.assert_close(with_augmentation(images.unlabeled[:6]), first)  # so it is the same step
    assert len(views) == 12


def test_a_turn_counts_whole_epochs_of_training(images, monkeypatch):
    seen = []
    forward = models.SimCLR.forward
    monkeypatch.setattr(models.SimCLR, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    turn, _ = throughput.ours(options_of(), images)
    seen.clear()
    learned_from, elapsed = turn(0.0)
    assert learned_from == 12 and elapsed > 0  # the second of two epochs of two batches; the thirteenth image is left out
    assert seen == [6, 6, 6, 6]


def test_the_command_shows_what_it_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightly", None)
    throughput.main("--device cpu --precision fp32 --width 4 --batch 6 --size 8 --rounds 1 --seconds 0.001".split())
    ours, before, *lightly = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[-4:]]
    assert (ours[0], before[0]) == ("ours", "ours, views made before") and float(ours[1].replace(",", "")) > 0
    assert [row[-1] for row in lightly] == ["not installed (pip install -e .[bench])"] * 2
