"""Batches straight from tensors, by one indexing operation each: no worker processes, no copies of single images."""

from collections.abc import Iterator
from itertools import chain, repeat

import torch
from torch import Tensor

from sslcourse.devices import send


class TensorLoader:
    """Iterate over tensors in batches, like a DataLoader over a TensorDataset.

    tensors: one or more tensors with the same first dimension N, on the same device: images uint8 (N, 3, H, W), labels (N,), ...
    batch_size: rows a batch. shuffle: a new order every pass. drop_last: leave out a smaller last batch (batch statistics need it).
    seed: the order of pass number e depends on (seed, e) alone, on any device, so that a resumed run is exact.
    device: where batches go, when it is not where the tensors lie; a GPU gets them through page-locked memory, and nobody waits.
    part: (rank, world), where several processes share every batch: this one gets the rank-th of `world` equal parts of batch_size rows.

    Yields tuples (x,) or (x, y), ... state_dict and load_state_dict keep the place inside a pass too.
    Raises ValueError when lengths differ, when there are no rows, when drop_last would leave nothing, or when a batch cannot be shared.

    >>> loader = TensorLoader(torch.arange(5), batch_size=2, shuffle=False)
    >>> [batch.tolist() for (batch,) in loader]
    [[0, 1], [2, 3], [4]]
    """

    epoch = 0  # number of the next pass
    start = 0  # batches of the next pass that were given before, in the run that it goes on from
    batch = 0  # batches of the present pass that have been given

    def __init__(
        self, *tensors: Tensor, batch_size: int, shuffle: bool = False, drop_last: bool = False, seed: int = 0,
        device: str | torch.device | None = None, part: tuple[int, int] = (0, 1),
    ):  # fmt: skip
        lengths = [len(t) for t in tensors]
        if len(set(lengths)) != 1 or not lengths[0]:
            raise ValueError(f"The tensors to load must have one number of rows, at least 1; these have {lengths}.")
        if int(batch_size) != batch_size or batch_size < 1:
            raise ValueError(f"batch_size must be a positive whole number, not {batch_size}.")
        if drop_last and lengths[0] < batch_size:
            raise ValueError(f"batch_size {batch_size} leaves no whole batch of {lengths[0]} rows. Make it smaller.")
        rank, world = part
        if world > 1 and (batch_size % world or not drop_last):
            raise ValueError(f"A batch of {batch_size} cannot be shared by {world} processes: take a multiple of {world}, and drop_last.")
        self.tensors, self.part = tensors, (rank, world)
        self.batch_size, self.shuffle, self.drop_last, self.seed = int(batch_size), shuffle, drop_last, seed
        self.device = torch.device(device) if device is not None else tensors[0].device

    def __len__(self) -> int:
        """Batches a pass."""
        rows = len(self.tensors[0])
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """The rows' order in pass number `epoch`: int64 (N,), on the CPU."""
        if not self.shuffle:
            return torch.arange(len(self.tensors[0]))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(len(self.tensors[0]), generator=generator)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = send(self.order(self.epoch), self.tensors[0].device)
        rank, world = self.part
        share = self.batch_size // world
        begin, self.start = self.start, 0
        self.epoch += 1
        for number in range(begin, len(self)):
            self.batch = number + 1
            first = number * self.batch_size + rank * share
            yield tuple(send(t.index_select(0, order[first : first + share]), self.device) for t in self.tensors)
        self.batch = 0

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands: the pass, and how many batches of it were given; after its last batch, the beginning of the next."""
        inside = 0 < self.batch < len(self)
        return {"epoch": self.epoch - 1 if inside else self.epoch, "batch": self.batch if inside else self.start, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.seed, self.start, self.batch = state["epoch"], state["seed"], state.get("batch", 0), 0


class PairedLoader:
    """Yields (x, y, u): x, y from `labeled`, a TensorLoader of two tensors, u from `unlabeled`, one of one tensor, both with drop_last.

    A pass is one over the unlabelled images; the labelled ones go round as often as that takes. Orders depend on seeds and step alone.
    """

    def __init__(self, labeled: TensorLoader, unlabeled: TensorLoader):
        for name, loader, tensors in (("labeled", labeled, 2), ("unlabeled", unlabeled, 1)):
            if len(loader.tensors) != tensors or not loader.drop_last:
                raise ValueError(f"{name} must be a TensorLoader of {tensors} tensor{'s' * (tensors > 1)} with drop_last=True.")
        self.labeled, self.unlabeled = labeled, unlabeled

    epoch = property(lambda self: self.unlabeled.epoch)
    start = property(lambda self: self.unlabeled.start)
    batch = property(lambda self: self.unlabeled.batch)

    def __len__(self) -> int:
        return len(self.unlabeled)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        self.labeled.epoch, self.labeled.start = divmod(self.epoch * len(self) + self.start, len(self.labeled))
        for (u,), (x, y) in zip(self.unlabeled, chain.from_iterable(repeat(self.labeled)), strict=False):
            yield x, y, u

    def state_dict(self) -> dict[str, dict[str, int]]:
        return {"unlabeled": self.unlabeled.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        self.unlabeled.load_state_dict(state["unlabeled"])


def loader_for(*tensors: Tensor, device: str | torch.device, **options) -> TensorLoader:
    """A TensorLoader of tensors that are moved to the device first, or batch by batch if they take over a third of a GPU's free memory."""
    device = torch.device(device)
    if device.type != "cuda" or sum(t.nbytes for t in tensors if t.device != device) <= torch.cuda.mem_get_info(device)[0] // 3:
        tensors = tuple(t.to(device) for t in tensors)
    return TensorLoader(*tensors, device=device, **options)
