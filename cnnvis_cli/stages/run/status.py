"""`cnnvis status`: what a run has done, what is left, its speed, and the time left."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.stages.common.lists import aligned
from cnnvis_cli.stages.run.receipt import FAILURE, PROGRESS
from cnnvis_cli.store.hdf5 import DAMAGED
from cnnvis_cli.store.inside import check_inside, read_regular
from cnnvis_cli.store.lock import NAME, holder
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.parts import Parts, described
from cnnvis_cli.store.projected import ProjectedFile
from cnnvis_cli.store.run import Record, Run
from cnnvis_cli.store.search import SearchFile
from cnnvis_cli.store.topk_file import TopKFile

TRACKED_STAGES = ("topk", "optimize", "search", "project")


@dataclass(frozen=True)
class StageProgress:
    """The progress of one piece of a stage; `rate` is units per second, from its parts."""

    stage: str
    what: str
    unit: str
    done: int
    total: int
    skipped: int = 0
    rate: float | None = None

    @property
    def left(self) -> int:
        return max(0, self.total - self.done)


@dataclass(frozen=True)
class Status:
    """The state of a run."""

    run: str
    model: str
    weights_sha256: str
    device: str | None
    rows: tuple[StageProgress, ...]
    figures: int
    not_begun: tuple[str, ...]  # stages that cnnvis run will do
    damaged: int  # parts that were set aside
    at_work: tuple[str, ...]  # the holders of the directory
    told: tuple[Record, ...]  # the last note of each process that works there, or was killed
    failed: Record | None

    def record(self) -> Record:
        """Return plain values for ``--json``."""
        return {**asdict(self), "rows": [{**asdict(r), "left": r.left} for r in self.rows]}

    def table(self) -> str:
        """Return the table as text."""
        lines = [f"{self.run}: {self.model}, weights {self.weights_sha256[:12]}"]
        lines += [f"  worked on by {who}" for who in self.at_work]
        lines += [f"  {_last_note(told, bool(self.at_work))}" for told in self.told]
        if self.failed:
            lines.append("  the last {command} ended at {at}: {message}".format(**self.failed))
        for line in aligned(_progress_table(self.rows)):
            lines.append(f"  {line}")
        lines.append(f"  figures: {self.figures} files")
        if self.not_begun:
            lines.append(f"  not begun: {', '.join(self.not_begun)}")
        if self.damaged:
            lines.append(f"  damaged parts, set aside and to be made again: {self.damaged}")
        return "\n".join(lines)


def status(folder: Path) -> Status:
    """Read a run directory; nothing is written. Raise `UsageError` if there is no run."""
    check_inside(folder)
    run = Run(folder)
    known = run.read()
    if not known:
        raise UsageError(f"{folder}: holds no run; begin one with cnnvis topk or optimize")
    shards = map(_json, sorted((folder / "shards").glob("*.json")))
    notes = [known, *filter(None, shards)]
    asked = _asked_jobs(notes)
    told = (_read_note(path, ("line", "at")) for path in sorted(folder.glob(f"{PROGRESS}*")))
    return Status(
        run=str(folder),
        model=str(known["model"]),
        weights_sha256=str(known["weights_sha256"]),
        device=_device(notes),
        rows=tuple(_progress_rows(run, asked, notes)),
        figures=sum(path.is_file() for path in (folder / "figures").rglob("*.*")),
        not_begun=tuple(_not_begun(run, asked, notes)),
        damaged=sum(1 for _ in (folder / "parts").rglob("*.damaged")),
        at_work=tuple(filter(None, map(holder, sorted(folder.glob(f"{NAME}*"))))),
        told=tuple(filter(None, told)),
        failed=_read_note(folder / FAILURE, ("command", "at", "message")),
    )


def _device(notes: Iterable[Record]) -> str | None:
    """Return the first device that a stage notes."""
    for note in notes:
        for stage in TRACKED_STAGES:
            if device := _of(note, stage).get("device"):
                return str(device)
    return None


def _of(note: Record, section: str) -> Record:
    found = note.get(section)
    return found if isinstance(found, dict) else {}


def _asked_jobs(notes: Iterable[Record]) -> Record:
    """Return the requested work of the stages, by stage and subject."""
    asked: Record = {stage: {} for stage in TRACKED_STAGES}
    for note in notes:
        for stage in TRACKED_STAGES:
            jobs = _of(_of(note, "asked"), stage).items()
            asked[stage] |= {what: job for what, job in jobs if _is_job(stage, job)}
    return asked


def _is_job(stage: str, job: Any) -> bool:
    own = {"size": int} if stage == "topk" else {"unit": str, "layer": str, "group": str}
    kinds = {"total": int, "parts": str, **own}
    return isinstance(job, dict) and all(type(job.get(n)) is kind for n, kind in kinds.items())


def _not_begun(run: Run, asked: Record, notes: list[Record]) -> Iterator[str]:
    """Yield the stages of a plan that have not begun."""
    stages: list[str] = []
    for note in notes:
        plan = _of(note, "stages").get("asked")
        if isinstance(plan, list):
            stages += map(str, plan)
    signs = {"montage": run.path / "figures", "gallery": run.path / "gallery" / "index.html"}
    for stage in dict.fromkeys(stages):
        if not asked.get(stage) and not (stage in signs and signs[stage].exists()):
            yield stage


def _json(path: Path) -> Record | None:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_regular(path))
        return found if isinstance(found, dict) else None
    return None


def _read_note(path: Path, words: Iterable[str]) -> Record | None:
    """Return a process's note; None unless it has these keys."""
    found = _json(path) or {}
    return found if all(isinstance(found.get(word), str) for word in words) else None


def _progress_rows(run: Run, asked: Record, notes: list[Record]) -> Iterator[StageProgress]:
    yield from _of_topk(run, asked["topk"], notes)
    for stage, read in (
        ("optimize", _optimized_units),
        ("search", _searched_units),
        ("project", _projected_units),
    ):
        for what, job in asked[stage].items():
            have = read(run, job)
            parts = list(_finished_parts(run, stage, job))
            have = have.union(*(part.units for part in parts))
            yield StageProgress(
                stage, what, job["unit"], len(have), job["total"], rate=_units_per_second(parts)
            )


def _of_topk(run: Run, asked: Record, notes: list[Record]) -> Iterator[StageProgress]:
    rate = next(filter(None, (_of(n, "topk").get("images_a_second") for n in notes)), None)
    for what, job in asked.items():
        if (run.sample if what == "sample" else run.topk).exists():
            images, skipped = TopKFile(run.topk).summary()
            yield StageProgress("topk", what, "images", images, images, skipped, rate)
            continue
        parts = list(_finished_parts(run, "sample" if what == "sample" else "topk", job))
        done = min(job["total"], sum(part.count for part in parts) * job["size"])
        yield StageProgress(
            "topk",
            what,
            "images",
            done,
            job["total"],
            0,
            _units_per_second(parts, job["size"]) or rate,
        )


def _optimized_units(run: Run, job: Record) -> set[int]:
    file = OptimizedFile(run.optimized(job["layer"]))
    return set(file.units(job["group"]).tolist())


def _projected_units(run: Run, job: Record) -> set[int]:
    file = ProjectedFile(run.projected(job["layer"]))
    return (
        set(file.done(job["group"]).nonzero()[0].tolist())
        if job["group"] in file.methods()
        else set()
    )


def _searched_units(run: Run, job: Record) -> set[int]:
    found = SearchFile(run.searched(job["layer"]))
    return set(range(job["total"])) if job["group"] in found.searches() else set()


@dataclass(frozen=True)
class _MadePart:
    made: float  # modification time
    units: tuple[int, ...]
    count: int = 1  # of ranges of images


RESULT_FOLDERS = {
    "topk": "topk",
    "sample": "sample",
    "optimize": "optimized",
    "search": "search",
    "project": "projected",
}


OF_IMAGES = ("topk", "sample")  # folders whose parts are ranges of images


def _finished_parts(run: Run, stage: str, job: Record) -> Iterator[_MadePart]:
    """Yield the finished pieces of a job, of all shards."""
    for folder in sorted(run.parts(RESULT_FOLDERS[stage]).glob(job["parts"])):
        record = described(folder)
        parts = replace(Parts.of(folder), only_looks=True)
        if stage in OF_IMAGES or record is not None:
            for name in parts.names():
                with suppress(OSError, CnnvisError):
                    path = folder / f"{name}.h5"
                    units = () if stage in OF_IMAGES else _part_units(parts, name, stage)
                    first, _, last = name.partition("-") if stage in OF_IMAGES else ("", "", "")
                    count = int(last) - int(first) + 1 if last.isdecimal() else 1
                    yield _MadePart(path.stat().st_mtime, units, count)


def _part_units(parts: Parts, name: str, stage: str) -> tuple[int, ...]:
    if stage == "search":
        return (int(name),)
    with suppress(*DAMAGED):
        return tuple(parts.read(name, ("unit",))["unit"].tolist())
    return ()


def _units_per_second(parts: Iterable[_MadePart], size: int | None = None) -> float | None:
    """Return units per second since the last interruption: a pause of ten times the usual one."""
    made = sorted(parts, key=lambda part: part.made)
    pauses = sorted(b.made - a.made for a, b in itertools.pairwise(made))
    if len(pauses) < 2:
        return None
    usual = pauses[len(pauses) // 2]
    first = 0
    for number, (a, b) in enumerate(itertools.pairwise(made), start=1):
        if b.made - a.made > max(10 * usual, 60):
            first = number
    seconds = made[-1].made - made[first].made
    units = sum(part.count * size if size else len(part.units) for part in made[first + 1 :])
    return units / seconds if seconds > 0 else None


def _last_note(told: Record, at_work: bool) -> str:
    """Return the last note of a process, and its estimated end."""
    line = f"{told['line']} (at {told['at']})"
    if not at_work:
        return f"stopped unexpectedly after: {line}"
    with suppress(TypeError, ValueError, OverflowError, OSError):  # an invalid time
        return f"{line}; about until {_clock(told['until'])}"
    return line


def _clock(moment: float) -> str:
    moment = float(moment)
    today = time.strftime("%Y-%m-%d") == time.strftime("%Y-%m-%d", time.localtime(moment))
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", time.localtime(moment))


def _progress_table(rows: Iterable[StageProgress]) -> list[tuple[str, ...]]:
    """Return the table of the pieces' progress, under its headings."""
    cells: list[tuple[str, ...]] = [("stage", "what", "done", "left", "speed")]
    for row in rows:
        done = f"{row.done}/{row.total} {row.unit}"
        if row.skipped:
            done += f", {row.skipped} skipped"
        speed = "" if row.rate is None else f"{row.rate:.3g}/s"
        if row.rate and row.left:
            speed += f", {_span(row.left / row.rate)}"
        cells.append((row.stage, row.what, done, str(row.left or "-"), speed))
    return cells


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min left" if hours else f"{minutes} min left"
