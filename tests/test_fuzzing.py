"""Odd inputs, by hundreds, for each reader and for the command line: clean errors only, nothing left behind, and good ones are taken."""

import contextlib
import io
import json
import random
import warnings
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import Malicious, image_set, new_model

from sslcourse import models, results, training
from sslcourse.course import runner
from sslcourse.course.commands import data as data_command
from sslcourse.course.commands import pretrain as pretrain_command
from sslcourse.course.commands.main import main
from sslcourse.datasets import sources
from sslcourse.errors import CourseError
from sslcourse.training import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")
HUNDREDS = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

# a file of which some bytes were changed, or none: (where, as a part of its length; what stands there then; how many are lost)
changes = st.just([]) | st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 40)), max_size=6)


def changed(content, at):
    for where, put, lost in at:
        k = int(where * len(content))
        content = content[:k] + put + content[k + lost :]
    return content


# --- checkpoints and networks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def a_checkpoint(tmp_path_factory):
    file = tmp_path_factory.mktemp("good") / "run.pt"
    training.fit_classifier(new_model(), image_set(), 1, batch_size=16, precision="fp32", progress=False, checkpoint=file)
    return file.read_bytes()


@given(at=changes)
@HUNDREDS
def test_a_changed_checkpoint_is_read_or_refused(a_checkpoint, tmp_path, at):
    file = tmp_path / "run.pt"
    file.write_bytes(changed(a_checkpoint, at))
    model = new_model()
    history = training.History()
    with contextlib.nullcontext() if file.read_bytes() == a_checkpoint else contextlib.suppress(CourseError):
        checkpoints.load_checkpoint(file, {}, {"model": model}, history)
        assert all(isinstance(row, dict) for row in history.rows)


@given(content=st.binary(max_size=300))
@HUNDREDS
def test_any_bytes_are_no_checkpoint_and_no_network(tmp_path, content):
    for beginning in (b"", checkpoints.ZIP):
        file = tmp_path / "run.pt"
        file.write_bytes(beginning + content)
        with pytest.raises(CourseError, match="run.pt"):
            checkpoints.load_checkpoint(file, {}, {}, training.History())
        with pytest.raises(CourseError, match="run.pt"):
            models.load_network(file)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(["settings", "parts", "rows", "under_way", "rng"]), value=st.just(...) | plain_values)
@settings(HUNDREDS, max_examples=100)
def test_a_checkpoint_with_anything_in_a_place_is_read_or_refused(a_checkpoint, tmp_path, key, value):
    state = torch.load(io.BytesIO(a_checkpoint), weights_only=True)
    file = tmp_path / "run.pt"
    torch.save(state if value is ... else {**state, key: value}, file)
    with contextlib.nullcontext() if value is ... else contextlib.suppress(CourseError):
        checkpoints.load_checkpoint(file, {}, {"model": new_model()}, training.History())


def test_nothing_in_a_checkpoint_is_executed_wherever_it_stands(a_checkpoint, tmp_path):
    state = torch.load(io.BytesIO(a_checkpoint), weights_only=True)
    witness = tmp_path / "witness"
    for key in state:
        torch.save({**state, key: Malicious(str(witness))}, tmp_path / "run.pt")
        with pytest.raises(CourseError, match="cannot be read"):
            checkpoints.load_checkpoint(tmp_path / "run.pt", {}, {"model": new_model()}, training.History())
    assert not witness.exists()


# --- records ----------------------------------------------------------------------------------------------------------------------------


def a_record():
    metrics = {"top1": {"value": 0.5, "n": 100}}
    return results.record(
        3, "a", method="SimCLR", dataset="toybox", labels=100, metrics=metrics, seed=0, tier="cpu", device="cpu", seconds=1.0
    )


@given(at=changes)
@HUNDREDS
def test_a_changed_record_is_read_or_named(tmp_path, at):
    file = tmp_path / "03-a.json"
    file.write_bytes(changed(json.dumps(a_record(), indent=1).encode(), at))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = results.read(tmp_path)
    assert len(found) + len(told) == 1 and all(file.name in str(warning.message) for warning in told)
    assert found or at
    if found:
        results.table(found)


@given(key=st.sampled_from(sorted(a_record())), value=plain_values)
@HUNDREDS
def test_a_record_with_anything_in_a_place_is_read_or_named(tmp_path, key, value):
    file = tmp_path / "03-a.json"
    file.write_text(json.dumps(a_record()))
    assert len(results.read(tmp_path)) == 1
    file.write_text(json.dumps({**a_record(), key: value}), encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = results.read(tmp_path)
    if found:
        results.table(found)
        results.readme_table(found)


# --- the command line -------------------------------------------------------------------------------------------------------------------

WORDS = [
    "run", "data", "pretrain", "evaluate", "notebooks", "results", "--help", "--version", "--tier", "smoke", "cpu", "--dataset",
    "toybox", "stl10", "--out", "OUT", "-p", "SEED", "3", "-1", "1e9", "nan", "--jobs", "--seeds", "0", "1-3", "7-1", "simclr",
    "--fresh", "--timeout", "--check", "--clean", "--strip", "--reference", "--markdown", "--method", "byol", "barlow_twins",
    "--epochs", "--batch-size", "--lr", "--option", "temperature", "tau0", "0.5", "__import__('os')", "[1]", "--network", "resnet9",
    "resnet50", "--width", "--size", "16", "--resume", "--device", "cuda", "meta", "--precision", "fp16", "--labels-per-class",
    "--protocol", "knn", "--from", "--name", "--limit", "--data-dir", "--list", "--force", "--strict", "--", "", "=", "é", "../..",
    "--view", "--unlabeled", "--guard",
]  # fmt: skip


@pytest.fixture
def nothing_happens(monkeypatch, tmp_path):
    """The command line is parsed and checked; what would take time does nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run", lambda *args, **options: [])
    monkeypatch.setattr(runner, "store", lambda *args, **options: None)
    monkeypatch.setattr("sslcourse.course.notebook_files.clean", lambda path: False)
    monkeypatch.setattr("sslcourse.course.notebook_files.strip_outputs", lambda path, target: target)
    monkeypatch.setattr("sslcourse.course.notebook_files.problems", lambda path: [])
    monkeypatch.setattr("sslcourse.course.published_tables.update", lambda: [])
    monkeypatch.setattr(sources, "prepare", lambda *args, **options: prepare_nothing())
    monkeypatch.setattr(training, "pretrain", lambda *args, **options: training.History(rows=[{"epoch": 1, "loss": 1.0, "seconds": 1.0}]))
    monkeypatch.setattr(pretrain_command, "_run", lambda args, device: 0)
    monkeypatch.setattr("sslcourse.datasets.load", nothing_to_load)


def prepare_nothing():
    raise CourseError("Nothing is prepared here.")


def nothing_to_load(name, *args, **options):
    raise CourseError(f"There is no data set {name} here.")


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
    assert status == 0 or not good, err.getvalue()
    assert status in (0, 1, 2)
    assert status == 0 or err.getvalue().strip() or out.getvalue().strip()
    assert "Traceback" not in err.getvalue()


# --- images of one's own ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def an_archive():
    """A .zip of two classes with three images each."""
    stream, chance = io.BytesIO(), random.Random(0)
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("cat", "dog"):
            for k in range(3):
                image = io.BytesIO()
                Image.frombytes("RGB", (9, 8), chance.randbytes(216)).save(image, "PNG")
                archive.writestr(f"train/{name}/{k}.png", image.getvalue())
    return stream.getvalue()


def imported(folder, file):
    """The exit status of an import, what it said, and what is in the data folder afterwards."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = ["--from", str(file), "--name", "own", "--size", "8", "--data-dir", str(folder / "data"), "--force"]
        status = data_command.main(arguments)
    left = sorted(path.name for path in (folder / "data").iterdir()) if (folder / "data").exists() else []
    return status, out.getvalue() + err.getvalue(), left


@given(at=changes)
@HUNDREDS
def test_a_changed_archive_is_imported_or_named(an_archive, tmp_path_factory, at):
    folder = tmp_path_factory.mktemp("fuzz")
    file = folder / "own.zip"
    file.write_bytes(changed(an_archive, at))
    status, told, left = imported(folder, file)
    assert status in (0, 1) and "Traceback" not in told and told.strip()
    assert left == (["own"] if status == 0 else []), told
    assert status == 0 or file.read_bytes() != an_archive, told


@given(content=st.binary(max_size=200), ending=st.sampled_from([".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".png", ""]))
@HUNDREDS
def test_any_bytes_are_no_archive(an_archive, tmp_path_factory, content, ending):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / f"own{ending}").write_bytes(content)
    status, told, left = imported(folder, folder / f"own{ending}")
    assert status == 1 and told.strip() and not left and "Traceback" not in told
    (folder / "good.zip").write_bytes(an_archive)
    assert imported(folder, folder / "good.zip")[::2] == (0, ["own"])
