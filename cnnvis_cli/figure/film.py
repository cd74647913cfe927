"""Sheets as the frames of a video file, written with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.errors import UsageError

ENCODERS = {  # the first that this FFmpeg has, with options: one thread gives the same bytes
    "libx264": {"preset": "ultrafast", "tune": "zerolatency", "crf": "23", "threads": "1"},
    "mpeg4": {"qscale": "3", "threads": "1"},
}


NEUTRAL = 128  # of a colour plane: no colour
BRIGHTNESS = np.rint(16 + np.arange(256) * 219 / 255).astype(np.uint8)  # ITU-R BT.601


def brightness(grey: Pixels) -> Pixels:
    """Return grey levels as a video's brightness plane, in the same shape."""
    found: Pixels = BRIGHTNESS[grey]
    return found


def _planes(planes: Pixels, height: int) -> list[Pixels]:
    """Return the three planes of an array as views."""
    flat, width = planes.reshape(-1), planes.shape[1]
    bright, small = height * width, (height // 2, width // 2)
    size = small[0] * small[1]
    ends = (flat[bright : bright + size], flat[bright + size : bright + 2 * size])
    return [planes[:height], *(end.reshape(small) for end in ends)]


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise UsageError("videos need PyAV, which is missing: pip install 'av>=12'") from None
    return av


class Film:
    """An MP4 that is written frame by frame into an open file, with a comment in its header.

    All sides are even. To be used in a ``with`` block, which finishes the file.
    """

    def __init__(self, file: BinaryIO, rate: Fraction, comment: str) -> None:
        av = _av()
        self._av, self._rate = av, rate
        self._converter = av.video.reformatter.VideoReformatter()  # kept: it is slow to set up
        self._stream: Any = None  # created for the first frame, whose size it has
        self._container = av.open(file, "w", format="mp4", options={"fflags": "+bitexact"})
        self._container.metadata["comment"] = comment

    def __enter__(self) -> Film:
        return self

    def add(self, left: Pixels, right: Pixels) -> None:
        """Append a frame: a colour picture (h, w, 3), and `brightness` beside it (h, w)."""
        frame = self._av.VideoFrame.from_ndarray(self._planes(left, right), format="yuv420p")
        if self._stream is None:
            self._stream = self._begun(frame.width, frame.height)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _planes(self, left: Pixels, right: Pixels) -> Pixels:
        """Return brightness and two colour planes of half the size, one below the other."""
        height, width = left.shape[0], left.shape[1] + right.shape[1]
        coloured = self._av.VideoFrame.from_ndarray(left, format="rgb24")
        found = self._converter.reformat(coloured, format="yuv420p").to_ndarray()
        both = np.full((height * 3 // 2, width), NEUTRAL, np.uint8)
        for part, plane in zip(_planes(found, height), _planes(both, height), strict=True):
            plane[:, : part.shape[1]] = part
        both[:height, left.shape[1] :] = right
        return both

    def _begun(self, width: int, height: int) -> Any:
        codec = next(name for name in ENCODERS if name in self._av.codecs_available)
        stream = self._container.add_stream(codec, rate=self._rate, options=dict(ENCODERS[codec]))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        return stream

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None and self._stream is not None:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
        self._container.close()


def read_comment(path: Path) -> str:
    """Return the comment of a video file; empty if absent or damaged."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            return str(container.metadata.get("comment", ""))
    except (av.FFmpegError, OSError, ValueError):
        return ""
