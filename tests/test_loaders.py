"""The loader: every row once a pass, orders that repeat, resuming, devices, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslcourse.loaders import PairedLoader, TensorLoader


def one_pass(loader):
    return [row for (batch,) in loader for row in batch.tolist()]


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), batch_size=st.integers(1, 70), shuffle=st.booleans(), seed=st.integers(0, 2**40))
def test_every_row_once_a_pass(rows, batch_size, shuffle, seed):
    loader = TensorLoader(torch.arange(rows), batch_size=batch_size, shuffle=shuffle, seed=seed)
    for _ in range(2):
        batches = [batch for (batch,) in loader]
        assert sorted(torch.cat(batches).tolist()) == list(range(rows))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert len(batches) == len(loader)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 60), batch_size=st.integers(1, 60), shuffle=st.booleans())
def test_drop_last_leaves_out_less_than_a_batch(rows, batch_size, shuffle):
    if rows < batch_size:
        return
    loader = TensorLoader(torch.arange(rows), batch_size=batch_size, shuffle=shuffle, drop_last=True)
    batches = [batch for (batch,) in loader]
    assert len(batches) == len(loader) == rows // batch_size
    assert {len(batch) for batch in batches} == {batch_size}
    seen = torch.cat(batches).tolist()
    assert len(set(seen)) == len(seen)


def test_images_and_labels_stay_together():
    images, labels = torch.arange(50).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), torch.arange(50) * 7
    for x, y in TensorLoader(images, labels, batch_size=8, shuffle=True):
        assert x.shape[1:] == (3, 2, 2)
        assert torch.equal(x[:, 0, 0, 0] * 7, y)


def test_without_shuffle_rows_come_in_order_every_time():
    loader = TensorLoader(torch.arange(10), batch_size=3)
    assert one_pass(loader) == one_pass(loader) == list(range(10))


def test_shuffle_differs_between_passes_and_repeats_with_the_seed():
    first, again = (TensorLoader(torch.arange(100), batch_size=7, shuffle=True, seed=3) for _ in range(2))
    passes = [one_pass(first) for _ in range(3)]
    assert passes[0] != passes[1] != passes[2] != passes[0] != list(range(100))
    assert [one_pass(again) for _ in range(3)] == passes
    assert one_pass(TensorLoader(torch.arange(100), batch_size=7, shuffle=True, seed=4)) != passes[0]


def test_no_seed_repeats_anothers_orders_a_pass_later():
    loaders = [TensorLoader(torch.arange(50), batch_size=50, shuffle=True, seed=seed) for seed in range(8)]
    assert len({tuple(loader.order(epoch).tolist()) for loader in loaders for epoch in range(8)}) == 64


def test_the_global_generator_is_left_alone_and_does_not_matter():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = one_pass(TensorLoader(torch.arange(30), batch_size=4, shuffle=True))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert one_pass(TensorLoader(torch.arange(30), batch_size=4, shuffle=True)) == first


def test_a_resumed_loader_goes_on_with_the_next_pass():
    loader = TensorLoader(torch.arange(40), batch_size=6, shuffle=True, seed=5)
    one_pass(loader), one_pass(loader)
    state = loader.state_dict()
    rest = [one_pass(loader) for _ in range(2)]
    resumed = TensorLoader(torch.arange(40), batch_size=6, shuffle=True, seed=99)
    resumed.load_state_dict(state)
    assert resumed.epoch == 2
    assert [one_pass(resumed) for _ in range(2)] == rest


def test_batches_are_copies_that_may_be_written_over():
    tensor = torch.arange(6)
    for (batch,) in TensorLoader(tensor, batch_size=2):
        batch.zero_()
    assert tensor.tolist() == list(range(6))


def test_batches_go_to_the_device_and_keep_their_kind():
    tensor = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    ((batch,),) = list(TensorLoader(tensor, batch_size=4, device="meta"))
    assert batch.device.type == "meta" and batch.dtype == torch.uint8
    assert TensorLoader(tensor, batch_size=4).device == tensor.device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_gpu_gives_the_same_order():
    on_gpu = TensorLoader(torch.arange(50, device="cuda"), batch_size=8, shuffle=True, seed=1)
    moved = TensorLoader(torch.arange(50), batch_size=8, shuffle=True, seed=1, device="cuda")
    expected = one_pass(TensorLoader(torch.arange(50), batch_size=8, shuffle=True, seed=1))
    assert one_pass(on_gpu) == one_pass(moved) == expected
    assert all(batch.is_cuda for loader in (on_gpu, moved) for (batch,) in loader)


@pytest.mark.parametrize(
    ("tensors", "options", "sentence"),
    [
        ([], {"batch_size": 2}, "at least one tensor"),
        ([torch.zeros(3), torch.zeros(4)], {"batch_size": 2}, r"\[3, 4\]"),
        ([torch.zeros(0)], {"batch_size": 2}, "no rows"),
        ([torch.zeros(3)], {"batch_size": 0}, "batch_size.*not 0"),
        ([torch.zeros(3)], {"batch_size": 1.5}, "batch_size.*not 1.5"),
        ([torch.zeros(3)], {"batch_size": 4, "drop_last": True}, "3 rows, batch_size 4.*smaller"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(tensors, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TensorLoader(*tensors, **options)


@pytest.mark.parametrize("given", range(9))
def test_a_pass_that_was_broken_off_goes_on_behind_the_batches_that_were_given(given):
    def loader():
        return TensorLoader(torch.arange(30), batch_size=7, shuffle=True, drop_last=True, seed=3)  # 4 batches a pass

    def batches(of, n):
        found = []
        while len(found) < n:
            for (batch,) in of:
                found.append(batch.tolist())
                if len(found) == n:
                    return found, of.state_dict()  # while the batch is in work
        return found, of.state_dict()

    whole, _ = batches(loader(), 12)
    first = loader()
    before, state = batches(first, given)
    assert first.epoch == -(-given // 4)  # a broken-off pass counts as begun, as ever
    second = loader()
    second.load_state_dict(state)
    assert second.state_dict() == state
    after, _ = batches(second, 12 - given)
    assert before + after == whole


@pytest.mark.parametrize("given", [0, 1, 5, 6, 7, 13])
def test_a_broken_off_pass_over_pairs_goes_on_exactly(given):
    def loader():
        labeled = TensorLoader(torch.arange(10), torch.arange(10), batch_size=4, shuffle=True, drop_last=True, seed=1)
        return PairedLoader(labeled, TensorLoader(torch.arange(36), batch_size=6, shuffle=True, drop_last=True, seed=2))

    def batches(of, n):
        found = []
        while len(found) < n:
            for batch in of:
                found.append([part.tolist() for part in batch])
                if len(found) == n:
                    break
        return found, of.state_dict()

    whole, _ = batches(loader(), 18)
    before, state = batches(loader(), given)
    second = loader()
    second.load_state_dict(state)
    after, _ = batches(second, 18 - given)
    assert before + after == whole
