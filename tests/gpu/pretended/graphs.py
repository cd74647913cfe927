"""CUDA graphs: what is captured is not run but noted, and replaying runs it on the same memory."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .ledger import COUNTS, count_launch, where
from .tags import CudaError, device_of, nothing, storage_of


class Noted(NamedTuple):
    """A launch that a graph holds, and the memory of its results."""

    function: Any
    args: Any
    kwargs: dict[str, Any]
    results: list[Tensor]


class Capture:
    """A capture on its way, in one thread, of the launches on one device."""

    def __init__(self, device: torch.device, mode: str) -> None:
        self.device, self.mode = device, mode
        self.thread = threading.get_ident()
        self.noted: list[Noted] = []
        self.broken = False  # something was refused: CUDA then refuses the end, too
        self._made: dict[int, Tensor] = {}
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, tensor: Tensor) -> None:
        """Remember what a tensor holds that is about to be written to: a capture writes nothing."""
        key = storage_of(tensor)._cdata
        if key in self._made or key in self._kept:
            return
        whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        self._kept[key] = whole, whole.clone()

    def note(self, noted: Noted, device: torch.device) -> None:
        if device != self.device:
            raise CudaError(
                f"a graph is captured on {self.device}, this is launched on {device} and would not "
                f"be in it: {noted.function} at {where()}"
            )
        for result in noted.results:
            storage = storage_of(result)
            if storage is not None and storage._cdata not in self._kept:
                self._made[storage._cdata] = result
        self.noted.append(noted)

    def end(self) -> None:
        """Put back what was there: results are written by the first replay."""
        for whole, before in self._kept.values():
            whole.copy_(before)
        for result in self._made.values():
            if result.dtype.is_floating_point:
                result.detach().fill_(nothing(result.dtype))


_captures: list[Capture] = []  # at most one at a time, as torch has it


def capturing() -> Capture | None:
    """Return the capture that this thread is in."""
    mine = [capture for capture in _captures if capture.thread == threading.get_ident()]
    return mine[0] if mine else None


def refuse(why: str) -> None:
    """Raise if a graph is being captured; in mode ``global`` by whichever thread."""
    for capture in _captures:
        own = capture.thread == threading.get_ident()
        if own or capture.mode == "global":
            capture.broken = True
            raise CudaError(
                f"CUDA error: operation not permitted when stream is capturing ({why} at {where()})"
            )


def keep(tensor: Tensor) -> None:
    """Remember a tensor before it is written to, if this thread captures."""
    if (capture := capturing()) is not None and device_of(tensor) is not None:
        capture.keep(tensor)


def note(
    function: Any, args: Any, kwargs: dict[str, Any], results: list[Tensor], device: torch.device
) -> None:
    """Note a launch, if this thread captures."""
    if (capture := capturing()) is not None:
        capture.note(Noted(function, args, kwargs, results), device)


class CUDAGraph:
    """Stand in for `torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._capture: Capture | None = None

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **_: Any) -> None:
        from .runtime import current_stream, default_stream

        stream = current_stream()
        if stream is default_stream(stream.device):
            raise CudaError("CUDA graphs must be captured on a non-default stream.")
        if _captures:
            raise CudaError("CUDA error: another capture is under way")
        self._capture = Capture(stream.device, capture_error_mode)
        _captures.append(self._capture)
        self._before = COUNTS["launches"]

    def capture_end(self) -> None:
        assert self._capture is not None
        _captures.remove(self._capture)
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.inference_mode():
            self._capture.end()
        COUNTS["captured"] += COUNTS["launches"] - self._before
        if self._capture.broken:
            self._capture = None
            raise CudaError("CUDA error: operation failed due to a previous error during capture")

    def replay(self) -> None:
        """Run what was noted; the results are where they were."""
        if self._capture is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        COUNTS["replays"] += 1
        count_launch("replay", self._capture.device, 0)
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.inference_mode():
            for noted in self._capture.noted:
                _again(noted)

    def reset(self) -> None:
        self._capture = None

    def pool(self) -> tuple[int, int]:
        return 0, id(self)


def _again(noted: Noted) -> None:
    found = noted.function(*noted.args, **noted.kwargs)
    fresh = [each for each in torch.utils._pytree.tree_leaves(found) if isinstance(each, Tensor)]
    for old, new in zip(noted.results, fresh, strict=True):
        if old is not new and old.data_ptr() != new.data_ptr():
            old.copy_(new)


class graph:  # noqa: N801 - torch's name
    """Stand in for `torch.cuda.graph`: the stream decides on which device is captured."""

    default_capture_stream: Any = None  # torch, too, keeps the first one for all devices

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: Any = None,
        stream: Any = None,
        capture_error_mode: str = "global",
        **_: Any,
    ) -> None:
        from .runtime import Stream

        if stream is None and graph.default_capture_stream is None:
            graph.default_capture_stream = Stream()
        self._graph, self._mode = cuda_graph, capture_error_mode
        self._stream = stream or graph.default_capture_stream

    def __enter__(self) -> None:
        from .runtime import stream, synchronize

        synchronize()
        self._on = stream(self._stream)
        self._on.__enter__()
        self._graph.capture_begin(capture_error_mode=self._mode)

    def __exit__(self, *how: Any) -> None:
        try:
            self._graph.capture_end()
        finally:
            self._on.__exit__(*how)
