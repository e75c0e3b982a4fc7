"""The loader that streams: a TensorLoader's batches, gathered ahead by a thread that ends with the pass."""

import gc
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import image_set, rotation, same_weights, without_seconds

from sslcourse import streaming, training
from sslcourse.loaders import PairedLoader, TensorLoader
from sslcourse.streaming import StreamingLoader, loader_for

PATIENCE = 30  # seconds until a test that waits for a thread gives up: no measurement

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


def one_pass(loader):
    return [tuple(t.cpu() for t in batch) for batch in loader]


def same(batches, others):
    return len(batches) == len(others) and all(
        len(a) == len(b) and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))
        for a, b in zip(batches, others, strict=True)
    )


def pairs(n=41):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8), torch.arange(n)


def streams():
    return [thread for thread in threading.enumerate() if thread.name == "sslcourse-streaming"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not streams()
    yield
    gc.collect()
    assert not streams()


class Slow(StreamingLoader):
    """Says when each batch is begun, and waits for leave to go on."""

    def __init__(self, *tensors, **options):
        super().__init__(*tensors, **options)
        self.begun = [threading.Event() for _ in range(len(self))]
        self.leave = [threading.Event() for _ in range(len(self))]
        self.gathered = 0

    def _gather(self, rows, into=None):
        number = self.gathered
        self.begun[number].set()
        assert self.leave[number].wait(PATIENCE)
        self.gathered += 1
        return super()._gather(rows, into)


# --- the same batches -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60), batch_size=st.integers(1, 70), shuffle=st.booleans(), drop_last=st.booleans(),
    buffers=st.integers(1, 4), seed=st.integers(0, 2**40),
)  # fmt: skip
def test_every_batch_is_that_of_a_tensor_loader(rows, batch_size, shuffle, drop_last, buffers, seed):
    options = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last and rows >= batch_size, "seed": seed}
    images, labels = pairs(rows)
    plain, streamed = TensorLoader(images, labels, **options), StreamingLoader(images, labels, buffers=buffers, **options)
    for _ in range(2):
        assert same(one_pass(streamed), one_pass(plain))
        assert streamed.state_dict() == plain.state_dict()


@devices
@pytest.mark.parametrize("buffers", [1, 3])
def test_batches_go_to_the_device(device, buffers):
    options = {"batch_size": 7, "shuffle": True}
    streamed = StreamingLoader(*pairs(), device=device, buffers=buffers, **options)
    assert all(t.device.type == device for batch in streamed for t in batch)
    plain = TensorLoader(*pairs(), **options)
    one_pass(plain)
    for _ in range(3):
        assert same(one_pass(streamed), one_pass(plain))


def test_the_parts_of_several_processes_are_theirs():
    options = {"batch_size": 8, "shuffle": True, "drop_last": True}
    for rank in range(4):
        plain, streamed = (kind(*pairs(), part=(rank, 4), **options) for kind in (TensorLoader, StreamingLoader))
        assert same(one_pass(streamed), one_pass(plain))


@pytest.mark.parametrize("given", [1, 3, 5])
def test_a_pass_goes_on_in_the_middle(given):
    options = {"batch_size": 7, "shuffle": True, "drop_last": True}
    first, whole = StreamingLoader(*pairs(), **options), TensorLoader(*pairs(), **options)
    expected = one_pass(whole) + one_pass(whole)
    batches = iter(first)
    taken = [next(batches) for _ in range(given)]
    state = first.state_dict()
    batches.close()
    assert same(taken, expected[:given])
    assert state == {"epoch": given // 5, "batch": given % 5, "seed": 0}  # though more had been gathered
    for kind in (StreamingLoader, TensorLoader):
        resumed = kind(*pairs(), **options)
        resumed.load_state_dict(state)
        rest = one_pass(resumed)
        if given < 5:
            rest += one_pass(resumed)
        assert same(rest, expected[given:])


def test_two_passes_at_a_time_do_not_disturb_each_other():
    loader = StreamingLoader(torch.arange(20), batch_size=3)
    for (first,), (second,) in zip(loader, loader, strict=True):
        assert torch.equal(first, second)


@devices
def test_batches_that_are_kept_or_written_over_stay_ones_own(device):
    tensor = torch.arange(60)
    kept = []
    for (batch,) in StreamingLoader(tensor, batch_size=2, buffers=2, device=device):
        kept.append(batch)
        batch.add_(100)
    assert torch.cat(kept).tolist() == list(range(100, 160))
    assert tensor.tolist() == list(range(60))


def test_a_mapped_file_is_a_source(tmp_path):
    images, labels = pairs()
    np.save(tmp_path / "images.npy", images.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="r+"))
    streamed = StreamingLoader(mapped, labels, batch_size=8, shuffle=True)
    assert same(one_pass(streamed), one_pass(TensorLoader(images, labels, batch_size=8, shuffle=True)))


def test_labelled_and_unlabelled_batches_side_by_side():
    labelled, unlabelled = {"batch_size": 4, "shuffle": True, "drop_last": True}, {"batch_size": 6, "shuffle": True, "drop_last": True}
    passes = []
    for kind in (StreamingLoader, TensorLoader):
        loader = PairedLoader(kind(*pairs(10), **labelled), kind(torch.arange(50), **unlabelled))
        passes.append(one_pass(loader) + one_pass(loader))
    assert same(*passes)


def test_training_from_a_stream_is_the_same_training(monkeypatch, one_thread):
    histories, methods = [], []
    for kind in (TensorLoader, StreamingLoader):
        monkeypatch.setattr(training, "TensorLoader", kind)
        methods.append(rotation())
        histories.append(training.pretrain(methods[-1], image_set(), 2, batch_size=16, precision="fp32", look_every=0, progress=False))
    assert without_seconds(histories[0]) == without_seconds(histories[1])
    assert same_weights(*methods)


# --- ahead ------------------------------------------------------------------------------------------------------------------------------


@devices
@pytest.mark.parametrize("buffers", [1, 2])
def test_the_next_batches_are_gathered_while_the_present_one_is_used(device, buffers):
    loader = Slow(torch.arange(12), batch_size=2, buffers=buffers, device=device)
    loader.leave[0].set()
    batches = iter(loader)
    next(batches)
    # the consumer has batch 0 and has not come back for more
    for number in range(1, 1 + buffers):
        assert loader.begun[number].wait(PATIENCE)
        loader.leave[number].set()
    # there is no room for another one, and the thread waits
    feed = batches.gi_frame.f_locals["feed"]
    while feed.ready.qsize() < buffers:
        assert feed.thread.is_alive()
    assert not loader.begun[1 + buffers].is_set()
    next(batches)
    assert loader.begun[1 + buffers].wait(PATIENCE)  # and now there is
    for leave in loader.leave:
        leave.set()
    assert [batch.tolist() for (batch,) in batches] == [[4, 5], [6, 7], [8, 9], [10, 11]]


# --- endings ----------------------------------------------------------------------------------------------------------------------------


@devices
def test_leaving_a_pass_ends_the_thread_and_the_next_pass_is_whole(device):
    loader = StreamingLoader(torch.arange(100), batch_size=3, device=device)
    for _ in loader:
        assert len(streams()) == 1
        break
    gc.collect()
    assert not streams()
    assert torch.cat([batch for (batch,) in loader]).tolist() == list(range(100))


def test_an_error_where_batches_are_used_ends_the_thread():
    with pytest.raises(KeyError):
        for _ in StreamingLoader(torch.arange(100), batch_size=3):
            raise KeyError
    gc.collect()
    assert not streams()


def test_a_forgotten_pass_ends_its_thread():
    batches = iter(StreamingLoader(torch.arange(100), batch_size=3))
    next(batches)
    assert len(streams()) == 1
    del batches
    gc.collect()
    assert not streams()


def test_garbage_that_the_thread_itself_collects_ends_it():
    loader = Slow(torch.arange(100), batch_size=3)
    batches = iter(loader)
    loader.leave[0].set()
    next(batches)
    feed = batches.gi_frame.f_locals["feed"]
    held = [batches]

    def rows_then_none(rows, into=None):
        held.clear()  # the last reference goes in the thread
        return (rows,)

    del batches
    loader._gather = rows_then_none
    loader.leave[1].set()
    for leave in loader.leave:
        leave.set()
    feed.thread.join(PATIENCE)
    assert not feed.thread.is_alive() and feed.stopped


def test_a_pass_that_was_not_begun_starts_nothing():
    iter(StreamingLoader(torch.arange(100), batch_size=3))
    assert not streams()


@devices
def test_an_error_in_the_thread_comes_out_where_the_batch_was_asked_for(device):
    class Broken(StreamingLoader):
        def _gather(self, rows, into=None):
            if 50 in rows:
                raise OSError("the disk is gone")
            return super()._gather(rows, into)

    given = []
    with pytest.raises(OSError, match="the disk is gone"):
        for (batch,) in Broken(torch.arange(100), batch_size=10, device=device):
            given += batch.tolist()
    assert given == list(range(50))  # all that was before it


@pytest.mark.parametrize("buffers", [0, 1.5, -1])
def test_a_number_of_buffers_that_cannot_be_is_refused(buffers):
    with pytest.raises(ValueError, match=f"buffers.*not {buffers}"):
        StreamingLoader(torch.arange(4), batch_size=2, buffers=buffers)


def test_tensors_that_lie_elsewhere_are_refused():
    with pytest.raises(ValueError, match="main memory.*meta"):
        StreamingLoader(torch.zeros(4, device="meta"), batch_size=2)


# --- the loader that suits --------------------------------------------------------------------------------------------------------------


def test_main_memory_is_where_a_cpu_needs_it():
    images, labels = pairs()
    loader = loader_for(images, labels, device="cpu", batch_size=5, buffers=2)
    assert type(loader) is TensorLoader
    assert loader.tensors[0].data_ptr() == images.data_ptr()


def test_with_a_limit_a_cpu_streams_what_exceeds_it():
    images, labels = pairs()
    size = images.nbytes + labels.nbytes
    assert type(loader_for(images, labels, device="cpu", limit=size, batch_size=5)) is TensorLoader
    loader = loader_for(images, labels, device="cpu", limit=size - 1, batch_size=5, shuffle=True, buffers=2)
    assert type(loader) is StreamingLoader and loader.buffers == 2 and loader.device.type == "cpu"
    assert same(one_pass(loader), one_pass(TensorLoader(images, labels, batch_size=5, shuffle=True)))


def test_what_fits_elsewhere_is_moved_once():
    loader = loader_for(torch.zeros(6), device="meta", batch_size=2)
    assert type(loader) is TensorLoader and loader.tensors[0].device.type == "meta"
    streamed = loader_for(torch.zeros(6), device="meta", limit=10, batch_size=2)
    assert type(streamed) is StreamingLoader and streamed.device.type == "meta" and streamed.tensors[0].device.type == "cpu"


def test_what_lies_on_a_device_already_stays():
    loader = loader_for(torch.zeros(6, device="meta"), device="meta", limit=10, batch_size=2, buffers=2)
    assert type(loader) is TensorLoader and loader.tensors[0].device.type == "meta"


def test_without_tensors_the_sentence_is_that_of_the_loader():
    with pytest.raises(ValueError, match="at least one tensor"):
        loader_for(device="cpu", batch_size=2)


@on_gpu
def test_a_third_of_a_free_gpu_is_the_limit(monkeypatch):
    monkeypatch.setattr(streaming, "available", lambda device: 3 * 400)
    assert type(loader_for(torch.zeros(100), device="cuda", batch_size=2)) is TensorLoader
    assert type(loader_for(torch.zeros(101), device="cuda", batch_size=2)) is StreamingLoader
    assert type(loader_for(torch.zeros(101, device="cuda"), device="cuda", batch_size=2)) is TensorLoader


@on_gpu
def test_slow_steps_on_the_gpu_read_the_batches_they_were_given():
    images = torch.arange(64).view(-1, 1).expand(-1, 250_000).contiguous()
    seen = []
    for (batch,) in StreamingLoader(images, batch_size=4, buffers=2, device="cuda"):
        torch.cuda._sleep(20_000_000)  # the host runs ahead of the card
        seen.append(torch.stack([batch.amin(1), batch.amax(1)]))
        del batch
    assert torch.cat(seen, 1).tolist() == [list(range(64))] * 2
