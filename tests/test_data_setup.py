"""The command `python data_setup.py`, as a person types it."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from sslcourse import datasets
from sslcourse.course.commands import data as data_command
from sslcourse.datasets import sources as prepare

SCRIPT = Path(__file__).parents[1] / "data_setup.py"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run data_setup.py in an empty folder, with a small toybox. -> (exit status, stdout, stderr without the progress bars)"""
    monkeypatch.chdir(tmp_path)
    small = {"unlabeled": 20, "train": 20, "validation": 20, "test": 20}
    monkeypatch.setattr(datasets, "TOYBOX_OPTIONS", {**datasets.TOYBOX_OPTIONS, **small})

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["data_setup.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        out, err = capsys.readouterr()
        return end.value.code, out, err.split("\r")[-1]

    return call


@pytest.fixture
def photos(tmp_path):
    for name in ("cat", "dog"):
        for number in range(8):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (30 * number, 0, 0)).save(path)
    return tmp_path / "photos"


def test_alone_it_draws_toybox_and_says_what_else_there_is(call, tmp_path):
    status, out, _ = call()
    assert status == 0 and "toybox is ready: 10 classes" in out and "python data_setup.py stl10" in out and "2.6 GB" in out
    assert (tmp_path / "data" / "toybox").is_dir() or any((tmp_path / "data").glob("toybox*"))
    status, out, _ = call()
    assert status == 0 and "nothing was done" in out


def test_list_makes_nothing(call, tmp_path):
    status, out, _ = call("--list")
    assert status == 0 and "cats-vs-dogs" in out and list(tmp_path.iterdir()) == []


def test_own_photos(call, tmp_path, photos):
    status, out, _ = call("--from", photos, "--name", "my-photos", "--size", 16, "--data-dir", tmp_path / "d")
    assert status == 0 and "my-photos is ready: 2 classes, 16×16" in out and "datasets.load('my-photos'" in out
    assert datasets.load("my-photos", tmp_path / "d").size == 16
    status, out, _ = call("--from", photos, "--name", "my-photos", "--data-dir", tmp_path / "d")
    assert status == 0 and "nothing was done" in out
    (photos / "cat" / "x.jpg").write_bytes(b"no image")
    status, out, _ = call("my-photos", "--from", photos, "--data-dir", tmp_path / "d", "--force")
    assert status == 0 and "1 file skipped: cat/x.jpg (not an image)." in out
    status, _, err = call("strict", "--from", photos, "--strict")
    assert status == 1 and "--strict refuses that: cat/x.jpg" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["mnist"], "There is no data set 'mnist' to download"),
        (["--from", "nowhere.zip", "--name", "x"], "There is no file or folder nowhere.zip"),
        (["--from", "nowhere.zip"], "Give the images a name"),
        (["--name", "x"], "--name is for your own images: add --from"),
        (["a", "--from", "nowhere.zip", "--name", "b"], "Two names are given"),
        (["--from", "photos", "--name", "a/b"], "'a/b' cannot name a data set"),
        (["--from", "photos", "--name", ""], "'' cannot name a data set"),
        (["--from", "photos", "--name", "toybox"], "'toybox' is taken"),
        (["--size", "4"], "size is 4"),
        (["--data-dir", "file"], "cannot be made"),
    ],
)
def test_what_a_person_can_put_right_gets_one_sentence(call, tmp_path, photos, arguments, sentence):
    (tmp_path / "file").write_text("x")
    status, out, err = call(*arguments)
    assert status == 1 and out == "" and sentence in err and len(err.strip().splitlines()) == 1


def test_an_interruption_ends_with_130_and_a_sentence(call, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare", interrupted)
    status, _, err = call("stl10")
    assert status == 130 and "continues where it stopped" in err


def test_the_same_arguments_serve_the_other_command():
    import argparse

    parser = argparse.ArgumentParser()
    data_command.add_arguments(parser)
    arguments = parser.parse_args(["--list", "--data-dir", "nowhere"])
    assert data_command.run(arguments) == 0
