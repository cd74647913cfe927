"""The projections of one layer by one method: what is asked for, and what is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.engine import Emit
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.settings import ProjectPlan
from cnnvis_cli.stages.common.blocks import Blocks
from cnnvis_cli.stages.common.dataset_images import ReadImage
from cnnvis_cli.stages.common.layer_job import LayerJob
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.project.backward_pass import BackwardPass
from cnnvis_cli.stages.project.batching import PASS, PIXELS, Batching, StoredPlaces
from cnnvis_cli.store.projected import Projected, ProjectedFile
from cnnvis_cli.store.room import Room, projections_room
from cnnvis_cli.store.run import Record, differences
from cnnvis_cli.store.topk_file import LayerTopK

_BLOCK_BYTES = 1 << 28  # bytes of projections that are computed, stored and lost together


def group_of(method: str, settings: ProjectPlan) -> str:
    """Return the group of the file for a method's projections with these settings."""
    words = {"map": settings.start == "map", "lrn": settings.lrn == "pass"}
    return "-".join([method, *(word for word, asked in words.items() if asked)])


def memory_need(session: Session) -> int:
    """Return a process's approximate memory on a CPU: all maps of a batch, twice, and a block."""
    height, width = session.network.size
    maps = sum(layer.channels * layer.map[0] * layer.map[1] for layer in session.network.layers)
    return 2 * 4 * maps * max(1, PIXELS["cpu"] // (height * width)) + 2 * _BLOCK_BYTES


class Made(NamedTuple):
    """A message: so many places have been projected."""

    places: int


@dataclass(frozen=True, eq=False)
class Projections(LayerJob):
    """The projections of one layer by one method."""

    kind: ClassVar[str] = "projected"
    method: str
    top: LayerTopK
    source: str  # digest of topk.h5

    @cached_property
    def batching(self) -> Batching:
        """Return how its places are divided into passes."""
        plan, network = self.session.plan, self.session.network
        whole = self.settings.start == "map"
        return Batching(network, self.layer, self.session.device, plan.batch_size, whole)

    @property
    def backward(self) -> BackwardPass:
        """Return the way back from its places."""
        network, topk = self.session.network, self.session.run.topk
        return BackwardPass(network, self.layer, self.method, self.settings, self.top, topk)

    @property
    def file(self) -> ProjectedFile:
        return ProjectedFile(self.session.run.projected(self.layer.alias))

    @property
    def settings(self) -> ProjectPlan:
        return self.session.plan.project

    @property
    def group(self) -> str:
        return group_of(self.method, self.settings)

    @property
    def record(self) -> Record:
        return {
            "method": self.method,
            "start": self.settings.start,
            "lrn": self.settings.lrn,
            "topk": self.source,
            "batch_size": self.session.plan.batch_size,
        }

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the layer's projections: C, k, h, w."""
        size = self.batching.size
        canvas = size if self.batching.whole else self.layer.field.box(0, 0).tile(size).size
        return self.layer.channels, self.top.places.image.shape[1], *canvas

    @property
    def room(self) -> Room:
        """Return what the projections that are not there yet will take."""
        count = len(set(self.asked) - set(self.done)) * self.shape[1]
        return projections_room(count, self.shape[2:])

    @property
    def block(self) -> int:
        """Return the number of channels that are computed together."""
        return max(1, _BLOCK_BYTES // (int(np.prod(self.shape[1:])) * 3 * 2))

    @property
    def done(self) -> list[int]:
        """Return the channels in the file; raise `UsageError` if it is of another plan."""
        groups = self.file.methods()
        for group, held in groups.items():
            if held.get("topk") != self.source:
                raise UsageError(
                    f"{self.file.path} holds {group} of another plan: its places are those of an "
                    "earlier topk.h5; delete it or choose another --run"
                )
            wanted = self.record
            if group == self.group and any(held.get(key) != wanted[key] for key in wanted):
                raise UsageError(
                    f"{self.file.path} holds {group} of another plan: "
                    f"{differences(held, wanted)}; delete it or choose another --run"
                )
        if self.group not in groups:
            return []
        units: list[int] = np.flatnonzero(self.file.done(self.group)).tolist()
        return units

    @property
    def described(self) -> Record:
        return {**super().described, "batch": [PIXELS[self.session.device.type], PASS, self.block]}

    def publish(self) -> None:
        """Put the finished blocks into the file; raise `CnnvisError` if one has gone."""
        parts = self.parts
        blocks = Blocks(parts, 1)
        if not set(self.asked) <= {*self.done, *blocks.units()}:
            raise CnnvisError(f"{self.file.path}: a part has been removed meanwhile; run again")
        added = {self.group: Projected(self.record, self.shape, by_channel(blocks))}
        self.file.publish(self.session.header(self.layer), added)
        parts.clear()

    def compute(self, units: Sequence[int], read: ReadImage, emit: Emit) -> Arrays:
        """Return a block of channels: projection (n, k, h, w, 3) scaled to 1, and scale (n, k)."""
        channels = list(units)
        projection = np.zeros((len(channels), *self.shape[1:], 3), np.float16)
        scale = np.where(self.top.places.image[channels] < 0, np.nan, 0).astype(np.float32)
        for slots, whole in self.batching.batches(StoredPlaces.of(self.top, channels)):
            frames = self.backward.project(slots, whole, read)
            largest = np.abs(frames).max(axis=(1, 2, 3))
            frames /= np.where(largest > 0, largest, 1)[:, None, None, None]
            at = np.searchsorted(channels, slots.channel), slots.rank
            projection[at], scale[at] = frames, largest
            emit(Made(len(slots)))
        return {"projection": projection, "scale": scale, "unit": np.array(channels, np.int32)}


def by_channel(
    blocks: Iterable[Arrays],
) -> Iterator[tuple[int, NDArray[np.float16], NDArray[np.float32]]]:
    for arrays in blocks:
        channels = arrays["unit"].tolist()
        yield from zip(channels, arrays["projection"], arrays["scale"], strict=True)
