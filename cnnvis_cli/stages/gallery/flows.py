"""Where units come from and lead to, and where they answer: a gallery's data from the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats, Int64s
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.figure import site
from cnnvis_cli.measures.unit_facts import digits
from cnnvis_cli.network.circuits import Connection, fed_by_weight, fed_in_images, feeds
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.tracing import TracedPlaces, Tracer, Traces
from cnnvis_cli.network.wiring import Wiring, wirings
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session, load_checked
from cnnvis_cli.stages.figures.data import STRONGEST_SHOWN
from cnnvis_cli.stages.gallery.layers import ShownLayer
from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Record

VERSION_OF_FLOWS = 2
IMAGES_AT_ONCE = 4
KERNEL_LEVELS, LARGEST_KERNEL = 9, 121  # of weights that are drawn; cells


@dataclass(frozen=True)
class Flow:
    """One layer's files; `images` are those that are run through the network."""

    shown: ShownLayer
    others: tuple[str, ...]  # the aliases of all layers of the page
    images: Int64s

    @property
    def folder(self) -> Path:
        return self.shown.folder

    def files(self) -> list[str]:
        return [f"flow_{number:03d}.js" for number in range(self.shown.chunks)]

    @cached_property
    def key(self) -> str:
        session, layer = self.shown.session, self.shown.layer
        topk = file_digest(session.run.topk) if self.shown.top else ""
        known = [VERSION_OF_FLOWS, layer.alias, self.shown.units, self.others]
        return digest([*known, topk, session.network.digest, self.images.tolist()])

    def is_done(self) -> bool:
        with suppress(OSError):
            return all(
                site.script_key(read_regular(self.shown.folder / name)) == self.key
                for name in self.files()
            )
        return False

    @cached_property
    def places(self) -> TracedPlaces:
        """The strongest places of the units in the images; none without topk."""
        columns: list[list[int]] = [[], [], [], [], [], []]
        top, wanted = self.shown.top, set(self.images.tolist())
        for row, unit in enumerate(self.shown.units if top else ()):
            assert top is not None
            for rank, image in enumerate(top.places.image[unit, :STRONGEST_SHOWN].tolist()):
                if image in wanted:
                    at = int(top.places.row[unit, rank]), int(top.places.column[unit, rank])
                    for column, value in zip(columns, (row, unit, rank, *at, image), strict=True):
                        column.append(value)
        row_, unit_, rank_, y, x, image_ = (np.array(column, np.int64) for column in columns)
        return TracedPlaces(row_, unit_, rank_, np.stack([y, x], axis=1), image_)


def make_flows(session: Session, shown: Sequence[ShownLayer], readable: bool) -> list[Flow]:
    """Make the missing data on what feeds the units of all layers; return those that are there.

    Without weights, and with ``--trace 0``, there are none, with a line about it.
    """
    images = _chosen_images(shown, session.plan.gallery.trace)
    aliases = tuple(each.layer.alias for each in shown)
    whole = [Flow(each, aliases, images) for each in shown]
    if all(flow.is_done() for flow in whole):
        return whole
    flows = whole if readable else [replace(flow, images=images[:0]) for flow in whole]
    if all(flow.is_done() for flow in flows):
        return flows
    if not session.plan.gallery.trace:
        return []
    network = _network(session)
    if network is None:
        return []
    _write_flows(session, network, flows)
    return flows


def forget_flows(shown: Sequence[ShownLayer]) -> None:
    """Remove what an older gallery told of what feeds units."""
    for each in shown:
        for path in each.folder.glob("flow_*.js"):
            if site.script_key(read_regular(path)):
                path.unlink()


def _chosen_images(shown: Sequence[ShownLayer], most: int) -> Int64s:
    """Return the images of the units' first places, of as many ranks as `most` images allow."""
    found = np.empty(0, np.int64)
    for rank in range(STRONGEST_SHOWN):
        columns = [found]
        for each in shown:
            if each.top and rank < each.top.places.image.shape[1]:
                columns.append(each.top.places.image[each.units, rank])
        more = np.unique(np.concatenate(columns))
        more = more[more >= 0]
        if len(more) > most:
            break
        found = more
    return found


def _network(session: Session) -> Network | None:
    """Return the run's network with its weights; None, with a line, if they cannot be had."""
    network = session.network
    try:
        if not any(True for _ in network.module.parameters()):
            network = load_checked(session.plan, session.report)
        if network.digest != session.network.digest:
            raise CnnvisError("the weights are not those of the run")
    except CnnvisError as error:
        session.report.note(f"what feeds each unit is left out, as there are no weights: {error}")
        return None
    return replace(session, network=network).here().network


def _write_flows(session: Session, network: Network, flows: Sequence[Flow]) -> None:
    numbers = {layer.alias: number for number, layer in enumerate(network.layers)}
    wired = _followed(session, network)
    results = _traced(session, network, wired, flows)
    after = feeds(
        {
            numbers[flow.shown.layer.alias]: wired[flow.shown.layer.alias]
            for flow in flows
            if flow.shown.layer.alias in wired
        }
    )
    seen = {each.shown.layer.alias: set(each.shown.units) for each in flows}
    names = _Names(network.layers, seen)
    for flow in session.report.each(flows):
        alias = flow.shown.layer.alias
        made = _Made(names, wired.get(alias), results[alias], after, numbers[alias])
        about: Record = {
            "first": numbers[alias] == 0,
            "wired": alias in wired,
            "images": len(flow.images),
        }
        if alias in wired:
            about["others"] = list(wired[alias].others)
            about["unknown"] = int((wired[alias].source < 0).sum())
        for number, name in enumerate(flow.files()):
            chunk = flow.shown.chunk(number)
            first = flow.shown.units.index(chunk[0])
            records = [made.record(first + row, unit) for row, unit in enumerate(chunk)]
            content = site.data("flow", alias, number, about, records, key=flow.key)
            publish(flow.shown.folder / name, content)


def _followed(session: Session, network: Network) -> dict[str, Wiring]:
    """Return what feeds each layer; nothing, with a line, for a network that takes no probe."""
    try:
        return wirings(network)
    except (RuntimeError, TypeError, ValueError, AssertionError, CnnvisError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        session.report.note(
            f"what feeds each unit is left out; the network takes no probe: {first}"
        )
        return {}


def _traced(
    session: Session, network: Network, wired: Mapping[str, Wiring], flows: Sequence[Flow]
) -> dict[str, Traces]:
    """Run the images through the network; return what they tell of each layer."""
    results = {}
    for flow in flows:
        alias, rows = flow.shown.layer.alias, len(flow.shown.units)
        width = wired[alias].weight.shape[1] if alias in wired else 0
        results[alias] = Traces(np.zeros((rows, width), np.float32), np.zeros(rows, np.int64))
    places = {flow.shown.layer.alias: flow.places for flow in flows}
    tracer = Tracer(network, wired, places, results)
    images = flows[0].images
    meter = session.report.meter("tracing", len(images), "images")
    for few, pixels in session.report.each(_batches(flows, images)):
        tracer.run(pixels, few)
        meter.add(len(few))
    meter.end()
    wrong = {alias: each.wrong for alias, each in results.items() if each.wrong}
    if wrong:
        session.report.note(
            f"{sum(wrong.values())} places of {', '.join(wrong)} are left out of what feeds their "
            "units: the parts do not sum to the value"
        )
    return results


def _batches(flows: Sequence[Flow], images: Int64s) -> Iterator[tuple[Int64s, torch.Tensor]]:
    """Yield the images that can be read, some at a time, with their numbers."""
    photographs = next((flow.shown.photographs for flow in flows if flow.shown.photographs), None)
    for group in in_groups(images.tolist(), IMAGES_AT_ONCE):
        found = {}
        for index in group if photographs else ():
            assert photographs is not None
            pixels = photographs.read(index)
            if pixels is not None:
                found[index] = pixels
        if found:
            yield np.array(list(found)), torch.from_numpy(np.stack(list(found.values())))


@dataclass(frozen=True)
class _Names:
    """The layers of the network, and the units of the page, to which connections can lead."""

    layers: Sequence[Layer]
    seen: Mapping[str, set[int]]

    def rows(self, connections: Sequence[Connection]) -> list[Record | list[object]]:
        found: list[Record | list[object]] = []
        for each in connections:
            alias = self.layers[each.layer].alias
            if each.unit in self.seen.get(alias, ()):
                row: list[object] = [alias, each.unit, digits(each.value)]
                found.append(row if each.kernel is None else [*row, *_drawn(each.kernel)])
        return found


def _drawn(kernel: Floats) -> list[object]:
    """Return a kernel's width, and a letter per weight: a to s, j for 0; nothing if it is large."""
    cells = kernel.ravel()
    side = int(np.sqrt(len(cells)))
    width = side if kernel.shape[0] == 1 and side * side == len(cells) else kernel.shape[1]
    if not 1 < len(cells) <= LARGEST_KERNEL:
        return []
    levels = np.rint(cells / (float(np.abs(cells).max()) or 1.0) * KERNEL_LEVELS).astype(int)
    return [width, "".join(chr(ord("j") + level) for level in levels.tolist())]


def drawn_levels(levels: NDArray[np.uint8]) -> str:
    """Return a digit from 0 to f per level; 2 to 20 zeros in a row are a letter from g to y."""
    digits_ = "".join(f"{level:x}" for level in levels.flat)
    return re.sub("0{2,20}", lambda found: chr(ord("g") - 2 + len(found[0])), digits_)


@dataclass(frozen=True)
class _Made:
    """All that is known of one layer's connections."""

    names: _Names
    wiring: Wiring | None
    traces: Traces
    after: Mapping[tuple[int, int], list[Connection]]
    number: int

    def record(self, row: int, unit: int) -> Record:
        """Return the page's data on a unit, which is in this row of the traces."""
        found: Record = {"to": self.names.rows(self.after.get((self.number, unit), []))}
        if self.wiring is not None:
            found["weights"] = self.names.rows(fed_by_weight(self.wiring, unit))
            count = int(self.traces.count[row])
            if count:
                parts = self.traces.parts[row] / count
                found["parts"] = self.names.rows(fed_in_images(self.wiring, unit, parts))
                found["traced"] = count
        maps = {}
        for rank in range(STRONGEST_SHOWN):
            levels = self.traces.maps.get((row, rank))
            if levels is not None:
                maps[rank] = [levels.shape[1], drawn_levels(levels)]
        return found | ({"maps": maps} if maps else {})
