"""A single flipped bit, wherever, is seen; a part that has one is made again."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cnnvis_cli.cli import COMMANDS
from cnnvis_cli.store.parts import Parts
from cnnvis_cli.store.seals import intact

if TYPE_CHECKING:
    from tests.reliability.conftest import Zygote

Results = Callable[[Path], dict[str, str]]
pytestmark = pytest.mark.usefixtures("plans")
FLAGS = "--config exact.toml --workers 0 --run"


def flip(path: Path) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    bit = random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def stop_before(zygote: Zygote, final: str, line: str, run: Path) -> None:
    """Kill a command when all its parts are there, and nothing of them is published."""
    log = Path(f"{run.name}.steps")
    count = {"folder": str(run), "at": 0, "how": "nothing", "log": str(log)}
    before = run.with_name("counted")
    shutil.rmtree(before, ignore_errors=True)
    if run.exists():
        shutil.copytree(run, before)
    assert zygote.do(f"{line} {before}", fault={**count, "folder": str(before)}).code == 0
    rows = [row.split("\t") for row in log.read_text().splitlines()]
    (at,) = (int(n) for n, kind, place, _ in rows if kind == "replace" and final in place)
    log.unlink()
    told = zygote.do(f"{line} {run}", fault={**count, "at": at, "how": "kill"})
    assert told.code == -signal.SIGKILL, told


@pytest.fixture
def halves(zygote: Zygote) -> dict[str, tuple[str, Path]]:
    """A run that ended just before each stage was published, with the command that finishes it."""
    made = {}
    done = Path("done")
    stages = {"topk": ".topk.h5", "optimize": "optimized/.fc3", "project": "projected/.fc3"}
    for stage, final in stages.items():
        line, half = f"{stage} {FLAGS}", Path(f"half-{stage}")
        if done.exists():
            shutil.copytree(done, half)
        stop_before(zygote, final, line, half)
        made[stage] = line, half
        zygote.done(f"{line} {done}")
    return made


def spoil(path: Path) -> None:
    """Flip a bit of a part, and see that it is set aside."""
    good = path.read_bytes()
    flip(path)
    assert not intact(path)
    folder = path.parent
    assert path.stem not in Parts(folder, folder.name.rpartition("-")[2])
    assert not path.exists()
    assert path.with_suffix(".damaged").read_bytes() != good


@pytest.mark.parametrize(
    ("flips", "rounds"), [(60, 1), pytest.param(1000, 10, marks=pytest.mark.long)]
)
def test_a_flipped_bit_in_a_part_is_made_good(
    flips: int,
    rounds: int,
    halves: dict[str, tuple[str, Path]],
    zygote: Zygote,
    results: Results,
) -> None:
    """In each round all parts of a run have one, after some others; then all are made again."""
    random.seed(flips)
    start, seen, made = time.monotonic(), 0, 0
    for stage, (line, half) in halves.items():
        straight = Path(f"straight-{stage}")
        shutil.copytree(half, straight)
        zygote.done(f"{line} {straight}")
        expected = results(straight)
        parts = sorted(path.relative_to(half) for path in half.rglob("parts/**/*.h5"))
        assert parts
        each = -(-flips // (len(halves) * rounds * len(parts)))
        for number in range(rounds):
            run = Path(f"{stage}{number}")
            shutil.copytree(half, run)
            for path in parts:
                for _ in range(each):
                    shutil.copy(half / path, run / path)
                    spoil(run / path)
                    seen += 1
            made += len(parts)
            zygote.done(f"{line} {run}")
            assert results(run) == expected, stage
    print(f"{seen} bits in parts in {time.monotonic() - start:.0f} s: all seen, {made} made again")


@pytest.mark.parametrize("flips", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_a_flipped_bit_in_a_result_is_seen(flips: int, zygote: Zygote) -> None:
    random.seed(flips)
    for stage in ("topk", "optimize", "project"):
        zygote.done(f"{stage} {FLAGS} run")
    files = sorted(Path("run").rglob("*.h5"))
    assert len(files) == 6
    for number in range(flips):
        path = files[number % len(files)]
        good = path.read_bytes()
        flip(path)
        assert not intact(path)
        path.write_bytes(good)
        assert intact(path)
    print(f"{flips} bits in {len(files)} files: all seen")


@pytest.mark.skipif("verify" not in COMMANDS, reason="there is no cnnvis verify yet")
@pytest.mark.parametrize("flips", [5, pytest.param(50, marks=pytest.mark.long)])
def test_verify_names_the_file(flips: int, zygote: Zygote) -> None:
    random.seed(flips)
    for stage in ("topk", "optimize", "project"):
        zygote.done(f"{stage} {FLAGS} run")
    assert zygote.do("verify run --trust-code").code == 0
    files = sorted(Path("run").rglob("*.h5"))
    for number in range(flips):
        path = files[number % len(files)]
        good = path.read_bytes()
        flip(path)
        told = zygote.do("verify run --trust-code")
        assert told.code == 1, told
        assert path.name in told.out + told.err
        assert len(told.err.splitlines()) == 1, told.err
        path.write_bytes(good)
