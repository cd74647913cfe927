"""The devices that networks run on, and how they compute there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.settings import Precision


def choose_devices(names: str) -> tuple[torch.device, ...]:
    """The devices of a ``--device`` option, ``cuda:0,cuda:1``; ``auto`` is CUDA where there is one.

    Raises `UsageError` for a device that is asked for and absent.
    """
    # Full single precision and one order of summation: the same numbers each time.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    found = tuple(_device(name.strip()) for name in names.split(","))
    if len({device.type for device in found}) > 1:
        raise UsageError(f"--device {names}: devices of two kinds give different last bits")
    return found


def choose_device(names: str) -> torch.device:
    """The first device of a ``--device`` option, for work that runs on one."""
    return choose_devices(names)[0]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r}: use auto, cpu, cuda or cuda:0,cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: use auto, cpu, cuda or cuda:0,cuda:1")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: there is no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {name}: there are {count}, cuda:0 to cuda:{count - 1}")
    return device


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise `UsageError` for arithmetic that the device does not have."""
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 is arithmetic of CUDA devices, not of {device.type}")


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """A block in which networks compute in float32, TF32 or bfloat16."""
    cudnn, blas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, blas.allow_tf32
    cudnn.allow_tf32 = blas.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        cudnn.allow_tf32, blas.allow_tf32 = before


Pass = Callable[[torch.Tensor, torch.Tensor], Any]


def captured(function: Pass, *examples: torch.Tensor) -> Pass:
    """On a GPU, the function as one launch for arguments of these shapes (a CUDA graph).

    Small canvases are bound by launches. The results are overwritten by the next call.
    """
    if examples[0].device.type != "cuda":
        return function
    held = [example.clone() for example in examples]
    side: Any = torch.cuda.Stream(examples[0].device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(examples[0].device))
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose and allocate before anything is captured
            function(*held)
    torch.cuda.current_stream(examples[0].device).wait_stream(side)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*held)

    def replay(*arguments: torch.Tensor) -> Any:
        for place, argument in zip(held, arguments, strict=True):
            place.copy_(argument)
        graph.replay()
        return results

    return replay


def keep_memory() -> None:
    """Have glibc keep freed blocks instead of giving them back to the system.

    Every map of a batch is allocated and freed again; fetching its pages anew each time costs
    more than a third of a forward pass on a CPU. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)


@contextmanager
def memory_explained(device: torch.device | str) -> Iterator[None]:
    """A block in which memory that runs out is a `CnnvisError` with a remedy.

    Never a smaller batch instead: another size changes the last bits of what is computed.
    """
    try:
        yield
    except Exception as error:
        if not _is_about_memory(error):
            raise
        raise CnnvisError(
            f"{device}: memory ran out ({_in_short(error)}); what was finished is "
            "saved; free some and run again, or use fewer --workers or, in a new --run, a smaller "
            "--batch-size"
        ) from error


def _in_short(error: Exception) -> str:
    """Its first line; Python's own `MemoryError` has none."""
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _is_about_memory(error: Exception) -> bool:
    """On a CPU torch has no class for it."""
    named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return named or (type(error) is RuntimeError and "allocate memory" in str(error))


def is_lost(error: BaseException) -> bool:
    """Whether after this error its process can do nothing more on its device."""
    kind = getattr(torch, "AcceleratorError", None)  # torch 2.8
    named = kind is not None and isinstance(error, kind)
    return named or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
