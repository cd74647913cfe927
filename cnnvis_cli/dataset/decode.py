"""From an image file to the pixels that a network is shown; the only reader of image files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnvis_cli.dataset.containers import Unreadable
from cnnvis_cli.nouns import Preprocessing, Size

__all__ = ["FORMATS", "Pixels", "Unreadable", "decode", "prepare", "write_png"]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
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
    stream = io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "(Corrupt|Truncated|Possibly corrupt)")
            with Image.open(stream, formats=FORMATS) as image:
                if fast:
                    _shrink_early(image, preprocessing.resize)
                return prepare(_rgb(image), preprocessing)
    except Exception as error:  # Pillow raises many kinds for broken files (facts of its fuzzing)
        raise Unreadable(_reason(error, stream)) from None


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


def is_plain_jpeg(content: bytes) -> bool:
    """Whether it begins like a JPEG in RGB or grey, of a size that is no bomb."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
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
    return image.convert("RGB")


def _reason(error: Exception, stream: io.BytesIO) -> str:
    """One line without tabs, for skipped.tsv; the stream's address would differ in every run."""
    text = " ".join(str(error).replace(repr(stream), "the file").split())
    return text or type(error).__name__


def write_png(path: Path, pixels: Pixels) -> None:
    """Write an RGB image, uint8 (height, width, 3); whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(pixels).save(temporary, "PNG")
    temporary.replace(path)
