"""Run the sections of the device check, each in a process and within a time of its own.

Started by ``device_check.sh``. A section (see `device_sections`) makes claims and notes figures; it
goes on after a claim that fails. Each writes a JSON file as it goes on; a summary comes last.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

SECONDS = {  # eight minutes in all
    "default": 80,
    "bits": 65,
    "syncs": 40,
    "pass": 100,
    "host": 40,
    "topk": 90,
    "faults": 60,
}
GPU = os.environ.get("CHECK_DEVICE", "cuda") == "cuda"
DEVICE = "cuda:0" if GPU else "cpu"
OUT = Path(os.environ.get("OUT", f"{tempfile.gettempdir()}/cnnvis-gpu"))
ROOM = Path(tempfile.gettempdir()) / f"cnnvis-check-{os.getuid()}"
LONGEST = 240  # letters of a line


@dataclass
class Findings:
    """What a section has found so far; saved after each finding, since its time may run out."""

    section: str
    began: float = field(default_factory=time.monotonic)
    held: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """The seconds until the section's time is over."""
        return limit(self.section) - (time.monotonic() - self.began)

    def claim(self, what: str, holds: Any, detail: Any = "") -> None:
        """Record a claim and whether it holds; `detail` is what was found."""
        said = one_line(f"{what}{f': {detail}' if detail != '' else ''}")
        (self.held if holds else self.failed).append(said)
        if not holds:
            print("FAIL", said)
        self._keep()

    def note(self, what: str, value: Any) -> None:
        """Record a figure."""
        self.figures[what] = value
        print("    ", one_line(f"{what}: {value}"))
        self._keep()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn any exception in a block into a failed claim."""
        try:
            yield
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            self.claim(what, False, f"{type(error).__name__} at {place}: {error}")

    def has_time(self, seconds: float, what: str) -> bool:
        """Return whether `seconds` are left; if not, note that `what` is left out."""
        if self.left < seconds * (1 if GPU else 0.1):
            self.note(f"left out for lack of time: {what}", f"{self.left:.0f} s left")
            return False
        return True

    def _keep(self) -> None:
        about = {"held": self.held, "failed": self.failed, "figures": self.figures}
        (OUT / f"{self.section}.json").write_text(json.dumps(about, indent=1, default=str))


def one_line(text: str) -> str:
    short = " ".join(text.split())
    return short if len(short) <= LONGEST else f"{short[: LONGEST - 4]} ..."


def limit(section: str) -> float:
    """Return the seconds of a section; a dry run may be on a slow machine."""
    return SECONDS[section] * (1 if GPU else 3) * float(os.environ.get("CHECK_STRETCH", "1"))


def run_section(name: str) -> None:
    """Run a section in this process."""
    findings = Findings(name)
    with findings.attempt(f"section {name}"):
        import_module("device_sections").SECTIONS[name](findings)


def run_all(names: list[str]) -> int:
    """Run sections one after another, print what they found, and return the exit code."""
    for folder in (OUT, ROOM):
        folder.mkdir(parents=True, exist_ok=True)
    make_room()
    print(about_the_machine())
    ends: dict[str, tuple[str, float]] = {}
    for name in names:
        (OUT / f"{name}.json").unlink(missing_ok=True)
        print(f"-- {name}")
        start = time.monotonic()
        ends[name] = one_section(name), time.monotonic() - start
    return summary(ends)


def make_room() -> None:
    """Remove earlier runs, since finished work would not be done again; keep the images."""
    for path in ROOM.iterdir():
        if path.is_file():
            path.unlink()
        elif not path.name.startswith("images"):
            shutil.rmtree(path)


def one_section(name: str) -> str:
    """Run a section in a process group of its own; return how it failed, or nothing."""
    command = [sys.executable, __file__, "--section", name]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            code = process.wait(limit(name))
            return "" if code == 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            return f"was not over after {limit(name):.0f} s"
        finally:
            with_children(process.pid)


def with_children(group: int) -> None:
    """End the processes that a section has left running."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def about_the_machine() -> str:
    """Return the versions and the device, found in another process."""
    code = (
        "import os, torch, torchvision\n"
        "print('torch', torch.__version__, 'torchvision', torchvision.__version__, 'cuda',"
        " torch.version.cuda, 'cudnn', torch.backends.cudnn.version(), os.cpu_count(), 'cores',"
        " torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'no GPU')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return one_line(done.stdout or done.stderr)


def summary(ends: dict[str, tuple[str, float]]) -> int:
    """Print which claims hold, write summary.json, and return the exit code."""
    print("-- summary")
    failed: list[str] = []
    for name, (end, seconds) in ends.items():
        path = OUT / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {"held": [], "failed": []}
        wrong = [f"{name}: {claim}" for claim in found["failed"]]
        wrong += [f"{name}: {end}"] if end else []
        held = len(found["held"])
        print(f"{name:8} {seconds:5.0f} s  {held:3} claims hold, {len(wrong)} fail")
        failed += wrong
    for line in failed[:40]:
        print("FAIL", one_line(line))
    (OUT / "summary.json").write_text(json.dumps({"failed": failed, "ends": ends}, indent=1))
    return int(bool(failed))


def main() -> int:
    names = sys.argv[1:]
    if names[:1] == ["--section"]:
        run_section(names[1])
        return 0
    unknown = set(names) - SECONDS.keys()
    if unknown:
        print(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECONDS)}")
        return 2
    return run_all(names or list(SECONDS))


if __name__ == "__main__":
    sys.exit(main())
