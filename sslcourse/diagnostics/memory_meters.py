"""What a computation needs in memory: the largest tensor it makes, and what autograd keeps for backward passes."""

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """While it is entered, notes the size of the largest tensor that any operation makes, backward passes included."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())  # a view that is only broadcast makes nothing
        return made


class SavedForBackward(torch.autograd.graph.saved_tensors_hooks):
    """While it is entered, counts the bytes that autograd keeps for backward passes, each block of memory once.

    A block counts for as long as anything holds the graph that needs it. What the parameters of `module` occupy is left out.
    """

    def __init__(self, module: torch.nn.Module | None = None):
        super().__init__(self._pack, lambda handle: handle)
        self._left_out = {p.untyped_storage().data_ptr() for p in (module.parameters() if module is not None else ())}
        self._alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def __enter__(self) -> "SavedForBackward":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        handle = tensor.detach()  # of its own, so that it dies with the graph
        self._alive.add(handle)
        return handle

    @property
    def bytes(self) -> int:
        sizes = {block.data_ptr(): block.nbytes() for block in (handle.untyped_storage() for handle in self._alive)}
        return sum(size for address, size in sizes.items() if address not in self._left_out)


def graph_size(tensor: Tensor) -> int:
    """How many operations are in the graph behind a tensor; 0 for one without a graph."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(seen)
