"""The memory of `topk`: the same for twenty thousand images as for two hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROGRAM = """
import resource, sys
from cnnvis_cli.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):  # of children: the largest
    print(resource.getrusage(who).ru_maxrss)
"""


def draw(folder: Path, count: int) -> None:
    """Draw this many small JPEGs in ten class folders, all different."""
    for number in range(10):
        (folder / f"class{number}").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        picture = Image.fromarray(pixels).resize((72, 72))
        picture.save(folder / f"class{number % 10}" / f"{number:06d}.jpg", quality=80)


def peaks(folder: Path, run: Path) -> list[int]:
    """Return the peak memory of the command and of its worker processes, in megabytes."""
    flags = ["--model", "demo", "--device", "cpu", "--workers", "2", "--run", str(run), "--quiet"]
    command = [sys.executable, "-c", PROGRAM, "topk", str(folder), *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [int(line) // 1024 for line in done.stdout.splitlines()[-2:]]


@pytest.mark.parametrize("many", [2_000, pytest.param(20_000, marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_dataset(many: int, tmp_path: Path) -> None:
    for count in (200, many):
        draw(tmp_path / str(count), count)
    few, more = (peaks(tmp_path / str(count), tmp_path / f"run{count}") for count in (200, many))
    print(f"megabytes with 200 images {few}, with {many} {more} (command, worker)")
    for before, after in zip(few, more, strict=True):
        assert after - before < 50
