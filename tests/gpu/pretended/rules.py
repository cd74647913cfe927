"""Every operation of torch under CUDA's rules: two modes, one below autograd and one above it.

`Operations` (below) sees what runs: it checks devices, counts, and records what a graph captures.
`Calls` (above) sees what is asked for: where a tensor is, and moves from one device to another,
which the CPU's storage would take for nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import graphs
from .ledger import COUNTS, count_launch, count_wait, where
from .surroundings import FREE
from .tags import CPU, FLIGHT, PINNED, CudaError, cuda_device, device_of, place

aten: Any = torch.ops.aten
_LIBRARY: Any = torch.library.Library("pretended", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("move(Tensor x, int index, bool non_blocking) -> Tensor")
_LIBRARY.impl("move", lambda x, index, non_blocking: x.clone(), "CompositeExplicitAutograd")
move: Any = torch.ops.pretended.move.default  # index -1: to the CPU

COPIES = {aten._to_copy.default, aten.copy_.default, move}
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
ALLOCATING = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
WITHOUT_LAUNCH = (*ALLOCATING, "set_", "resize_", "is_same_size", "_local_scalar_dense")
WAITING = (  # the size or the kind of the result is known on the device only
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
    *("equal", "is_nonzero", "_local_scalar_dense", "repeat_interleave"),
)
ADDRESSING = ("index", "gather", "scatter", "embedding", "take", "put")  # the names begin so


class Call(NamedTuple):
    """An operation with its arguments, and the tensors among them."""

    function: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        name: str = self.function._schema.name
        return name.split("::")[1]

    @property
    def tensors(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))

    @property
    def indices(self) -> list[Tensor]:
        """Return the index tensors of ``x[...]``."""
        asked = self.args[1] if self.name in INDEXING else ()
        return [index for index in asked if index is not None]

    @property
    def is_view(self) -> bool:
        """Return whether it only looks at a storage in another way."""
        returns = self.function._schema.returns
        alias = returns[0].alias_info if returns else None
        return alias is not None and not alias.is_write

    @property
    def written(self) -> list[Tensor]:
        """Return the tensors that it writes to."""
        arguments = self.function._schema.arguments
        given = {a.name: v for a, v in zip(arguments, self.args, strict=False)} | self.kwargs
        writes = (a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
        return tensors_in([given.get(name) for name in writes])

    def run(self) -> Any:
        return self.function(*self.args, **self.kwargs)


def tensors_in(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What runs on a device, as CUDA would see it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        call = Call(func, args, dict(kwargs or {}))
        with torch._C.DisableTorchFunction():
            if func in COPIES or call.name.startswith("lift_fresh"):
                return _copy(call)
            return _compute(call)


def _compute(call: Call) -> Any:
    """Run an operation that is no copy."""
    asked, pinned = cuda_device(call.kwargs.get("device")), call.kwargs.pop("pin_memory", None)
    if call.name in ("pin_memory", "_pin_memory"):
        return pinned_copy(call.args[0])
    if asked is not None:
        call.kwargs["device"] = CPU
    devices = {device for tensor in call.tensors if (device := device_of(tensor)) is not None}
    if devices:
        _check_devices(call, devices)
        _count_waits(call)
    device = asked or next(iter(devices), None)
    made = _on_device(call) if device else call.run()
    if pinned:
        PINNED.put(made, True)
    if device is not None and call.name != "_local_scalar_dense":
        _account(call, made, device)
    return made


def _account(call: Call, made: Any, device: torch.device) -> None:
    """Say where the results are, count the launch, and note it where a graph is captured."""
    results = tensors_in(made)
    for tensor in results:
        if device_of(tensor) is None:
            place(tensor, device)
    launched = not call.is_view and call.name not in WITHOUT_LAUNCH
    if launched:
        count_launch(call.name, device, bytes_of(results) + bytes_of(call.tensors))
    if launched or call.name in ALLOCATING:
        graphs.note(call.function, call.args, call.kwargs, results, device)


def _check_devices(call: Call, devices: set[torch.device]) -> None:
    """Raise RuntimeError for tensors of different devices; numbers (0-dim) of the CPU may join."""
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{names}: {call.name} at {where()}"
        )
    if call.indices and device_of(call.args[0]) is None:
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu): "
            f"{call.name} at {where()}"
        )
    may_differ = {id(index) for index in call.indices}
    for tensor in call.tensors:
        strange = device_of(tensor) is None and id(tensor) not in may_differ
        target = tensor is call.tensors[0] and call.name.endswith("_")
        if strange and (tensor.dim() or target):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cpu {tuple(tensor.shape)} and {next(iter(devices))}: {call.name} at {where()}"
            )


def _count_waits(call: Call) -> None:
    """Count where the host waits for the device, which a graph may not capture."""
    if call.name in WAITING:
        wait_for_device(call.name)
    for index in call.indices:
        if index.dtype in (torch.bool, torch.uint8) and index.dim():
            wait_for_device(f"{call.name} with a mask")
        elif device_of(index) is None and index.dim():
            wait_for_device("an index copied from the host")


def wait_for_device(why: str) -> None:
    """Count that the host waits; raises while a graph is captured."""
    count_wait(why)
    graphs.refuse(why)
    FLIGHT.land()


_lost: list[str] = []  # why this process's devices are of no more use


def _on_device(call: Call) -> Any:
    """Run it; an index outside its tensor loses the device, as an assertion in a kernel does."""
    if _lost:
        raise CudaError(_lost[0])
    for tensor in call.written:
        graphs.keep(tensor)
    try:
        made = call.run()
    except (IndexError, RuntimeError) as error:
        outside = "index out of range" in str(error) or "is out of bounds" in str(error)
        if not (outside and call.name.startswith(ADDRESSING)):
            raise
        _lost.append("CUDA error: device-side assert triggered")
        raise CudaError(_lost[0]) from error
    size, most = bytes_of(tensors_in(made)), os.environ.get(FREE)
    if most and size > int(most) and not call.is_view:
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {size} bytes, {most} bytes is free"
        )
    return made


def _copy(call: Call) -> Any:
    """Copy between devices or types; `move` is what ``.to(device)`` has become."""
    if call.function is aten.copy_.default:
        return _copy_into(call)
    source, have = call.args[0], device_of(call.args[0])
    asked = cuda_device(call.kwargs.get("device"))
    if asked is not None:
        call.kwargs["device"] = CPU
    pinned = call.kwargs.pop("pin_memory", None)
    target = have if asked is None else asked  # autograd names the CPU for what it finds there
    non_blocking = bool(call.kwargs.get("non_blocking"))
    if call.function is move:
        index, non_blocking = call.args[1], call.args[2]
        target = None if index < 0 else torch.device("cuda", index)
    made = call.run()
    if pinned or (have is not None and target is None and non_blocking):
        PINNED.put(made, True)  # as torch makes it
    _moved(source, made, (have, target), non_blocking)
    if target is not None:
        place(made, target)
    if (device := target or have) is not None:
        count_launch(call.name, device, 2 * bytes_of([made]))
        graphs.note(call.function, call.args, call.kwargs, [made], device)
    return made


def _copy_into(call: Call) -> Any:
    """Copy into a tensor that is there."""
    target, source = call.args[:2]
    non_blocking = bool(call.kwargs.get("non_blocking") or (len(call.args) > 2 and call.args[2]))
    have, there = device_of(source), device_of(target)
    graphs.keep(target)
    made = call.run()
    if not (have is None and there is not None and not source.dim()):  # a number is an argument
        _moved(source, target, (have, there), non_blocking)
    if (device := there or have) is not None:
        count_launch(call.name, device, 2 * bytes_of([target]))
        graphs.note(call.function, call.args, call.kwargs, [made], device)
    return made


def _moved(
    source: Tensor, made: Tensor, way: tuple[torch.device | None, torch.device | None], fast: bool
) -> None:
    """Count a copy between host and device, which only page-locked memory makes without a wait."""
    have, there = way
    if have == there:
        return
    host = made if there is None else source
    kind = "h2d" if have is None else "d2h" if there is None else "p2p"
    COUNTS[kind] += 1
    COUNTS[f"{kind} bytes"] += bytes_of([made])
    if kind == "p2p":
        return
    pinned = bool(PINNED.get(host))
    COUNTS[f"{kind} pageable"] += not pinned
    if not pinned:
        graphs.refuse(f"{kind} of pageable memory")
    if not fast or (kind == "d2h" and not pinned):
        wait_for_device(f"{kind}{'' if fast else ' that blocks'}")
    elif graphs.capturing() is None and pinned:
        if kind == "d2h":
            FLIGHT.bring(made, source)
        else:
            FLIGHT.take(source)


def pinned_copy(tensor: Tensor) -> Tensor:
    """Return a page-locked copy; the tensor itself where it is one."""
    if PINNED.get(tensor):
        return tensor
    if device_of(tensor) is not None:
        raise RuntimeError("cannot pin a tensor of a device: only dense CPU tensors can be pinned")
    graphs.refuse("page-locked memory is made")
    made = tensor.detach().clone()
    PINNED.put(made, True)
    return made


class Calls(TorchFunctionMode):
    """What the program asks of tensors, where a device's tensor would answer otherwise."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            return ATTRIBUTES[name](args[0]) if name in ATTRIBUTES else func(*args, **kwargs)
        if name == "to" and isinstance(args[0], Tensor):
            return _to(func, args[0], args[1:], kwargs)
        if name in ("tensor", "as_tensor") and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return _to(Tensor.to, func(*args, **kwargs), (device,), {})
        if name in METHODS and isinstance(args[0], Tensor):
            return METHODS[name](func, *args, **kwargs)
        return func(*args, **kwargs)


ATTRIBUTES: dict[str, Any] = {
    "device": lambda x: device_of(x) or torch.Tensor.device.__get__(x),
    "is_cuda": lambda x: device_of(x) is not None,
}


def _host_only(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if (device := device_of(x)) is not None:
        raise TypeError(
            f"can't convert {device} device type tensor to numpy. Use Tensor.cpu() to copy the "
            f"tensor to host memory first: at {where()}"
        )
    return func(x, *args, **kwargs)


def _listed(func: Any, x: Tensor) -> Any:
    if device_of(x) is not None:
        wait_for_device("tolist")
    return func(x)


def _copied_deep(func: Any, x: Tensor, memo: Any) -> Any:
    made = func(x, memo)
    place(made, device_of(x))
    return made


def _pinned(_func: Any, x: Tensor, *_: Any) -> Tensor:
    with torch._C.DisableTorchFunction():
        return pinned_copy(x)


METHODS: dict[str, Any] = {
    "numpy": _host_only,
    "__array__": _host_only,
    "tolist": _listed,
    "cpu": lambda _, x, **how: _to(Tensor.to, x, (CPU,), how),
    "cuda": lambda _, x, device="cuda", **how: _to(Tensor.to, x, (device,), how),
    "get_device": lambda _, x: getattr(device_of(x), "index", -1),
    "is_pinned": lambda _, x, *__: bool(PINNED.get(x)),
    "pin_memory": _pinned,
    "record_stream": lambda *_: None,
    "__deepcopy__": _copied_deep,
}


def _to(func: Any, x: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Do ``x.to(...)`` in all its forms: to a device first, then to a type."""
    rest, how = list(args), dict(kwargs)
    other = how.pop("other", None)
    if rest and isinstance(rest[0], Tensor):
        other = rest.pop(0)
    device = how.pop("device", None)
    if other is not None:
        device, how["dtype"] = ATTRIBUTES["device"](other), other.dtype
    elif rest and not isinstance(rest[0], (torch.dtype, bool)):
        device = rest.pop(0)
    names = ("non_blocking", "copy")
    if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
        how["dtype"] = rest.pop(0)
    how |= dict(zip(names, rest, strict=False))
    if how.get("dtype") is None:
        how.pop("dtype", None)
    have = device_of(x)
    target = have if device is None else cuda_device(device)
    if have == target:
        same: Tensor = func(x, **how) if how else x
        return same
    non_blocking = bool(how.pop("non_blocking", False))
    how.pop("copy", None)
    x = func(x, **how) if how else x
    index = -1 if target is None else target.index
    if x.requires_grad and torch.is_grad_enabled():
        moved: Tensor = _Moved.apply(x, index, non_blocking)
        return moved
    there: Tensor = move(x, index, non_blocking)
    return there


class _Moved(torch.autograd.Function):
    """A move whose gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: int, non_blocking: bool) -> Tensor:
        ctx.home = getattr(device_of(x), "index", -1)
        moved: Tensor = move(x, index, non_blocking)
        return moved

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return move(gradients[0], ctx.home, False), None, None


@contextmanager
def under_the_rules() -> Iterator[None]:
    """Enter both modes in this thread: they are each thread's own."""
    with Calls(), Operations():  # type: ignore[no-untyped-call]
        yield
