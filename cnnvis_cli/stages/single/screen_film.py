"""The toolbox's screen as a video: one screen per frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.dataset.video import Folder, Frame, Frames, Video, is_moving
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.film import Film, read_comment
from cnnvis_cli.figure.grid import Scale
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.single.inputs import InputImage
from cnnvis_cli.stages.single.screen_unit import SCREEN_KIND, ScreenUnit
from cnnvis_cli.store.image_names import names_in, note_names
from cnnvis_cli.store.publish import publishing


def apart(session: Session) -> tuple[list[str], list[Frames]]:
    """Return the plan's images, and its videos: by their names, and with --frames the folders."""
    asked, stills, moving = session.plan.activations, list[str](), list[Frames]()
    for place in map(Path, session.plan.montage.images):
        if place.is_dir() and asked.frames:
            moving.append(Folder(place, asked.every))
        elif not place.is_dir() and is_moving(place):
            moving.append(Video(place, asked.every))
        else:
            stills.append(str(place))
    return stills, moving


def screen_films(session: Session, videos: list[Frames], units: list[ScreenUnit]) -> Iterator[Path]:
    """Yield the film of each video and unit; those that are there are left as they are."""
    paths = [str(video.path) for video in videos]
    names = names_in(session.run, paths)
    note_names(session.run, names, paths)
    for name, video in zip(names, videos, strict=True):
        for unit in units:
            film = ScreenFilm(session, video, name, unit)
            if not film.is_there():
                film.make()
            yield film.path


@dataclass(frozen=True)
class ScreenFilm:
    """The screens of one unit for the frames of one video.

    The scale of the maps covers all frames so far: it only grows, so that nothing flickers.
    """

    session: Session
    source: Frames
    name: str
    unit: ScreenUnit

    @property
    def path(self) -> Path:
        stem = f"{self.name}_{self.unit.layer.alias}_{self.unit.channel:04d}"
        return self.session.run.figure(SCREEN_KIND, f"{stem}.mp4")

    @cached_property
    def key(self) -> str:
        """Return a digest of all that decides the film."""
        source = self.source
        content = source.digest() if isinstance(source, Folder) else file_digest(source.path)
        every, figure = self.session.plan.activations.every, self.session.plan.figure
        shown = {"tone": figure.tone, "scale": figure.scale, "every": every}
        return digest(self.unit.record | shown | {"source": content, "name": self.name})

    def is_there(self) -> bool:
        return self.path.is_file() and read_comment(self.path) == self.key

    def make(self) -> None:
        """Decode, draw and film; raise `UsageError` if no frame can be decoded."""
        session, source, scale, count = self.session, self.source, None, 0
        meter = session.report.meter(f"{self.name} {self.unit.name}", source.expected(), "frames")
        frames = source.frames(session.network.preprocessing)
        with publishing(self.path) as file, Film(file, source.rate(), self.key) as film:
            for frame in session.report.each(frames):
                count += 1
                pixels, scale = self._screen(frame, scale)
                film.add(pixels, np.zeros((len(pixels), 0), np.uint8))
                meter.add(1)
            reasons = "; ".join(source.problems)
            if not count:
                raise UsageError(f"{source.path}: no frame can be decoded ({reasons or 'none'})")
        meter.end()
        if reasons:
            session.report.note(f"{source.path}: {reasons}; {count} frames are used")

    def _screen(self, frame: Frame, scale: Scale | None) -> tuple[Pixels, Scale]:
        """Return a frame's screen with even sides, and the scale of its maps."""
        image = InputImage(self.name, str(self.source.path), frame.pixels)
        look = self.unit.look(image, scale)
        title = f"{self.session.network.name} · {self.name} · {self.unit.name}"
        sheet = self.unit.sheet(look, Caption(title, self.unit.note()))
        height, width = sheet.height + sheet.height % 2, sheet.width + sheet.width % 2
        pixels = np.full((height, width, 3), 255, np.uint8)
        pixels[: sheet.height, : sheet.width] = sheet.pixels
        return pixels, look.scale
