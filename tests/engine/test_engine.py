"""Processes that share work: all of it is done once, whatever happens to them."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnvis_cli import __main__ as entry
from cnnvis_cli import engine
from cnnvis_cli.engine import (
    Aside,
    Emit,
    TaskDone,
    WorkerSlot,
    choose_devices,
    in_threads,
    run_tasks,
    worker_slots,
)
from cnnvis_cli.errors import CnnvisError, Stopped, StorageError, TasksFailed, UsageError

CPU = torch.device("cpu")
machine = sys.modules["cnnvis_cli.engine.slots"]
FORKED, SPAWNED = WorkerSlot(CPU, 1, 0), WorkerSlot(CPU, 2, 0)


def note(folder: Path, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    """Leave a file for each piece, with the process that did it."""
    for number in numbers:
        time.sleep(0.02)
        (folder / str(number)).write_text(f"{os.getpid()} {torch.get_num_threads()}")
        emit(f"did {number}")
        emit(TaskDone(number))


def die_once(folder: Path, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    """The process that gets piece 2 first is killed."""
    for number in numbers:
        if number == 2 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        note(folder, worker_slot, iter([number]), emit)


def die_always(folder: Path, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    for number in numbers:
        if number == 2:
            os._exit(7)
        note(folder, worker_slot, iter([number]), emit)


def fail(error: Exception, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    for _ in numbers:
        raise error


def dawdle(worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    for number in numbers:
        while True:
            time.sleep(0.05)
            emit(number)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder."""
    (tmp_path / "pieces").mkdir()
    return tmp_path / "pieces"


def files(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize("worker_slot", [FORKED, SPAWNED], ids=["forked", "spawned"])
def test_every_piece_is_done_by_one_of_the_processes(worker_slot: WorkerSlot, folder: Path) -> None:
    heard: list[Any] = []
    run_tasks(functools.partial(note, folder), [worker_slot, worker_slot], range(6), heard.append)
    assert files(folder) == list(range(6))
    assert sorted(m for m in heard if isinstance(m, str)) == [f"did {n}" for n in range(6)]
    by = {path.read_text() for path in folder.iterdir()}
    assert str(os.getpid()) not in {text.split()[0] for text in by}
    assert {text.split()[1] for text in by} == {str(worker_slot.threads)}


def test_one_lane_works_here(folder: Path) -> None:
    run_tasks(functools.partial(note, folder), [FORKED], range(3), lambda _: None)
    by = {path.read_text().split()[0] for path in folder.iterdir()}
    assert by == {str(os.getpid())}


def test_what_a_killed_process_had_in_hand_is_done_by_another(folder: Path) -> None:
    run_tasks(functools.partial(die_once, folder), [FORKED, FORKED], range(6), lambda _: None)
    assert files(folder) == list(range(6))
    assert (folder / "died").exists()


def test_a_piece_that_kills_every_process_is_named(folder: Path) -> None:
    with pytest.raises(TasksFailed, match=r"part 2: set aside .* 3 .*exit code 7") as found:
        run_tasks(functools.partial(die_always, folder), [FORKED] * 2, range(6), lambda _: None)
    assert found.value.numbers == {2}
    assert files(folder) == [0, 1, 3, 4, 5]  # everything else is done


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StorageError("disk full"), StorageError),
        (UsageError("no"), UsageError),
        (ValueError("odd"), CnnvisError),
    ],
)
def test_an_error_reaches_the_parent(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=str(error)) as found:
        run_tasks(functools.partial(fail, error), [FORKED, FORKED], range(4), lambda _: None)
    assert type(found.value) is kind


def test_the_wish_to_stop_ends_the_processes_at_once() -> None:
    begun: list[Any] = []

    def on_event(message: Any) -> None:
        begun.append(message)
        if len(begun) > 10:
            raise Stopped("now")

    start = time.monotonic()
    with pytest.raises(Stopped):
        run_tasks(dawdle, [FORKED, FORKED], range(4), on_event)
    assert time.monotonic() - start < engine.PATIENCE - 2  # nobody had to be killed


def test_lanes_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(machine, "available_memory", lambda: 10_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert worker_slots([CPU], None, 100) == [WorkerSlot(CPU, 1, 0)] * 4
    assert (
        worker_slots([CPU], None, 5000) == [WorkerSlot(CPU, 2, 0)] * 2
    )  # as far as memory reaches
    assert worker_slots([CPU], None, 50_000) == [WorkerSlot(CPU, 4, 0)]
    assert worker_slots([CPU], 3, 5000) == [WorkerSlot(CPU, 1, 0)] * 3  # as asked
    assert worker_slots([CPU], 0, 100) == [WorkerSlot(CPU, 4, 0)]
    assert worker_slots([CPU, CPU], 1, 100) == [WorkerSlot(CPU, 2, 0)] * 2


def test_lanes_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    gpus = [torch.device("cuda:0"), torch.device("cuda:2")]
    assert worker_slots(gpus, None, 1) == [WorkerSlot(gpus[0], 1, 4), WorkerSlot(gpus[1], 1, 4)]
    assert worker_slots(gpus[:1], 3, 1) == [WorkerSlot(gpus[0], 1, 3)]


def test_devices() -> None:
    assert choose_devices("cpu") == (CPU,)
    assert choose_devices("cpu,cpu") == (CPU, CPU)
    for names in ("tpu", "cpu,", "mps", "cuda:zero"):
        with pytest.raises(UsageError, match="--device"):
            choose_devices(names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_asked_for_and_absent_is_refused() -> None:
    for names in ("cuda", "cuda:0,cuda:1"):
        with pytest.raises(UsageError, match="no CUDA device"):
            choose_devices(names)


def test_aside_raises_what_went_wrong_there() -> None:
    with Aside() as aside:
        aside.begin(int, "no number")
        with pytest.raises(ValueError, match="no number"):
            aside.settle()
        aside.begin(int, "3")
        aside.settle()
        aside.settle()


def test_a_container_s_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = engine.available_memory()
    monkeypatch.setattr(machine, "CONTROL", tmp_path)
    assert engine.available_memory() <= 1 << 62
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 700\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert free > 0
    assert engine.available_memory() == 2700  # what is only a cache can be had
    assert engine.cores() == 1
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert engine.available_memory() > 2700
    assert engine.cores() == len(os.sched_getaffinity(0))


def test_threads_give_results_in_order_and_begin_nothing_after_a_failure() -> None:
    assert list(in_threads(lambda number: number * number, range(50))) == [n * n for n in range(50)]
    begun: list[int] = []

    def fail(number: int) -> int:
        begun.append(number)
        time.sleep(0.001)
        if number == 3:
            raise CnnvisError("the fourth")
        return number

    results = in_threads(fail, range(1000))
    with pytest.raises(CnnvisError, match="the fourth"), closing(results):
        list(results)
    assert len(begun) < 1000


def test_waiting_threads_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP's default would burn a core per thread while others use the machine."""
    seen: list[str | None] = []
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr("cnnvis_cli.cli.main", lambda: seen.append(os.environ["OMP_WAIT_POLICY"]))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    entry.main()
    assert seen == ["PASSIVE"]
