"""What the checks of exercises are written with. Each function raises Wrong with a sentence that a learner can use."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from sslcourse.course.exercises import Wrong, describe

_NUMBERS = (Tensor, np.ndarray, np.generic, int, float)
WRITTEN_IN = "Right for one example, but not for another of other sizes: is a number written into the function?"
NO_GRADIENT = "The value is right, but no gradient comes back. Leave out .item(), torch.no_grad(), and .detach() of what has to learn."


def two_views(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two views (n, d) that belong together, with rows of different lengths, columns of different scales, and a shift between the views."""
    generator = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, d, generator=generator)
    z1 = z0 + 0.8 * torch.randn(n, d, generator=generator)
    scales = 0.5 + torch.rand(2, n, 1, generator=generator) + 2 * torch.rand(2, 1, d, generator=generator)
    shift = torch.randn(2, d, generator=generator)
    return z0 * scales[0] + shift[0] / 2, z1 * scales[1] + shift[1]


def reject_if(wrong: bool | Tensor, hint: str) -> None:
    if wrong:
        raise Wrong(hint)


@contextlib.contextmanager
def hint_for_errors(hint: str, *kinds: type[Exception]):
    """Give this hint where the answer raises an error of these kinds inside the block; without kinds, where it is rejected at all."""
    try:
        yield
    except Wrong as wrong:
        if kinds and not isinstance(wrong.__cause__, kinds) or isinstance(wrong.__cause__, NotImplementedError):  # which is a RuntimeError
            raise
        raise Wrong(hint) from wrong


def kind(got, wanted: type | tuple[type, ...] = Tensor, what: str = "the result") -> None:
    """Reject a result of another type; None and ... get a hint about the missing return."""
    if got is None or got is ...:
        raise Wrong("The function returned nothing. Is the return statement missing?" if got is None else "The function returned `...`.")
    if not isinstance(got, wanted):
        names = " or ".join(k.__name__ for k in (wanted if isinstance(wanted, tuple) else (wanted,)))
        raise Wrong(f"Expected {what} to be a {names}, and it is {describe(got)}.")


def shape(got, wanted: Sequence[int], what: str = "the result") -> None:
    kind(got, (Tensor, np.ndarray), what)
    if tuple(got.shape) != tuple(wanted):
        form = f"of shape {tuple(wanted)}" if wanted else "a single number, of shape (),"
        raise Wrong(f"Expected {what} to be {form} and it has shape {tuple(got.shape)}.")


def close(got, wanted, hint: str, rtol: float = 1e-4, atol: float = 1e-6, what: str = "the result") -> None:
    """Reject a result that differs from the wanted one: by its form with a sentence about the form, by its values with the hint."""
    kind(got, _NUMBERS, what)
    got, wanted = torch.as_tensor(got), torch.as_tensor(wanted)
    shape(got, wanted.shape, what)
    if got.is_floating_point() and wanted.isfinite().all() and not got.isfinite().all():
        raise Wrong(f"Not all of {what} is finite. {hint}")
    reject_if(not near(got, wanted, rtol, atol), hint)


def number(got, what: str) -> float:
    """Reject anything but one number, as Python or PyTorch has it; returns it as a float."""
    if not isinstance(got, Real):
        kind(got, (float, Tensor), what)
        shape(got, (), what)
    return float(got.detach() if isinstance(got, Tensor) else got)


def loss(got, rows: int | None = None) -> None:
    """Reject a loss that is no tensor of shape (); one value for each of the rows gets a hint of its own."""
    reject_if(isinstance(got, Real), "The loss comes back as a plain number, and backward() needs the tensor. Leave .item() out.")
    single = isinstance(got, Tensor) and got.shape == (rows,)
    reject_if(single, "This is one value for each row. Take the mean over the rows, so that the loss is one number.")
    shape(got, (), "the loss")


def two(got, hint: str) -> None:
    kind(got, (tuple, list))
    reject_if(len(got) != 2, hint)


def pair(got, wanted: Sequence, first: str, second: str) -> None:
    """Reject a result that is not two things, or is two right numbers in the other order."""
    two(list(got) if isinstance(got, Tensor) and got.dim() == 1 else got, f"Return two numbers: return {first}, {second}.")
    swapped = all(isinstance(v, _NUMBERS) and near(v, w) for v, w in zip(got, wanted[::-1], strict=True))
    reject_if(swapped, f"Both values are right, in the other order. Return the {first} first.")


def reject_mistakes(
    answer: Callable, reference: Callable, mistakes: Mapping, run: Callable[[Callable], object], rtol: float = 1e-4, atol: float = 1e-6
) -> None:
    """Raise the hint of the first known mistake that gives what the answer gives, unless that is right on these inputs.

    mistakes: hint -> a wrong function, or a list of them. run(function) -> the number or tensor that is compared.
    """
    got, right = run(answer), run(reference)
    if not isinstance(got, _NUMBERS):
        return
    for hint, functions in mistakes.items():
        for wrong in functions if isinstance(functions, list) else [functions]:
            try:
                found = run(wrong)
            except Exception:  # a mistake may well not run on these inputs
                continue
            if near(got, found, rtol, atol) and not near(right, found, rtol, atol):
                raise Wrong(hint)


def agree(
    answer: Callable, reference: Callable, inputs: Sequence, hint: str, mistakes: Mapping | None = None,
    what: str = "the result", part: Callable = lambda result: result, more: Sequence[Sequence] = (), rtol: float = 1e-4, atol: float = 1e-6,
) -> None:  # fmt: skip
    """Reject an answer that gives another result on these inputs than the reference: a known mistake with its own hint, others with this.

    part: takes out of a result the number or tensor that is compared. more: inputs of other sizes, which have to be right as well.
    """
    reject_mistakes(answer, reference, mistakes or {}, lambda function: part(function(*inputs)), rtol, atol)
    for given, told in ((inputs, hint), *((other, WRITTEN_IN) for other in more)):
        close(part(answer(*given)), part(reference(*given)), told, rtol, atol, what)


def gradients(
    answer: Callable, reference: Callable, inputs: Sequence[Tensor], *rest, names: Sequence[str], learns: Sequence[int] = (0, 1),
    else_moves: str = "", cut: str = "", rtol: float = 1e-3, atol: float = 1e-5,
) -> None:  # fmt: skip
    """Reject a loss answer(*inputs, *rest) unless those of the inputs that learn get the reference's gradient, and the others none.

    names: what the inputs are called in hints; else_moves: what a gradient to another would move; cut: where the graph may be cut off.
    """
    inputs = [v.detach().requires_grad_() for v in inputs]
    value = answer(*inputs, *rest)
    reject_if(not value.requires_grad, NO_GRADIENT)
    try:
        got = torch.autograd.grad(value, inputs, allow_unused=True)
    except RuntimeError as error:
        told = "a tensor that it still needs was changed in place. Make new ones: p = p / length."
        raise Wrong(f"The value is right, but backward() fails: {told}") from error
    moved = [at for at, g in enumerate(got) if g is not None and g.any()]
    stopped = [names[at] for at in learns if at not in moved]
    for fixed in (names[at] for at in moved if at not in learns):
        reject_if(stopped, f"The gradient is stopped at the wrong side: nothing would be learned. Detach {fixed}, and nothing else.")
        raise Wrong(f"The value is right, but a gradient reaches {fixed}, so {else_moves}. Stop it there: .detach().")
    reject_if(stopped, f"The value is right, but no gradient reaches {' and '.join(stopped)}, which has to learn: is it detached?")
    for at, slope in zip(learns, torch.autograd.grad(reference(*inputs, *rest), [inputs[at] for at in learns]), strict=True):
        hint = f"The value is right, but its gradient is not: is a part of the graph cut off? {cut}".strip()
        close(got[at], slope, hint, rtol, atol, "the gradient")


def near(got, wanted, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether two numbers or tensors have the same shape and nearly the same values."""
    got, wanted = (torch.as_tensor(value).detach().double().cpu() for value in (got, wanted))
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol, atol)
