"""The room that work takes is told before it begins, and what cannot fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common import disk
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.run.pipeline import STAGES
from cnnvis_cli.store.room import Room, free_bytes, in_words, joined_room

Flags = dict[str, Any]
NEAR = 0.2
FLAGS: Flags = {"model": "demo", "device": "cpu", "workers": 0, "run": "run"}
WORK: dict[str, Flags] = {
    "topk": {},
    "optimize": {"layer": ("fc8",), "optimize__style": ("3", "1"), "optimize__iterations": 12},
    "project": {"layer": ("conv3",)},
}
FILES = {"topk": "topk.h5", "optimize": "optimized/fc8.h5", "project": "projected/conv3.h5"}


class Listening(Report):
    """A report whose lines are kept."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def flags(photographs: Callable[..., Path]) -> Flags:
    return FLAGS | {"dataset": str(photographs(Path("images"), 40, size=(120, 120)))}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Room]:
    """Return a list that gets what each stage is expected to take."""
    rooms: list[Room] = []
    before = disk.check_disk

    def listening(session: Any, stage: str, room: Room, *rest: Any) -> None:
        rooms.append(room)
        before(session, stage, room, *rest)

    for stage in WORK:
        monkeypatch.setattr(f"cnnvis_cli.stages.{stage}.stage.check_disk", listening)
    return rooms


def work(stage: str, flags: Flags, report: Report | None = None) -> None:
    with open_session(
        Plan.make(None, flags | WORK[stage]), report or Report(quiet=True)
    ) as session:
        STAGES[stage](session)


@pytest.mark.parametrize("stage", WORK)
def test_estimates_are_near_what_is_written(stage: str, flags: Flags, told: list[Room]) -> None:
    if stage == "project":
        work("topk", flags)
        told.clear()
    work(stage, flags)
    written = (Path("run") / FILES[stage]).stat().st_size
    assert told[0].results == pytest.approx(written, rel=NEAR)


@pytest.mark.parametrize("stage", WORK)
def test_what_cannot_fit_is_refused_before_any_work(
    stage: str, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stage == "project":
        work("topk", flags)
    monkeypatch.setattr(disk, "WORTH_SAYING", 1)
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    refused = pytest.raises(CnnvisError, match=r"1 kB are free; ask for fewer --.*with --yes$")
    with refused as error:
        work(stage, flags)
    assert error.value.exit_code == 1
    assert not (Path("run") / "parts").exists()
    report = Listening()
    work(stage, flags | {"yes": True}, report)
    assert (Path("run") / FILES[stage]).exists()
    assert any(line.startswith(f"{stage}: about ") for line in report.lines)


def test_a_shard_takes_its_share(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WORTH_SAYING", 1)
    lines: dict[str | None, str] = {}
    for shard in (None, "1/4"):
        report = Listening()
        own = {"run": f"run{shard is None}", "shard": shard, "batch_size": 4}
        work("topk", flags | own, report)
        (lines[shard],) = [line for line in report.lines if line.startswith("topk: about")]
    sizes = {shard: float(line.split("about ")[1].split()[0]) for shard, line in lines.items()}
    assert sizes["1/4"] == pytest.approx(sizes[None] / 4, rel=0.02)


def test_parts_of_one_layer_are_there_at_a_time() -> None:
    assert joined_room([Room(10, 5), Room(20, 7)]) == Room(30, 7)
    assert joined_room([]) == Room(0, 0)


def test_bytes_in_words() -> None:
    assert list(map(in_words, (12, 1300, 5e9, 2e15))) == ["12 bytes", "1.3 kB", "5 GB", "2e+03 TB"]


def test_the_free_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert 0 < free_bytes(tmp_path / "not" / "there") < 1 << 62
