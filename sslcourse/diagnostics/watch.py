"""A watch on every operation of a training step, which follows each NaN and each infinity to its origin."""

import linecache
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslcourse.diagnostics.findings import Finding, describe, finite, plain

TORCH = str(Path(torch.__file__).parent) + os.sep
SEARCH = str(Path(__file__).with_name("search.py"))  # calls the model: beyond it, nobody's line says where in the model
DIVIDING = {"aten.div", "aten.div_", "aten.reciprocal", "aten.rsqrt"}
OVERWRITING = {"aten.copy_", "aten.fill_", "aten.zero_", "aten.normal_", "aten.uniform_", "aten.bernoulli_", "aten.random_"}


class Origin(NamedTuple):
    """Where numbers that are not finite began. Of several, the least is to blame: harmful before harmless, early before late."""

    harmless: bool  # an infinity that was put there on purpose, such as masked_fill's
    number: int  # counts origins in the order of time
    finding: Finding
    standing: bool = False  # in a buffer or in the batch, before the step


class Source(NamedTuple):
    """Where in the model and in the code an operation was called."""

    module: nn.Module | None = None
    place: str | None = None  # in a container: after which of its children
    file: str = ""
    number: int = 0
    function: str = ""

    def line(self) -> str | None:
        name = "a notebook's cell" if "ipykernel" in self.file or "ipython-input" in self.file else Path(self.file).name
        text = linecache.getline(self.file, self.number).strip()
        return f"{name}, line {self.number}, in {self.function}" + (f": {text}" if text else "") if self.file else None


class Watch(TorchDispatchMode):
    """While it is entered, every NaN and infinity inherits the origin of what it is computed from, or is an origin itself."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.origins: dict[int, Origin] = {}  # by the address of the storage
        self.swallowed: dict[int, Origin] = {}  # of numbers divided by an infinity: 0 looks healthy, until a logarithm makes -inf of it
        self.kept: list = []  # what is not finite stays alive, so that none of its addresses is used a second time
        self.running: list[list] = []  # modules whose forward is running, each with the name of the child that was last done
        self.sources: dict[int, Source] = {}  # by autograd's sequence number, which the backward node has too
        self.backward = False  # set before a backward pass, in which the source of an operation is that of the forward operation

    def __enter__(self):
        self.running.clear()
        self.hooks = register_module_forward_pre_hook(self._enters), register_module_forward_hook(self._leaves, always_call=True)
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def _enters(self, module: nn.Module, inputs) -> None:
        if id(module) in self.names:
            self.running.append([module, None])

    def _leaves(self, module: nn.Module, inputs, output) -> None:
        if id(module) in self.names:
            while self.running and self.running.pop()[0] is not module:
                pass
            if self.running:
                self.running[-1][1] = self.names[id(module)]

    def _source(self) -> Source:
        (module, child), place = self.running[-1] if self.running else (None, None), None
        if module is not None and list(module.children()):
            place = f"between its children, after {child}" if child else "before the first of its children"
        frame = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename.startswith((TORCH, "<frozen", "<string", "<eval_with_key")):
            frame = frame.f_back
        if frame is None or frame.f_code.co_filename == SEARCH:
            return Source(module, place)
        return Source(module, place, frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        node, source = torch._C._current_autograd_node(), None
        if node is None and not self.backward:
            source = self._source()
            self.sources.setdefault(torch.autograd._get_sequence_nr() - 1, source)
        operation, schema = str(function.overloadpacket), function._schema.arguments
        given = {**dict(zip([argument.name for argument in schema], args, strict=False)), **(kwargs or {})}
        written = _tensors([given.get(a.name) for a in schema if a.alias_info is not None and a.alias_info.is_write])
        inputs = []  # with their addresses; of those that are changed, what they were
        for tensor in _tensors(given):
            if not any(tensor is other for other in written):
                inputs.append((tensor, _address(tensor)))
            elif operation not in OVERWRITING:
                inputs.append((tensor.detach().clone(), _address(tensor)))
        made = function(*args, **(kwargs or {}))
        uninitialised = "empty" in operation or "resize" in operation
        if bad := [tensor for tensor in [*_tensors(made), *written] if not uninitialised and not finite(tensor)]:
            origin = self._origin(bad[0], operation, inputs, given, node, source)
            for tensor in bad:
                self.keep(tensor, origin, self.origins)
        elif operation in DIVIDING:
            known = [self.origins[address] for tensor, address in inputs if address in self.origins and not finite(tensor)]
            if known and not min(known).harmless:
                self.keep(made, min(known), self.swallowed)
        return made

    def _origin(self, made: Tensor, operation: str, inputs: list, given: dict, node, source: Source | None) -> Origin:
        """The origin of what an operation made: one of its inputs', or, where those were finite or harmless, a new one."""
        bad = [(tensor, address) for tensor, address in inputs if not finite(tensor)]
        makes_nan, had_nan = _has_nan(made), any(_has_nan(tensor) for tensor, _ in bad)
        origins = self.origins if bad else self.swallowed
        if origin := min((origins[address] for _, address in bad or inputs if address in origins), default=None):
            mask = not origin.standing or any(word in operation for word in ("softmax", "logsumexp", "attention"))  # else -inf in the data
            if not (origin.harmless and mask and makes_nan and not had_nan):
                return origin
        scalars = [torch.tensor(x) for x in tree_leaves(given) if isinstance(x, float) and not math.isfinite(x) and not bad]
        harmless = bool(bad or scalars) and not makes_nan and not had_nan  # a constant
        if source is not None:
            kind = "output" if source.module is not None else "loss"
        else:
            kind, source = "gradient", Source()
            if node is not None:  # it came from the last forward operation up to its number
                operation = f"{node.name()} ({operation})"
                numbers = [number for number in self.sources if number <= node._sequence_nr() < 2**62]
                source = self.sources[max(numbers)] if numbers else source
        name, given = self.names.get(id(source.module), source.function), [*(tensor for tensor, _ in inputs), *scalars]
        finding = describe(kind, name, source.module, made, operation, given, line=source.line(), place=source.place)
        return Origin(harmless, len(self.kept), finding)

    def keep(self, tensor: Tensor, origin: Origin, origins: dict[int, Origin]) -> None:
        if (address := _address(tensor)) is not None:
            origins[address] = origin
            self.kept.append(tensor.untyped_storage())

    def origin(self, *tensors: Tensor | None) -> Origin | None:
        """The origin that is to blame for these tensors; None where none is known."""
        known = (self.origins.get(_address(tensor)) for tensor in tensors if tensor is not None)
        return min(filter(None, known), default=None)


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _has_nan(tensor: Tensor) -> bool:
    return bool(plain(tensor).isnan().any())


def _address(tensor: Tensor) -> int | None:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None
