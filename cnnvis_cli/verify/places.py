"""The top-k as it is stored: whether its places, statistics and images agree with each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli import histogram
from cnnvis_cli.network.tally import HISTOGRAM_SAMPLE
from cnnvis_cli.nouns import Layer, ReceptiveField, Unit
from cnnvis_cli.stages.common.network_loading import plain
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.store.topk import TopK
from cnnvis_cli.store.topk_file import Images, LayerTopK, TopKFile, boxes
from cnnvis_cli.verify.findings import Findings

Rows = NDArray[np.bool_] | np.bool_  # (C,) the channels where something is wrong


def check_stored(session: Session, file: TopKFile, findings: Findings) -> None:
    """Check all of a topk.h5 that follows from other parts of it, or from the network."""
    images = file.images()
    findings.stored("images in the list", 0, _wrong_numbers(session, file, images))
    for layer in session.network.layers:
        if layer.alias in file.layers():
            with findings.guarded("places"):
                _check_layer(file, layer, images, findings)


def _wrong_numbers(session: Session, file: TopKFile, images: Images) -> Iterator[str]:
    """Yield what the file states of itself that is not so."""
    stated, plan = file.attributes(), file.identity() or {}
    skipped = int(images.skipped.sum())
    edges, levels = file.bins()
    facts = {
        **{name: plan.get(name) for name in ("k", "precision", "decode", *session.identity)},
        "preprocessing": json.dumps(session.identity["preprocessing"], sort_keys=True),
        "images": len(images.path),
        "skipped": skipped,
    }
    for name, fact in facts.items():
        if stated.get(name) != fact:
            yield f"{file.path}: states that {name} is {stated.get(name)}, and it is {fact}"
    if any(plan.get(name) != fact for name, fact in session.identity.items()):
        yield f"{file.path}: its plan is of another network"
    if plan.get("layers") != file.layers():
        yield f"{file.path}: holds other layers than its plan"
    same = np.array_equal(edges, histogram.edges())
    if not same or levels.tolist() != list(histogram.LEVELS):
        yield f"{file.path}: its bins or levels are not those of cnnvis"


def _check_layer(file: TopKFile, layer: Layer, images: Images, findings: Findings) -> None:
    top, lowest = file.layer(layer.alias), file.lowest(layer.alias)
    plan, stated = file.identity() or {}, file.attributes(layer.alias)
    facts = {
        **{"module": layer.module, "kind": layer.kind, "channels": layer.channels},
        **{"map": layer.map, "receptive_field": layer.field.size, "stride": layer.field.stride},
        "order": file.layers().index(layer.alias),
    }
    if layer.needs_local_fields:
        local = {"local_field": layer.local.size, "local_stride": layer.local.stride}
        facts |= {**local, "apart": layer.apart}
    wrong = [name for name, fact in facts.items() if stated.get(name) != plain(fact)]
    apart = [f"{file.path}: {layer.alias}: its {name} is not the network's" for name in wrong]
    if top.places.image.shape != (layer.channels, plan.get("k")):
        apart.append(f"{file.path}: {layer.alias}: has another number of units or places")
    if (lowest is not None) != bool(plan.get("min")):
        apart.append(f"{file.path}: {layer.alias}: the lowest places are not as its plan says")
    findings.stored("places", int((top.places.image >= 0).sum()), apart)
    findings.stored("places", 0, _wrong_places(file, layer, top, images, 1))
    if lowest is not None:
        findings.stored("lowest places", int((lowest.places.image >= 0).sum()))
        findings.stored("lowest places", 0, _wrong_places(file, layer, lowest, images, -1))
    counts = file.histogram(layer.alias)
    found = Statistics(layer, top, lowest, counts, images).wrong()
    findings.stored("statistics", layer.channels, _named(file, layer, found))


def _named(
    file: TopKFile, layer: Layer, found: Iterator[tuple[str, Rows]], what: str = ""
) -> Iterator[str]:
    """Yield a line per unit where something is wrong."""
    for problem, rows in found:
        for channel in np.flatnonzero(rows).tolist():
            yield f"{file.path}: {Unit(layer.alias, channel)}{what}: {problem}"


def _wrong_places(
    file: TopKFile, layer: Layer, top: LayerTopK, images: Images, sign: int
) -> Iterator[str]:
    found = _out_of_order(top.places, images, sign)
    what = "" if sign > 0 else ", lowest"
    yield from _named(file, layer, found, what)
    yield from _named(file, layer, _misplaced(layer, top), what)


def _out_of_order(places: TopK, images: Images, sign: int) -> Iterator[tuple[str, Rows]]:
    """Yield what is wrong with the order of places, each with the channels where it is."""
    value, image = places.activation * np.float32(sign), places.image
    held = image >= 0
    both = held[:, 1:] & held[:, :-1]
    falls = value[:, :-1] > value[:, 1:]
    ties = (value[:, :-1] == value[:, 1:]) & (image[:, :-1] < image[:, 1:])
    yield "places are not in their order", (both & ~falls & ~ties).any(axis=1)
    yield "a place follows an empty slot", (held[:, 1:] & ~held[:, :-1]).any(axis=1)
    yield "an empty slot has a value, or a place has none", (held == np.isnan(value)).any(axis=1)
    yield "an activation is -0", ((value == 0) & np.signbit(places.activation)).any(axis=1)
    rows = np.sort(np.where(held, image, -1 - np.arange(image.shape[1])), axis=1)
    yield "an image is listed twice", (rows[:, 1:] == rows[:, :-1]).any(axis=1)
    skipped = np.append(images.skipped, False)[image]
    yield "an image is listed that was skipped", (held & skipped).any(axis=1)
    used = int((~images.skipped).sum())
    yield "has more places than images", held.sum(axis=1) > used


def _misplaced(layer: Layer, top: LayerTopK) -> Iterator[tuple[str, Rows]]:
    """Yield what is wrong with positions and windows, each with the channels where it is."""
    places = top.places
    held, (height, width) = places.image >= 0, layer.map
    inside = (places.row >= 0) & (places.row < height)
    inside &= (places.column >= 0) & (places.column < width)
    nowhere = (places.row == 0) & (places.column == 0)
    yield "a position is outside the map", ~np.where(held, inside, nowhere).all(axis=1)
    windows: list[tuple[str, ReceptiveField, Any]] = [("box", layer.field, top.box)]
    if top.local_box is not None:
        windows.append(("local_box", layer.local, top.local_box))
    for name, field, stored in windows:
        apart = (boxes(field, places) != stored).any(axis=(1, 2))
        yield f"a {name} is not the window of its place", apart


@dataclass(frozen=True)
class Statistics:
    """A layer's statistics, and all that bounds them."""

    layer: Layer
    top: LayerTopK
    lowest: LayerTopK | None
    counts: NDArray[np.int64]  # (C, bins) the histogram
    images: Images

    @property
    def used(self) -> int:
        return int((~self.images.skipped).sum())

    @property
    def places(self) -> int:
        return self.layer.map[0] * self.layer.map[1]

    def wrong(self) -> Iterator[tuple[str, Rows]]:
        """Yield what cannot be, each with the channels where it is."""
        stats, value = self.top.stats, self.top.places.activation
        largest, active = stats["max"], stats["active"]
        first = value[:, 0].astype(np.float64)
        yield "its max is not its strongest activation", _apart(largest, first)
        yield from self._wrong_shares()
        wanted = histogram.quantiles(self.counts, largest)
        apart = ~np.isclose(stats["quantiles"], wanted, rtol=1e-9, equal_nan=True)
        yield "its quantiles are not those of its histogram", apart.any(axis=1)
        with np.errstate(invalid="ignore"):
            yield "its mean is above its max", stats["mean"] > largest + 1e-5 * np.abs(largest)
            yield "its std is below 0", stats["std"] < 0
            on = (value > 0).sum(axis=1)
            yield "fewer places are active than listed", active * self.used * self.places < on - 0.5
        yield from self._wrong_classes()
        yield from self._wrong_counts()

    def _wrong_shares(self) -> Iterator[tuple[str, Rows]]:
        active, total = self.top.stats["active"], self.used * self.places
        if not total:
            yield "has statistics of no image", ~np.isnan(active)
            return
        number = np.round(active * total)
        whole = (number / total == active) & (active >= 0) & (active <= 1)
        yield "its active is not a share of its places", ~whole
        dead = self.top.stats["dead"]
        yield "its dead contradicts its active", dead != (active == 0)
        with np.errstate(invalid="ignore"):
            yield "its dead contradicts its max", dead == (self.top.stats["max"] > 0)

    def _wrong_classes(self) -> Iterator[tuple[str, Rows]]:
        best, index = self.top.stats["class"], self.top.stats["selectivity"]
        known = np.unique(self.images.label[~self.images.skipped & (self.images.label >= 0)])
        yield "its class is none of the images'", ~np.isin(best, [-1, *known.tolist()])
        yield "its class contradicts its selectivity", (best < 0) != np.isnan(index)
        with np.errstate(invalid="ignore"):
            yield "its selectivity is not between 0 and 1", (index < 0) | (index > 1)
        none = self.top.stats["dead"] | (len(known) < 2)
        yield "has a class that it cannot have", (best >= 0) & none

    def _wrong_counts(self) -> Iterator[tuple[str, Rows]]:
        """Yield what is wrong with the histogram."""
        counts, value = self.counts, self.top.places.activation
        number, each = counts.sum(axis=1), min(HISTOGRAM_SAMPLE, self.places)
        yield "its histogram has counts below 0", (counts < 0).any(axis=1)
        numbers = ~np.isnan(self.top.stats["mean"])  # no NaN among them
        apart = np.where(numbers, number != self.used * each, number > self.used * each)
        yield "its histogram counts another number of places", apart
        if not self.used:
            return
        bins = histogram.bins(np.nan_to_num(value, nan=-np.inf))
        above = np.arange(counts.shape[1]) > bins[:, :1]
        yield "its histogram has places above its max", (counts * above).any(axis=1)
        if self.places == each:
            yield from self._wrong_full_counts(bins)

    def _wrong_full_counts(self, bins: NDArray[np.int64]) -> Iterator[tuple[str, Rows]]:
        """Yield the same of a histogram that counts every place."""
        counts, stats, edges = self.counts, self.top.stats, histogram.edges()
        numbers = np.isfinite(stats["mean"]) & (counts[:, 0] == 0) & (counts[:, -1] == 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            low, high = (counts @ side / counts.sum(axis=1) for side in (edges[:-1], edges[1:]))
        room = 1e-5 * np.maximum(np.abs(low), np.abs(high))
        outside = (stats["mean"] < low - room) | (stats["mean"] > high + room)
        yield "its mean contradicts its histogram", numbers & outside
        squares = np.sort(np.stack([edges[:-1] ** 2, edges[1:] ** 2]), axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            least, most = (counts @ side / counts.sum(axis=1) for side in squares)
            found = stats["std"] ** 2 + stats["mean"] ** 2
            outside = (found < least * (1 - 1e-4)) | (found > most * (1 + 1e-4))
        yield "its std contradicts its histogram", numbers & outside
        if self.places > 1:
            return
        held = self.top.places.image >= 0
        listed = np.zeros_like(counts)
        rows, ranks = np.nonzero(held)
        np.add.at(listed, (rows, bins[rows, ranks]), 1)
        last = np.where(held.all(axis=1), bins[:, -1], -1)[:, None]
        number = np.arange(counts.shape[1])
        beyond = (number > last) & (counts != listed)
        yield "its histogram contradicts its places", (beyond | (counts < listed)).any(axis=1)


def _apart(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two arrays differ; NaN equals itself."""
    different: NDArray[np.bool_] = (one != other) & ~(np.isnan(one) & np.isnan(other))
    return different
