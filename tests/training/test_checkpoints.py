"""Checkpoints that are refused, and what a History tells."""

import math
import pickle

import pytest
import torch
from test_classifier import fit
from tiny import Malicious, new_model

from sslcourse.errors import CourseError
from sslcourse.training import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")


def with_parts(file, **parts):
    torch.save({**torch.load(file, weights_only=True), **parts}, file)


DAMAGED = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "malicious": lambda file: with_parts(file, parts=Malicious(str(file.with_name("witness")))),
    "malicious pickle": lambda file: file.write_bytes(pickle.dumps(Malicious(str(file.with_name("witness"))), protocol=2)),
    "a list": lambda file: torch.save([1, 2, 3], file), "no settings": lambda file: with_parts(file, settings=None),
    "no random state": lambda file: with_parts(file, rng={}),
    "odd weights": lambda file: with_parts(file, parts={"model": {"head.weight": torch.zeros(2, 2)}}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_or_foreign_checkpoint_is_refused_and_nothing_in_it_runs(kind, tmp_path):
    fit(new_model(), checkpoint=tmp_path / "run.pt", stop_after=1)
    DAMAGED[kind](tmp_path / "run.pt")
    with pytest.raises(CourseError, match=r"run\.pt .*Delete it"):
        fit(new_model(), checkpoint=tmp_path / "run.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


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
