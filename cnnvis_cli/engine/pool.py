"""Worker processes on this machine, each pinned to a device, that share tasks.

On a GPU, and if a process computes on several threads, they are fresh interpreters (loky), kept
from one call to the next. On a CPU with one thread each they are forked: they have the network, its
traces and the decoded images without loading them, and start at once.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import Pipe, connection, get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from loky.backend import get_context as get_loky
from loky.process_executor import ProcessPoolExecutor

from cnnvis_cli.engine.devices import in_short, is_lost, keep_memory, memory_explained
from cnnvis_cli.engine.slots import Emit, Notice, Task, TaskDone, WorkerSlot
from cnnvis_cli.errors import CnnvisError, Stopped, StorageError, TasksFailed, WorkerDied
from cnnvis_cli.report import leave_signals_to_the_parent

ATTEMPTS = 3  # a task that has ended this many processes is set aside
PATIENCE = 8  # seconds that a process has to end once its pipe is closed
IDLE_SECONDS = 60  # seconds after which a fresh process without work ends, as its parent may have
SURE = (2, 10)  # torch from which a trial shows whether a fork can compute gradients
LOST = 70  # exit code of a process whose device or parent is lost
End = connection.Connection


def share_tasks(
    work: Task,
    worker_slots: Sequence[WorkerSlot],
    numbers: Sequence[int],
    emit: Emit,
    describe: Callable[[int], str],
) -> None:
    """Do tasks in worker processes; see `run_tasks`."""
    pool = _Pool(work, list(worker_slots[: len(numbers)]), deque(numbers), emit)
    try:
        pool.work()
    finally:
        pool.close()
    if pool.aside:
        raise tasks_failed(pool.aside, describe)


def tasks_failed(pieces: dict[int, str], describe: Callable[[int], str]) -> TasksFailed:
    """Return the error that names the tasks that ended their processes, and how these ended."""
    number, why = min(pieces.items())
    more = f", and {len(pieces) - 1} more" if len(pieces) > 1 else ""
    return TasksFailed(
        f"{describe(number)}{more}: set aside after ending {ATTEMPTS} worker processes ({why}); "
        "everything else is done; run again to try once more, with fewer --workers if memory is "
        f"short{', or in a new --run with a smaller --batch-size' if KILLED in why else ''}",
        pieces,
    )


KILLED = "killed, most likely since memory ran out"


def _exit_reason(told: str) -> str:
    """Return how a process ended, from its exit code: the kernel kills (signal 9) for memory."""
    return KILLED if re.search(r"(?<!\d)-9\b", told) else told


def for_gradients(worker_slots: Sequence[WorkerSlot]) -> list[WorkerSlot]:
    """Return slots for work with gradients: for fresh processes where forks cannot compute any."""
    if len(worker_slots) < 2 or worker_slots[0].device.type != "cpu" or _forks_can_differentiate():
        return list(worker_slots)
    return [worker_slot._replace(fresh=True) for worker_slot in worker_slots]


def _forks_can_differentiate() -> bool:
    """Return whether a fork can compute gradients: tried out, since torch does not report it.

    If this process has used autograd, an old torch lets a fork begin, and may hang later.
    """
    used = torch._C._autograd._get_sequence_nr() > 0  # operations that autograd has recorded here
    if used and tuple(map(int, torch.__version__.split(".")[:2])) < SURE:
        return False
    child = os.fork()
    if not child:
        failed = 1
        try:
            torch.ones(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
            failed = 0
        finally:
            os._exit(failed)  # whatever was raised, this process goes no further
    return os.waitpid(child, 0)[1] == 0


class _Process(Protocol):
    """A worker process as the pool needs it."""

    def gone(self) -> bool:
        """Return whether it has died without its pipe being closed."""

    def why(self) -> str:
        """Return how it ended."""

    def release(self, until: float) -> None:
        """Let it end, at the latest by this time."""


class _Forked:
    """A copy of this process."""

    def __init__(
        self, work: Task, worker_slot: WorkerSlot, theirs: End, inherited: Sequence[End]
    ) -> None:
        context = get_context("fork")
        self._process: Any = context.Process(
            target=_forked, args=(work, worker_slot, theirs, inherited)
        )
        self._process.start()

    def gone(self) -> bool:
        return False

    def why(self) -> str:
        self._process.join()
        return _exit_reason(f"exit code {self._process.exitcode}")

    def release(self, until: float) -> None:
        self._process.join(max(0, until - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class _Idle(NamedTuple):
    """An interpreter without work, and when it became idle."""

    slot: WorkerSlot
    executor: ProcessPoolExecutor
    since: float


class _Fresh:
    """An interpreter of its own, perhaps one with torch and a network already loaded."""

    idle: list[_Idle] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, work: Task, slot: WorkerSlot, theirs: End) -> None:
        self._slot, self._executor = slot, self._kept(slot) or self._begun()
        self._future = self._executor.submit(_fresh, os.getpid(), work, slot, theirs)

    @classmethod
    def _kept(cls, slot: WorkerSlot) -> ProcessPoolExecutor | None:
        """Return an idle interpreter, but not one that may be ending at this moment."""
        for each in [each for each in cls.idle if each.slot == slot]:
            cls.idle.remove(each)
            if time.monotonic() - each.since < IDLE_SECONDS / 2:
                return each.executor
            each.executor.shutdown(wait=False, kill_workers=True)
        return None

    @staticmethod
    def _begun() -> ProcessPoolExecutor:
        """Return a new interpreter, which finds a user's own modules as this one does."""
        paths = [*sys.path, str(Path.cwd())]
        return ProcessPoolExecutor(
            max_workers=1,
            timeout=IDLE_SECONDS,
            context=get_loky("loky"),
            initializer=_find_in,
            initargs=(paths,),
        )

    def gone(self) -> bool:
        return self._future.done() and self._future.exception() is not None

    def why(self) -> str:
        with suppress(Exception):
            error = self._future.exception(timeout=PATIENCE)
            told = str(error).split("exit codes of the workers are ")[-1].split("\n")[0]
            return _exit_reason(told)
        return "no word"

    def release(self, until: float) -> None:
        with suppress(Exception):
            self._future.result(timeout=max(0, until - time.monotonic()))
            self.idle.append(_Idle(self._slot, self._executor, time.monotonic()))
            return
        self._executor.shutdown(wait=False, kill_workers=True)


@dataclass(eq=False)
class _Worker:
    """A worker as its parent sees it: a worker slot's process."""

    worker_slot: WorkerSlot
    process: _Process
    pipe: End
    theirs: End  # kept open here until the child has it
    starts: int = (
        1  # processes in a row of this worker slot that have taken no task yet, with this one
    )
    holds: list[int] = field(default_factory=list)
    last_words: str = ""
    ended: bool = False


@dataclass
class _Pool:
    """The parent's side: hands out tasks, receives messages, and replaces dead processes."""

    task: Task
    worker_slots: list[WorkerSlot]
    pending: deque[int]
    emit: Emit
    workers: list[_Worker] = field(default_factory=list)
    deaths: dict[int, int] = field(default_factory=dict)
    aside: dict[int, str] = field(default_factory=dict)  # tasks, and why they are set aside

    def work(self) -> None:
        for worker_slot in self.worker_slots:
            self._start(worker_slot)
        while any(not worker.ended for worker in self.workers):
            for worker in self._ready():
                self._receive(worker)
            self.emit(None)  # a chance to stop, also while all are busy

    def _start(self, worker_slot: WorkerSlot, starts: int = 1) -> None:
        # A forked child may compute on one thread only (OpenMP's threads are not copied), and
        # never on a GPU that its parent has used.
        ours, theirs = Pipe()
        if worker_slot.device.type == "cpu" and worker_slot.threads == 1 and not worker_slot.fresh:
            # It inherits our ends of all pipes so far; if it kept them, none would ever break.
            inherited = [*(worker.pipe for worker in self.workers), ours]
            process: _Process = _Forked(self.task, worker_slot, theirs, inherited)
            theirs.close()
        else:
            process = _Fresh(self.task, worker_slot, theirs)
        self.workers.append(_Worker(worker_slot, process, ours, theirs, starts))

    def _ready(self) -> list[_Worker]:
        waiting = {worker.pipe: worker for worker in self.workers if not worker.ended}
        ready: list[Any] = connection.wait(list(waiting), timeout=0.5)
        silent = [worker for pipe, worker in waiting.items() if pipe not in ready]
        return [waiting[pipe] for pipe in ready] + [h for h in silent if h.process.gone()]

    def _receive(self, worker: _Worker) -> None:
        worker.theirs.close()
        try:
            message = (
                None if worker.process.gone() and not worker.pipe.poll() else worker.pipe.recv()
            )
        except (EOFError, OSError):
            message = None
        if message is None:
            self._requeue(worker)
        elif isinstance(message, _Lost):
            worker.last_words = message.why
        elif message == _TAKE:
            worker.starts = 0
            number = self._choose(worker)
            if number is not None:
                worker.holds.append(number)
            with suppress(OSError):  # if it has just died
                worker.pipe.send(number)
        elif message == _END:
            worker.ended = True
            if self.pending:
                self._start(worker.worker_slot)
        elif isinstance(message, BaseException):
            raise message
        else:
            if isinstance(message, TaskDone):
                worker.holds.remove(message.number)
            self.emit(message)

    def _choose(self, worker: _Worker) -> int | None:
        """Return the next task for a worker; one that a dead worker held is handed out alone."""
        if any(number in self.deaths for number in worker.holds):
            return None
        fitting = (n for n in self.pending if not (worker.holds and n in self.deaths))
        number = next(fitting, None)
        if number is not None:
            self.pending.remove(number)
        return number

    def _requeue(self, worker: _Worker) -> None:
        """Hand a dead worker's tasks to another, up to a limit."""
        worker.ended = True
        why = worker.last_words or worker.process.why()
        for number in worker.holds:
            self.deaths[number] = self.deaths.get(number, 0) + 1
        hopeless = [number for number in worker.holds if self.deaths[number] >= ATTEMPTS]
        self.aside |= dict.fromkeys(hopeless, why)
        self.pending.extendleft(n for n in reversed(worker.holds) if n not in hopeless)
        if worker.starts >= ATTEMPTS:
            self._give_up(worker.worker_slot, why)
        elif self.pending:
            if worker.last_words or why == KILLED:
                ended = f"{worker.worker_slot.device}: a worker process ended ({why})"
                self.emit(Notice(f"{ended}; another does its work"))
            self._start(worker.worker_slot, worker.starts + 1)

    def _give_up(self, worker_slot: WorkerSlot, why: str) -> None:
        """Go on without a worker slot whose processes end before they take any task.

        Raise `CnnvisError` if it was the last one.
        """
        ended = f"worker processes ended {ATTEMPTS} times before they took any work ({why})"
        if all(worker.ended for worker in self.workers):
            raise CnnvisError(f"{ended}; use fewer --workers or a smaller --batch-size")
        self.emit(Notice(f"{worker_slot.device}: {ended}; the work goes on without it"))

    def close(self) -> None:
        """End every process; closing their pipes ends those that are still at work."""
        for worker in self.workers:
            worker.pipe.close()
            worker.theirs.close()
        until = time.monotonic() + PATIENCE
        for worker in self.workers:
            worker.process.release(until)


def _find_in(paths: Sequence[str]) -> None:
    sys.path[:] = dict.fromkeys([*sys.path, *paths])


_TAKE, _END = "take", "end"


class _Lost(NamedTuple):
    """A process's last message: why it can do nothing more."""

    why: str


def release_idle() -> None:
    """End the idle fresh processes, which frees the GPU memory that they hold."""
    while _Fresh.idle:
        _Fresh.idle.pop().executor.shutdown(kill_workers=True)


def _forked(work: Task, worker_slot: WorkerSlot, pipe: End, inherited: Sequence[End]) -> None:
    for other in inherited:
        other.close()
    run_worker(work, worker_slot, pipe)


def _fresh(parent: int, work: Task, worker_slot: WorkerSlot, pipe: End) -> None:
    _end_with(parent)
    run_worker(work, worker_slot, pipe)


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """End this process soon after its parent, which loky's queue notices only after a minute."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()


def run_worker(work: Task, worker_slot: WorkerSlot, pipe: End) -> None:
    """Do the child's side: work until no tasks are left, or the parent has gone."""
    leave_signals_to_the_parent()
    keep_memory()
    torch.set_num_threads(worker_slot.threads)
    one_at_a_time = threading.Lock()  # tasks may be taken in one thread and reported in another

    def send(message: Any) -> None:
        with one_at_a_time:
            pipe.send(message)

    def take() -> Iterator[int]:
        while True:
            send(_TAKE)
            number = pipe.recv()
            if number is None:
                return
            yield number

    try:
        with memory_explained(worker_slot.device):
            work(worker_slot, take(), send)
        send(_END)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        return  # the parent has stopped
    except Exception as error:
        lost = isinstance(error, WorkerDied) or is_lost(error)  # then another process can do it
        with suppress(OSError):
            send(_Lost(in_short(error)) if lost else portable(error))
        if lost:
            os._exit(LOST)
    finally:
        pipe.close()


def portable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process."""
    if isinstance(error, CnnvisError) and not isinstance(error, Stopped):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return StorageError(f"input/output error in a worker process: {error}; run again")
    return CnnvisError(f"a worker process failed: {type(error).__name__}: {error}")
