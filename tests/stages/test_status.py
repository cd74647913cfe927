"""`cnnvis status`: what is done, left, skipped and in progress, of runs in every state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnnvis_cli.stages.run.receipt import FAILURE, PROGRESS
from cnnvis_cli.stages.run.status import StageProgress, _last_note, _units_per_second
from cnnvis_cli.stages.run.status import _MadePart as Part
from cnnvis_cli.store.lock import alone
from cnnvis_cli.store.parts import _sealed

Call = Callable[..., Any]
LOCKED = """
import sys, time
from pathlib import Path
from cnnvis_cli.store.lock import alone
with alone(Path(sys.argv[1]), *sys.argv[2:]):
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def small(plans: None) -> None:
    """The plans of all tests here."""


@pytest.fixture
def status(cnnvis: Call, snapshot: Call) -> Callable[..., dict[str, Any]]:
    """A function from a run directory to what status says for programs; it changes no byte."""

    def look(run: str = "run") -> dict[str, Any]:
        before = snapshot(Path(run))
        found: dict[str, Any] = json.loads(cnnvis(f"status {run} --json").out)
        table = cnnvis(f"status {run}").out
        assert all(map(str.isprintable, table.split("\n")))
        assert snapshot(Path(run)) == before
        return {**found, "table": table}

    return look


def rows(found: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Done, left and skipped, by stage and what."""
    return {
        f"{row['stage']} {row['what']}": (row["done"], row["left"], row["skipped"])
        for row in found["rows"]
    }


def test_a_folder_without_a_run_is_refused(cnnvis: Call) -> None:
    Path("empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert f"{folder}: holds no run; begin one" in cnnvis(f"status {folder}", code=2).err
    assert not Path("nowhere").exists()
    assert not list(Path("empty").iterdir())


def test_a_finished_run(cnnvis: Call, status: Call) -> None:
    Path("images/class0/broken.png").write_bytes(b"no picture")
    cnnvis("run exact.toml --run run --max-unreadable 0.5", code=2)  # an option of topk alone
    cnnvis("topk images -c exact.toml --run run --max-unreadable 0.5")
    for stage in ("optimize", "project"):
        cnnvis(f"{stage} -c exact.toml --run run")
    found = status()
    wanted = {"topk images": (21, 0, 1)}
    for alias, channels in (("conv1", 6), ("conv2", 8), ("fc3", 10)):
        wanted |= {f"optimize {alias} style 3": (channels, 0, 0)}
        wanted |= {f"project {alias} deconv": (channels, 0, 0)}
    assert rows(found) == wanted
    assert (found["model"], found["damaged"], found["figures"]) == ("tinynet:exact", 0, 0)
    assert (found["at_work"], found["told"], found["failed"]) == ([], [], None)
    assert "21/21 images, 1 skipped" in found["table"]


def test_an_interrupted_run(
    do: Call, exact: dict[str, Any], interrupted: Call, status: Call, cnnvis: Call
) -> None:
    flags = exact | {"run": "run", "optimize__style": ("3",), "optimize__iterations": 40}
    flags |= {"layer": ("fc3",), "batch_size": 2, "optimize__runs": 2, "optimize__step": "1"}
    with pytest.raises(Exception, match="told to stop"):
        do("optimize", interrupted(30), **flags)
    ((name, (done, left, _)),) = rows(status()).items()
    assert name == "optimize fc3 style 3"
    assert 0 < done < 10
    assert done + left == 10
    do("optimize", **flags)
    assert rows(status()) == {"optimize fc3 style 3": (10, 0, 0)}


def test_large_parts_are_counted_without_reading_them_whole(
    cnnvis: Call, status: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnnvis("optimize --layer fc3 -c exact.toml --run run --shard 1/3")
    before = rows(status())["optimize fc3 style 3"]
    paths = sorted(Path("run/parts/optimized").rglob("[0-9]*.h5"))
    _sealed.cache_clear()
    monkeypatch.setattr("cnnvis_cli.store.parts.intact", lambda path: pytest.fail("read whole"))
    monkeypatch.setattr("cnnvis_cli.store.parts.LOOKED_THROUGH", paths[0].stat().st_size // 2)
    assert rows(status())["optimize fc3 style 3"] == before
    content = paths[0].read_bytes()
    for damaged in (content[: len(content) // 2 + 9], b"damaged" * len(content)):
        paths[0].write_bytes(damaged)
        assert rows(status())["optimize fc3 style 3"][0] < before[0]


def test_shards_add_up_and_damaged_parts_are_left(cnnvis: Call, status: Call) -> None:
    for stage in ("topk images", "optimize --layer fc3"):
        for shard in ("1/3", "3/3"):
            cnnvis(f"{stage} -c exact.toml --run run --shard {shard}")
    before = rows(status())
    images, units = before["topk images"], before["optimize fc3 style 3"]
    assert 0 < images[0] < 20
    assert 0 < units[0] < 10
    assert (sum(images), sum(units)) == (20, 10)
    damaged = sorted(Path("run/parts/optimized").rglob("[0-9]*.h5"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    cnnvis("optimize --layer fc3 -c exact.toml --run run --shard 2/3")
    found = status()
    assert found["damaged"] == 1
    assert "damaged parts, set aside and to be made again: 1" in found["table"]
    assert 0 < rows(found)["optimize fc3 style 3"][1] < 10  # what was in it is left
    cnnvis("optimize --layer fc3 -c exact.toml --run run --shard 1/3")
    cnnvis("optimize --layer fc3 -c exact.toml --run run --shard 3/3")
    assert rows(status())["optimize fc3 style 3"] == (10, 0, 0)


@pytest.mark.parametrize("shards", [(), ("1/3", "2/3")])
def test_who_is_at_work(shards: tuple[str, ...], cnnvis: Call, status: Call) -> None:
    cnnvis("optimize -c exact.toml --run run --layer conv1 --units 0")
    others = [
        subprocess.Popen([sys.executable, "-c", LOCKED, "run", *shard], stdout=subprocess.PIPE)
        for shard in ([[s] for s in shards] or [[]])
    ]
    try:
        for other in others:
            assert other.stdout
            assert other.stdout.read(1)
        found = status()
    finally:
        for other in others:
            other.kill()
            other.communicate()
    assert len(found["at_work"]) == len(others)
    for other, who in zip(others, found["at_work"], strict=True):
        assert who.startswith(f"process {other.pid} on {os.uname().nodename} since 20")
        assert f"worked on by {who}" in found["table"]
    assert status()["at_work"] == []  # they are gone, though their word is still there


def test_the_last_word_of_a_process_that_was_killed(cnnvis: Call, status: Call) -> None:
    cnnvis("optimize -c exact.toml --run run --layer conv1 --units 0")
    note = {"line": "topk: 3/9 \x1b[2J\u202eimages\nmore", "at": "\r2026", "until": None}
    Path("run", PROGRESS).write_text(json.dumps(note))
    Path("run", f"{PROGRESS}-1of2").write_text(json.dumps(note | {"until": time.time() + 60}))
    Path("run", f"{PROGRESS}-2of2").write_bytes(b"\xff")  # half a file
    found = status()
    assert len(found["told"]) == 2
    assert found["table"].count("stopped unexpectedly after: topk: 3/9 \\x1b[2J") == 2


def test_a_failure_is_told_until_the_next_success(cnnvis: Call, status: Call) -> None:
    cnnvis("optimize -c exact.toml --run run --layer conv1 --units 0")
    Path("run/topk.h5").write_bytes(b"damaged")
    cnnvis("project -c exact.toml --run run", code=1)
    Path("run/topk.h5").unlink()
    found = status()
    assert found["failed"]["command"] == "project"
    assert "topk.h5" in found["failed"]["message"]
    assert "the last project ended at 20" in found["table"]
    cnnvis("optimize -c exact.toml --run run --layer conv1 --units 1")
    assert status()["failed"] is None


HOSTILE: dict[str, Any] = {
    "controls": {"command": "top\x1b[2Jk", "at": "\x07", "message": "a\nb\u2028\u202e\udcff"},
    "list": ["x"],
    "empty": {},
    "braces": {"command": "{0.__class__}", "at": "{at}", "message": "{message!r}"},
    "numbers": {"command": 1, "at": None, "message": {"a": [1]}, "line": 2},
    "times": {"line": "topk", "at": "12:00", "until": 1e300},
    "no times": {"line": "topk", "at": "12:00", "until": "soon"},
}


@pytest.mark.parametrize("record", HOSTILE.values(), ids=HOSTILE)
def test_hostile_notes_end_nothing(record: Any, cnnvis: Call, status: Call) -> None:
    cnnvis("optimize -c exact.toml --run run --layer conv1 --units 0")
    for name in (FAILURE, PROGRESS):
        Path("run", name).write_text(json.dumps(record))
    status()
    with alone(Path("run")):
        told = cnnvis("status run")
    assert "\x1b" not in told.out


def test_hostile_shard_notes_end_nothing(cnnvis: Call, status: Call) -> None:
    cnnvis("optimize -c exact.toml --run run --layer conv1 --units 0 --shard 1/1")
    wanted = rows(status())
    for number, content in enumerate(
        (
            b"",
            b"[]",
            b"null",
            b'{"asked": []}',
            b'{"asked": {"x": 1}}',
            b'{"asked": {"topk": {"images": {"total": "9"}}}}',
            b'{"topk": 1, "optimize": []}',
            b"[" * 9999,
        )
    ):
        Path(f"run/shards/{number}of9.json").write_bytes(content)
    assert rows(status()) == wanted


def _asked_for(record: Path) -> bool:
    return record.exists() and "asked" in record.read_text()


def test_status_of_a_run_at_work(cnnvis: Call, status: Call) -> None:
    """A real process in the middle of its work, stopped in the end as a night is."""
    line = "optimize -c exact.toml --run run --layer fc3 --iterations 100000"
    command = [sys.executable, "-m", "cnnvis_cli", *line.split()]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            until = time.monotonic() + 60
            while not _asked_for(Path("run/run.json")):
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.05)
            told = json.loads(cnnvis("status run --json").out)
            assert told["at_work"][0].startswith(f"process {process.pid} ")
            assert rows(told) == {"optimize fc3 style 3": (0, 10, 0)}
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 75
        finally:
            process.kill()  # where one of these fails, it would work on for hours
    found = status()
    assert "SIGTERM" in found["failed"]["message"]
    assert (found["at_work"], found["told"]) == ([], [])


def test_the_speed_is_that_since_the_last_interruption() -> None:
    def made(*times: float) -> list[Part]:
        return [Part(at, (0, 1)) for at in times]

    assert _units_per_second(made(0, 2, 4, 6)) == 1  # two units every two seconds
    assert _units_per_second(made(6, 0, 4, 2)) == 1
    assert _units_per_second(made(0, 2, 4, 1004, 1005, 1006)) == 2
    assert _units_per_second(made(0, 2)) is None
    assert _units_per_second(made(0, 0, 0)) is None
    assert _units_per_second(made(0, 10, 20), size=5) == 0.5


def test_left_is_never_below_nothing() -> None:
    assert StageProgress("topk", "images", "images", 12, 10).left == 0


def test_until_when_is_said_while_somebody_is_at_work() -> None:
    told = {"line": "topk: 1/2", "at": "12:00", "until": time.time()}
    assert _last_note(told, True).startswith("topk: 1/2 (at 12:00); about until ")
    assert _last_note(told | {"until": None}, True) == "topk: 1/2 (at 12:00)"
    assert _last_note(told, False) == "stopped unexpectedly after: topk: 1/2 (at 12:00)"
