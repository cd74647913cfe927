"""Each call of the system that concerns the run directory or the dataset fails once.

The calls are those of the C library, whoever makes them: Python, HDF5, Pillow or torch. A start is
a fork of a process that has imported everything (see `zygote`), which saves two seconds; a few of
the faults meet the command itself, as a shell starts it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import pytest

from tests.reliability.preloaded import Fault, calls

if TYPE_CHECKING:
    from tests.reliability.conftest import Ended, Zygote

Results = Callable[[Path], dict[str, str]]
LONG = pytest.mark.long
HERE = Path("night")  # holds the dataset and the run directory
RUN = HERE / "run"
ERRORS = {  # how each call fails, in turn
    "open": ("EIO", "EMFILE", "ESTALE", "ENOSPC", "ENFILE", "EACCES"),
    "read": ("EIO", "ESTALE"),
    "pread": ("EIO", "ESTALE"),
    "write": ("ENOSPC", "EIO", "ESTALE", "EDQUOT"),
    "pwrite": ("ENOSPC", "EIO", "ESTALE", "EDQUOT"),
    "fsync": ("EIO", "EINVAL", "ENOSPC", "ESTALE"),
    "rename": ("EIO", "ENOSPC", "ESTALE"),
    "stat": ("EIO", "ESTALE", "EACCES"),
    "readdir": ("EIO", "ESTALE"),
    "unlink": ("EIO", "ESTALE"),
    "mkdir": ("ENOSPC", "EIO", "ESTALE"),
    "flock": ("ENOLCK", "EIO", "EINVAL", "ESTALE"),
    "fcntl": ("ENOLCK", "EIO", "EINVAL", "ESTALE"),
}
SIX = "open,read,pread,write,pwrite,fsync,rename,flock,fcntl"
ALL = ",".join(ERRORS)
PLAN = """
model = "demo"
device = "cpu"
dataset = "night/images"
run = "night/run"
batch-size = 4
layer = "conv1"
units = "0,1"
optimize = {iterations = 4}
topk = {k = 2}
"""
COMMANDS = ("topk", "optimize", "project", "gallery")


class Told(NamedTuple):
    """How a start ended, and the call that failed in it: its name and path; None if none did."""

    ended: Ended
    failed: tuple[str, str] | None


@dataclass(frozen=True)
class Stage:
    """One command of the plan, from the run directory before it to what it makes."""

    zygote: Zygote
    line: str
    names: str  # of the calls
    before: Path
    expected: Mapping[str, str]
    said: str  # on stderr: notes on the results
    calls: int

    def start(self, number: int) -> Told:
        """Return how it ends in the directory before it, where the call of this number fails."""
        put_back(self.before, RUN)
        log = Path("log")
        remove(log)
        fault = Fault(self.names, how(number), at=number, prefix=HERE, log=log)
        ended = self.zygote.do(self.line, calls=fault.settings)
        failed = [(name, path) for name, path, here in calls(log) if here]
        return Told(ended, failed[0] if failed else None)

    def complaints(self, number: int, results: Results) -> Iterator[str]:
        """Yield what is wrong with a start in which a call fails, and with the next one."""
        told = self.start(number)
        if told.failed is None:  # threads write when they can: their number varies a little
            return
        call, path = told.failed
        what = f"{self.line.split()[0]} {number}: {how(number)[call]} of {call} {path}"
        yield from (f"{what}: {text}" for text in self._wrong(told.ended, results))

    def _wrong(self, ended: Ended, results: Results) -> Iterator[str]:
        """Yield what is wrong with a start in which a call failed, and with the next one."""
        yield from self._complaints(ended)
        there = lasting(results(RUN))
        if wrong := [name for name in there if there[name] != self.expected.get(name)]:
            yield f"other files: {sorted(wrong)}"
        times = {name: (RUN / name).stat().st_mtime_ns for name in there}
        again = self.zygote.do(self.line)
        if again.code or again.err not in ("", self.said):
            yield f"the next start ends with {again.code}: {again.err}"
        if found := lasting(results(RUN)).items() ^ self.expected.items():
            yield f"the next start ends with other files: {sorted(dict(found))}"
        elif again_made := [
            name
            for name in times
            if name.endswith(".h5") and (RUN / name).stat().st_mtime_ns != times[name]
        ]:
            yield f"the next start makes again: {again_made}"

    def _complaints(self, told: Ended) -> Iterator[str]:
        """Yield what is wrong with the end of a start in which one call has failed."""
        lines = [line for line in told.err.splitlines() if line not in self.said.splitlines()]
        if told.code not in (0, 4):
            yield f"exit code {told.code}: {told.err}"
        elif told.code == 4 and not (len(lines) == 1 and lines[0].startswith("cnnvis: ")):
            yield f"not one line: {told.err}"
        elif told.code == 0 and lines and not (len(lines) == 1 and "has no locks" in lines[0]):
            yield f"done, and yet: {told.err}"


def lasting(files: Mapping[str, str]) -> dict[str, str]:
    """Return the results: parts stay where their removal has failed, which costs only room."""
    return {name: found for name, found in files.items() if not name.startswith(("parts/", "."))}


def how(number: int) -> dict[str, str]:
    """Return the error that each call gives where it is the one of this number."""
    drawn = crc32(str(number).encode())
    return {call: errors[drawn % len(errors)] for call, errors in ERRORS.items()}


def put_back(there: Path, here: Path) -> None:
    """Make a folder a copy of another, or nothing where there is none."""
    shutil.rmtree(here, ignore_errors=True)
    if there.exists():
        shutil.copytree(there, here)


def remove(log: Path) -> None:
    """Remove a log and its count."""
    for path in (log, Path(f"{log}.count")):
        path.unlink(missing_ok=True)


def straight(zygote: Zygote, command: str, workers: int, names: str, results: Results) -> Stage:
    """Do a command without a fault, after those before it."""
    line = f"{command} --config plan.toml --workers {workers}"
    before, log = Path(f"before-{command}"), Path("log")
    put_back(RUN, before)
    remove(log)
    told = zygote.do(line, calls=Fault(names, at="none", prefix=HERE, log=log).settings)
    assert told.code == 0, told
    return Stage(zygote, line, names, before, lasting(results(RUN)), told.err, len(calls(log)))


@pytest.mark.parametrize(
    ("workers", "every", "names"),
    [
        (0, 32, SIX),
        pytest.param(0, 1, ALL, marks=LONG),
        pytest.param(2, 1, SIX, marks=LONG),
    ],
)
def test_each_call_fails_once(
    workers: int,
    every: int,
    names: str,
    photographs: Callable[..., Path],
    preloaded_zygote: Zygote,
    results: Results,
) -> None:
    photographs(HERE / "images", 4, classes=2)
    Path("plan.toml").write_text(PLAN)
    wrong, begun = list[str](), time.monotonic()
    for command in COMMANDS:
        put_back(Path("after"), RUN)
        stage = straight(preloaded_zygote, command, workers, names, results)
        put_back(RUN, Path("after"))
        for number in range(every // 2 + 1, stage.calls + 1, every):
            for found in stage.complaints(number, results):
                print(found)
                wrong.append(found)
        print(f"{command}: {stage.calls} calls, {time.monotonic() - begun:.0f} s")
    assert not wrong, "\n".join(wrong)
