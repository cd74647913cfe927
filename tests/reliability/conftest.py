"""Nights that go wrong: starts of the command line by the hundred, killed and let down."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnnvis_cli.store.seals import intact
from tests.reliability.preloaded import Preloaded

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

# Two networks. The whole numbers of `exact` take no time, but your own code has no receipts;
# the bundled network has.
PLANS = {
    "exact": """
model = "tinynet:exact"
trust-code = true
preprocessing = {resize = 32, crop = 32, mean = [120, 110, 100], std = [1, 1, 1]}
optimize = {style = ["3", "natural"], iterations = 12, step = 1}
layer = ["conv1", "fc3"]
units = "0-5"
""",
    "demo": """
model = "demo"
optimize = {style = "3", iterations = 12}
layer = ["conv1", "conv2"]
units = "0-3"
""",
}
SHARED = """
device = "cpu"
dataset = "images"
batch-size = 2
topk = {k = 3, sample = 9}
stages = ["topk", "optimize", "project", "montage"]
"""
# What a few steps leave is said, and says nothing of reliability; no other word is passed over.
PREFERENCE = re.compile(
    r"^(\w+ style \w+): \d+ units answer more to an image of the dataset than to their optimized "
    r"one \([^)]*\); more --iterations, more --runs or another --style may do better\n",
    re.MULTILINE,
)
PASSING = ("run.json", "receipts", ".lock")  # in a finished run: they hold times


class Ended(NamedTuple):
    """How a start of the command line ended; a signal's number is negative, as in `subprocess`."""

    code: int
    out: str
    err: str
    seconds: float
    megabytes: int


@dataclass
class Zygote:
    """Orders starts of the command line; see the module of that name."""

    process: subprocess.Popen[bytes]
    logs: Path
    ended: dict[int, dict[str, Any]] = field(default_factory=dict)
    started: int = 0
    _text: bytes = b""

    def start(
        self,
        line: str,
        fault: dict[str, Any] | None = None,
        locks: bool | None = None,
        calls: Mapping[str, str] | None = None,
        patches: Mapping[str, float] | None = None,
    ) -> int:
        """Start ``cnnvis LINE`` in this folder; gives its process, which leads a group.

        `patches` are numbers of modules that it has otherwise.
        """
        self.started += 1
        out, err = (str(self.logs / f"{self.started}.{name}") for name in ("out", "err"))
        order = {"line": shlex.split(line), "folder": str(Path.cwd()), "out": out, "err": err}
        order |= {"fault": fault, "locks": locks, "calls": calls, "patches": patches}  # type: ignore[dict-item]
        assert self.process.stdin
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        while "pid" not in (message := self.on_event(60)):
            pass
        pid = int(message["pid"])
        self.ended[pid] = {"out": out, "err": err}
        return pid

    def on_event(self, seconds: float) -> dict[str, Any]:
        """Return the next message; empty where none comes in time."""
        assert self.process.stdout
        number = self.process.stdout.fileno()
        while b"\n" not in self._text:
            if not select.select([number], [], [], max(0, seconds))[0]:
                return {}
            found = os.read(number, 1 << 16)
            assert found, "the zygote has died"
            self._text += found
        line, self._text = self._text.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        if "ended" in message:
            self.ended[message["ended"]] |= message
        return message

    def is_over(self, pid: int, seconds: float) -> bool:
        """Return whether a command ends within this time."""
        until = time.monotonic() + seconds
        while "code" not in self.ended[pid]:
            if time.monotonic() >= until:
                return False
            self.on_event(until - time.monotonic())
        return True

    def wait(self, pid: int, seconds: float = 120) -> Ended:
        """Return how a command ended; one that does not is killed with its group."""
        over = self.is_over(pid, seconds)
        if not over:
            os.killpg(pid, signal.SIGKILL)
            assert self.is_over(pid, 10)
        found = self.ended.pop(pid)
        out, err = (said(Path(found[name])) for name in ("out", "err"))
        assert over, f"still at work after {seconds} s; it said: {err[-2000:]}"
        return Ended(
            found["code"], out, PREFERENCE.sub("", err), found["seconds"], found["megabytes"]
        )

    def do(self, line: str, **how: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.wait(self.start(line, **how))

    def done(self, line: str) -> Ended:
        """Do a command that must succeed without a word on stderr."""
        told = self.do(line)
        assert (told.code, told.err) == (0, ""), told
        return told


def said(path: Path) -> str:
    """Return a command's output; empty if it was killed before it wrote any."""
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="session")
def one_zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """One for all tests: it takes seconds to load everything."""
    with begun(tmp_path_factory.mktemp("said")) as found:
        yield found


@contextmanager
def begun(logs: Path, **environment: str) -> Iterator[Zygote]:
    """Begin a zygote, which ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.reliability.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**ONE_THREAD, **environment},
    ) as process:
        found = Zygote(process, logs)
        assert "pid" in found.on_event(120)
        yield found
        assert process.stdin
        process.stdin.close()
        process.wait(30)


@pytest.fixture
def zygote(one_zygote: Zygote) -> Iterator[Zygote]:
    """The zygote; what a failed test has left running is killed."""
    yield one_zygote
    end_all(one_zygote)


def end_all(zygote: Zygote) -> None:
    """Kill what is still running."""
    for pid in list(zygote.ended):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        assert zygote.is_over(pid, 10)
        zygote.ended.clear()


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Preloaded:
    return Preloaded(tmp_path_factory.mktemp("preloaded"))


@pytest.fixture(scope="session")
def one_preloaded_zygote(
    preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Zygote]:
    with begun(tmp_path_factory.mktemp("said"), LD_PRELOAD=str(preloaded.library)) as found:
        yield found


@pytest.fixture
def preloaded_zygote(one_preloaded_zygote: Zygote) -> Iterator[Zygote]:
    """A zygote whose children's calls can be told to fail: see failing_calls.c."""
    yield one_preloaded_zygote
    end_all(one_preloaded_zygote)


@pytest.fixture
def plans(photographs: Callable[..., Path]) -> None:
    """Photographs, and a plan of all stages for each of the two networks."""
    photographs(Path("images"), 20, classes=2)
    for name, text in PLANS.items():
        Path(f"{name}.toml").write_text(SHARED + text)


@pytest.fixture
def results() -> Callable[[Path], dict[str, str]]:
    """A function from a run directory to the digest of each of its results, or what else is there.

    Times differ from run to run: run.json, receipts and the lock are left out.
    """

    def look(run: Path) -> dict[str, str]:
        files = (path for path in sorted(run.rglob("*")) if path.is_file())
        named = {path.relative_to(run): path for path in files}
        return {
            str(name): hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in named.items()
            if name.parts[0] not in PASSING
        }

    return look


@pytest.fixture
def check_whole() -> Callable[[Path], None]:
    """A function that asserts that every file under its final name in a run is complete."""

    def check(run: Path) -> None:
        for path in run.rglob("[!.]*"):
            if path.suffix == ".h5":
                assert intact(path), path
            if path.suffix == ".json":
                json.loads(path.read_text())
            if path.suffix == ".png":
                assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path

    return check
