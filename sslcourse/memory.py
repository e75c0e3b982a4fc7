"""How much memory a training step will need, before it is taken: measured on a few images, computed for any batch size.

Every tensor of a step is so many bytes for each image, or for each pair of images (SimCLR's similarities), or the same for every batch
(weights, gradients, the optimizer's state). So what is alive after each single operation is a quadratic function of the batch size, and
steps on three tiny batches fix all of these functions exactly. The peak at another batch size is the largest of them there; which
operation that is may change with the size, as it does for SimCLR, whose loss outgrows its network.
"""

import copy
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslcourse.datasets.prepared import human
from sslcourse.devices import autocast, choose_precision, seeded
from sslcourse.errors import CourseError
from sslcourse.models.encoders import to_channels_last
from sslcourse.training.optimizers import make_optimizer

PROBES = (2, 4, 6)  # images in the three steps that are measured, evenly spaced; a loss with negatives needs 2
CUDA_PROBES = (16, 32, 48)  # larger, because what a kernel takes for itself is only seen at sizes near those it will meet
HEADROOM = 0.1  # part of the free memory that `check_fits` leaves alone, for what no tensor shows

# --- watching ---------------------------------------------------------------------------------------------------------------------------


class LiveMemory(TorchDispatchMode):
    """While it is entered, follows the bytes of the tensors that operations make, backward passes included, until they are freed.

    bytes: alive now, each block of memory once, however many tensors look at it. peak: the most there were. What existed before, such as
    a model's weights, is not counted, and neither is what a single operation takes and gives back inside itself. Blocks that outlive the
    context are followed on.

    >>> with LiveMemory() as live:
    ...     total = (torch.ones(250) + 1).exp().sum()  # float32: 4 bytes each, two tensors of 250 at a time
    >>> live.peak, live.bytes
    (2000, 4)
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._blocks: dict[int, tuple[int, ref]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        blocks = _blocks(made)
        given = {block._cdata for block in _blocks((args, kwargs))} if blocks else ()
        for block in blocks:
            if block._cdata in self._blocks:
                self._grow(block)  # `out=` may have enlarged it
            elif block._cdata not in given:  # neither a view of what was there before, nor that itself, written over
                self._blocks[block._cdata] = 0, ref(block, partial(self._freed, block._cdata))
                self._grow(block)
        self.peak = max(self.peak, self.bytes)
        return made

    def _grow(self, block: torch.UntypedStorage) -> None:
        size, watcher = self._blocks[block._cdata]
        self.bytes += block.nbytes() - size
        self._blocks[block._cdata] = block.nbytes(), watcher

    def _freed(self, address: int, watcher: ref) -> None:
        self.bytes -= self._blocks.pop(address)[0]


def _blocks(values) -> list[torch.UntypedStorage]:
    """The blocks of memory of all tensors among nested values; the same block may come more than once."""
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor) and value.layout == torch.strided]


class _Timeline(LiveMemory):
    """LiveMemory that also writes down what was alive after each operation.

    Augmentations are left out and only their highest point is kept: on a CPU they go in as many chunks as the batch needs, and pick out the
    images that are to be blurred, so their operations cannot be told one by one for another batch.
    """

    def __init__(self, augmentation: nn.Module | None):
        super().__init__()
        self.after: list[int] = []
        self.highest_augmenting = 0
        self._augmenting = False
        if augmentation is not None:
            augmentation.register_forward_pre_hook(lambda *_: self._augment(True))
            augmentation.register_forward_hook(lambda *_: self._augment(False))

    def _augment(self, now: bool) -> None:
        self._augmenting = now

    def restart(self) -> None:
        self.after, self.highest_augmenting = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = super().__torch_dispatch__(function, types, args, kwargs)
        if self._augmenting:
            self.highest_augmenting = max(self.highest_augmenting, self.bytes)
        else:
            self.after.append(self.bytes)
        return made


# --- predicting -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Need:
    """Bytes that a step needs at its peak, as a function of the batch size: called with it."""

    probes: tuple[int, int, int]
    lasting: int  # weights and buffers
    between_steps: int  # gradients and the optimizer's state
    after: np.ndarray  # (3, operations): bytes alive after each operation of the three measured steps, beside what lasts
    augmenting: float  # bytes an image, at the highest point of the augmentation
    beside: tuple[int, int, int]  # what a CUDA allocator gave out beyond the tensors in the three steps

    def __call__(self, batch_size: int) -> int:
        if int(batch_size) != batch_size or batch_size < 1:
            raise ValueError(f"batch_size must be a positive whole number, not {batch_size}.")
        first, second, third = self.probes
        t, h = float(batch_size), second - first
        y0, y1, y2 = self.after.astype(float)
        quadratics = y0 + (y1 - y0) * (t - first) / h + (y2 - 2 * y1 + y0) * (t - first) * (t - second) / (2 * h * h)  # Newton's form
        peak = max(float(quadratics.max()), self.between_steps + self.augmenting * t)
        slope = max(0.0, (self.beside[2] - self.beside[1]) / h)
        return math.ceil(self.lasting + peak + max(0.0, self.beside[2] + slope * (t - third)))


def _measure(method: nn.Module, size: int, device, precision: str, optimizer: str) -> _Need:
    """Take four steps on tiny batches with a copy of the method: one that makes gradients and optimizer state, and three to measure."""
    if int(size) != size or size < 1:
        raise ValueError(f"size is in pixels a side and must be a positive whole number, not {size}.")
    device = torch.device(device) if device is not None else next(method.parameters()).device
    precision = choose_precision(device, precision)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.init()  # else the caller's random numbers there could not be put back
    probes = CUDA_PROBES if on_cuda else PROBES
    with seeded(0), torch.enable_grad():
        method = to_channels_last(copy.deepcopy(method).to(device)).train()
        if hasattr(method, "prepare"):
            method.prepare(size)
        lasting = _bytes_of(method)
        made = make_optimizer(optimizer, method, lr=1e-6, weight_decay=0.0)
        after, augmenting, beside = [], 0.0, []
        with _Timeline(getattr(method, "augmentation", None)) as live:
            _step(method, made, probes[0], size, device, precision)
            between_steps = live.bytes
            for batch_size in probes:
                live.restart()
                if on_cuda:
                    torch.cuda.reset_peak_memory_stats(device)
                    before = torch.cuda.memory_allocated(device)
                _step(method, made, batch_size, size, device, precision)
                after.append(live.after)
                augmenting = max(augmenting, (live.highest_augmenting - between_steps) / batch_size)
                rise = max(*live.after, live.highest_augmenting) - between_steps
                beside.append(torch.cuda.max_memory_allocated(device) - before - rise if on_cuda else 0)
    if len({len(operations) for operations in after}) > 1:  # a method of the user's own may do other things with other sizes
        after = [[max(operations)] for operations in after]
    return _Need(probes, lasting, between_steps, np.array(after), augmenting, tuple(beside))


def _step(method: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int, size: int, device: torch.device, precision: str) -> None:
    """A step as `training_loop.run_loop` takes it: the gradients of the step before are still there while the loss is computed."""
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, device=device)
    with autocast(device, precision):
        loss = method(images)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if hasattr(method, "after_step"):
        method.after_step(1, 1)


def _bytes_of(module: nn.Module) -> int:
    """Bytes of the weights and buffers, each block of memory once."""
    blocks = {block._cdata: block.nbytes() for block in _blocks([*module.parameters(), *module.buffers()])}
    return sum(blocks.values())


def predict_peak(
    method: nn.Module,
    batch_size: int,
    size: int,
    *,
    device: str | torch.device | None = None,
    precision: str = "auto",
    optimizer: str = "adamw",
) -> int:
    """Bytes that one step of `training.pretrain` needs at its peak: the batch, views, activations, loss, gradients, optimizer, weights.

    method: a method of `models`, whose forward takes uint8 images (N, 3, size, size) only. batch_size: images a step. size: pixels a side.
    device, precision, optimizer: as in `training.pretrain`. The steps that are measured are taken on a copy, with random numbers of their
    own, so nothing of the method or of the caller's random state changes; on CUDA the card's peak statistics begin anew.

    On a CPU it is what `LiveMemory` counts in a real step, to 0.4 % (the four methods, ResNet-9 of width 2 to 16, 32 to 96 pixels, batches
    of 16 to 200, fp32 and bf16; mostly to 0.01 %). Not in it: the data set, what a look at the encoder between epochs needs (512 images at
    a time, without gradients), torch itself, and what an operation takes for itself alone, such as a convolution that brings its input
    into another order. The whole process grew by 8 % less to 9 % more than predicted where that was above 600 MB, and by 90 to 100 MB more
    in smaller steps. An augmentation that works in chunks is counted as if it did not, which does not matter where a network's activations
    are larger than its images. On CUDA the workspaces of the operations and the allocator's rounding are measured too, and continued along
    a line; how well that holds has not been measured.
    With several processes each predicts its own part, and all of them must ask, because their losses are computed together.
    Raises ValueError for a batch size, size, precision or optimizer that cannot be, and whatever the method raises.
    """
    return _measure(method, size, device, precision, optimizer)(batch_size)


def largest_batch(
    method: nn.Module,
    size: int,
    limit_bytes: int,
    *,
    device: str | torch.device | None = None,
    precision: str = "auto",
    optimizer: str = "adamw",
) -> int:
    """The largest batch size whose `predict_peak` is at most `limit_bytes`; 0 if there is none. The other arguments are those."""
    return _largest(_measure(method, size, device, precision, optimizer), limit_bytes)


def _largest(need: _Need, limit_bytes: int) -> int:
    fits, too_large = 0, 1
    while need(too_large) <= limit_bytes:
        fits, too_large = too_large, 2 * too_large
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        fits, too_large = (middle, too_large) if need(middle) <= limit_bytes else (fits, middle)
    return fits


# --- what there is ----------------------------------------------------------------------------------------------------------------------


def available(device: str | torch.device) -> int | None:
    """Bytes that are free on a device: None where the system does not say.

    CUDA: what the card has free, and what torch holds there without using it. CPU, on Linux: what programs can get without swapping, or
    what the limit of the control group (a container, a batch system) leaves where that is less. Nothing is said elsewhere.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return _free_on_linux(Path("/")) if device.type == "cpu" else None


def _free_on_linux(root: Path) -> int | None:
    lines = [line.split() for line in _text(root / "proc/meminfo").splitlines()]
    free = [1024 * int(line[1]) for line in lines if line[0] == "MemAvailable:"] + _left_by_control_groups(root)
    return max(0, min(free)) if free else None


def _left_by_control_groups(root: Path) -> list[int]:
    """What is left of every limit on this process's groups and those above them, versions 1 and 2."""
    left = []
    for line in _text(root / "proc/self/cgroup").splitlines():  # such as 4:memory:/a/b, or 0::/a/b in version 2
        number, controllers, inside = line.split(":", 2)
        if number == "0":
            base, limit, used, cached = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, cached = root / "sys/fs/cgroup/memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / inside.lstrip("/")
        for folder in (group, *group.parents):
            most, now = _text(folder / limit).strip(), _text(folder / used).strip()
            if most.isdigit() and now.isdigit():  # "max" is no limit; a container may not see its folder, only the base
                counts = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
                left.append(int(most) - int(now) + int(counts.get(cached, 0)))  # cached files give way
            if folder == base:
                break
    return left


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def check_fits(
    method: nn.Module, batch_size: int, size: int, *, device: str | torch.device | None = None, precision: str = "auto",
    optimizer: str = "adamw", limit: int | None = None,
) -> int | None:  # fmt: skip
    """Raise CourseError, before any training, if a step does not fit into memory: it says what does. Returns the predicted bytes.

    limit: bytes that the step, weights included, may take; None is what is free on the device less a tenth. Where the system does not say
    what is free, nothing is measured and None is returned. The other arguments are those of `predict_peak`; it takes four steps on a few
    images.
    """
    device = torch.device(device) if device is not None else next(method.parameters()).device
    if limit is None:
        free = available(device)
        if free is None:
            return None
        there = _bytes_of(method) if next(method.parameters()).device.type == device.type else 0  # counted in what the step needs
        limit = int((1 - HEADROOM) * free) + there
    kind = type(method).__name__
    way_out = "take smaller images (size) or a smaller network (width)"
    try:
        need = _measure(method, size, device, precision, optimizer)
    except torch.cuda.OutOfMemoryError as error:
        raise CourseError(f"Not even {max(CUDA_PROBES)} images of {size} pixels fit into memory in a step of {kind}: {way_out}.") from error
    if need(batch_size) <= limit:
        return need(batch_size)
    most = _largest(need, limit)
    if most >= 2:  # batch normalisation and the losses compare images
        way_out = f"take a batch_size of at most {most}, or {way_out.removeprefix('take ')}"
    else:
        way_out = f"not even 2 images fit, so {way_out}"
    raise CourseError(
        f"batch_size {batch_size} does not fit: a step of {kind} on {size} pixels needs about {human(need(batch_size))} of memory, and "
        f"{human(max(0, limit))} can be used on {device}; {way_out}."
    )
