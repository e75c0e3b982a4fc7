"""The loss functions, each short enough to read aloud.

Rows come in as a network makes them, (N, D), row i of both tensors from image i; the loss goes out as a scalar, averaged so that it does
not grow with N. The similarities are computed in float64 whatever the precision of the rows, inside autocast too (which leaves float64
alone): a similarity divided by a small temperature has few digits left in float32, and none in half precision. Beside an encoder's pass
the few milliseconds are not felt. The scalar is float32, or float64 for float64 rows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcourse.devices import gather, rank, sum_over_ranks, world_size


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.5, gather_distributed: bool = False) -> Tensor:
    """NT-Xent, the loss of SimCLR: among the 2N − 1 other views of a batch, find the one that shows the same image.

    z0, z1: projections (N, D) of the two views of N images, N >= 2, not normalised; the loss sees only their directions.
    temperature: a cosine similarity is divided by it. Returns a scalar, the mean over the 2N anchors; ln(2N − 1) when all rows are equal.
    gather_distributed: with several processes (`training.distributed`), the views of all of them are candidates for this one's anchors, and the mean
    of the processes' losses is the loss of the joint batch; each must bring the same N.
    Chen et al. 2020 (arXiv 2002.05709), section 2.1, equation 1; the authors' code sums its two halves, so its number is twice this one.

    Raises ValueError or TypeError, in a sentence, when the input cannot be meant, and on the CPU when a row is all zeros, because it has
    no direction. Looking for such a row would make a GPU wait, so there the loss is NaN; it is NaN too where the rows hold NaN or inf.
    Rows may be as long or as short as their precision can hold.
    """
    _check_pair("nt_xent", z0=z0, z1=z1)
    world = world_size() if gather_distributed else 1
    if len(z0) * world < 2:
        raise ValueError("nt_xent needs at least 2 images, because the other images of the batch are its negatives: z0 and z1 have 1 row.")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number such as 0.5, not {temperature}.")
    n = len(z0)
    z = _unit_rows("nt_xent", torch.cat([z0, z1]))  # (2N, D)
    partner = torch.arange(2 * n, device=z.device).roll(n)  # (2N,): row i belongs to row i + N, and row i + N to row i
    if world == 1:
        similarity = z @ z.T / temperature  # (2N, 2N): each view with each other
        similarity.fill_diagonal_(-math.inf)  # no view is a candidate for itself
    else:
        first = rank() * 2 * n  # where this process's rows are among those of all
        similarity = z @ gather(z).T / temperature  # (2N, world · 2N)
        similarity.diagonal(first).fill_(-math.inf)
        partner = partner + first
    return F.cross_entropy(similarity, partner).to(_result_dtype(z0, z1))


def byol_loss(p: Tensor, z: Tensor, stop_gradient: bool = True) -> Tensor:
    """BYOL's loss: 2 − 2·cosine of prediction and target, averaged over the rows; 0 when they agree, 2 at chance, 4 when opposite.

    p: predictions (N, D) of the online network; z: projections (N, D) of the target. z gets no gradient (stop_gradient=False lets it
    through, to show what that does). Returns a scalar. Grill et al. 2020 (arXiv 2006.07733), section 3.1, equation 2; the authors add
    up the two directions, so their number is twice the mean over both.

    Raises ValueError or TypeError as `nt_xent` does; one row is enough.
    """
    _check_pair("byol_loss", p=p, z=z)
    aim = z.detach() if stop_gradient else z
    cosine = (_unit_rows("byol_loss", p) * _unit_rows("byol_loss", aim)).sum(1)  # (N,)
    return (2 - 2 * cosine).mean().to(_result_dtype(p, z))


def cross_correlation(z0: Tensor, z1: Tensor, eps: float = 1e-5, gather_distributed: bool = False) -> Tensor:
    """The correlation of each dimension of one view with each of the other, over the batch: (N, D), (N, D) -> (D, D), within -1..1.

    Each view is normalised by its own mean and variance (over N, so that the diagonal reaches 1), with eps inside the root, as batch
    normalisation has it: a dimension that is the same for all images has correlation 0, and finite gradients; one whose standard deviation
    is not well above sqrt(eps) = 0.003 comes out with correlations that are too small. Zbontar et al. 2021 (arXiv 2103.03230), equation 2.
    gather_distributed: with several processes, over the images of all of them; each then has the same matrix.
    Raises ValueError for a batch of one, which has no variance.
    """
    _check_pair("cross_correlation", z0=z0, z1=z1)
    world = world_size() if gather_distributed else 1
    n = len(z0) * world
    if n < 2:
        raise ValueError("A correlation needs at least 2 images, and z0 and z1 have 1 row: use a larger batch_size, and drop_last.")
    first, second = (_standardised(z, eps, world) for z in (z0, z1))
    products = first.T @ second
    return (sum_over_ranks(products) if world > 1 else products) / n


def barlow_twins_loss(z0: Tensor, z1: Tensor, lambda_param: float = 5e-3, gather_distributed: bool = False) -> Tensor:
    """Barlow Twins: pull the cross-correlation matrix of the two views to the identity.

    z0, z1: projections (N, D), N >= 2. The squared distance of the diagonal from 1 (views agree: invariance), plus lambda_param times the
    squares beside the diagonal (dimensions say different things: redundancy reduction). A sum, so it grows with D; chance is about
    D + lambda_param·D²/N (`diagnostics.chance_loss`). Returns a scalar. Zbontar et al. 2021 (arXiv 2103.03230), equation 1.

    gather_distributed: with several processes, the correlation is that of all their images (`cross_correlation`).
    Computed in float64, inside autocast too. Raises ValueError or TypeError for shapes that cannot be meant, a batch of one, and a
    lambda_param that is negative or not finite. Constant dimensions and equal rows give finite losses and gradients.
    """
    c = cross_correlation(z0, z1, gather_distributed=gather_distributed)
    return distance_from_identity(c, lambda_param).to(_result_dtype(z0, z1))


def distance_from_identity(c: Tensor, lambda_param: float = 5e-3) -> Tensor:
    """The two terms of Barlow Twins for a correlation matrix c (D, D): invariance on the diagonal, redundancy beside it, as a scalar."""
    if not 0 <= lambda_param < math.inf:
        raise ValueError(f"lambda_param must be a number that is not negative, such as 0.005, not {lambda_param}.")
    on_diagonal = c.diagonal()
    invariance = (on_diagonal - 1).square().sum()
    redundancy = c.square().sum() - on_diagonal.square().sum()
    return invariance + lambda_param * redundancy


def pseudo_label_loss(weak_logits: Tensor, strong_logits: Tensor, threshold: float = 0.95) -> Tensor:
    """FixMatch's loss on unlabelled images: what the weak view is sure to show, the strong view shall say too.

    weak_logits, strong_logits: (N, C), row i of both from image i; C classes, at least 2. Where the weak view's largest probability reaches
    `threshold` (0 to 1), its class is the pseudo-label of the strong view's cross-entropy; no gradient reaches the weak view. Both may be
    the same tensor, which with threshold=0 is plain pseudo-labelling (Lee 2013). Returns a scalar: the mean over all N rows, those that do
    not pass among them as 0, so that few sure images weigh little; 0 with a gradient of 0 when none passes.
    Sohn et al. 2020 (arXiv 2001.07685), equation 4.

    Computed in float32, or float64 for float64 rows. Raises ValueError or TypeError, in a sentence, when the input cannot be meant.
    NaN among the logits makes the loss NaN, whether or not their row passes.
    """
    _check_pair("pseudo_label_loss", weak_logits=weak_logits, strong_logits=strong_logits)
    if weak_logits.shape[1] < 2:
        raise ValueError("pseudo_label_loss needs logits (N, C) of at least two classes: these have one column.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is the least probability of a pseudo-label and must lie between 0 and 1, not {threshold}.")
    dtype = _result_dtype(weak_logits, strong_logits)
    sureness, pseudo_labels = weak_logits.detach().to(dtype).softmax(1).max(1)  # (N,), (N,)
    surprise = F.cross_entropy(strong_logits.to(dtype), pseudo_labels, reduction="none")  # (N,)
    passes = (sureness >= threshold) + 0 * sureness  # 1 or 0; NaN where the weak view's logits are, which no comparison would show
    return (surprise * passes).mean()


def pseudo_label_weight(step: int, start: int, end: int, final: float) -> float:
    """The weight of the pseudo-labels at a step: 0 before `start`, then along a line to `final` at `end`, constant from there on.

    Lee 2013 (Pseudo-Label, ICML workshop), section 2.3, equation 16; the paper has start 100, end 600 and final 3, in epochs.
    start == end switches at once. Raises ValueError when end lies before start, or final is negative or not finite.
    """
    if end < start:
        raise ValueError(f"The ramp has to end after it starts: start is {start} and end {end}.")
    if not 0 <= final < math.inf:
        raise ValueError(f"final is the weight after the ramp and must be finite and not negative; it is {final}.")
    if step >= end:
        return float(final)
    return final * ((step - start) / (end - start)) if step > start else 0.0


# --- what the losses share --------------------------------------------------------------------------------------------------------------


def _check_pair(function: str, **tensors: Tensor) -> None:
    """Raise, in a sentence, unless the two named tensors are floating-point (N, D) of one shape on one device, and not empty."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{function} needs tensors: {name} is a {type(tensor).__name__}; convert it with torch.as_tensor.")
        if not tensor.is_floating_point():
            raise TypeError(f"{function} needs floating-point numbers: {name} is {tensor.dtype}; convert it with .float().")
        if tensor.ndim != 2 or not tensor.numel():
            raise ValueError(f"{function} needs (N, D) tensors, one row an image: {name} has shape {tuple(tensor.shape)}.")
    (name, first), (other, second) = tensors.items()
    if first.shape != second.shape:
        shapes = f"{name} has {tuple(first.shape)} and {other} {tuple(second.shape)}"
        raise ValueError(f"{function} needs row i of both tensors from image i, so one shape: {shapes}.")
    if first.device != second.device:
        raise ValueError(f"{function} needs both tensors on one device: {name} is on {first.device} and {other} on {second.device}.")


def _unit_rows(function: str, z: Tensor) -> Tensor:
    """Rows (M, D) divided by their lengths, in float64. Rows of zeros: an error on the CPU, else NaN."""
    if z.device.type == "cpu" and (zero := (z == 0).all(1)).any():
        where = f"{int(zero.sum())} of the {len(z)} rows of both tensors"
        raise ValueError(f"{function} compares directions, and a row of zeros has none ({where}): look at the layer that made it.")
    z = z.double() if z.device.type != "mps" else z.float()  # Apple's GPUs have no float64
    z = z / z.detach().abs().amax(1, keepdim=True)  # the largest number is 1 now, so that no square overflows or vanishes
    return z / torch.linalg.vector_norm(z, dim=1, keepdim=True)  # no epsilon: 0/0 is NaN, which is seen; 0 would be silently wrong


def _result_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _standardised(z: Tensor, eps: float, world: int = 1) -> Tensor:
    """Columns (N, D) less their mean, divided by their standard deviation over N, in float64, as batch normalisation does.

    With several processes mean and deviation are those of all their rows.
    """
    z = z.double() if z.device.type != "mps" else z.float()

    def mean(rows: Tensor) -> Tensor:
        return sum_over_ranks(rows.mean(0)) / world if world > 1 else rows.mean(0)

    z = z - mean(z)
    return z / (mean(z.square()) + eps).sqrt()
