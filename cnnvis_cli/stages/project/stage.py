"""`cnnvis project`: stored activations, projected back through the network to the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.engine import Cluster, Emit, TaskDone, WorkerSlot, ahead, limit_to_memory, run_tasks
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.backward import check_rules, rectify
from cnnvis_cli.nouns import Box, Layer, Size, Unit
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan, ProjectPlan
from cnnvis_cli.stages.common.blocks import Block, Blocks
from cnnvis_cli.stages.common.dataset_images import Read, gather
from cnnvis_cli.stages.common.session import Session, network_on
from cnnvis_cli.store.parts import Arrays, Parts
from cnnvis_cli.store.projected import Projected, ProjectedFile
from cnnvis_cli.store.run import Record, Run, differences
from cnnvis_cli.store.topk_file import LayerTopK, TopKFile, box_of

# Pixels of a batch's windows: on a CPU about 20 inputs of 224x224, or thousands of small ones.
PIXELS = {"cpu": 1 << 20, "cuda": 1 << 24}
# Starting a pass costs about half as much as the whole input in a large batch (AlexNet,
# 0.3 to 0.8 for conv1 to conv5): separate windows must save this.
PASS = 0.5
# Tolerance of a recomputed activation, relative to the largest of its layer, by the arithmetic of
# topk: TF32 keeps 10 binary places, bfloat16 7, and errors add up over layers.
TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "bf16": 0.1}
_BLOCK = 1 << 28  # bytes of projections that are computed, stored and lost together


def check_ways_back(session: Session) -> None:
    """Raise `UsageError` if a method has no rule for a function of the network."""
    for method in session.plan.project.method:
        check_rules(session.network, session.layers, method)


def group_of(method: str, settings: ProjectPlan) -> str:
    """Return the group of the file for a method's projections with these settings."""
    words = {"map": settings.start == "map", "lrn": settings.lrn == "pass"}
    return "-".join([method, *(word for word, asked in words.items() if asked)])


def project(session: Session) -> None:
    """Project the stored places of the chosen units, for every chosen layer and method."""
    asked = _asked(session)
    todo = [projections for projections in asked if projections.pending]
    for method in session.plan.project.method:
        layers = [projections.layer for projections in todo if projections.method == method]
        if layers:
            check_rules(session.network, layers, method)
    if todo:
        session.announce("project", dict(each.job for each in todo))
        with session.timed("project"):
            _do(session, todo)
    if session.plan.shard is not None:
        session.report.result(
            f"{session.run.path}: shard {session.plan.shard} is done; join the shards with "
            "cnnvis merge"
        )
        return
    for projections in asked:
        group, file = projections.group, projections.file
        projections.parts.clear()  # possible remains of a killed process
        session.report.result(f"{file.path}: {group}, {int(file.done(group).sum())} units")


def _do(session: Session, todo: Sequence[Projections]) -> None:
    """Make the missing blocks, and publish each layer's when the last one is done."""
    jobs = tuple(
        ProjectTask(number, *block) for number, each in enumerate(todo) for block in each.missing()
    )
    pool = session.pool(_need(session), gradients=True)
    pieces = [Piece(each.layer.alias, each.method, each.parts) for each in todo]
    tops = {each.layer.alias: each.top for each in todo}
    work = ProjectJob(session.portable_plan, tuple(pieces), jobs, tops, todo[0].source, session)
    if not isinstance(pool, Cluster) and pool[0].device.type == "cpu" and not pool[0].fresh:
        work = replace(work, read=gather(session, work.images(jobs)))
    for each in todo:
        each.parts.describe(each.described)
    on_event = _Progress(session, todo, work)
    run_tasks(partial(project_blocks, work), pool, range(len(jobs)), on_event, work.describe)
    on_event.settle()


class ProjectTask(NamedTuple):
    """A block of channels of one of the pieces, and the part that stores it."""

    piece: int
    part: str
    units: tuple[int, ...]


class Piece(NamedTuple):
    """A layer and a method, and where its blocks are stored."""

    alias: str
    method: str
    parts: Parts


class Made(NamedTuple):
    """A message: so many places have been projected."""

    places: int


@dataclass(frozen=True)
class ProjectJob:
    """The data that every process needs; a copy in another process loads the network itself."""

    plan: Plan
    pieces: tuple[Piece, ...]
    jobs: tuple[ProjectTask, ...]
    tops: dict[str, LayerTopK]  # by layer
    source: str  # digest of topk.h5
    session: Session | None
    read: Read | None = None  # for images that are already decoded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None, "read": None}

    def describe(self, number: int) -> str:
        """Return a job's name for messages."""
        piece, units = self.pieces[self.jobs[number].piece], self.jobs[number].units
        return f"{piece.method} of {piece.alias} units {units[0]} to {units[-1]}"

    def on(self, device: torch.device) -> list[Projections]:
        """Return the pieces, for computing on a device."""
        network = network_on(device, self.plan, self.session.network if self.session else None)
        quiet = Report(quiet=True)
        session = self.session or Session(self.plan, network, Run(self.plan.folder), quiet)
        session = replace(session, network=network)
        layers = {alias: network.choose((alias,))[0] for alias in self.tops}
        return [
            Projections(session, layers[alias], method, self.tops[alias], self.source)
            for alias, method, _ in self.pieces
        ]

    def images(self, jobs: Sequence[ProjectTask]) -> NDArray[np.int64]:
        """Return the images that some jobs need, sorted."""
        tops = [(self.tops[self.pieces[job.piece].alias], list(job.units)) for job in jobs]
        found = [top.places.image[units].ravel() for top, units in tops] or [np.empty(0, np.int64)]
        images = np.unique(np.concatenate(found))
        return images[images >= 0]


def project_blocks(
    work: ProjectJob, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit
) -> None:
    """Make the blocks of these numbers, and store them as parts."""
    pieces = work.on(worker_slot.device)

    def readers() -> Iterator[tuple[int, Read]]:
        for number in numbers:
            images = work.images([work.jobs[number]])
            yield number, work.read or gather(pieces[0].session, images)

    for number, read in ahead(readers(), 1 if worker_slot.device.type == "cuda" else 0):
        job = work.jobs[number]
        arrays = pieces[job.piece].compute(job.units, read, emit)
        work.pieces[job.piece].parts[job.part] = arrays
        emit(TaskDone(number))


class _Progress:
    """Receives the processes' messages, and publishes a layer's projections when all are done."""

    def __init__(self, session: Session, todo: Sequence[Projections], work: ProjectJob) -> None:
        self._session, self._todo, self._work = session, todo, work
        self._left = Counter(job.piece for job in work.jobs)
        count = sum(len(Slots.of(todo[job.piece].top, job.units)) for job in work.jobs)
        self._meter = session.report.meter("project", count, "places")

    def __call__(self, message: Any) -> None:
        self._session.on_event(message)
        if isinstance(message, Made):
            self._meter.add(message.places)
        if isinstance(message, TaskDone):
            piece = self._work.jobs[message.number].piece
            self._left[piece] -= 1
            if not self._left[piece]:
                self._publish(piece)

    def settle(self) -> None:
        """Publish results that needed no more work."""
        self._meter.end()
        for piece in range(len(self._todo)):
            if piece not in self._left:
                self._publish(piece)

    def _publish(self, piece: int) -> None:
        if self._session.plan.shard is None:
            self._todo[piece].publish()


def _need(session: Session) -> int:
    """Return a process's approximate memory on a CPU: all maps of a batch, twice, and a block."""
    height, width = session.network.size
    maps = sum(layer.channels * layer.map[0] * layer.map[1] for layer in session.network.layers)
    return 2 * 4 * maps * max(1, PIXELS["cpu"] // (height * width)) + 2 * _BLOCK


def _asked(session: Session) -> list[Projections]:
    """Return the plan's projections; without --layer those of the layers in topk.h5.

    Raise `UsageError` if there are none.
    """
    file = TopKFile(session.run.topk)
    if file.identity() is None:
        raise UsageError(f"{session.run.path} has no topk.h5 yet; run cnnvis topk first")
    held, source = file.layers(), file_digest(session.run.topk)
    layers = [la for la in session.layers if session.plan.layer or la.alias in held]
    tops = {layer.alias: file.layer(layer.alias) for layer in layers}
    return [
        Projections(session, layer, method, tops[layer.alias], source)
        for layer in layers
        for method in session.plan.project.method
    ]


@dataclass(frozen=True)
class Slots:
    """Stored places, (n,) or (n, ...) of each."""

    channel: NDArray[Any]
    rank: NDArray[Any]
    image: NDArray[Any]
    place: NDArray[Any]  # row, column in the layer's map
    activation: NDArray[Any]
    box: NDArray[Any]  # the receptive field

    @classmethod
    def of(cls, top: LayerTopK, channels: Sequence[int]) -> Slots:
        """Return the slots of these channels that are not empty."""
        channels = list(channels)
        row, rank = np.nonzero(top.places.image[channels] >= 0)
        at, places = (np.asarray(channels)[row], rank), top.places
        place = np.stack([places.row[at], places.column[at]], axis=-1)
        return cls(*at, places.image[at], place, places.activation[at], top.box[at])

    def __len__(self) -> int:
        return len(self.channel)

    def __getitem__(self, chosen: Any) -> Slots:
        return Slots(*(values[chosen] for values in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Projections:
    """The projections of one layer by one method."""

    session: Session
    layer: Layer
    method: str
    top: LayerTopK
    source: str  # digest of topk.h5
    _known: dict[bytes, bool] = field(default_factory=dict)  # whether windows work, by contact

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
        """The shape of the layer's projections: C, k, h, w."""
        canvas = self._size if self.settings.start == "map" else self.layer.field.size
        return self.layer.channels, self.top.places.image.shape[1], *canvas

    @property
    def block(self) -> int:
        """The number of channels that are computed together."""
        return max(1, _BLOCK // (int(np.prod(self.shape[1:])) * 3 * 2))

    @property
    def done(self) -> list[int]:
        """The channels in the file; raise `UsageError` if it is of another plan."""
        groups = self.file.methods()
        for group, held in groups.items():
            wanted = self.record if group == self.group else {"topk": self.source}
            if any(held.get(key) != value for key, value in wanted.items()):
                raise UsageError(
                    f"{self.file.path} holds {group} of another plan: "
                    f"{differences(held, wanted)}; delete it or choose another --run"
                )
        if self.group not in groups:
            return []
        units: list[int] = np.flatnonzero(self.file.done(self.group)).tolist()
        return units

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return not set(self.session.units(self.layer)) <= set(self.done)

    @property
    def job(self) -> tuple[str, Record]:
        """For `cnnvis status`: the work to do, and where its results go."""
        alias, units = self.layer.alias, {*self.session.units(self.layer), *self.done}
        job = {"unit": "units", "total": len(units), "layer": alias, "group": self.group}
        return f"{alias} {self.group}", {**job, "parts": f"{alias}-{self.group}-*"}

    @property
    def described(self) -> Record:
        """Everything that decides the content of a block."""
        return {
            "identity": self.session.identity,
            "record": self.record,
            "layer": self.layer.alias,
            "group": self.group,
            "batch": [PIXELS[self.session.device.type], PASS, self.block],
        }

    @property
    def parts(self) -> Parts:
        """The folder of finished blocks until the layer is done."""
        plan = digest(self.described)
        name = f"{self.layer.alias}-{self.group}-{plan}"
        return Parts(self.session.run.parts("projected", name), plan)

    def missing(self) -> list[Block]:
        """Return the blocks of this shard that are not done."""
        blocks, takes = Blocks(self.parts, self.block), self.session.takes(self.layer)
        return blocks.missing(self.session.units(self.layer), self.done, takes)

    def publish(self) -> None:
        """Put the finished blocks into the file."""
        parts = self.parts
        added = {self.group: Projected(self.record, self.shape, by_channel(Blocks(parts, 1)))}
        self.file.publish(self.session.header(self.layer), added)
        parts.clear()

    def compute(self, units: Sequence[int], read: Read, emit: Emit) -> Arrays:
        """Return a block of channels: projection (n, k, h, w, 3) scaled to 1, and scale (n, k)."""
        channels = list(units)
        projection = np.zeros((len(channels), *self.shape[1:], 3), np.float16)
        scale = np.where(self.top.places.image[channels] < 0, np.nan, 0).astype(np.float32)
        for slots, whole in self._batches(Slots.of(self.top, channels)):
            frames = self._back(slots, whole, read)
            largest = np.abs(frames).max(axis=(1, 2, 3))
            frames /= np.where(largest > 0, largest, 1)[:, None, None, None]
            at = np.searchsorted(channels, slots.channel), slots.rank
            projection[at], scale[at] = frames, largest
            emit(Made(len(slots)))
        return {"projection": projection, "scale": scale, "unit": np.array(channels, np.int32)}

    @property
    def _size(self) -> Size:
        return self.session.network.size

    def _batches(self, slots: Slots) -> Iterator[tuple[Slots, bool]]:
        """Yield the slots in batches of one pass each, and whether that is on the whole input."""
        for group, whole in self._alike(slots):
            size = self.session.plan.batch_size or self._batch(group.box[0], whole)
            for first in range(0, len(group), size):
                yield group[first : first + size], whole

    def _batch(self, box: NDArray[np.int32], whole: bool) -> int:
        """How many windows like this one share a pass."""
        network, device = self.session.network, self.session.device
        height, width = self._size if whole else box_of(box).clip(self._size).size
        each = network.map_bytes(self.layer) * height * width // (self._size[0] * self._size[1])
        return limit_to_memory(max(1, PIXELS[device.type] // (height * width)), each, device)

    def _alike(self, slots: Slots) -> Iterator[tuple[Slots, bool]]:
        """Yield the slots in groups that can share a pass, and whether it is on the whole input.

        Windows that meet the image's border alike share one: the same pixels are padding. If
        separate windows would not save the cost of a pass, the whole input serves any of them.
        """
        contact = _contact(slots.box, self._size)
        kinds, first, kind = np.unique(contact, axis=0, return_index=True, return_inverse=True)
        count = np.bincount(kind.ravel(), minlength=len(kinds))
        on_whole = np.ones(len(kinds), np.bool_)
        for number, start in enumerate(first.tolist()):
            box = box_of(slots.box[start])
            on_whole[number] = not self._worth_it(box, int(count[number]))
        chosen = on_whole[kind.ravel()]
        if chosen.any():
            yield slots[chosen], True
        for number in np.flatnonzero(~on_whole).tolist():
            yield slots[kind.ravel() == number], False

    def _worth_it(self, box: Box, count: int) -> bool:
        """Return whether so many places can have a pass on their windows, and save time by it."""
        height, width = box.clip(self._size).size
        saved = count * (1 - height * width / (self._size[0] * self._size[1]))
        if self.settings.start == "map" or saved < PASS:
            return False
        contact = _contact(np.array([box]), self._size).tobytes()
        if contact not in self._known:
            window = self.session.network.window(self.layer, box)
            self._known[contact] = window != Box.whole(self._size)
        return self._known[contact]

    def _back(self, slots: Slots, whole: bool, read: Read) -> NDArray[np.float32]:
        """Project a batch of places: (n, h, w, 3), 0 outside the image.

        Raise `CnnvisError` if the network does not reproduce the stored activations.
        """
        network, size = self.session.network, self._size
        windows = [Box.whole(size) if whole else box_of(box).clip(size) for box in slots.box]
        found = zip(slots.image.tolist(), windows, strict=True)
        crops = np.stack([read(image)[_inside(window)] for image, window in found])
        x = network.centre(torch.from_numpy(crops)).requires_grad_()
        with rectify(self.method, normalised=self.settings.lrn == "derivative"):
            output, origin = network.values(self.layer, windows[0], x)
        signal = self._signal(output.detach(), slots, origin, whole)
        (gradient,) = torch.autograd.grad(output, x, signal)
        pixels = gradient.permute(0, 2, 3, 1).cpu().numpy()
        if self.settings.start == "map":
            return np.array(pixels)
        frames = np.zeros((len(slots), *self.shape[2:], 3), np.float32)
        boxes = map(box_of, slots.box)
        for frame, part, box, window in zip(frames, pixels, boxes, windows, strict=True):
            seen = box.clip(size)
            frame[_inside(_within(seen, box))] = part[_inside(_within(seen, window))]
        return frames

    def _signal(self, output: Tensor, slots: Slots, origin: Size, whole: bool) -> Tensor:
        """Return the signal at the layer's output: (B, C, h, w), 0 but in each slot's channel."""
        places = slots.place if whole else slots.place[:1]
        rows, columns = np.broadcast_to(places - np.array(origin), (len(slots), 2)).T
        chosen = np.stack([np.arange(len(slots)), slots.channel, rows, columns])
        at = torch.from_numpy(chosen).to(output.device).unbind()
        index, channels = at[:2]
        self._compare(output[at].cpu().numpy(), slots)
        signal = torch.zeros_like(output)
        if self.settings.start == "map":  # Zeiler & Fergus 2013, section 2.1
            signal[index, channels] = output[index, channels].clamp(min=0)
        else:
            signal[at] = 1
        return signal

    def _compare(self, value: NDArray[np.float32], slots: Slots) -> None:
        scale = float(np.nanmax(np.abs(self.top.places.activation)))
        allowed = TOLERANCE[self.top.precision] * scale
        wrong = ~(np.abs(value - slots.activation) <= allowed)  # NaN is wrong too
        if wrong.any():
            first = int(wrong.argmax())
            path = TopKFile(self.session.run.topk).images().name(int(slots.image[first]))
            unit = Unit(self.layer.alias, int(slots.channel[first]))
            raise CnnvisError(
                f"{path}: {unit} is {value[first]:.6g} there now and "
                f"{slots.activation[first]:.6g} in topk.h5; "
                "the image has changed, so run topk again in another --run"
            )


def by_channel(
    blocks: Iterable[Arrays],
) -> Iterator[tuple[int, NDArray[np.float16], NDArray[np.float32]]]:
    for arrays in blocks:
        channels = arrays["unit"].tolist()
        yield from zip(channels, arrays["projection"], arrays["scale"], strict=True)


def _contact(boxes: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return how windows meet the image's border: the crop on each side, and the contact.

    (n, 4) -> (n, 8)
    """
    low, high = np.zeros(2, boxes.dtype), np.array(size, boxes.dtype)
    clipped = np.hstack([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)])
    return np.hstack([boxes - clipped, clipped == np.hstack([low, high])])


def _inside(box: Box) -> tuple[slice, slice]:
    return slice(box.top, box.bottom), slice(box.left, box.right)


def _within(box: Box, frame: Box) -> Box:
    """Return a box in coordinates of another one."""
    return Box(
        box.top - frame.top, box.left - frame.left, box.bottom - frame.top, box.right - frame.left
    )
