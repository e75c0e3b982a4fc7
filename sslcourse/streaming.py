"""Batches from tensors that do not fit the device: gathered by a thread, and copied there, while the step before is still computed."""

import queue
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from sslcourse.loaders import TensorLoader
from sslcourse.memory import available


class StreamingLoader(TensorLoader):
    """The batches of a `TensorLoader`, bit for bit and with the same interface, from tensors in main memory or mapped from a file.

    A thread gathers the next batches while the present one is used, at most `buffers` of them ahead. For a CUDA device it gathers into
    that many page-locked buffers, from which the card copies on a stream of its own: neither Python nor the steps wait for a copy, only
    the step that needs a batch waits for that batch, on the card. Elsewhere every batch is new memory.

    What goes wrong in the thread is raised where the batch is asked for. Leaving a pass early ends the thread.
    Raises ValueError when a tensor is not in main memory, and where `TensorLoader` does. A mapped file must not be cut short while it is
    used: the system ends a process that reads beyond the end, and no program can prevent that.

    >>> loader = StreamingLoader(torch.arange(5), batch_size=2)
    >>> [batch.tolist() for (batch,) in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, *tensors: Tensor, buffers: int = 3, **options):
        super().__init__(*tensors, **options)
        if int(buffers) != buffers or buffers < 1:
            raise ValueError(f"buffers is how many batches are held ready and must be a positive whole number, not {buffers}.")
        elsewhere = {str(t.device) for t in tensors if t.device.type != "cpu"}
        if elsewhere:
            raise ValueError(f"StreamingLoader reads from main memory; these lie on {', '.join(elsewhere)}: take a TensorLoader.")
        self.buffers = int(buffers)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = self.order(self.epoch)
        rows = (self._batch_rows(order, number) for number in range(self.start, len(self)))
        feed = _Feed(self, rows)
        try:
            for _ in self._row_batches():  # which keeps the books: epoch and batch advance when a batch is given, not when it is gathered
                yield feed.take()
        finally:
            feed.close()

    def _gather(self, rows: Tensor, into: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """These rows of every tensor, in new memory or at the beginning of these buffers. Called in the thread."""
        if into is None:
            return tuple(t.index_select(0, rows) for t in self.tensors)
        return tuple(torch.index_select(t, 0, rows, out=b[: len(rows)]) for t, b in zip(self.tensors, into, strict=True))


class _Feed:
    """The thread behind one pass, and the queue at which it hands over: each batch with the event after which it is there, or an error."""

    def __init__(self, loader: StreamingLoader, rows: Iterator[Tensor]):
        self.loader, self.rows = loader, rows
        self.device, self.stopped = loader.device, False
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())  # every thread has a present device of its own
        self.free, self.ready = queue.SimpleQueue(), queue.SimpleQueue()
        for number in range(loader.buffers):
            self.free.put(number)
        self.thread = threading.Thread(target=self._work, name="sslcourse-streaming", daemon=True)
        self.thread.start()

    def take(self) -> tuple[Tensor, ...]:
        """The next batch, or the error that came instead."""
        batch, arrived = self.ready.get()
        if isinstance(batch, BaseException):
            raise batch
        if arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(arrived)
            for tensor in batch:
                tensor.record_stream(stream)  # it was made on the other stream, which must not reuse its memory while this one reads
        self.free.put(0)  # there may be one more ahead
        return batch

    def close(self) -> None:
        self.stopped = True
        self.free.put(0)  # wakes the thread, if it waits
        if threading.current_thread() is not self.thread:  # Python may collect garbage, this among it, in any thread
            self.thread.join()

    @torch.no_grad()
    def _work(self) -> None:
        try:
            for batch in self._on_cuda() if self.device.type == "cuda" else self._in_memory():
                self.ready.put(batch)
        except BaseException as error:
            self.ready.put((error, None))

    def _next_rows(self) -> Iterator[Tensor]:
        """Rows to gather, each when there is room for another batch; the end when nobody wants more."""
        for rows in self.rows:
            self.free.get()
            if self.stopped:
                return
            yield rows

    def _in_memory(self) -> Iterator[tuple[tuple[Tensor, ...], None]]:
        for rows in self._next_rows():
            yield tuple(t.to(self.device) for t in self.loader._gather(rows)), None

    def _on_cuda(self) -> Iterator[tuple[tuple[Tensor, ...], torch.cuda.Event]]:
        loader = self.loader
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            size = min(loader.batch_size, loader.rows)
            ring = [_page_locked(loader.tensors, size) for _ in range(loader.buffers)]
            copied: list[torch.cuda.Event | None] = [None] * loader.buffers
            for number, rows in enumerate(self._next_rows()):
                slot = number % loader.buffers
                if copied[slot] is not None:
                    copied[slot].synchronize()  # this thread waits until the card has read the buffer that it is about to write over
                gathered = loader._gather(rows, ring[slot])
                with torch.cuda.stream(side):
                    batch = tuple(t.to(self.device, non_blocking=True) for t in gathered)
                    copied[slot] = torch.cuda.Event(blocking=True)
                    copied[slot].record(side)
                yield batch, copied[slot]


def _page_locked(tensors: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    return tuple(torch.empty(rows, *t.shape[1:], dtype=t.dtype, pin_memory=True) for t in tensors)


def loader_for(*tensors: Tensor, device: str | torch.device, limit: int | None = None, **options) -> TensorLoader:
    """The loader that suits: a `TensorLoader` where the tensors lie on the device or fit there, else a `StreamingLoader`.

    Tensors elsewhere that take at most `limit` bytes are moved to the device once. limit: None is a third of what is free on a CUDA
    device, so that two thirds are left for the training, and no limit on other devices. Tensors in main memory are already where a CPU
    needs them, mapped from a file or not; with a limit that they exceed they are streamed there too.
    options: those of `TensorLoader`, and `buffers` of `StreamingLoader`, which only that one uses. Raises what these two raise.
    """
    device = torch.device(device)
    in_main_memory = all(t.device.type == "cpu" for t in tensors)
    if limit is None and device.type == "cuda" and in_main_memory:
        limit = available(device) // 3
    fit = limit is None or sum(t.numel() * t.element_size() for t in tensors) <= limit
    if not fit and in_main_memory:
        return StreamingLoader(*tensors, device=device, **options)
    options.pop("buffers", None)
    if fit:
        tensors = tuple(t.to(device) for t in tensors)
    return TensorLoader(*tensors, device=device, **options)
