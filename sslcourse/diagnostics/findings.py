"""What `find_nonfinite` says: a finding about a tensor whose numbers are not all finite, and what usually makes such numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Finding:
    """What `find_nonfinite` found. print() it, or read its fields."""

    kind: str  # input, parameter, buffer, output, loss, gradient, optimizer state, or parameter after the step
    name: str  # path of the module or of the parameter, with dots; "" is the model itself
    module: str  # type of that module, or of the one that holds the parameter
    shape: tuple[int, ...]  # of the tensor that is not finite
    dtype: torch.dtype
    nan: int  # how many of its values are NaN, and how many are inf or -inf
    inf: int
    total: int
    largest: float  # its largest finite absolute value; NaN when it has none
    cause: str  # one sentence on what usually makes this
    operation: str | None = None  # such as "aten.log", and in backward "SqrtBackward0 (aten.div)"; None where it is not known
    line: str | None = None  # of the caller's code: file, line and function, and the source text; in backward that of the forward operation
    place: str | None = None  # in a container: after which of its children
    input_range: tuple[float, float] | None = None  # smallest and largest finite number that the operation was given

    def __str__(self) -> str:
        what = {"output": "output of", "loss": "loss, in", "gradient": "gradient, in"}.get(self.kind, self.kind)
        called = f"{what} {self.name or 'the model itself'}" + (f" ({self.module})" if self.module else "")
        text = f"First not finite: {called}" + (f", made by {self.operation}" if self.operation else "")
        text += f"; {str(self.dtype).removeprefix('torch.')} {self.shape}: {self.nan:,} NaN and {self.inf:,} inf of {self.total:,} values"
        text += f", the largest other is {self.largest:.3g}" if math.isfinite(self.largest) else ""
        text += f", made from numbers between {self.input_range[0]:.3g} and {self.input_range[1]:.3g}" if self.input_range else ""
        where = ", ".join(part for part in (self.place, self.line) if part)
        return text + "." + (f"\nWhere: {where}" if where else "") + f"\nUsual cause: {self.cause}"


@torch.no_grad()
def describe(
    kind: str, name: str, module: nn.Module | None, tensor: Tensor, operation: str | None = None, inputs: Sequence[Tensor] = (), **more
) -> Finding:
    """A finding about a tensor; where an operation made it, also about the inputs of that operation."""
    values, inputs = plain(tensor), [plain(given) for given in inputs]
    good, nan = values.isfinite(), int(values.isnan().sum())
    known = [numbers for given in inputs if given.is_floating_point() and (numbers := given[given.isfinite()]).numel()]
    found = Finding(
        kind=kind, name=name, module=type(module).__name__ if module is not None else "", shape=tuple(values.shape), dtype=tensor.dtype,
        nan=nan, inf=int((~good).sum()) - nan, total=values.numel(), largest=values[good].abs().max().item() if good.any() else math.nan,
        cause="", operation=operation,
        input_range=(min(v.min().item() for v in known), max(v.max().item() for v in known)) if known else None, **more,
    )  # fmt: skip
    return replace(found, cause=cause_of(found, inputs))


def finite(*values) -> bool:
    """Are all numbers of these tensors finite? What is not a tensor of floating-point or complex numbers counts as finite."""
    tensors = [v for v in values if isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) and not v.is_meta]
    with torch.no_grad():
        if not (tensors := [tensor for tensor in map(plain, tensors) if tensor.numel()]):
            return True
        # one wait for the device, as NaN and infinity stay in a norm; where it overflows, each number is looked at
        norms = torch.stack([norm.float().to(tensors[0].device) for norm in torch._foreach_norm(tensors)])
        return math.isfinite(norms.sum().item()) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def plain(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in a form that can be compared: of sparse, nested and 8-bit ones too."""
    tensor = tensor.detach()
    if tensor.is_nested:
        return tensor.values()
    return tensor._values() if tensor.is_sparse else tensor.float() if tensor.element_size() == 1 else tensor


HALF = "float16 ends at 65504: compute this part in float32, or use bfloat16, whose numbers reach 3e38."

STANDING = {  # by the kind of a finding, where no operation is known
    "input": "The data hold it before the model sees them: look at how they are loaded and normalised (division by a std of 0, log of 0).",
    "parameter": "An earlier step wrote it: a gradient of inf, clipped (inf·0) or divided by Adam (inf/inf), becomes NaN weights, "
    "so go back to the last good weights and look at that batch.",
    "buffer": "A tensor that the model keeps between steps got it from an earlier batch or when it was made.",
    "statistics": "One bad batch stays in them for good: training goes on, evaluation is NaN; reset_running_stats(), and find that batch.",
    "stored gradient": "An earlier backward pass left it in .grad: call zero_grad() before an optimizer meets it, and look at that batch.",
    "optimizer state": "An earlier gradient, infinite or with a square too large, is still in it: start it anew, or from a checkpoint.",
    "parameter after the step": "Gradients are finite, so the update made it: a learning rate too high, or a division by 0 (LARS).",
}

BACKWARD = {  # by the name of a backward node, without "Backward" and the version
    "Sqrt": "The slope of a square root is infinite at 0: put eps inside the root, (x + eps).sqrt(), since added outside it does not help.",
    "Pow": "The slope of x**p is infinite at 0 for p below 1, and NaN for a negative x: put eps inside, (x + eps)**p.",
    "Std StdMean Var VarMean": "The slope of a deviation is infinite where all values are equal: use (var + eps).sqrt(), or batch_norm.",
    "Log Log2 Log10": "The slope of a logarithm is 1/x, without end at 0: use log_softmax or logsumexp, or clamp x before the logarithm.",
    "Div Reciprocal Rsqrt": "The slope of a quotient divides by the denominator once more, or squared: a larger eps in it, or F.normalize.",
    "Norm LinalgVectorNorm Cdist": "The slope of a norm divides by the norm, which was 0 or overflowed: F.normalize, or eps in the root.",
    "Acos Asin": "The slope of arc cosine and arc sine is infinite at 1 and −1: clamp to ±(1 − 1e-6) before it.",
}

FORWARD = {  # by words in the name of an aten operation; the first that fits
    "softmax attention logsumexp": "A row in which everything is masked with -inf has no softmax (0/0): leave one unmasked, or drop it.",
    "batch_norm layer_norm group_norm": "The variance overflowed, or was 0 with too small an eps: look at eps and at what comes in.",
    "log": "The logarithm of 0 is -inf, of a negative number NaN: use log_softmax or logsumexp, or clamp before the logarithm.",
    "exp": "exp overflows above 88.7 in float32 and 11.0 in float16: subtract the largest value first, as logsumexp and log_softmax do.",
    "sqrt": "A negative number has no root, 1/sqrt(0) is inf: E[x²] − E[x]² falls below 0 by rounding. Use var(), eps inside the root.",
    "std var": "A deviation or variance over N − 1 needs at least two rows: use drop_last, or correction=0.",
    "div reciprocal": "A division by 0 (std of a constant dimension, norm of zeros): use /(var + eps).sqrt(), F.normalize or batch_norm.",
    "pow": "A negative number to a broken power is NaN, 0 to a negative one is inf, and large numbers overflow: look at its inputs.",
    "mean": "The mean of nothing is 0/0: an empty selection, so multiply by the mask and take the mean over all rows.",
    "acos asin atanh": "Arc functions need numbers between −1 and 1: clamp before them, since cosines pass 1 by rounding.",
}


def cause_of(found: Finding, inputs: Sequence[Tensor]) -> str:
    """One sentence about a finding. inputs: what its operation was given."""
    kind, operation = found.kind, found.operation
    if kind == "buffer" and ("BatchNorm" in found.module or "running_" in found.name):
        return STANDING["statistics"]
    if operation is None:
        return STANDING.get(kind, "No operation is known that made it: a constant, a slope without end (a root at 0), or an overflow.")
    infinite = any(t.is_floating_point() and not bool(t.isfinite().all()) for t in inputs)
    half = found.dtype == torch.float16 and found.inf > 0 and not infinite
    if kind == "gradient":
        node = operation.partition("Backward")[0]
        if half and node not in ("Sqrt", "Rsqrt", "Log", "Norm", "Acos"):
            return f"A gradient overflowed: {HALF}"
        passed = "A gradient passed the largest number: a loss or an activation far too large, so look at the scale and at the lr."
        return next((sentence for nodes, sentence in BACKWARD.items() if node in nodes.split()), passed)
    name = operation.removeprefix("aten.").strip("_")
    if any(word in name for word in ("fill", "where", "full", "pad")):
        return "An infinity that was filled in on purpose reached the loss: what the loss needs is masked."
    if infinite and not any(word in name for word in ("softmax", "attention", "logsumexp")):
        return "NaN from an infinity that may be a mask (-inf·0, inf − inf): mask with masked_fill or torch.where, after multiplying."
    if name in ("div", "true_divide") and len(inputs) > 1 and bool((inputs[1] != 0).all()):
        return f"The quotient overflowed: {HALF if half else 'the denominator is almost 0, so put a larger eps in it.'}"
    if name == "to_copy" or (half and name not in ("log", "div", "sqrt", "rsqrt", "reciprocal")):
        return f"A number beyond what this precision can hold: {HALF if half else 'look at the scale of the input.'}"
    too_large = name in ("mean", "sum") or (name.startswith("pow") and bool((inputs[0].abs() > 1).any()))
    if not (too_large and found.inf and not found.nan):
        for words, sentence in FORWARD.items():
            if any(word in name for word in words.split()):
                return sentence
    largest = max((t.abs().max().item() for t in inputs if t.is_floating_point() and t.numel()), default=math.nan)
    return f"It passed the largest number, from inputs up to {largest:.2g}: a learning rate too high, or inputs not normalised."
