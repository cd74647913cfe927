"""How every command begins and ends: alone in the run directory, and only if there is work.

A finished command leaves a receipt: its inputs and outputs, by size and modification time, with
every file of a dataset's folder, and cnnvis's code. The same command returns at once if they are
unchanged. Nothing heavy is imported here: a finished run does not even load torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnnvis_cli import __version__
from cnnvis_cli.digests import digest, source_digest
from cnnvis_cli.errors import StorageError, TooManyUnreadable, UsageError
from cnnvis_cli.folders import open_folder
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.store.inside import is_ours, read_regular
from cnnvis_cli.store.lock import alone, file_name, local_time
from cnnvis_cli.store.publish import publish

Work = Callable[[Plan, Report], None]

Stamps = dict[str, list[int]]  # path -> size, modification time; a folder's: files, their digest
FOLDER = "receipts"
PROGRESS, FAILURE = ".progress", ".failed"  # in a run directory; a shard's followed by its name
TABLES = ("names.tsv", "scores.tsv")  # that the gallery shows too
COMPARISONS = "figures/compare/"  # pages that the gallery leads to
SHOWING = ("look", "montage", "gallery", "filters", "occlude")  # new data of the run is shown too
COMPARING = ("optimize", "run")  # say how the images compare with those of topk.h5
PASSING = (FOLDER, "parts", "run.json", "shards")  # of the run directory, but not results


def carry_out(command: str, plan: Plan, report: Report, work: Work) -> None:
    """Do a command's work, or repeat its results if the same command has finished already.

    Raise `Stopped` (exit code 75) if another process works in the run directory.
    """
    with report.stoppable(), alone(plan.folder, plan.shard, report.once):
        receipt = Receipt.of(command, plan)
        known = receipt.found() if receipt else None
        if known is not None:
            _repeat(known, report)
            return
        inputs = receipt.inputs() if receipt else {}
        unreadable = None
        try:
            with _watched(command, plan, report):
                work(plan, report)
        except TooManyUnreadable as error:
            unreadable = error
        if receipt:
            receipt.write(inputs, report, str(unreadable) if unreadable else None)
        if unreadable:
            raise unreadable


@contextmanager
def _watched(command: str, plan: Plan, report: Report) -> Iterator[None]:
    """Keep, for `cnnvis status`, the last progress line, and how an unfinished command ended.

    Failing to write them is not an error.
    """
    shard = f"-{file_name(plan.shard)}" if plan.shard else ""
    progress, failure = plan.folder / f"{PROGRESS}{shard}", plan.folder / f"{FAILURE}{shard}"

    def beat(line: str, left: float | None) -> None:
        until = None if left is None else time.time() + left
        _write_note(progress, {"line": line, "at": local_time(), "until": until})

    report.beat = beat
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        worth_it = not isinstance(error, (UsageError, TooManyUnreadable))
        if worth_it and (plan.folder / "run.json").exists():
            message = " ".join(str(error).split()) or type(error).__name__
            _write_note(failure, {"command": command, "at": local_time(), "message": message})
        raise
    else:
        with suppress(OSError):
            failure.unlink(missing_ok=True)
    finally:
        report.beat = None
        with suppress(OSError):
            progress.unlink(missing_ok=True)


def _write_note(path: Path, record: dict[str, Any]) -> None:
    with suppress(StorageError):
        publish(path, json.dumps(record).encode())


def _repeat(known: dict[str, Any], report: Report) -> None:
    for line in known["said"]:
        report.result(line)
    for line in known.get("warned", []):
        report.warn(line)
    if known["unreadable"]:
        raise TooManyUnreadable(known["unreadable"])


@dataclass(frozen=True)
class Receipt:
    """The inputs and results of the same command when it last finished."""

    path: Path
    plan: Plan
    shows_all: bool  # whether the command shows whatever data the run holds
    compares: bool = False  # whether its results speak of the run's topk

    @classmethod
    def of(cls, command: str, plan: Plan) -> Receipt | None:
        """Return the receipt for a command; None if its inputs cannot be known from outside.

        These are your own code, and the pieces of a shard, which another one may remove.
        """
        if plan.trust_code or plan.shard or plan.scheduler:
            return None
        name = digest({"command": command, "cnnvis": __version__, "plan": asdict(plan)})
        path = plan.folder / FOLDER / f"{command}-{name}.json"
        return cls(path, plan, command in SHOWING, command in COMPARING)

    def found(self) -> dict[str, Any] | None:
        """Return the results, if everything is unchanged."""
        damaged = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
        with suppress(*damaged):
            record: dict[str, Any] = json.loads(read_regular(self.path))
            stamps = {**record["inputs"], **record["outputs"]}
            same = record["code"] == source_digest()  # which decides the form of what is drawn
            same = same and all(_stamp(self._run / path) == s for path, s in stamps.items())
            if self.shows_all:
                same = same and _data(dict(_result_files(self._run))) == _data(record["outputs"])
            if self.compares:  # preferred images with a topk that there may be by now
                same = same and ("topk.h5" in record["outputs"] or not self._has_topk())
            return record if same and _can_be_said(record) else None
        return None

    def inputs(self) -> Stamps:
        """Return the inputs, stamped before the work begins."""
        return dict(_inputs(self.plan, asdict(self.plan)))

    def write(self, inputs: Stamps, report: Report, unreadable: str | None) -> None:
        """Store the results, their warnings, and the message on too many unreadable images."""
        outputs = dict(_result_files(self._run))
        told = {"said": report.said, "warned": report.warned, "unreadable": unreadable}
        record = {"code": source_digest(), "inputs": inputs, "outputs": outputs, **told}
        content = json.dumps(record, indent=1, sort_keys=True).encode()
        if not self.path.is_file() or read_regular(self.path) != content:
            publish(self.path, content)

    def _has_topk(self) -> bool:
        return (self._run / "topk.h5").is_file()

    @property
    def _run(self) -> Path:
        return self.path.parent.parent


def _data(files: Stamps) -> set[str]:
    """Return the files of numbers among results, and the pages that a gallery leads to."""
    pages = {path for path in files if path.startswith(COMPARISONS) and path.endswith(".html")}
    return pages | {path for path in files if path.endswith(".h5") or path in TABLES}


def _can_be_said(record: dict[str, Any]) -> bool:
    words = [*record["said"], *record.get("warned", []), record["unreadable"] or ""]
    return type(record["said"]) is list and all(isinstance(word, str) for word in words)


def _stamp(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return _listing(path) if stat.S_ISDIR(found.st_mode) else [found.st_size, found.st_mtime_ns]


def _result_files(run: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield the results in a run directory."""
    for folder, folders, names in os.walk(run):
        inside = Path(folder).relative_to(run)
        if inside == Path():
            folders[:] = [name for name in folders if is_ours(name) and name not in PASSING]
        for name in names if inside != Path() else filter(is_ours, names):
            stamp = _stamp(Path(folder) / name)
            passing = name.startswith(".") or (inside == Path() and name in PASSING)
            if stamp and not passing:
                yield str(inside / name), stamp


def _inputs(plan: Plan, settings: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Yield the files named by the settings, and the dataset."""
    known = _known_run(plan)
    texts = [*_texts(settings), str(known.get("weights", ""))]
    if plan.dataset == "demo":
        texts.append(f"{plan.folder}-images")
    else:
        texts.append(str(known.get("dataset", {}).get("path", "")))
    own = {str(plan.folder), str(plan.folder.absolute()), plan.log, ""}
    for text in sorted(set(texts) - own):
        yield from _of_input(text)


def _known_run(plan: Plan) -> dict[str, Any]:
    try:
        record = json.loads(read_regular(plan.folder / "run.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _of_input(text: str) -> Iterator[tuple[str, list[int]]]:
    path = Path(text).absolute()
    stamp = _stamp(path)
    if stamp is not None:
        yield str(path), stamp


def _listing(root: Path) -> list[int]:
    """Return the number of files below a folder, and a digest of their names, sizes and times.

    Every file is looked at: overwriting one in place leaves its folder's time alone. Linked folders
    count once; hidden names and run directories, which are never a dataset's, do not.
    """
    files, listing, seen, pending = 0, hashlib.sha256(), set[tuple[int, int]](), [root]
    while pending:
        folder = pending.pop()
        with suppress(OSError), open_folder(folder) as number:
            status = os.fstat(number)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            folders, lines = _folder_entries(number)
            if "run.json" not in lines:
                pending += [folder / name for name in sorted(folders, reverse=True)]
                files += len(lines)
                text = "".join(f"{name}\0{lines[name]}\n" for name in sorted(lines))
                listing.update(f"{folder}\n{text}".encode("utf-8", "surrogateescape"))
    return [files, int.from_bytes(listing.digest()[:8], "big")]


def _folder_entries(folder: int) -> tuple[list[str], dict[str, str]]:
    """Return the names of an open folder's folders, and each file's size and time."""
    folders, files = [], {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
                continue
            try:
                found = entry.stat()
            except OSError:  # a dangling link
                files[entry.name] = ""
            else:
                files[entry.name] = f"{found.st_size} {found.st_mtime_ns}"
    return folders, files
