"""Each step on the disk fails once: nothing is lost or half-written, and one line reports it."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from tests.reliability.conftest import Ended, Zygote

Results = Callable[[Path], dict[str, str]]
pytestmark = pytest.mark.usefixtures("plans")

SECOND_PASS = re.compile(r"\S+ is complete: \S+ takes a second pass over the images\n")


class Fault(NamedTuple):
    """A step, and how it fails."""

    at: int
    how: str
    kind: str
    place: Path

    @property
    def names(self) -> list[str]:
        """What a message may call its place: a temporary file is named like the one to be."""
        name = self.place.name
        if name.endswith(".tmp"):
            return [name.removeprefix(".").rsplit(".", 2)[0]]
        return [name, self.place.stem]


@pytest.fixture
def plan(request: pytest.FixtureRequest) -> str:
    """A plan of every stage, including the gallery, with a few pictures of one layer."""
    name: str = request.param
    text = Path(f"{name}.toml").read_text()
    text = text.replace('"montage"]', '"montage", "gallery"]\nworkers = 0')
    layers, units = {"exact": ('"conv1", ', '"0-5"'), "demo": ('"conv1", ', '"0-3"')}[name]
    Path(f"{name}.toml").write_text(text.replace(units, '"0,1"').replace(layers, ""))
    return name


def run(zygote: Zygote, plan: str, name: str, at: int, how: str) -> tuple[Ended, Fault | None]:
    """Return a start in a new directory, and what failed; None where the end came first."""
    log = Path(f"{name}.steps")
    order = {"folder": name, "at": at, "how": how, "log": str(log)}
    told = zygote.do(f"run {plan}.toml --run {name}", fault=order)
    rows = (line.split("\t") for line in log.read_text().splitlines())
    failed = [(kind, place) for _, kind, place, here in rows if here]
    log.unlink()
    return told, Fault(at, how, failed[0][0], Path(failed[0][1])) if failed else None


def faults(steps: int, short: bool) -> Iterator[tuple[int, str]]:
    """Yield which step fails, and how: a few of them, or each in both ways and some beyond."""
    if short:
        yield from ((1 + i * steps // 10, ("EIO", "ENOSPC")[i % 2]) for i in range(10))
    else:
        yield from ((at, how) for at in range(1, steps + 100) for how in ("EIO", "ENOSPC"))


def lasting(files: dict[str, str]) -> dict[str, str]:
    """Without parts, which stay where their removal has failed: that costs room, nothing else."""
    return {name: found for name, found in files.items() if not name.startswith("parts/")}


def complaints(told: Ended, fault: Fault) -> list[str]:
    """Return what is wrong with how a command ended."""
    if told.code == 0:
        return [told.err] if told.err else []
    found = [] if told.code == 4 else [f"exit code {told.code}"]
    if len(told.err.splitlines()) != 1 or not told.err.startswith("cnnvis: "):
        found.append("not one line")
    if not any(name in told.err for name in fault.names):
        found.append("does not name the file")
    return [f"{'; '.join(found)}: {told.err}"] if found else []


@pytest.mark.parametrize(
    ("plan", "short"),
    [
        ("demo", True),
        pytest.param("demo", False, marks=pytest.mark.long),
        pytest.param("exact", False, marks=pytest.mark.long),
    ],
    indirect=["plan"],
)
def test_each_step_fails_once(
    plan: str,
    short: bool,
    zygote: Zygote,
    results: Results,
    check_whole: Callable[[Path], None],
) -> None:
    start = time.monotonic()
    counted: dict[str, Any] = {"folder": "straight", "at": 0, "how": "nothing", "log": "steps.txt"}
    assert zygote.do(f"run {plan}.toml --run straight", fault=counted).code == 0
    steps = len(Path("steps.txt").read_text().splitlines())
    expected, wrong = lasting(results(Path("straight"))), list[str]()
    ends: Counter[tuple[str, int]] = Counter()
    for at, how in faults(steps, short):
        folder = Path(f"failed{at}{how}")
        told, fault = run(zygote, plan, folder.name, at, how)
        if fault is None:  # threads write when they can, so that their number varies a little
            continue
        ends[f"{fault.kind} {how}", told.code] += 1
        what = f"step {at}, {how} at {fault.kind} of {fault.place}"
        wrong += [f"{what}: {text}" for text in complaints(told, fault)]
        check_whole(folder)
        again = zygote.do(f"run {plan}.toml --run {folder}")
        said = again.err if SECOND_PASS.fullmatch(again.err) is None else ""
        if (again.code, said) != (0, ""):
            wrong.append(f"{what}: the next start ends with {again.code}: {again.err}")
        elif found := lasting(results(folder)).items() ^ expected.items():
            wrong.append(f"{what}: the next start ends with other files: {sorted(dict(found))}")
    print(f"{plan}: {ends.total()} faults of {steps} steps in {time.monotonic() - start:.0f} s")
    for (what, code), count in sorted(ends.items()):
        print(f"  {what}: {count} ended with {code}")
    assert not wrong, "\n".join(wrong)
