"""Odd inputs, by hundreds, for archives and the command line: clean errors only, nothing left behind, good ones taken."""

import contextlib
import io
import random
import warnings
import zipfile
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sslcourse.course import runner
from sslcourse.course.commands import pretrain as pretrain_command
from sslcourse.course.commands.main import main
from sslcourse.errors import CourseError

pytestmark = pytest.mark.usefixtures("one_thread")
HUNDREDS = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

WORDS = [
    "run", "data", "pretrain", "evaluate", "notebooks", "results", "--help", "--tier", "smoke", "--dataset", "toybox", "--out", "OUT", "-p",
    "SEED", "3", "-1", "1e9", "nan", "--jobs", "--seeds", "1-3", "7-1", "--fresh", "--timeout", "--check", "--clean", "--reference",
    "--markdown", "--method", "byol", "--epochs", "--batch-size", "--lr", "--option", "temperature", "0.5", "__import__('os')", "[1]",
    "--network", "resnet9", "--width", "--size", "16", "--resume", "--device", "cuda", "meta", "--precision", "fp16", "--protocol", "knn",
    "--from", "--name", "--limit", "--data-dir", "--list", "--force", "--strict", "--", "", "=", "é", "../..", "--view", "--guard",
]  # fmt: skip


@pytest.fixture
def nothing_happens(monkeypatch, tmp_path):
    """The command line is parsed and checked; what would take time does nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run", lambda *args, **options: [])
    monkeypatch.setattr(runner, "store", lambda *args, **options: None)
    for name, result in {"clean": False, "save": None, "problems": []}.items():
        monkeypatch.setattr(f"sslcourse.course.notebook_files.{name}", lambda *given, result=result: result)
    monkeypatch.setattr(pretrain_command, "_run", lambda *given: 0)
    for name in ("sources.prepare", "load"):
        monkeypatch.setattr(f"sslcourse.datasets.{name}", Mock(side_effect=CourseError("There is no data set here.")))


GOOD = [["data", "--list"], ["--version"], ["pretrain", "--help"], ["run", "1", "--tier", "smoke"], ["run", "3", "--seeds", "1", "2"]]
words = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=9)


@given(typed=st.sampled_from(GOOD) | st.tuples(st.sampled_from(WORDS[:6]), words) | words)
@HUNDREDS
def test_any_command_line_ends_with_a_sentence(nothing_happens, typed):
    good = typed in GOOD
    if not good:
        typed = [typed[0], *typed[1]] if isinstance(typed, tuple) else typed
        typed = [*typed, "--method", "simclr", "--out", "OUT"] if typed[:1] == ["pretrain"] else typed
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([word.replace("\x00", "") for word in typed])
    assert status == 0 or not good and status in (1, 2), err.getvalue()
    assert status == 0 or err.getvalue().strip() or out.getvalue().strip()
    assert "Traceback" not in err.getvalue()


def an_archive():
    """A .zip of two classes with three images each."""
    stream, chance = io.BytesIO(), random.Random(0)
    with zipfile.ZipFile(stream, "w") as archive:
        for name in (f"train/{kind}/{k}.png" for kind in ("cat", "dog") for k in range(3)):
            with archive.open(name, "w") as file:
                Image.frombytes("RGB", (9, 8), chance.randbytes(216)).save(file, "PNG")
    return stream.getvalue()


GOOD_ARCHIVE = an_archive()
# bytes that were changed: (where, as a part of the length; what stands there then; how many are lost)
changes = st.just([]) | st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 40)), max_size=6)


@given(at=changes)
@HUNDREDS
def test_a_changed_archive_is_imported_or_named(tmp_path_factory, at):
    content, folder, out = GOOD_ARCHIVE, tmp_path_factory.mktemp("fuzz"), io.StringIO()
    for where, put, lost in at:
        k = int(where * len(content))
        content = content[:k] + put + content[k + lost :]
    (folder / "own.zip").write_bytes(content)
    arguments = ["--from", str(folder / "own.zip"), "--name", "own", "--size", "8", "--data-dir", str(folder / "data"), "--force"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = main(["data", *arguments])
    told, left = out.getvalue(), [path.name for path in (folder / "data").glob("*")]
    assert status in (0, 1) and "Traceback" not in told and told.strip()
    assert left == (["own"] if status == 0 else []), told
    assert status == 0 or content != GOOD_ARCHIVE, told
