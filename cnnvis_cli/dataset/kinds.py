"""What is an image by its name or its first bytes, and what is passed over, by kind."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from cnnvis_cli.errors import UsageError

JPEG_2000 = (".j2k", ".jp2", ".jpf", ".jpx")
HEIC = (".heic", ".heif", ".hif")
OPTIONAL_FORMATS = {  # suffixes that not every Pillow reads: the format, and what is passed over
    **dict.fromkeys((".avif",), ("AVIF", "AVIF, which this Pillow cannot read")),
    **dict.fromkeys(JPEG_2000, ("JPEG2000", "JPEG 2000, which this Pillow cannot read")),
    **dict.fromkeys(HEIC, ("HEIF", "HEIC (pip install 'cnnvis[heic]' reads it)")),
}
JPEG = (".jfif", ".jpe", ".jpeg", ".jpg")
IMAGE_SUFFIXES = (*JPEG, ".bmp", ".gif", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
FIRST_BYTES = 16  # that tell an image without a suffix
COMPRESSED = {  # suffixes of archives that cannot be read in place: what unpacks them
    **dict.fromkeys((".gz", ".tgz"), "gunzip --keep"),
    **dict.fromkeys((".bz2", ".tbz2"), "bunzip2 --keep"),
    **dict.fromkeys((".xz", ".txz"), "unxz --keep"),
    ".zst": "zstd -d",
    ".7z": "7z x",
    ".rar": "unrar x",
}

LASTING = (  # errors that say something of the dataset; others may pass, and are exit code 4
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
    *(errno.ENXIO, errno.EOVERFLOW, errno.EISDIR),
)
AWAY = (errno.ENOENT, errno.ENOTDIR)  # of a file that was there a moment ago, these may pass too
FORBIDDEN = (errno.EACCES, errno.EPERM)

HIDDEN, OTHER, RUNS = "hidden", "not images", "run directories"
TWICE, LINKED = "listed twice", "folders linked twice"
PACKED, NESTED = "compressed archives", "archives inside archives"
SAMPLE, SPECIAL = "further images of a sample", "links and devices in archives"
NO_LABEL = "labels that are neither numbers nor names"
LABEL_COLUMNS = "columns of labels that are neither numbers nor names"
LABELS, TABLES = "labels without an image", "Parquet files without images"
PARQUET = "Parquet files (pip install 'cnnvis[parquet]' reads them)"


class Unreadable(Exception):
    """An image that cannot be used, and why, in a few words."""


Folders = tuple[str, ...]  # the folders that an image is in, from the outermost


class Stated(NamedTuple):
    """A class that a dataset states beside an image: its number, its name, or both."""

    number: int = -1  # -1: only a name is stated
    name: str = ""
    folders: Folders = ()  # that the image is in, too


Where = Folders | Stated  # what tells an image's class
NAMELESS = ("", ".", "..")  # parts of a path that are not a class


def folders_of(path: str) -> Folders:
    """Return the folders of a ``/``-separated path, without those that have no name."""
    return tuple(part for part in path.split("/")[:-1] if part not in NAMELESS)


@dataclass
class Found:
    """What a dataset holds besides its images."""

    passed_over: Counter[str] = field(default_factory=Counter)  # by kind
    folders: set[Folders] = field(default_factory=set)  # that hold no image themselves
    names: tuple[str, ...] = ()  # of all the classes that the dataset states
    missing: list[str] = field(default_factory=list)  # files that it names, which are not there

    def leave(self, kind: str, count: int = 1) -> None:
        """Count what is passed over."""
        if count:
            self.passed_over[kind] += count

    def state(self, names: tuple[str, ...], place: object) -> None:
        """Take down the names of all classes; raise `UsageError` if they contradict others."""
        if self.names and names != self.names:
            raise UsageError(
                f"{place}: names other classes than the files before it; give one dataset at a time"
            )
        self.names = names


def suffix_of(name: str) -> str:
    """Return the last suffix of a name, in lower case; empty without one."""
    base = name.rpartition("/")[2]
    return f".{base.rpartition('.')[2].lower()}" if "." in base else ""


def is_image(name: str) -> bool:
    """Return whether a file or member has the name of an image that can be read here."""
    return name.lower().endswith(IMAGE_SUFFIXES) or _reads(suffix_of(name))


def _reads(suffix: str) -> bool:
    """Return whether a suffix is that of a format that this Pillow happens to read."""
    if suffix not in OPTIONAL_FORMATS:
        return False
    from cnnvis_cli.dataset.decode import formats  # imports Pillow

    return OPTIONAL_FORMATS[suffix][0] in formats()


def is_hidden(part: str) -> bool:
    """Return whether a part of a path is not to be looked into."""
    return part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))


def begins_like_an_image(content: bytes) -> bool:
    """Return whether these are an image's first bytes, as in a file without a suffix."""
    return content.startswith(SIGNATURES) or (content[:4], content[8:12]) == (b"RIFF", b"WEBP")


def kind_left(name: str) -> str:
    """Return the kind of a file that is no image, no container and not hidden."""
    suffix = suffix_of(name)
    if suffix in OPTIONAL_FORMATS:
        return OPTIONAL_FORMATS[suffix][1]
    return PACKED if suffix in COMPRESSED else OTHER
