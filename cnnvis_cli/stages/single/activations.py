"""`cnnvis activations`: every layer's activations for an image, or for each frame of a video."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, groupby, islice
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Floats
from cnnvis_cli.dataset.video import Folder, Video, is_moving
from cnnvis_cli.errors import TooManyUnreadable, UsageError
from cnnvis_cli.figure import activations as figures
from cnnvis_cli.figure.activations import Heading, OverImage, Panel, Stop, Values
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.grid import Grid, Scale, finite, grid_of, in_colour, over_image
from cnnvis_cli.figure.words import percent
from cnnvis_cli.network.outputs import PROB, Output
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.lists import names_of
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.render import Figure, draw_figures, figure_files, is_there
from cnnvis_cli.stages.single.inputs import InputImage, in_batches, photographs
from cnnvis_cli.stages.single.recorder import Outputs, Recorded, Recorder, guesses, title_of
from cnnvis_cli.stages.single.video import film
from cnnvis_cli.store.activations import ActivationsFile, LayerActivations
from cnnvis_cli.store.image_names import names_in, note_names
from cnnvis_cli.store.run import Record

IMAGES_PER_BATCH = {"cpu": 4, "cuda": 16}  # the maps of all layers are kept at once
COMPARED = 6  # most images side by side
NAMED_FILES = 4  # files of a folder that are all named in the results
NAMED_CHANNELS = 11  # strongest channels of a vector that are named
ALL = "all"
KIND = "activations"


def check_activations(plan: Plan) -> None:
    """Raise `UsageError` where there is no image, folder or video to show."""
    if not plan.activations.image:
        raise UsageError("which image? cnnvis activations IMAGE, a folder, or a video")
    for place in map(Path, plan.activations.image):
        if not place.exists():
            raise UsageError(f"{place}: there is no such image, folder or video")


def activations(session: Session) -> None:
    """Draw the images' activations and film the videos', each once.

    Raise `TooManyUnreadable` at the end if too large a share of the images cannot be used.
    """
    session.say_what_is_left_out()
    session = session.here()
    asked, outputs = session.plan.activations, Outputs(session)
    moving, stills = [], []
    for place in map(Path, asked.image):
        if asked.frames if place.is_dir() else is_moving(place):
            moving.append(place)
        else:
            stills.append(str(place))
    if asked.compare and moving:
        raise UsageError(f"--compare is for images; {moving[0]} is a video")
    late: TooManyUnreadable | None = None
    try:
        for path in _three_of_many(_images(session, outputs, stills) if stills else ()):
            session.report.result(str(path))
    except TooManyUnreadable as error:
        late = error
    names = names_in(session.run, list(map(str, moving)))
    note_names(session.run, names, list(map(str, moving)))
    for name, place in zip(names, moving, strict=True):
        frames = (Folder if place.is_dir() else Video)(place, asked.every)
        for path in film(session, outputs, frames, name):
            session.report.result(str(path))
    if late is not None:
        raise late


def _three_of_many(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files of figures as they come; of a folder with many, itself and three of them.

    These are the overview, the first layer and the last.
    """
    for folder, files in groupby(paths, lambda path: path.parent):
        named = list(files)
        if len(named) <= NAMED_FILES:
            yield from named
            continue
        every = [path for path in named if path.stem == ALL]
        layers = [path for path in named if path.stem != ALL and path.suffix == ".png"]
        yield folder
        yield from (*every[:1], *(layers[:1] if every else layers[:2]), layers[-1])


@dataclass(frozen=True)
class ShownImages:
    """The subject of one set of files: an image, or several that are compared."""

    name: str
    images: tuple[InputImage, ...]
    seen: tuple[Recorded, ...] = ()  # empty before the network has run

    @cached_property
    def digests(self) -> list[str]:
        """The digests of the network's input pixels."""
        return [hashlib.sha256(each.pixels.tobytes()).hexdigest()[:16] for each in self.images]

    def values(self, output: Output) -> list[Floats]:
        """Return each image's values, as maps (C, h, w)."""
        found = []
        for seen in self.seen:
            values = finite(seen.values[output.name])[0]
            found.append(values if values.ndim == 3 else values[:, None, None])
        return found

    def odd(self, output: Output) -> int:
        """The number of non-finite values."""
        return sum(finite(seen.values[output.name])[1] for seen in self.seen)


def _images(session: Session, outputs: Outputs, places: Sequence[str]) -> Iterator[Path]:
    """Yield the files of all images, in batches, or of their comparison."""
    size = session.plan.batch_size or IMAGES_PER_BATCH[session.device.type]
    found = photographs(session, places)
    with Recorder(session.network, outputs.needed, size) as eye:
        if session.plan.activations.compare:
            for batch in in_batches(found, COMPARED + 1):
                yield from _draw_missing(session, outputs, eye, [_compared(tuple(batch))])
            return
        for batch in in_batches(found, size):
            subjects = [ShownImages(image.name, (image,)) for image in batch]
            yield from _draw_missing(session, outputs, eye, subjects)


def _compared(images: tuple[InputImage, ...]) -> ShownImages:
    if not 2 <= len(images) <= COMPARED:
        many = f"more than {COMPARED}" if len(images) > COMPARED else f"{len(images)}"
        raise UsageError(f"--compare: takes 2 to {COMPARED} images, and these are {many}")
    name = "_vs_".join(names_of(images))
    if len(name) > 120:  # file systems allow 255 bytes per name
        name = f"{name[:100]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return ShownImages(name, images)


def _draw_missing(
    session: Session, outputs: Outputs, eye: Recorder, subjects: Sequence[ShownImages]
) -> Iterator[Path]:
    """Yield the files of some subjects; the network runs only if one of them is missing."""
    session.report.check_stop()
    planned = _figures(session, outputs, subjects)
    kept = _kept(session, outputs, subjects, eye.size)
    if not all(is_there(session, figure) for figure in planned) or any(
        not file.is_of(record) for file, record, _ in kept
    ):
        subjects = _looked_at(eye, subjects)
        kept = _kept(session, outputs, subjects, eye.size)
        planned = _figures(session, outputs, subjects)
        drawn: list[Path] = []
        draw_figures(session, planned, drawn.append)
        yield from drawn
    else:
        for figure in planned:
            yield from figure_files(session, figure)
    for file, record, seen in kept:
        if not file.is_of(record):
            file.publish(record, _recorded(outputs, seen))
        yield file.path


def _looked_at(eye: Recorder, subjects: Sequence[ShownImages]) -> list[ShownImages]:
    """Yield the subjects with the network's outputs for them, in batches."""
    images = list(chain.from_iterable(subject.images for subject in subjects))
    seen: list[Recorded] = []
    for first in range(0, len(images), eye.size):
        some = images[first : first + eye.size]
        found = eye.see([image.pixels for image in some])
        seen += map(found.of, range(len(some)))
    looked = iter(seen)
    return [replace(each, seen=tuple(islice(looked, len(each.images)))) for each in subjects]


# ---- figures


def _figures(session: Session, outputs: Outputs, subjects: Sequence[ShownImages]) -> list[Figure]:
    """Return all figures of some subjects, before or after the network has run."""
    figures = []
    for subject in subjects:
        for output in outputs.shown:
            figures.append(_layer_figure(session, outputs, subject, output))
        for output, channel in outputs.units:
            figures.append(_unit(session, subject, output, channel))
        if len(outputs.shown) > 1 and len(subject.images) == 1:
            figures.append(_overview(session, outputs, subject))
    return figures


def _figure(
    session: Session,
    subject: ShownImages,
    name: str,
    heading: Heading,
    record: Record,
    draw: Callable[[], Canvas],
) -> Figure:
    """Return a figure of a subject; `draw` is called only once the network has run."""
    asked = session.plan.activations
    common: Record = {
        "images": subject.digests,
        "names": names_of(subject.images),
        "weights_sha256": session.network.digest,
        "batch": session.plan.batch_size or IMAGES_PER_BATCH[session.device.type],
        "tone": asked.tone,
        "scale": asked.scale,
    }
    title = " · ".join((heading.title, *heading.classes))
    return Figure(f"{KIND}/{subject.name}", name, title, common | record, draw)


def _heading(session: Session, subject: ShownImages, what: str, note: str) -> Heading:
    """Return the heading: image and layer, and the predicted classes of each image."""
    names = " and ".join(names_of(subject.images))
    many = len(subject.images) > 1
    lines = []
    for image, seen in zip(subject.images, subject.seen, strict=False):
        found = guesses(session.network, seen.prob)
        text = ", ".join(f"{guess.name} {percent(guess.share)}" for guess in found)
        if found:
            lines.append(f"{image.name}: {text}" if many else text)
    return Heading(f"{names} · {what}", tuple(lines), note, session.plan.figure.column)


def _layer_figure(
    session: Session, outputs: Outputs, subject: ShownImages, output: Output
) -> Figure:
    """Return one layer's channels: a square of tiles, or bars."""
    asked = session.plan.activations
    what = f"{title_of(session.network, output)} · {output.kind}, {output.size}"
    heading = _heading(session, subject, what, "")

    def bars() -> Canvas:
        names = [image.name if len(subject.images) > 1 else "" for image in subject.images]
        return figures.bars(
            list(map(partial(_with_strongest, outputs, output), names, subject.values(output))),
            replace(heading, note=_bars_note(subject, output)),
            asked.scale or 1,
        )

    def sheet() -> Canvas:
        maps = subject.values(output)
        scale = Scale.of(np.stack(maps), asked.tone)
        panels = [
            Panel(scale.grey(each), image.name, image.pixels)
            for image, each in zip(subject.images, maps, strict=True)
        ]
        note = f"Channels row by row. Tone: {scale.rule(asked.tone)}{_odd(subject, output)}."
        if len(panels) > 1:
            note += " All images are on the same scale."
        fitting = figures.fitting_scale(grid_of(maps[0]).size, len(maps))
        return figures.sheets(panels, replace(heading, note=note), asked.scale or fitting)

    draw = bars if output.flat else sheet
    return _figure(session, subject, output.name, heading, {"layer": output.name}, draw)


def _with_strongest(outputs: Outputs, output: Output, name: str, maps: Floats) -> Values:
    """Return a vector with the labels of its strongest channels; ties by number."""
    values = maps[:, 0, 0]
    order = np.argsort(-values, kind="stable")[:NAMED_CHANNELS].tolist()
    strongest = tuple((i, outputs.label(output, i)) for i in order)
    return Values(name, values, strongest, output.name == PROB)


def _bars_note(subject: ShownImages, output: Output) -> str:
    return (
        f"One bar per channel, in the order of their numbers; the strongest in orange, with names"
        f"{_odd(subject, output)}."
    )


def _odd(subject: ShownImages, output: Output) -> str:
    count = subject.odd(output)
    return f"; {count} values are not finite and drawn as 0" if count else ""


def _unit(session: Session, subject: ShownImages, output: Output, channel: int) -> Figure:
    """Return one channel over the image."""
    what = f"{title_of(session.network, output)}, channel {channel} of {output.channels}"
    heading = _heading(session, subject, what, "")
    record = {"layer": output.name, "channel": channel}
    name = f"{output.name}_{channel:04d}"
    asked, size = session.plan.activations, session.network.size
    fitting = max(1, round(figures.IMAGE_WIDTH / size[1]))

    def draw() -> Canvas:
        maps = [each[channel] for each in subject.values(output)]
        scale = Scale.of(np.stack(maps)[:, None], "tile")
        shown = [
            _over(image, values, scale, output)
            for image, values in zip(subject.images, maps, strict=True)
        ]
        note = (
            f"A map of {maps[0].shape[0]}x{maps[0].shape[1]} places, each at the centre of its "
            f"field, values {scale.low.min():.4g} to {scale.high.max():.4g}. Middle: "
            f"{scale.rule('tile').partition(';')[0]}. Right: as bright as the channel is active, "
            "interpolated, full at its largest value. Framed: the field of its strongest place, "
            "as far as it is inside the image."
        )
        top = float(scale.high.max())
        return figures.over_images(shown, replace(heading, note=note), asked.scale or fitting, top)

    return _figure(session, subject, name, heading, record, draw)


def _over(image: InputImage, values: Floats, scale: Scale, output: Output) -> OverImage:
    size = (image.pixels.shape[0], image.pixels.shape[1])
    row, column = divmod(int(values.argmax()), values.shape[1])
    seen = output.field.box(row, column).clip(size)
    inside = output.field.rows.stride > 0 and seen.size != size
    box = (seen.left, seen.top, seen.size[1], seen.size[0]) if inside else None
    grey = scale.grey(over_image(values, output.field, size, smooth=False)[None])[0]
    return OverImage(image.name, image.pixels, over_image(values, output.field, size), grey, box)


def _overview(session: Session, outputs: Outputs, subject: ShownImages) -> Figure:
    """Return all layers in one picture."""
    asked = session.plan.activations
    rule = "one scale for each layer" if asked.tone == "layer" else "each channel on its own scale"
    note = (
        f"All layers in the order in which they are computed, reduced. Tone: {rule}; where nothing "
        "is negative x / max with 0 black, otherwise x / max(2 max, -2 min) + 0.5 with 0 mid-grey. "
        "Vectors as bars."
    )
    what = f"{session.network.name}, {len(outputs.shown)} layers"
    heading = _heading(session, subject, what, note)
    record = {"layers": names_of(outputs.shown)}

    def draw() -> Canvas:
        image = subject.images[0].pixels
        side = figures.stop_side(len(outputs.shown) + 1)
        stops = [Stop("input", f"{image.shape[0]}x{image.shape[1]} pixels", image)]
        for output in outputs.shown:
            stops.append(_timeline_stop(subject, output, asked.tone, side))
        return figures.walk(stops, heading)

    return _figure(session, subject, ALL, heading, record, draw)


def _timeline_stop(subject: ShownImages, output: Output, tone: str, side: int) -> Stop:
    (maps,) = subject.values(output)
    detail = f"{output.kind}, {output.size.replace(' channels of ', ' of ')}"
    if output.flat:
        return Stop(output.name, detail, figures.small_bars(maps[:, 0, 0], side))
    grid: Grid = grid_of(maps)
    picture = figures.fitted(in_colour(grid.picture(Scale.of(maps, tone).grey(maps))), side)
    return Stop(output.name, detail, picture)


# ---- numbers


FiledActivations = tuple[ActivationsFile, Record, Recorded | None]


def _kept(
    session: Session, outputs: Outputs, subjects: Sequence[ShownImages], size: int
) -> list[FiledActivations]:
    """Return the requested files of numbers, each with what decides its content."""
    if session.plan.activations.save is None:
        return []
    found: list[FiledActivations] = []
    for subject in subjects:
        for number, image in enumerate(subject.images):
            path = session.run.path / "activations" / f"{image.name}.h5"
            record = session.identity | {
                "name": image.name,
                "image": subject.digests[number],
                "batch": size,
                "layers": names_of(outputs.needed),
            }
            seen = subject.seen[number] if subject.seen else None
            found.append((ActivationsFile(path), record, seen))
    return found


def _recorded(outputs: Outputs, seen: Recorded | None) -> dict[str, LayerActivations]:
    assert seen is not None, "a missing file has the network look"
    return {
        each.name: LayerActivations(each.module, each.call, each.kind, seen.values[each.name])
        for each in outputs.needed
    }
