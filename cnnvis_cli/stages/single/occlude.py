"""`cnnvis occlude`: which parts of an image a prediction depends on.

Zeiler & Fergus 2013, section 4.2 and Fig. 7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from cnnvis_cli.arrays import Arrays, Floats, Pixels
from cnnvis_cli.dataset.decode import Unreadable
from cnnvis_cli.digests import digest
from cnnvis_cli.engine import Emit, Pool, TaskDone, WorkerSlot, run_tasks
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.occlusion import Heat, Panels, inks_of, legend_of, occlusion_sheet
from cnnvis_cli.figure.sheets import Caption, Pane
from cnnvis_cli.figure.tone import TONE_RULES, as_photograph, toned
from cnnvis_cli.figure.words import four_digits, percent, percent_between
from cnnvis_cli.network.backward import rectify, way_back
from cnnvis_cli.network.occlusion import Occluder, Squares
from cnnvis_cli.nouns import Box, Layer, Size, Unit
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.layer_job import Portable
from cnnvis_cli.stages.common.network_loading import network_on
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import TopImages, projected_of
from cnnvis_cli.stages.figures.render import Figure, draw_figure
from cnnvis_cli.stages.single.inputs import (
    InputImage,
    InputImages,
    batch_of,
    class_name,
    find_class,
    noted_images,
    photographs,
)
from cnnvis_cli.store.occluded import OccludedFile
from cnnvis_cli.store.run import Record, Run

# Of an input's side. The paper does not give the size and distance of its squares; a fifth
# covers an eye or a wheel in most photographs, and 20 positions per side show where.
SIZE, STRIDE = 1 / 5, 1 / 20
POSITIONS_PER_PASS = {"cpu": 64, "cuda": 256}  # positions per pass: more gain nothing there
SHOWN_IMAGES = 9  # number of the unit's strongest images
STACK_GAP = 4  # pixels between the sheets of several images
LARGE = 224  # preferred side of a panel in pixels


def occlude(session: Session) -> None:
    """Cover every image, place after place; existing results are left as they are."""
    plan = session.plan
    takes = plan.takes(0)
    _share(session, list(filter(takes, range(len(noted_images(session, plan.occlude.images))))))
    session = session.here()
    studies = [OcclusionJob.of(session, layer) for layer in asked_layers(session)]
    found: list[list[Occlusion]] = [[] for _ in studies]
    for image in photographs(session, plan.occlude.images, takes):
        for study, own in zip(studies, found, strict=True):
            for path in study.files(image):
                session.report.result(str(path))
            if plan.occlude.together:
                own.append(study.result(image))
    for several in found:
        for path in draw_figure(session, _together(several)) if several else ():
            session.report.result(str(path))


def _together(several: Sequence[Occlusion]) -> Figure:
    """Return the figures of several images below each other: Zeiler & Fergus 2013, Fig. 7."""
    figures = [each.figure() for each in several]
    layer = several[0].study.layer.alias
    title = f"{several[0].session.network.name} · occlusion of {len(several)} images · {layer}"
    record: Record = {"layer": layer, "images": [figure.record for figure in figures]}

    def draw() -> Canvas:
        return Canvas.stacked([figure.draw() for figure in figures], STACK_GAP)

    return Figure("occlude", f"together_{layer}", title, record, draw)


def _share(session: Session, numbers: Sequence[int]) -> None:
    """Let several processes compute the numbers, if there are several images."""
    if len(numbers) < 2:
        return
    pool: Pool = session.pool(_occlude_memory(session), gradients=True)
    if len(pool) < 2:
        return
    meter = session.report.meter("occlude", len(numbers), "images")

    def on_event(message: Any) -> None:
        session.on_event(message)
        if isinstance(message, TaskDone):
            meter.add(1)

    work = OccludeJob(_there(session), session)
    run_tasks(partial(occlude_images, work), pool, numbers, on_event, work.describe)
    meter.end()


def _there(session: Session) -> Plan:
    """Return the plan for processes that may run in another folder."""
    settings = session.plan.occlude
    images = tuple(str(Path(image).absolute()) for image in settings.images)
    return replace(session.portable_plan, occlude=replace(settings, images=images))


def _occlude_memory(session: Session) -> int:
    """Return a process's approximate memory on a CPU: the maps of a batch, twice, and itself."""
    maps = sum(layer.channels * layer.map[0] * layer.map[1] for layer in session.network.layers)
    return 2 * 4 * maps * POSITIONS_PER_PASS["cpu"] + (300 << 20)


@dataclass(frozen=True)
class OccludeJob(Portable):
    """The data that every process needs; a copy in another process loads the network itself."""

    stays: ClassVar[tuple[str, ...]] = ("session",)
    plan: Plan
    session: Session | None

    def describe(self, number: int) -> str:
        """Return an image's name for messages."""
        return InputImages(self.plan.occlude.images, Run(self.plan.folder)).path(number)

    def on(self, device: torch.device) -> Session:
        """Return the session of a process on its device."""
        network = network_on(device, self.plan, self.session.network if self.session else None)
        return Session(self.plan, network, Run(self.plan.folder), Report(quiet=True))


def occlude_images(
    work: OccludeJob, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit
) -> None:
    """Compute and store the numbers of the images of these numbers, if they are missing."""
    session = work.on(worker_slot.device)
    studies = [OcclusionJob.of(session, layer) for layer in asked_layers(session)]
    album = InputImages(work.plan.occlude.images, session.run)
    for number in numbers:
        with suppress(Unreadable):  # reported when the figures are drawn
            image = album.read(number, session.network.preprocessing)
            for study in studies:
                study.keep(image, emit)
        emit(TaskDone(number))


def asked_layers(session: Session) -> tuple[Layer, ...]:
    """Return the requested layers, or the last convolution with a map before the classifier."""
    network = session.network
    if session.plan.layer:
        return session.layers
    maps = [la for la in network.layers[:-1] if la.kind == "conv" and max(la.map) > 1]
    if not maps:
        raise UsageError(f"{network.name} has no convolution before its last layer; give a --layer")
    return (maps[-1],)


def squares_of(plan: Plan, image: Size) -> Squares:
    """Return the plan's squares over an input; raise `UsageError` if they are too large."""
    shorter = min(image)
    size = max(1, round(shorter * SIZE)) if plan.occlude.size is None else plan.occlude.size
    stride = max(1, round(shorter * STRIDE)) if plan.occlude.stride is None else plan.occlude.stride
    for name, length in (("--size", size), ("--stride", stride)):
        if length > shorter:
            raise UsageError(
                f"{name} {length}: more than the network's input has, {image[0]}x{image[1]} pixels"
            )
    return Squares.over(image, size, stride)


@dataclass(frozen=True)
class OcclusionJob:
    """The squares, layer and class for all images of a command."""

    session: Session
    layer: Layer
    squares: Squares
    target: int | None  # the class; None: each image's predicted class
    method: str = "deconv"  # of the projection of the layer's map

    @classmethod
    def of(cls, session: Session, layer: Layer) -> OcclusionJob:
        """Return the study; raise `UsageError` for impossible squares, class or layer."""
        network, plan = session.network, session.plan
        squares = squares_of(plan, network.size)
        study = cls(session, layer, squares, None)
        target = plan.occlude.target
        label = None if target is None else find_class(network, study.classes, target)
        asked = plan.occlude.method
        method, note = way_back(network, [layer], asked or "deconv", asked is not None)
        if note is not None:
            session.report.once(note)
        return cls(session, layer, squares, label, method)

    @property
    def size(self) -> int:
        """The number of positions per pass."""
        device = self.session.device.type
        return self.session.plan.batch_size or POSITIONS_PER_PASS.get(
            device, POSITIONS_PER_PASS["cpu"]
        )

    @cached_property
    def occluder(self) -> Occluder:
        return Occluder.of(self.session.network, self.layer, self.squares, self.size)

    @cached_property
    def classes(self) -> int:
        network = self.session.network
        blank = torch.zeros(1, 3, *network.size, device=network.device)
        return len(Occluder(network, self.layer, self.squares, 1, None).unoccluded(blank)[1])

    def name(self, image: InputImage) -> str:
        return f"{image.name}_{self.layer.alias}"

    def record(self, image: InputImage) -> Record:
        """Return what decides the numbers of an image."""
        return {
            **self.session.identity,
            "image": image.name,
            "pixels": image.digest,
            "layer": self.layer.alias,
            "target": self.target,
            "size": self.squares.size,
            "stride": self.squares.stride,
            "method": self.method,
        }

    def files(self, image: InputImage) -> Iterator[Path]:
        """Yield the numbers and the figure of an image, made if they do not exist."""
        file = self._file(image)
        if file.key() != digest(self.record(image)):
            if file.path.exists():
                self.session.report.note(
                    f"{file.path}: is of another image or other settings; made again"
                )
            with self.session.timed("occlude"):
                self.keep(image)
        yield file.path
        yield from draw_figure(self.session, self.result(image).figure())

    def result(self, image: InputImage) -> Occlusion:
        """Return the stored numbers of an image."""
        return Occlusion(self, image, *self._file(image).read())

    def _file(self, image: InputImage) -> OccludedFile:
        return OccludedFile(self.session.run.occluded(self.name(image)))

    def keep(self, image: InputImage, emit: Emit = lambda _: None) -> None:
        """Compute the numbers of an image and publish them, unless they exist."""
        file, key = self._file(image), digest(self.record(image))
        if file.key() != key:
            record, arrays = self.compute(image, emit)
            file.publish(self.session.header(self.layer), {**record, "key": key}, arrays)

    def compute(self, image: InputImage, emit: Emit = lambda _: None) -> tuple[Record, Arrays]:
        """Return the file of an image: attributes and arrays."""
        network = self.session.network
        centred = batch_of(network, [image])
        totals, chances = self.occluder.unoccluded(centred)
        channel, predicted = int(totals.argmax()), int(chances.argmax())
        label = predicted if self.target is None else self.target
        meter = self.session.report.meter(f"occlude {image.name}", len(self.squares), "positions")

        def told(done: int) -> None:
            self.session.report.check_stop()
            emit(done)
            meter.add(done)

        left = self.occluder.run(centred, channel, label, told)
        meter.end()
        projection = self.project(centred, channel)
        scale = float(np.abs(projection).max())
        record = {
            "image": image.name,
            "channel": channel,
            "class": label,
            "class_name": class_name(network, label),
            "size": self.squares.size,
            "stride": self.squares.stride,
            "method": self.method,
            "whole_total": totals[channel],
            "whole_probability": chances[label],
            "whole_predicted": predicted,
            "projection_scale": scale,
        }
        arrays: Arrays = {
            "total": left.total,
            "probability": left.probability,
            "predicted": left.predicted,
            "top": self.squares.top,
            "left": self.squares.left,
            "projection": projection / (scale or 1),
        }
        return record, arrays

    def project(self, centred: torch.Tensor, channel: int) -> Floats:
        """Return a channel's whole rectified map, projected back to the pixels: (h, w, 3).

        Zeiler & Fergus 2013, section 2.1: all other activations of the layer are set to zero.
        """
        network, method = self.session.network, self.method
        pixels = centred.clone().requires_grad_()
        with rectify(method):
            output, _ = network.values(self.layer, Box.whole(network.size), pixels)
        signal = torch.zeros_like(output)
        signal[:, channel] = output.detach()[:, channel].clamp(min=0)
        (gradient,) = torch.autograd.grad(output, pixels, signal)
        return np.asarray(gradient[0].permute(1, 2, 0).cpu().numpy())


@dataclass(frozen=True)
class Occlusion:
    """An image's numbers, for drawing."""

    study: OcclusionJob
    image: InputImage
    record: Record
    arrays: Arrays

    @property
    def session(self) -> Session:
        return self.study.session

    @property
    def channel(self) -> int:
        return int(self.record["channel"])

    @cached_property
    def top(self) -> TopImages | None:
        """The unit's strongest images, if the run has their projections."""
        session, layer = self.session, self.study.layer
        if not session.run.projected(layer.alias).is_file() or not session.run.topk.is_file():
            return None
        try:
            found = projected_of(session, layer)
            if self.channel not in found.held or found.dead(self.channel):
                return None
            found.patches(self.channel)
        except CnnvisError as error:
            session.report.note(f"{error}; the figure lacks the strongest images")
            return None
        return found

    def figure(self) -> Figure:
        source = {"key": str(self.record["key"]), "image": self.image.name}
        top = self.top.record if self.top else None
        record = {**source, "layer": self.study.layer.alias, "channel": self.channel, "top": top}
        record["colours from"] = "0" if self.from_zero else "the lowest value"
        return Figure("occlude", self.study.name(self.image), self.title, record, self.draw)

    @property
    def title(self) -> str:
        unit = Unit(self.study.layer.alias, self.channel)
        return f"{self.session.network.name} · {self.image.name} · {self.called} · {unit}"

    @property
    def called(self) -> str:
        return str(self.record["class_name"])

    def draw(self) -> Canvas:
        fit = max(1, round(LARGE / self.image.pixels.shape[1]))  # small inputs are enlarged
        plan = self.session.plan.figure
        scale, caption = (plan.scale or 1) * fit, Caption(self.title, self.note(), plan.column)
        return occlusion_sheet(self.panels(), caption, scale)

    @property
    def from_zero(self) -> bool:
        """Whether colour bars begin at 0 rather than at the lowest value."""
        return self.session.plan.occlude.zero

    def panels(self) -> Panels:
        network, arrays = self.session.network, self.arrays
        whole = int(self.record["whole_predicted"])
        inks = inks_of(arrays["predicted"], whole)
        (projection,) = self._toned(arrays["projection"][None, None])[0]
        chances = arrays["probability"]
        rows, columns = self.study.squares.nearest(network.size)
        size = self.study.squares.size
        square = as_photograph(np.zeros((size, size, 3), np.float32), network.preprocessing.mean)
        return Panels(
            photograph=self.image.pixels,
            square=square,
            said=self._said(whole),
            total=Heat(
                f"map {self.channel}, summed",
                arrays["total"],
                float(self.record["whole_total"]),
                four_digits,
                self.from_zero,
            ),
            projection=projection,
            projected=f"map {self.channel}, projected",
            top=self._strongest(),
            probability=Heat(
                f"probability of {self.called}",
                arrays["probability"],
                float(self.record["whole_probability"]),
                percent_between(float(chances.min()), float(chances.max())),
                self.from_zero,
            ),
            predicted=arrays["predicted"],
            inks=inks,
            legend=legend_of(arrays["predicted"], inks, partial(class_name, network)),
            rows=rows,
            columns=columns,
        )

    def _said(self, whole: int) -> tuple[str, ...]:
        """Return the predicted class of the whole image, and the description of the square."""
        name, squares = class_name(self.session.network, whole), self.study.squares
        taken = f"predicted {name}"
        if whole == self.record["class"]:  # its number first: a long name is cut
            taken = f"predicted {percent(float(self.record['whole_probability']))} {name}"
        side = f"{squares.size}x{squares.size}"
        return taken, f"square of {side} pixels, {squares.stride} apart:"

    def _toned(self, tiles: Floats) -> Pixels:
        """Return projections (1, n, h, w, 3) toned by the plan's rule."""
        rule, mean = self.session.plan.figure.tone, self.session.network.preprocessing.mean
        return toned(tiles.astype(np.float32), rule, mean)

    def _strongest(self) -> tuple[Pane, ...]:
        """Return the unit's strongest images: their projections and patches."""
        if self.top is None:
            return ()
        projections = self._toned(self.top.projections([self.channel]))[0]
        return (
            Pane(projections, title=f"strongest images, {self.top.method}"),
            Pane(self.top.patches(self.channel), title="their patches"),
        )

    def note(self) -> str:
        """Return how to read the figure."""
        plan, squares = self.session.plan, self.study.squares
        grid = "{}x{}".format(*squares.shape)
        first = "0" if self.from_zero else "its lowest"
        said = [
            f"A square of the mean colour, {squares.size} pixels wide, covers one place after the "
            f"other, {grid} of them {squares.stride} pixels apart; panels (b), (d) and (e) show "
            "at each place the result with the square centred there.",
            f"(b) and (c): of {self.study.layer.alias}, the channel whose rectified map has the "
            f"largest sum for the whole image; (b) that sum, (c) the map by {self.record['method']}"
            f", {TONE_RULES[plan.figure.tone]}.",
            f"Colours go from black at {first} to pale yellow at a panel's largest value.",
        ]
        return " ".join(said)
