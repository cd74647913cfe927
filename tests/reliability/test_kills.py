"""Killed and restarted commands end with the bytes of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.reliability.conftest import Zygote

Results = Callable[[Path], dict[str, str]]
pytestmark = pytest.mark.usefixtures("plans")


def commands(plan: str, run: str, workers: int) -> list[str]:
    """Return one night, command by command."""
    flags = f"--config {plan}.toml --run {run} --workers {workers}"
    return [f"topk {flags}", f"optimize {flags}", f"project {flags}", f"montage {flags}"]


NOTHING = "nothing: it had just ended"


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    with suppress(OSError):
        return [int(child) for child in found.read_text().split()]
    return []


def kill(pid: int, target: str) -> str:
    """Kill a command alone, with its group, or one of its workers; return which."""
    workers = children(pid)
    with suppress(ProcessLookupError):
        if target == "worker" and workers:
            os.kill(random.choice(workers), signal.SIGKILL)
            return "worker"
        if target == "alone":
            os.kill(pid, signal.SIGKILL)
            return "alone" if workers else "alone, without workers"
        os.killpg(pid, signal.SIGKILL)
        return "group"
    return NOTHING


def wait_for_orphans(groups: list[int]) -> None:
    """Workers whose command was killed alone end by themselves, soon."""
    until = time.monotonic() + 30
    for group in groups:
        with suppress(ProcessLookupError):
            while time.monotonic() < until:
                os.killpg(group, 0)
                time.sleep(0.02)
            raise AssertionError(f"group {group} is still at work")


def leftovers(run: Path) -> list[str]:
    """Return what only unfinished work needs."""
    passing = ("*.tmp", "*.damaged", "parts", ".progress*", ".failed*")
    return sorted(str(path) for pattern in passing for path in run.rglob(pattern))


@pytest.mark.parametrize(
    ("plan", "kills"),
    [
        ("exact", 3),
        ("demo", 3),
        pytest.param("exact", 100, marks=pytest.mark.long),
        pytest.param("demo", 100, marks=pytest.mark.long),
    ],
)
def test_killed_at_any_moment(plan: str, kills: int, zygote: Zygote, results: Results) -> None:
    start = time.monotonic()
    times = [zygote.done(line).seconds for line in commands(plan, "straight", 2)]
    expected = results(Path("straight"))
    random.seed(f"{plan} {kills}")
    hit: Counter[str] = Counter()
    ends: Counter[int] = Counter()
    nights = 0
    while hit.total() - hit[NOTHING] < kills:
        nights += 1
        run, groups = Path(f"killed{nights}"), list[int]()
        for line, usual in zip(commands(plan, run.name, 2), times, strict=True):
            tries = 0
            while True:
                groups.append(pid := zygote.start(line))
                if hit.total() - hit[NOTHING] < kills and tries < 4:
                    tries += 1
                    if not zygote.is_over(pid, random.uniform(0, usual)):
                        hit[kill(pid, random.choice(["alone", "group", "worker"]))] += 1
                told = zygote.wait(pid)
                ends[told.code] += 1
                assert told.code in (0, -signal.SIGKILL), told
                if told.code == 0:
                    break
        wait_for_orphans(groups)
        assert results(run) == expected, f"night {nights}"
        assert leftovers(run) == []
    print(f"{plan}: {dict(hit)} in {nights} nights, ends {dict(ends)}, ", end="")
    print(f"{time.monotonic() - start:.0f} s, all files the same")


@pytest.mark.parametrize(
    ("plan", "stride"),
    [
        ("exact", 19),
        pytest.param("exact", 1, marks=pytest.mark.long),
        pytest.param("demo", 1, marks=pytest.mark.long),
    ],
)
def test_killed_at_each_step_of_publishing(
    plan: str, stride: int, zygote: Zygote, results: Results
) -> None:
    """One kill per start, each at a later step of the rest: every file is begun many times."""
    line = f"run {plan}.toml --workers 0 --run "
    zygote.done(f"{line} straight")
    expected, kills, at = results(Path("straight")), 0, 1
    while True:
        fault = {"folder": "killed", "at": at, "how": "kill", "log": "steps.txt"}
        told = zygote.do(f"{line} killed", fault=fault)
        if told.code == 0:
            break
        assert told.code == -signal.SIGKILL, told
        kills, at = kills + 1, at + stride
    zygote.done(f"{line} killed")
    assert results(Path("killed")) == expected
    assert leftovers(Path("killed")) == []
    print(f"{plan}: {kills} kills, the last at step {at - stride} of a start, all files the same")


@pytest.mark.long
@pytest.mark.parametrize("plan", ["exact", "demo"])
def test_killed_at_each_step_of_a_first_start(plan: str, zygote: Zygote, results: Results) -> None:
    line = f"run {plan}.toml --workers 0 --run "
    zygote.done(f"{line} straight")
    expected, at = results(Path("straight")), 0
    while True:
        at += 1
        fault = {"folder": f"killed{at}", "at": at, "how": "kill", "log": "steps.txt"}
        told = zygote.do(f"{line} killed{at}", fault=fault)
        if told.code == 0:
            break
        assert told.code == -signal.SIGKILL, told
        zygote.done(f"{line} killed{at}")
        assert results(Path(f"killed{at}")) == expected, f"killed at step {at}"
        assert leftovers(Path(f"killed{at}")) == []
    print(f"{plan}: killed at each of {at - 1} steps, all files the same")


def test_a_whole_plan_with_worker_processes(zygote: Zygote, results: Results) -> None:
    zygote.done("run exact.toml --workers 2 --run two")
    zygote.done("run exact.toml --workers 0 --run one")
    assert results(Path("two")) == results(Path("one"))
