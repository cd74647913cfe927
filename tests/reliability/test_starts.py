"""Many starts at once on one directory: one works; without locks all do, and nothing is mixed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.reliability.conftest import Zygote

Results = Callable[[Path], dict[str, str]]
pytestmark = pytest.mark.usefixtures("plans")
ALONE = 2.0  # seconds in which one that finds the directory in use should have said so


@pytest.mark.parametrize("count", [6, pytest.param(50, marks=pytest.mark.long)])
def test_one_of_many_starts_works(count: int, zygote: Zygote, results: Results) -> None:
    """Fresh interpreters; so many at once share the cores, which is what they are allowed."""
    line = "topk --config exact.toml --workers 0 --run"
    zygote.done(f"{line} straight")
    words = [sys.executable, "-m", "cnnvis_cli", *line.split(), "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    going: dict[int, float] = {}
    ends: dict[int, list[float]] = {0: [], 75: []}
    with tempfile.TemporaryFile("w+") as err:
        for _ in range(count):
            process = subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=err, env=environment
            )
            process.returncode = 0  # waited for below, in the order in which they end
            going[process.pid] = time.monotonic()
        while going:
            pid, status = os.wait()
            if pid in going:
                seconds = time.monotonic() - going.pop(pid)
                ends.setdefault(os.waitstatus_to_exitcode(status), []).append(seconds)
        err.seek(0)
        complaints = err.read().splitlines()
    refused, worked = sorted(ends.pop(75)), ends.pop(0)
    assert not ends
    assert len(complaints) == len(refused)
    assert all("is in use by process" in text for text in complaints)
    assert results(Path("run")) == results(Path("straight"))
    print(f"{count} starts: {len(worked)} worked ({max(worked):.1f} s), {len(refused)} refused")
    print(f"after {refused[0]:.2f} to {refused[-1]:.2f} s")
    assert len(worked) == 1
    cores = len(os.sched_getaffinity(0))
    assert refused[-1] < ALONE * max(1, count / cores)


@pytest.mark.parametrize(
    ("plan", "count", "rounds"),
    [
        ("exact", 5, 1),
        ("demo", 5, 1),
        pytest.param("exact", 50, 2, marks=pytest.mark.long),
        pytest.param("demo", 50, 1, marks=pytest.mark.long),
        pytest.param("exact", 5, 20, marks=pytest.mark.long),
        pytest.param("demo", 5, 20, marks=pytest.mark.long),
    ],
)
def test_without_locks_all_may_work(
    plan: str, count: int, rounds: int, zygote: Zygote, results: Results
) -> None:
    """Some network file systems have none: correctness must not need them.

    Parts stay there, since another process may be about to read them.
    """
    line = f"run {plan}.toml --workers 0 --run"
    zygote.done(f"{line} straight")
    expected, start, wrong = results(Path("straight")), time.monotonic(), list[str]()
    ends: Counter[int] = Counter()
    for number in range(rounds):
        run = f"run{number}"
        going = [zygote.start(f"{line} {run} -v", locks=False) for _ in range(count)]
        for pid in going:
            told = zygote.wait(pid, 600)
            ends[told.code] += 1
            if told.code:
                wrong.append(told.err)
        if found := finished(results(Path(run))).items() ^ expected.items():
            wrong.append(f"{run} has other files: {sorted(dict(found))}")
        zygote.done(f"{line} {run}")
        assert finished(results(Path(run))) == expected
    print(f"{plan}: {rounds} times {count} at once in {time.monotonic() - start:.0f} s: {ends}")
    assert not wrong, "\n\n".join(wrong)


def finished(files: dict[str, str]) -> dict[str, str]:
    """Without parts."""
    return {name: found for name, found in files.items() if not name.startswith("parts/")}
