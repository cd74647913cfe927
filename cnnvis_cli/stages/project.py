"""`cnnvis project`: stored activations go back through the network to the pixels behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.dataset.decode import Pixels
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.backward import RULES, rectify
from cnnvis_cli.nouns import Box, Layer, Size, Unit
from cnnvis_cli.plan import Plan
from cnnvis_cli.stages.blocks import Blocks
from cnnvis_cli.stages.images import image_reader
from cnnvis_cli.stages.session import Session
from cnnvis_cli.store.files import LayerTopK, ProjectedFile, TopKFile, box_of
from cnnvis_cli.store.parts import Arrays, Parts
from cnnvis_cli.store.run import Record, differences

BATCH = 32  # projections at a time; the default
# Of a recomputed activation, relative to the largest of its layer, by the arithmetic of topk:
# TF32 keeps 10 binary places, bfloat16 7, and errors add up over layers.
TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bf16": 0.1}
_PART = 1 << 27  # bytes of projections in a part


def check_methods(plan: Plan) -> None:
    """Raise `UsageError` for a method that does not exist."""
    for method in plan.project.method:
        RULES[method]


def project(session: Session) -> None:
    """Project the stored places of the chosen units, for every chosen layer and method."""
    read = image_reader(session)
    held, source = TopKFile(session.run.topk).layers(), file_digest(session.run.topk)
    for layer in session.layers:
        if not session.plan.layer and layer.alias not in held:
            continue
        for method in session.plan.project.method:
            top = TopKFile(session.run.topk).layer(layer.alias)
            projections = Projections(session, layer, method, top, read, source)
            if projections.pending:
                with session.timed("project"):
                    projections.run()
            done = int(projections.file.done(method).sum())
            session.report.result(f"{projections.file.path}: {method}, {done} units")


@dataclass(frozen=True)
class Slot:
    """One stored place: its row in the arrays, and the window that it is projected through."""

    channel: int
    rank: int
    image: int
    place: tuple[int, int]  # row, column in the layer's map
    activation: float
    box: Box


@dataclass(frozen=True)
class Projections:
    """The projections of one layer by one method."""

    session: Session
    layer: Layer
    method: str
    top: LayerTopK
    read: Callable[[int], Pixels]
    source: str  # digest of topk.h5

    @property
    def file(self) -> ProjectedFile:
        return ProjectedFile(self.session.run.projected(self.layer.alias))

    @property
    def record(self) -> Record:
        size = self.session.plan.batch_size or BATCH
        return {"method": self.method, "topk": self.source, "batch_size": size}

    @property
    def pending(self) -> list[int]:
        """Channels that are not in the file yet; raises `UsageError` if it is of another plan."""
        asked = self.session.units(self.layer)
        for method, held in self.file.methods().items():
            wanted = {**self.record, "method": method}
            if held["topk"] != self.source or (method == self.method and held != wanted):
                raise UsageError(
                    f"{self.file.path} holds {method} of another plan: "
                    f"{differences(held, wanted)}; delete it or choose another --run"
                )
        if self.method not in self.file.methods():
            return list(asked)
        return sorted(set(asked) - set(np.flatnonzero(self.file.done(self.method)).tolist()))

    def run(self) -> None:
        """Project every pending channel, part by part, then publish them together."""
        k = self.top.places.image.shape[1]
        height, width = self.layer.field.size
        size = max(1, _PART // (k * height * width * 3 * 4))
        plan = digest(
            {**self.session.identity, **self.record, "layer": self.layer.alias, "block": size}
        )
        name = f"{self.layer.alias}-{self.method}-{plan}"
        blocks = Blocks(Parts(self.session.run.parts("projected", name), plan), size)
        what = f"project {self.layer.alias} {self.method}"
        blocks.fill(self.pending, self._project, self.session.report, what)
        shape = (self.layer.channels, k, height, width)
        added = {self.method: (self.record, _by_channel(blocks))}
        self.file.publish(self.session.header(self.layer), shape, added)
        blocks.parts.clear()

    def _project(self, channels: list[int]) -> Arrays:
        """A block of channels: projection (n, k, h, w, 3) scaled to 1, and scale (n, k)."""
        k = self.top.places.image.shape[1]
        projection = np.zeros((len(channels), k, *self.layer.field.size, 3), np.float32)
        row = {channel: i for i, channel in enumerate(channels)}
        size = self.record["batch_size"]
        for slots in self._alike(channels):
            for first in range(0, len(slots), size):
                self.session.report.breathe()
                batch = slots[first : first + size]
                for slot, pixels in zip(batch, self._back(batch), strict=True):
                    _place(projection[row[slot.channel], slot.rank], pixels, slot.box, self._size)
        scale = np.abs(projection).max(axis=(2, 3, 4))
        scaled = projection / np.where(scale > 0, scale, 1)[..., None, None, None]
        scale[self.top.places.image[channels] < 0] = np.nan
        unit = np.array(channels, np.int32)
        return {"projection": scaled.astype(np.float16), "scale": scale, "unit": unit}

    @property
    def _size(self) -> Size:
        return self.session.network.size

    def _alike(self, channels: list[int]) -> Iterator[list[Slot]]:
        """The places of these channels, in groups whose windows meet the border alike.

        Within a group one pass serves all: the same pixels are padding.
        """
        groups: dict[tuple[int, ...], list[Slot]] = defaultdict(list)
        places = self.top.places
        for channel in channels:
            for rank in np.flatnonzero(places.image[channel] >= 0).tolist():
                at = (channel, rank)
                slot = Slot(
                    channel,
                    rank,
                    int(places.image[at]),
                    (int(places.row[at]), int(places.column[at])),
                    float(places.activation[at]),
                    box_of(self.top.box[at]),
                )
                groups[_contact(slot.box, self._size)].append(slot)
        yield from groups.values()

    def _back(self, slots: list[Slot]) -> list[NDArray[np.float32]]:
        """Project a group of places: (h, w, 3) for each, its window clipped to the image.

        Raises `CnnvisError` where the network does not give the stored activation again.
        """
        network, layer = self.session.network, self.layer
        window = network.window(layer, slots[0].box)
        whole = window == Box.whole(self._size)
        boxes = [window if whole else slot.box.clip(self._size) for slot in slots]
        crops = [self.read(s.image)[_inside(box)] for s, box in zip(slots, boxes, strict=True)]
        x = network.centre(torch.from_numpy(np.stack(crops))).requires_grad_()
        with rectify(self.method):
            output, origin = network.values(layer, window, x)
        value = self._values(output, slots, origin, whole)
        self._compare(value.detach(), slots)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        pixels = gradient.permute(0, 2, 3, 1).cpu().numpy()
        if not whole:
            return list(pixels)
        return [p[_inside(s.box.clip(self._size))] for p, s in zip(pixels, slots, strict=True)]

    def _values(self, output: Tensor, slots: list[Slot], origin: Size, whole: bool) -> Tensor:
        """Each slot's own activation: (B,)."""
        index = torch.arange(len(slots))
        channels = torch.tensor([slot.channel for slot in slots])
        first = slots[0].place
        places = [slot.place if whole else first for slot in slots]
        rows = torch.tensor([place[0] - origin[0] for place in places])
        columns = torch.tensor([place[1] - origin[1] for place in places])
        return output[index, channels, rows, columns]

    def _compare(self, value: Tensor, slots: list[Slot]) -> None:
        stored = np.array([slot.activation for slot in slots])
        scale = float(np.nanmax(np.abs(self.top.places.activation)))
        allowed = TOLERANCE[self.top.precision] * scale
        wrong = ~(np.abs(value.cpu().numpy() - stored) <= allowed)  # NaN is wrong too
        if wrong.any():
            slot = slots[int(wrong.argmax())]
            path = TopKFile(self.session.run.topk).images().name(slot.image)
            unit, now = Unit(self.layer.alias, slot.channel), float(value[int(wrong.argmax())])
            raise CnnvisError(
                f"{path}: {unit} is {now:.6g} there now and {slot.activation:.6g} in topk.h5; "
                "the image has changed, so run topk again in another --run"
            )


def _by_channel(
    blocks: Blocks,
) -> Iterator[tuple[int, NDArray[np.float16], NDArray[np.float32]]]:
    for arrays in blocks:
        channels = arrays["unit"].tolist()
        yield from zip(channels, arrays["projection"], arrays["scale"], strict=True)


def _contact(box: Box, size: Size) -> tuple[int, ...]:
    """How a window meets the image's border: what is cut off each side, and what it touches."""
    clipped, whole = box.clip(size), Box.whole(size)
    cut = tuple(abs(a - b) for a, b in zip(box, clipped, strict=True))
    return (*cut, *(int(a == b) for a, b in zip(clipped, whole, strict=True)))


def _inside(box: Box) -> tuple[slice, slice]:
    return slice(box.top, box.bottom), slice(box.left, box.right)


def _place(frame: NDArray[np.float32], pixels: NDArray[np.float32], box: Box, size: Size) -> None:
    """Put the pixels of a clipped window where they belong in the whole window."""
    clipped = box.clip(size)
    top, left = clipped.top - box.top, clipped.left - box.left
    height, width = clipped.size
    frame[top : top + height, left : left + width] = pixels
