"""What interrupts long runs: each test names the interruption, and what has to be left after it."""

import csv
import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from tiny import image_set, pretrain_words, same_weights, simclr, without_seconds

from sslcourse import files, models, training
from sslcourse.course.commands.main import main
from sslcourse.errors import CourseError

pytestmark = [pytest.mark.usefixtures("one_thread")]
TESTS = Path(__file__).parent
UNIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parents[1]), str(TESTS.parent), str(TESTS)])}


def train(out, kill=0):
    """A run of 24 steps, with a line in steps.txt for each; killed at this call of os.replace."""
    torch.set_num_threads(1)
    files.os = types.SimpleNamespace(**vars(os))  # a stand-in, so that torch's own files are let alone
    calls = iter(range(1, 10_000))

    def replace(*names):
        if next(calls) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(*names)

    def after_step(step, steps):
        with open(out / "steps.txt", "a") as stream:
            stream.write(f"{step}\n")

    files.os.replace, method = replace, simclr()
    method.after_step = after_step
    how = {"batch_size": 12, "precision": "fp32", "look_every": 3, "progress": False, "seed": 4, "checkpoint_every": 1}
    history = training.pretrain(method, image_set(), 6, checkpoint=out / "checkpoint.pt", **how)
    torch.save({"weights": method.state_dict(), "rows": without_seconds(history)}, out / "end.pt")


def train_apart(*arguments):
    """`train` in a process forked from one that has imported what it needs; -> its exit status, negative for a signal."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sslcourse.training"])
    process = context.Process(target=train, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@UNIX
@pytest.mark.parametrize("kill", [9, 10])  # each checkpoint puts two files in their place: the one before, and the new one
def test_a_run_that_is_killed_ends_with_the_same_weights_bit_for_bit(tmp_path, kill):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    undisturbed.mkdir()
    out.mkdir()
    assert train_apart(undisturbed) == 0 and train_apart(out, kill) == -signal.SIGKILL
    whole = list(out.glob("checkpoint*.pt"))
    assert whole and all("rng" in torch.load(path, weights_only=True) for path in whole)  # at no moment is one of them half
    assert train_apart(out) == 0
    expected, end = (torch.load(folder / "end.pt", weights_only=True) for folder in (undisturbed, out))
    assert end["rows"] == expected["rows"]
    assert all(torch.equal(value, expected["weights"][name]) for name, value in end["weights"].items())
    assert len((out / "steps.txt").read_text().split()) - 24 <= 1  # a death costs the step in flight
    files.sweep(out)
    assert not list(out.glob(".*"))


def pretrain(method, **options):
    return training.pretrain(method, image_set(), 4, batch_size=12, precision="fp32", look_every=0, progress=False, **options)


def test_a_full_disk_is_named_and_the_last_checkpoint_is_whole(monkeypatch, tmp_path):
    whole, file = simclr(), tmp_path / "run.pt"
    pretrain(whole)
    two_files = itertools.chain([None, None], itertools.repeat(OSError(errno.ENOSPC, "No space left on device")))
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", Mock(side_effect=two_files))
        with pytest.raises(CourseError, match="run.pt .*the disk is full"):
            pretrain(simclr(), checkpoint=file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.previous.pt", "run.pt"]
    again = simclr(seed=9)
    history = pretrain(again, checkpoint=file)
    assert same_weights(again, whole) and history["epoch"] == [1, 2, 3, 4]


def test_a_truncated_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole, file = simclr(), tmp_path / "run.pt"
    pretrain(whole)
    pretrain(simclr(), checkpoint=file, stop_after=3)
    file.write_bytes(file.read_bytes()[:-500])
    again = simclr(seed=5)
    with pytest.warns(UserWarning, match="run.previous.pt, was taken"):
        history = pretrain(again, checkpoint=file)
    assert same_weights(again, whole) and len(history.rows) == 4


def command(data, out, *more, epochs=3):
    return pretrain_words(data, out, "--epochs", str(epochs), "--unlabeled", "128", *more)


def hear_signals():
    """Where the tests themselves run under nohup, a hang-up is ignored, and a process would go on ignoring it."""
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def start(arguments, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT} | options
    options["preexec_fn"] = hear_signals if os.name == "posix" else None
    return subprocess.Popen([sys.executable, "-m", "sslcourse", *arguments], **options)


def rows(out):
    """How many rows the metrics have; 0 before there are any."""
    try:
        return len(list(csv.DictReader((out / "metrics.csv").open())))
    except FileNotFoundError:
        return 0


def wait_for_rows(out, more, process):
    """Wait until the run has written so many rows more; that much time is patience, and nothing is measured."""
    wanted, deadline = rows(out) + more, time.monotonic() + 300
    while rows(out) < wanted:
        assert time.monotonic() < deadline and process.poll() is None, [s.read() for s in (process.stdout, process.stderr) if s]
        time.sleep(0.05)


@UNIX
def test_a_signal_ends_the_run_after_the_step(data, tmp_path, capsys):
    out, number = tmp_path / "run", signal.SIGTERM
    process = start(command(data, out, epochs=2000))
    try:
        wait_for_rows(out, 1, process)
        process.send_signal(number)
        told, complaints = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + number and not complaints, complaints
    loader = torch.load(out / "checkpoint.pt", weights_only=True)["parts"]["loader"]
    assert int(told.split("after step ")[1].split(".")[0]) == 4 * loader["epoch"] + loader["batch"]
    assert main(command(data, out, epochs=2000)) == 1  # not without --resume
    assert "--resume" in capsys.readouterr().err


@UNIX
def test_a_terminal_that_closes_does_not_lose_the_run(data, tmp_path):
    import pty

    out = tmp_path / "run"
    inside, outside = pty.openpty()
    process = start(command(data, out, epochs=2000), stdout=outside, stderr=outside, stdin=outside, start_new_session=True)
    try:
        os.close(outside)
        wait_for_rows(out, 1, process)
        os.close(inside)  # from here on every write to the terminal fails
        wait_for_rows(out, 5, process)  # it has trained on
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=300) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
    assert "Stopped as asked" in (out / "log.txt").read_text()


@UNIX
def test_two_processes_on_one_folder_are_refused_and_a_killed_one_leaves_no_lock(data, tmp_path, capsys, monkeypatch):
    own, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, own)
    process = start(command(own, out, epochs=2000))
    try:
        wait_for_rows(out, 1, process)
        assert main(command(data, out, "--resume", epochs=2000)) == 1
        assert f"Another process is at work in {out}" in capsys.readouterr().err
        shutil.rmtree(own)
        wait_for_rows(out, 2, process)  # images that vanish under a run do not hurt it
    finally:
        process.kill()
        process.communicate()
    (out / ".half.part").write_bytes(b"left behind")
    limited, done = training.pretrain, rows(out)
    monkeypatch.setattr(training, "pretrain", lambda *a, **o: limited(*a, stop_after=1, **o))
    assert main(command(data, out, "--resume", epochs=2000)) == 0
    assert not (out / ".half.part").exists() and rows(out) >= done


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MemoryError()])
def test_memory_that_runs_out_in_the_middle_is_said_in_a_sentence(data, tmp_path, monkeypatch, capsys, error):
    real, calls = models.SimCLR.forward, iter(range(1000))

    def forward(self, images):
        if next(calls) == 6:
            raise error
        return real(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(models.SimCLR, "forward", forward)
        assert main(command(data, tmp_path / "run")) == 1
    told = capsys.readouterr().err
    assert "memory" in told and "--resume" in told and "--batch-size" in told and "Traceback" not in told
    assert main(command(data, tmp_path / "run", "--resume")) == 0
