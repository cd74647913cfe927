"""The dataset: whether it is the one that was used, and what was left out of it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.dataset.decode import Unreadable
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import CnnvisError, StorageError, UsageError
from cnnvis_cli.stages.common.dataset_images import CACHED_IMAGES, dataset_path, decoder_of
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.topk.assemble import dataset_record, one_line
from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.store.topk_file import Images, TopKFile
from cnnvis_cli.verify.findings import Findings, Unread

READ, LISTED, SKIPPED = "images read", "images in the list", "skipped images"


@dataclass
class DatasetToday:
    """The images of a topk.h5 as they are today; what is wrong with one is said once."""

    session: Session
    file: TopKFile
    findings: Findings
    seen: dict[int, Pixels | None] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)  # the images that have been read

    @cached_property
    def images(self) -> Images:
        return self.file.images()

    @cached_property
    def manifest(self) -> Manifest | None:
        """Return the list of images as it is today; None if it cannot be had."""
        found: list[Manifest] = []
        with self.findings.guarded("the dataset"):
            found.append(_scanned(self.session, self.file))
        return found[0] if found else None

    @cached_property
    def places(self) -> dict[bytes, int]:
        """Return the place of each path in today's list."""
        paths = self.manifest.paths.tolist() if self.manifest else []
        return dict(zip(paths, range(len(paths)), strict=True))

    @property
    def same(self) -> bool:
        """Return whether the list is that of topk."""
        identity = self.file.identity() or {}
        return self.manifest is not None and self.manifest.digest == identity.get("dataset")

    @cached_property
    def _decode(self) -> Callable[[bytes], Pixels]:
        return decoder_of(str((self.file.identity() or {}).get("decode")), self.session)

    def read(self, index: int) -> Pixels:
        """Return an image's pixels; raise `Unread` for one that cannot be had or has changed."""
        if index not in self.seen:
            if len(self.seen) >= CACHED_IMAGES:
                self.seen.clear()
            self.seen[index] = self._read(index)
        found = self.seen[index]
        if found is None:
            raise Unread
        return found

    def _read(self, index: int) -> Pixels | None:
        name, content = self.images.name(index), self.content(index)
        if content is None:
            return None
        problem, found = "has other content now", None
        if isinstance(content, bytes) and zlib.crc32(content) == int(self.images.crc[index]):
            try:
                found = self._decode(content)
            except Unreadable as reason:
                problem = f"cannot be decoded ({reason}), and was not left out"
        elif isinstance(content, Unreadable):
            problem = f"can no longer be read ({content})"
        new = index not in self.counted
        self.counted.add(index)
        problems = [] if found is not None else [f"{name}: {problem}"]
        self.findings.recomputed(READ, int(new), problems)
        return found

    def read_some(self, count: int) -> None:
        """Read some images that are not computed again, evenly spread."""
        used = np.flatnonzero(~self.images.skipped)
        for index in used[:: max(1, len(used) // max(1, count))].tolist():
            with suppress(Unread):
                self.read(index)

    def content(self, index: int) -> bytes | Unreadable | None:
        """Return the bytes of an image, or why it has none; None if it cannot be had today."""
        place = self.places.get(self.images.path[index])
        if self.manifest is None or place is None:
            return None
        try:
            return self.manifest.read(place)
        except Unreadable as reason:
            return reason
        except StorageError as error:
            self.findings.faults.append(str(error))
            self.findings.leave(READ, 1, "a fault of the system")
            return None

    def check_skipped(self) -> None:
        """Read the images that were left out: one that can be decoded is wrong to be left out."""
        skipped = np.flatnonzero(self.images.skipped).tolist()
        reasons = _reasons(self.session)
        tracked = self.session.report.track(skipped, "skipped", len(skipped), "images")
        for index in tracked:
            name, content = self.images.name(index), self.content(index)
            if content is None:
                continue
            problem, reason = self._why_left_out(index, content)
            self.findings.recomputed(SKIPPED, 1, [f"{name}: {problem}"] if problem else [])
            if not problem and reasons.get(one_line(name)) != reason:
                why = "the reasons in skipped.tsv are worded otherwise today"
                self.findings.leave(SKIPPED, 1, why)

    def _why_left_out(self, index: int, content: bytes | Unreadable) -> tuple[str, str]:
        """Return what is wrong with leaving an image out, or else the reason for it."""
        crc = int(self.images.crc[index])
        if isinstance(content, Unreadable):
            return ("can no longer be read", "") if crc else ("", str(content))
        if not crc:
            return "was left out as unreadable, and can be read", ""
        if zlib.crc32(content) != crc:
            return "has other content now", ""
        try:
            self._decode(content)
        except Unreadable as reason:
            return "", str(reason)
        return "was left out as unreadable, and can be decoded", ""

    def check_list(self) -> None:
        """Check the list of images, and the marks, against today's dataset and run.json."""
        images, findings = self.images, self.findings
        findings.stored(LISTED, len(images.path), self._wrong_marks())
        if self.manifest is None:
            findings.leave(LISTED, len(images.path), "the dataset cannot be listed")
            return
        findings.recomputed(LISTED, len(images.path), self._wrong_images(self.manifest))
        with findings.guarded("run.json"):
            self._check_record(self.manifest)

    def _wrong_marks(self) -> Iterator[str]:
        images, run = self.images, self.session.run
        names = [os.fsdecode(path) for path in images.path.tolist()]
        if any(one >= other for one, other in pairwise(names)):
            yield f"{self.file.path}: its paths are not sorted, or not unique"
        left_out = [one_line(names[i]) for i in np.flatnonzero(images.skipped)]
        if list(_reasons(self.session)) != left_out:
            yield f"{run.skipped}: does not list the images that are marked as skipped"
        if not run.skipped.exists():
            yield f"{run.skipped}: is gone; run cnnvis topk again in another --run"

    def _wrong_images(self, manifest: Manifest) -> Iterator[str]:
        """Yield where the list is not today's."""
        images, known = self.images, set(self.images.path.tolist())
        for path in sorted(known - self.places.keys()):
            yield f"{os.fsdecode(path)}: is gone from the dataset"
        for path in sorted(self.places.keys() - known):
            yield f"{os.fsdecode(path)}: is new in the dataset"
        columns = (("size", manifest.sizes), ("label", manifest.labels))
        for index, path in enumerate(images.path.tolist()):
            place = self.places.get(path)
            if place is None:
                continue
            for name, today in columns:
                if int(getattr(images, name)[index]) != int(today[place]):
                    yield f"{images.name(index)}: has another {name} now"
            if int(images.offset[index]) != int(manifest.offsets[place]):
                yield f"{images.name(index)}: is at another place in its container now"

    def _check_record(self, manifest: Manifest) -> None:
        """Check what run.json says of the dataset."""
        run, findings = self.session.run, self.findings
        known, today = run.read().get("dataset", {}), dataset_record(manifest)
        stated = (self.file.identity() or {}).get("dataset")
        problems = []
        if known.get("digest") != stated or not self._digest_fits(known, manifest):
            problems.append(f"{self.file.path}: its list of images does not have its digest")
        if self.same:
            apart = [n for n in ("classes", "class_level") if known.get(n, today[n]) != today[n]]
            problems += [f"{run.manifest}: its {name} of the dataset are others" for name in apart]
        findings.stored("run.json", 1, problems)
        if known.get("passed_over", {}) != today["passed_over"]:
            findings.leave("run.json", 1, "what was passed over is not what is passed over today")

    def _digest_fits(self, known: dict[str, Any], manifest: Manifest) -> bool:
        """Return whether the stored list has the digest that the file states."""
        images = self.images
        classes = tuple(known.get("classes", manifest.classes))
        columns = (images.path, images.size, images.offset, images.label)
        stored = Manifest(manifest.root, *columns, classes)
        return stored.digest == (self.file.identity() or {}).get("dataset")


def _scanned(session: Session, file: TopKFile) -> Manifest:
    """Return the dataset's list, its classes made as they were for topk."""
    place = _root(session)
    noted = session.run.read().get("dataset", {}).get("class_level")
    found = Manifest.scan(place, noted or "auto")
    wanted = (file.identity() or {}).get("dataset")
    for level in ("auto", "first", "own") if found.digest != wanted and not noted else ():
        other = Manifest.scan(place, level)
        found = other if other.digest == wanted else found
    return found


def _root(session: Session) -> Path:
    """Return the dataset: the plan's, or where it was."""
    if session.plan.dataset and session.plan.dataset != "demo":
        return dataset_path(session)
    path = session.run.read().get("dataset", {}).get("path")
    if not path:
        raise CnnvisError(f"{session.run.manifest}: does not say where the dataset is")
    return Path(path)


def _reasons(session: Session) -> dict[str, str]:
    """Return the reasons in skipped.tsv by path; raise `UsageError` for other lines."""
    path = session.run.skipped
    if not path.exists():
        return {}
    text = read_regular(path).decode("utf-8", "surrogateescape")
    rows = [line.partition("\t") for line in text.split("\n") if line]
    if any(not tab for _, tab, _ in rows):
        raise UsageError(f"{path}: is not a list of paths and reasons")
    return {name: reason for name, _, reason in rows}
