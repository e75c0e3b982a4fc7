"""Checkpoints that are refused, kept and restored, and what a History tells."""

import math
import pickle

import numpy as np
import pytest
import torch
from tiny import Malicious, image_set, new_model
from torch import nn

from sslcourse import files, training
from sslcourse.errors import CourseError
from sslcourse.training import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")


def fit(model, **options):
    settings = {"epochs": 4, "batch_size": 16, "precision": "fp32", "progress": False}
    return training.fit_classifier(model, image_set(), **{**settings, **options})


def damaged(kind, good, witness):
    state = torch.load(good, weights_only=True)
    if kind == "truncated":
        good.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    elif kind == "empty":
        good.write_bytes(b"")
    elif kind == "text":
        good.write_text("these are not the weights you are looking for")
    elif kind == "malicious":
        torch.save({**state, "parts": Malicious(str(witness))}, good)
    elif kind == "malicious pickle":
        good.write_bytes(pickle.dumps(Malicious(str(witness)), protocol=2))
    elif kind == "foreign":
        torch.save(new_model().state_dict(), good)
    elif kind == "a list":
        torch.save([1, 2, 3], good)
    elif kind == "no settings":
        torch.save({**state, "settings": None}, good)
    elif kind == "no parts":
        torch.save({**state, "parts": {}}, good)
    elif kind == "no random state":
        torch.save({**state, "rng": {}}, good)
    elif kind == "odd weights":
        state["parts"]["model"]["head.weight"] = torch.zeros(2, 2)
        torch.save(state, good)


@pytest.mark.parametrize(
    "kind",
    ["truncated", "empty", "text", "malicious", "malicious pickle", "foreign", "a list", "no settings", "no parts",
     "no random state", "odd weights"],
)  # fmt: skip
def test_a_damaged_or_foreign_checkpoint_is_refused_and_nothing_in_it_runs(kind, tmp_path):
    file, witness = tmp_path / "run.pt", tmp_path / "witness"
    fit(new_model(), checkpoint=file, stop_after=1)
    damaged(kind, file, witness)
    with pytest.raises(CourseError, match=r"run\.pt .*Delete it"):
        fit(new_model(), checkpoint=file)
    assert not witness.exists()


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_half_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CourseError, match="could not be written.*another folder"):
        fit(new_model(), epochs=1, checkpoint=tmp_path / "file" / "run.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_history_gives_columns_and_says_what_it_has():
    history = checkpoints.History(rows=[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "accuracy": 0.5}])
    assert history["loss"] == [2.0, 1.0] and history.final["epoch"] == 2
    assert math.isnan(history["accuracy"][0]) and history["accuracy"][1] == 0.5
    with pytest.raises(KeyError, match="no column 'top1'; it has accuracy, epoch, loss"):
        history["top1"]
    with pytest.raises(KeyError, match="no rows yet"):
        checkpoints.History()["loss"]
    assert checkpoints.History().final == {}


def test_plain_numbers_are_pythons_own():
    made = files.plain({"a": np.float64(0.5), "b": {"c": np.int64(3)}, "d": torch.tensor(2.0), "e": "text", "f": None})
    assert made == {"a": 0.5, "b": {"c": 3}, "d": 2.0, "e": "text", "f": None}
    assert [type(made[name]) for name in "ad"] == [float, float] and type(made["b"]["c"]) is int


def test_a_checkpoint_gives_back_parts_history_and_random_numbers(tmp_path):
    file, settings = tmp_path / "new" / "run.pt", {"lr": 0.1, "scales": {"encoder": 0.5}}
    layer, history = nn.Linear(3, 2), checkpoints.History(rows=[{"epoch": 1, "loss": math.nan}])
    torch.manual_seed(5)
    checkpoints.save_checkpoint(file, settings, {"layer": layer}, history)
    expected = torch.rand(4)
    other, found = nn.Linear(3, 2), checkpoints.History()
    checkpoints.load_checkpoint(file, settings, {"layer": other}, found)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(other.weight, layer.weight) and torch.equal(other.bias, layer.bias)
    assert found.rows[0]["epoch"] == 1 and math.isnan(found.rows[0]["loss"])


def test_every_setting_that_differs_is_named(tmp_path):
    file, layer = tmp_path / "run.pt", nn.Linear(3, 2)
    checkpoints.save_checkpoint(file, {"lr": 0.1, "seed": 1, "size": 32}, {"layer": layer}, checkpoints.History())
    with pytest.raises(CourseError, match=r"lr 0\.1 there and 0\.2 here; seed 1 there and 2 here\. Delete it"):
        checkpoints.load_checkpoint(file, {"lr": 0.2, "seed": 2, "size": 32}, {"layer": layer}, checkpoints.History())
