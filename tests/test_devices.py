"""Which arithmetic a device gets, autocast, evaluation mode and the random state: what is set, and that it is put back."""

import pytest
import torch
from tiny import new_model

from sslcourse import devices as precision

pytestmark = pytest.mark.usefixtures("one_thread")


def test_precision_is_chosen_or_taken():
    cpu = torch.device("cpu")
    assert precision.choose_precision(cpu) in ("fp32", "bf16")
    for name in ("fp32", "bf16", "fp16"):
        assert precision.choose_precision(cpu, name) == name
    with pytest.raises(ValueError, match="auto, fp32, bf16, fp16, not 'half'"):
        precision.choose_precision(cpu, "half")


@pytest.mark.parametrize(("tiles", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu_depends_on_its_matrix_tiles(tiles, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert precision.choose_precision(torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_on_a_gpu_depends_on_its_generation(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.choose_precision(torch.device("cuda")) == expected


@pytest.mark.parametrize(("name", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_computes_in_the_precision(name, kind):
    with precision.autocast(torch.device("cpu"), name):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind


def test_evaluation_mode_puts_every_module_back():
    model = new_model().train()
    model.encoder.eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(KeyError), precision.evaluation_mode(model):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert [m.training for m in model.modules()] == before and model.training and not model.encoder.training


@pytest.mark.parametrize("before", [0, 123])
def test_seeded_numbers_come_again_and_the_callers_go_on(before):
    torch.manual_seed(before)
    expected = torch.rand(2)
    torch.manual_seed(before)
    with precision.seeded(5):
        first = torch.rand(3)
    assert torch.equal(torch.rand(2), expected)
    with pytest.raises(KeyError), precision.seeded(5):
        assert torch.equal(torch.rand(3), first)
        raise KeyError
    torch.manual_seed(before)
    assert torch.equal(torch.rand(2), expected)
