"""A finished run over as many images as ImageNet has returns at once, in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.engine import Emit, WorkerSlot
from cnnvis_cli.errors import Stopped
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.topk import stage as topk
from cnnvis_cli.stages.topk.job import TopKJob
from cnnvis_cli.stages.topk.worker import scan

IMAGES, CLASSES = 1_281_167, 1000
SECONDS, MEGABYTES = 5, 300
LINKS = 60_000  # to a file; ext4 allows 65,000
LINE = "topk images --model demo --layer conv1 --device cpu --workers 0 --run run"
PLAN: dict[str, Any] = {
    "model": "demo",
    "layer": ("conv1",),
    "dataset": "images",
    "run": "run",
    "device": "cpu",
    "workers": 0,
}


def fill(root: Path) -> None:
    """So many names of small pictures in class folders: hard links to a few files."""
    root.mkdir()
    own = [root.with_name(f"own{number}.png") for number in range(IMAGES // LINKS + 1)]
    for number, path in enumerate(own):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    for label in range(CLASSES):
        folder = root / f"n{label:08d}"
        folder.mkdir()
        for number in range(label * IMAGES // CLASSES, (label + 1) * IMAGES // CLASSES):
            os.link(own[number // LINKS], folder / f"{number:08d}.png")


def repeat(work: TopKJob, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    """Instead of a scan, which would take hours: its first part is made, and kept for all others.

    So whatever comes after it has arrays of the real size.
    """
    first = next(numbers)
    scan(work, worker_slot, iter([first]), emit)
    arrays = work.parts[first]
    for number in numbers:
        images = work.cut.images_of(number)
        work.parts[number] = arrays | {"crc": arrays["crc"][: len(images)]}
    raise Stopped("all parts are there")


# A small process starts it: Linux counts what a process was before it became another program.
LAUNCH = """
import os, sys, time
begin = time.monotonic()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(os.waitstatus_to_exitcode(status), time.monotonic() - begin, usage.ru_maxrss >> 10)
"""


class Told(NamedTuple):
    code: int
    seconds: float
    megabytes: int


def start(line: str) -> Told:
    """Run a command in a fresh process, as a user starts it; return what it took."""
    words = [sys.executable, "-c", LAUNCH, sys.executable, "-m", "cnnvis_cli", *line.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, stdout=subprocess.PIPE, env=environment, text=True, check=True)
    code, seconds, megabytes = done.stdout.splitlines()[-1].split()
    return Told(int(code), float(seconds), int(megabytes))


@pytest.mark.long
def test_a_finished_run_of_a_million_images(monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Path("images"))
    begin = time.monotonic()
    assert len(Manifest.scan(Path("images"))) == IMAGES
    listed = time.monotonic() - begin
    monkeypatch.setattr(topk, "scan", repeat)
    plan = Plan.make(None, PLAN)
    with (
        pytest.raises(Stopped, match="all parts"),
        open_session(plan, Report(quiet=True)) as session,
    ):
        topk.topk(session)
    first, second, third = start(LINE), start(LINE), start(LINE)
    print(f"listing {IMAGES} images: {listed:.1f} s; from parts to topk.h5: {first}")
    print(f"started again: {second}, and again: {third}")
    assert (first.code, second.code, third.code) == (0, 0, 0)
    assert not Path("run/parts").exists()
    assert max(second.seconds, third.seconds) <= SECONDS
    assert max(second.megabytes, third.megabytes) <= MEGABYTES


@pytest.mark.long
def test_a_finished_run_of_twenty_thousand_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made up here: every image has been through the network."""
    monkeypatch.setattr(sys.modules[__name__], "IMAGES", 20_000)
    fill(Path("images"))
    first, second = start(LINE), start(LINE)
    print(f"20,000 images: {first}; started again: {second}")
    assert (first.code, second.code) == (0, 0)
    assert second.seconds <= SECONDS
    assert second.megabytes <= MEGABYTES
