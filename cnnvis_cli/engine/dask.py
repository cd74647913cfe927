"""A Dask cluster that shares pieces of work: `pip install cnnvis[cluster]`."""

from __future__ import annotations

import ipaddress
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from multiprocessing import current_process
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch

from cnnvis_cli.engine.devices import is_lost, keep_memory, memory_explained
from cnnvis_cli.engine.pool import ATTEMPTS, portable, tasks_failed
from cnnvis_cli.engine.slots import Emit, Task, TaskDone, WorkerSlot, cores
from cnnvis_cli.errors import CnnvisError, UsageError, WorkerDied

WAIT = 10  # seconds for the scheduler to answer
PATIENCE = 60  # seconds for a worker to come
AHEAD = 2  # pieces a worker that are handed in at a time


class Cluster(NamedTuple):
    """A Dask scheduler, and the kind of device that its workers are to compute on."""

    address: str
    device: torch.device

    def __len__(self) -> int:
        """Workers that there are now; at least one."""
        return max(1, len(_client(self.address).scheduler_info(-1)["workers"]))

    def __bool__(self) -> bool:
        return True


def reach(address: str, device: torch.device, trusted: bool) -> Cluster:
    """The cluster at an address; raises `UsageError` where there is none or it is not safe.

    A scheduler runs whatever it is sent, so its traffic has to stay on this machine or be
    encrypted (TLS), unless the network is `trusted`.
    """
    scheme, host = _parsed(address)
    if scheme == "tcp" and not _is_loopback(host) and not trusted:
        raise UsageError(
            f"--scheduler {address}: anybody who reaches this port can run code on the cluster; "
            "use TLS (tls://...), or --trust-network where nobody else does"
        )
    _client(address)
    return Cluster(address, device)


def _parsed(address: str) -> tuple[str, str]:
    """Scheme and host of an address; raises `UsageError` for one that is none."""
    with suppress(ValueError):  # of a port that is no number
        parts = urlsplit(address)
        if parts.scheme in ("tcp", "tls") and parts.hostname and parts.port:
            return parts.scheme, parts.hostname
    raise UsageError(f"--scheduler {address}: write it as tcp://host:port or tls://host:port")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@lru_cache(maxsize=1)
def _client(address: str) -> Any:
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise UsageError("--scheduler needs Dask: pip install 'cnnvis[cluster]'") from None
    security = distributed.Security() if address.startswith("tls:") else None  # of Dask's settings
    try:
        return distributed.Client(address, timeout=WAIT, security=security)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--scheduler {address}: does not answer within {WAIT} s ({type(error).__name__}); "
            "start it with: dask scheduler"
        ) from None


def share_tasks_on(
    cluster: Cluster,
    work: Task,
    numbers: Sequence[int],
    emit: Emit,
    describe: Callable[[int], str],
) -> None:
    """Have the cluster do pieces of work; see `run_tasks`."""
    desk = _Desk(cluster, work, deque(numbers), emit)
    try:
        desk.work()
    finally:
        desk.withdraw()
    if desk.aside:
        raise tasks_failed(desk.aside, describe)


@dataclass
class _Desk:
    """Hands in a few pieces at a time, hears of each, and hands in again what was lost."""

    cluster: Cluster
    task: Task
    pending: deque[int]
    emit: Emit
    lost: bool = True  # whether there is no copy of the task for the workers
    manned: float = field(default_factory=time.monotonic)  # when there was a worker last
    going: dict[Any, int] = field(default_factory=dict)  # Dask's futures
    deaths: dict[int, int] = field(default_factory=dict)
    aside: dict[int, str] = field(default_factory=dict)

    def work(self) -> None:
        while self.pending or self.going:
            self._look_for_workers()
            if self.lost:
                self._copy()
            while self.pending and len(self.going) < AHEAD * len(self.cluster):
                self._hand_in(self.pending.popleft())
            for future in self._done():
                self._receive(future, self.going.pop(future))
            self.emit(None)

    def _look_for_workers(self) -> None:
        """Raise `CnnvisError` when there has been none for long; one may be starting again."""
        if _client(self.cluster.address).scheduler_info(-1)["workers"]:
            self.manned = time.monotonic()
        elif time.monotonic() - self.manned > PATIENCE:
            raise CnnvisError(
                f"{self.cluster.address}: has had no worker for {PATIENCE} s; start some with: "
                f"dask worker {self.cluster.address}"
            )

    def _copy(self) -> None:
        """Give the workers what they must know, once and not with every piece.

        As a result of a task, which Dask makes anew when a worker that has it dies; scattered data
        would be lost, and Dask hangs where a worker dies while it scatters.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            self.copy = _client(self.cluster.address).submit(as_it_is, self.task, pure=False)
        self.lost = False

    def _hand_in(self, number: int) -> None:
        client = _client(self.cluster.address)
        future = client.submit(
            do_piece, self.copy, str(self.cluster.device.type), number, pure=False
        )
        self.going[future] = number

    def _done(self) -> list[Any]:
        """What has ended, also without a result; waits a moment where nothing has."""
        until = time.monotonic() + 0.5
        while not (done := [future for future in self.going if future.done()]):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        return done

    def _receive(self, future: Any, number: int) -> None:
        try:
            told = future.result()  # which may be lost on its way as well
        except Exception as error:
            self._failed(number, error)
            return
        for message in told:
            self.emit(message)
        self.emit(TaskDone(number))

    def _failed(self, number: int, error: BaseException) -> None:
        name = type(error).__name__
        if name in ("FutureCancelledError", "CancelledError"):
            self.lost = True
        elif name == "KilledWorker" or isinstance(error, WorkerDied):
            self.lost = True  # it may have been the copy that was on its way
            self.deaths[number] = self.deaths.get(number, 0) + 1
        elif isinstance(error, CnnvisError):
            raise error
        else:
            raise CnnvisError(f"a worker of {self.cluster.address} failed: {name}: {error}")
        if self.deaths.get(number, 0) >= ATTEMPTS:
            self.aside[number] = name
        else:
            self.pending.append(number)

    def withdraw(self) -> None:
        """Take back what nobody has begun; what is being done is finished there, and kept."""
        if self.going:
            _client(self.cluster.address).cancel(list(self.going))


def as_it_is(work: Task) -> Task:
    """On a worker: what has been sent."""
    return work


def do_piece(work: Task, kind: str, number: int) -> list[Any]:
    """On a worker: do one piece, and say what there was to tell."""
    told: list[Any] = []
    keep_memory()
    worker_slot = _lane(kind)
    try:
        with memory_explained(worker_slot.device):
            work(worker_slot, iter([number]), told.append)
    except Exception as error:
        if is_lost(error):
            raise WorkerDied(f"the worker's device failed: {error}") from None
        raise portable(error) from None
    return [message for message in told if not isinstance(message, TaskDone)]


def _lane(kind: str) -> WorkerSlot:
    """A worker has one device: the first that it sees. One in a daemon decodes by itself."""
    if kind == "cuda" and not torch.cuda.is_available():
        raise CnnvisError("a worker of the cluster sees no CUDA device; use --device cpu")
    device = torch.device("cuda:0" if kind == "cuda" else "cpu")
    decoders = 0 if kind == "cpu" or current_process().daemon else cores()
    return WorkerSlot(device, torch.get_num_threads(), decoders)
