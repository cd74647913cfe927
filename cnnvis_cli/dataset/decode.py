"""From an image file to the pixels that a network is shown; the only reader of image files."""

from __future__ import annotations

import ctypes
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from cnnvis_cli.dataset.containers import Unreadable
from cnnvis_cli.nouns import Preprocessing, Size
from cnnvis_cli.report import printable

__all__ = ["FORMATS", "Pixels", "Unreadable", "decode", "prepare", "write_png"]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
SCANNED = 4 << 30  # pixels times scans of a JPEG: some seconds; a photograph has 1 to 12 scans
TEXT = 32 << 20  # bytes of an image whose numbers are written out, which take a second for 6 MB
HEADER = 4096  # bytes in which the sizes of a portable bitmap stand; comments lie between them
LONGEST = 200  # letters of a reason
TILE = (322, 323)  # a TIFF's TileWidth and TileLength
Pixels = NDArray[np.uint8]


def decode(content: bytes, preprocessing: Preprocessing, fast: bool = False) -> Pixels:
    """Decode, resize and centre-crop one image file: uint8 RGB of (height, width, 3).

    As in torchvision's evaluation transforms. Transparency is dropped, 16-bit grey is scaled to
    8 bits, an animation gives its first frame, EXIF rotation is ignored, as in training.
    `fast` lets the JPEG decoder do most of the shrinking: other pixels, in a fraction of the time.
    Raises `Unreadable` with the reason.
    """
    if not content:
        raise Unreadable("is empty")
    try:
        with _opened(content, FORMATS) as image:
            if fast:
                _shrink_early(image, preprocessing.resize)
            return prepare(_rgb(image), preprocessing)
    except Exception as error:  # Pillow raises many kinds for broken files (facts of its fuzzing)
        raise Unreadable(_reason(error)) from None


@contextmanager
def _opened(content: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """A file's header, its pixels not yet decoded; raises for one that would take too much."""
    _check_text(content)
    with _SILENCE, Image.open(io.BytesIO(content), formats=formats) as image:
        _check_work(image, content)
        yield image


class _Silence:
    """While anybody is within, Pillow's warnings are not told.

    Python's filters belong to all threads at once: the first sets them, the last puts them back.
    """

    def __init__(self) -> None:
        self._lock, self._within = Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._within += 1
            if self._within == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._before.__exit__(None, None, None)


_SILENCE = _Silence()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else some of it goes to stderr
with suppress(OSError, AttributeError):  # where Pillow brings its libtiff, which prints by itself
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _check_text(content: bytes) -> None:
    """Raise `Unreadable` for a portable bitmap that Pillow would read letter by letter for long."""
    kind = content[:2]
    if not re.fullmatch(rb"P[1-6]", kind):
        return
    if kind in (b"P1", b"P2", b"P3") and len(content) > TEXT:
        raise Unreadable(f"too large for numbers written out: {len(content)} bytes")
    sizes = re.sub(rb"#[^\r\n]*", b"", content[:HEADER]).split()[1:]
    if len(sizes) < (2 if kind in (b"P1", b"P4") else 3):
        raise Unreadable(f"its sizes are not in its first {HEADER} bytes")


def _check_work(image: Any, content: bytes) -> None:
    """Raise `Unreadable` for a small file that takes very much memory or time to decode.

    Of many pixels; in tiles of many more, which are unpacked whole; or in very many scans.
    """
    largest = Image.MAX_IMAGE_PIXELS or float("inf")
    width, height = image.size
    if width * height > largest:
        raise Unreadable(f"is a decompression bomb: {width}x{height} pixels")
    if image.format == "TIFF":
        across, down = (int(image.tag_v2.get(tag, 0)) for tag in TILE)
        if across * down > largest:
            raise Unreadable(f"is a decompression bomb: tiles of {across}x{down} pixels")
    scans = content.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 1
    if width * height * scans > SCANNED:
        raise Unreadable(f"is a decompression bomb: {scans} scans of {width}x{height} pixels")


def _shrink_early(image: Image.Image, resize: int | Size) -> None:
    """Have a JPEG decoded at 1/1, 1/2, 1/4 or 1/8: the least that covers `resize`, both sides.

    Other formats have no such decoder, and `draft` leaves them alone.
    """
    height, width = (resize, resize) if isinstance(resize, int) else resize
    image.draft(None, (width, height))


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resize and centre-crop an RGB picture: uint8 (height, width, 3).

    Raises `Unreadable` for one so thin that its shorter side could only be resized in a bomb.
    """
    from torchvision.transforms import InterpolationMode  # takes two seconds
    from torchvision.transforms import functional as transforms

    mode = InterpolationMode(preprocessing.interpolation)
    resize = preprocessing.resize
    check_shape(image.size, resize)
    resized = transforms.resize(image, [resize] if isinstance(resize, int) else list(resize), mode)
    return np.asarray(transforms.center_crop(resized, list(preprocessing.crop)))


def check_shape(size: tuple[int, int], resize: int | Size) -> None:
    """Raise `Unreadable` for a picture (width, height) that resizing would make a bomb of."""
    width, height = size
    if isinstance(resize, int):
        enlarged = width * height * (resize / min(size)) ** 2
        if enlarged > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise Unreadable(f"too thin: {width}x{height} pixels")


END, TAIL = b"\xff\xd9", 1 << 10  # of a JPEG, and bytes that may follow: cameras add some


def is_plain_jpeg(content: bytes) -> bool:
    """Whether it begins like a JPEG in RGB or grey, of a size that is no bomb, and has an end.

    Decoders on GPUs fill up with grey what a truncated file lacks.
    """
    if END not in content[-TAIL:]:
        return False
    try:
        with _opened(content, ("JPEG",)) as image:
            return image.mode in ("RGB", "L")
    except Exception:  # whatever is wrong with it, `decode` will say
        return False


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _reason(error: Exception) -> str:
    """A short line without tabs for skipped.tsv; a stream's address would differ in every run."""
    text = re.sub(r"<_io\.BytesIO[^>]*>", "the file", str(error))
    return printable(" ".join(text.split()))[:LONGEST] or type(error).__name__


def write_png(path: Path, pixels: Pixels) -> None:
    """Write an RGB image, uint8 (height, width, 3); whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(pixels).save(temporary, "PNG")
    temporary.replace(path)
