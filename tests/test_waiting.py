"""A step never waits for the device: nothing in it asks for a number."""

import pytest
import torch
from tiny import image_set
from torch.utils._python_dispatch import TorchDispatchMode

from sslcourse import augment, models, training

pytestmark = pytest.mark.usefixtures("one_thread")

ASKING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}
METHODS = {"rotation": models.Rotation, "simclr": models.SimCLR, "byol": models.BYOL, "barlow_twins": models.BarlowTwins}
# on the CPU, where it costs nothing, two losses look for rows of zeros, which have no direction
CHECKS = {"rotation": 0, "simclr": 1, "byol": 1, "barlow_twins": 0}


class Questions(TorchDispatchMode):
    """Counts the operations whose result Python has to have before it can go on."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in ASKING
        return function(*args, **(kwargs or {}))


def questions(name, batches, **options):
    # blur and solarisation pick out the images that get them on the CPU, where that saves work, and so are left out here
    method = METHODS[name](models.resnet9(2), augment.weak(8) if name == "rotation" else augment.simclr(8))
    with Questions() as asked:  # LARS, because AdamW keeps its number of steps in a tensor on the CPU and reads it there
        how = {"batch_size": 6, "optimizer": "lars", "look_every": 0, "precision": "fp32", "progress": False}
        training.pretrain(method, image_set(n=6 * batches), 1, **(how | options))
    return asked.count


@pytest.mark.parametrize("name", METHODS)
def test_a_step_asks_for_nothing(name):
    few, many = questions(name, 3), questions(name, 8)
    assert few > 0  # an epoch's means are read at its end
    assert many - few == 5 * CHECKS[name]


def test_the_count_can_fail():
    class Curious(training.Callback):
        def after_step(self, run):
            run.loss.item()

    few, many = (questions("rotation", batches, callbacks=[Curious()]) for batches in (3, 8))
    assert many - few == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("free", [2**40, 1000])  # bytes: the images lie on the card, or come batch by batch
@pytest.mark.parametrize("name", METHODS)
def test_the_card_is_never_waited_for_inside_an_epoch(name, free, monkeypatch):
    """In the second epoch; the first allocates, and the end of each reads its means."""
    images = image_set(n=96)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    method = METHODS[name](models.resnet9(4)).cuda()
    counted = method.forward

    def forward(x):
        steps["done"] += 1
        torch.cuda.set_sync_debug_mode("error" if 12 < steps["done"] < 20 else "default")
        return counted(x)

    steps = {"done": 0}
    method.forward = forward
    try:
        training.pretrain(method, images, 2, batch_size=8, look_every=0, progress=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps["done"] == 24
