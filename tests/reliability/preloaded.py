"""The library that lets calls of the C library fail, from Python: see failing_calls.c."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("failing_calls.c")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """Which calls fail, and how: `at` is the number of a matching call, ``all`` or ``none``.

    `how` is the name of an error, or one for each name of a call.
    """

    calls: str = ""
    how: str | Mapping[str, str] = "EIO"
    at: int | str = "all"
    prefix: str | Path = ""
    part: str = ""
    folders: bool = False
    log: Path | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Return the environment that says so."""
        if isinstance(self.how, str):
            number = str(getattr(errno, self.how))
        else:
            number = ",".join(f"{call}={getattr(errno, how)}" for call, how in self.how.items())
        named = {
            "FAIL_CALLS": self.calls,
            "FAIL_ERRNO": number,
            "FAIL_AT": str(self.at),
            "FAIL_PREFIX": str(Path(self.prefix).absolute()) if self.prefix else "",
            "FAIL_PART": self.part,
            "FAIL_FOLDERS": "1" if self.folders else "",
            "FAIL_LOG": str(self.log.absolute()) if self.log else "",
            "FAIL_COUNT": str(self.log.absolute()) + ".count" if self.log else "",
        }
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True)
class Preloaded:
    """The compiled library, and the real command started with it."""

    folder: Path

    @cached_property
    def library(self) -> Path:
        """Compile it; skip the test without a compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler, cc")
        made = self.folder / "failing_calls.so"
        flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Werror")
        subprocess.run([compiler, *flags, "-o", made, SOURCE, "-ldl"], check=True)
        return made

    def python(self, *words: str, fault: Fault | None = None) -> subprocess.CompletedProcess[str]:
        """Return how Python with these arguments ended."""
        preloaded = {"LD_PRELOAD": str(self.library), **fault.settings} if fault else {}
        return subprocess.run(
            [sys.executable, *words],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": str(ROOT),
                **preloaded,
            },
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def cnnvis(self, line: str, fault: Fault | None = None) -> subprocess.CompletedProcess[str]:
        """Return how a command ended."""
        return self.python("-m", "cnnvis_cli", *line.split(), fault=fault)


def calls(log: Path) -> list[tuple[str, str, bool]]:
    """Return the matching calls of a log: name, path, and whether it failed."""
    rows = (line.split("\t") for line in log.read_text().splitlines())
    return [(name, path, here == "here") for _, name, path, here in rows]
