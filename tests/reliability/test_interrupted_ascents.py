"""Ascents of a process that is stopped or killed: what was kept is gone on with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import pytest

from tests.reliability.preloaded import Fault

if TYPE_CHECKING:
    from tests.reliability.conftest import Zygote

Results = Callable[[Path], dict[str, str]]
LINE = (
    "optimize --model demo --device cpu --layer conv1 --units 0-5 --batch-size 4 --style 3 "
    "--step 100 --iterations 600"
)
AT_RISK = "cnnvis_cli.stages.optimize.worker.SECONDS_AT_RISK"


def until(met: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def pieces(run: Path) -> list[Path]:
    return sorted(run.rglob("under_way/*.h5"))


def ages(run: Path) -> list[int]:
    """Return the steps that each kept ascent has made."""
    found: list[int] = []
    for path in pieces(run):
        with h5py.File(path, "r") as file:
            found += file["age"][()].tolist()
    return found


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_to_stop_keeps_every_ascent_as_it_is(
    workers: int, zygote: Zygote, results: Results
) -> None:
    """Not one step is made again: the state is that of the moment, whenever it was kept last."""
    zygote.done(f"{LINE} --run straight --workers 0")
    run = Path("run")
    pid = zygote.start(f"{LINE} --run run --workers {workers}", patches={AT_RISK: 0.1})
    until(lambda: sum(ages(run)) > 100)
    before, sent = sum(ages(run)), time.time()
    os.kill(pid, signal.SIGTERM)
    told = zygote.wait(pid)
    assert told.code == 75, told
    assert time.time() - sent < 5
    assert all(path.stat().st_mtime > sent for path in pieces(run))
    assert len(ages(run)) >= 3  # of six: in two rounds here, or shared by two processes
    assert sum(ages(run)) > before
    zygote.done(f"{LINE} --run run --workers {workers}")
    assert results(run) == results(Path("straight"))


@pytest.mark.parametrize("target", ["worker", "group"])
def test_a_killed_process_loses_what_was_made_since_it_was_kept(
    target: str, zygote: Zygote, results: Results
) -> None:
    zygote.done(f"{LINE} --run straight --workers 0")
    run = Path("run")
    pid = zygote.start(f"{LINE} --run run --workers 2", patches={AT_RISK: 0.1})
    until(lambda: sum(ages(run)) > 100)
    if target == "worker":
        os.kill(children(pid)[0], signal.SIGKILL)
        told = zygote.wait(pid)
        assert told.code == 0, told
    else:
        os.killpg(pid, signal.SIGKILL)
        assert zygote.wait(pid).code == -signal.SIGKILL
        assert sum(ages(run)) > 100
        zygote.done(f"{LINE} --run run --workers 2")
    assert results(run) == results(Path("straight"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_for_what_is_kept_is_one_line_and_loses_nothing(
    workers: int, preloaded_zygote: Zygote, results: Results
) -> None:
    preloaded_zygote.done(f"{LINE} --run straight --workers 0")
    fault = Fault("write", "ENOSPC", part="under_way")
    line = f"{LINE} --run run --workers {workers}"
    told = preloaded_zygote.do(line, calls=fault.settings, patches={AT_RISK: 0.1})
    assert told.code == 4, told
    assert len(told.err.splitlines()) == 1
    assert "under_way" in told.err
    assert "No space left on device" in told.err
    preloaded_zygote.done(line)
    assert results(Path("run")) == results(Path("straight"))
