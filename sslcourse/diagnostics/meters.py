"""Meters: how a method spreads directions (or lets them collapse), and what a computation needs in memory."""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Collapse:
    """What `collapse` found on N rows of D dimensions."""

    std: float  # 0 when all directions are equal, healthy_std when they are spread evenly
    effective_rank: float  # how many dimensions the directions use: 1 when there is one direction, at most the smaller of N and D
    norm: float  # mean length of the rows
    n: int
    dim: int

    healthy_std = property(lambda self: self.dim**-0.5, doc="1/sqrt(D): the std of directions spread evenly, and the largest there is.")

    def __str__(self) -> str:
        spread = f"std {self.std:.4f} (0 collapsed, {self.healthy_std:.4f} evenly spread)"
        return f"{spread}, effective rank {self.effective_rank:.1f} of {min(self.n, self.dim)}, mean length {self.norm:.3g}"


@torch.no_grad()
def collapse(z: Tensor) -> Collapse:
    """Have the directions of the rows collapsed, to one point (std) or into few dimensions (effective rank)? z: float (N, D), N >= 2.

    std: the standard deviation of each dimension of the l2-normalised rows, over N, averaged over the dimensions; between 0 and 1/sqrt(D).
    Chen & He 2021 (SimSiam, arXiv 2011.10566), section 4.1. effective_rank: exp of the entropy of their singular values, divided by their
    sum (Roy & Vetterli 2007; RankMe, Garrido et al. 2023, arXiv 2210.02885); not centred, as what is left of one point would be noise.
    A row of zeros has no direction and stays zero. Raises TypeError or ValueError when z is not floating-point (N, D), or not finite.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise TypeError(f"collapse needs a floating-point tensor, and z is a {type(z).__name__} {getattr(z, 'dtype', '')}: use .float().")
    if z.ndim != 2 or len(z) < 2 or not z.shape[1]:
        raise ValueError(f"collapse needs a tensor (N, D) of at least 2 rows: z has shape {tuple(z.shape)}.")
    if bad := int((~z.isfinite()).any(1).sum()):
        raise ValueError(f"collapse needs finite numbers: {bad} of the {len(z)} rows of z hold NaN or inf.")
    z = z.cpu().double()
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)  # (N, 1)
    z = z / norm.where(norm > 0, 1)
    values = torch.linalg.svdvals(z)  # (min(N, D),)
    rank = torch.special.entr(values / values.sum()).sum().exp().item() if values.sum() > 0 else 0.0
    return Collapse(z.std(0, correction=0).mean().item(), rank, norm.mean().item(), *z.shape)


class LargestTensor(TorchDispatchMode):
    """While it is entered, notes the size of the largest tensor that any operation makes, backward passes included."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        blocks = [tensor.untyped_storage().nbytes() for tensor in tree_leaves(made) if isinstance(tensor, Tensor)]
        self.bytes = max([self.bytes, *blocks])  # a view that is only broadcast makes nothing
        return made


class SavedForBackward(torch.autograd.graph.saved_tensors_hooks):
    """While entered, counts bytes that autograd keeps for backward: each block once while its graph lives, `module`'s parameters not."""

    def __init__(self, module: torch.nn.Module | None = None):
        super().__init__(self._pack, lambda handle: handle)
        self._left_out = {p.untyped_storage().data_ptr() for p in (module.parameters() if module is not None else ())}
        self._alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def __enter__(self) -> "SavedForBackward":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        handle = tensor.detach()  # of its own, so that it dies with the graph
        self._alive.add(handle)
        return handle

    @property
    def bytes(self) -> int:
        sizes = {block.data_ptr(): block.nbytes() for block in (handle.untyped_storage() for handle in self._alive)}
        return sum(size for address, size in sizes.items() if address not in self._left_out)


def graph_size(tensor: Tensor) -> int:
    """How many operations are in the graph behind a tensor; 0 for one without a graph."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(seen)
