"""How long the sheet of a very large layer takes, and how much memory: AlexNet's fc6.

    python tests/sheet.py

Fills a run directory with smooth noise in place of 4,096 optimized images of 224x224 pixels, then
has `cnnvis montage` draw them: all pages at true size, and one sheet at a quarter of it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import Session, open_session
from cnnvis_cli.store.optimized import Optimized, OptimizedFile

UNITS, LAYER, RUNS = 4096, "fc6", 1


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        plan = Plan(model="alexnet", weights="random", run=str(run), device="cpu")
        with open_session(plan, Report(quiet=True)) as session:
            _fill(session)
        shown = "all units at true size", "one sheet, a quarter of the size"
        for what, options in zip(shown, ([], ["--scale", "0.25"]), strict=True):
            seconds, memory = _measured(run, options)
            print(f"{what}: {seconds:.1f} s, {memory / 1e9:.2f} GB at most")


def _fill(session: Session) -> None:
    layer = session.network.layer(LAYER)
    height, width = session.network.size
    record = {"history": 1, "objective": "centre", "minimise": False}
    units = np.arange(UNITS, dtype=np.int32)

    def blocks() -> Iterator[dict[str, Any]]:
        draw = np.random.default_rng(0)
        for first in range(0, UNITS, 64):
            coarse = draw.normal(size=(64, RUNS, height // 8, width // 8, 3))
            images = coarse.repeat(8, axis=2).repeat(8, axis=3)
            images += draw.normal(scale=0.05, size=images.shape)
            numbers = np.zeros((64, RUNS))
            yield {
                "image": images.astype(np.float16),
                **dict.fromkeys(("activation", "start", "best_step", "outcome"), numbers),
                "history": numbers[..., None],
                "unit": units[first : first + 64],
            }

    file = OptimizedFile(session.run.optimized(LAYER))
    images = Optimized(record, units, (RUNS, height, width), 1, blocks())
    file.publish(session.header(layer), {"3": images})


def _measured(run: Path, options: list[str]) -> tuple[float, int]:
    """Seconds of the command, and the most memory (bytes) of all its processes together."""
    start = time.monotonic()
    command = [sys.executable, "-m", "cnnvis_cli", "montage", "optimized", "-r", str(run), "-q"]
    process = subprocess.Popen(command + options, stdout=subprocess.DEVNULL)
    most = [0]
    watch = threading.Thread(target=_watch, args=(process, most))
    watch.start()
    if process.wait() != 0:
        raise SystemExit("montage failed")
    seconds = time.monotonic() - start
    watch.join()
    return seconds, most[0]


def _watch(process: subprocess.Popen[bytes], most: list[int]) -> None:
    while process.poll() is None:
        most[0] = max(most[0], _proportional(process.pid))
        time.sleep(0.1)


def _proportional(pid: int) -> int:
    """Memory of a process and its children; what they share is counted once (PSS)."""
    total = 0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text().split()
            total += sum(_proportional(int(child)) for child in children)
    except (OSError, StopIteration):
        pass  # it has just ended
    return total


if __name__ == "__main__":
    main()
