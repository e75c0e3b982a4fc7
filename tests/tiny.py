"""Data sets and models so small that a run takes a moment, for tests of training and of what it leaves."""

import types

import torch
from torch import nn

from sslcourse import datasets, models


class NeverTouched:
    """Stands where the test split is, and complains about every use."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test split was touched ({name})")

    def __len__(self):
        raise AssertionError("the test split was touched (len)")

    def __getitem__(self, index):
        raise AssertionError("the test split was touched")


def pretrain_words(data, out, *more, method="simclr"):
    """The command line of a tiny run of `pretrain`, which looks at nothing."""
    base = ["pretrain", "--method", method, "--data-dir", str(data), "--out", str(out), "--epochs", "2", "--size", "16", "--device", "cpu"]
    base += ["--batch-size", "32", "--network", "resnet9", "--width", "4", "--unlabeled", "96", "--precision", "fp32", "--quiet"]
    return [*base, "--look-every", "0", *more]


class Malicious:
    """Makes an empty file at this path, if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def encoder(seed=0, width=4):
    """A small ResNet-9, made without moving the random state, whose statistics are not the first ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = models.resnet9(width)
        made(torch.randn(8, 3, 16, 16))
    return made


def coloured(n, seed, classes=3, size=8):
    """Images whose class is the channel that is bright."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 80, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % classes
    images[torch.arange(n), labels] += 150
    return images, labels


def image_set(n=48, validation=30, **changes):
    train, validated = coloured(n, 0), coloured(validation, 1)
    fields = {
        "name": "coloured", "size": 8, "class_names": ["red", "green", "blue"], "unlabeled": train[0],
        "train_images": train[0], "train_labels": train[1], "validation_images": validated[0], "validation_labels": validated[1],
        "test_images": NeverTouched(), "test_labels": NeverTouched(),
    }  # fmt: skip
    return types.SimpleNamespace(**{**fields, **changes})


def known_set(*parts):
    """An ImageSet of these images and labels, in turn: for training, for validation and for the test."""
    return datasets.ImageSet("coloured", ["red", "green", "blue"], (0.5,) * 3, (0.2,) * 3, *parts)


def new_model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.Classifier(models.resnet9(4), 3)


def undecided(dropout=0.2):
    """A classifier of three colours that is sure of some images and not of others, with statistics that are not the first ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.Classifier(models.resnet9(4), 3, dropout)
        nn.init.normal_(model.head.weight, std=0.1)
        model(torch.randn(32, 3, 8, 8))
        return model


def network_for(kind, width=4):
    """A small encoder that this method can train."""
    return models.vit(4, 4 * width, depth=2, heads=2, image_size=16) if kind is models.MAE else models.resnet9(width)


def maker(kind, **usual):
    def make(seed=0, width=4, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return kind(network_for(kind, width), **(usual | options))

    return make


SMALL = {"hidden_dim": 16, "out_dim": 8}
rotation, simclr = maker(models.Rotation), maker(models.SimCLR, **SMALL)
byol, barlow = maker(models.BYOL, **SMALL), maker(models.BarlowTwins, **SMALL)
mae = maker(models.MAE, decoder_width=8, decoder_depth=1, decoder_heads=2)
dino = maker(models.DINO, **SMALL, bottleneck_dim=8, local_crops=2, local_size=8)
METHODS = {"rotation": rotation, "simclr": simclr, "byol": byol, "barlow": barlow, "mae": mae, "dino": dino}


def same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
