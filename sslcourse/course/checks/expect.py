"""What the checks of exercises are written with. Each function raises Wrong with a sentence that a learner can use."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from sslcourse.course.exercises import Wrong, describe

_NUMBERS = (Tensor, np.ndarray, np.generic, int, float)
NO_GRADIENT = "The value is right, but no gradient comes back."
CUT_OFF = "The value is right, but its gradient is not: a part of the graph is cut off."


def two_views(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two views (n, d) that belong together, with rows of different lengths, columns of different scales, and a shift between the views."""
    generator = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, d, generator=generator)
    z1 = z0 + 0.8 * torch.randn(n, d, generator=generator)
    scales = 0.5 + torch.rand(2, n, 1, generator=generator) + 2 * torch.rand(2, 1, d, generator=generator)
    shift = torch.randn(2, d, generator=generator)
    return z0 * scales[0] + shift[0] / 2, z1 * scales[1] + shift[1]


def with_weights(model: nn.Module, seed: int) -> nn.Module:
    """The model, its parameters drawn anew from a seed of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def reject_if(wrong: bool | Tensor, hint: str) -> None:
    if wrong:
        raise Wrong(hint)


@contextlib.contextmanager
def hint_for_errors(hint: str, *kinds: type[Exception]):
    """Give this hint where the answer raises an error of these kinds inside the block; without kinds, where it is rejected at all."""
    try:
        yield
    except Wrong as wrong:
        if kinds and not isinstance(wrong.__cause__, kinds):
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
    return float(got)


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
    """Raise the hint of the first known mistake that gives what the answer gives, unless the reference gives it too.

    mistakes: hint -> a wrong function, or a list of them. run(function) calls a function on the check's inputs and returns the number or
    tensor to compare. Call this before `close`, so that the hint that fits comes first.
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


def gradients(answer: Callable, reference: Callable, views: Sequence[Tensor], *rest, blocked: str, cut: str, **tolerance) -> None:
    """Reject a loss answer(*views, *rest) whose gradient in a view is missing (hint blocked) or differs from the reference's (cut)."""
    views = [view.detach().requires_grad_() for view in views]
    value = answer(*views, *rest)
    reject_if(not value.requires_grad, f"{NO_GRADIENT} Leave out .detach(), .item(), torch.no_grad() and torch.tensor(...).")
    got = torch.autograd.grad(value, views, allow_unused=True)
    stopped = any(g is None or not g.any() for g in got)
    reject_if(stopped, f"No gradient reaches one of the two views: is it detached? {blocked}")
    for g, wanted in zip(got, torch.autograd.grad(reference(*views, *rest), views), strict=True):
        close(g, wanted, f"{CUT_OFF} {cut}", what="the gradient", **tolerance)


def stopped_gradient(
    answer: Callable, reference: Callable, pair: Sequence[Tensor], *rest, learns: int, names: Sequence[str], else_moves: str, cut: str = ""
) -> None:
    """Reject a loss answer(*pair, *rest) unless pair[learns] gets the reference's gradient, and the other of the two none.

    names: what the two are called in hints; else_moves: what a gradient to the other would move; cut: where the graph may be cut off.
    """
    pair, learner, fixed = [v.detach().requires_grad_() for v in pair], names[learns], names[1 - learns]
    value = answer(*pair, *rest)
    reject_if(not value.requires_grad, f"{NO_GRADIENT} Detach {fixed} only: no torch.no_grad(), .item(), torch.tensor(...).")
    try:
        got = torch.autograd.grad(value, pair, allow_unused=True)
    except RuntimeError as error:
        told = "a tensor that it still needs was changed in place. Make new ones: p = p / length."
        raise Wrong(f"The value is right, but backward() fails: {told}") from error
    learner_moves, fixed_moves = (got[at] is not None and bool(got[at].any()) for at in (learns, 1 - learns))
    wrong_side = f"The gradient is stopped at the wrong side: {learner} is detached, so nothing would be learned. Detach {fixed}."
    reject_if(fixed_moves and not learner_moves, wrong_side)
    reject_if(fixed_moves, f"The value is right, but a gradient reaches {fixed}, so {else_moves}. Stop it there: .detach().")
    reject_if(not learner_moves, f"The value is right, but no gradient reaches {learner}, the side that learns. Detach {fixed} only.")
    (wanted,) = torch.autograd.grad(reference(*pair, *rest), pair[learns])
    close(got[learns], wanted, f"{CUT_OFF} {cut}".strip(), rtol=1e-3, atol=1e-5, what="the gradient")


def near(got, wanted, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether two numbers or tensors have the same shape and nearly the same values."""
    got, wanted = (torch.as_tensor(value).detach().double().cpu() for value in (got, wanted))
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol, atol)
