"""The frames of a video, one after the other, read with PyAV."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.dataset.decode import Unreadable, decode, prepare
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Preprocessing, Size

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".m4v", ".mov", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv")
FRAME_RATE = Fraction(25)  # frames per second of a folder, and of a video that does not state them
WITHIN = {  # formats that FFmpeg may open: a playlist named .mp4 would lead it to other files
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,webm,gif,avi,mpeg,mpegts,mpegvideo,ogg",
}
LARGEST_FRAME = 1 << 26  # pixels of a frame: 8192 x 8192
SHORT_VIDEO = 0.95  # of the length in the header; shorter videos are reported


class Frame(NamedTuple):
    """One frame as the network sees it."""

    number: int  # in the video, from 0
    seconds: float
    pixels: Pixels  # (height, width, 3)


def need_pyav() -> Any:
    """Return the library that reads and writes videos; raise `UsageError` if it is missing."""
    try:
        import av
    except ImportError:
        raise UsageError("videos need PyAV, which is missing: pip install 'av>=12'") from None
    return av


@dataclass
class Video:
    """A video file: every n-th decodable frame, and the problems found.

    Rotation is ignored, like EXIF's in images. `problems` is filled while frames are read.
    """

    path: Path
    every: int = 1
    problems: list[str] = field(default_factory=list)

    def rate(self) -> Fraction:
        """The rate of the yielded frames, per second; raise `UsageError` for an invalid video."""
        with self._opened() as container:
            own = container.streams.video[0].average_rate
            return Fraction(own or FRAME_RATE) / self.every

    def expected(self) -> int:
        """The number of frames to expect, as far as the header knows; 0 if it does not."""
        with self._opened() as container:
            return -(-_expected(container) // self.every)

    def frames(self, preprocessing: Preprocessing) -> Iterator[Frame]:
        """Yield every n-th frame, one at a time."""
        self.problems.clear()
        found, seconds = 0, 0.0
        converter = need_pyav().video.reformatter.VideoReformatter()  # kept: slow to set up
        with self._opened() as container:
            rate = Fraction(container.streams.video[0].average_rate or FRAME_RATE)
            for number, picture in enumerate(self._pictures(container)):
                found = number + 1
                seconds = picture.time if picture.time is not None else float(number / rate)
                if number % self.every == 0:
                    yield Frame(number, seconds, _prepared_frame(picture, converter, preprocessing))
            expected = _expected(container)
        if found < SHORT_VIDEO * expected:
            self.problems.append(f"ends after {found} of about {expected} frames")

    def _opened(self) -> Any:
        av = need_pyav()
        if not self.path.is_file():  # a FIFO would block for ever
            raise UsageError(f"{self.path}: is not a regular file")
        try:
            container = av.open(str(self.path.absolute()), options=WITHIN)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UsageError(f"{self.path}: is not a video that can be read ({error})") from None
        if not container.streams.video:
            container.close()
            raise UsageError(f"{self.path}: has no pictures in it")
        width, height = container.streams.video[0].width, container.streams.video[0].height
        if width * height > LARGEST_FRAME:
            container.close()
            raise UsageError(f"{self.path}: has frames of {width}x{height} pixels; make it smaller")
        container.streams.video[0].thread_type = "NONE"  # one thread: the network has the others
        return container

    def _pictures(self, container: Any) -> Iterator[Any]:
        """Yield decoded pictures; a packet that cannot be decoded is counted and skipped."""
        av = need_pyav()
        bad = 0
        packets = container.demux(container.streams.video[0])
        while True:
            try:
                packet = next(packets, None)
                pictures = packet.decode() if packet is not None else []
            except av.FFmpegError as error:
                if isinstance(error, av.error.InvalidDataError) and bad < BROKEN_PACKETS:
                    bad += 1
                    continue
                self.problems.append(f"breaks off: {error.strerror}")
                break
            if packet is None:
                break
            for picture in pictures:
                if picture.is_corrupt:
                    bad += 1
                else:
                    yield picture
        if bad:
            self.problems.append(f"{bad} damaged frames are left out")


FILTERS = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "nearest": "POINT", "lanczos": "LANCZOS"}


def _prepared_frame(picture: Any, converter: Any, preprocessing: Preprocessing) -> Pixels:
    """Return a picture resized and cropped like `dataset.decode.prepare`, along with its colours.

    FFmpeg resizes, in less time; values differ on average by a grey level or two.
    """
    height, width = resized_size(preprocessing.resize, (picture.height, picture.width))
    rows, columns = preprocessing.crop
    if height < rows or width < columns:  # the rest is padded
        return prepare(converter.reformat(picture, format="rgb24").to_image(), preprocessing)
    filter = FILTERS[preprocessing.interpolation]
    sized = converter.reformat(picture, width, height, "rgb24", interpolation=filter)
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    found: Pixels = sized.to_ndarray()[top : top + rows, left : left + columns]
    return np.ascontiguousarray(found)


def resized_size(to: int | Size, size: Size) -> Size:
    """Return height and width after resizing: to a shorter side of so many pixels, or to both."""
    if not isinstance(to, int):
        return to
    longer = int(to * max(size) / min(size))
    return (to, longer) if size[0] <= size[1] else (longer, to)


BROKEN_PACKETS = 10_000  # failing packets in all before the rest is given up


def _expected(container: Any) -> int:
    """Return the number of frames, as far as the header knows; 0 if it does not."""
    stream = container.streams.video[0]
    if stream.frames:
        return int(stream.frames)
    rate = stream.average_rate or 0
    if stream.duration:
        return int(stream.duration * stream.time_base * rate)
    return int((container.duration or 0) * rate / 1_000_000)  # microseconds


@dataclass
class Folder:
    """A folder (tar, zip, list) of images as the frames of a video, in the order of their names."""

    path: Path
    every: int = 1
    problems: list[str] = field(default_factory=list)

    def rate(self) -> Fraction:
        return FRAME_RATE / self.every

    def expected(self) -> int:
        return -(-len(Manifest.scan(self.path)) // self.every)

    def digest(self) -> str:
        """The digest of the names and sizes of all frames."""
        return Manifest.scan(self.path).digest

    def frames(self, preprocessing: Preprocessing) -> Iterator[Frame]:
        """Yield every n-th frame, one at a time; unreadable ones are skipped."""
        self.problems.clear()
        manifest = Manifest.scan(self.path)
        self.problems += _misnumbered(manifest)
        for number in range(0, len(manifest), self.every):
            try:
                pixels = decode(manifest.read(number), preprocessing)
            except Unreadable as reason:
                self.problems.append(f"{manifest.path(number)} is left out: {reason}")
                continue
            yield Frame(number, float(number / FRAME_RATE), pixels)


def _misnumbered(manifest: Manifest) -> list[str]:
    """Say where frames are numbered without zeros in front, so that 10 comes before 2."""
    names = [str(manifest.path(number)) for number in range(len(manifest))]
    for before, after in pairwise(names):
        one, other = _NUMBER.split(before), _NUMBER.split(after)  # words and numbers in turns
        if one[::2] == other[::2] and list(map(int, one[1::2])) > list(map(int, other[1::2])):
            return [
                f"frames are taken in the order of their names, {before} before {after}; number "
                "them with zeros in front"
            ]
    return []


_NUMBER = re.compile(r"([0-9]+)")


def is_moving(path: Path) -> bool:
    """Return whether a file has a video's name; a GIF must have more than one frame."""
    suffix = path.suffix.lower()
    if suffix != ".gif":
        return suffix in VIDEO_SUFFIXES
    return _second_picture(path)


def _second_picture(path: Path) -> bool:
    """Return whether a GIF has at least two pictures."""
    video = Video(path)
    try:
        with video._opened() as container:
            pictures = video._pictures(container)
            return next(pictures, None) is not None and next(pictures, None) is not None
    except UsageError:
        need_pyav()
        return False  # no picture at all: report it as an image


Frames = Video | Folder
