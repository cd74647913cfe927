"""From an image file to the network's input pixels; the only reader of image files."""

from __future__ import annotations

import ctypes
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, _imaging, features

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.dataset.kinds import Unreadable
from cnnvis_cli.errors import StorageError
from cnnvis_cli.light_imports import import_torchvision
from cnnvis_cli.nouns import Preprocessing, Size
from cnnvis_cli.report import printable

__all__ = ["FORMATS", "Unreadable", "decode", "formats", "prepare", "write_png"]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # that every Pillow reads
LATER = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # that some do, and Pillow's word for the codec
SCANNED = 4 << 30  # pixels times scans of a JPEG: some seconds; a photograph has 1 to 12 scans
TEXT = 32 << 20  # bytes of an image in text form; 6 MB take a second
BITMAP_HEADER = (
    4096  # bytes that must contain the sizes of a portable bitmap; comments lie between them
)
LONGEST_REASON = 200  # characters of a reason
TIFF_TILE = (322, 323)  # a TIFF's TileWidth and TileLength


def decode(content: bytes, preprocessing: Preprocessing, fast: bool = False) -> Pixels:
    """Decode, resize and centre-crop one image file: uint8 RGB of (height, width, 3).

    As in torchvision's evaluation transforms. Transparency is dropped, more than 8 bits are scaled
    to 8 (see `_grey_of`), an animation gives its first frame, and EXIF rotation is ignored, as in
    training, unless the preprocessing is `upright`. `fast` lets the JPEG decoder do most of the
    reduction: slightly different pixels, in a fraction of the time. Raise `Unreadable` with the
    reason.
    """
    if not content:
        raise Unreadable("is empty")
    try:
        with _open_image(content, formats()) as image:
            if fast:
                _shrink_early(image, preprocessing)
            found = _rgb(image)
            _check_depth(image, content, found)
            return prepare(_turned(image, found) if preprocessing.upright else found, preprocessing)
    except MemoryError:  # of this process: the image may be fine
        raise
    except Exception as error:  # Pillow raises many kinds for broken files, as fuzzing showed
        raise Unreadable(_reason(error)) from None


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that are read here: HEIC with the extra ``heic``, others with Pillow's."""
    Image.init()
    more = [name for name, word in LATER.items() if name in Image.OPEN and _has_codec(word)]
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return (*FORMATS, *more)
    register_heif_opener()
    return (*FORMATS, *more, "HEIF")


def _has_codec(name: str) -> bool:
    try:
        return bool(features.check(name))
    except ValueError:  # a Pillow that does not know the word
        return False


@contextmanager
def _open_image(content: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Return an image with only its header read; raise if decoding it would take too much."""
    _check_text(content)
    with _SILENCE, Image.open(io.BytesIO(content), formats=formats) as image:
        _check_work(image, content)
        yield image


class _Silence:
    """Silences Pillow's warnings while any thread is inside.

    Python's filters are shared by all threads: the first one sets them, the last one restores them.
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
logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise some of it goes to stderr
with suppress(OSError, AttributeError):  # if Pillow bundles its libtiff, which prints by itself
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _check_text(content: bytes) -> None:
    """Raise `Unreadable` for a portable bitmap in text form that would take Pillow long to read."""
    kind = content[:2]
    if not re.fullmatch(rb"P[1-6]", kind):
        return
    if kind in (b"P1", b"P2", b"P3") and len(content) > TEXT:
        raise Unreadable(f"too large for numbers written out: {len(content)} bytes")
    sizes = re.sub(rb"#[^\r\n]*", b"", content[:BITMAP_HEADER]).split()[1:]
    if len(sizes) < (2 if kind in (b"P1", b"P4") else 3):
        raise Unreadable(f"its sizes are not in its first {BITMAP_HEADER} bytes")


def _check_work(image: Any, content: bytes) -> None:
    """Raise `Unreadable` for a small file that takes very much memory or time to decode.

    It has too many pixels, tiles of many more (unpacked whole), or too many scans.
    """
    largest = _most_pixels()
    width, height = image.size
    if width * height > largest:
        raise Unreadable(
            f"is a decompression bomb: {width}x{height} pixels, above {largest / 1e6:.0f} million"
        )
    if image.format == "TIFF":
        across, down = (int(image.tag_v2.get(tag, 0)) for tag in TIFF_TILE)
        if across * down > largest:
            raise Unreadable(f"is a decompression bomb: tiles of {across}x{down} pixels")
    scans = content.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 1
    if width * height * scans > SCANNED:
        raise Unreadable(f"is a decompression bomb: {scans} scans of {width}x{height} pixels")


def _most_pixels() -> float:
    """Return Pillow's own limit: above half of it, it only warns."""
    return 2 * (Image.MAX_IMAGE_PIXELS or float("inf"))


def _shrink_early(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Decode a JPEG at 1/1, 1/2, 1/4 or 1/8: the smallest that covers `resize` on both sides.

    Other formats have no such decoder, and `draft` leaves them unchanged.
    """
    resize = preprocessing.resize
    height, width = (resize, resize) if isinstance(resize, int) else resize
    if preprocessing.upright:  # it may yet be turned
        height = width = max(height, width)
    image.draft(None, (width, height))


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resize and centre-crop an RGB picture: uint8 (height, width, 3).

    Raise `Unreadable` for one so thin that resizing its shorter side would need huge memory.
    """
    modes = import_torchvision("torchvision.transforms")  # takes a while
    transforms = import_torchvision("torchvision.transforms.functional")
    mode = modes.InterpolationMode(preprocessing.interpolation)
    resize = preprocessing.resize
    check_shape(image.size, resize)
    if preprocessing.grey:
        image = image.convert("L").convert("RGB")  # as torchvision's Grayscale(3)
    resized = transforms.resize(image, [resize] if isinstance(resize, int) else list(resize), mode)
    return np.asarray(transforms.center_crop(resized, list(preprocessing.crop)))


def check_shape(size: tuple[int, int], resize: int | Size) -> None:
    """Raise `Unreadable` for a picture (width, height) that would be huge when resized."""
    width, height = size
    if isinstance(resize, int):
        enlarged = width * height * (resize / min(size)) ** 2
        if enlarged > (Image.MAX_IMAGE_PIXELS or float("inf")):
            raise Unreadable(f"too thin: {width}x{height} pixels")


END, TAIL = b"\xff\xd9", 1 << 10  # of a JPEG, and bytes that may follow: cameras add some


def is_plain_jpeg(content: bytes) -> bool:
    """Return whether it begins like a JPEG in RGB or grey, of an acceptable size, and has an end.

    Decoders on GPUs fill up with grey what a truncated file lacks.
    """
    if END not in content[-TAIL:]:
        return False
    try:
        with _open_image(content, ("JPEG",)) as image:
            return image.mode in ("RGB", "L")
    except Exception:  # `decode` will report whatever is wrong
        return False


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB; raise `Unreadable` for values of an unknown scale."""
    if image.format == "TIFF":
        _check_meaning(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        depths = () if image.format == "PPM" else DEPTHS  # Pillow scales it by its largest value
        return Image.fromarray(_grey_of(np.asarray(image), depths)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy it


PHOTOMETRIC, SAMPLE_FORMAT = 262, 339  # tags of a TIFF (TIFF 6.0, sections 3 and 19)
WHITE_IS_ZERO, SIGNED = 0, 2  # their values


def _check_meaning(image: Any) -> None:
    """Raise `Unreadable` for a TIFF whose numbers Pillow does not read as they are meant."""
    deep = image.mode.startswith("I") or image.mode == "F"
    if deep and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise Unreadable("is a negative of more than 8 bits (white is 0); convert it to 8 bits")
    signed = SIGNED in tuple(image.tag_v2.get(SAMPLE_FORMAT, ()))
    if signed and max(image.tag_v2.get(258, (8,))) <= 16:  # 32 bits show by their values
        raise Unreadable("has signed values, of an unknown scale; convert it to 8 bits")


DEPTHS = (8, 10, 12)  # bits that an image of 16 bits may really have


def _grey_of(values: NDArray[Any], depths: Sequence[int]) -> NDArray[np.uint8]:
    """Return grey values of more than 8 bits in 8.

    Whole numbers are of 16 bits, or of the first of the `depths` that all of them fit in, which
    would otherwise be all but black. Fractions are from 0 to 1 or to 255. Raise `Unreadable` for
    others: what is black and what is white is not known.
    """
    low, high = values.min(), values.max()
    if values.dtype.kind != "f" and low >= 0 and high < 1 << 16:
        bits = next((bits for bits in depths if high < 1 << bits), 16)
        return (values.astype(np.uint32) >> (bits - 8)).astype(np.uint8)
    if values.dtype.kind == "f" and low >= 0 and high <= 255:  # no NaN is
        return (values * (255 if high <= 1 else 1)).astype(np.uint8)
    raise Unreadable(
        f"has values from {low:g} to {high:g}, of an unknown scale; convert it to 8 bits"
    )


def _check_depth(image: Image.Image, content: bytes, found: Image.Image) -> None:
    """Raise `Unreadable` for 12-bit colours in 16 bits: Pillow reads only the upper 8."""
    depth = 8
    if image.format == "PNG":
        depth = content[24]
    elif image.format == "TIFF":
        depth = max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined] # BitsPerSample
    if depth != 16 or image.mode.startswith("I"):
        return
    highest = max(high for _, high in cast(tuple[tuple[int, int], ...], found.getextrema()))
    if highest < 1 << 4:
        raise Unreadable("has colours of at most 12 bits in 16, all but black; convert it to 8")


def _turned(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """Return pixels as the image's EXIF orientation says."""
    way = TURNS.get(image.getexif().get(ORIENTATION, 1))
    return pixels if way is None else pixels.transpose(way)


ORIENTATION = 0x0112  # an EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _reason(error: Exception) -> str:
    """Return a short line for skipped.tsv, without tabs or addresses, which vary between runs."""
    if isinstance(error, UnidentifiedImageError):
        return "is no image that can be recognized"
    text = re.sub(r" file <_io\.BytesIO[^>]*>|<_io\.BytesIO[^>]*>", "", str(error))
    return printable(" ".join(text.split()))[:LONGEST_REASON] or type(error).__name__


def write_png(path: Path, pixels: Pixels) -> None:
    """Write an RGB image, uint8 (height, width, 3), atomically; raise `StorageError`."""
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(temporary, "PNG")
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); run again") from None
