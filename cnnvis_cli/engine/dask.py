"""Tasks on the workers of a Dask cluster: `pip install cnnvis[cluster]`."""

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

WAIT = 10  # seconds that the scheduler has to answer
WORKERLESS_SECONDS = 60  # seconds without any worker before the command gives up
TASKS_AHEAD = 2  # tasks per worker that are submitted at a time


class Cluster(NamedTuple):
    """A Dask scheduler, and the kind of device that its workers compute on."""

    address: str
    device: torch.device

    def __len__(self) -> int:
        """Return the present number of workers, but at least 1."""
        return max(1, len(_client(self.address).scheduler_info(-1)["workers"]))

    def __bool__(self) -> bool:
        return True


def connect(address: str, device: torch.device, trusted: bool) -> Cluster:
    """Return the cluster at an address; raise `UsageError` if it does not answer or is not safe.

    A scheduler runs any code that it receives, so its traffic has to stay on this machine or be
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
    """Return the scheme and host of an address; raise `UsageError` if it is invalid."""
    with suppress(ValueError):  # for a port that is not a number
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
    security = distributed.Security() if address.startswith("tls:") else None  # Dask's own
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
    """Do tasks on the cluster; see `run_tasks`."""
    desk = _Submitter(cluster, work, deque(numbers), emit)
    try:
        desk.work()
    finally:
        desk.withdraw()
    if desk.aside:
        raise tasks_failed(desk.aside, describe)


@dataclass
class _Submitter:
    """Submits a few tasks at a time, receives their results, and submits lost ones again."""

    cluster: Cluster
    task: Task
    pending: deque[int]
    emit: Emit
    lost: bool = True  # whether the cluster lacks the copy of `task`
    manned: float = field(default_factory=time.monotonic)  # when a worker was last there
    going: dict[Any, int] = field(default_factory=dict)  # Dask's futures
    deaths: dict[int, int] = field(default_factory=dict)
    aside: dict[int, str] = field(default_factory=dict)

    def work(self) -> None:
        while self.pending or self.going:
            self._look_for_workers()
            if self.lost:
                self._copy()
            while self.pending and len(self.going) < TASKS_AHEAD * len(self.cluster):
                self._hand_in(self.pending.popleft())
            for future in self._done():
                self._receive(future, self.going.pop(future))
            self.emit(None)

    def _look_for_workers(self) -> None:
        """Raise `CnnvisError` after `WORKERLESS_SECONDS` without any; one may be starting again."""
        if _client(self.cluster.address).scheduler_info(-1)["workers"]:
            self.manned = time.monotonic()
        elif time.monotonic() - self.manned > WORKERLESS_SECONDS:
            raise CnnvisError(
                f"{self.cluster.address}: has had no worker for {WORKERLESS_SECONDS} s; start "
                f"some with: dask worker {self.cluster.address}"
            )

    def _copy(self) -> None:
        """Send the workers the job once, and not with every task.

        It is sent as a result, which Dask computes again when the worker that holds it dies.
        Scattered data would be lost, and Dask hangs if a worker dies while it scatters.
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
        """Return futures that have ended, with a result or not; wait a moment if there are none."""
        until = time.monotonic() + 0.5
        while not (done := [future for future in self.going if future.done()]):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        return done

    def _receive(self, future: Any, number: int) -> None:
        try:
            told = future.result()  # which may also be lost on its way
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
            self.lost = True  # perhaps the copy was being sent
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
        """Cancel tasks that have not begun; those that have are finished there, and kept."""
        if self.going:
            _client(self.cluster.address).cancel(list(self.going))


def as_it_is(work: Task) -> Task:
    """Return the job as it was sent; runs on a worker."""
    return work


def do_piece(work: Task, kind: str, number: int) -> list[Any]:
    """Do one task and return the messages that it emitted; runs on a worker."""
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
    """Return a worker's slot, on the first device that it sees; in a daemon it decodes itself."""
    if kind == "cuda" and not torch.cuda.is_available():
        raise CnnvisError("a worker of the cluster sees no CUDA device; use --device cpu")
    device = torch.device("cuda:0" if kind == "cuda" else "cpu")
    decoders = 0 if kind == "cpu" or current_process().daemon else cores()
    return WorkerSlot(device, torch.get_num_threads(), decoders)
