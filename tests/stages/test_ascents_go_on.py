"""Ascents that are stopped half-way go on where they were, to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from cnnvis_cli.errors import Stopped
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.optimize import worker as stage
from cnnvis_cli.stages.optimize.search import search

FLAGS: dict[str, Any] = {
    "model": "demo",
    "device": "cpu",
    "workers": 0,
    "layer": ("conv1",),
    "units": "0-4",
    "batch_size": 4,
    "optimize__iterations": 60,
    "optimize__style": ("3",),
    "optimize__step": "100",
}
KINDS: dict[str, dict[str, Any]] = {
    "pixels": {"optimize__runs": 2},
    "history": {"optimize__history": 7, "optimize__style": ("2",), "optimize__step": "paper"},
    "natural": {"optimize__style": ("natural",), "optimize__step": "calibrated"},
    "fourier": {"optimize__style": ("fourier",), "optimize__step": "calibrated"},
    "diversity": {"optimize__runs": 3, "optimize__diversity": 1.0},
}


class Counted(Report):
    """A report that stops the work at the n-th moment after the first steps, and counts these."""

    def __init__(self, moments: int | None = None) -> None:
        super().__init__(quiet=True)
        self.left = moments

    def check_stop(self) -> None:
        if self.left is not None and steps_made():
            self.left -= 1
            if self.left < 0:
                raise Stopped("told to stop")


_made: list[int] = []


def steps_made() -> int:
    return sum(_made)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the steps of single ascents in this process, and tell of each step of a batch."""
    _made.clear()
    monkeypatch.setattr(stage, "STEPS_PER_MESSAGE", 1)
    before = stage.Pulse.__call__

    def counting(self: stage.Pulse, under_way: Any) -> None:
        before(self, under_way)
        _made.append(self.busy)

    monkeypatch.setattr(stage.Pulse, "__call__", counting)


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    return FLAGS | {"run": str(tmp_path / "once")}


def stopped(do: Callable[..., None], flags: dict[str, Any], moments: int) -> int:
    """Stop the work some moments after its first step; return the steps that were made."""
    _made.clear()
    with pytest.raises(Stopped):
        do("optimize", Counted(moments), **flags)
    return steps_made()


def pieces(run: Path) -> list[Path]:
    return sorted(run.rglob("under_way/*.h5"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_is_made_twice_after_a_stop(
    kind: str, do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    """Three stops, also while ascents that were kept wait for a slot."""
    flags |= KINDS[kind]
    do("optimize", **flags)
    whole = steps_made()
    other = flags | {"run": str(tmp_path / "other")}
    made = sum(stopped(do, other, moments) for moments in (20, 2, 30))
    assert pieces(tmp_path / "other")
    _made.clear()
    do("optimize", **other)
    assert steps_made() < whole
    assert made + steps_made() <= whole + 3 * 4  # the step in which a stop is noticed
    files = [tmp_path / name / "optimized/conv1.h5" for name in ("once", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "other/parts").exists()


def test_what_an_ascent_keeps_beside_its_image_goes_on_too(
    do: Callable[..., None],
    flags: dict[str, Any],
    photographs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Of a unit some runs have ended at the stop: three runs in four slots."""
    photographs(tmp_path / "images", 4, size=(112, 112))
    flags |= {"optimize__runs": 3, "optimize__style": ("maco",), "optimize__step": "calibrated"}
    flags["optimize__majority"] = True
    runs = [flags | {"run": str(tmp_path / name)} for name in ("once", "other")]
    for each in runs:
        do("topk", **each | {"dataset": str(tmp_path / "images"), "units": ""})
    do("optimize", **runs[0])
    for moments in (70, 2, 30):
        stopped(do, runs[1], moments)
    ages = [h5py.File(path)["age"][()] for path in pieces(tmp_path / "other")]
    assert any((each == 0).any() for each in ages)
    do("optimize", **runs[1])
    files = [tmp_path / name / "optimized/conv1.h5" for name in ("once", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with h5py.File(files[0]) as file:
        assert (file["maco/transparency"][()].max(axis=(2, 3)) == 1).all()
        led = file["maco/majority_step"][()] >= 0
        assert led.any()
        assert (file["maco/majority"][()].any(axis=(2, 3, 4)) == led).all()


def test_another_selection_of_units_goes_on_with_what_is_kept(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    other = flags | {"run": str(tmp_path / "other")}
    fewer = {"units": "1,2"}
    do("optimize", **flags | fewer)
    whole = steps_made()
    stopped(do, other, 30)
    stopped(do, other | fewer, 10)  # its pieces are newer than those of more units
    _made.clear()
    do("optimize", **other | fewer)
    assert steps_made() <= whole - 2 * (30 + 10) + 3 * 4
    files = [tmp_path / name / "optimized/conv1.h5" for name in ("once", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_damaged_piece_counts_as_not_there(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("optimize", **flags)
    whole = steps_made()
    run, other = tmp_path / "other", flags | {"run": str(tmp_path / "other")}
    stopped(do, other, 30)
    for piece in pieces(run):
        content = bytearray(piece.read_bytes())
        content[len(content) // 2] ^= 1
        piece.write_bytes(content)
    _made.clear()
    do("optimize", **other)
    assert steps_made() == whole
    files = [tmp_path / name / "optimized/conv1.h5" for name in ("once", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_search_goes_on_likewise(flags: dict[str, Any], tmp_path: Path) -> None:
    flags |= {"units": "1,4", "search__trials": 4, "search__iterations": 40}

    def do_search(report: Report, run: str) -> int:
        _made.clear()
        with open_session(Plan.make(None, flags | {"run": run}), report) as session:
            search(session)
        return steps_made()

    whole = do_search(Report(quiet=True), str(tmp_path / "once"))
    made = 0
    for moments in (20, 2, 30):
        with pytest.raises(Stopped):
            do_search(Counted(moments), str(tmp_path / "other"))
        made += steps_made()
    assert pieces(tmp_path / "other")
    assert made + do_search(Report(quiet=True), str(tmp_path / "other")) <= whole + 3 * 4
    files = [tmp_path / name / "search/conv1.h5" for name in ("once", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "other/parts").exists()
