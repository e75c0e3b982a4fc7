"""The first thing that is not finite: `find_nonfinite` repeats one training step on any PyTorch module and names the culprit.

How it decides. What is there before the step is looked at first. Then the step is run to its end while every operation is watched, forward
and backward. Each NaN and each infinity has an origin: the operation that made it from finite numbers, or that made NaN out of a harmless
infinity; what is computed from it inherits the origin. Only when the step ends badly (loss, gradients, buffers, the optimizer's state or
the weights are not finite) is something reported, and it is the origin of that bad end. So infinities that do no harm are no finding: -inf
that masks a softmax, the unused branch of a `torch.where`, a logarithm of 0 that is only printed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map

from sslcourse.diagnostics.causes import cause_of
from sslcourse.diagnostics.watch import Origin, Watch, as_found, finite, plain, random_states_kept


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
    after_step: bool = False  # the step itself went well, and the next forward or backward pass on the same batch did not

    def __str__(self) -> str:
        what = {"output": "output of", "loss": "loss, in", "gradient": "gradient, in"}.get(self.kind, self.kind)
        called = f"{what} {self.name or 'the model itself'}" + (f" ({self.module})" if self.module else "")
        text = "First not finite" + (", in the pass after one step" if self.after_step else "") + f": {called}"
        text += f", made by {self.operation}" if self.operation else ""
        text += f"; {str(self.dtype).removeprefix('torch.')} {self.shape}: {self.nan:,} NaN and {self.inf:,} inf of {self.total:,} values"
        text += f", the largest other is {self.largest:.3g}" if math.isfinite(self.largest) else ""
        text += f", made from numbers between {self.input_range[0]:.3g} and {self.input_range[1]:.3g}" if self.input_range else ""
        where = ", ".join(part for part in (self.place, self.line) if part)
        return text + "." + (f"\nWhere: {where}" if where else "") + f"\nUsual cause: {self.cause}"


def find_nonfinite(
    model: nn.Module,
    batch=None,
    *,
    loss_fn: Callable | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    backward: bool = True,
    forward: Callable | None = None,
) -> Finding | None:
    """The first thing that is not finite, in causal order, or None: input, parameter, buffer, module output, loss, gradient, optimizer
    state, parameter after the step.

    >>> print(find_nonfinite(method, images))  # a method of this course: its forward is the loss
    >>> print(find_nonfinite(model, x, loss_fn=lambda logits: F.cross_entropy(logits, y), optimizer=optimizer))
    >>> print(find_nonfinite(model, (x0, x1), forward=lambda views: barlow(model(views[0]), model(views[1]))))

    model: any PyTorch module, in the mode (train or eval) in which it fails. batch: a tensor for model(batch), a tuple or list for
    model(*batch), a dictionary for model(**batch); None looks only at what is stored. forward(batch) takes the place of calling the model:
    for several calls, or autocast around it. loss_fn(output) -> scalar; not needed where the output is the loss. Without a scalar only the
    forward pass is looked at, as with backward=False. optimizer: also looks at its stored state, takes one step (without clipping) and
    repeats the pass after it.

    Of a forward or backward pass it names the innermost module whose operation made the first NaN or infinity, that operation, and the
    line of code. For what happens between the children of a module, the module is named, and the child before. Something that loss_fn or
    forward does outside of every module has the kind "loss".
    NaN and inf in the batch, in parameters and in the statistics of normalisation are always reported, and NaN in other buffers. Inf in
    those, and -inf alone in the batch, may be a mask: reported only when the step ends badly because of it (without a batch: +inf too).

    The model, the optimizer, the batch and all random states are left as they were, also after an error; the augmentation repeats the
    random numbers that come next. An error of the model itself comes through, with a note that says in which module. It needs memory for
    one more copy of the weights and of the optimizer's state. SimCLR on a ResNet-9 of width 16 or a ResNet-18 at 32×32, one CPU thread:
    as long as 1.1 to 1.9 training steps, and with an optimizer as 2.5 to 4.1.
    Raises ValueError when a loss is not a scalar, and when an optimizer is given without a way to a scalar.
    """
    runs = batch is not None or forward is not None
    standing, masks = _standing(model, batch, runs)
    if standing is not None:
        return standing
    if not runs:
        return _stored_gradient(model) or _stored_state(model, optimizer)
    with as_found(model, optimizer), torch.inference_mode(False):
        batch = tree_map(lambda leaf: leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf, batch)
        watch = Watch(model, _of_operation)
        for tensor, finding, harmless in masks:
            watch.note(tensor if isinstance(tensor, Tensor) else tree_leaves(batch)[tensor], Origin(finding, harmless, standing=True))
        search = _Search(model, batch, loss_fn, optimizer, backward, forward, watch)
        return search.run()


# --- what is there before the step -----------------------------------------------------------------------------------------------------


def _describe(kind: str, name: str, module: nn.Module | None, tensor: Tensor, operation: str | None = None, **more) -> Finding:
    with torch.no_grad():
        values = plain(tensor)
        nan, good = values.isnan(), values.isfinite()
        largest = values[good].abs().max().item() if good.any() else math.nan
        counts = {"nan": int(nan.sum()), "inf": int((~good).sum() - nan.sum()), "total": values.numel(), "largest": largest}
    shape = tuple(values.shape if tensor.is_nested else tensor.shape)
    facts = {"name": name, "module": type(module).__name__ if module is not None else "", "dtype": tensor.dtype, **counts}
    if "cause" not in more:
        more["cause"] = cause_of(kind, operation, facts, ())
    return Finding(kind=kind, shape=shape, operation=operation, **facts, **more)


def _of_operation(kind: str, name: str, module: nn.Module | None, tensor: Tensor, operation: str, inputs: list[Tensor], **more) -> Finding:
    """A finding about an operation, with what it was given. The watch calls it."""
    inputs = [plain(values) for values in inputs]
    low, high = math.inf, -math.inf
    for values in inputs:
        values = values[values.isfinite()] if values.is_floating_point() else values[:0]
        if values.numel():
            low, high = min(low, values.min().item()), max(high, values.max().item())
    more["input_range"] = (low, high) if low <= high else None
    found = _describe(kind, name, module, tensor, operation, cause="", **more)
    return replace(found, cause=cause_of(kind, operation, vars(found), inputs))


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _standing(model: nn.Module, batch, runs: bool) -> tuple[Finding | None, list]:
    """What is not finite already, and what may be a mask: each a buffer, or a position in the batch, a finding about
    it, and whether -inf is its only infinity."""
    masks: list[tuple[Tensor | int, Finding, bool]] = []
    for position, (path, leaf) in enumerate(tree_flatten_with_path(batch)[0]):
        if not finite(leaf):
            found = _describe("input", "batch" + keystr(path), None, leaf)
            if found.nan or bool((leaf == math.inf).any()):
                return found, []
            masks.append((position, found, True))
    for name, tensor in model.named_parameters():
        if not finite(tensor):
            return _describe("parameter", name, _owner(model, name), tensor), []
    for name, tensor in model.named_buffers():
        if not finite(tensor):
            module = _owner(model, name)
            found = _describe("buffer", name, module, tensor)
            unmasking = bool((tensor == math.inf).any())
            if found.nan or (unmasking and not runs) or isinstance(module, nn.modules.batchnorm._NormBase):
                return found, []
            masks.append((tensor, found, not unmasking))
    return None, masks


def stored_nonfinite(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Finding | None:
    """What is stored and not finite: parameters, buffers, the optimizer's state; not the gradients."""
    return _standing(model, None, False)[0] or _stored_state(model, optimizer)


def _stored_gradient(model: nn.Module) -> Finding | None:
    for name, tensor in model.named_parameters():
        if not finite(tensor.grad):
            cause = (
                "It is what an earlier backward pass left in .grad: call zero_grad() before it meets an optimizer, and look at that batch."
            )
            return _describe("gradient", name, _owner(model, name), tensor.grad, cause=cause)
    return None


def _stored_state(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Finding | None:
    for name, parameter in _optimized(model, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if not finite(value):
                return _describe("optimizer state", f"{key} of {name}", None, value)
    return None


def _optimized(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters of an optimizer. One that is not the model's is called by its place in the optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, group in enumerate(optimizer.param_groups if optimizer is not None else ()):
        for k, parameter in enumerate(group["params"]):
            yield names.get(id(parameter), f"parameter {k} of group {number}"), parameter


def _made_by(origin: Origin | None, found: Finding) -> Finding:
    """The finding about something stored, with the operation of this step that spoilt it, where that is known."""
    if origin is None:
        return found
    known = origin.finding
    return replace(found, operation=known.operation, line=known.line, place=known.place, input_range=known.input_range)


# --- the step --------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Search:
    model: nn.Module
    batch: object
    loss_fn: Callable | None
    optimizer: torch.optim.Optimizer | None
    backward: bool
    forward: Callable | None
    watch: Watch

    def run(self) -> Finding | None:
        with random_states_kept():
            found, gradients = self.a_pass()
        found = found or _stored_gradient(self.model) or _stored_state(self.model, self.optimizer)
        if found is not None or self.optimizer is None or gradients is None:
            return found
        found = self.step(gradients)
        if found is None:
            found, _ = self.a_pass()
            found = found and replace(found, after_step=True, cause=f"{found.cause} Before the step it was finite: try a lower lr.")
        return found

    def a_pass(self) -> tuple[Finding | None, list[Tensor | None] | None]:
        """Forward and backward: a finding, or the gradients of the parameters where there is a loss."""
        with torch.set_grad_enabled(self.backward), self.watch as watch:
            output = self.call()
            loss = self.loss_of(output)
            if loss is None:
                found = self.blame_output(output)
            elif not finite(loss):
                found = watch.blame(loss) or _describe("loss", self.name_of_loss(), None, loss)
            else:
                found = self.blame_buffers()
            if found is not None or loss is None or not self.backward or not loss.requires_grad:
                return found, None
            trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
            known = {id(p) for _, p in trained}
            trained += [(name, p) for name, p in _optimized(self.model, self.optimizer) if p.requires_grad and id(p) not in known]
            with watch.going_backward():
                gradients = torch.autograd.grad(loss, [p for _, p in trained], allow_unused=True)
            bad = [(name, gradient) for (name, _), gradient in zip(trained, gradients, strict=True) if not finite(gradient)]
            if bad:
                name, gradient = bad[0]
                found = watch.blame(*(gradient for _, gradient in bad)) or _describe("gradient", name, None, gradient)
                if found.kind != "gradient":
                    hidden = "The loss does not show it, because something was chosen or masked after it; backward multiplies it by 0."
                    found = replace(found, cause=f"{found.cause} {hidden}")
                return found, None
        self.trained = [p for _, p in trained]
        return None, list(gradients)

    def call(self):
        if self.forward is not None:
            return self.forward(self.batch)
        if isinstance(self.batch, dict):
            return self.model(**self.batch)
        if isinstance(self.batch, (tuple, list)):
            return self.model(*self.batch)
        return self.model(self.batch)

    def loss_of(self, output) -> Tensor | None:
        if self.loss_fn is not None:
            loss = self.loss_fn(output)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
                raise ValueError(f"loss_fn must make a scalar tensor of the model's output, and made {kind}.")
            return loss
        if isinstance(output, Tensor) and output.numel() == 1:
            return output
        if self.optimizer is not None:
            raise ValueError("A step of the optimizer needs a loss, and the model's output is no scalar: give loss_fn(output) -> scalar.")
        return None

    def name_of_loss(self) -> str:
        function = self.loss_fn or self.forward or self.model
        return getattr(function, "__name__", type(function).__name__)

    def blame_output(self, output) -> Finding | None:
        """Of an output that is no loss, -inf that was put there on purpose is a mask."""
        for leaf in tree_leaves(output):
            if not finite(leaf):
                origin = self.watch.origin(leaf)
                if leaf.isnan().any() or (leaf == math.inf).any() or origin is None or not origin.harmless:
                    return origin.finding if origin is not None else _describe("output", "", self.model, leaf)
        return None

    def blame_buffers(self) -> Finding | None:
        """Statistics that this pass has spoilt, while the loss is finite."""
        for name, tensor in self.model.named_buffers():
            origin = self.watch.origin(tensor)
            if not finite(tensor) and not (origin is not None and (origin.standing or origin.harmless)):
                return _made_by(origin, _describe("buffer", name, _owner(self.model, name), tensor))
        return None

    def step(self, gradients: list[Tensor | None]) -> Finding | None:
        """One step of the optimizer, on gradients that are all finite."""
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient
        if isinstance(self.optimizer, torch.optim.LBFGS):  # calls the model by itself, many times a step
            return None
        with self.watch as watch, torch.no_grad():
            type(self.optimizer).step(self.optimizer)  # not through the instance, where schedulers count the steps
        for kind, name, tensor in self.stepped():
            if not finite(tensor):
                return _made_by(watch.origin(tensor), _describe(kind, name, None, tensor))
        return None

    def stepped(self) -> Iterator[tuple[str, str, Tensor]]:
        for name, parameter in _optimized(self.model, self.optimizer):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield "optimizer state", f"{key} of {name}", value
        for name, parameter in _optimized(self.model, self.optimizer):
            yield "parameter after the step", name, parameter
