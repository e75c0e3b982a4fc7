"""Several processes compute what one would: losses, gradients, statistics, whole runs."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import rank
import torch
from test_survival import ENVIRONMENT, command, rows, wait_for_rows

from sslcourse import devices, losses, training
from sslcourse.course.commands.main import main
from sslcourse.training import distributed

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(sys.platform == "win32", reason="gloo needs another set-up")]


def all_steps():
    return {name: rank.one_step(name) for name in rank.METHODS}


def test_with_one_process_nothing_is_changed():
    x = torch.randn(4, 3, requires_grad=True)
    assert devices.gather(x) is x and devices.sum_over_ranks(x) is x and devices.world_size() == 1 and devices.rank() == 0
    method = rank.method("simclr")
    with distributed.one_gradient(method, torch.device("cpu")) as joint:
        assert joint is method
    assert not any(isinstance(part, distributed.GlobalBatchNorm) for part in method.modules())
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu")
    z = torch.randn(6, 4, dtype=torch.float64)
    assert losses.nt_xent(z, z.flip(0), gather_distributed=True) == losses.nt_xent(z, z.flip(0))


@pytest.mark.parametrize("world", [2, 3])
def test_loss_and_gradients_are_those_of_the_joint_batch(world, tmp_path):
    alone, found = all_steps(), rank.together(world, tmp_path, all_steps)
    assert rank.one_step("simclr", images=6)["loss"] != pytest.approx(alone["simclr"]["loss"], rel=1e-2)  # a part alone has another
    for name in rank.METHODS:
        one = alone[name]
        assert len(one["gradients"]) > 10 and max(g.abs().max() for g in one["gradients"].values()) > 1e-3
        for of_rank in (each[name] for each in found):
            assert of_rank["loss"] == pytest.approx(one["loss"], rel=1e-6), name
            for part in ("gradients", "buffers"):
                torch.testing.assert_close(of_rank[part], one[part], rtol=1e-6, atol=1e-8)
            kinds = {"rotation": ["BatchNorm2d"], "dino": ["BatchNorm2d"], "mae": []}
            assert of_rank["kinds"] == kinds.get(name, ["BatchNorm1d", "BatchNorm2d"])  # ordinary again


def test_a_run_of_two_processes_goes_on_with_one_and_with_three(tmp_path):
    alone = rank.train(None)
    two = rank.together(2, tmp_path, rank.train, str(tmp_path / "run.pt"), 2)
    assert [row["epoch"] for row in two[0]["rows"]] == [1, 2]
    assert all(torch.equal(two[0]["weights"][name], value) for name, value in two[1]["weights"].items())
    shutil.copy(tmp_path / "run.pt", tmp_path / "copy.pt")
    for run in (rank.train(str(tmp_path / "run.pt")), rank.together(3, tmp_path, rank.train, str(tmp_path / "copy.pt"))[0]):
        assert [row["epoch"] for row in run["rows"]] == [1, 2, 3, 4]
        assert run["rows"][-1]["loss"] == pytest.approx(alone["rows"][-1]["loss"], rel=1e-6)
        torch.testing.assert_close(run["weights"], alone["weights"], rtol=1e-5, atol=1e-7)


def test_the_same_processes_go_on_exactly_and_the_first_alone_looks(tmp_path):
    whole = rank.together(2, tmp_path, rank.train, None, None, torch.float32)
    assert "knn_accuracy" in whole[0]["rows"][-1] and "knn_accuracy" not in whole[1]["rows"][-1]
    rank.together(2, tmp_path, rank.train, str(tmp_path / "run.pt"), 1, torch.float32)
    parts = rank.together(2, tmp_path, rank.train, str(tmp_path / "run.pt"), None, torch.float32)[0]
    assert all(torch.equal(whole[0]["weights"][name], value) for name, value in parts["weights"].items())


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_process_that_dies_ends_the_job_and_the_run_goes_on_with_another_number(tmp_path, monkeypatch):
    out = tmp_path / "run"
    arguments = command(tmp_path / "data", out, epochs=400)
    processes = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sslcourse", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen(processes, **streams, env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"}, start_new_session=True)
    try:
        wait_for_rows(out, 1, run)
        workers = [int(child) for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        told, _ = run.communicate(timeout=400)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode != 0 and "SIGKILL" in told
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    done = torch.load(out / "checkpoint.pt", weights_only=True)["parts"]["loader"]["epoch"]
    assert done >= rows(out) >= 1
    limited = training.pretrain
    monkeypatch.setattr(training, "pretrain", lambda *args, **options: limited(*args, stop_after=done + 1, **options))
    assert main([*arguments, "--resume"]) == 0
    assert rows(out) == done + 1 and "shared by 2 processes" in (out / "log.txt").read_text()
