"""Several processes compute what one would: losses, gradients, statistics, whole runs; and they share every image once."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank
import torch

from sslcourse import losses, models, training
from sslcourse.loaders import TensorLoader
from sslcourse.training import distributed

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(sys.platform == "win32", reason="gloo needs another set-up")]
METHODS = ["rotation", "simclr", "byol", "barlow_twins"]


def close(mine, theirs, tolerance=1e-6):
    """Largest difference, in parts of the largest number."""
    assert mine.keys() == theirs.keys() and mine
    for name in mine:
        scale = theirs[name].abs().max().clamp(min=1e-6)
        difference = (mine[name].double() - theirs[name].double()).abs().max() / scale
        assert difference <= tolerance, f"{name}: {difference:.2e}"


def all_steps():
    return {name: rank.one_step(name) for name in METHODS}


def test_with_one_process_nothing_is_changed():
    assert distributed.world_size() == 1 and distributed.rank() == 0 and not distributed.launched()
    x = torch.randn(4, 3, requires_grad=True)
    assert distributed.gather(x) is x and distributed.sum_over_ranks(x) is x
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
    for name in METHODS:
        one = alone[name]
        assert len(one["gradients"]) > 10 and max(g.abs().max() for g in one["gradients"].values()) > 1e-3
        for of_rank in (each[name] for each in found):
            assert of_rank["loss"] == pytest.approx(one["loss"], rel=1e-6), name
            close(of_rank["gradients"], one["gradients"])
            close(of_rank["buffers"], one["buffers"])
            assert of_rank["kinds"] == ["BatchNorm1d", "BatchNorm2d"][name == "rotation" :]  # ordinary again
            if name == "byol":
                close(of_rank["target"], one["target"])


def test_without_the_exchange_the_gradients_would_be_others(monkeypatch):
    """The comparison above can fail: batch statistics and negatives of a half are not those of the whole."""
    alone = rank.one_step("simclr")
    monkeypatch.setattr(rank, "IMAGES", 6)
    half = rank.one_step("simclr")
    assert half["loss"] != pytest.approx(alone["loss"], rel=1e-2)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_image_is_seen_once_by_one_process(world):
    rows, shares = torch.arange(49), []
    loaders = [TensorLoader(rows, batch_size=12, shuffle=True, drop_last=True, seed=5, part=(r, world)) for r in range(world)]
    whole = TensorLoader(rows, batch_size=12, shuffle=True, drop_last=True, seed=5)
    for _ in range(2):
        for batches in zip(whole, *loaders, strict=True):
            joint, parts = batches[0][0], [part[0] for part in batches[1:]]
            assert torch.equal(torch.cat(parts), joint) and len({len(part) for part in parts}) == 1
            shares.append(joint)
    first, second = torch.cat(shares[:4]), torch.cat(shares[4:])
    assert len(first.unique()) == len(second.unique()) == 48 and not torch.equal(first, second)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="cannot be shared by 5 processes: take a multiple of 5"):
        TensorLoader(torch.arange(49), batch_size=12, drop_last=True, part=(0, 5))
    with pytest.raises(ValueError, match="drop_last"):
        TensorLoader(torch.arange(49), batch_size=12, part=(0, 2))
    with pytest.raises(ValueError, match="rank < world"):
        TensorLoader(torch.arange(49), batch_size=12, drop_last=True, part=(2, 2))


def test_a_run_of_two_processes_goes_on_with_one_and_with_three(tmp_path):
    precise = (None, torch.float64)
    alone = rank.train("simclr", 4, None, *precise)
    two = rank.together(2, tmp_path, rank.train, "simclr", 4, str(tmp_path / "run.pt"), 2, torch.float64)
    assert [row["epoch"] for row in two[0]["rows"]] == [1, 2]
    for name in two[0]["weights"]:
        assert torch.equal(two[0]["weights"][name], two[1]["weights"][name])
    copy = tmp_path / "copy.pt"
    copy.write_bytes((tmp_path / "run.pt").read_bytes())
    one = rank.train("simclr", 4, str(tmp_path / "run.pt"), *precise)
    three = rank.together(3, tmp_path, rank.train, "simclr", 4, str(copy), *precise)[0]
    for run in (one, three):
        assert [row["epoch"] for row in run["rows"]] == [1, 2, 3, 4]
        assert run["rows"][-1]["loss"] == pytest.approx(alone["rows"][-1]["loss"], rel=1e-6)
        close(run["weights"], alone["weights"], 1e-5)


def test_the_same_processes_go_on_exactly_and_the_first_alone_looks(tmp_path):
    whole = rank.together(2, tmp_path, rank.train, "rotation", 3, str(tmp_path / "whole.pt"))
    assert "knn_accuracy" in whole[0]["rows"][-1] and "knn_accuracy" not in whole[1]["rows"][-1]
    rank.together(2, tmp_path, rank.train, "rotation", 3, str(tmp_path / "parts.pt"), 1)
    parts = rank.together(2, tmp_path, rank.train, "rotation", 3, str(tmp_path / "parts.pt"))[0]
    assert all(torch.equal(whole[0]["weights"][name], value) for name, value in parts["weights"].items())


def test_what_is_exchanged_grows_with_the_network_and_not_with_the_images():
    small, large = models.SimCLR(models.resnet9(4)), models.SimCLR(models.resnet9(8))
    few, many = distributed.bytes_a_step(small, 64, 8), distributed.bytes_a_step(small, 128, 8)
    assert few["gradients"] == many["gradients"] < distributed.bytes_a_step(large, 64, 8)["gradients"]
    assert many["projections"] == 2 * few["projections"]
    parameters = sum(p.numel() for p in small.parameters())
    assert few["gradients"] == round(2 * 7 / 8 * 4 * parameters)
    assert set(distributed.bytes_a_step(small, 64, 1).values()) == {0}
    byol = models.BYOL(models.resnet9(4), last_norm=False)
    assert distributed.bytes_a_step(byol, 64, 8)["projections"] == 0
    trained = sum(p.numel() for p in byol.parameters() if p.requires_grad)
    assert distributed.bytes_a_step(byol, 64, 8)["gradients"] == round(2 * 7 / 8 * 4 * trained)
    assert distributed.bytes_a_step(models.BarlowTwins(models.resnet9(4)), 64, 8)["projections"] > 0


# --- torchrun ---------------------------------------------------------------------------------------------------------------------------


def torchrun(out, *more, processes=2, epochs=3):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "sslcourse",
        "pretrain",
    ]
    command += ["--method", "simclr", "--dataset", "toybox", "--data-dir", str(out.parent / "data"), "--out", str(out)]
    command += ["--epochs", str(epochs), "--batch-size", "32", "--network", "resnet9", "--width", "4", "--size", "16", "--unlabeled", "256"]
    command += ["--look-every", "0", "--device", "cpu", "--precision", "fp32", "--quiet", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True)


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_process_that_dies_ends_the_job_and_the_run_goes_on_with_another_number(tmp_path):
    run = torchrun(tmp_path / "run", epochs=400)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "run" / "checkpoint.pt").exists():
            assert time.monotonic() < deadline and run.poll() is None, run.stdout.read()
            time.sleep(0.1)
        workers = children(run.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        told, _ = run.communicate(timeout=240)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode != 0 and "SIGKILL" in told
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    done = len(rows) - 1
    assert done >= 1
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["parts"]["loader"]["epoch"] >= done
    from sslcourse.course.commands.main import main

    arguments = ["pretrain", "--method", "simclr", "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--epochs", "400"]
    arguments += ["--batch-size", "32", "--network", "resnet9", "--width", "4", "--size", "16", "--unlabeled", "256", "--look-every", "0"]
    arguments += ["--device", "cpu", "--precision", "fp32", "--quiet", "--resume"]
    limited = training.pretrain

    def a_little(*args, **options):
        return limited(*args, stop_after=state["parts"]["loader"]["epoch"] + 1, **options)

    training.pretrain = a_little
    try:
        assert main(arguments) == 0
    finally:
        training.pretrain = limited
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "shared by 2 processes" in log and re.search(rf"epoch {state['parts']['loader']['epoch'] + 1}/400", log)
