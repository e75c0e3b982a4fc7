"""Checkpoints that are refused, and what a History tells."""

import math
import pickle

import pytest
import torch
from tiny import Malicious, image_set, new_model

from sslcourse import training
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
    elif kind == "malicious":
        torch.save({**state, "parts": Malicious(str(witness))}, good)
    elif kind == "malicious pickle":
        good.write_bytes(pickle.dumps(Malicious(str(witness)), protocol=2))
    elif kind == "a list":
        torch.save([1, 2, 3], good)
    elif kind == "no settings":
        torch.save({**state, "settings": None}, good)
    elif kind == "no random state":
        torch.save({**state, "rng": {}}, good)
    elif kind == "odd weights":
        state["parts"]["model"]["head.weight"] = torch.zeros(2, 2)
        torch.save(state, good)


@pytest.mark.parametrize("kind", ["truncated", "malicious", "malicious pickle", "a list", "no settings", "no random state", "odd weights"])
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
