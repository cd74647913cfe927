"""Processes that share real work: killed, out of memory, orphaned, and after autograd."""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnvis_cli.dataset.batches import Batches
from cnnvis_cli.digests import file_digest
from cnnvis_cli.engine import Emit, TaskDone, WorkerSlot, for_gradients, pool, run_tasks
from cnnvis_cli.errors import CnnvisError, TasksFailed, WorkerDied
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.topk.worker import scan
from cnnvis_cli.store.optimized import OptimizedFile

Call = Callable[..., Any]
CPU = torch.device("cpu")
FORKED, FRESH = WorkerSlot(CPU, 1, 0), WorkerSlot(CPU, 1, 0, fresh=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder."""
    (tmp_path / "pieces").mkdir()
    return tmp_path / "pieces"


def done(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


# -- what processes can come to: at piece 2, once or each time ----------------------------------


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def device_lost() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def decoder_lost() -> None:
    raise WorkerDied("a decoding process died")


def trouble(
    folder: Path, once: bool, end: Call, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit
) -> None:
    """Leave a file for each piece; at piece 2 something happens."""
    for number in numbers:
        if number == 2 and not (once and (folder / "happened").exists()):
            (folder / "happened").touch()
            end()
        time.sleep(0.02)
        (folder / str(number)).write_text(str(os.getpid()))
        emit(TaskDone(number))


@pytest.mark.parametrize(
    ("worker_slot", "end"),
    [(FORKED, killed), (FORKED, device_lost), (FORKED, decoder_lost), (FRESH, killed)],
)
def test_what_a_lost_process_had_in_hand_is_done_by_another(
    worker_slot: WorkerSlot, end: Call, folder: Path
) -> None:
    run_tasks(
        functools.partial(trouble, folder, True, end), [worker_slot] * 2, range(6), lambda _: None
    )
    assert done(folder) == list(range(6))
    assert (folder / "happened").exists()
    assert str(os.getpid()) not in {(folder / str(n)).read_text() for n in range(6)}


@pytest.mark.parametrize(
    ("worker_slot", "end"), [(FORKED, killed), (FORKED, device_lost), (FRESH, device_lost)]
)
def test_a_piece_that_ends_three_processes_is_set_aside(
    worker_slot: WorkerSlot, end: Call, folder: Path
) -> None:
    work = functools.partial(trouble, folder, False, end)
    with pytest.raises(TasksFailed, match="the third: set aside after ending 3 worker") as found:
        run_tasks(
            work, [worker_slot] * 2, range(6), lambda _: None, ["", "", "the third"].__getitem__
        )
    assert found.value.numbers == {2}
    assert done(folder) == [0, 1, 3, 4, 5]


def test_an_error_of_this_kind_in_this_process_is_an_error(folder: Path) -> None:
    """There is no other process that could do it."""
    with pytest.raises(RuntimeError, match="CUDA error"):
        run_tasks(
            functools.partial(trouble, folder, True, device_lost),
            [FORKED],
            range(3),
            lambda _: None,
        )


# -- memory -------------------------------------------------------------------------------------

SHORT = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "python": MemoryError(),
    "allocator": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", SHORT)
def test_memory_that_runs_out_is_one_line_with_a_remedy(
    kind: str, workers: int, plans: None, cnnvis: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(work: Any, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
        next(numbers)
        with Path("tried").open("a") as file:
            file.write(f"{work.cut.size}\n")
        raise SHORT[kind]

    monkeypatch.setattr("cnnvis_cli.stages.topk.stage.scan", short)
    told = cnnvis(f"topk images -c exact.toml --run run --workers {workers}", code=1)
    assert re.search("cpu: memory ran out .*fewer --workers .*smaller --batch-size", told.err)
    assert set(Path("tried").read_text().split()) == {"4"}  # never another size
    monkeypatch.undo()


def test_a_failed_read_in_a_process_is_one_of_the_system(
    plans: None, cnnvis: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a process that draws a gallery and looks at what a picture is made from."""

    def wrong(work: Any, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
        raise OSError(errno.EIO, "Input/output error", "run/optimized/conv1.h5")

    monkeypatch.setattr("cnnvis_cli.stages.topk.stage.scan", wrong)
    told = cnnvis("topk images -c exact.toml --run run --workers 2", code=4)
    assert "run/optimized/conv1.h5" in told.err


def test_a_digest_that_cannot_be_read_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", broken)
    with pytest.raises(OSError, match=f"Input/output error: '{__file__}'"):
        file_digest(Path(__file__))


def test_another_error_of_a_process_is_no_lack_of_memory(
    plans: None, cnnvis: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(work: Any, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("cnnvis_cli.stages.topk.stage.scan", wrong)
    told = cnnvis("topk images -c exact.toml --run run --workers 2", code=1)
    assert "a worker process failed: RuntimeError: shapes do not fit" in told.err


# -- the real stages ----------------------------------------------------------------------------


def at_second(number: int) -> None:
    if number == 1 and not Path("well").exists():
        os._exit(9)


def watched(numbers: Iterator[int]) -> Iterator[int]:
    for number in numbers:
        at_second(number)
        yield number


def deadly_scan(work: Any, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    scan(work, worker_slot, watched(numbers), emit)


def test_a_part_of_topk_that_cannot_be_made_costs_itself_alone(
    plans: None, cnnvis: Call, results: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnnvis("topk images -c exact.toml --run whole")
    monkeypatch.setattr("cnnvis_cli.stages.topk.stage.scan", deadly_scan)
    told = cnnvis("topk images -c exact.toml --run run --workers 2", code=1)
    assert re.search(r"images 4 to 7 \(class\d/\d+.png to .*: set aside after ending 3", told.err)
    assert "exit code 9" in told.err
    kept = {path.stem: path.stat().st_mtime_ns for path in Path("run/parts").rglob("*.h5")}
    assert sorted(kept) == ["000000", "000002", "000003", "000004"]
    Path("well").touch()
    cnnvis("topk images -c exact.toml --run run --workers 2")
    assert results(Path("run")) == results(Path("whole"))


def test_compiled_loops_are_loaded_only_where_they_are_used(
    plans: None, cnnvis: Call, results: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("cnnvis_cli.stages.topk.stage.load_loops", lambda _: loaded.append("here"))
    cnnvis("topk images -c exact.toml --run whole")
    assert loaded == ["here"]
    monkeypatch.setattr(Session, "pool", lambda *_, **__: [WorkerSlot(CPU, 1, 0, fresh=True)] * 2)
    cnnvis("topk images -c exact.toml --run run")
    assert loaded == ["here"]
    assert results(Path("run")) == results(Path("whole"))


# As a command of its own, whose processes are forked: this one has used autograd.
DEADLY = """
import os, sys
from cnnvis_cli.cli import _code
from cnnvis_cli.stages.optimize import stage as optimize
from cnnvis_cli.stages.optimize.worker import optimize_blocks

def watched(numbers):
    for number in numbers:
        if number == 1:
            os._exit(9)
        yield number

def deadly_climbs(work, slot, numbers, emit):
    optimize_blocks(work, slot, watched(numbers), emit)

optimize.optimize_blocks = deadly_climbs
sys.exit(_code())
"""


def test_units_that_cannot_be_made_cost_themselves_alone(
    plans: None, cnnvis: Call, results: Call
) -> None:
    line = "optimize -c exact.toml --layer fc3 --layer conv1"
    cnnvis(f"{line} --run whole")
    command = [sys.executable, "-c", DEADLY, *line.split(), "--run", "run", "--workers", "2"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "conv1 unit 1 in style 3: set aside after ending 3 worker" in told.stderr
    assert "exit code 9" in told.stderr
    for alias, channels in (("conv1", 6), ("fc3", 10)):
        units = OptimizedFile(Path(f"run/optimized/{alias}.h5")).units("3").tolist()
        assert units == [unit for unit in range(channels) if unit != 1]
        assert f"run/optimized/{alias}.h5: style 3, {channels - 1} units" in told.stdout
    cnnvis(f"{line} --run run")
    assert results(Path("run")) == results(Path("whole"))


class Dying(Batches):
    """A reader whose process dies at its third batch."""

    def __getitem__(self, number: int) -> Any:
        if number == 2:
            time.sleep(0.5)  # until what came before has been fetched from it
            os._exit(9)
        return super().__getitem__(number)


def test_a_decoder_that_dies_is_named(
    plans: None, cnnvis: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "pool", lambda *_, **__: [WorkerSlot(CPU, 1, 1)])
    monkeypatch.setattr("cnnvis_cli.stages.topk.worker.Batches", Dying)
    told = cnnvis("topk images -c exact.toml --run run", code=1)
    assert "a decoding process died" in told.err
    assert "--workers" in told.err


PROBE = """
import sys
import torch
from cnnvis_cli.cli import _code
from cnnvis_cli.engine import WorkerSlot, for_gradients

slots = [WorkerSlot(torch.device("cpu"), 1, 0)] * 2
print([slot.fresh for slot in for_gradients(slots)])
line = "optimize --model demo --run run --layer conv1 --units 0 --iterations 2"
sys.argv = ["cnnvis", *line.split(), "--workers", "0", "--quiet"]
assert _code() == 0
print([slot.fresh for slot in for_gradients(slots)])
"""


def test_forks_are_for_gradients_until_this_process_has_used_them() -> None:
    told = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    before, *_, after = told.stdout.splitlines()
    assert (before, after) == ("[False, False]", "[True, True]")


def test_fresh_processes_give_the_same_bytes(
    plans: None, cnnvis: Call, results: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_forks_can_differentiate", lambda: False)
    assert all(worker_slot.fresh for worker_slot in for_gradients([FORKED] * 2))
    assert for_gradients([FORKED]) == [FORKED]  # who works here needs no fork
    cnnvis("topk images -c exact.toml --run run0")
    cnnvis("topk images -c exact.toml --run run2 --workers 2")
    images = "images/class0/000.png images/class1/001.png"
    for line in (
        "project -c exact.toml --method guided",
        "optimize -c exact.toml --layer conv1",
        f"occlude {images} -c exact.toml --layer conv2 --size 16 --stride 16",
    ):
        for workers in (0, 2):
            cnnvis(f"{line} --run run{workers} --workers {workers}")
    assert results(Path("run2")) == results(Path("run0"))
    assert len(results(Path("run0"))) == 2 + 3 + 1 + 2


# -- orphans ------------------------------------------------------------------------------------

PARENT = """
import os, sys, time
from pathlib import Path
import torch
from cnnvis_cli.engine import TaskDone, WorkerSlot, run_tasks

def work(slot, numbers, emit):
    Path(sys.argv[2], str(os.getpid())).touch()
    for number in numbers:
        while number < int(sys.argv[3]):
            time.sleep(0.05)
            emit(number)
        emit(TaskDone(number))

if __name__ == "__main__":
    slot = WorkerSlot(torch.device("cpu"), 1, 0, sys.argv[1] == "fresh")
    run_tasks(work, [slot, slot], range(2), lambda _: None)
    Path(sys.argv[2], "idle").touch()
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


# the last: fresh processes that have done their work and wait for more
@pytest.mark.parametrize(("kind", "busy"), [("forked", 2), ("fresh", 2), ("fresh", 0)])
def test_no_worker_outlives_a_killed_parent(kind: str, busy: int, folder: Path) -> None:
    Path("parent.py").write_text(PARENT)
    command = [sys.executable, "parent.py", kind, str(folder), str(busy)]
    with subprocess.Popen(command) as parent:
        until = time.monotonic() + 60
        while len(done(folder)) < 2 or not (busy or (folder / "idle").exists()):
            assert time.monotonic() < until
            assert parent.poll() is None
            time.sleep(0.05)
        workers = done(folder)
        assert all(map(alive, workers))
        parent.kill()
    until = time.monotonic() + 10
    while any(map(alive, workers)):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.1)


def test_the_names_of_several_pieces_that_were_set_aside() -> None:
    from cnnvis_cli.engine.pool import tasks_failed

    error = tasks_failed({4: "exit code 9", 2: "exit code 7"}, "part {}".format)
    assert isinstance(error, CnnvisError)
    assert str(error).startswith("part 2, and 1 more: set aside")


def killed_scan(work: Any, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    def taken() -> Iterator[int]:
        for number in numbers:
            if number == 1 and not Path("well").exists():
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out
            yield number

    scan(work, worker_slot, taken(), emit)


def test_a_process_that_the_kernel_kills_names_memory_and_the_remedy(
    plans: None, cnnvis: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnvis_cli.stages.topk.stage.scan", killed_scan)
    told = cnnvis("topk images -c exact.toml --run run --workers 2 --quiet", code=1)
    assert "(killed, most likely since memory ran out)" in told.err
    assert "fewer --workers" in told.err
    assert "smaller --batch-size" in told.err
    Path("well").touch()
    cnnvis("topk images -c exact.toml --run run --workers 2")


@pytest.mark.parametrize(
    ("told", "killed"),
    [("exit code -9", True), ("{SIGKILL(-9)}", True), ("exit code 9", False), ("-90", False)],
)
def test_only_the_signal_of_the_kernel_speaks_of_memory(told: str, killed: bool) -> None:
    from cnnvis_cli.engine.pool import KILLED, _exit_reason

    assert (_exit_reason(told) == KILLED) == killed
