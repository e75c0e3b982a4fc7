"""Which arithmetic a device gets, autocast, threads and the random state: what is set, and that it is put back."""

import pytest
import torch
from threadpoolctl import threadpool_info

from sslcourse import devices
from sslcourse.errors import CourseError


@pytest.mark.parametrize(("kind", "has", "auto"), [("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", 7, "fp16"), ("cuda", 8, "bf16")])
def test_auto_depends_on_a_cpus_matrix_tiles_and_a_gpus_generation(kind, has, auto, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (has, 5))
    assert devices.choose_precision(torch.device(kind)) == auto


@pytest.mark.parametrize(("name", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_computes_in_the_precision(name, kind):
    with devices.autocast(torch.device("cpu"), name):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind


def test_seeded_numbers_come_again_and_the_callers_go_on():
    torch.manual_seed(123)
    expected = torch.rand(2)
    torch.manual_seed(123)
    with devices.seeded(5):
        first = torch.rand(3)
    with pytest.raises(KeyError), devices.seeded(5):
        assert torch.equal(torch.rand(3), first)
        raise KeyError
    assert torch.equal(torch.rand(2), expected)


def test_one_thread_holds_inside_and_is_put_back():
    def threads():
        return [pool["num_threads"] for pool in threadpool_info()]

    before = threads()
    assert before, "numpy and torch bring at least one pool"
    with devices.one_thread():
        assert set(threads()) == {1}
    assert threads() == before


@pytest.mark.parametrize("wrong", ["cuda", "cuda:7", "mps", "xpu", "meta", "gpu", "", 3.5])
def test_a_device_that_is_not_here_is_refused_with_what_is(wrong, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.choose_device() == devices.choose_device("auto") == devices.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(CourseError, match="--device.*cpu"):
        devices.choose_device(wrong, "--device")


def test_a_gpu_is_taken_before_the_cpu_and_its_number_is_checked(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device().type in ("cuda", "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose_device().type == "cuda" and devices.choose_device("cuda:1").index == 1
    with pytest.raises(CourseError, match="cuda:2"):
        devices.choose_device("cuda:2")


@pytest.mark.parametrize("alone", [9, 1])
def test_work_gets_one_thread_or_all_by_what_was_faster_of_late(alone, monkeypatch):
    """alone: the seconds of one thread, where four take 3."""
    clock, spent = [0.0], {}
    monkeypatch.setattr(devices.time, "perf_counter", lambda: clock[0])

    def work():
        seconds = alone if (threads := torch.get_num_threads()) == 1 else 3
        clock[0] += seconds
        spent[threads] = spent.get(threads, 0) + seconds

    with devices.threads_kept():
        torch.set_num_threads(4)
        one_or_all = devices.OneOrAll()
        for _ in range(2):
            spent.clear()
            for _ in range(1000):
                one_or_all(work, 10)
            faster = 1 if alone == 1 else 4
            assert set(spent) == {1, 4} and spent[faster] / sum(spent.values()) > 0.8  # the other one is tried now and then
            alone = 10 - alone  # the neighbour comes, or goes
        with pytest.raises(ZeroDivisionError):
            one_or_all(lambda: 1 / 0, 10)
        assert torch.get_num_threads() == 4
