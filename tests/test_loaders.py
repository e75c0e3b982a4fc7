"""The loaders: every row once a pass, orders that repeat, resuming inside a pass, sharing among processes, devices, and what is refused."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslcourse.loaders import PairedLoader, TensorLoader, loader_for

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def rows_of(loader):
    return [row for (batch,) in loader for row in batch.tolist()]


def taken(loader, n):
    """The next n batches, over as many passes as it takes, and the loader's state while the last one is in work."""
    batches = (batch for _ in range(n) for batch in loader)
    return [[part.tolist() for part in batch] for batch in islice(batches, n)], loader.state_dict()


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), batch_size=st.integers(1, 70), shuffle=st.booleans(), drop_last=st.booleans(), seed=st.integers(0, 2**40))
def test_every_row_once_a_pass(rows, batch_size, shuffle, drop_last, seed):
    drop_last = drop_last and rows >= batch_size
    loader = TensorLoader(torch.arange(rows), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)
    for _ in range(2):
        batches = [batch for (batch,) in loader]
        seen = torch.cat(batches).tolist()
        assert shuffle or seen == sorted(seen)
        assert len(set(seen)) == len(seen) == (rows // batch_size * batch_size if drop_last else rows)
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1) and len(batches) == len(loader)


def test_images_and_labels_stay_together_and_may_come_from_a_mapped_file(tmp_path):
    images, labels = torch.arange(50).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), torch.arange(50) * 7
    np.save(tmp_path / "images.npy", images.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="r+"))
    for x, y in TensorLoader(mapped, labels, batch_size=8, shuffle=True):
        assert x.shape[1:] == (3, 2, 2) and torch.equal(x[:, 0, 0, 0] * 7, y)


def test_orders_differ_between_passes_and_seeds_and_repeat():
    state = torch.get_rng_state()
    first, again = (TensorLoader(torch.arange(100), batch_size=7, shuffle=True, seed=3) for _ in range(2))
    assert [rows_of(first) for _ in range(3)] == [rows_of(again) for _ in range(3)]
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    loaders = [TensorLoader(torch.arange(50), batch_size=50, shuffle=True, seed=seed) for seed in range(8)]
    assert len({tuple(loader.order(epoch).tolist()) for loader in loaders for epoch in range(8)}) == 64


def single():
    return TensorLoader(torch.arange(30), batch_size=7, shuffle=True, drop_last=True, seed=3)  # 4 batches a pass


def paired(labeled=10, unlabeled=36):
    first = TensorLoader(torch.arange(labeled), -torch.arange(labeled), batch_size=4, shuffle=True, drop_last=True, seed=1)
    return PairedLoader(first, TensorLoader(torch.arange(unlabeled), batch_size=6, shuffle=True, drop_last=True, seed=2))  # 6 a pass


@pytest.mark.parametrize("make", [single, paired])
@pytest.mark.parametrize("given", [0, 1, 4, 6, 13])
def test_a_pass_that_was_broken_off_goes_on_behind_the_batches_that_were_given(make, given):
    whole, _ = taken(make(), 18)
    before, state = taken(make(), given)
    second = make()
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert before + taken(second, 18 - given)[0] == whole


def test_the_labelled_images_of_a_pair_go_round_as_often_as_a_pass_takes():
    loader = paired()
    batches, _ = taken(loader, 24)
    assert len(loader) == 6
    assert all([-v for v in x] == y and len(x) == 4 and len(u) == 6 for x, y, u in batches)
    for first in range(0, 24, 2):  # two labelled batches make a round
        assert len({v for x, *_ in batches[first : first + 2] for v in x}) == 8
    assert len({tuple(x) for x, *_ in batches}) > 12  # in a new order every time
    for first in range(0, 24, 6):
        assert {v for *_, u in batches[first : first + 6] for v in u} == set(range(36))
    numbers = torch.arange(8)
    two, one = TensorLoader(numbers, numbers, batch_size=2, drop_last=True), TensorLoader(numbers, batch_size=4, drop_last=True)
    assert len(PairedLoader(two, one)) == 2
    for labeled, unlabeled, named in ((one, one, "labeled"), (two, two, "unlabeled"), (two, TensorLoader(numbers, batch_size=4), "drop")):
        with pytest.raises(ValueError, match=named):
            PairedLoader(labeled, unlabeled)


@pytest.mark.parametrize("world", [2, 3])
def test_every_image_is_seen_once_by_one_process(world):
    options = {"batch_size": 12, "shuffle": True, "drop_last": True, "seed": 5}
    whole = TensorLoader(torch.arange(49), **options)
    loaders = [TensorLoader(torch.arange(49), part=(rank, world), **options) for rank in range(world)]
    for _ in range(2):
        for (joint,), *parts in zip(whole, *loaders, strict=True):
            assert torch.equal(torch.cat([part for (part,) in parts]), joint) and len({len(part) for (part,) in parts}) == 1


def test_batches_go_to_the_device_and_whole_sets_up_to_a_third_of_what_it_has_free(monkeypatch):
    tensor = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    ((batch,),) = list(TensorLoader(tensor, batch_size=4, device="meta"))
    assert batch.device.type == "meta" and batch.dtype == torch.uint8
    assert TensorLoader(tensor, batch_size=4).device == tensor.device
    moved = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 400, 10_000))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(len(self)) or self)
    for rows in (100, 101):
        assert loader_for(torch.zeros(rows), device="cuda", batch_size=2).device.type == "cuda"
    assert moved == [100]


@on_gpu
def test_a_gpu_gives_the_same_order_from_wherever_the_rows_lie():
    places = [("cuda", "cuda"), ("cpu", "cuda"), ("cpu", "cpu")]  # of the rows, of the batches
    loaders = [TensorLoader(torch.arange(50, device=rows), batch_size=8, shuffle=True, seed=1, device=to) for rows, to in places]
    assert rows_of(loaders[0]) == rows_of(loaders[1]) == rows_of(loaders[2])
    assert [next(iter(loader))[0].device.type for loader in loaders] == ["cuda", "cuda", "cpu"]


@on_gpu
def test_slow_steps_on_the_gpu_read_the_batches_they_were_given():
    images, seen = torch.arange(64).view(-1, 1).expand(-1, 250_000).contiguous(), []
    for (batch,) in TensorLoader(images, batch_size=4, device="cuda"):
        torch.cuda._sleep(20_000_000)  # the host runs ahead of the card
        seen.append(torch.stack([batch.amin(1), batch.amax(1)]))
        del batch
    assert torch.cat(seen, 1).tolist() == [list(range(64))] * 2


@pytest.mark.parametrize(("tensors", "options", "named"), [
    ([], {}, "tensor"), ([torch.zeros(3), torch.zeros(4)], {}, r"\[3, 4\]"), ([torch.zeros(0)], {}, "at least 1"),
    ([torch.zeros(3)], {"batch_size": 1.5}, "batch_size"), ([torch.zeros(3)], {"batch_size": 4, "drop_last": True}, "batch_size"),
    ([torch.zeros(49)], {"batch_size": 12, "drop_last": True, "part": (0, 5)}, "multiple of 5"),
    ([torch.zeros(49)], {"batch_size": 12, "part": (0, 2)}, "drop_last"),
])  # fmt: skip
def test_bad_input_is_refused(tensors, options, named):
    with pytest.raises(ValueError, match=named):
        TensorLoader(*tensors, **{"batch_size": 2, **options})
