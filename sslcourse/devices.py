"""What computing has to know of the machine: device, precision, threads, the random state, and the other processes of one training.

What Apple's GPUs (mps) cannot do stands here alone: float64 (`wide_float`), bf16 before macOS 14, copies beside the work (`send`).
"""

import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from sslcourse.errors import CourseError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_device(device: str | torch.device | None = None, named: str = "device") -> torch.device:
    """The device that a name means; None, "auto" and "default" take the GPU (cuda, then mps) if there is one, else the CPU.

    named: the option or parameter, for messages. Raises CourseError, with the way out, for what is no device or is not here.
    """
    gpus = [kind for kind, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if backend.is_available()]
    if device in (None, "auto", "default"):
        return torch.device((*gpus, "cpu")[0])
    here = ", ".join([*gpus, "cpu"])
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise CourseError(f"{named} is {device!r}, which is no device. Here there is: {here}.") from None
    there = chosen.type in (*gpus, "cpu")
    if chosen.type not in ("cuda", "mps", "cpu"):  # what else torch may have a module for, such as torch.xpu
        there = getattr(getattr(torch, chosen.type, None), "is_available", lambda: False)()
    if not there or (chosen.index or 0) >= (torch.cuda.device_count() if chosen.type == "cuda" else 1):
        raise CourseError(f"{named} is {str(device)!r}, and PyTorch has no such device here. Leave it out, or take one of: {here}.")
    return chosen


def choose_precision(device: torch.device, precision: str = "auto") -> str:
    """The arithmetic of the forward pass; "auto" becomes what is faster on this device.

    CUDA: bf16 from compute capability 8 on, fp16 on older cards such as the T4. CPU: bf16 with Intel AMX (2.3 times as fast), else fp32.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    if precision == "bf16" and device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise CourseError("precision is 'bf16', which Apple's GPUs have from macOS 14 on: take 'fp32', or leave it out.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else "fp32"


def autocast(device: torch.device, precision: str):
    """A context in which the forward pass runs in `precision`, one of fp32, bf16 and fp16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def send(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device, where the next operations find it while the program goes on: CUDA takes it from page-locked memory."""
    if x.device.type == "cpu" and device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=device.type != "mps")


@contextmanager
def cudnn(**settings: bool) -> Iterator[None]:
    """Inside, these are attributes of torch.backends.cudnn, such as benchmark (it may try algorithms) or allow_tf32."""
    before = {name: getattr(torch.backends.cudnn, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(torch.backends.cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return x if x.dtype == torch.float64 else x.float()


def wide_float(x: Tensor) -> Tensor:
    """float64 on the CPU; on a GPU, where float64 may be a thirtieth as fast, or absent, float32, unless x is float64 itself."""
    return x.double() if x.device.type == "cpu" else at_least_float32(x)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's random numbers begin at this seed, on every device; afterwards the caller's go on as if nothing had been drawn."""
    with random_states_kept():
        torch.manual_seed(seed)
        yield


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Afterwards the random numbers of torch, NumPy and Python go on as if none had been drawn inside."""
    python, numpy, states = random.getstate(), np.random.get_state(), random_states()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        set_random_states(states)


def random_states() -> dict:
    """Where torch's random numbers are, on every device, to be kept in a file."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda, "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None}


def set_random_states(states: dict) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_initialized():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])  # they may be of a machine with more
    if torch.backends.mps.is_available() and states.get("mps") is not None:
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the whole model is in evaluation mode; afterwards each of its modules is in the mode it had, frozen parts too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


_pools = lru_cache(maxsize=1)(ThreadpoolController)  # finding the libraries takes longer than a small fit


def one_thread():
    """While it is entered, every numerical library works on one thread: small work takes a tenth of the time where cores are busy."""
    return _pools().limit(limits=1)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Afterwards PyTorch has as many threads as before."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class OneOrAll:
    """Work on the CPU with one thread or with all that PyTorch has (OMP_NUM_THREADS), whichever has been faster of late.

    An operation that is split over threads waits for the slowest of them: where another program is busy on one core, most of the time.
    The other choice is tried again for a twentieth of the time. Only for work whose result is the same, bit for bit, either way.
    """

    def __init__(self):
        self.costs: dict[int, float] = {}  # threads -> seconds a unit of work, of late
        self.begun, self.since_trial = False, 0.0  # seconds of work with the better choice since the other one was tried

    def __call__(self, work: Callable, units: int):
        """work(), which is so many units, such as images."""
        if (every := torch.get_num_threads()) == 1:
            return work()
        better, other = sorted((every, 1), key=lambda threads: self.costs.get(threads, 0.0))  # what is not known yet comes first
        trial = self.since_trial > 20 * units * self.costs.get(other, math.inf)
        threads = other if trial else better
        with threads_kept():
            torch.set_num_threads(threads)
            began = time.perf_counter()
            done = work()
            seconds = time.perf_counter() - began
        if self.begun:  # the first call also finds memory and makes plans
            self.costs[threads] = seconds / units if trial else (self.costs.get(threads, seconds / units) + seconds / units) / 2
        self.begun, self.since_trial = True, 0.0 if trial else self.since_trial + seconds
        return done


def world_size() -> int:
    """How many processes train together (`training.distributed`); 1 where none were started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


class _SumOverRanks(torch.autograd.Function):
    """Each process's result depends on each one's input, so the gradient is a sum over processes too."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes, with gradient."""
    return _SumOverRanks.apply(x) if world_size() > 1 else x


def gather(rows: Tensor) -> Tensor:
    """The rows (N, D) of all processes, (world · N, D), in the order of ranks, with gradient. All must have the same N."""
    if world_size() == 1:
        return rows
    everybody = rows.new_zeros(world_size(), *rows.shape)
    everybody[rank()] = rows
    return sum_over_ranks(everybody).flatten(0, 1)


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int | None:
    """The most main memory, in bytes, that this process has held so far; None where the system does not say."""
    # ru_maxrss of a child starts at what its parent held when it was forked, so Linux is asked for this process's own mark first.
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
