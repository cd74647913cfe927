"""This machine's cores and memory, and their division into worker slots, one per process."""

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
    """Return how many processor cores this process may use, also in a container."""
    allowed = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = (CONTROL / "cpu.max").read_text().split()
        allowed = min(allowed, max(1, round(int(quota) / int(period))))  # "max" is not a number
    return allowed


def available_memory() -> int:
    """Return the bytes of memory that are free or easily freed; 1 << 62 if that is not known."""
    known = [1 << 62]
    with suppress(OSError, ValueError, KeyError):
        known.append(_read_table(Path("/proc/meminfo"))["MemAvailable:"] << 10)
    with suppress(OSError, ValueError, KeyError):
        most, used = (int((CONTROL / f"memory.{name}").read_text()) for name in ("max", "current"))
        known.append(most - used + _read_table(CONTROL / "memory.stat")["inactive_file"])
    return max(0, min(known))


SHARED = Path("/dev/shm")  # where processes exchange large data; small in containers


def shared_memory() -> int:
    """Return the free bytes of shared memory; 1 << 62 if that is not known."""
    with suppress(OSError):
        return shutil.disk_usage(SHARED).free
    return 1 << 62


def _read_table(path: Path) -> dict[str, int]:
    """Read a file of names and numbers, one pair per line."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


class WorkerSlot(NamedTuple):
    """The resources of one worker: a device, threads, and processes that decode for it."""

    device: torch.device
    threads: int
    decoders: int
    fresh: bool = False  # its process must be a fresh interpreter, not a fork


def worker_slots(
    devices: Sequence[torch.device], workers: int | None, need: int
) -> list[WorkerSlot]:
    """Divide this machine; `need` is the memory of one worker slot on the CPU, in bytes.

    A GPU has one process, and `workers` processes in all decode for the GPUs. On a CPU `workers`
    processes (by default one per core, as far as memory reaches) decode and compute, each its own
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
    """Emitted by a worker: this task is done and saved."""

    number: int


class Notice(NamedTuple):
    """Emitted by a worker or the pool: a line for the user, printed once."""

    text: str
