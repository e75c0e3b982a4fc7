"""What `find_nonfinite` says: a finding, made from a tensor whose numbers are not all finite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sslcourse.diagnostics.causes import cause_of


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
    known = [given[given.isfinite()] for given in inputs if given.is_floating_point()]
    known = [given for given in known if given.numel()]
    found = Finding(
        kind=kind, name=name, module=type(module).__name__ if module is not None else "",
        shape=tuple(values.shape if tensor.is_nested else tensor.shape), dtype=tensor.dtype,
        nan=nan, inf=int((~good).sum()) - nan, total=values.numel(), largest=values[good].abs().max().item() if good.any() else math.nan,
        cause="", operation=operation,
        input_range=(min(v.min().item() for v in known), max(v.max().item() for v in known)) if known else None, **more,
    )  # fmt: skip
    return replace(found, cause=cause_of(found, inputs))


def finite(*values) -> bool:
    """Are all numbers of these tensors finite? What is not a tensor of floating-point or complex numbers counts as finite.

    One norm over all and one wait for the device. NaN and infinity stay in a norm; a norm can also overflow, so only then is each
    number looked at.
    """
    tensors = [v for v in values if isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex()) and not v.is_meta]
    with torch.no_grad():
        tensors = [tensor for tensor in map(plain, tensors) if tensor.numel()]
        if not tensors:
            return True
        norms = torch.stack([norm.float().to(tensors[0].device) for norm in torch._foreach_norm(tensors)])
        return math.isfinite(norms.sum().item()) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def plain(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in a form that can be compared: of sparse, nested and 8-bit ones too."""
    tensor = tensor.detach()
    if tensor.is_nested:
        return torch.nested.to_padded_tensor(tensor, 0.0)
    if tensor.is_sparse:
        return tensor._values()
    return tensor.float() if tensor.element_size() == 1 else tensor
