"""Whether open files, threads and memory level off in long runs, as a table.

Started as ``python tests/reliability/long_runs.py`` it runs topk on a tar of 20,000 images and
optimize on all 632 units of the bundled network, and samples /proc of their processes.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

IMAGES, DIFFERENT = 20_000, 200
COMMON = ("--model", "demo", "--device", "cpu", "--workers", "1")
COMMANDS = {
    "topk": ("topk", "images.tar", *COMMON),
    "optimize": ("optimize", *COMMON, "--style", "3", "--iterations", "8"),
}


class Sample(NamedTuple):
    """What a command and its children have at one moment."""

    files: int
    threads: int
    megabytes: int  # resident


def fill(path: Path) -> None:
    """Write a tar of JPEGs, most of them several times under other names."""
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(DIFFERENT):
        coarse = generator.integers(0, 256, (8, 8, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((128, 128)).save(stream, "JPEG")
        contents.append(stream.getvalue())
    with tarfile.open(path, "w") as tar:
        for number in range(IMAGES):
            member = tarfile.TarInfo(f"class{number % 10}/{number:05d}.jpg")
            member.size = len(contents[number % DIFFERENT])
            tar.addfile(member, io.BytesIO(contents[number % DIFFERENT]))


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for each in found:
        try:
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
        except OSError:
            continue
    return found


def sample(pid: int) -> Sample:
    """Look at a process and its descendants."""
    files = threads = pages = 0
    for each in family(pid):
        try:
            files += len(list(Path(f"/proc/{each}/fd").iterdir()))
            threads += len(list(Path(f"/proc/{each}/task").iterdir()))
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except OSError:  # it has just ended
            continue
    return Sample(files, threads, pages * os.sysconf("SC_PAGE_SIZE") >> 20)


def watched(words: tuple[str, ...], folder: Path) -> tuple[float, list[Sample]]:
    """Return the seconds that a command took, and what it had, twice a second."""
    line, begun = [sys.executable, "-m", "cnnvis_cli", *words], time.monotonic()
    with subprocess.Popen(line, cwd=folder, stderr=subprocess.DEVNULL) as process:
        samples = []
        while process.poll() is None:
            samples.append(sample(process.pid))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(line)}: exit code {process.returncode}")
    return time.monotonic() - begun, samples


def main() -> None:
    """Print the largest of each quarter of a run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "images.tar")
        for command, words in COMMANDS.items():
            seconds, samples = watched(words, folder)
            print(f"{command}: {seconds:.0f} s, {len(samples)} samples")
            for column in Sample._fields:
                values = np.array([getattr(each, column) for each in samples])
                quarters = [str(part.max()) for part in np.array_split(values, 4)]
                print(f"  {column:10} largest of each quarter: {', '.join(quarters)}")


if __name__ == "__main__":
    main()
