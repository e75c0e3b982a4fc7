"""A pretend accelerator, which shows on a CPU what would fail, or wait, on CUDA or MPS.

    with Accelerator() as accelerator:
        model.to(DEVICE)
        model(x.to(DEVICE)).sum().backward()     # autograd and optimizers work
        loss + torch.ones(3)                     # RuntimeError: two devices
        loss.numpy()                             # TypeError
    accelerator.waits                            # where the program waited for the device, and how often

A tensor of this device holds one of the CPU; a dispatch mode computes with what the tensors hold. As on CUDA, tensors of two devices are
refused (but a CPU scalar is welcome), and these wait: .item(), .tolist(), bool(), .cpu(), a copy in either direction unless non_blocking
is said, nonzero, unique and boolean indexing. With float64=False it refuses float64, as MPS does.
Not covered: autocast, which has no kernels here, so that all is float32; random numbers of its own; streams, memory and speed.
"""

import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "pretend"
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}
_make_tensor = torch.tensor


class Backend(backend_registration._DummyBackendModule):
    """What torch asks of the module behind a device."""

    def is_available(self):
        return Accelerator.active is not None

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def manual_seed_all(self, seed):
        pass  # the CPU's random numbers are drawn

    def _is_in_bad_fork(self):
        return False

    def get_amp_supported_dtype(self):
        return []  # what asks for no autocast is heard, at least

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
DEVICE = torch.device(NAME, 0)


class OnDevice(torch.Tensor):
    """A tensor of the device; `held` is the CPU's."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "layout": held.layout}
        tensor = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **layout)
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(Accelerator.active, function, args, kwargs or {})

    def __repr__(self):
        return f"OnDevice({self.held!r})"

    def __deepcopy__(self, memo):
        copied = OnDevice(self.held.detach().clone()).requires_grad_(self.requires_grad)
        copied._is_param = getattr(self, "_is_param", False)  # as nn.Parameter asks a subclass
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol):
        return torch.Tensor.cpu, (self.detach().cpu(),)

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    def data_ptr(self):
        return self.held.data_ptr()


def _compute(accelerator, function, args, kwargs):
    name, device = function._schema.name, kwargs.get("device")
    device = None if device is None else torch.device(device)
    tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    ours, others = [t for t in tensors if isinstance(t, OnDevice)], [t for t in tensors if not isinstance(t, OnDevice)]
    if ours and others and function not in COPIES:
        # an index may lie on the CPU, and so may a scalar; CUDA's own index never suits a tensor of the CPU
        refused = not isinstance(args[0], OnDevice) if name in INDEXING else any(t.dim() for t in others)
        if refused:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! ({name})")
    if function is aten.copy_.default:
        crossing = bool(ours and others)
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    else:
        crossing = function is aten._to_copy.default and device is not None and (device.type == NAME) != bool(ours)
        blocking = not kwargs.get("non_blocking", False)
    by_mask = name in INDEXING and any(t.dtype == torch.bool for t in tensors[1:])
    if accelerator is not None and (crossing and blocking or ours and (name in WAITING or by_mask)):
        accelerator.waits[_place()] += 1
    held_args, held_kwargs = pytree.tree_map_only(OnDevice, lambda t: t.held, (args, kwargs))
    if device is not None:
        held_kwargs["device"] = torch.device("cpu")
    out = function(*held_args, **held_kwargs)
    if not (device.type == NAME if device is not None else ours):
        return out
    out = pytree.tree_map_only(torch.Tensor, lambda t: t if isinstance(t, OnDevice) else OnDevice(t), out)
    if accelerator is not None and not accelerator.float64:
        if any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in pytree.tree_leaves(out)):
            raise TypeError(f"Cannot convert a tensor to float64 on {DEVICE}, which has no float64, as MPS ({name}).")
    return return_and_correct_aliasing(function, args, kwargs, out) if ours else out


def _place() -> str:
    """The line, outside torch, that is being run."""
    frames = [frame for frame in traceback.extract_stack() if "torch" not in Path(frame.filename).parts and frame.filename != __file__]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else "a thread of autograd"


def _tensor(data, *args, device=None, **kwargs):
    """torch.tensor, which makes its tensor before a dispatch mode sees it."""
    made = _make_tensor(data, *args, **kwargs)
    return made if device is None else made.to(device)


class Accelerator(TorchDispatchMode):
    """While it is entered there is the device `DEVICE`. waits: place in the code -> how often it waited. float64: whether there is any."""

    active = None

    def __init__(self, float64: bool = True):
        super().__init__()
        self.float64, self.waits = float64, Counter()

    def __enter__(self):
        Accelerator.active, torch.tensor = self, _tensor
        return super().__enter__()

    def __exit__(self, *error):
        Accelerator.active, torch.tensor = None, _make_tensor
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME
        if there or any(isinstance(value, OnDevice) for value in pytree.tree_leaves((args, kwargs))):
            return _compute(self, function, args, kwargs)
        return function(*args, **kwargs)
