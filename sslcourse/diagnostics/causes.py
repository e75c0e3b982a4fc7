"""What usually makes a number that is not finite: one sentence for each kind of place and operation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

HALF = "float16 ends at 65504: compute this part in float32, or use bfloat16, whose numbers reach 3e38."

STANDING = {  # by the kind of a finding, where no operation is known
    "input": "The data hold it before the model sees them: look at how they are loaded and normalised (division by a std of 0, log of 0).",
    "parameter": "An earlier step wrote it: a gradient of inf, clipped (inf·0) or divided by Adam (inf/inf), becomes NaN weights, "
    "so go back to the last good weights and look at that batch.",
    "buffer": "A tensor that the model keeps between steps got it from an earlier batch or when it was made.",
    "statistics": "A batch that was not finite stays in the running statistics for good: training, which uses those of the batch, goes on, "
    "and evaluation is NaN; call reset_running_stats() and find that batch.",
    "stored gradient": "It is what an earlier backward pass left in .grad: call zero_grad() before it meets an optimizer, and look at "
    "that batch.",
    "optimizer state": "The optimizer keeps what an earlier gradient of inf or NaN, or the square of a very large one, has left: start it "
    "anew, or from a checkpoint.",
    "parameter after the step": "The gradients are finite, so the update made it: a learning rate too high for these weights, or a "
    "division by something that is 0 (Adam's eps in float16, the norms of LARS).",
    "output": "No operation is known that made it: a constant, perhaps.",
    "gradient": "Backward made it; no operation is known: a slope without end (a root or a norm at 0), or an overflow.",
}

BACKWARD = {  # by the name of a backward node, without "Backward" and the version
    "Sqrt": "The slope of a square root is infinite at 0: put eps inside the root, (x + eps).sqrt(), since added outside it does not help.",
    "Rsqrt": "1/sqrt(x) has no end at 0: put eps inside the root, (x + eps).rsqrt().",
    "Pow": "The slope of x**p is infinite at 0 for p below 1, and NaN for a negative x: put eps inside, (x + eps)**p.",
    "Std StdMean": "The slope of a standard deviation is infinite where all values are equal: use (var + eps).sqrt(), or batch_norm.",
    "Var VarMean": "A variance passed on a gradient that was too large, or was made of one value: use (var + eps).sqrt(), and drop_last.",
    "Log Log2 Log10": "The slope of a logarithm is 1/x, without end at 0: use log_softmax or logsumexp, or clamp x before the logarithm.",
    "Div": "The slope of a quotient divides by the denominator once more, or squared: an eps in it that is large enough, or F.normalize.",
    "Reciprocal": "The slope of 1/x is 1/x², without end at 0: put eps in the denominator.",
    "Norm LinalgVectorNorm": "The slope of a norm divides by the norm, and that was 0 or overflowed: F.normalize, or eps inside the root.",
    "Cdist": "The slope of a distance is infinite between equal rows: use squared distances, or put eps inside the root.",
    "Acos Asin": "The slope of arc cosine and arc sine is infinite at 1 and −1: clamp to ±(1 − 1e-6) before it.",
    "Exp": "exp was large enough for its gradient to overflow: subtract the largest value first, as logsumexp does.",
    "Mul": "A gradient was multiplied beyond the largest number: the factors or the gradient are too large (scale, learning rate).",
    "Prod": "The slope of a product divides by its factors, and one was 0: sum logarithms instead.",
    "Where": "Both branches of a where have gradients, and 0·inf is NaN: make the input of the unused branch harmless too.",
    "NativeBatchNorm CudnnBatchNorm NativeLayerNorm": "The variance was 0 with too small an eps, or overflowed: look at the scale of what "
    "comes in.",
}

FORWARD = {  # by words in the name of an aten operation; the first that fits
    "softmax attention": "A row in which everything is masked with -inf has no softmax (0/0): leave one entry unmasked, or drop the row.",
    "logsumexp": "A row in which everything is masked with -inf, or an inf, has no finite logsumexp: leave such rows out.",
    "batch_norm layer_norm group_norm": "The variance overflowed, or was 0 with too small an eps: look at eps and at what comes in.",
    "log1p": "log1p of −1 is -inf and of less NaN: clamp what comes in.",
    "log": "The logarithm of 0 is -inf, of a negative number NaN: use log_softmax or logsumexp, or clamp before the logarithm.",
    "exp": "exp overflows above 88.7 in float32 and 11.0 in float16: subtract the largest value first, as logsumexp and log_softmax do.",
    "sqrt": "The root of a negative number is NaN, and 1/sqrt(0) is inf: a variance as E[x²] − E[x]² falls below 0 by rounding, "
    "so use var(), and put eps inside the root.",
    "std var": "A deviation or variance over N − 1 needs at least two rows: use drop_last, or correction=0.",
    "div": "A division by 0, or 0/0 (a constant dimension has std 0, a row of zeros has norm 0): put eps in the denominator, "
    "/(var + eps).sqrt(), or use F.normalize or batch_norm.",
    "reciprocal": "1/0: put eps in the denominator.",
    "pow": "A negative number to a broken power is NaN, 0 to a negative one is inf, and large numbers overflow: look at its inputs.",
    "mean": "The mean of nothing is 0/0: an empty selection, so multiply by the mask and take the mean over all rows.",
    "acos asin": "Arc cosine and arc sine need numbers between −1 and 1: clamp before them, since cosines pass 1 by rounding.",
    "atanh": "atanh needs numbers strictly between −1 and 1: clamp before it.",
}


def cause_of(found, inputs: Sequence[Tensor]) -> str:
    """One sentence about a `Finding`. inputs: what its operation was given."""
    kind, operation = found.kind, found.operation
    if kind == "buffer" and ("BatchNorm" in found.module or "running_" in found.name):
        return STANDING["statistics"]
    if operation is None or kind in ("input", "parameter", "buffer", "optimizer state", "parameter after the step"):
        return STANDING[kind]
    infinite = any(t.is_floating_point() and not bool(t.isfinite().all()) for t in inputs)
    half = found.dtype == torch.float16 and found.inf > 0 and not infinite
    if kind == "gradient":
        node = operation.partition("Backward")[0]
        if half and node not in ("Sqrt", "Rsqrt", "Log", "Norm", "Acos"):
            return f"A gradient overflowed: {HALF}"
        known = [sentence for nodes, sentence in BACKWARD.items() if node in nodes.split()]
        passed = "A gradient passed the largest number: a loss or an activation far too large, so look at the scale and at the lr."
        return known[0] if known else passed
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
