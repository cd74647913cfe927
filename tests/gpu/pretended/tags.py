"""Which storage is on which device, which is page-locked, and which copies are on their way."""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions

from .surroundings import EXCLUSIVE

CPU = torch.device("cpu")
StorageWeakRef: Any = reductions.StorageWeakRef  # untyped
CudaError: Any = getattr(torch, "AcceleratorError", RuntimeError)  # torch 2.8


class Tags:
    """Labels of storages, forgotten with them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Any]] = {}
        self._most = 1 << 14

    def get(self, tensor: Tensor) -> Any:
        """Return the label of the tensor's storage; None where it has none."""
        storage = storage_of(tensor)
        known = None if storage is None else self._known.get(storage._cdata)
        return None if known is None or known[0].expired() else known[1]

    def put(self, tensor: Tensor, label: Any) -> None:
        """Label the tensor's storage; those of its views are the same."""
        storage = storage_of(tensor)
        if storage is None:
            return
        # A weak reference keeps the address from being used for another storage.
        self._known[storage._cdata] = StorageWeakRef(storage), label
        if len(self._known) > self._most:
            self._known = {k: v for k, v in list(self._known.items()) if not v[0].expired()}
            self._most = max(1 << 14, 2 * len(self._known))


def storage_of(tensor: Tensor) -> Any:
    """Return the storage; None where there is none, as in sparse tensors."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


DEVICES, PINNED = Tags(), Tags()


class _Here(threading.local):
    """What each thread has for itself: it begins on device 0, as in CUDA."""

    device = 0


HERE = _Here()


def device_of(tensor: Tensor) -> torch.device | None:
    """Return the CUDA device that a tensor is on; None for the CPU."""
    found: torch.device | None = DEVICES.get(tensor)
    return found


def place(tensor: Tensor, device: torch.device | None) -> None:
    """Put a tensor on a device, or back on the CPU."""
    if device is not None:
        _begin_with(device)
    DEVICES.put(tensor, device)


def cuda_device(device: Any) -> torch.device | None:
    """Return the CUDA device that is meant, with its index; None for another kind."""
    if device is None or isinstance(device, bool):
        return None
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type != "cuda":
        return None
    return torch.device("cuda", HERE.device if found.index is None else found.index)


_begun: dict[int, Any] = {}  # devices that this process has used, and their locks
_parents: set[int] = set()  # those that the process has used of which this one is a fork


def _begin_with(device: torch.device) -> None:
    """Take a device for this process, as the first use of it does: a context is made there."""
    index = device.index
    if _parents:
        raise RuntimeError(
            "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, "
            "you must use the 'spawn' start method"
        )
    if index in _begun:
        return
    lock, folder = None, os.environ.get(EXCLUSIVE)
    if folder:
        lock = (Path(folder) / f"cuda-{index}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CudaError(
                "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
            ) from None
    _begun[index] = lock


def _forked() -> None:
    _parents.update(_begun)


os.register_at_fork(after_in_child=_forked)


class Flight:
    """Copies that are not waited for: what they bring is there only when somebody has waited.

    Until then a page-locked target holds nothing of use, and a page-locked source must not change.
    """

    def __init__(self) -> None:
        self._going: list[tuple[int, Callable[[], None]]] = []
        self._lock = threading.Lock()
        self.now = 0  # copies begun so far

    def bring(self, target: Tensor, source: Tensor) -> None:
        """Begin a copy from a device to page-locked memory."""
        kept = source.detach().clone()
        target.detach().fill_(nothing(target.dtype))
        self._begin(lambda: target.detach().copy_(kept))

    def take(self, source: Tensor) -> None:
        """Begin a copy to a device from page-locked memory."""
        kept, seen = source.detach().clone(), weakref.ref(source)

        def unchanged() -> None:
            now = seen()
            if now is not None and not torch.equal(now.nan_to_num(), kept.nan_to_num()):
                raise AssertionError("page-locked memory changed while it was copied to a device")

        self._begin(unchanged)

    def _begin(self, end: Callable[[], Any]) -> None:
        with self._lock:
            self.now += 1
            self._going.append((self.now, end))

    def land(self, until: int | None = None) -> None:
        """End the copies that were begun until then; all of them without a number."""
        with self._lock:
            last = self.now if until is None else until
            over = [end for number, end in self._going if number <= last]
            self._going = [each for each in self._going if each[0] > last]
        for end in over:
            end()


FLIGHT = Flight()


def nothing(dtype: torch.dtype) -> float | int | bool:
    """Return what memory holds that nobody has written: never a value that looks right."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return dtype == torch.bool or torch.iinfo(dtype).max
