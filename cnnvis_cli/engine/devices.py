"""The devices that networks run on, and how they compute there."""

from __future__ import annotations

import ctypes
import gc
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.settings import Precision

SPELLINGS = "use auto, cpu, cuda, cuda:0,cuda:1 or cuda:all"


def choose_devices(names: str) -> tuple[torch.device, ...]:
    """Return the devices of a ``--device`` option; ``auto`` is the first GPU, if there is one.

    A CUDA device always has its index. Raise `UsageError` for a device that is absent.
    """
    # Full single precision and one order of summation: the same numbers each time.
    _set_tf32(False)
    torch.backends.cudnn.deterministic = True
    found = tuple(device for name in names.split(",") for device in _devices(name.strip()))
    if len({device.type for device in found}) > 1:
        raise UsageError(f"--device {names}: devices of two kinds give different last bits")
    return found


def choose_device(names: str) -> torch.device:
    """Return the first device of a ``--device`` option, for work that runs on one."""
    return choose_devices(names)[0]


def _devices(name: str) -> list[torch.device]:
    if name == "auto":
        return [torch.device("cuda", 0) if _cuda_works() else torch.device("cpu")]
    if not re.fullmatch(r"cpu|cuda(:(all|\d{1,4}))?", name):
        raise UsageError(f"--device {name}: {SPELLINGS}")
    if name == "cpu":
        return [torch.device("cpu")]
    if not _cuda_works():
        raise UsageError(f"--device {name}: {_why_not_cuda()}; use --device cpu")
    count = torch.cuda.device_count()
    if name == "cuda:all":
        return [torch.device("cuda", index) for index in range(count)]
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise UsageError(f"--device {name}: there are {count}, cuda:0 to cuda:{count - 1}")
    return [torch.device("cuda", index)]


def remark_on_auto(names: str) -> str | None:
    """Return a line for the user about the choice that ``auto`` made; None if none is needed."""
    if names != "auto":
        return None
    if not _cuda_works():
        return f"--device auto: computing on the CPU, since {_why_not_cuda()}" if _gpus() else None
    count = torch.cuda.device_count()
    if count > 1:
        return f"--device auto: computing on cuda:0, one of {count} GPUs; cuda:all takes all"
    return None


def _cuda_works() -> bool:
    return not isinstance(_cuda_found(), str)


@cache
def _cuda_found() -> str | None:
    """Return None if CUDA works, otherwise torch's warnings about it."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    return " ".join(str(each.message).split("(")[0].strip() for each in heard)


def _why_not_cuda() -> str:
    """Return in a few words why there is no CUDA device."""
    if torch.version.cuda is None and _gpus():
        return f"this torch ({torch.__version__}) is built without CUDA, though there is {_gpus()}"
    if _gpus():
        said = _cuda_found() or "its driver may be too old or broken"
        return f"torch cannot use {_gpus()} ({said})"
    return "there is no CUDA device here"


@cache
def _gpus() -> str:
    """Return the name of the first GPU that nvidia-smi lists; empty if there is none."""
    tool = shutil.which("nvidia-smi")
    with suppress(OSError, subprocess.SubprocessError):
        if tool is not None:
            asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
            told = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
            return next(iter(told.stdout.splitlines()), "").strip()
    return ""


def describe_device(device: torch.device) -> dict[str, str]:
    """Return all properties of a device that may decide the last bits of its results."""
    about = {"device": device.type, "torch": torch.__version__}
    if device.type == "cpu":
        return about | {"processor": torch.backends.cpu.get_cpu_capability()}
    major, minor = torch.cuda.get_device_capability(device)
    return about | {
        "name": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }


COPIES = 4  # of a layer's output that a forward and backward pass holds: measured up to 3.5
MEMORY_SHARE = 0.5  # of a GPU's memory that a pass may take; the rest is for others and fragments


def limit_to_memory(batch: int, each: int, device: torch.device) -> int:
    """Return the batch, halved until a pass of it fits the device's memory.

    `each` is the bytes of one item's maps. On a CPU the batch stays as it is. The card's whole
    memory counts, not what happens to be free, so that a rerun chooses the same.
    """
    if device.type == "cpu":
        return batch
    room = MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    while batch > 1 and batch * each * COPIES > room:
        batch //= 2
    return batch


def resolve_precision(asked: Precision | None, device: torch.device) -> Precision:
    """Return the arithmetic of ascents: by default TF32 on a GPU and float32 on a CPU.

    Raise `UsageError` for arithmetic that the device does not have.
    """
    chosen: Precision = asked or ("tf32" if device.type == "cuda" else "float32")
    check_precision(chosen, device)
    return chosen


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise `UsageError` for arithmetic that the device does not have."""
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 is arithmetic of CUDA devices, not of {device.type}")


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Enter a block in which networks compute in float32, TF32 or bfloat16."""
    halved = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with tensor_cores(precision, device), halved:
        yield


@contextmanager
def tensor_cores(precision: Precision, device: torch.device) -> Iterator[None]:
    """Enter a block in which convolutions multiply in TF32, if that is the precision."""
    if precision != "tf32" or device.type != "cuda":
        yield
        return
    _set_tf32(True)
    try:
        yield
    finally:
        _set_tf32(False)


def _set_tf32(allowed: bool) -> None:
    """Allow TF32 in convolutions or not; matrix products, few in a vision network, never use it.

    torch 2.9 has new names for this and refuses to mix them with the old ones.
    """
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    if hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = "ieee"
        cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"
    else:
        matmul.allow_tf32, cudnn.allow_tf32 = False, allowed


class Graphs:
    """Runs work on tensors that stay in place; on a GPU all work of one key becomes one launch.

    Work reads and writes the same tensors each time, so that a CUDA graph of it can be replayed.
    All graphs of an object share memory, so no result may be kept in a tensor that the work itself
    allocates. Work that cannot be captured is run directly, and `notice` is called with the reason.
    """

    def __init__(self, device: torch.device, notice: Callable[[str], None]) -> None:
        self._device, self._notice = device, notice
        self._graphs: dict[Hashable, tuple[Any, Callable[[], None]]] = {}  # with its work
        self._pool: Any = None
        self._captures = device.type == "cuda"

    def __call__(self, key: Hashable, work: Callable[[], None], state: Sequence[Tensor]) -> None:
        """Do the work of this `key`, which changes nothing but the `state`."""
        if self._captures and key not in self._graphs:
            self._graphs[key] = self._captured(work, state), work
        if self._captures:
            self._graphs[key][0].replay()
        else:
            work()

    def _captured(self, work: Callable[[], None], state: Sequence[Tensor]) -> Any:
        with torch.cuda.device(self._device):
            side: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            current = torch.cuda.current_stream(self._device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                before = [part.clone() for part in state]
                work()  # libraries choose and allocate before anything is captured
                for part, value in zip(state, before, strict=True):
                    part.copy_(value)
            current.wait_stream(side)
            return self._recorded(work, side)

    def _recorded(self, work: Callable[[], None], side: Any) -> Any:
        graph: Any = torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile, which a capture otherwise forbids everywhere.
        how = {"pool": self._pool, "stream": side, "capture_error_mode": "thread_local"}
        gc.collect()  # old graphs may not be freed during a capture
        gc.disable()
        try:
            with torch.cuda.graph(graph, **how):
                work()
        except RuntimeError as error:
            if is_about_memory(error):
                raise
            torch.cuda.synchronize(self._device)  # raises where the device itself is lost
            self._captures = False
            self._notice(
                f"{self._device}: this network cannot be captured as a CUDA graph "
                f"({in_short(error)}); it runs step by step, which is slower for small layers"
            )
            return None
        finally:
            gc.enable()
        self._pool = graph.pool()
        return graph


def keep_memory() -> None:
    """Have glibc keep freed blocks instead of giving them back to the system.

    Every map of a batch is allocated and freed again; fetching its pages each time costs more
    than a third of a forward pass on a CPU. Without glibc nothing happens.
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
    """Turn memory that runs out in a block into a `CnnvisError` with a remedy.

    The batch is never made smaller instead: its size decides the last bits of the results.
    """
    try:
        yield
    except Exception as error:
        if not is_about_memory(error):
            raise
        raise CnnvisError(
            f"{device}: memory ran out ({in_short(error)}); what was finished is "
            "saved; free some and run again, or use fewer --workers or, in a new --run, a smaller "
            "--batch-size"
        ) from error


def in_short(error: BaseException) -> str:
    """Return an error's first line, or its type if it has no text, like `MemoryError`."""
    return (str(error) or type(error).__name__).splitlines()[0][:120]


_MEMORY = re.compile(r"out of memory|allocate memory|_ALLOC(ATION)?_FAILED", re.IGNORECASE)
_LOST = re.compile(
    r"CUDA error|CUDA driver error|cuDNN error|cuFFT error|CUBLAS_STATUS_|CUDNN_STATUS_"
)


def is_about_memory(error: BaseException) -> bool:
    """Return whether memory ran out, which torch and its libraries report in several ways."""
    named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return named or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


def is_lost(error: BaseException) -> bool:
    """Return whether this error leaves its process unable to use its device any more."""
    if is_about_memory(error):
        return False
    kind = getattr(torch, "AcceleratorError", None)  # torch 2.8
    named = kind is not None and isinstance(error, kind)
    return named or (isinstance(error, RuntimeError) and bool(_LOST.search(str(error))))
