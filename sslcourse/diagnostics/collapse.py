"""Is it learning at all? What a loss should start near, and meters for what it makes of the space of directions."""

import math
import weakref
from collections import Counter
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslcourse.diagnostics.guard import NonFiniteError, NonFiniteGuard, load_bad_batch  # noqa: F401  (public here)
from sslcourse.diagnostics.nonfinite import Finding, find_nonfinite  # noqa: F401  (public here)

# --- chance -----------------------------------------------------------------------------------------------------------------------------

_NEEDS = {  # what chance_loss must know for each method, and the least it can be
    "supervised": {"num_classes": 2},
    "rotation": {},
    "simclr": {"batch_size": 2},
    "byol": {},
    "barlow_twins": {"dim": 1, "batch_size": 2},
}


def chance_loss(
    method: str,
    *,
    batch_size: int | None = None,
    num_classes: int | None = None,
    dim: int | None = None,
    temperature: float | None = None,
    lambda_param: float = 5e-3,
) -> float:
    """The value of a loss when nothing was learned: where training should start, and where a loss that stays there has learned nothing.

    batch_size: N images, so 2N views. dim: D of the projections. Arguments that the method does not need are ignored.

    * "supervised": ln(num_classes), each class equally probable. "rotation": ln 4.
    * "simclr": ln(2N − 1), each other view equally probable. It holds when all similarities are equal, or small beside the temperature τ.
      Random directions in D dimensions have similarities of variance 1/D, and the loss lies about 1/(2Dτ²) higher: 0.02 at D = 128 and
      τ = 0.5, but 0.4 at τ = 0.1. That is added when dim and temperature are given. Against simulated batches of N >= 128 it is right to
      0.06 as long as 2Dτ² >= 1; below that it is far too high, so it is refused.
    * "byol": 2, as 2 − 2·cosine of two independent directions.
    * "barlow_twins": D·N/(N − 1) + λ·D(D − 1)/(N − 1). The correlation of two independent normal columns, each normalised over N rows, has
      mean 0 and mean square exactly 1/(N − 1). The rule of thumb D + λD²/N is the same for a large batch and D/N lower else: at N = 32 and
      D = 256 it gives 266.2, this 274.8, simulated batches 274 ± 3. Columns that depend on each other raise it.

    Raises ValueError for an unknown method, and for an argument that is missing or too small.
    """
    if method not in _NEEDS:
        raise ValueError(f"chance_loss knows {', '.join(_NEEDS)}, not {method!r}.")
    given = {"batch_size": batch_size, "num_classes": num_classes, "dim": dim}
    for name, least in _NEEDS[method].items():
        if not isinstance(given[name], Integral) or given[name] < least:
            raise ValueError(f"chance_loss({method!r}) needs {name}, a whole number of at least {least}, not {given[name]}.")
    if method == "supervised":
        return math.log(num_classes)
    if method == "rotation":
        return math.log(4)
    if method == "byol":
        return 2.0
    if method == "barlow_twins":
        return dim * batch_size / (batch_size - 1) + lambda_param * dim * (dim - 1) / (batch_size - 1)
    return math.log(2 * batch_size - 1) + _spread_of_similarities(dim, temperature)


def _spread_of_similarities(dim: int | None, temperature: float | None) -> float:
    """ln of the mean of exp(s/τ) over similarities s of mean 0 and variance 1/D, to second order."""
    if dim is None or temperature is None:
        return 0.0
    if not (dim >= 1 and temperature > 0 and 2 * dim * temperature**2 >= 1):
        right = "a dim of at least 1 and a temperature of at least 1/sqrt(2·dim)"
        raise ValueError(f"chance_loss('simclr') corrects for {right}, not {dim} and {temperature}; leave them out for ln(2N − 1).")
    return 1 / (2 * dim * temperature**2)


# --- collapse ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collapse:
    """What `collapse` found on N rows of D dimensions."""

    std: float  # 0 when all directions are equal, healthy_std when they are spread evenly
    effective_rank: float  # how many dimensions the directions use: 1 when there is one direction, at most the smaller of N and D
    norm: float  # mean length of the rows
    n: int
    dim: int

    @property
    def healthy_std(self) -> float:
        """1/sqrt(D): the std of directions spread evenly over the sphere, and the largest there is."""
        return self.dim**-0.5

    def __str__(self) -> str:
        return (
            f"std {self.std:.4f} (0 collapsed, {self.healthy_std:.4f} evenly spread), "
            f"effective rank {self.effective_rank:.1f} of {min(self.n, self.dim)}, mean length {self.norm:.3g}"
        )


@torch.no_grad()
def collapse(z: Tensor) -> Collapse:
    """Have the directions of the rows collapsed, to one point (std) or into few dimensions (effective rank)? z: float (N, D), N >= 2.

    std: the standard deviation of each dimension of the l2-normalised rows (over N, not N − 1), averaged over the dimensions; between 0
    and 1/sqrt(D). Chen & He 2021 (SimSiam, arXiv 2011.10566), section 4.1.
    effective_rank: exp of the entropy of the singular values of the l2-normalised rows, divided by their sum. Roy & Vetterli 2007; as
    RankMe, Garrido et al. 2023 (arXiv 2210.02885), has it, but of directions, so that a few long rows do not decide. The rows are not
    centred, as in both papers: what is left of a point when its mean is taken off is rounding noise, and noise has full rank.

    A row of zeros stays zero, as it has no direction; when all are zeros, std and effective rank are 0.
    Raises TypeError or ValueError when z is not floating-point (N, D) with N >= 2, or not finite.
    """
    _check("collapse", z=z)
    z = z.double()
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)  # (N, 1)
    z = z / norm.where(norm > 0, 1)
    values = torch.linalg.svdvals(z)  # the smaller of N and D
    share = values / values.sum()
    rank = torch.special.entr(share).sum().exp().item() if values.sum() > 0 else 0.0
    return Collapse(z.std(0, correction=0).mean().item(), rank, norm.mean().item(), *z.shape)


# --- alignment and uniformity -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def alignment(z0: Tensor, z1: Tensor) -> float:
    """How far apart the two views of an image lie: the mean squared distance of the l2-normalised rows. 0 is best, 2 is chance, 4 opposite.

    z0, z1: float (N, D), row i of both from image i. Wang & Isola 2020 (arXiv 2005.10242), section 4.1, with alpha = 2.
    Raises TypeError or ValueError when they are not floating-point, (N, D) with N >= 2, of one shape, finite and without rows of zeros.
    """
    _check("alignment", z0=z0, z1=z1)
    if z0.shape != z1.shape:
        shapes = f"z0 has {tuple(z0.shape)} and z1 {tuple(z1.shape)}"
        raise ValueError(f"alignment needs row i of both tensors from image i, so one shape: {shapes}.")
    return (_directions("alignment", z0) - _directions("alignment", z1)).square().sum(1).mean().item()


@torch.no_grad()
def uniformity(z: Tensor, t: float = 2) -> float:
    """How evenly the l2-normalised rows cover the sphere: ln of the mean of exp(−t·squared distance) over pairs of different rows.

    z: float (N, D), of one view. 0 when all directions are equal; lower is more even, about −2t in many dimensions. Needs memory for the
    N(N − 1)/2 distances. Wang & Isola 2020 (arXiv 2005.10242), section 4.1.
    Raises TypeError or ValueError when z is not floating-point (N, D) with N >= 2, not finite or has rows of zeros, or t is not positive.
    """
    _check("uniformity", z=z)
    if not 0 < t < math.inf:
        raise ValueError(f"t must be a positive number such as 2, not {t}.")
    squares = torch.pdist(_directions("uniformity", z)).square()  # (N(N − 1)/2,)
    return (torch.logsumexp(-t * squares, 0) - math.log(len(squares))).item()


# --- what the meters share --------------------------------------------------------------------------------------------------------------


def _check(function: str, **tensors: Tensor) -> None:
    """Raise, in a sentence, unless each named tensor is floating-point (N, D) with N >= 2 and finite."""
    for name, z in tensors.items():
        if not isinstance(z, Tensor) or not z.is_floating_point():
            kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(f"{function} needs a floating-point tensor: {name} is {kind}; convert it with torch.as_tensor(...).float().")
        if z.ndim != 2 or len(z) < 2 or not z.shape[1]:
            raise ValueError(f"{function} needs a tensor (N, D) of at least 2 rows: {name} has shape {tuple(z.shape)}.")
        if bad := int((~z.isfinite()).any(1).sum()):
            raise ValueError(f"{function} needs finite numbers: {bad} of the {len(z)} rows of {name} hold NaN or inf.")


def _directions(function: str, z: Tensor) -> Tensor:
    """Rows (N, D) divided by their lengths, in float64."""
    z = z.double()
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    if zero := int((norm == 0).sum()):
        raise ValueError(
            f"{function} compares directions, and a row of zeros has none ({zero} of {len(z)} rows): look at the layer that made it."
        )
    return z / norm


# --- memory -----------------------------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """While it is entered, notes the size of the largest tensor that any operation makes, backward passes included.

    >>> with LargestTensor() as largest:
    ...     product = torch.ones(100, 10) @ torch.ones(10, 100)
    >>> largest.bytes, largest.shape
    (40000, (100, 100))
    """

    def __init__(self):
        super().__init__()
        self.bytes, self.shape = 0, ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                size = tensor.untyped_storage().nbytes()  # a view that is only broadcast makes nothing
                if size > self.bytes:
                    self.bytes, self.shape = size, tuple(tensor.shape)
        return made


class SavedForBackward(torch.autograd.graph.saved_tensors_hooks):
    """While it is entered, counts the bytes that autograd keeps for backward passes, each block of memory once.

    A block counts for as long as anything holds the graph that needs it: a loss that lives on, a list of losses, a running sum. What the
    parameters of `module` occupy is left out, since they stay in any case.

    >>> x = torch.ones(250, requires_grad=True)
    >>> with SavedForBackward() as saved:
    ...     kept = x.exp()  # float32: 4 bytes each
    ...     before = saved.bytes
    ...     kept.sum().backward()
    >>> before, saved.bytes
    (1000, 0)
    """

    def __init__(self, module: torch.nn.Module | None = None):
        super().__init__(self._pack, lambda handle: handle.tensor)
        parameters = module.parameters() if module is not None else ()
        self._left_out = {p.untyped_storage().data_ptr() for p in parameters}
        self._users: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}

    def __enter__(self) -> "SavedForBackward":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> "_Handle":
        handle, block = _Handle(tensor.detach()), tensor.untyped_storage()
        address = block.data_ptr()
        if address not in self._left_out:
            self._users[address] += 1
            self._sizes[address] = block.nbytes()
            weakref.finalize(handle, self._users.subtract, [address])
        return handle

    @property
    def bytes(self) -> int:
        return sum(size for address, size in self._sizes.items() if self._users[address] > 0)


class _Handle:
    """What autograd holds in place of a saved tensor: it dies with the graph."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def graph_size(tensor: Tensor) -> int:
    """How many operations are in the graph behind a tensor; 0 for one without a graph."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(seen)
