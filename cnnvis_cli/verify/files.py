"""Files: seals, checksums, what each says that it is, and what must be there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.errors import StorageError
from cnnvis_cli.figure import png
from cnnvis_cli.report import Report
from cnnvis_cli.stages.optimize.job import asked_for
from cnnvis_cli.stages.run.receipt import FAILURE, FOLDER, PROGRESS
from cnnvis_cli.stages.run.status import RESULT_FOLDERS
from cnnvis_cli.store.hdf5 import stated
from cnnvis_cli.store.inside import is_ours, read_regular
from cnnvis_cli.store.lock import NAME, holder
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.origin import OF_ONE_LAYER
from cnnvis_cli.store.projected import ProjectedFile
from cnnvis_cli.store.run import Record, Run
from cnnvis_cli.store.sample_file import SampleFile
from cnnvis_cli.store.seals import intact
from cnnvis_cli.store.search import SearchFile
from cnnvis_cli.store.topk_file import TopKFile
from cnnvis_cli.store.validate import strangers, version_of
from cnnvis_cli.verify.findings import Findings

MAKE_AGAIN = "delete it and run its command again"
OF_ONE_UNIT = ("optimized", "top", "unit", "styles")  # kinds of figures named by layer and unit


def check_files(run: Run, findings: Findings, report: Report) -> None:
    """Check every sealed file, every picture and what is set aside."""
    paths = sorted(path for path in _files_of(run.path) if not path.name.startswith("."))
    for path in report.track(paths, "verify", len(paths), "files"):
        with findings.guarded("files", path):
            try:
                _check_file(run, path, findings)
            except OSError as error:
                raise StorageError(f"{path}: cannot be read ({error.strerror})") from None
    for path in sorted(run.parts().rglob("*.damaged")):
        problem = f"{path}: a damaged part, set aside; it is made again"
        findings.stored("files", 1, [problem])


def _files_of(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        top = Path(place) == folder
        if top:
            folders[:] = filter(is_ours, folders)
        yield from (Path(place) / name for name in names if not top or is_ours(name))


def _check_file(run: Run, path: Path, findings: Findings) -> None:
    """Check one file as far as its kind says what is right."""
    problem = f"{path}: is not what was written; {MAKE_AGAIN}"
    if path.suffix == ".h5":
        if not intact(path):
            findings.spoil(path, "files", problem)
        else:
            _check_owner(run, path, findings)
        findings.stored("files", 1)
    elif path.suffix in _INTACT:
        content = read_regular(path)
        whole = _INTACT[path.suffix](content)
        findings.stored("files", 1, [] if whole else [problem])
        if whole and path.suffix == ".png" and path.parts[len(run.path.parts)] == "figures":
            with findings.guarded("figures"):
                _check_figure(run, path, png.texts(content), findings)


def _ends(*ends: bytes) -> Any:
    return lambda content: content.rstrip().endswith(ends)


def _is_jpeg(content: bytes) -> bool:
    return content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")


def _is_record(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


_INTACT = {
    ".png": png.is_whole,
    ".jpg": _is_jpeg,
    ".pdf": _ends(b"%%EOF"),
    ".html": _ends(b"</html>"),
    ".json": _is_record,
}


HELD_AGAINST_OTHERS = (
    *("topk", "sample", "spectrum", "typical", "typical-mean"),
    *("optimized", "projected"),
)
"""Kinds of results whose content is checked beside their seal."""


def _check_owner(run: Run, path: Path, findings: Findings) -> None:
    """Check that a result is of this run, its layer and a known version, and nothing else."""
    of_all = path in (run.topk, run.sample, run.spectrum)
    kind = path.stem if of_all else path.parent.name
    if not of_all and path.parent.parent != run.path:
        return
    if of_all or kind in OF_ONE_LAYER:
        with findings.guarded("files", path):
            odd = [f"{path}: {text}" for text in strangers(path, kind)]
            told = stated(path, kind)
            mean = run.read()["preprocessing"].get("mean")
            if kind in OF_ONE_LAYER and told.get("mean") != mean:
                odd.append(f"{path}: states that the mean is {told.get('mean')}, not {mean}")
            version = version_of(path, kind)
            if told.get("version", version) != version:
                odd.append(f"{path}: states version {told['version']}, and is of version {version}")
            lacking = {"model", "weights_sha256", "version", "format"} - told.keys()
            odd += [f"{path}: does not state its {name}" for name in sorted(lacking)]
            findings.stored("files", 0, odd)
    if kind not in HELD_AGAINST_OTHERS:
        why = "searches and files of single images have their seal alone"
        findings.leave("other results", 1, why)


def _check_figure(run: Run, path: Path, text: dict[str, str], findings: Findings) -> None:
    """Check what a figure says that it shows."""
    if "cnnvis" not in text:
        findings.leave("figures", 1, "do not say what they show")
        return
    record, problems = json.loads(text["cnnvis"]), []
    kind, layer = path.relative_to(run.path / "figures").parts[0], record.get("layer")
    if text.get("cnnvis-key") != digest(record):
        problems.append(f"{path}: its record does not have its key; {MAKE_AGAIN}")
    other = kind in OF_ONE_UNIT and isinstance(layer, str) and f"{path.stem}_".find(f"{layer}_")
    if str(record.get("kind")).partition("/")[0] != kind or other:
        shown = f"{record.get('kind')} {layer or ''}".strip()
        problems.append(f"{path}: says that it shows {shown}; {MAKE_AGAIN}")
    findings.stored("figures", 1, problems)
    findings.leave("figures", 1, "their pixels are not drawn again")
    here = {file_digest(each) for each in run.path.rglob("*.h5") if each.is_file()}
    if not set(_figure_sources(record)) <= here:
        findings.leave("figures", 1, "some are of results that have changed since")


def _figure_sources(record: Any) -> Iterator[str]:
    """Yield the digests of the files that a figure was made from."""
    if isinstance(record, dict):
        for name, value in record.items():
            if name in ("source", "sources"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from _figure_sources(value)
    elif isinstance(record, list):
        for value in record:
            yield from _figure_sources(value)


def check_presence(run: Run, findings: Findings) -> None:
    """Check that what run.json and the receipts speak of is there."""
    with findings.guarded("asked work"):
        _check_asked(run, findings)
    with findings.guarded("receipts"):
        _check_receipts(run, findings)
    findings.leave("deleted files", 1, "any that neither run.json nor a receipt names")


def _check_asked(run: Run, findings: Findings) -> None:
    """Check that the work that run.json says was asked for is there, or under way."""
    known = run.read()
    passing = (*run.path.glob(f"{PROGRESS}*"), *run.path.glob(f"{FAILURE}*"))
    at_work = any(map(holder, run.path.glob(f"{NAME}*")))
    for stage, jobs in known.get("asked", {}).items():
        parts = run.parts(RESULT_FOLDERS[stage])
        for what, job in jobs.items():
            have = _have(run, stage, job, findings)
            if stage == "topk":
                _check_topk_plan(run, what, job, findings)
            if have is None or have >= job["total"]:
                findings.stored("asked work", 1)
            elif passing or at_work or any(parts.glob(str(job["parts"]))):
                findings.leave("asked work", 1, "not finished yet")
            else:
                problem = f"{run.path}: {stage} {what}: {have} of {job['total']} are there, though "
                problem += f"run.json says that all were asked for; run cnnvis {stage} again"
                findings.stored("asked work", 1, [problem])
    if not known.get("asked") and not run.topk.exists():
        findings.leave("asked work", 1, "the run holds no result yet")
    for name in ("names.tsv", "paths.tsv", "scores.tsv"):
        if (run.path / name).is_file():
            findings.leave("tables", 1, "have no seal, and are not computed again")
    if "dataset" in known and not known.get("asked", {}).get("topk") and not run.topk.exists():
        findings.stored("asked work", 1, [f"{run.topk}: is gone; run cnnvis topk again"])


def _have(run: Run, stage: str, job: Record, findings: Findings) -> int | None:
    """Return how many units or images of a job are there; None if its file tells nothing."""
    if stage == "topk":
        return job["total"] if run.topk.exists() else 0
    paths = {"optimize": run.optimized, "search": run.searched, "project": run.projected}
    path, group = paths[stage](job["layer"]), str(job["group"])
    if path in findings.bad:
        return None
    held: Record | None
    if stage == "optimize":
        held, count = OptimizedFile(path).styles().get(group), len(OptimizedFile(path).units(group))
        held = held and asked_for(held)
    elif stage == "search":
        held = SearchFile(path).searches().get(group)
        count = int(job["total"]) * (held is not None)
    else:
        file = ProjectedFile(path)
        held = file.methods().get(group)
        count = 0 if held is None else int(file.done(group).sum())
    if held is not None and "record" not in job:
        findings.leave("asked work", 1, "an older version noted no parameters of it")
    elif held is not None and digest(held) != job["record"]:
        problem = f"{path}: {group} was made by other parameters than run.json says were asked for"
        findings.stored("asked work", 0, [f"{problem}; put the run's own in its place"])
    return count


def _check_topk_plan(run: Run, what: str, job: Record, findings: Findings) -> None:
    """Check that topk.h5 or sample.h5 is of the plan that was asked for: its parts' name."""
    path = run.sample if what == "sample" else run.topk
    if not path.exists() or path in findings.bad:
        return
    plan = (SampleFile if what == "sample" else TopKFile)(path).identity()
    if plan is not None and job.get("parts") != digest(plan):
        problem = f"{path}: was made by another plan than run.json says was asked for"
        findings.stored("asked work", 0, [f"{problem}; put the run's own in its place"])


def _check_receipts(run: Run, findings: Findings) -> None:
    """Check that what the last receipt lists, all results of that moment, is there."""
    receipts = sorted((run.path / FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not receipts:
        why = "no receipt says which figures and pages there were"
        findings.leave("receipts", 1, why)
        return
    last = receipts[-1]
    record = json.loads(read_regular(last))
    problems = []
    for name, stamp in record["outputs"].items():
        path = run.path / name
        found = None
        with suppress(FileNotFoundError, NotADirectoryError):
            found = path.stat()
        if found is None:
            problems.append(f"{path}: is gone, and {last.name} lists it; run its command again")
        elif [found.st_size, found.st_mtime_ns] == stamp:
            findings.stored("receipts", 1)
        elif found.st_size != stamp[0] and found.st_mtime_ns <= last.stat().st_mtime_ns:
            problem = (
                f"{path}: has {found.st_size} bytes, and {stamp[0]} by {last.name}; {MAKE_AGAIN}"
            )
            problems.append(problem)
        else:
            findings.leave("receipts", 1, "files copied, or written since the last receipt")
    findings.stored("receipts", len(problems), problems)


def held_topk(run: Run, findings: Findings) -> TopKFile | None:
    """Return the run's topk.h5; None if there is none, or none that means anything."""
    there = run.topk.exists() and run.topk not in findings.bad
    return TopKFile(run.topk) if there else None
