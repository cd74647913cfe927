"""The devices and the processes that the work runs on."""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from cnnvis_cli.errors import CnnvisError, Stopped, UsageError
from cnnvis_cli.plan import Precision
from cnnvis_cli.report import leave_signals_to_the_parent

T = TypeVar("T")
R = TypeVar("R")
ATTEMPTS = 3  # a piece of work that ends its process so often is not tried again
PATIENCE = 10  # seconds that a process has to end when it is told to


def choose_devices(names: str) -> tuple[torch.device, ...]:
    """The devices of a ``--device`` option, ``cuda:0,cuda:1``; ``auto`` is CUDA where there is one.

    Raises `UsageError` for a device that is asked for and absent.
    """
    # Full single precision and one order of summation: the same numbers each time.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    found = tuple(_device(name.strip()) for name in names.split(","))
    if len({device.type for device in found}) > 1:
        raise UsageError(f"--device {names}: devices of two kinds give different last bits")
    return found


def choose_device(names: str) -> torch.device:
    """The first device of a ``--device`` option, for work that runs on one."""
    return choose_devices(names)[0]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r}: use auto, cpu, cuda or cuda:0,cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: use auto, cpu, cuda or cuda:0,cuda:1")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: there is no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {name}: there are {count}, cuda:0 to cuda:{count - 1}")
    return device


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise `UsageError` for arithmetic that the device does not have."""
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 is arithmetic of CUDA devices, not of {device.type}")


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """A block in which networks compute in float32, TF32 or bfloat16."""
    cudnn, blas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, blas.allow_tf32
    cudnn.allow_tf32 = blas.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        cudnn.allow_tf32, blas.allow_tf32 = before


Pass = Callable[[torch.Tensor, torch.Tensor], Any]


def captured(function: Pass, *examples: torch.Tensor) -> Pass:
    """On a GPU, the function as one launch for arguments of these shapes (a CUDA graph).

    Small canvases are bound by launches. The results are overwritten by the next call.
    """
    if examples[0].device.type != "cuda":
        return function
    held = [example.clone() for example in examples]
    side: Any = torch.cuda.Stream(examples[0].device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(examples[0].device))
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose and allocate before anything is captured
            function(*held)
    torch.cuda.current_stream(examples[0].device).wait_stream(side)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*held)

    def replay(*arguments: torch.Tensor) -> Any:
        for place, argument in zip(held, arguments, strict=True):
            place.copy_(argument)
        graph.replay()
        return results

    return replay


def keep_memory() -> None:
    """Have glibc keep freed blocks instead of giving them back to the system.

    Every map of a batch is allocated and freed again; fetching its pages anew each time costs
    more than a third of a forward pass on a CPU. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)


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


def _table(path: Path) -> dict[str, int]:
    """A file of names and numbers, line by line."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


class Lane(NamedTuple):
    """What one process works with: a device, threads, and processes that decode for it."""

    device: torch.device
    threads: int
    decoders: int


def lanes(devices: Sequence[torch.device], workers: int | None, need: int) -> list[Lane]:
    """How to divide this machine; `need` is the memory of one lane on the CPU, in bytes.

    A GPU has one process, and `workers` processes in all decode for the GPUs. On a CPU `workers`
    processes (by default one a core, as far as memory reaches) decode and compute, each its own
    images: none waits for another. With 0 everything happens in this process.
    """
    if devices[0].type == "cuda":
        decoders = cores() if workers is None else workers
        return [Lane(device, 1, -(-decoders // len(devices))) for device in devices]
    room = max(1, available_memory() // need)
    count = max(len(devices), min(cores(), room) if workers is None else max(workers, 1))
    return [Lane(devices[0], max(1, torch.get_num_threads() // count), 0)] * count


Tell = Callable[[Any], None]
Pipe = connection.Connection
Work = Callable[[Lane, Iterator[int], Tell], None]


class Finished(NamedTuple):
    """Told by a lane: this piece of work is done and safe."""

    number: int


def spread(work: Work, lanes: Sequence[Lane], numbers: Sequence[int], tell: Tell) -> None:
    """Have the lanes do pieces of work, given out one at a time; `tell` hears what they tell.

    Each lane calls ``work(lane, numbers, tell)`` in a process of its own and tells `Finished`
    for each number. A single lane works in this process. A process that dies costs what it had in
    hand, which another does; raises `CnnvisError` for a piece that ended `ATTEMPTS` processes,
    and whatever `work` or `tell` raises.
    """
    if len(lanes) == 1 or len(numbers) < 2:
        work(lanes[0], iter(numbers), tell)
        return
    crew = _Crew(work, list(lanes[: len(numbers)]), deque(numbers), tell)
    try:
        crew.work()
    finally:
        crew.dismiss()


@dataclass(eq=False)
class _Hand:
    """A lane's process as its parent sees it."""

    lane: Lane
    process: Any
    pipe: Pipe
    holds: list[int] = field(default_factory=list)
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

    def work(self) -> None:
        for lane in self.lanes:
            self._hire(lane)
        while any(not hand.ended for hand in self.hands):
            for hand in self._ready():
                self._hear(hand)
            self.tell(None)  # a moment to stop, also while all are busy

    def _hire(self, lane: Lane) -> None:
        # A forked child has the network without loading it; it may compute on one thread only
        # (OpenMP's threads do not come along), and never on a GPU that its parent has used.
        forked = lane.device.type == "cpu" and lane.threads == 1
        context: Any = get_context("fork" if forked else "spawn")
        ours, theirs = context.Pipe()
        # A forked child also holds our ends of all pipes so far; open there, none would ever break.
        inherited = [*(hand.pipe for hand in self.hands), ours] if forked else []
        process = context.Process(target=_lane, args=(self.task, lane, theirs, inherited))
        process.start()
        theirs.close()
        self.hands.append(_Hand(lane, process, ours))

    def _ready(self) -> list[_Hand]:
        waiting = {hand.pipe: hand for hand in self.hands if not hand.ended}
        ready = connection.wait(list(waiting), timeout=0.5)
        return [waiting[pipe] for pipe in ready]  # type: ignore[index]

    def _hear(self, hand: _Hand) -> None:
        try:
            message = hand.pipe.recv()
        except (EOFError, OSError):
            self._mourn(hand)
            return
        if message == _TAKE:
            number = self.pending.popleft() if self.pending else None
            hand.holds += [] if number is None else [number]
            with suppress(OSError):  # of one that has just died
                hand.pipe.send(number)
        elif message == _END:
            hand.ended = True
        elif isinstance(message, BaseException):
            raise message
        else:
            if isinstance(message, Finished):
                hand.holds.remove(message.number)
            self.tell(message)

    def _mourn(self, hand: _Hand) -> None:
        """What a dead process had in hand goes to another, up to a limit."""
        hand.ended = True
        hand.process.join()
        for number in hand.holds or [_NOTHING]:
            self.deaths[number] = self.deaths.get(number, 0) + 1
            if self.deaths[number] >= ATTEMPTS:
                what = "worker processes" if number == _NOTHING else f"those for part {number}"
                raise CnnvisError(
                    f"{what} ended {ATTEMPTS} times without a word (exit code "
                    f"{hand.process.exitcode}; -9 often means that memory was short); "
                    "use fewer --workers or a smaller --batch-size"
                )
        self.pending.extendleft(reversed(hand.holds))
        self._hire(hand.lane)

    def dismiss(self) -> None:
        """End every process, those that are still at work by closing their pipe."""
        for hand in self.hands:
            hand.pipe.close()
        until = time.monotonic() + PATIENCE
        for hand in self.hands:
            hand.process.join(max(0, until - time.monotonic()))
            if hand.process.is_alive():
                hand.process.kill()
                hand.process.join()


class Aside:
    """Does one thing at a time in a thread of its own, while the work goes on."""

    def __enter__(self) -> Aside:
        self._pool = ThreadPoolExecutor(1)
        self._going: Future[Any] | None = None
        return self

    def begin(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Begin something, once the last thing is done."""
        self.settle()
        self._going = self._pool.submit(action, *arguments)

    def settle(self) -> None:
        """Wait for what was begun; raises what it raised."""
        if self._going is not None:
            going, self._going = self._going, None
            going.result()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def in_threads(action: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    """What the action makes of each item, in their order, on as many threads as cores.

    For actions that leave the interpreter, such as decoding. Close it to begin no more of them.
    """
    pool = ThreadPoolExecutor(cores())
    try:
        yield from pool.map(action, items)
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The items, each begun in a thread of its own while the one before it is worked with."""
    source, pool = iter(items), ThreadPoolExecutor(1)
    try:
        going = pool.submit(next, source, _OVER)
        while (item := going.result()) is not _OVER:
            going = pool.submit(next, source, _OVER)
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown()


def in_order(action: Callable[[T], R], items: Iterable[T], count: int) -> Generator[R, None, None]:
    """What the action makes of each item, in their order, on so many threads.

    Never more than one item more than threads is held. With several threads each computes with
    one of torch's: that is faster than one after the other on all of them.
    """
    before, going, pool = torch.get_num_threads(), deque[Future[R]](), ThreadPoolExecutor(count)
    if count > 1:
        torch.set_num_threads(1)
    try:
        for item in items:
            going.append(pool.submit(action, item))
            if len(going) > count:
                yield going.popleft().result()
        while going:
            yield going.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


_OVER = object()  # after the last item
_TAKE, _END = "take", "end"
_NOTHING = -1  # in hand


def _lane(work: Work, lane: Lane, pipe: Pipe, inherited: Sequence[Pipe]) -> None:
    """The child's side: work until nothing is given out any more, or the parent has gone."""
    for other in inherited:
        other.close()
    leave_signals_to_the_parent()
    keep_memory()
    torch.set_num_threads(lane.threads)

    def take() -> Iterator[int]:
        while True:
            pipe.send(_TAKE)
            number = pipe.recv()
            if number is None:
                return
            yield number

    try:
        work(lane, take(), pipe.send)
        pipe.send(_END)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        return  # the parent has stopped
    except Exception as error:
        with suppress(OSError):
            pipe.send(_portable(error))


def _portable(error: Exception) -> Exception:
    """An exception that survives the way to another process."""
    if isinstance(error, CnnvisError) and not isinstance(error, Stopped):
        return error
    return CnnvisError(f"a worker process failed: {type(error).__name__}: {error}")
