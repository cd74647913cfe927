"""What stands in for `torch.cuda`: devices, streams, events, memory; and how all is installed."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any

import torch

from . import graphs
from .ledger import COUNTS, keep_counts
from .rules import pinned_copy, under_the_rules, wait_for_device
from .surroundings import FREE, SWITCH
from .tags import FLIGHT, HERE, cuda_device

MEMORY = 80 << 30  # bytes a device
FREE_MEMORY = 64 << 30
CAPABILITY = (9, 0)
NAME = "Pretended GPU"


def device_count() -> int:
    return int(os.environ.get(SWITCH, "2"))


def _index(device: Any) -> int:
    """Return a device's index; raises as torch does where there is none."""
    index: int = torch.cuda._utils._get_device_index(device)
    if not 0 <= index < device_count():
        raise RuntimeError("CUDA error: invalid device ordinal")
    return index


def set_device(device: Any) -> None:
    HERE.device = _index(device)


class DeviceContext:
    """Stand in for `torch.cuda.device`."""

    def __init__(self, device: Any) -> None:
        self._index = (
            HERE.device if device is None else torch.cuda._utils._get_device_index(device, True)
        )

    def __enter__(self) -> None:
        self._before, HERE.device = HERE.device, self._index

    def __exit__(self, *_: object) -> None:
        HERE.device = self._before


class Stream:
    """A stream of a device, by default of the current one; works in the program's order."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = cuda_device("cuda" if device is None else device) or torch.device("cuda", 0)
        self.device_index, self.priority, self.cuda_stream = self.device.index, priority, id(self)

    def __enter__(self) -> Stream:
        self._on = stream(self)
        self._on.__enter__()
        return self

    def __exit__(self, *how: object) -> None:
        self._on.__exit__(*how)

    def wait_stream(self, other: Stream) -> None:
        """Wait on the device, which costs the host nothing."""

    def wait_event(self, event: Event) -> None:
        """Wait on the device, too."""

    def synchronize(self) -> None:
        wait_for_device("stream.synchronize")

    def query(self) -> bool:
        graphs.refuse("stream.query")
        FLIGHT.land()
        return True

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event


class Event:
    """A moment in a stream: the copies that were begun before it."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self._timing = enable_timing
        self._moment: int | None = None

    def record(self, stream: Stream | None = None) -> None:
        self._moment, self._time = FLIGHT.now, time.perf_counter()

    def query(self) -> bool:
        graphs.refuse("event.query")
        self._land()
        return True

    def wait(self, stream: Stream | None = None) -> None:
        """Wait on the device."""

    def synchronize(self) -> None:
        COUNTS["event waits"] += 1
        graphs.refuse("event.synchronize")
        self._land()

    def _land(self) -> None:
        if self._moment is not None:
            FLIGHT.land(self._moment)

    def elapsed_time(self, other: Event) -> float:
        """Return milliseconds; raises for events that were not made to be timed."""
        if not (self._timing and other._timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        return 1000 * (other._time - self._time)


class _Streams(threading.local):
    """Each thread's current streams, by device."""

    def __init__(self) -> None:
        self.current: dict[int, Stream] = {}


_streams = _Streams()
_default: dict[int, Stream] = {}


def default_stream(device: Any = None) -> Stream:
    found = cuda_device("cuda" if device is None else device)
    assert found is not None
    return _default.setdefault(found.index, Stream(found))


def current_stream(device: Any = None) -> Stream:
    found = cuda_device("cuda" if device is None else device)
    assert found is not None
    return _streams.current.get(found.index) or default_stream(found)


class StreamContext:
    """Stand in for `torch.cuda.stream`: its device becomes the current one as well."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        if self._stream is not None:
            self._before = HERE.device, current_stream(self._stream.device)
            HERE.device = self._stream.device_index
            _streams.current[HERE.device] = self._stream

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            _streams.current[self._stream.device_index] = self._before[1]
            HERE.device = self._before[0]


def stream(stream: Stream | None) -> StreamContext:
    return StreamContext(stream)


def set_stream(stream: Stream) -> None:
    HERE.device = stream.device_index
    _streams.current[HERE.device] = stream


def synchronize(device: Any = None) -> None:
    wait_for_device("synchronize")


def memory_get_info(device: Any = None) -> tuple[int, int]:
    return int(os.environ.get(FREE, FREE_MEMORY)), MEMORY


def properties(device: Any = None) -> Any:
    return SimpleNamespace(
        name=NAME,
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        total_memory=MEMORY,
        multi_processor_count=132,
        is_integrated=False,
        uuid=f"pretended-{cuda_device('cuda' if device is None else device)}",
    )


def pin_memory(tensor: Any, device: Any = None) -> Any:
    with torch._C.DisableTorchFunction():
        return pinned_copy(tensor)


CUDA: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "is_bf16_supported": lambda *_, **__: True,
    "device_count": device_count,
    "set_device": set_device,
    "current_device": lambda: HERE.device,
    "device": DeviceContext,
    "get_device_name": lambda device=None: NAME,
    "get_device_capability": lambda device=None: CAPABILITY,
    "get_device_properties": properties,
    "get_arch_list": lambda: ["sm_80", "sm_90", "sm_100"],
    "can_device_access_peer": lambda *_: True,
    "Stream": Stream,
    "Event": Event,
    "StreamContext": StreamContext,
    "stream": stream,
    "set_stream": set_stream,
    "current_stream": current_stream,
    "default_stream": default_stream,
    "synchronize": synchronize,
    "CUDAGraph": graphs.CUDAGraph,
    "graph": graphs.graph,
    "graph_pool_handle": lambda: (0, 1),
    "is_current_stream_capturing": lambda: graphs.capturing() is not None,
    "mem_get_info": memory_get_info,
    "empty_cache": lambda: None,
    "ipc_collect": lambda: None,
    "memory_allocated": lambda device=None: 0,
    "memory_reserved": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "max_memory_reserved": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "set_per_process_memory_fraction": lambda *_: None,
    "set_sync_debug_mode": lambda mode: None,
    "manual_seed_all": lambda seed: None,
}
ACCELERATOR: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": device_count,
    "current_accelerator": lambda check_available=False: torch.device("cuda"),
    "set_device_index": set_device,
    "set_device_idx": set_device,
    "current_device_index": lambda: HERE.device,
    "current_device_idx": lambda: HERE.device,
    "current_stream": current_stream,
    "set_stream": set_stream,
    "synchronize": synchronize,
}


_entered: list[Any] = []  # never left


def install() -> None:
    """Put this process under the rules from here on, its threads included."""
    for module, names in ((torch.cuda, CUDA), (getattr(torch, "accelerator", None), ACCELERATOR)):
        for name, found in names.items():
            if module is not None:
                setattr(module, name, found)
    torch.Tensor.pin_memory = pin_memory  # type: ignore[method-assign, assignment]
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign]
    _install_autocast()
    _install_threads()
    keep_counts()
    _entered.append(under_the_rules())
    _entered[0].__enter__()


def _install_autocast() -> None:
    """Compute in bfloat16 what CUDA would, by the CPU's list of operations."""
    real = torch.autocast

    def autocast(
        device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
    ) -> Any:
        kind = "cpu" if device_type.startswith("cuda") else device_type
        return real(kind, dtype, enabled, cache_enabled)

    torch.autocast = torch.amp.autocast = autocast  # type: ignore[misc, assignment]


def _install_threads() -> None:
    """Let every thread enter the modes, which are each thread's own."""
    begin: Any = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def begun(thread: threading.Thread) -> None:
        with under_the_rules():
            begin(thread)

    threading.Thread._bootstrap_inner = begun  # type: ignore[attr-defined]
