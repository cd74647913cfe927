"""The command line in this process, and plans small enough to do it all many times."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cnnvis_cli.cli import _code

PLANS = {
    # whole numbers, computed in no time; but your own code has no receipts
    "exact": """
model = "tinynet:exact"
trust-code = true
preprocessing = {resize = 32, crop = 32, mean = [120, 110, 100], std = [1, 1, 1]}
optimize = {iterations = 4, step = 1}
batch-size = 4
""",
    "demo": """
model = "demo"
optimize = {iterations = 4, step = 1}
batch-size = 8
layer = ["conv1"]
units = "0-3"
""",
}
SHARED = """
device = "cpu"
workers = 0
topk = {k = 3}
stages = ["topk", "optimize", "project"]
"""


class Told(NamedTuple):
    """How a command ended and its output."""

    code: int
    out: str
    err: str


@pytest.fixture
def cnnvis(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Told]:
    """The command, in this process; it must end with this exit code."""

    def call(line: str, code: int = 0) -> Told:
        monkeypatch.setattr(sys, "argv", ["cnnvis", *shlex.split(line)])
        capfd.readouterr()
        told = Told(_code(), *capfd.readouterr())
        assert told.code == code, told
        assert len(told.err.splitlines()) <= (1 if code else 99), told.err
        return told

    return call


@pytest.fixture
def plans(photographs: Callable[..., Path]) -> None:
    """Photographs, and a plan for each of the two networks: ``exact.toml``, ``demo.toml``."""
    photographs(Path("images"), 20, classes=2)
    for name, text in PLANS.items():
        images = Path("images").absolute()  # processes may stand elsewhere
        Path(f"{name}.toml").write_text(f'dataset = "{images}"\n{SHARED}{text}')


@pytest.fixture
def results() -> Callable[[Path], dict[str, Any]]:
    """A function from a run directory to the digest of each of its HDF5 files."""

    def look(run: Path) -> dict[str, Any]:
        return {
            str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.rglob("*.h5"))
        }

    return look
