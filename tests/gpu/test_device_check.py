"""A dry run of the check of a real device (``make gpu``), on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = ("default", "bits", "syncs", "pass", "host", "topk", "faults")


def check(folder: Path, *sections: str) -> tuple[str, dict[str, Any]]:
    """Run sections on a CPU; return what was printed and the summary."""
    surroundings = {
        **os.environ,
        **{"CHECK_DEVICE": "cpu", "OUT": str(folder), "TMPDIR": str(folder)},
        **{"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    }
    command = ["bash", "tests/gpu/device_check.sh", *sections]
    done = subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return done.stdout, summary


def test_sections_make_claims_that_hold(tmp_path: Path) -> None:
    told, summary = check(tmp_path, "default", "bits")
    assert summary["failed"] == []
    for name in ("default", "bits"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["held"]
        assert name in told


@pytest.mark.long
def test_every_section_runs(tmp_path: Path) -> None:
    told, summary = check(tmp_path)
    assert list(summary["ends"]) == list(SECTIONS)
    assert summary["failed"] == []
    assert len(told) < 12_000


def test_a_section_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/gpu/device_check.py"), "bit"],
        env={**os.environ, "OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "default" in done.stdout
