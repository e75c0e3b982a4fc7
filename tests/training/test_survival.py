"""What interrupts long runs: each test names the interruption, and what has to be left after it."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import image_set, same_weights, simclr, without_seconds

from sslcourse import datasets, files, results, training
from sslcourse.course.commands.main import main
from sslcourse.datasets import sources as prepare
from sslcourse.errors import CourseError
from sslcourse.training import checkpoints

pytestmark = [pytest.mark.usefixtures("one_thread")]
TESTS = Path(__file__).parent
UNIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}


# --- kill -9 ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim():
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "victim.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout.readline() == "ready\n"

    def once(out, **order):
        process.stdin.write(json.dumps({"out": str(out), **order}) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield once
    process.stdin.close()
    process.wait(timeout=60)


def to_the_end(victim, out, order):
    """Run with the orders given, one after the other, until the run reaches its own end; how many times it was killed."""
    killed = 0
    for _ in range(200):
        status = victim(out, **next(order, {}))
        if status == 0:
            return killed
        assert status == -signal.SIGKILL
        killed += 1
        whole = [path for path in (out / "checkpoint.pt", out / "checkpoint.previous.pt") if path.exists()]
        for path in whole:  # at no moment is there a file that is not whole
            assert torch.load(path, weights_only=True)["format"] == checkpoints.CHECKPOINT_FORMAT
    raise AssertionError("it never ended")


@pytest.fixture(scope="module")
def undisturbed(victim, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    assert victim(out) == 0
    return torch.load(out / "end.pt", weights_only=True), time.monotonic() - started


def same_end(out, undisturbed):
    end = torch.load(out / "end.pt", weights_only=True)
    assert end["rows"] == undisturbed["rows"]
    assert all(torch.equal(value, undisturbed["weights"][name]) for name, value in end["weights"].items())


@UNIX
def test_killed_at_twenty_random_moments_it_ends_with_the_same_weights_bit_for_bit(victim, undisturbed, tmp_path):
    end, seconds = undisturbed
    moments, killed, folder = random.Random(0), 0, 0
    while killed < 20:
        folder += 1
        out = tmp_path / str(folder)
        out.mkdir()
        orders = iter([{"after": 0.02 + moments.random() * seconds * 0.5} for _ in range(6)])
        times = to_the_end(victim, out, orders)
        same_end(out, end)
        done = [int(line) for line in (out / "steps.txt").read_text().split()]
        assert len(done) - 24 <= times  # with a checkpoint a step, a death costs the step in flight and no more
        killed += times
        assert folder < 60, "the run ends before it can be killed"


@UNIX
@pytest.mark.parametrize("call", [1, 2, 7])
@pytest.mark.parametrize("function", ["fsync", "link", "replace", "chmod"])
def test_killed_while_a_checkpoint_is_written_one_is_always_whole(victim, undisturbed, tmp_path, function, call):
    killed = to_the_end(victim, tmp_path, iter([{"at": [function, call]}, {"at": [function, call + 1]}]))
    assert killed == 2
    same_end(tmp_path, undisturbed[0])
    files.sweep(tmp_path)
    assert not list(tmp_path.glob(".*"))


@UNIX
def test_checkpoints_once_an_epoch_lose_no_more_than_the_epoch(victim, undisturbed, tmp_path):
    seconds = undisturbed[1]
    killed = to_the_end(victim, tmp_path, iter([{"after": 0.6 * seconds, "every": 0}, {"every": 0}]))
    assert killed <= 1
    same_end(tmp_path, undisturbed[0])


# --- files ------------------------------------------------------------------------------------------------------------------------------

HOW = {"batch_size": 12, "precision": "fp32", "look_every": 0, "progress": False}


def full_disk(monkeypatch, after):
    """From the so-manieth file on, nothing can be written."""
    real, count = files.os.fsync, iter(range(1, 1000))

    def fsync(handle):
        if next(count) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)


def test_a_full_disk_is_named_and_the_last_checkpoint_is_whole(monkeypatch, tmp_path):
    whole, file = simclr(), tmp_path / "run.pt"
    training.pretrain(whole, image_set(), 4, **HOW)
    with monkeypatch.context() as patch:
        full_disk(patch, after=2)
        with pytest.raises(CourseError, match=r"run.pt could not be written \(No space left on device\). Free some disk space"):
            training.pretrain(simclr(), image_set(), 4, checkpoint=file, **HOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.previous.pt", "run.pt"]
    again = simclr(seed=9)
    history = training.pretrain(again, image_set(), 4, checkpoint=file, **HOW)
    assert same_weights(again, whole) and [row["epoch"] for row in history.rows] == [1, 2, 3, 4]


def test_a_full_disk_leaves_no_half_record(monkeypatch, tmp_path):
    metrics = {"top1": {"value": 0.5, "n": 100}}
    record = results.record(
        3, "a", method="SimCLR", dataset="toybox", labels=100, metrics=metrics, seed=0, tier="cpu", device="cpu", seconds=1.0
    )
    good = results.write(record, tmp_path)
    before = good.read_bytes()
    full_disk(monkeypatch, after=0)
    with pytest.raises(OSError):
        results.write({**record, "seconds": 2.0}, tmp_path)
    assert good.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [good.name]


def test_a_truncated_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole, file = simclr(), tmp_path / "run.pt"
    training.pretrain(whole, image_set(), 4, **HOW)
    training.pretrain(simclr(), image_set(), 4, checkpoint=file, stop_after=3, **HOW)
    file.write_bytes(file.read_bytes()[:-500])
    again = simclr(seed=5)
    with pytest.warns(UserWarning, match="run.pt cannot be read .* The checkpoint before it, run.previous.pt, was taken."):
        history = training.pretrain(again, image_set(), 4, checkpoint=file, **HOW)
    assert same_weights(again, whole) and len(history.rows) == 4
    for path in tmp_path.iterdir():
        path.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(CourseError, match="run.previous.pt cannot be read as a checkpoint of this course"):
        training.pretrain(simclr(), image_set(), 4, checkpoint=file, **HOW)


def test_a_clock_that_is_set_back_changes_nothing(monkeypatch, tmp_path):
    whole, file = simclr(), tmp_path / "run.pt"
    expected = training.pretrain(whole, image_set(), 4, **HOW)
    now = iter(range(2_000_000_000, 0, -100_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    training.pretrain(simclr(), image_set(), 4, checkpoint=file, stop_after=2, **HOW)
    os.utime(file, (1, 1))
    again = simclr(seed=2)
    history = training.pretrain(again, image_set(), 4, checkpoint=file, **HOW)
    assert same_weights(again, whole) and without_seconds(history) == without_seconds(expected)
    seconds = history["seconds"]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_a_batch_of_nan_in_the_middle_leaves_the_checkpoint_before_it(tmp_path):
    file, method = tmp_path / "run.pt", simclr()
    real = method.forward

    def forward(images):
        forward.calls += 1
        return real(images) * (float("nan") if forward.calls == 7 else 1.0)

    forward.calls = 0
    method.forward = forward
    hooks = training.Hooks(checkpoint_every=1)
    with pytest.warns(UserWarning, match="The loss was nan in epoch 2"):
        history = training.pretrain(method, image_set(), 4, checkpoint=file, hooks=hooks, **HOW)
    assert history.stopped
    state = torch.load(file, weights_only=True)
    assert state["parts"]["loader"] == {"epoch": 1, "batch": 2, "seed": 0}  # six steps: the one before
    assert all(value.isfinite().all() for value in state["parts"]["model"].values())
    whole, again = simclr(), simclr(seed=3)
    training.pretrain(whole, image_set(), 4, **HOW)
    training.pretrain(again, image_set(), 4, checkpoint=file, **HOW)
    assert same_weights(again, whole)


# --- the command ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    datasets.load("toybox", folder, size=16, unlabeled=64, train=40, validation=20, test=20)
    datasets.load("toybox", folder, size=16)
    return folder


def command(data, out, *more, method="simclr", epochs=3):
    arguments = ["pretrain", "--method", method, "--data-dir", str(data), "--out", str(out), "--epochs", str(epochs), "--size", "16"]
    arguments += ["--batch-size", "32", "--network", "resnet9", "--width", "4", "--unlabeled", "128", "--precision", "fp32"]
    return [*arguments, "--device", "cpu", "--look-every", "0", "--quiet", *more]


def start(arguments, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT} | options
    return subprocess.Popen([sys.executable, "-m", "sslcourse", *arguments], **options)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read() if process.stderr else path
        time.sleep(0.05)


@UNIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_the_run_after_the_step_and_it_goes_on_exactly(data, tmp_path, name, capsys):
    out, number = tmp_path / "run", getattr(signal, name)
    process = start(command(data, out, epochs=2000))
    try:
        wait_for(out / "checkpoint.pt", process)
        process.send_signal(number)
        told, complaints = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, complaints
    assert "Stopped as asked, after step" in told and "Add --resume." in told and not complaints
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    done = state["parts"]["loader"]["epoch"]
    step = int(told.split("after step ")[1].split(".")[0])
    assert step == 4 * done + state["parts"]["loader"]["batch"]
    assert main(command(data, out, epochs=2000)) == 1  # not without --resume
    assert "There is a run in" in capsys.readouterr().err


@UNIX
def test_a_terminal_that_closes_does_not_lose_the_run(data, tmp_path):
    import pty

    out = tmp_path / "run"
    inside, outside = pty.openpty()
    process = start(command(data, out, epochs=2000), stdout=outside, stderr=outside, stdin=outside, start_new_session=True)
    try:
        os.close(outside)
        wait_for(out / "checkpoint.pt", process)
        os.close(inside)  # from here on every write to the terminal fails
        rows = (out / "metrics.csv").read_text().count("\n")
        deadline = time.monotonic() + 120
        while process.poll() is None and (out / "metrics.csv").read_text().count("\n") < rows + 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None  # it has trained on
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=120) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
    assert "Stopped as asked" in (out / "log.txt").read_text()


@UNIX
def test_two_processes_on_one_folder_are_refused_and_a_killed_one_leaves_no_lock(data, tmp_path, capsys):
    out = tmp_path / "run"
    process = start(command(data, out, epochs=2000))
    try:
        wait_for(out / "checkpoint.pt", process)
        assert main(command(data, out, "--resume", epochs=2000)) == 1
        assert f"Another process is at work in {out}" in capsys.readouterr().err
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    (out / ".half.part").write_bytes(b"left behind")
    limited = training.pretrain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "pretrain", lambda *a, **o: limited(*a, stop_after=1, **o))
        assert main(command(data, out, "--resume", epochs=2000)) == 0
    assert not (out / ".half.part").exists()


@UNIX
def test_images_that_vanish_under_a_run_do_not_hurt_it_and_are_named_afterwards(tmp_path, capsys):
    for k in range(140):
        file = tmp_path / "photos" / "train" / ("cat", "dog")[k % 2] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (16, 16), random.Random(k).randbytes(768)).save(file)
    data, out = tmp_path / "data", tmp_path / "run"
    prepare.prepare("own", data, source=tmp_path / "photos", size=16)
    typed = command(data, out, "--dataset", "own", "--unlabeled", "96", epochs=2000)
    process = start(typed)
    try:
        wait_for(out / "checkpoint.pt", process)
        shutil.rmtree(data)
        rows = (out / "metrics.csv").read_text().count("\n")
        deadline = time.monotonic() + 120
        while process.poll() is None and (out / "metrics.csv").read_text().count("\n") < rows + 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert main([*typed, "--resume"]) == 1
    told = capsys.readouterr().err
    assert "own" in told and "Traceback" not in told


def test_memory_that_runs_out_in_the_middle_is_said_in_a_sentence(data, tmp_path, monkeypatch, capsys):
    from sslcourse import models

    real, calls = models.SimCLR.forward, iter(range(1000))

    def forward(self, images):
        if len(images) == 32 and next(calls) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(self, images)

    monkeypatch.setattr("sslcourse.memory.check_fits", lambda *args, **options: None)
    with monkeypatch.context() as patch:
        patch.setattr(models.SimCLR, "forward", forward)
        assert main(command(data, tmp_path / "run")) == 1
    told = capsys.readouterr().err
    assert "The memory ran out with batches of 32 images." in told and "--resume" in told and "Traceback" not in told
    assert main(command(data, tmp_path / "run", "--resume")) == 0
    assert main(command(data, tmp_path / "whole")) == 0
    ends = [load_file(tmp_path / name / "encoder.safetensors") for name in ("run", "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_full_disk_under_the_command(data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        full_disk(patch, after=3)
        assert main(command(data, tmp_path / "run")) == 1
    assert "could not be written (No space left on device)" in capsys.readouterr().err
    assert main(command(data, tmp_path / "run", "--resume")) == 0
    with contextlib.suppress(FileNotFoundError):
        assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".part"]
