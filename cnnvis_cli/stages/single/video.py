"""A video's activations as videos, and the leading unit of each layer over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats
from cnnvis_cli.dataset.video import Folder, Frame, Frames
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.engine import Aside, ahead, cores, in_order
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.activations import Heading
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.film import Film, read_comment
from cnnvis_cli.figure.grid import SCALE_RULES, Grid, Scale, finite
from cnnvis_cli.figure.live import Screen
from cnnvis_cli.figure.timeline import Lead, timeline
from cnnvis_cli.network.outputs import Output
from cnnvis_cli.stages.common.lists import names_of
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.render import Figure, draw_figure, is_there
from cnnvis_cli.stages.single.recorder import Outputs, Recorded, Recorder, guesses, title_of
from cnnvis_cli.store.publish import publishing
from cnnvis_cli.store.run import Record

FRAMES_PER_BATCH = {"cpu": 16, "cuda": 64}  # frames; four batches and one per core are held at once
STRONGEST = "strongest"


def film(session: Session, outputs: Outputs, source: Frames, name: str) -> Iterator[Path]:
    """Yield the files of one video: a film per layer, and the leading units as a table and a plot.

    Frames that cannot be decoded are reported. Raise `UsageError` if none can.
    """
    reel = VideoJob(session, outputs, source, name)
    if not reel.is_there():
        reel.make()
    yield from map(reel.path, outputs.filmed)
    yield reel.table
    yield from draw_figure(session, reel.plot())


@dataclass(frozen=True)
class VideoJob:
    """The films of one video: their places, their content, and how they are made."""

    session: Session
    outputs: Outputs
    source: Frames
    name: str

    def path(self, output: Output) -> Path:
        folder = self.session.run.figure("activations", self.name)
        return folder / f"{output.name}.mp4"

    @property
    def table(self) -> Path:
        return self.session.run.figure("activations", self.name) / f"{STRONGEST}.tsv"

    @property
    def size(self) -> int:
        """The number of frames per batch."""
        return self.session.plan.batch_size or FRAMES_PER_BATCH[self.session.device.type]

    @property
    def record(self) -> Record:
        """What decides the films' content."""
        asked, source = self.session.plan.activations, self.source
        folder = isinstance(source, Folder)
        return self.session.identity | {
            "source": source.digest() if isinstance(source, Folder) else file_digest(source.path),
            "folder": folder,
            "every": asked.every,
            "height": asked.size,
            "tone": asked.tone,
            "batch": self.size,
            "layers": names_of(self.outputs.filmed),
        }

    def key(self, output: Output) -> str:
        return digest(self.record | {"layer": output.name})

    def is_there(self) -> bool:
        """Return whether all files exist already."""
        films = ((self.path(output), self.key(output)) for output in self.outputs.filmed)
        return (
            self.table.is_file()
            and is_there(self.session, self.plot())
            and all(path.is_file() and read_comment(path) == key for path, key in films)
        )

    def make(self) -> None:
        """Decode, run the network and film in parallel."""
        session, network = self.session, self.session.network
        meter = session.report.meter(self.name, max(self.source.expected(), 1), "frames")
        batches = batched(self.source.frames(network.preprocessing), self.size)
        with (
            self._cutters() as cutters,
            Recorder(network, self.outputs.filmed, self.size) as eye,
            network.in_place(),
            Aside() as aside,
        ):

            def look(frames: Sequence[Frame]) -> tuple[Sequence[Frame], Recorded]:
                return frames, eye.see([frame.pixels for frame in frames])

            count = 0
            looked = in_order(look, ahead(batches), self._threads)
            for frames, seen in session.report.each(looked):
                aside.begin(_cut_frames, cutters, frames, seen)
                count += len(frames)
                meter.add(len(frames))
            aside.settle()
            self._tell(count)
        meter.end()

    @property
    def _threads(self) -> int:
        """The number of batches processed at once: one on a GPU, one per core on a CPU."""
        workers = self.session.plan.workers
        if self.session.network.device.type != "cpu" or workers == 0:
            return 1
        return min(cores(), workers or cores())

    def _tell(self, count: int) -> None:
        """Report frames that could not be decoded; raise `UsageError` if none could."""
        reasons = "; ".join(self.source.problems)
        if not count:
            raise UsageError(f"{self.source.path}: no frame can be decoded ({reasons or 'none'})")
        if reasons:
            self.session.report.note(f"{self.source.path}: {reasons}; {count} frames are used")

    @contextmanager
    def _cutters(self) -> Iterator[list[FrameSink]]:
        """Open all files for writing; they appear when the block ends."""
        rate = self.source.rate()
        with ExitStack() as stack:
            table = FrameTable(stack.enter_context(publishing(self.table)), self.outputs.filmed)
            cutters: list[FrameSink] = [table]
            for output in self.outputs.filmed:
                file = stack.enter_context(publishing(self.path(output)))
                made = stack.enter_context(Film(file, rate, self.key(output)))
                cutters.append(self._cutter(output, made))
            yield cutters

    def _cutter(self, output: Output, made: Film) -> FrameSink:
        network, asked = self.session.network, self.session.plan.activations
        screen = Screen(
            title_of(network, output),
            Grid(output.channels, output.map or (1, 1)),
            network.size,
            asked.size,
        )
        return LayerFilm(self.session, output, screen, made)

    def plot(self) -> Figure:
        """Return a plot, drawn from the table, of the leading unit of each layer over time."""
        network = self.session.network
        note = (
            "For each layer: the number of the unit with the largest activation in the frame, one "
            "dot per frame, and that activation. At the right: those that lead longest."
        )
        title = f"{self.name} · {network.name}, strongest unit of each layer over time"
        record = {
            "source": digest(self.record),
            "table": file_digest(self.table) if self.table.is_file() else None,
            "tone": None,
            "scale": None,
        }

        def draw() -> Canvas:
            seconds, leads = self._leads()
            return timeline(
                seconds, leads, Heading(title, (), note, self.session.plan.figure.column)
            )

        return Figure(f"activations/{self.name}", STRONGEST, title, record, draw)

    def _leads(self) -> tuple[NDArray[np.float64], list[Lead]]:
        """Return the table: one row per frame."""
        rows = np.loadtxt(self.table, skiprows=1, delimiter="\t", ndmin=2)
        leads = []
        for number, output in enumerate(self.outputs.filmed):
            units = rows[:, 2 + 2 * number].astype(int)
            labels = {
                unit: self.outputs.label(output, unit).partition(" ")[2]
                for unit in np.unique(units).tolist()
            }
            values = rows[:, 3 + 2 * number]
            title = title_of(self.session.network, output)
            leads.append(Lead(title, output.channels, units, values, labels))
        return rows[:, 1], leads


def batched(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Yield frames in lists of so many, the last one shorter."""
    source = iter(frames)
    while some := list(islice(source, size)):
        yield some


class FrameSink:
    """Writes something for each batch of frames."""

    def cut(self, frames: Sequence[Frame], seen: Recorded) -> None:
        raise NotImplementedError


def _cut_frames(cutters: Sequence[FrameSink], frames: Sequence[Frame], seen: Recorded) -> None:
    for cutter in cutters:
        cutter.cut(frames, seen)


@dataclass
class LayerFilm(FrameSink):
    """One layer's film.

    Its scale covers all frames so far and those of the same batch: it only grows, so that nothing
    flickers, and no second pass over the video is needed.
    """

    session: Session
    output: Output
    screen: Screen
    made: Film
    scale: Scale | None = field(default=None)

    def cut(self, frames: Sequence[Frame], seen: Recorded) -> None:
        maps, _ = finite(seen.values[self.output.name])
        maps = maps if maps.ndim == 4 else maps[:, :, None, None]
        rule = self.session.plan.activations.tone
        scale = Scale.of(maps, rule)
        self.scale = scale if self.scale is None else self.scale.widened(scale)
        for slot, frame in enumerate(frames):
            found = guesses(self.session.network, seen.prob, slot)
            notes = (f"frame {frame.number}, {frame.seconds:.2f} s", self._tone())
            tiles = self.scale.grey(maps[slot])
            self.made.add(*self.screen.shown(frame.pixels, tiles, found, notes))

    def _tone(self) -> str:
        rule = self.session.plan.activations.tone
        if self.scale is None or rule == "tile":
            return SCALE_RULES[rule]
        low, high = float(self.scale.low.min()), float(self.scale.high.max())
        if not self.scale.signed:
            return f"black 0, white {high:.4g}"
        most = max(high, -low)
        return f"black {-most:.4g}, grey 0, white {most:.4g}"


class FrameTable(FrameSink):
    """One row per frame: its number and time, and each layer's strongest channel with its value."""

    def __init__(self, file: BinaryIO, outputs: Sequence[Output]) -> None:
        self._file = file
        self._outputs = outputs
        cells = ["frame", "seconds"]
        for output in outputs:
            cells += [f"{output.name}_channel", f"{output.name}_max"]
        self._write(cells)

    def _write(self, cells: Sequence[str]) -> None:
        self._file.write(("\t".join(cells) + "\n").encode())

    def cut(self, frames: Sequence[Frame], seen: Recorded) -> None:
        leaders = [_leaders(finite(seen.values[output.name])[0]) for output in self._outputs]
        for slot, frame in enumerate(frames):
            cells = [str(frame.number), f"{frame.seconds:.3f}"]
            for channels, values in leaders:
                cells += [str(channels[slot]), f"{values[slot]:.6g}"]
            self._write(cells)


def _leaders(values: Floats) -> tuple[list[int], list[float]]:
    """Return each image's channel with the largest maximum (ties by number), and the maximum."""
    highest = values.reshape(*values.shape[:2], -1).max(axis=2)  # (B, C)
    channels = highest.argmax(axis=1)
    return channels.tolist(), np.take_along_axis(highest, channels[:, None], 1)[:, 0].tolist()
