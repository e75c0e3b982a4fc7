"""The command `python data_setup.py`, as a person types it."""

import runpy
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from sslcourse import datasets
from sslcourse.datasets import sources, toybox

SCRIPT = Path(__file__).parents[1] / "data_setup.py"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run data_setup.py in an empty folder, with a small toybox. -> (exit status, stdout, stderr without the progress bars)"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toybox, "OPTIONS", {**toybox.OPTIONS, "unlabeled": 20, "train": 20, "validation": 20, "test": 20})

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
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (20, 20), (30 * number, 0, 0)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_alone_it_draws_toybox_and_says_what_else_there_is(call, tmp_path):
    status, out, _ = call("--list")
    assert status == 0 and "cats-vs-dogs" in out and list(tmp_path.iterdir()) == []
    status, out, _ = call()
    assert status == 0 and "toybox is ready: 10 classes" in out and "python data_setup.py stl10" in out and "2.6 GB" in out
    assert (tmp_path / "data" / "toybox").is_dir()
    assert "nothing was done" in call()[1]
    assert "toybox-16" in call("toybox", "--size", 16)[1] and datasets.load("toybox", size=16).size == 16


def test_the_default_folder_is_that_of_the_lessons_and_what_is_printed_works(call, tmp_path, photos, monkeypatch):
    (tmp_path / "pyproject.toml").write_text('name = "sslcourse"')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    status, out, _ = call("--from", photos, "--name", "mine")
    assert status == 0 and (tmp_path / "data" / "mine").is_dir() and list(Path().iterdir()) == []
    monkeypatch.chdir("/")
    use = out.splitlines()[-1].partition("Use it: ")[2]
    assert eval(use, {"datasets": datasets}).name == "mine"
    monkeypatch.setenv("SSLCOURSE_DATA_DIR", str(tmp_path / "other"))
    assert call("--from", photos, "--name", "mine")[0] == 0 and (tmp_path / "other" / "mine").is_dir()


def test_own_photos(call, tmp_path, photos):
    status, out, _ = call("--from", photos, "--name", "my-photos", "--size", 16, "--data-dir", tmp_path / "d")
    assert status == 0 and "my-photos is ready: 2 classes, 16×16" in out and datasets.load("my-photos", tmp_path / "d").size == 16
    (photos / "cat" / "x.jpg").write_bytes(b"no image")
    status, out, _ = call("my-photos", "--from", photos, "--data-dir", tmp_path / "d", "--force")
    assert status == 0 and "1 file skipped: cat/x.jpg (not an image)." in out
    status, _, err = call("strict", "--from", photos, "--strict")
    assert status == 1 and "cat/x.jpg" in err


WRONG = {
    "mnist": "'mnist'", "--from nowhere.zip --name x": "nowhere.zip", "--from nowhere.zip": "--name", "--name x": "--from",
    "a --from nowhere.zip --name b": "Two names", "--from photos --name toybox": "'toybox' is taken", "--data-dir file": "--data-dir",
    "--from= --name x": "--from is ''", "--from https://example.invalid/x.zip --name x": "an address",
}  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG)
def test_what_a_person_can_put_right_gets_one_sentence(call, tmp_path, photos, arguments):
    (tmp_path / "file").write_text("x")
    status, out, err = call(*arguments.split())
    assert status == 1 and out == "" and WRONG[arguments] in err and len(err.strip().splitlines()) == 1


def test_an_interruption_ends_with_130_and_a_sentence(call, monkeypatch):
    monkeypatch.setattr(sources, "prepare", Mock(side_effect=KeyboardInterrupt))
    status, _, err = call("stl10")
    assert status == 130 and "continues where it stopped" in err
