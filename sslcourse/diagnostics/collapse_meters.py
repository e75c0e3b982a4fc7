"""What a method makes of the space of directions: spread over it, or collapsed to a point or into a few dimensions."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
    effective_rank: exp of the entropy of the singular values of the l2-normalised rows, divided by their sum (Roy & Vetterli 2007; RankMe,
    Garrido et al. 2023, arXiv 2210.02885). Rows are not centred: a point without its mean is rounding noise, and noise has full rank.

    A row of zeros has no direction and stays zero. Raises TypeError or ValueError when z is not floating-point (N, D), or not finite.
    """
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise TypeError(f"collapse needs a floating-point tensor: z is {kind}; convert it with torch.as_tensor(...).float().")
    if z.ndim != 2 or len(z) < 2 or not z.shape[1]:
        raise ValueError(f"collapse needs a tensor (N, D) of at least 2 rows: z has shape {tuple(z.shape)}.")
    if bad := int((~z.isfinite()).any(1).sum()):
        raise ValueError(f"collapse needs finite numbers: {bad} of the {len(z)} rows of z hold NaN or inf.")
    z = z.double()
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)  # (N, 1)
    z = z / norm.where(norm > 0, 1)
    values = torch.linalg.svdvals(z)  # (min(N, D),)
    share = values / values.sum()
    rank = torch.special.entr(share).sum().exp().item() if values.sum() > 0 else 0.0
    return Collapse(z.std(0, correction=0).mean().item(), rank, norm.mean().item(), *z.shape)
