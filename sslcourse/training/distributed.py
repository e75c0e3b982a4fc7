"""Several devices, one process each: the same loss and the same gradients as one process with the joint batch.

PyTorch's own engine does the work: `torchrun` starts the processes, DistributedDataParallel averages their gradients. What is added here
are the three places where images of different processes meet: rows of a batch (`gather`), sums over a batch (`sum_over_ranks`) and batch
statistics (`GlobalBatchNorm`). All three pass gradients on, such that the mean of the ranks' losses has the gradient of the joint loss.
With one process, or none started, each of them is what it is without this module.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslcourse.devices import gather, rank, sum_over_ranks, world_size  # noqa: F401
from sslcourse.errors import CourseError

PATIENCE = timedelta(minutes=30)  # how long a process waits for the others, which may be drawing or unpacking images


def launched() -> bool:
    """Whether torchrun has started this process, beside others or alone."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def process_group(device: str | torch.device | None = None) -> Iterator[torch.device | None]:
    """Inside, the processes of one torchrun know each other: NCCL between GPUs, gloo elsewhere. Yields this process's device.

    Each process takes the GPU of its number on its machine (LOCAL_RANK). Without torchrun nothing happens, and the device is as given.
    Raises CourseError when there are more processes than GPUs.
    """
    if not launched():
        yield torch.device(device) if device is not None else None
        return
    local = int(os.environ["LOCAL_RANK"])
    wanted = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.type == "cuda":
        if local >= torch.cuda.device_count():
            raise CourseError(
                f"torchrun has started more processes on this machine than its {torch.cuda.device_count()} GPUs: lower --nproc-per-node."
            )
        wanted = torch.device("cuda", local)
        torch.cuda.set_device(wanted)
    dist.init_process_group("nccl" if wanted.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield wanted
        dist.barrier()  # nobody leaves while another still writes
    finally:
        dist.destroy_process_group()


def first_then_others(make: Callable[[], object]):
    """Call it on the first process, and only then on the others, so that what it prepares on the disk is prepared once."""
    made = make() if rank() == 0 else None
    if world_size() > 1:
        dist.barrier()
    return made if rank() == 0 else make()


# --- where images of different processes meet -------------------------------------------------------------------------------------------


def any_rank(here: bool, device: torch.device) -> bool:
    """Whether it is so on any of the processes."""
    if world_size() == 1:
        return here
    flag = torch.tensor(float(here), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def mean_over_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Numbers that every process has under the same names, averaged over the processes."""
    if world_size() == 1:
        return dict(values)
    numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(numbers)
    return dict(zip(values, (numbers / world_size()).tolist(), strict=True))


# --- batch normalisation ----------------------------------------------------------------------------------------------------------------


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose statistics are those of all processes' images, on any device.

    PyTorch's own SyncBatchNorm is faster and works on GPUs only. Two passes: first the mean, then the squares about it; in float32 at
    least. Weights and buffers have the names of an ordinary batch normalisation.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"Batch normalisation takes (N, C) or (N, C, ...), not {tuple(x.shape)}.")

    def forward(self, x: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        dtype, device = x.dtype, x.device
        with torch.autocast(device.type, enabled=False):
            x = x if dtype == torch.float64 else x.float()
            dims = [d for d in range(x.dim()) if d != 1]
            shape = [1, -1] + [1] * (x.dim() - 2)
            count = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype, device=device)
            sums = sum_over_ranks(torch.cat([x.sum(dims), count]))  # (C + 1,)
            n = sums[-1].detach()
            mean = sums[:-1] / n
            centred = x - mean.view(shape)
            variance = sum_over_ranks(centred.square().sum(dims)) / n
            self._remember(mean, variance, n)
            y = centred * (variance + self.eps).rsqrt().view(shape)
            return (y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y).to(dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        part = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), part)
        self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var.dtype), part)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """Give every batch normalisation in a module the statistics of all processes. Parameters stay the same objects; returns the module.

    SyncBatchNorm on GPUs, `GlobalBatchNorm` elsewhere. With one process nothing is changed.
    """
    if world_size() == 1:
        return module
    if next(module.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            part.__class__ = GlobalBatchNorm  # of one class with it but for the forward pass
    return module


@contextmanager
def one_gradient(method: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """What to call for the loss of a method: itself, or with several processes a DistributedDataParallel around it.

    Batch normalisation is synchronised then, and all processes begin with the weights of the first. Afterwards it is ordinary again.
    """
    if world_size() == 1:
        yield method
        return
    ordinary = {name: type(part) for name, part in method.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    synchronise_batch_norm(method)
    # statistics are the same everywhere already; the argument that says so has got another name in newer versions
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    options = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    if device.type == "cuda":
        options["device_ids"] = [device.index]
    try:
        yield DistributedDataParallel(method, **options)
    finally:
        for name, part in method.named_modules():
            if name in ordinary:
                part.__class__ = ordinary[name]


# --- an estimate ------------------------------------------------------------------------------------------------------------------------


def bytes_a_step(method: nn.Module, batch_size: int, world: int) -> dict[str, int]:
    """What each process sends in one step, in bytes, by kind: gradients, batch_norm, projections. An estimate, for planning.

    batch_size: images of all processes together. A ring all-reduce of b bytes sends 2 · b · (world − 1)/world from every process, a ring
    all-gather of a part of b bytes b · (world − 1). Gradients are float32. A batch normalisation reduces 2C + 1 numbers forward, in one or
    two goes, and as many backward; the target of BYOL has no backward. NT-Xent gathers its 2 · batch/world rows in float64 and reduces
    the gradient of all of them; Barlow Twins reduces its correlation matrix and the sums before it, forward and backward.
    """
    if world < 2:
        return {"gradients": 0, "batch_norm": 0, "projections": 0}
    ring = 2 * (world - 1) / world
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    frozen = {id(m) for m in method.target.modules()} if getattr(method, "target", None) is not None else set()
    normalised = 0
    for part in method.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            normalised += (2 * part.num_features + 1) * (1 if id(part) in frozen else 2)
    rows = 2 * batch_size
    projected = 0.0
    if hasattr(method, "temperature"):  # NT-Xent
        width = _width(method.projector)
        projected = rows / world * width * 8 * (world - 1) + ring * rows * width * 8
    elif hasattr(method, "lambda_param"):  # Barlow Twins
        width = _width(method.projector)
        projected = ring * 8 * 2 * (width**2 + 4 * width)
    return {"gradients": round(ring * trained * 4), "batch_norm": round(ring * normalised * 4), "projections": round(projected)}


def _width(projector: nn.Module) -> int:
    return [part.out_features for part in projector.modules() if isinstance(part, nn.Linear)][-1]
