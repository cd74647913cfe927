"""A disk that is full ends a command in exit 4, never otherwise; with more room it carries on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.reliability.conftest import Ended, Zygote

Results = Callable[[Path], dict[str, str]]
pytestmark = pytest.mark.usefixtures("plans")
STAGES = ("topk", "optimize", "project", "montage", "gallery")
PLENTY = 1 << 16  # pages
LONG = pytest.mark.long


def command(*words: str) -> str:
    """Run a system command; return its error output."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder that is a small disk of its own, in memory; skips where none can be mounted."""
    folder = Path("disk").absolute()
    folder.mkdir()
    refused = command("mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder))
    if refused:
        pytest.skip(f"a disk in memory cannot be mounted here: {refused}")
    yield folder
    assert not command("umount", "--lazy", str(folder))


def resize(disk: Path, pages: int) -> None:
    assert not command("mount", "-o", f"remount,size={pages * 4}k", str(disk))


def pages(disk: Path) -> int:
    """Return how many pages of 4 kB the disk has in use."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 4096


def short_plans(plan: str) -> list[str]:
    """Plans of the first stage, of the first two, and so on."""
    text, names = Path(f"{plan}.toml").read_text(), []
    for count in range(1, len(STAGES) + 1):
        names.append(f"{plan}{count}.toml")
        stages = json.dumps(STAGES[:count])
        Path(names[-1]).write_text(re.sub("stages = .*", f"stages = {stages}", text))
    return names


@pytest.mark.parametrize(
    ("plan", "workers", "each"),
    [
        ("exact", 0, 1),
        *(pytest.param(plan, n, 2, marks=LONG) for plan in ("exact", "demo") for n in (0, 2)),
    ],
)
def test_a_disk_of_ten_sizes(
    plan: str, workers: int, each: int, disk: Path, zygote: Zygote, results: Results
) -> None:
    """The disk is full half-way through each of the five stages, and soon after it has begun."""
    plans, run = short_plans(plan), disk / "run"
    line = f"run {plans[-1]} --workers {workers} --run"
    sizes = [2]
    resize(disk, PLENTY)
    for shorter in plans:
        zygote.done(f"run {shorter} --workers {workers} --run {disk / 'straight'}")
        sizes.append(pages(disk))
    expected = results(disk / "straight")
    assert not command("rm", "-r", str(disk / "straight"))
    ends = []
    for stage, shorter, before, after in zip(STAGES, plans, sizes, sizes[1:], strict=False):
        for more in (2, 2 + max(1, (after - before) // 2))[-each:]:
            resize(disk, pages(disk) + more)
            told = zygote.do(f"{line} {run}")
            assert told.code == 4, (stage, told)
            assert is_said(told), (stage, told)
            ends.append(f"{stage} with {more * 4} kB")
            copy = Path(f"{stage}{more}").absolute()
            assert not command("cp", "-a", str(run), str(copy))
            zygote.done(f"{line} {copy}")
            assert results(copy) == expected, ends
        resize(disk, PLENTY)
        zygote.done(f"run {shorter} --workers {workers} --run {run}")
    assert results(run) == expected
    print(f"{plan}, {workers} workers, exit 4: {', '.join(ends)}; all files the same")


def is_said(told: Ended) -> bool:
    """Return whether a failure is one line that states the cause."""
    return len(told.err.splitlines()) == 1 and "No space left on device" in told.err


def test_a_full_disk_for_the_log_is_no_matter(disk: Path, zygote: Zygote, results: Results) -> None:
    zygote.done("run exact.toml --workers 0 --run straight")
    log = disk / "log.txt"
    log.touch()
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    told = zygote.do(f"run exact.toml --workers 0 --run run --log {log}")
    why = "cannot be written (No space left on device); the work goes on"
    assert (told.code, told.err) == (0, f"--log {log}: {why}\n")
    assert "run/topk.h5" in told.out
    assert log.stat().st_size == 0
    assert results(Path("run")) == results(Path("straight"))


@pytest.mark.parametrize(
    "closed",
    [
        "<&- >&- 2>&-",
        "2>&1 | true",
        *(pytest.param(each, marks=LONG) for each in (">&-", "2>&-", ">/dev/full 2>&1")),
    ],
)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=LONG)])
def test_nobody_listens(closed: str, workers: int, zygote: Zygote, results: Results) -> None:
    """A fresh process, since a shell closes what it inherits."""
    zygote.done("run exact.toml --workers 0 --run straight")
    line = f"run exact.toml --workers {workers} --run run -v"
    command_line = f"{sys.executable} -m cnnvis_cli {line} {closed}"
    status = f"set -o pipefail; {command_line}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        ["bash", "-c", status], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == (4 if "/dev/full" in closed else 0), done
    assert results(Path("run")) == results(Path("straight"))
