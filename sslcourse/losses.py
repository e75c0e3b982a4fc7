"""The losses, each short enough to read aloud, and what they are when nothing has been learned.

Rows come in as a network makes them, (N, D), row i of both tensors from image i; a scalar goes out that does not grow with N. With
gather_distributed the rows of all processes (`training.distributed`) are one batch; each must bring the same N.

All but the loss on pseudo-labels are computed in float64 on a CPU and in float32 on a GPU, inside autocast too; the two agree to 1e-4,
for a temperature from 0.01 on. The scalar is float32, or float64 for float64 rows. NaN or inf among the rows makes it NaN; wrong input
raises TypeError or ValueError. So does a row of zeros where a direction is needed; on a GPU, where nobody shall wait, it gives NaN.
"""

import math
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from sslcourse.devices import gather, rank, sum_over_ranks, wide_float, world_size


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.5, gather_distributed: bool = False) -> Tensor:
    """NT-Xent, the loss of SimCLR: among the 2N − 1 other views of a batch, find the one that shows the same image.

    z0, z1: projections (N, D), N >= 2, not normalised. temperature: a cosine similarity is divided by it. Returns the mean over the 2N
    anchors; ln(2N − 1) when all rows are equal. With several processes their mean is the loss of the joint batch.
    Chen et al. 2020 (arXiv 2002.05709), section 2.1, equation 1; the authors' code sums its two halves, so its number is twice this one.
    """
    _check_pair(z0=z0, z1=z1)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number such as 0.5, not {temperature}.")
    world = world_size() if gather_distributed else 1
    n = len(z0)
    if n * world < 2:
        raise ValueError("nt_xent needs a batch of at least 2 images: the other images are the negatives.")
    z = _normalised(torch.cat([z0, z1]))  # (2N, D)
    candidates = gather(z).roll(-rank() * 2 * n, 0) if world > 1 else z  # this process's own come first
    logits = _product(z, candidates.T) / temperature  # (2N, 2N): each view with each other
    logits.fill_diagonal_(-math.inf)  # no view is a candidate for itself
    targets = (torch.arange(2 * n, device=z.device) + n) % (2 * n)  # row i belongs to row i + N, and row i + N to row i
    return F.cross_entropy(logits, targets).to(_result_dtype(z0, z1))


def byol_loss(p: Tensor, z: Tensor, stop_gradient: bool = True) -> Tensor:
    """BYOL's loss: 2 − 2·cosine of prediction and target, averaged over the rows; 0 when they agree, 2 at chance, 4 when opposite.

    p: predictions (N, D) of the online network. z: projections (N, D) of the target, which get no gradient unless stop_gradient=False.
    Grill et al. 2020 (arXiv 2006.07733), section 3.1, equation 2; the authors add up both directions, so their number is twice the mean.
    """
    _check_pair(p=p, z=z)
    dtype = _result_dtype(p, z)
    p, z = _normalised(p), _normalised(z.detach() if stop_gradient else z)
    cosine = (p * z).sum(1)  # (N,)
    return (2 - 2 * cosine).mean().to(dtype)


def barlow_twins_loss(z0: Tensor, z1: Tensor, lambda_param: float = 5e-3, gather_distributed: bool = False) -> Tensor:
    """Barlow Twins: pull the cross-correlation matrix of the two views to the identity.

    z0, z1: projections (N, D), N >= 2. lambda_param: the weight of what lies beside the diagonal. Returns a sum that grows with D.
    Zbontar et al. 2021 (arXiv 2103.03230), equation 1. Constant dimensions and equal rows give finite losses and gradients.
    """
    c = cross_correlation(z0, z1, gather_distributed)
    return distance_from_identity(c, lambda_param).to(_result_dtype(z0, z1))


def cross_correlation(z0: Tensor, z1: Tensor, gather_distributed: bool = False) -> Tensor:
    """The correlation of each dimension of one view with each of the other, over the batch: (N, D), (N, D) -> (D, D), within -1..1.

    A dimension whose standard deviation is far below 0.003 counts as constant: 0. Zbontar et al. 2021 (arXiv 2103.03230), equation 2.
    """
    _check_pair(z0=z0, z1=z1)
    world = world_size() if gather_distributed else 1
    n = len(z0) * world
    if n < 2:
        raise ValueError("A correlation needs a batch of at least 2 images: use a larger batch_size, and drop_last.")
    total = sum_over_ranks if world > 1 else lambda x: x

    def standardised(z: Tensor, eps: float = 1e-5) -> Tensor:
        """Columns less their mean, divided by their standard deviation, over the rows of all processes."""
        z = wide_float(z)
        z = z - total(z.mean(0)) / world
        return z / (total(z.square().mean(0)) / world + eps).sqrt()

    return total(_product(standardised(z0).T, standardised(z1))) / n


def distance_from_identity(c: Tensor, lambda_param: float = 5e-3) -> Tensor:
    """Barlow Twins' two terms for a matrix c (D, D): on the diagonal views agree; beside it, dimensions say different things."""
    if not 0 <= lambda_param < math.inf:
        raise ValueError(f"lambda_param must be a number that is not negative, such as 0.005, not {lambda_param}.")
    on_diagonal = c.diagonal()
    beside = c.square().sum() - on_diagonal.square().sum()
    return (on_diagonal - 1).square().sum() + lambda_param * beside


def pseudo_label_loss(weak_logits: Tensor, strong_logits: Tensor, threshold: float = 0.95) -> Tensor:
    """FixMatch's loss on unlabelled images: what the weak view is sure to show, the strong view shall say too.

    weak_logits, strong_logits: (N, C), at least 2 classes; one tensor for both, with threshold=0, is plain pseudo-labelling (Lee 2013).
    Where the weak view's largest probability reaches `threshold` (0 to 1), its class is the pseudo-label of the strong view's
    cross-entropy; no gradient reaches the weak view. Returns the mean over all N rows, 0 for those that do not pass.
    Sohn et al. 2020 (arXiv 2001.07685), equation 4.
    """
    _check_pair(weak_logits=weak_logits, strong_logits=strong_logits)
    if weak_logits.shape[1] < 2:
        raise ValueError("weak_logits must be (N, C) with at least two classes; these have one column.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is the least probability of a pseudo-label and must lie between 0 and 1, not {threshold}.")
    dtype = _result_dtype(weak_logits, strong_logits)
    sureness, said = weak_logits.detach().to(dtype).softmax(dim=1).max(dim=1)  # (N,), (N,)
    surprise = F.cross_entropy(strong_logits.to(dtype), said, reduction="none")  # (N,)
    sure = (sureness >= threshold) + 0 * sureness  # 1 or 0; NaN where the weak view's logits are, which no comparison would show
    return (surprise * sure).mean()


def pseudo_label_weight(step: int, start: int, end: int, final: float) -> float:
    """The weight of the pseudo-labels at a step: 0 before `start`, then along a line to `final` at `end`, constant from there on.

    Lee 2013 (Pseudo-Label, ICML workshop), section 2.3, equation 16; the paper has start 100, end 600 and final 3, in epochs.
    """
    if end < start:
        raise ValueError(f"The ramp has to end after it starts: start is {start} and end {end}.")
    if not 0 <= final < math.inf:
        raise ValueError(f"final is the weight after the ramp and must be finite and not negative; it is {final}.")
    if step >= end:
        return float(final)
    return final * ((step - start) / (end - start)) if step > start else 0.0


def mae_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """MAE's loss: the mean squared error of the patches that were hidden, and of no others.

    predicted, target: (N, L, P), L patches an image of P numbers each. mask: (N, L), 1 where a patch was hidden and 0 where it was seen.
    He et al. 2022 (arXiv 2111.06377), section 3, "Reconstruction target". No hidden patch raises ValueError; on a GPU it gives NaN.
    """
    if predicted.dim() != 3 or predicted.shape != target.shape or predicted.shape[:2] != mask.shape:
        shapes = ", ".join(str(tuple(given.shape)) for given in (predicted, target, mask))
        raise ValueError(f"mae_loss takes predicted (N, L, P), target (N, L, P) and mask (N, L), not {shapes}.")
    if mask.device.type == "cpu" and not mask.any():
        raise ValueError("mae_loss is a mean over hidden patches, and the mask hides none.")
    errors = (wide_float(predicted) - target).square().mean(2)  # (N, L)
    return ((errors * mask).sum() / mask.sum()).to(_result_dtype(predicted, target))


def dino_loss(
    student_logits: Tensor, teacher_logits: Tensor, center: Tensor, student_temperature: float = 0.1, teacher_temperature: float = 0.04
) -> Tensor:
    """DINO's loss for one pair of views: the cross-entropy of the student's distribution to the teacher's, averaged over the rows.

    student_logits, teacher_logits: (N, K), row i of both from image i. center: (K,), what is taken off the teacher's logits. A temperature
    divides logits: the teacher's, being lower, sharpens. No gradient reaches the teacher. ln K where either says all K equally probable,
    and 0 where both say the same one of them for sure. Caron et al. 2021 (arXiv 2104.14294), section 3.1, equations 1 to 4.
    """
    _check_pair(student_logits=student_logits, teacher_logits=teacher_logits)
    if center.shape != teacher_logits.shape[1:]:
        raise ValueError(f"center must be (K,), a number for each of the {teacher_logits.shape[1]} columns, not {tuple(center.shape)}.")
    for name, temperature in (("student_temperature", student_temperature), ("teacher_temperature", teacher_temperature)):
        if not 0 < temperature < math.inf:
            raise ValueError(f"{name} must be a positive number such as 0.1, not {temperature}.")
    target = ((wide_float(teacher_logits.detach()) - center) / teacher_temperature).softmax(1)
    loss = F.cross_entropy(wide_float(student_logits) / student_temperature, target)
    return loss.to(_result_dtype(student_logits, teacher_logits))


def chance_loss(
    method: str, *, batch_size: int | None = None, num_classes: int | None = None, dim: int | None = None, lambda_param: float = 5e-3
) -> float:
    """The value of a loss when nothing was learned: where training should start, and where a loss that stays there has learned nothing.

    batch_size: N images, so 2N views. dim: D of the projections, K of DINO. What the method does not need is ignored.
    Raises ValueError for an unknown method, and for an argument that is missing or too small.

    * "supervised": ln(num_classes), each class equally probable. "rotation": ln 4. "byol": 2, for a cosine of 0.
    * "simclr": ln(2N − 1), each other view equally probable; random directions lie about 1/(2Dτ²) above it for a temperature τ.
    * "barlow_twins": D·N/(N − 1) + λ·D(D − 1)/(N − 1): of independent normal columns a correlation has the mean square 1/(N − 1).
    * "mae": 1, the mean square of a patch that was divided by its own standard deviation (over P numbers, not P − 1 as in the authors'
      code, which makes it (P − 1)/P); less by the share of patches that are flat, which are predicted by nothing. "dino": ln(dim).
    """

    def whole(name: str, value: int | None, least: int = 2) -> int:
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"chance_loss({method!r}) needs {name}, a whole number of at least {least}, not {value}.")
        return value

    match method:
        case "supervised":
            return math.log(whole("num_classes", num_classes))
        case "rotation":
            return math.log(4)
        case "simclr":
            return math.log(2 * whole("batch_size", batch_size) - 1)
        case "byol":
            return 2.0
        case "barlow_twins":
            n, d = whole("batch_size", batch_size), whole("dim", dim, least=1)
            return d * n / (n - 1) + lambda_param * d * (d - 1) / (n - 1)
        case "mae":
            return 1.0
        case "dino":
            return math.log(whole("dim", dim))
    raise ValueError(f"chance_loss knows supervised, rotation, simclr, byol, barlow_twins, mae and dino, not {method!r}.")


def _check_pair(**tensors: Tensor) -> None:
    """Raise unless the two named tensors are floating-point (N, D) of one shape, and not empty."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not a {type(tensor).__name__}; convert it with torch.as_tensor.")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers, not {tensor.dtype}; convert it with .float().")
        if tensor.ndim != 2 or not tensor.numel():
            raise ValueError(f"{name} must be (N, D), one row an image; its shape is {tuple(tensor.shape)}.")
    (name, first), (other, second) = tensors.items()
    if first.shape != second.shape:
        raise ValueError(f"{name} and {other} need one shape, row i of both from image i; not {tuple(first.shape)}, {tuple(second.shape)}.")


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, which autocast would compute in half precision."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _normalised(z: Tensor) -> Tensor:
    """Rows (M, D) divided by their lengths, in a wide float."""
    if z.device.type == "cpu" and (zero := int((z == 0).all(1).sum())):
        raise ValueError(f"The loss compares directions, and a row of zeros has none ({zero} such rows): look at the layer that made it.")
    z = wide_float(z)
    z = z / z.detach().abs().amax(1, keepdim=True)  # the largest number is 1 now, so that no square overflows or vanishes
    return z / torch.linalg.vector_norm(z, dim=1, keepdim=True)  # no epsilon: 0/0 is NaN, which is seen; 0 would be silently wrong


def _result_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
