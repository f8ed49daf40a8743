"""
CUDA devices that are only pretended, to test on which device each tensor would be.

Everything is computed on the CPU, with true numbers. Each storage has a tag, "cpu" or "cuda:N",
that follows it through autograd, vmap, optimizers and sparse matrices. What CUDA refuses is
refused: tensors of two devices in one operation, ``.numpy()`` on a device, a generator of another
device. What CUDA does silently is recorded, with the line of the package: kernels, copies, and
waits of the host for the device.

Not covered: the kernels themselves, their memory, the operations that autocast chooses, pinned
memory, and threads other than the one that entered.
"""

# SPDX-License-Identifier: BSD-3-Clause

import contextlib
import os
import sys
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten, Tensor = torch.ops.aten, torch.Tensor
# Their output has a size, or is a number, that the host has to know.
_WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2,
    aten.repeat_interleave, aten.bincount,
}  # fmt: skip
_INDEXING = {
    aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index,
    aten._unsafe_index_put,
}  # fmt: skip
_COPIES = {aten.copy_, aten.copy, aten._copy_from}
_NO_ARITHMETIC = {
    aten.detach,
    aten.alias,
    aten.is_same_size,
    aten._has_compatible_shallow_copy_type,
}
_PROCESS = os.getpid()
_FROM_DATA = ("tensor", "as_tensor", "asarray", "sparse_csr_tensor")


def _is_gpu(device):
    return device is not None and str(device).startswith("cuda")


def _tensors(value):
    """List the tensors in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [each for part in value for each in _tensors(part)]


class PretendedCuda:
    """Where tensors are, and what was recorded: `events` counts (kind, line, operation)."""

    def __init__(self, package):
        self.package, self._tags = package, {}
        self.current = 0
        self.touched = set()  # devices
        self.reset()

    def reset(self):
        """Forget what was recorded, not where tensors are."""
        self.events, self.kernels = Counter(), Counter()

    @property
    def n_kernels(self):
        return self.kernels.total()

    def waits(self):
        """Return the lines at which the host waits for the device."""
        return sorted({line for kind, line, _ in self.events if "wait" in kind})

    def _storage(self, tensor):
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        if tensor.layout is not torch.strided:
            tensor = tensor.values()
        return tensor.untyped_storage()

    def get(self, tensor):
        """Return the device of a tensor; None for temporary ones that torch itself has made."""
        if tensor.is_meta:
            return "meta"
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            return self._tags.get(self._storage(tensor)._cdata, (None, None))[1]

    def put(self, tensor, device):
        if tensor.is_meta or device is None:
            return
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            storage = self._storage(tensor)
            # The weak reference keeps the address from being used again.
            self._tags[storage._cdata] = StorageWeakRef(storage), str(device)
        if len(self._tags) > 20_000:
            self._tags = {k: v for k, v in self._tags.items() if not v[0].expired()}

    def name(self, device):
        """Return the full name of a device."""
        device = torch.device(device)
        if device.type != "cuda":
            return device.type
        index = self.current if device.index is None else device.index
        self.touched.add(index)
        return f"cuda:{index}"

    def note(self, kind, operation):
        self.events[kind, self._line(), operation] += 1

    def refuse(self, text, kind=RuntimeError):
        raise kind(f"{text} [pretended CUDA, at {self._line()}]")

    def _line(self):
        """Find the innermost line of the package."""
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if f"/{self.package}/" in file:
                return f"{file.rpartition(f'/{self.package}/')[2]}:{frame.f_lineno}"
            frame = frame.f_back
        return "elsewhere"


class _Functions(TorchFunctionMode):
    """What Python sees: devices, transfers, numpy."""

    def __init__(self, world):
        self.world = world
        super().__init__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, world = dict(kwargs or {}), self.world
        tensors = _tensors((args, kwargs))
        for each in tensors:
            if world.get(each) is None:
                world.put(each, "cpu")
        if function == Tensor.device.__get__:
            return torch.device(world.get(args[0]))
        if function == Tensor.is_cuda.__get__:
            return _is_gpu(world.get(args[0]))
        if function in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._move(function, *args, **kwargs)
        if function is torch.nn.functional.scaled_dot_product_attention:
            # Unlike those of CUDA, the fused kernel of the CPU has no batching rule.
            with sdpa_kernel(SDPBackend.MATH):
                return function(*args, **kwargs)
        if tensors and _is_gpu(world.get(tensors[0])):
            self._check_host(function, args)
        if getattr(function, "__name__", "") == "_parse_to":
            return function(*args, **kwargs)
        return self._create(function, tensors, args, kwargs)

    def _check_host(self, function, args):
        if function in (Tensor.numpy, Tensor.__array__):
            text = "can't convert cuda device type tensor to numpy. Use Tensor.cpu()"
            self.world.refuse(text, TypeError)
        if function is Tensor.tolist:
            self.world.note("wait (D2H)", "tolist")
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            for each in args[1] if isinstance(args[1], tuple) else (args[1],):
                on_host = isinstance(each, Tensor) and each.ndim and self.world.get(each) == "cpu"
                if on_host or isinstance(each, list | np.ndarray):
                    self.world.note("index from host, waits", function.__name__)

    def _create(self, function, tensors, args, kwargs):
        """Call a function that may make a tensor on a device."""
        world, device = self.world, kwargs.get("device")
        if device is not None:
            kwargs["device"] = "cpu" if _is_gpu(device) else device
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != torch.device(device or "cpu").type:
            world.refuse(
                f"Expected a {device!r} device type for generator, found {generator.device}"
            )
        before = {id(each) for each in tensors}
        result = function(*args, **kwargs)
        if device is None and tensors:
            return result
        for each in _tensors(result):
            if _is_gpu(device):
                if id(each) in before:
                    each = result = each.clone()  # as_tensor of what is here already
                on_device = tensors and all(_is_gpu(world.get(t)) for t in tensors)
                if function.__name__ in _FROM_DATA and not on_device:
                    world.note("copy H2D, waits", function.__name__)
            world.put(each, world.name(device or "cpu"))
        return result

    def _move(self, function, tensor, *args, **kwargs):
        world = self.world
        is_pinned = getattr(tensor, "is_pretended_pinned", False)
        blocks = not (kwargs.get("non_blocking", False) and is_pinned)
        before = world.get(tensor)
        if function is Tensor.cpu:
            args, kwargs = ("cpu",), {}
        elif function is Tensor.cuda:
            args, kwargs = ("cuda",), {}
        if args and isinstance(args[0], Tensor):
            args = (world.get(args[0]), args[0].dtype)
        copy, memory_format = kwargs.pop("copy", False), kwargs.pop("memory_format", None)
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        device, dtype, _, parsed = torch._C._nn._parse_to(*args, **kwargs)
        memory_format = memory_format or parsed
        after = before if device is None else world.name(device)
        if "meta" in (after, before):
            return function(tensor, device=device, dtype=dtype)
        options = {} if memory_format is None else {"memory_format": memory_format}
        moved = tensor.to(dtype or tensor.dtype, copy=copy, **options)
        if after != before:
            if moved.data_ptr() == tensor.data_ptr():
                moved = moved.clone()
            way = "H2D" if _is_gpu(after) else "D2H"
            world.note(f"copy {way}{', waits' if blocks or way == 'D2H' else ''}", "to")
            world.put(moved, after)
        return moved


class _Operations(TorchDispatchMode):
    """What kernels see: arguments of one device, and a device for what comes out."""

    def __init__(self, world):
        super().__init__()
        self.world = world

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, world, packet = kwargs or {}, self.world, function.overloadpacket
        tensors = _tensors((args, kwargs))
        tags = [world.get(each) for each in tensors]
        on_gpu = [tag for tag in tags if _is_gpu(tag)]
        computes = on_gpu and packet not in _NO_ARITHMETIC
        if computes:
            self._check(function, packet, args, tensors, tags)
        result = function(*args, **kwargs)
        if "meta" in tags:
            return result
        if computes and not function.is_view:
            world.kernels[str(packet)] += 1
        if packet in _COPIES:
            return result
        known = on_gpu[:1] or [tag for tag in tags if tag == "cpu"][:1]
        for each in _tensors(result) if known else ():
            world.put(each, known[0])
        return result

    def _check(self, function, packet, args, tensors, tags):
        world = self.world
        if packet in _COPIES:
            (to, source), blocks = tags[:2], not (len(args) > 2 and args[2])
            if None not in (source, to) and to != source:
                way = "H2D" if _is_gpu(to) else "D2H"
                world.note(f"copy {way}{', waits' if blocks else ''}", "copy_")
            return
        if packet in _INDEXING:
            if any(each.dtype in (torch.bool, torch.uint8) for each in args[1] if each is not None):
                world.note("wait (mask)", str(packet))
            if not _is_gpu(tags[0]):
                world.refuse("indices should be on the same device as the indexed tensor (cpu)")
            return
        if packet in _WAITS:
            world.note("wait (D2H)", str(packet))
        # Numbers of the CPU may go to a GPU, not the other way round.
        strict = packet in (aten.stack, aten.cat)
        on_cpu = [
            t for t, tag in zip(tensors, tags, strict=True) if tag == "cpu" and (t.ndim or strict)
        ]
        devices = {tag for tag in tags if _is_gpu(tag)}
        if on_cpu or len(devices) > 1:
            found = " and ".join(sorted(devices | ({"cpu"} if on_cpu else set())))
            world.refuse(
                f"{function}: expected all tensors to be on the same device, found {found}"
            )


def _pin_memory(tensor):
    pinned = tensor.clone()
    pinned.is_pretended_pinned = True
    return pinned


class _Event:
    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


def _fakes_of_cuda(world, free, capability, count):
    """Return what replaces functions of torch.cuda."""

    def touch(device=None):
        world.name(f"cuda:{world.current}" if device is None else device)

    @contextlib.contextmanager
    def use(device):
        before, device = world.current, torch.device(device)
        world.current = before if device.index is None else device.index
        try:
            yield
        finally:
            world.current = before

    def touching(value=None):
        return lambda device=None, *_: touch(device) or value

    stream = SimpleNamespace(is_capturing=lambda: False, synchronize=lambda: None)

    def refuse(*_):
        raise AssertionError("this seeds all devices")

    return {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: count,
        "current_device": lambda: world.current, "device": use, "Event": _Event,
        "mem_get_info": touching((free, 80 * 2**30)), "memory_reserved": touching(0),
        "memory_allocated": touching(0), "get_device_capability": touching(capability),
        "empty_cache": lambda: None, "synchronize": touching(), "current_stream": touching(stream),
        "is_current_stream_capturing": touching(False), "manual_seed_all": refuse,
        "get_rng_state": touching(torch.zeros(16, dtype=torch.uint8)),
        "set_rng_state": lambda state, device=None: touch(device),
        "manual_seed": lambda seed: touch(), "is_bf16_supported": touching(capability >= (8, 0)),
        "get_device_properties": lambda number: SimpleNamespace(uuid=f"{_PROCESS}-{number}"),
    }  # fmt: skip


@contextlib.contextmanager
def pretended_cuda(package="sklearn_pk", *, free=70 * 2**30, capability=(9, 0), count=1):
    """Pretend that there are CUDA devices, in this thread; yield a PretendedCuda."""
    world, autocast = PretendedCuda(package), torch.autocast

    def on_cpu(device_type, *args, **kwargs):
        return autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        fakes = _fakes_of_cuda(world, free, capability, count)
        for name, fake in fakes.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fake))
        stack.enter_context(mock.patch.object(torch, "autocast", on_cpu))
        # In other threads as well, where the modes below do not hold.
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", _pin_memory))
        stack.enter_context(
            mock.patch("torch.accelerator.current_stream", torch.cuda.current_stream)
        )
        stack.enter_context(_Functions(world))
        stack.enter_context(_Operations(world))
        yield world
