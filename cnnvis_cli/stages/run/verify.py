"""`cnnvis verify`: are a run directory's files complete, and still true?

Complete: every sealed file has the bytes that were written, every picture its checksums. True: the
dataset is the one that was used, and stored values can be reproduced.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnvis_cli.ascent.objectives import Objective
from cnnvis_cli.dataset.decode import Unreadable
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import CnnvisError, StorageError, UsageError
from cnnvis_cli.figure.png import is_whole
from cnnvis_cli.nouns import Box, Layer, Unit
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.dataset_images import dataset_path, image_reader
from cnnvis_cli.stages.common.network_loading import load_network, planned_for
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.project.backward_pass import TOLERANCE
from cnnvis_cli.stages.project.job import Made, Projections, group_of
from cnnvis_cli.store.hdf5 import reading
from cnnvis_cli.store.inside import check_inside, read_regular
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.origin import OF_ONE_LAYER
from cnnvis_cli.store.projected import ProjectedFile
from cnnvis_cli.store.publish import intact
from cnnvis_cli.store.run import Run, differences
from cnnvis_cli.store.topk_file import TopKFile

# Of an optimized image's value, relative to the largest of its layer: images have 11 bits.
ROUNDED = 0.02
PROJECTION_TOLERANCE = 0.01  # of a projection's values, of which the largest is 1
CHANNELS = 2  # of a layer and method whose projections are recomputed


@dataclass
class Findings:
    """What was checked, and what is wrong with it."""

    looked_at: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)  # what could not be checked, and why

    def check(self, what: str, fine: bool, problem: str) -> None:
        """Count a check, and record the problem unless it is fine."""
        self.looked_at[what] += 1
        if not fine:
            self.wrong.append(problem)

    def record(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "looked_at": dict(self.looked_at),
            "wrong": self.wrong,
            "not_looked_at": self.untold,
        }

    def lines(self) -> Iterator[str]:
        """Return the lines of text."""
        counts = ", ".join(f"{count} {what}" for what, count in self.looked_at.items())
        yield f"checked: {counts or 'nothing'}"
        for text in self.untold:
            yield f"not checked: {text}"
        for text in self.wrong:
            yield f"wrong: {text}"


def verify(plan: Plan, report: Report, sample: int, whole_dataset: bool) -> Findings:
    """Check everything in a run directory; nothing there is changed.

    `sample` places, and as many optimized images, are recomputed; so are the projections of a few
    channels per layer. The content of as many images is compared with what was read, or that of all
    images of the dataset. Raise `UsageError` if there is no run.
    """
    run = Run(plan.folder)
    check_inside(run.path)
    if not run.read():
        raise UsageError(f"{plan.folder}: holds no run; begin one with cnnvis topk or optimize")
    findings = Findings()
    with report.stoppable():
        _check_files(run, findings, report)
        if findings.wrong:  # numbers of damaged files are meaningless
            findings.untold.append("values and images, until the damaged files are made again")
            return findings
        plan = planned_for(plan)
        session = Session(plan, load_network(plan, report.once), run, report).here()
        checks = _checks(session, findings, sample, whole_dataset)
        for what, check in checks:
            with _failures_found(findings, what):
                check()
    return findings


def _checks(
    session: Session, findings: Findings, sample: int, whole_dataset: bool
) -> list[tuple[str, Callable[[], None]]]:
    """Return the checks beyond the files, by name: no values if the network is another one."""
    run, generator = session.run, np.random.default_rng(session.plan.seed)
    known = {name: run.read().get(name) for name in session.identity}
    apart = differences(known, session.identity)
    findings.check("networks", not apart, f"{run.manifest}: is of another network: {apart}")
    checks: list[tuple[str, Callable[[], None]]] = []
    if run.topk.exists():
        checks.append(
            ("the dataset", lambda: _check_dataset(session, findings, sample, whole_dataset))
        )
    if apart:
        findings.untold.append("values, until the network is the run's own")
        return checks
    if run.topk.exists():
        checks += [
            ("places", lambda: _recompute_places(session, findings, generator, sample)),
            ("projections", lambda: _projections(session, findings, generator)),
        ]
    return [*checks, ("images", lambda: _optimized_images(session, findings, generator, sample))]


@contextmanager
def _failures_found(findings: Findings, what: str) -> Iterator[None]:
    """Turn any failure of one check into a finding; the others continue."""
    try:
        yield
    except CnnvisError as error:
        findings.check(what, False, str(error))
    except (IndexError, KeyError, ValueError) as error:  # from invalid indices
        findings.check(what, False, f"{what}: cannot be computed again ({error})")


def _check_files(run: Run, findings: Findings, report: Report) -> None:
    """Check every sealed file and every picture."""
    paths = sorted(path for path in run.path.rglob("*") if path.is_file())
    for path in report.track(paths, "verify", len(paths), "files"):
        if path.name.startswith("."):
            continue
        try:
            if path.suffix == ".h5":
                fine = intact(path)
                if fine:
                    _check_owner(run, path, findings)
            elif path.suffix == ".png":
                fine = is_whole(read_regular(path))
            else:
                continue
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror})") from None
        problem = f"{path}: is not what was written; delete it and run its command again"
        findings.check("files", fine, problem)
    for path in sorted(run.parts().rglob("*.damaged")):
        findings.check("files", False, f"{path}: a damaged part, set aside; it is made again")


def _check_owner(run: Run, path: Path, findings: Findings) -> None:
    """Check that a result is of this run, its layer and a known version."""
    kind = path.stem if path == run.topk else path.parent.name
    if path == run.topk or (path.parent.parent == run.path and kind in OF_ONE_LAYER):
        with _failures_found(findings, "files"), reading(path, kind):
            pass


def _check_dataset(session: Session, findings: Findings, sample: int, everything: bool) -> None:
    """Check the list of images, and the bytes of some or all."""
    images = TopKFile(session.run.topk).images()
    manifest = Manifest.scan(_dataset_root(session))
    known, here = images.path.tolist(), manifest.paths.tolist()
    gone, new = sorted(set(known) - set(here)), sorted(set(here) - set(known))
    place, both = dict(zip(here, range(len(here)), strict=True)), []
    for index, path in enumerate(known):
        if path in place:
            both.append((index, place[path]))
            same = int(images.size[index]) == int(manifest.sizes[place[path]])
            what = f"{images.name(index)}: has another size now"
            findings.check("images in the list", same, what)
    for paths, what in ((gone, "is gone from the dataset"), (new, "is new in the dataset")):
        for path in paths:
            name = path.decode("utf-8", "replace")
            findings.check("images in the list", False, f"{name}: {what}")
    step = 1 if everything else max(1, len(both) // max(1, sample))
    chosen = both[::step]
    for index, there in session.report.track(chosen, "images", len(chosen), "images"):
        crc, known = _crc(manifest, there), int(images.crc[index])
        unread = bool(images.skipped[index]) and not known  # its bytes could not be had then
        what = "was left out as unreadable, and can be read" if unread else "has other content now"
        fine = crc is None if unread else crc == known
        findings.check("images read", fine, f"{images.name(index)}: {what}")


def _dataset_root(session: Session) -> Path:
    """Return the dataset: the plan's, or where it was."""
    if session.plan.dataset:
        return dataset_path(session)
    path = session.run.read().get("dataset", {}).get("path")
    if not path:
        raise CnnvisError(f"{session.run.manifest}: does not say where the dataset is")
    return Path(path)


def _crc(manifest: Manifest, index: int) -> int | None:
    try:
        return zlib.crc32(manifest.read(index))
    except (Unreadable, StorageError):
        return None


def _recompute_places(
    session: Session, findings: Findings, generator: np.random.Generator, sample: int
) -> None:
    """Recompute some stored places from their images."""
    file, read = TopKFile(session.run.topk), image_reader(session)
    chosen = [layer for layer in session.network.layers if layer.alias in file.layers()]
    for layer in chosen:
        top = file.layer(layer.alias)
        places, scale = top.places, float(np.nanmax(np.abs(top.places.activation), initial=0))
        slots = np.argwhere(places.image >= 0)
        for channel, rank in _sampled_rows(slots, max(1, sample // len(chosen)), generator):
            session.report.check_stop()
            at = channel, rank
            x = session.network.centre(torch.from_numpy(read(int(places.image[at])).copy())[None])
            with torch.no_grad():
                maps, _ = session.network.values(layer, Box.whole(session.network.size), x)
            row, column = int(places.row[at]), int(places.column[at])
            inside = 0 <= row < maps.shape[2] and 0 <= column < maps.shape[3]
            value = float(maps[0, channel, row, column]) if inside else float("nan")
            stored = float(places.activation[at])
            fine = abs(value - stored) <= TOLERANCE[top.precision] * scale
            name = f"{session.run.topk}: {Unit(layer.alias, channel)}, rank {rank}"
            findings.check("places", fine, f"{name}: is {stored:.6g}, computed again {value:.6g}")


def _sampled_rows(
    rows: NDArray[Any], count: int, generator: np.random.Generator
) -> Iterable[tuple[int, ...]]:
    chosen = generator.choice(len(rows), min(count, len(rows)), replace=False)
    return map(tuple, rows[np.sort(chosen)].tolist())


def _optimized_images(
    session: Session, findings: Findings, generator: np.random.Generator, sample: int
) -> None:
    """Run the network again on some optimized images."""
    groups = []
    for layer in session.network.layers:
        file = OptimizedFile(session.run.optimized(layer.alias))
        groups += [(layer, file, group) for group in file.styles()]
    for layer, file, group in groups:
        if file.styles()[group].get("targets"):
            findings.untold.append(f"{file.path}: {group}, since its targets are not single units")
            continue
        rows = np.argwhere(np.isfinite(file.read(group, "activation")))
        for row, run in _sampled_rows(rows, max(1, sample // len(groups)), generator):
            session.report.check_stop()
            _image(session, findings, (layer, file, group), (row, run))


def _image(
    session: Session,
    findings: Findings,
    place: tuple[Layer, OptimizedFile, str],
    at: tuple[int, int],
) -> None:
    (layer, file, group), (row, run) = place, at
    network, made = session.network, file.styles()[group]
    box = Box.whole(network.size) if made["objective"] == "mean" else network.canvas(layer)
    objective = Objective(mean=made["objective"] == "mean", softmax=bool(made.get("softmax")))
    unit = int(file.read(group, "unit")[row])
    image = file.read(group, "image", slice(row, row + 1))[0, run].astype(np.float32)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].to(network.device)
    with torch.no_grad():
        maps, (top, left) = network.values(layer, box, x)
        centre = layer.centre[0] - top, layer.centre[1] - left
        target = torch.tensor([unit], device=network.device)
        value = float(objective(maps, target, centre)[1])
        scale = max(abs(value), 0.0 if objective.softmax else float(maps.abs().amax()))
    stored = float(file.read(group, "activation")[row, run])
    looser = TOLERANCE[made.get("precision", "float32")]
    name = f"{file.path}: style {group}, unit {unit}, run {run}"
    findings.check(
        "optimized images",
        abs(value - stored) <= (ROUNDED + looser) * scale + 1e-6,
        f"{name}: is {stored:.6g}, computed again {value:.6g}",
    )


def _projections(session: Session, findings: Findings, generator: np.random.Generator) -> None:
    """Recompute the projections of a few channels."""
    top, read = TopKFile(session.run.topk), image_reader(session)
    for layer in session.network.layers:
        file = ProjectedFile(session.run.projected(layer.alias))
        for group, made in file.methods().items():
            settings = {"start": made["start"], "lrn": made["lrn"], "method": (made["method"],)}
            again = session.with_project(**settings, batch_size=made["batch_size"])
            assert group_of(made["method"], again.plan.project) == group
            source = str(made["topk"])
            found = Projections(again, layer, made["method"], top.layer(layer.alias), source)
            same = source == file_digest(top.path)
            problem = f"{file.path}: {group} was projected from another topk.h5"
            findings.check("sources of projections", same, problem)
            done = np.argwhere(file.done(group))
            channels = sorted(channel for (channel,) in _sampled_rows(done, CHANNELS, generator))
            fresh = found.compute(channels, read, _breathing(session.report))
            for row, channel in enumerate(channels):
                stored, scale = file.read(group, channel)
                same = np.allclose(
                    stored, fresh["projection"][row], rtol=0, atol=PROJECTION_TOLERANCE
                )
                same &= np.allclose(scale, fresh["scale"][row], rtol=0.01, equal_nan=True)
                name = f"{file.path}: {group}, unit {channel}"
                findings.check("projections", bool(same), f"{name}: gives another result now")


def _breathing(report: Report) -> Callable[[Any], None]:
    def emit(_: Made) -> None:
        report.check_stop()

    return emit
