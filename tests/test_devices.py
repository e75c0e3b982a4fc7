"""Which arithmetic a device gets, autocast, threads and the random state: what is set, and that it is put back."""

import pytest
import torch
from threadpoolctl import threadpool_info

from sslcourse import devices


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
