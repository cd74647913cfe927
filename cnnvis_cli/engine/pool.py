"""Worker processes on this machine, each pinned to a device, that share pieces of work.

On a GPU, and where a process computes on several threads, they are fresh interpreters (loky), kept
from one call to the next. On a CPU with one thread each they are forked: they have the network, its
traces and the decoded images without loading them, and start at once.
"""

from __future__ import annotations

import os
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
from cnnvis_cli.engine.slots import Finished, Lane, Notice, Tell, Work
from cnnvis_cli.errors import CnnvisError, Died, SetAside, Stopped
from cnnvis_cli.report import leave_signals_to_the_parent

ATTEMPTS = 3  # a piece of work that ends its process so often is set aside
PATIENCE = 8  # seconds that a process has to end when it is told to
IDLE = 60  # seconds after which a fresh process without work ends, as its parent may have
LOST = 70  # exit code of a process whose device is of no more use
End = connection.Connection


def share_out(
    work: Work,
    lanes: Sequence[Lane],
    numbers: Sequence[int],
    tell: Tell,
    called: Callable[[int], str],
) -> None:
    """Have worker processes do pieces of work; see `spread`."""
    crew = _Crew(work, list(lanes[: len(numbers)]), deque(numbers), tell)
    try:
        crew.work()
    finally:
        crew.dismiss()
    if crew.aside:
        raise set_aside(crew.aside, called)


def set_aside(pieces: dict[int, str], called: Callable[[int], str]) -> SetAside:
    """The error that names the pieces that ended their processes, and how."""
    number, why = min(pieces.items())
    more = f", and {len(pieces) - 1} more" if len(pieces) > 1 else ""
    return SetAside(
        f"{called(number)}{more}: set aside after ending {ATTEMPTS} worker processes ({why}); "
        "everything else is done; run again to try once more, with fewer --workers if memory is "
        "short",
        pieces,
    )


def for_gradients(lanes: Sequence[Lane]) -> list[Lane]:
    """The lanes for work that differentiates: torch cannot in a fork of a process that has."""
    if len(lanes) < 2 or lanes[0].device.type != "cpu" or _forks_can_differentiate():
        return list(lanes)
    return [lane._replace(fresh=True) for lane in lanes]


def _forks_can_differentiate() -> bool:
    """Tried out, since torch does not tell.

    torch 2.6 lets a fork begin where this process has followed a gradient, and may hang later.
    """
    if torch._C._autograd._get_sequence_nr():  # operations that autograd has noted here
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
    """What a crew must know of a process."""

    def gone(self) -> bool:
        """Whether it has died in a way that its pipe does not tell."""

    def why(self) -> str:
        """How it ended."""

    def release(self, until: float) -> None:
        """Have it end, at the latest by this time."""


class _Forked:
    """A copy of this process."""

    def __init__(self, work: Work, lane: Lane, theirs: End, inherited: Sequence[End]) -> None:
        context = get_context("fork")
        self._process: Any = context.Process(target=_forked, args=(work, lane, theirs, inherited))
        self._process.start()

    def gone(self) -> bool:
        return False

    def why(self) -> str:
        self._process.join()
        return f"exit code {self._process.exitcode}"

    def release(self, until: float) -> None:
        self._process.join(max(0, until - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class _Fresh:
    """An interpreter of its own, which has loaded torch and perhaps a network already."""

    idle: list[tuple[Lane, ProcessPoolExecutor]] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, work: Work, lane: Lane, theirs: End) -> None:
        self._lane = lane
        kept = next((each for each in self.idle if each[0] == lane), None)
        if kept is not None:
            self.idle.remove(kept)
        self._executor = kept[1] if kept is not None else self._begun()
        self._future = self._executor.submit(_fresh, os.getpid(), work, lane, theirs)

    @staticmethod
    def _begun() -> ProcessPoolExecutor:
        """A new interpreter, which finds a person's own modules as this one does."""
        paths = [*sys.path, str(Path.cwd())]
        return ProcessPoolExecutor(
            max_workers=1,
            timeout=IDLE,
            context=get_loky("loky"),
            initializer=_find_in,
            initargs=(paths,),
        )

    def gone(self) -> bool:
        return self._future.done() and self._future.exception() is not None

    def why(self) -> str:
        with suppress(Exception):
            error = self._future.exception(timeout=PATIENCE)
            return str(error).split("exit codes of the workers are ")[-1].split("\n")[0]
        return "no word"

    def release(self, until: float) -> None:
        with suppress(Exception):
            self._future.result(timeout=max(0, until - time.monotonic()))
            self.idle.append((self._lane, self._executor))
            return
        self._executor.shutdown(wait=False, kill_workers=True)


@dataclass(eq=False)
class _Hand:
    """A lane's process as its parent sees it."""

    lane: Lane
    process: _Process
    pipe: End
    theirs: End  # open here as well until it has arrived there
    starts: int = 1  # processes of this lane that have not taken anything yet, this one counted
    holds: list[int] = field(default_factory=list)
    last_words: str = ""
    ended: bool = False


@dataclass
class _Crew:
    """The parent's side: gives out work, hears, and replaces processes that die."""

    task: Work
    lanes: list[Lane]
    pending: deque[int]
    tell: Tell
    hands: list[_Hand] = field(default_factory=list)
    deaths: dict[int, int] = field(default_factory=dict)
    aside: dict[int, str] = field(default_factory=dict)  # and why

    def work(self) -> None:
        for lane in self.lanes:
            self._hire(lane)
        while any(not hand.ended for hand in self.hands):
            for hand in self._ready():
                self._hear(hand)
            self.tell(None)  # a moment to stop, also while all are busy

    def _hire(self, lane: Lane, starts: int = 1) -> None:
        # A forked child may compute on one thread only (OpenMP's threads do not come along), and
        # never on a GPU that its parent has used.
        ours, theirs = Pipe()
        if lane.device.type == "cpu" and lane.threads == 1 and not lane.fresh:
            # It also holds our ends of all pipes so far; open there, none would ever break.
            inherited = [*(hand.pipe for hand in self.hands), ours]
            process: _Process = _Forked(self.task, lane, theirs, inherited)
            theirs.close()
        else:
            process = _Fresh(self.task, lane, theirs)
        self.hands.append(_Hand(lane, process, ours, theirs, starts))

    def _ready(self) -> list[_Hand]:
        waiting = {hand.pipe: hand for hand in self.hands if not hand.ended}
        ready: list[Any] = connection.wait(list(waiting), timeout=0.5)
        silent = [hand for pipe, hand in waiting.items() if pipe not in ready]
        return [waiting[pipe] for pipe in ready] + [h for h in silent if h.process.gone()]

    def _hear(self, hand: _Hand) -> None:
        hand.theirs.close()
        try:
            message = None if hand.process.gone() and not hand.pipe.poll() else hand.pipe.recv()
        except (EOFError, OSError):
            message = None
        if message is None:
            self._mourn(hand)
        elif isinstance(message, _Lost):
            hand.last_words = message.why
        elif message == _TAKE:
            hand.starts = 0
            number = self._choose(hand)
            hand.holds += [] if number is None else [number]
            with suppress(OSError):  # of one that has just died
                hand.pipe.send(number)
        elif message == _END:
            hand.ended = True
            if self.pending:
                self._hire(hand.lane)
        elif isinstance(message, BaseException):
            raise message
        else:
            if isinstance(message, Finished):
                hand.holds.remove(message.number)
            self.tell(message)

    def _choose(self, hand: _Hand) -> int | None:
        """The next piece for a process; one that was there when another died is given alone."""
        if any(number in self.deaths for number in hand.holds):
            return None
        fitting = (n for n in self.pending if not (hand.holds and n in self.deaths))
        number = next(fitting, None)
        if number is not None:
            self.pending.remove(number)
        return number

    def _mourn(self, hand: _Hand) -> None:
        """What a dead process had in hand goes to another, up to a limit."""
        hand.ended = True
        why = hand.last_words or hand.process.why()
        for number in hand.holds:
            self.deaths[number] = self.deaths.get(number, 0) + 1
        hopeless = [number for number in hand.holds if self.deaths[number] >= ATTEMPTS]
        self.aside |= dict.fromkeys(hopeless, why)
        self.pending.extendleft(n for n in reversed(hand.holds) if n not in hopeless)
        if hand.starts >= ATTEMPTS:
            self._give_up(hand.lane, why)
        elif self.pending:
            if hand.last_words:
                ended = f"{hand.lane.device}: a worker process ended ({why})"
                self.tell(Notice(f"{ended}; another does its work"))
            self._hire(hand.lane, hand.starts + 1)

    def _give_up(self, lane: Lane, why: str) -> None:
        """Go on without a lane whose processes end before they take any work.

        Raises `CnnvisError` where it was the last one.
        """
        ended = f"worker processes ended {ATTEMPTS} times before they took any work ({why})"
        if all(hand.ended for hand in self.hands):
            raise CnnvisError(f"{ended}; use fewer --workers or a smaller --batch-size")
        self.tell(Notice(f"{lane.device}: {ended}; the work goes on without it"))

    def dismiss(self) -> None:
        """End every process, those that are still at work by closing their pipe."""
        for hand in self.hands:
            hand.pipe.close()
            hand.theirs.close()
        until = time.monotonic() + PATIENCE
        for hand in self.hands:
            hand.process.release(until)


def _find_in(paths: Sequence[str]) -> None:
    sys.path[:] = dict.fromkeys([*sys.path, *paths])


_TAKE, _END = "take", "end"


class _Lost(NamedTuple):
    """A process's last words: why it can do nothing more."""

    why: str


def release_idle() -> None:
    """End the fresh processes that are kept without work, and with them what they hold of GPUs."""
    while _Fresh.idle:
        _Fresh.idle.pop()[1].shutdown(kill_workers=True)


def _forked(work: Work, lane: Lane, pipe: End, inherited: Sequence[End]) -> None:
    for other in inherited:
        other.close()
    run_lane(work, lane, pipe)


def _fresh(parent: int, work: Work, lane: Lane, pipe: End) -> None:
    _end_with(parent)
    run_lane(work, lane, pipe)


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """Have this process end soon after its parent: loky's queue does not tell it, for a minute."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()


def run_lane(work: Work, lane: Lane, pipe: End) -> None:
    """The child's side: work until nothing is given out any more, or the parent has gone."""
    leave_signals_to_the_parent()
    keep_memory()
    torch.set_num_threads(lane.threads)
    one_at_a_time = threading.Lock()  # work may be taken in another thread than is told of it

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
        with memory_explained(lane.device):
            work(lane, take(), send)
        send(_END)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        return  # the parent has stopped
    except Exception as error:
        lost = isinstance(error, Died) or is_lost(error)  # then another process can do it
        with suppress(OSError):
            send(_Lost(in_short(error)) if lost else portable(error))
        if lost:
            os._exit(LOST)
    finally:
        pipe.close()


def portable(error: Exception) -> Exception:
    """An exception that survives the way to another process."""
    if isinstance(error, CnnvisError) and not isinstance(error, Stopped):
        return error
    return CnnvisError(f"a worker process failed: {type(error).__name__}: {error}")
