"""What the checks of exercises are written with. Each function raises Wrong with a sentence that a learner can use."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from sslcourse.course.exercises import Wrong, describe

_NUMBERS = (Tensor, np.ndarray, np.generic, int, float)
WRITTEN_IN = "Right for one example, but not for another of other sizes: is a number written into the function?"
STALE = 0.3  # a gradient that an earlier step has left
STEP_ERRORS = {  # a part of the message of an error in a training step: hint
    "does not require grad": "No gradient leads back from the loss. torch.no_grad() or .detach() covers something that has to learn.",
    "by an inplace operation": "Weights change between the loss and backward(). The order is: loss, zero_grad(), backward(), step().",
}
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
def hints_for_errors(hints: Mapping[str, str]):
    """Inside the block, an error of the answer whose message has one of these parts in it gets the part's hint; "" is for any rejection."""
    try:
        yield
    except Wrong as wrong:
        if isinstance(wrong.__cause__, NotImplementedError):  # the answer is not written yet
            raise
        raise Wrong(next((hint for part, hint in hints.items() if part in str(wrong.__cause__)), str(wrong))) from wrong.__cause__


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


def plain_loss(got, wanted: Tensor) -> None:
    """Reject what a training step returns unless it is its loss as a plain number."""
    kind(got, (float, Tensor), "the loss")
    reject_if(isinstance(got, Tensor), "The loss comes back as a tensor, which keeps its whole graph alive. Return loss.item().")
    close(got, wanted.item(), "The step is right, the number returned is not. Return the loss on which backward() was called.")


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
    answer: Callable, reference: Callable, inputs: Sequence[Tensor], *rest, cut: str = "", rtol: float = 1e-3, atol: float = 1e-5
) -> None:
    """Reject a loss answer(*inputs, *rest) of z0 and z1 unless both get the reference's gradient. cut: where the graph may be cut off."""
    inputs = [v.detach().requires_grad_() for v in inputs]
    value = answer(*inputs, *rest)
    reject_if(not value.requires_grad, NO_GRADIENT)
    try:
        got = torch.autograd.grad(value, inputs, allow_unused=True)
    except RuntimeError as error:
        told = "a tensor that it still needs was changed in place. Make new ones: p = p / length."
        raise Wrong(f"The value is right, but backward() fails: {told}") from error
    hint = f"The value is right, but its gradient is not: is a part of the graph cut off? {cut}".strip()
    for name, slope, wanted in zip(("z0", "z1"), got, torch.autograd.grad(reference(*inputs, *rest), inputs), strict=True):
        stopped = slope is None or not slope.any()
        reject_if(stopped, f"The value is right, but no gradient reaches {name}, which has to learn: is it detached?")
        close(slope, wanted, hint, rtol, atol, "the gradient")


def near(got, wanted, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    """Whether two numbers or tensors have the same shape and nearly the same values."""
    got, wanted = (torch.as_tensor(value).detach().double().cpu() for value in (got, wanted))
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol, atol)


def small_encoder() -> nn.Sequential:
    """An encoder for images of 3×4×4 with batch normalisation in it, and 8 features."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.ReLU())
    encoder.feature_dim = 8
    return encoder


class Watched:
    """What a training step does with a model that comes in evaluation mode, with gradients that an earlier step has left.

    learns: the parameters of its `optimizer`. calls: name of a module -> [(its input, its output, whether it was in training mode)].
    """

    def __init__(self, model: nn.Module, learns: Sequence[nn.Parameter], **modules: nn.Module):
        self.learns, self.steps, self.calls = list(learns), [], {name: [] for name in modules}
        self.optimizer = torch.optim.SGD(self.learns, lr=0.5)
        self.optimizer.register_step_pre_hook(self._note_step)
        for p in self.learns:
            p.grad = torch.full_like(p, STALE)
        for name, module in modules.items():
            module.register_forward_hook(lambda m, given, out, name=name: self._note_call(name, m, given[0], out))
        model.eval()

    def _note_call(self, name: str, module: nn.Module, given: Tensor, out: Tensor) -> None:
        self.calls[name].append((given, out, all(part.training for part in module.modules())))

    def _note_step(self, *_) -> None:
        self.steps.append(parameters_to_vector([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.learns]))

    def check_step(self, loss: Tensor, learns: Sequence[nn.Parameter], mistakes: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        """Reject the step unless it was one, by the gradients of this loss. mistakes: hint -> losses that are known to be wrong."""

        def slopes(loss):
            return parameters_to_vector(torch.autograd.grad(loss, learns, retain_graph=True))

        reject_if(not self.steps, "The optimiser takes no step: optimizer.step() is missing.")
        reject_if(len(self.steps) > 1, f"The optimiser takes {len(self.steps)} steps. One call of the function is one step.")
        got, wanted = self.steps[0], slopes(loss)
        if near(got, wanted):
            return
        empty = not got.any() or near(got, torch.full_like(got, STALE))
        reject_if(empty, "The optimiser's step finds no gradient of this loss. The order is: zero_grad(), backward(), step().")
        reject_if(near(got, wanted + STALE), "The gradients of an earlier step are still there. Clear them before backward(): zero_grad().")
        for hint, losses in (mistakes or {}).items():
            reject_if(any(near(got, slopes(wrong)) for wrong in losses), hint)
        raise Wrong("The step follows another gradient than that of the loss. Is a part of it cut off, counted twice, or of another size?")

    def check_mode(self, *names: str) -> None:
        """Reject the step where one of these modules was called in evaluation mode."""
        still = "The method comes in evaluation mode and stays in it, so batch normalisation uses old statistics: method.train() first."
        reject_if(not all(training for name in names for _, _, training in self.calls[name]), still)

    def views(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The two views (N, 3, H, W) of every picture that the module called "views" drew, in whichever order. Rejects any other number."""
        calls = self.calls["views"]
        reject_if(not calls, "The pictures are never augmented. method.augmentation draws a view of each.")
        n, given, drawn = len(pictures), *(torch.cat([call[k] for call in calls]) for k in (0, 1))
        of_picture = (given.unsqueeze(1) == pictures).flatten(2).all(2).int().argmax(1)
        reject_if(len(drawn) == n, "There is one view of each picture. Draw a second one of each.")
        reject_if(of_picture.bincount(minlength=n).ne(2).any(), f"{len(drawn)} views of {n} pictures were drawn. Draw two of each.")
        return drawn[of_picture.argsort(stable=True)].unflatten(0, (n, 2)).unbind(1)
