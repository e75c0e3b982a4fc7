"""The first thing that is not finite: `find_nonfinite` repeats a forward and a backward pass of any PyTorch module and names the culprit.

Each NaN and infinity has an origin: the operation that made it from finite numbers, or NaN out of a harmless infinity; what is computed
from it inherits the origin. Only when the end is bad (loss, gradients, buffers) is it reported, so -inf that masks a softmax is no finding.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map_only

from sslcourse.devices import random_states_kept
from sslcourse.diagnostics.findings import STANDING, Finding, describe, finite
from sslcourse.diagnostics.watch import Origin, Watch


def find_nonfinite(model: nn.Module, batch=None, *, forward: Callable | None = None, optimizer: Optimizer | None = None) -> Finding | None:
    """The first thing that is not finite, in causal order: input, parameter, buffer, optimizer state, output, loss, gradient; or None.

    >>> print(find_nonfinite(method, images))  # a method of this course: its forward is the loss
    >>> print(find_nonfinite(model, x, forward=lambda x: F.cross_entropy(model(x), y)))

    model: any PyTorch module, in the mode (train or eval) in which it fails. batch: a tensor for model(batch), a tuple or list for
    model(*batch), a dictionary for model(**batch); None looks only at what is stored. forward(batch) takes the place of calling the model:
    for a loss outside of it, or autocast. Without a scalar only the forward pass is looked at. optimizer: its state counts as stored, too.

    It names the innermost module whose operation made the first NaN or infinity, that operation, and the line of code; outside of every
    module the kind is "loss". Inf in a buffer that holds no statistics, and -inf in the batch, may be a mask: found only if the end is bad.
    The model, the batch and all random states are left as they were. It takes about two training steps, and one more copy of the weights.
    """
    runs = batch is not None or forward is not None
    with as_found(model), torch.inference_mode(False):
        batch = tree_map_only(Tensor, lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), batch)
        watch = Watch(model)
        for kind, name, module, tensor in _stored(model, batch, optimizer):
            if not finite(tensor):
                found, infinite = describe(kind, name, module, tensor), bool((tensor == math.inf).any())
                may_be_mask = kind in ("input", "buffer") and not found.nan and found.cause != STANDING["statistics"]
                if not may_be_mask or (infinite and (kind == "input" or not runs)):
                    return found
                watch.keep(tensor, Origin(not infinite, len(watch.kept), found, standing=True), watch.origins)
        return _repeat(model, batch, forward, watch) if runs else None


def _stored(model: nn.Module, batch, optimizer: Optimizer | None) -> Iterator[tuple[str, str, nn.Module | None, Tensor]]:
    """Kind, name, module and tensor of whatever is there before the passes."""
    for path, leaf in tree_flatten_with_path(batch)[0]:
        yield "input", "batch" + keystr(path), None, leaf
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            yield kind, name, _owner(model, name), tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, entries in optimizer.state.items() if optimizer is not None else ():
        for key, value in entries.items():
            yield "optimizer state", f"{key} of {names.get(parameter, 'a parameter that is not in the model')}", None, value


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _repeat(model: nn.Module, batch, forward: Callable | None, watch: Watch) -> Finding | None:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        with watch:
            if forward is not None:
                output = forward(batch)
            elif isinstance(batch, dict):
                output = model(**batch)
            else:
                output = model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
        is_loss = isinstance(output, Tensor) and output.numel() == 1
        for leaf in (leaf for leaf in tree_leaves(output) if not finite(leaf)):
            origin = watch.origin(leaf)
            filled_in = origin is not None and origin.harmless and not leaf.isnan().any() and not (leaf == math.inf).any()
            if is_loss or not filled_in:  # of an output that is no loss, -inf that was put there on purpose is a mask
                return origin.finding if origin is not None else describe("output", "", model, leaf)
        if not is_loss:
            return None
        for name, buffer in model.named_buffers():  # statistics that this pass has spoilt
            origin = watch.origin(buffer)
            if not finite(buffer) and (origin is None or not (origin.standing or origin.harmless)):
                return describe("buffer", name, _owner(model, name), buffer)
        gradients = [None] * len(trained)
        if output.requires_grad and trained:
            watch.backward = True
            with watch:
                gradients = torch.autograd.grad(output, list(trained.values()), allow_unused=True)
    if bad := {name: gradient for name, gradient in zip(trained, gradients, strict=True) if not finite(gradient)}:
        origin = watch.origin(*bad.values())
        found = origin.finding if origin is not None else describe("gradient", next(iter(bad)), None, next(iter(bad.values())))
        if found.kind == "gradient":
            return found
        return replace(found, cause=f"{found.cause} The loss does not show it: something was masked after it, and backward has 0·inf.")
    for name, parameter in model.named_parameters():
        if not finite(parameter.grad):
            return replace(describe("gradient", name, _owner(model, name), parameter.grad), cause=STANDING["stored gradient"])
    return None


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Afterwards parameters, buffers, gradients, modes, attributes and random states are as they were, bit for bit."""
    own = [vars(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]  # no attributes to speak of
    own += [attributes[name] for attributes in own for name in ("_parameters", "_buffers", "_modules") if name in attributes]
    own = [(dictionary, dict(dictionary)) for dictionary in own]
    tensors = [*model.parameters(), *model.buffers()]
    tensors = [(tensor, tensor.detach().clone(), tensor.grad if tensor.is_leaf else None) for tensor in tensors]
    with ExitStack() as versions, random_states_kept():
        for tensor, _, _ in tensors:  # a graph that someone still holds stays valid
            versions.enter_context(torch.autograd._unsafe_preserve_version_counter(tensor))
        try:
            yield
        finally:
            for dictionary, before in own:
                dictionary.clear()
                dictionary.update(before)
            for tensor, before, gradient in tensors:
                with torch.no_grad():
                    tensor.copy_(before)
                if tensor.is_leaf:
                    tensor.grad = gradient
