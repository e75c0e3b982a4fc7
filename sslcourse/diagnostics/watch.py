"""What `find_nonfinite` runs a step in: a watch on every operation, and a model that is afterwards as it was."""

import copy
import linecache
import math
import os
import random
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TORCH = str(Path(torch.__file__).parent) + os.sep
SEARCH = str(Path(__file__).with_name("nonfinite.py"))  # calls the model: beyond it, nobody's line says where in the model
UNINITIALISED = {"aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.new_empty_strided", "aten.resize_"}
OVERWRITING = {"aten.copy_", "aten.fill_", "aten.zero_", "aten.normal_", "aten.uniform_", "aten.bernoulli_", "aten.random_"}
DIVIDING = {"aten.div", "aten.div_", "aten.reciprocal", "aten.rsqrt"}
SOFTMAX = ("softmax", "logsumexp", "attention")  # where -inf is at home


def finite(value) -> bool:
    """Are all numbers of this tensor finite? True for whatever is not a floating-point or complex tensor."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()) or value.is_meta:
        return True
    with torch.no_grad():
        value = plain(value)
        if not value.numel() or bool(value.sum().isfinite()):  # NaN and inf stay in a sum; 20 times as fast as isfinite on a CPU
            return True
        return bool(value.isfinite().all())  # the sum alone may have overflowed


def plain(value: Tensor) -> Tensor:
    """The numbers of a tensor in a form that can be summed and compared: of sparse, nested and 8-bit ones too."""
    value = value.detach()
    if value.is_nested:
        return torch.nested.to_padded_tensor(value, 0.0)
    if value.is_sparse:
        return value._values()
    return value.float() if value.element_size() == 1 else value


@dataclass(frozen=True)
class Origin:
    """Where numbers that are not finite began."""

    finding: object
    harmless: bool = False  # an infinity that was put there on purpose, such as masked_fill's
    standing: bool = False  # in a buffer or in the batch, before the step
    number: int = -1  # counts origins in the order of time


@dataclass(frozen=True)
class _Source:
    """Where in the model and in the code an operation was called."""

    module: nn.Module | None
    after: str | None
    code: tuple[str, int, str] | None

    def line(self) -> str | None:
        if self.code is None:
            return None
        file, number, function = self.code
        text = linecache.getline(file, number).strip()
        name = "a notebook's cell" if "ipykernel" in file or "ipython-input" in file else Path(file).name
        return f"{name}, line {number}, in {function}" + (f": {text}" if text else "")


class Watch(TorchDispatchMode):
    """While it is entered, follows every NaN and infinity to its origin.

    describe(kind, name, module, tensor, operation, inputs, **more) makes the finding about an operation. Tensors that are not finite
    are kept alive, so that none of their addresses is used a second time.
    """

    def __init__(self, model: nn.Module, describe: Callable):
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]  # which take no hooks
        self.describe = describe
        self.origins: dict[int, Origin] = {}  # by the address of the storage
        self.swallowed: dict[int, Origin] = {}  # the same of numbers divided by an infinity
        self.kept: list = []
        self.born = 0
        self.stack: list[nn.Module] = []  # modules whose forward is running
        self.last: dict[int, str] = {}  # of a running module: the child that was last done
        self.sources: dict[int, _Source] = {}  # by autograd's sequence number, which the backward node has too
        self.numbers: list[int] = []
        self.backward = False
        self.handles: list = []

    # modules

    def __enter__(self):
        self.stack.clear()
        for module in self.modules:
            self.handles.append(module.register_forward_pre_hook(self._enters))
            self.handles.append(module.register_forward_hook(self._leaves, always_call=True))
        return super().__enter__()

    def __exit__(self, *error):
        while self.handles:
            self.handles.pop().remove()
        return super().__exit__(*error)

    def _enters(self, module: nn.Module, inputs) -> None:
        self.stack.append(module)
        self.last.pop(id(module), None)

    def _leaves(self, module: nn.Module, inputs, output) -> None:
        while self.stack and self.stack.pop() is not module:
            pass
        if self.stack:
            self.last[id(self.stack[-1])] = self.names[id(module)]

    def _source(self) -> _Source:
        module = self.stack[-1] if self.stack else None
        after = None
        if module is not None and any(True for _ in module.children()):
            last = self.last.get(id(module))
            after = f"between its children, after {last}" if last else "before the first of its children"
        frame = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename.startswith((TORCH, "<frozen", "<string", "<eval_with_key")):
            frame = frame.f_back
        if frame is None or frame.f_code.co_filename == SEARCH:
            return _Source(module, after, None)
        return _Source(module, after, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))

    @contextmanager
    def going_backward(self) -> Iterator[None]:
        self.numbers = sorted(self.sources)
        self.backward = True
        try:
            yield
        finally:
            self.backward = False
            self.sources.clear()

    # operations

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        node = torch._C._current_autograd_node()
        source = None
        if node is None and not self.backward:
            source = self._source()
            self.sources.setdefault(torch.autograd._get_sequence_nr() - 1, source)
        operation = str(function.overloadpacket)
        written = _written(function, args, kwargs)
        inputs = []
        for tensor in _tensors((args, kwargs)):
            overwritten = any(tensor is other for other in written)
            if not (overwritten and operation in OVERWRITING):
                inputs.append((tensor.detach().clone() if overwritten else tensor, _address(tensor)))
        try:
            made = function(*args, **kwargs)
        except Exception as error:
            module = self.stack[-1] if self.stack else None
            place = f"{self.names[id(module)] or 'the model itself'} ({type(module).__name__})" if module is not None else "no module"
            error.add_note(f"find_nonfinite: raised by {operation}, in {place}.")
            raise
        if operation not in UNINITIALISED:
            bad = [tensor for tensor in [*_tensors(made), *written] if not finite(tensor)]
            if not bad and operation in DIVIDING:
                self._swallow(made, inputs)
            if bad:
                origin = self._origin(bad[0], operation, inputs, (args, kwargs), node, source)
                for tensor in bad:
                    self.note(tensor, origin)
        return made

    def _origin(self, made: Tensor, operation: str, inputs: list, arguments, node, source: _Source | None) -> Origin:
        bad = [(tensor, address) for tensor, address in inputs if not finite(tensor)]
        nan_is_new = _has_nan(made) and not any(_has_nan(tensor) for tensor, _ in bad)
        if bad:
            known = [self.origins[address] for _, address in bad if address in self.origins]
            origin = min(known, key=lambda origin: (origin.harmless, origin.number), default=None)
            if origin is not None and not (origin.harmless and nan_is_new):
                return origin
            if origin is not None and origin.standing and not any(word in operation for word in SOFTMAX):
                return origin  # -inf in the data, and no mask
            harmless = origin is None and not nan_is_new and not any(_has_nan(tensor) for tensor, _ in bad)  # a constant tensor
        else:
            scalars = [torch.tensor(leaf) for leaf in tree_leaves(arguments) if isinstance(leaf, float) and not math.isfinite(leaf)]
            inputs = [*inputs, *((scalar, None) for scalar in scalars)]
            harmless = bool(scalars) and not _has_nan(made)
            swallowed = [self.swallowed[address] for _, address in inputs if address in self.swallowed]
            if swallowed:
                return swallowed[0]
        kind = "output"
        if node is not None or self.backward:
            kind = "gradient"
            operation = f"{node.name()} ({operation})" if node is not None else operation
            source = self._source_of(node)
        module = source.module if source is not None else None
        if module is None and kind == "output":
            kind = "loss"
        name = self.names[id(module)] if module is not None else (source.code[2] if source is not None and source.code else "")
        more = {"line": source.line(), "place": source.after} if source is not None else {}
        finding = self.describe(kind, name, module, made, operation, [tensor for tensor, _ in inputs], **more)
        self.born += 1
        return Origin(finding, harmless, number=self.born)

    def _swallow(self, made, inputs: list) -> None:
        """x/inf is 0 and looks healthy; should the 0 then make -inf, as a logarithm does, the first infinity is to blame."""
        for tensor, address in inputs:
            origin = self.origins.get(address)
            if origin is not None and not origin.harmless and not finite(tensor):
                for result in _tensors(made):
                    self.swallowed[_address(result)] = origin
                    self.kept.append(result.untyped_storage())

    def _source_of(self, node) -> _Source | None:
        """Where the forward operation of a node of the backward graph was called."""
        if node is None:
            return None
        place = bisect_right(self.numbers, node._sequence_nr())
        return self.sources.get(self.numbers[place - 1]) if 0 < place and node._sequence_nr() < 2**62 else None

    # origins

    def note(self, tensor: Tensor, origin: Origin) -> None:
        address = _address(tensor)
        if address is not None:
            self.origins[address] = origin
            self.kept.append(tensor.untyped_storage())

    def origin(self, tensor: Tensor) -> Origin | None:
        return self.origins.get(_address(tensor))

    def blame(self, *tensors: Tensor):
        """The finding about the earliest origin of tensors that are not finite; None where none is known."""
        known = [origin for origin in map(self.origin, tensors) if origin is not None]
        return min(known, key=lambda origin: (origin.harmless, origin.number)).finding if known else None


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _has_nan(tensor: Tensor) -> bool:
    return bool(plain(tensor).isnan().any())


def _address(tensor: Tensor) -> int | None:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None


def _written(function, args, kwargs) -> list[Tensor]:
    """The arguments that an operation changes."""
    if not function._schema.is_mutable:
        return []
    changed = []
    for position, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed.append(args[position] if position < len(args) else kwargs.get(argument.name))
    return _tensors(changed)


# --- as it was -------------------------------------------------------------------------------------------------------------------------


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Afterwards the random numbers of torch, NumPy and Python go on as if none had been drawn inside."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def as_found(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Afterwards parameters, buffers, gradients, modes, attributes, the optimizer and random states are as they were, bit for bit."""
    registers = ("_parameters", "_buffers", "_modules")
    modules = [vars(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]  # no attributes to speak of
    attributes = [(own, dict(own), [(own[name], dict(own[name])) for name in registers if name in own]) for own in modules]
    groups = optimizer.param_groups if optimizer is not None else []
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers(), *(p for group in groups for p in group["params"])]}
    saved = [(tensor, tensor.detach().clone(), tensor.grad if tensor.is_leaf else None) for tensor in tensors.values()]
    saved_groups = [(group, dict(group)) for group in groups]
    state = {}
    for parameter, entries in (optimizer.state if optimizer is not None else {}).items():
        state[parameter] = (entries, {key: (value, copy.deepcopy(value)) for key, value in entries.items()})
    versions = ExitStack()  # a graph that someone still holds stays valid
    for tensor in tensors.values():
        versions.enter_context(torch.autograd._unsafe_preserve_version_counter(tensor))
    try:
        with random_states_kept():
            yield
    finally:
        for current, before, registered in attributes:
            for place, content in [(current, before), *registered]:
                place.clear()
                place.update(content)
        for tensor, before, gradient in saved:
            _put_back(tensor, before)
            if tensor.is_leaf:
                tensor.grad = gradient
        for group, before in saved_groups:
            group.clear()
            group.update(before)
        if optimizer is not None:
            optimizer.state.clear()
            for parameter, (entries, before) in state.items():
                entries.clear()
                for key, (value, content) in before.items():
                    if isinstance(value, Tensor):
                        _put_back(value, content)
                    entries[key] = value if isinstance(value, Tensor) else content
                optimizer.state[parameter] = entries
        versions.close()


def _put_back(tensor: Tensor, before: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(before)
