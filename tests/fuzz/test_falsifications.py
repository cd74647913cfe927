"""Single falsifications of a finished run: `verify` finds each, or names it as unproven."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnvis_cli import digests
from cnnvis_cli import verify as verifying
from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common import network_loading
from cnnvis_cli.store import origin, validate
from cnnvis_cli.verify.findings import Findings
from tests.fuzz.falsify import Falsification, Forger

Call = Callable[..., Any]
SAMPLE = 6  # of 25 images
PLAN = """
model = "demo"
dataset = "images"
run = "run"
device = "cpu"
workers = 0
batch-size = 8
layer = ["conv2", "fc8"]
units = "0-3"
topk = {k = 3, max-unreadable = 0.1}
optimize = {iterations = 12, runs = 2, history = 2, style = ["3", "natural"]}
montage = {kind = ["optimized", "top"]}
stages = ["topk", "optimize", "project", "montage", "gallery"]
"""


@pytest.fixture
def run(cnnvis: Call) -> Path:
    """A finished run of the demo network, with one broken image."""
    for number in range(24):
        path = Path("images") / f"class{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = np.random.default_rng(number).integers(0, 256, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(rough).resize((112, 112), Image.Resampling.BICUBIC).save(path)
    Path("images/class1/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Path("plan.toml").write_text(PLAN)
    cnnvis("run plan.toml")
    return Path("run")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Findings | str]:
    """`verify` in this process, with one network for all; the message where it refuses."""
    known: dict[Any, Any] = {}

    def load(plan: Plan, say: Any) -> Any:
        key = plan.model, plan.weights, plan.preprocessing
        if key not in known:
            known[key] = network_loading.load_network(plan, say)
        return known[key]

    monkeypatch.setattr(verifying, "load_network", load)

    def call(everything: bool = False) -> Findings | str:
        digests._file_digest.cache_clear()
        validate._check_once.cache_clear()
        origin._checked.clear()
        plan = Plan.make(None, {"run": "run", "device": "cpu"})
        try:
            return verifying.verify(plan, Report(quiet=True), SAMPLE, everything)
        except CnnvisError as error:
            return str(error)

    return call


def restore(good: Path, run: Path) -> None:
    """Put a run back as it was, with its times."""
    if run.exists():
        shutil.rmtree(run)
    shutil.copytree(good, run, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    """Link a file where nobody writes in place; cnnvis and the forger never do."""
    os.link(source, target)


def judged(done: Falsification, checked: Callable[..., Findings | str]) -> str:
    """Return how a falsification ended: found, by --all alone, unproven, or missed."""
    found = checked()
    if isinstance(found, str) or found.wrong:
        return "found"
    named = any(found.of(row).unproven for row in done.rows)
    if not named:
        return "missed"
    if not done.all_finds:
        return "named as unproven"
    found = checked(True)
    if isinstance(found, str) or found.wrong:
        return "found by --all"
    return "missed"


@pytest.mark.parametrize("count", [45, pytest.param(1000, marks=pytest.mark.long)])
def test_nothing_is_missed(
    count: int, run: Path, checked: Callable[..., Findings | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Path("good")
    run.rename(good)
    restore(good, run)
    for everything in (False, True):
        fine = checked(everything)
        assert isinstance(fine, Findings), fine
        assert not fine.wrong, fine.wrong
    start, ends, missed = time.monotonic(), Counter[str](), []
    for number in range(count):
        restore(good, run)
        done = Forger(run, np.random.default_rng([count, number])).falsify()
        if done.what == "nothing":
            continue
        end = judged(done, checked)
        ends[end] += 1
        if end == "missed":
            missed.append(f"{number}: {done.what}")
            print("missed", missed[-1], flush=True)
        if number % 100 == 99:
            print(f"{number + 1}: {dict(ends)}, {time.monotonic() - start:.0f} s", flush=True)
    told = ", ".join(f"{ends[end]} {end}" for end in sorted(ends))
    print(f"{sum(ends.values())} falsifications in {time.monotonic() - start:.0f} s: {told}")
    assert not missed, "\n".join(missed)
