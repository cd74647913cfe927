"""Stored bytes do not depend on the number of threads, also with few images in a pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnvis_cli.engine import threads

POINTWISE = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 256, 3, stride=2)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(256, 32, 1), nn.Flatten(), nn.LazyLinear(4))
"""


@pytest.fixture
def made(
    do: Callable[..., None], photographs: Callable[..., Path], tmp_path: Path
) -> Callable[[int, str], list[bytes]]:
    """A function that makes a run of two images a pass, and returns the bytes of its files."""
    Path("pointwise.py").write_text(POINTWISE)
    folder = photographs(tmp_path / "images", 2, size=(56, 56))
    flags: dict[str, Any] = {
        "model": "pointwise:net",
        "trust_code": True,
        "preprocessing__resize": 56,
        "preprocessing__crop": 56,
        "dataset": str(folder),
        "workers": 0,
        "batch_size": 2,
        "layer": ("conv2",),
        "units": "0-3",
        "device": "cpu",
    }

    def make(count: int, name: str) -> list[bytes]:
        torch.set_num_threads(count)
        run = tmp_path / name
        do("topk", **flags, run=str(run))
        do("project", **flags, run=str(run))
        return [path.read_bytes() for path in sorted(run.rglob("*.h5"))]

    return make


def test_one_thread_and_two_give_the_same_bytes(
    made: Callable[[int, str], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(1, "one") == made(2, "two")
    monkeypatch.setattr(threads, "STEADY", 0)
    if made(2, "free") == made(1, "bound"):
        pytest.skip("this processor adds in the same order on two threads")
