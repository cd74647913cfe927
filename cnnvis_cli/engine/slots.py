"""What this machine has, and how it is divided: each worker slot is what one process works with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

CONTROL = Path("/sys/fs/cgroup")  # what a container may use


def cores() -> int:
    """Processor cores that this process may use, also in a container."""
    allowed = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = (CONTROL / "cpu.max").read_text().split()
        allowed = min(allowed, max(1, round(int(quota) / int(period))))  # "max" is no number
    return allowed


def available_memory() -> int:
    """Bytes that can be had without driving anything out; very many where that is not known."""
    known = [1 << 62]
    with suppress(OSError, ValueError, KeyError):
        known.append(_table(Path("/proc/meminfo"))["MemAvailable:"] << 10)
    with suppress(OSError, ValueError, KeyError):
        most, used = (int((CONTROL / f"memory.{name}").read_text()) for name in ("max", "current"))
        known.append(most - used + _table(CONTROL / "memory.stat")["inactive_file"])
    return max(0, min(known))


SHARED = Path("/dev/shm")  # where processes hand each other large things; small in containers


def shared_memory() -> int:
    """Bytes of shared memory that are free; very many where that is not known."""
    with suppress(OSError):
        return shutil.disk_usage(SHARED).free
    return 1 << 62


def _table(path: Path) -> dict[str, int]:
    """A file of names and numbers, line by line."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


class WorkerSlot(NamedTuple):
    """What one process works with: a device, threads, and processes that decode for it."""

    device: torch.device
    threads: int
    decoders: int
    fresh: bool = False  # has to be an interpreter of its own, not a fork


def worker_slots(
    devices: Sequence[torch.device], workers: int | None, need: int
) -> list[WorkerSlot]:
    """How to divide this machine; `need` is the memory of one worker slot on the CPU, in bytes.

    A GPU has one process, and `workers` processes in all decode for the GPUs. On a CPU `workers`
    processes (by default one a core, as far as memory reaches) decode and compute, each its own
    images: none waits for another. With 0 everything happens in this process.
    """
    if devices[0].type == "cuda":
        decoders = cores() if workers is None else workers
        return [WorkerSlot(device, 1, -(-decoders // len(devices))) for device in devices]
    room = max(1, available_memory() // need)
    count = max(len(devices), min(cores(), room) if workers is None else max(workers, 1))
    return [WorkerSlot(devices[0], max(1, torch.get_num_threads() // count), 0)] * count


Emit = Callable[[Any], None]
Task = Callable[[WorkerSlot, Iterator[int], Emit], None]


class TaskDone(NamedTuple):
    """Told by a worker slot: this piece of work is done and safe."""

    number: int


class Notice(NamedTuple):
    """Told by a worker slot, or of it: a line for the user, once."""

    text: str
