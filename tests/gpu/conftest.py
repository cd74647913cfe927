"""Commands on a pretended CUDA device, each in a process of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from tests.gpu.pretended import Told, surroundings, told
    from tests.gpu.pretended.surroundings import COUNTED, EXCLUSIVE, FREE
else:
    from pretended import Told, surroundings, told
    from pretended.surroundings import COUNTED, EXCLUSIVE, FREE

HERE = Path(__file__).parent
SECONDS = 150  # after which a command is killed


class Done(NamedTuple):
    """How a command ended, what it printed, and what its processes have counted."""

    code: int
    out: str
    err: str
    told: Told


@dataclass
class Pretended:
    """Orders commands; see `commands`."""

    process: subprocess.Popen[str]
    logs: Path
    done: dict[str, Path] = field(default_factory=dict)  # runs on the CPU, made once
    _number: int = 0

    def do(self, line: str, exclusive: bool = False, free: int | None = None) -> Done:
        """Run ``cnnvis LINE`` in this folder; an `exclusive` device takes one process."""
        self._number += 1
        folder = self.logs / str(self._number)
        (folder / "counts").mkdir(parents=True)
        environment = {COUNTED: str(folder / "counts")}
        environment |= {EXCLUSIVE: str(folder)} if exclusive else {}
        environment |= {FREE: str(free)} if free else {}
        order = {
            **{"line": shlex.split(line), "folder": str(Path.cwd()), "environment": environment},
            **{"out": str(folder / "out"), "err": str(folder / "err"), "seconds": SECONDS},
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        out, err = ((folder / name).read_text() for name in ("out", "err"))
        return Done(code, out, err, told(folder / "counts"))


@pytest.fixture(scope="session")
def pretended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pretended]:
    """Yield two devices for all tests, since loading everything takes seconds."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "commands.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**surroundings(devices=2), "OMP_NUM_THREADS": "1"},
        text=True,
    ) as process:
        yield Pretended(process, tmp_path_factory.mktemp("pretended"))
        assert process.stdin
        process.stdin.close()
        process.wait(30)


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., dict[str, dict[str, float]]]:
    """Return a function that runs a script under the rules and returns what it prints (JSON)."""

    def run(script: str, *words: str) -> dict[str, dict[str, float]]:
        done = subprocess.run(
            [sys.executable, str(HERE / script), *words],
            env={**surroundings(), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, dict[str, float]] = json.loads(done.stdout)
        return found

    return run
