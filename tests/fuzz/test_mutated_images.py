"""Thousands of broken images through the decoder of topk: none of them ends or stops the night."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest

MUTATE = str(Path(__file__).with_name("mutate.py"))
SEED = 20
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, which tells every warning."""
    command = [sys.executable, "-W", "always", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, check=False)


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.long)])
def test_mutated_images_are_decoded_or_skipped(count: int, tmp_path: Path) -> None:
    assert python(MUTATE, "write", str(tmp_path), str(count), str(SEED)).returncode == 0
    done = python(MUTATE, "decode", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    print(found)
    assert found["images"] == count
    for way in ("exact", "fast"):
        told = found[way]
        assert told["decoded"] + told["skipped"] == count
        assert min(told["decoded"], told["skipped"]) > count / 10  # the mutations hit, not all
        assert told["slowest"] < 10  # seconds
    assert found["after"]["VmRSS"] - found["before"]["VmRSS"] < 200  # megabytes


@pytest.mark.parametrize("count", [pytest.param(10_000, marks=pytest.mark.long)])
def test_topk_counts_and_lists_mutated_images(count: int, tmp_path: Path) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    assert python(MUTATE, "write", str(images), str(count), str(SEED)).returncode == 0
    flags = ["--model", "demo", "--layer", "conv1", "--max-unreadable", "1", "--workers", "0"]
    flags += ["--device", "cpu", "--run", str(run)]
    done = python("-m", "cnnvis_cli", "topk", str(images), *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(line.startswith("topk: ") for line in done.stderr.splitlines())  # one a minute
    print(done.stdout)
    lines = (run / "skipped.tsv").read_text().splitlines()
    with h5py.File(run / "topk.h5") as file:
        assert file.attrs["images"] == count
        assert file.attrs["skipped"] == len(lines) == file["images/skipped"][()].sum()
    assert all(line.count("\t") == 1 for line in lines)
    assert f"{count} images, {len(lines)} skipped" in done.stdout
