"""The device and the processes that the work runs on."""

from __future__ import annotations

import ctypes
import os

import torch

from cnnvis_cli.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device of a ``--device`` option; ``auto`` is CUDA where there is one.

    Raises `UsageError` for a device that is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r}: use auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: use auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: there is no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {name}: there are {count}, cuda:0 to cuda:{count - 1}")
    # Full single precision and one order of summation: the same numbers each time.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return device


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


def decode_workers(asked: int | None) -> int:
    """Processes that decode images: as asked, otherwise one a core and at most eight."""
    return asked if asked is not None else min(len(os.sched_getaffinity(0)), 8)
