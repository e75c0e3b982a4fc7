"""Several devices, one process each: the same loss and the same gradients as one process with the joint batch.

`torchrun` starts the processes, DistributedDataParallel averages their gradients. Where images of different processes meet besides are
the losses (`devices.gather`, `devices.sum_over_ranks`) and batch statistics (`GlobalBatchNorm`). With one process nothing is changed.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sslcourse.devices import at_least_float32, choose_device, rank, sum_over_ranks, world_size
from sslcourse.errors import CourseError


@contextmanager
def process_group(device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Inside, the processes of one torchrun know each other: NCCL between GPUs, gloo elsewhere. Yields this process's device.

    That is the GPU of its number on its machine (LOCAL_RANK), or `choose_device`'s. CourseError for more processes than GPUs.
    """
    device = choose_device(device)
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield device
        return
    if device.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise CourseError(f"torchrun has started more processes on this machine than its {gpus} GPUs: lower --nproc-per-node.")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    patience = timedelta(minutes=30)  # for others that may be drawing or unpacking images
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    try:
        yield device
        dist.barrier()  # nobody leaves while another still writes
    finally:
        dist.destroy_process_group()


def first_then_others(make: Callable[[], object]):
    """Call it on the first process, and only then on the others, so that what it prepares on the disk is prepared once."""
    made = make() if rank() == 0 else None
    if world_size() > 1:
        dist.barrier()
    return made if rank() == 0 else make()


def mean_over_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Numbers that every process has under the same names, averaged over the processes."""
    numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=device if world_size() > 1 else "cpu")
    return dict(zip(values, (sum_over_ranks(numbers) / world_size()).tolist(), strict=True))


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation over all processes, as many images each, float32 or wider, on any device: torch's SyncBatchNorm needs a GPU."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # of any

    def forward(self, x: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide, dims, shape = at_least_float32(x), [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)
            n = world_size() * x.numel() / x.shape[1]
            mean = sum_over_ranks(wide.sum(dims)) / n  # (C,)
            centred = wide - mean.view(shape)
            variance = sum_over_ranks(centred.square().sum(dims)) / n
            if self.track_running_stats:
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    for kept, new in ((self.running_mean, mean), (self.running_var, variance * n / (n - 1))):
                        kept.lerp_(new.to(kept.dtype), self.momentum)
            y = centred * (variance + self.eps).rsqrt().view(shape)
            return (y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y).to(x.dtype)


@contextmanager
def one_gradient(method: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The method, or with several processes DistributedDataParallel around it and, inside, batch normalisation over all of them."""
    if world_size() == 1:
        yield method
        return
    ordinary = {name: type(part) for name, part in method.named_modules() if isinstance(part, _BatchNorm)}
    if device.type == "cuda":
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    else:
        for name in ordinary:
            method.get_submodule(name).__class__ = GlobalBatchNorm  # of one class with it but for the forward pass
    try:
        yield DistributedDataParallel(method, device_ids=[device.index] if device.type == "cuda" else None)
    finally:
        for name, kind in ordinary.items():
            method.get_submodule(name).__class__ = kind
