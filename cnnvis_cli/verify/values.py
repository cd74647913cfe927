"""Activations, computed again: of some images every value of every unit, or of all images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.engine import WorkerSlot, describe_device, run_tasks
from cnnvis_cli.network.tally import places_first
from cnnvis_cli.nouns import Layer, Unit
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.project.backward_pass import TOLERANCE
from cnnvis_cli.stages.topk.assemble import finish
from cnnvis_cli.stages.topk.job import TopKJob
from cnnvis_cli.stages.topk.stage import topk_memory
from cnnvis_cli.stages.topk.worker import scan
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.topk_file import LayerTopK, TopKFile
from cnnvis_cli.verify.dataset import READ, DatasetToday
from cnnvis_cli.verify.findings import Findings, Unread

RECOMPUTED_AT_ONCE = 8  # images at a time
PLACES, OTHERS, STATISTICS = "places", "images not listed", "statistics"
PLACE_KINDS = {"": PLACES, "lowest": "lowest places"}


def check_values(
    photographs: DatasetToday, findings: Findings, generator: np.random.Generator, sample: int
) -> None:
    """Compute some images again: each value that is listed, and that no other is too large."""
    session, file = photographs.session, photographs.file
    chosen = _some_images(photographs, generator, sample)
    tops = _tops(session, file)
    proven = {(alias, kind): 0 for alias, kind, *_ in tops}
    done = 0
    for few in in_groups(chosen, RECOMPUTED_AT_ONCE):
        session.report.check_stop()
        pixels, images = [], []
        for index in few:
            try:
                pixels.append(photographs.read(index))
                images.append(index)
            except Unread:
                continue
        if images:
            with findings.guarded(PLACES):
                for layer, maps in outputs_of(session, np.stack(pixels)):
                    for alias, kind, top, scale in tops:
                        if alias == layer.alias:
                            held = HeldPlaces(file, layer, kind, top, scale)
                            proven[alias, kind] += held.compare(images, maps, findings)
        done += len(images)
    used = int((~photographs.images.skipped).sum())
    _leave_the_rest(findings, tops, proven, done, used)


def _leave_the_rest(
    findings: Findings, tops: Sequence[Any], proven: dict[Any, int], done: int, used: int
) -> None:
    """Say what a sample of images leaves unproven."""
    why = f"of images outside the sample of {done}; --all proves them"
    for alias, kind, top, _ in tops:
        left = int((top.places.image >= 0).sum()) - proven[alias, kind]
        findings.leave(PLACE_KINDS[kind], left, why)
        if not kind:
            channels = len(top.places.image)
            findings.leave(OTHERS, channels * (used - done), why)
            findings.leave(STATISTICS, channels, f"need all {used} images; --all proves them")
    findings.leave(READ, used - done, why)


def _tops(session: Session, file: TopKFile) -> list[tuple[str, str, LayerTopK, float]]:
    """Return the layers' strongest and lowest places, each with its layer's largest value."""
    found = []
    for layer in session.network.layers:
        if layer.alias in file.layers():
            for kind, top in (("", file.layer(layer.alias)), ("lowest", file.lowest(layer.alias))):
                if top is not None:
                    values = np.abs(top.places.activation)
                    found.append((layer.alias, kind, top, float(np.nanmax(values, initial=0))))
    return found


def _some_images(
    photographs: DatasetToday, generator: np.random.Generator, sample: int
) -> list[int]:
    """Return some images: of each layer's places, and of all that were used."""
    file, used = photographs.file, np.flatnonzero(~photographs.images.skipped)
    count = min(max(1, sample), len(used))
    aliases = file.layers()
    listed: list[int] = []
    for alias in aliases:
        image = file.layer(alias).places.image
        held = np.unique(image[(image >= 0) & (image < len(photographs.images.path))])
        each = min(max(1, count // (2 * len(aliases))), len(held))
        listed += generator.choice(held, each, replace=False).tolist()
    order = [*listed, *generator.permutation(used).tolist()]
    return sorted(list(dict.fromkeys(order))[:count])


def outputs_of(session: Session, pixels: NDArray[np.uint8]) -> Iterator[tuple[Layer, Tensor]]:
    """Yield each layer with its values for some images, (B, places, C)."""
    network, found = session.network, []
    chosen = [layer for layer in network.layers if layer.calls == 1]
    with torch.inference_mode():
        x = network.normalise(network.centre(torch.from_numpy(pixels)))
        with network.tap(chosen, lambda la, out: found.append((la, places_first(out)))) as run:
            run(x)
    yield from found


@dataclass(frozen=True)
class HeldPlaces:
    """The strongest (or lowest) places of a layer, held against whole maps."""

    file: TopKFile
    layer: Layer
    kind: str
    top: LayerTopK
    scale: float  # the largest activation

    def compare(self, images: Sequence[int], maps: Tensor, findings: Findings) -> int:
        """Compare some images' maps (B, places, C) with what is stored; return the places."""
        sign = -1.0 if self.kind else 1.0
        count, unlisted = 0, 0
        for index, values in zip(images, maps * sign, strict=True):
            flat = values.cpu().numpy()
            rows, ranks = np.nonzero(self.top.places.image == index)
            problems = list(self._of_listed(index, flat, rows, ranks, sign))
            findings.recomputed(PLACE_KINDS[self.kind], len(rows), problems)
            others = np.setdiff1d(np.arange(self.layer.channels), rows)
            found = self._of_others(index, flat, others, sign)
            findings.recomputed(OTHERS, 0 if self.kind else len(others), found)
            count, unlisted = count + len(rows), unlisted + len(others)
        return count

    @property
    def _allowed(self) -> float:
        return TOLERANCE[self.top.precision] * self.scale

    def _name(self, channel: int, rank: int) -> str:
        what = f", {self.kind}" if self.kind else ""
        return f"{self.file.path}: {Unit(self.layer.alias, channel)}{what}, rank {rank}"

    def _of_listed(
        self, index: int, flat: NDArray[Any], rows: Any, ranks: Any, sign: float
    ) -> Iterator[str]:
        """Yield the listed places of an image whose value, or whose place, is another."""
        places = self.top.places
        if not len(rows):
            return
        place = places.row[rows, ranks] * self.layer.map[1] + places.column[rows, ranks]
        inside = (place >= 0) & (place < len(flat))
        here = np.where(inside, flat[np.clip(place, 0, len(flat) - 1), rows], np.nan)
        largest = _largest(flat)[rows]
        stored = places.activation[rows, ranks] * sign
        wrong = ~(np.abs(here - stored) <= self._allowed)
        wrong |= ~(np.abs(largest - stored) <= self._allowed)
        for i in np.flatnonzero(wrong).tolist():
            name = self._name(int(rows[i]), int(ranks[i]))
            yield (
                f"{name}: is {stored[i] * sign:.6g}, computed again {here[i] * sign:.6g} there "
                f"and {largest[i] * sign:.6g} at most in {self.file.images().name(index)}"
            )

    def _of_others(self, index: int, flat: NDArray[Any], others: Any, sign: float) -> Iterator[str]:
        """Yield the units that should list an image and do not."""
        largest = _largest(flat)[others]
        weakest = self.top.places.activation[others, -1] * sign
        beyond = largest > weakest + self._allowed
        beyond |= np.isnan(weakest) & ~np.isnan(largest)
        for i in np.flatnonzero(beyond).tolist():
            yield (
                f"{self._name(int(others[i]), self.top.places.image.shape[1] - 1)}: is "
                f"{weakest[i] * sign:.6g}, and {self.file.images().name(index)}, which is not "
                f"listed, has {largest[i] * sign:.6g}"
            )


def _largest(flat: NDArray[Any]) -> NDArray[Any]:
    """Return each unit's largest value that is a number, NaN without one: (places, C) -> (C,)."""
    found: NDArray[Any] = np.where(np.isnan(flat), -np.inf, flat).max(axis=0)
    return np.where(np.isnan(flat).all(axis=0), np.nan, found)


def check_everything(photographs: DatasetToday, findings: Findings) -> None:
    """Make the whole top-k again, aside, and compare everything with what is stored."""
    session, file, manifest = photographs.session, photographs.file, photographs.manifest
    assert manifest is not None
    identity = file.identity() or {}
    names = ("k", "precision", "decode", "min")
    settings = replace(session.plan.topk, **{name: identity[name] for name in names})
    plan = replace(session.plan, topk=settings, batch_size=identity["batch_size"])
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "again")
        job = TopKJob.of(run, identity, manifest, plan, session.network)
        _scan_again(session, job)
        finish(run, job, [job.parts], session.report)
        Again(session, file, TopKFile(run.topk), findings).compare(photographs)


def _scan_again(session: Session, job: TopKJob) -> None:
    """Compute every part, on all cores or on this process's GPU."""
    meter = session.report.meter("images", len(job.manifest), "images")

    def on_event(message: Any) -> None:
        session.on_event(message)
        if images := getattr(message, "images", 0):
            meter.add(images)

    count = job.cut.count
    if session.device.type == "cpu" and len(job.manifest) > LEAST_SHARED:
        pool = session.pool(topk_memory(session, job.cut.size))
        run_tasks(partial(scan, job), pool, range(count), on_event, job.describe)
    else:
        slot = WorkerSlot(session.device, torch.get_num_threads(), 0)
        scan(job, slot, iter(range(count)), on_event)
    meter.end()


LEAST_SHARED = 256  # images that are not worth other processes


@dataclass(frozen=True)
class Again:
    """A top-k, and the same made again."""

    session: Session
    file: TopKFile
    fresh: TopKFile
    findings: Findings

    @property
    def exact(self) -> bool:
        """Return whether the arithmetic is that of the run, and bits can be compared."""
        known = self.session.run.read().get("topk", {}).get("arithmetic", [])
        identity = self.file.identity() or {}
        same = identity.get("device") == self.session.device.type
        return same and known == [describe_device(self.session.device)]

    def compare(self, photographs: DatasetToday) -> None:
        """Compare the images and every layer."""
        findings, stored, fresh = self.findings, self.file.images(), self.fresh.images()
        for name in ("crc", "skipped"):
            apart = np.flatnonzero(getattr(stored, name) != getattr(fresh, name)).tolist()
            text = "has other content now" if name == "crc" else "is marked otherwise as skipped"
            findings.recomputed(READ, 0, (f"{stored.name(i)}: {text}" for i in apart))
        used = set(np.flatnonzero(~fresh.skipped).tolist())
        findings.recomputed(READ, len(used - photographs.counted))
        photographs.counted |= used
        for layer in self.session.network.layers:
            if layer.alias in self.file.layers():
                with findings.guarded(PLACES):
                    self._compare_layer(layer)

    def _compare_layer(self, layer: Layer) -> None:
        findings, alias = self.findings, layer.alias
        pairs = [("", self.file.layer(alias), self.fresh.layer(alias))]
        lowest, again = self.file.lowest(alias), self.fresh.lowest(alias)
        if lowest is not None and again is not None:
            pairs.append(("lowest", lowest, again))
        for kind, one, other in pairs:
            places = int((one.places.image >= 0).sum())
            problems = self._apart(layer, kind, one, other)
            findings.recomputed(PLACE_KINDS[kind], places, problems)
        top = pairs[0][1]
        used = int((~self.file.images().skipped).sum())
        findings.recomputed(OTHERS, layer.channels * used - int((top.places.image >= 0).sum()))
        wrong = self._wrong_statistics(layer, top, pairs[0][2])
        findings.recomputed(STATISTICS, layer.channels, wrong)
        if not self.exact:
            why = "computed on another device or version: compared within its tolerance"
            findings.leave(PLACES, places, why)
            findings.leave(STATISTICS, layer.channels, why)

    def _apart(self, layer: Layer, kind: str, one: LayerTopK, other: LayerTopK) -> Iterator[str]:
        """Yield the places that are not the same."""
        mine, theirs = one.places, other.places
        scale = float(np.nanmax(np.abs(theirs.activation), initial=0))
        if self.exact:
            different = ~_same(mine.activation, theirs.activation)
            for name in ("image", "row", "column"):
                different |= getattr(mine, name) != getattr(theirs, name)
        else:
            allowed = TOLERANCE[one.precision] * scale
            different = ~_same(mine.activation, theirs.activation, allowed)
        for channel, rank in np.argwhere(different).tolist():
            unit = Unit(layer.alias, channel)
            yield (
                f"{self.file.path}: {unit}{kind and ', '}{kind}, rank {rank}: is "
                f"{_place_in_words(self.file, mine, (channel, rank))}, computed again "
                f"{_place_in_words(self.file, theirs, (channel, rank))}"
            )

    def _wrong_statistics(self, layer: Layer, one: LayerTopK, other: LayerTopK) -> Iterator[str]:
        scale = float(np.nanmax(np.abs(other.places.activation), initial=0))
        room = 0.0 if self.exact else TOLERANCE[one.precision] * scale
        names = list(one.stats) if self.exact else ["mean", "std", "max"]
        columns = {name: (one.stats[name], other.stats[name]) for name in names}
        if self.exact:
            alias = layer.alias
            columns["histogram"] = self.file.histogram(alias), self.fresh.histogram(alias)
        for name, (mine, theirs) in columns.items():
            apart = ~_same(mine, theirs, room)
            for channel in np.flatnonzero(apart.reshape(len(apart), -1).any(axis=1)).tolist():
                unit = Unit(layer.alias, channel)
                yield f"{self.file.path}: {unit}: its {name} is another, computed again"


def _same(one: NDArray[Any], other: NDArray[Any], room: float = 0.0) -> NDArray[np.bool_]:
    """Return where two arrays are as good as equal; NaN equals itself."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = (one == other) | (np.abs(one - other) <= room)
    same: NDArray[np.bool_] = near | (np.isnan(one) & np.isnan(other))
    return same


def _place_in_words(file: TopKFile, places: Any, at: tuple[int, int]) -> str:
    """Return a place in words."""
    index = int(places.image[at])
    name = file.images().name(index) if index >= 0 else "no image"
    return f"{places.activation[at]:.6g} in {name} at {places.row[at]}, {places.column[at]}"
