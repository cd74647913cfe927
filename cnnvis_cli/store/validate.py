"""Checks that an HDF5 file is as cnnvis writes it: no links elsewhere, no endless arrays.

A run directory may come from anywhere. HDF5 follows links to other files by itself, and a few bytes
may declare an array of terabytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cnnvis_cli.errors import StorageError
from cnnvis_cli.store.inside import check_regular, open_regular
from cnnvis_cli.store.schema import (
    HISTOGRAM_BINS,
    IMAGES,
    LOCAL,
    MAJORITY,
    OCCLUDED,
    OPTIMIZED_STYLE,
    PHOTOGRAPH,
    PLACES,
    PROJECTED_METHOD,
    SAMPLE_IMAGES,
    SAMPLE_LAYER,
    SEARCHED,
    SPECTRUM,
    TOPK_LAYER,
    TRANSPARENCY,
    TYPICAL,
    VERSION,
    VERSION_WITH_LOCAL_FIELDS,
    Column,
    Table,
)

OPTIONAL = TRANSPARENCY | PHOTOGRAPH | MAJORITY  # arrays that some styles have

# kind of file -> its groups (* for any name), and their arrays
GROUPS: dict[str, tuple[tuple[str, Table], ...]] = {
    "topk": (
        ("images", IMAGES),
        ("bins", HISTOGRAM_BINS),
        ("layers/*", TOPK_LAYER | LOCAL),
        ("layers/*/min", PLACES),
    ),
    "sample": (("images", SAMPLE_IMAGES), ("layers/*", SAMPLE_LAYER)),
    "spectrum": (("", SPECTRUM),),
    "typical": (("", TYPICAL),),
    "typical-mean": (("", TYPICAL),),
    "optimized": (("*", OPTIMIZED_STYLE | OPTIONAL),),
    "projected": (("*", PROJECTED_METHOD),),
    "search": (("*", SEARCHED),),
    "occluded": (("", OCCLUDED),),
}
PACKED = 1100  # bytes that one stored byte may expand to: deflate reaches 1032
SMALL_ARRAY = 1 << 20  # bytes that any array may have
PICTURES = 5  # axes of arrays that are read a few rows at a time, and may be partly written


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, without HDF5's own lock, which some file systems do not have.

    Nothing is lost: a file that stands under its name is never changed. Raise `StorageError` if a
    read fails in the block, whatever h5py makes of it, FileNotFoundError, and OSError for a file
    that is not HDF5; `UsageError` for a link, a pipe or the like in its place.
    """
    try:
        number = open_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _read_failure(path, error) from None
    with _Reader(number) as reader:
        try:
            with h5py.File(reader, "r") as file:
                yield file
        finally:
            if reader.failure is not None:
                raise _read_failure(path, reader.failure) from None


class _Reader(io.FileIO):
    """A file for HDF5 whose reads never fail.

    h5py takes some reads that fail for names that are not there. So the first failure is kept, for
    whoever has opened the file to raise it at the end, and from then on all reads give zeros.
    """

    failure: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        view, done = memoryview(buffer), 0
        try:
            while self.failure is None and done < len(view):
                count = super().readinto(view[done:])
                if not count:
                    break
                done += count
        except OSError as error:
            self.failure = error.with_traceback(None)  # its frames hold HDF5's buffer
        view[done:] = bytes(len(view) - done)  # h5py looks at no count
        return len(view)


def _read_failure(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: cannot be read ({error.strerror or error})")


def check_file(path: Path, kind: str) -> None:
    """Raise OSError or ValueError, naming the place, for anything cnnvis never writes.

    Raise `UsageError` for a link, a pipe or the like in its place.
    """
    status = check_regular(path)
    _check_once(path, kind, (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=1024)
def _check_once(path: Path, kind: str, _state: tuple[int, ...]) -> None:
    """Check a file unless it has been checked and is unchanged."""
    with open_hdf5(path) as file:
        if kind_of(file) == kind:
            for pattern, table in GROUPS.get(kind, ()):
                for group in _matching_groups(file, _names_in(pattern)):
                    _check_group(group, table)


def strangers(path: Path, kind: str) -> list[str]:
    """Return what a file of ours lacks, and what it holds besides, in words; raise OSError."""
    with open_hdf5(path) as file:
        allowed: set[str] = set()
        lacking: list[str] = []
        for pattern, table in GROUPS.get(kind, ()):
            for group in _matching_groups(file, _names_in(pattern)):
                names = {f"{group.name.rstrip('/')}/{name}" for name in table}
                optional = {f"{group.name.rstrip('/')}/{name}" for name in LOCAL | OPTIONAL}
                lacking += sorted(name for name in names - optional if name not in file)
                for name in names:
                    parts = name.split("/")
                    allowed.update("/".join(parts[:end]) for end in range(2, len(parts) + 1))
        held: list[str] = []
        file.visit(lambda name: held.append(f"/{name}"))
        odd = sorted(set(held) - allowed)
    return [f"lacks {name}" for name in lacking] + [f"holds {name}, not ours" for name in odd]


def version_of(path: Path, kind: str) -> int:
    """Return the version that a file of ours is of by what it holds; raise OSError."""
    with open_hdf5(path) as file:
        layers = file["layers"].values() if kind == "topk" else ()
        local = any(name in group for group in layers for name in LOCAL)
    return VERSION_WITH_LOCAL_FIELDS if local else VERSION


def kind_of(file: h5py.File) -> str:
    """Return the kind that a file states, ``topk`` and the like; empty if it is not ours."""
    text = file.attrs.get("format")
    return text.removeprefix("cnnvis/") if isinstance(text, str) else ""


def _names_in(pattern: str) -> list[str]:
    """Return the names of a pattern, one below the other; none for the file itself."""
    return pattern.split("/") if pattern else []


def _matching_groups(group: h5py.Group, names: list[str]) -> Iterator[h5py.Group]:
    """Return the existing groups that match a pattern."""
    if not names:
        yield group
        return
    for name in list(group) if names[0] == "*" else names[:1]:
        child = _child(group, name)
        if isinstance(child, h5py.Group):
            yield from _matching_groups(child, names[1:])


def _child(group: h5py.Group, name: str) -> Any:
    """Return the member of a group, None if there is none; raise ValueError for a link."""
    link = group.get(name, getlink=True, default=None)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{group.name.rstrip('/')}/{name} is a link")
    return group[name]


def _check_group(group: h5py.Group, table: Table) -> None:
    """Raise ValueError for arrays of wrong type, shape or size."""
    lengths: dict[str, int] = {}  # of the axes, by their names
    for name, column in table.items():
        folder, _, last = name.rpartition("/")
        holder = _child(group, folder) if folder else group
        array = _child(holder, last) if isinstance(holder, h5py.Group) else None
        if array is not None:
            _check_array(array, column, lengths)


def _check_array(array: Any, column: Column, lengths: dict[str, int]) -> None:
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
        raise ValueError(f"{array.name} does not belong in this file")
    is_text = column.dtype == "S" and array.dtype.kind == "S"
    if not is_text and array.dtype != np.dtype(column.dtype):
        raise ValueError(f"{array.name} is {array.dtype}, not {np.dtype(column.dtype)}")
    shape = array.shape or ()
    wanted = [
        int(axis) if axis.isdecimal() else lengths.setdefault(axis, length)
        for axis, length in zip(column.axes, shape, strict=False)
    ]
    if len(shape) != len(column.axes) or wanted != list(shape):
        raise ValueError(f"{array.name} has the shape {shape}, not ({', '.join(column.axes)})")
    stored = array.id.get_storage_size()
    if len(shape) < PICTURES and array.nbytes > SMALL_ARRAY + PACKED * stored:
        raise ValueError(f"{array.name} is {array.nbytes} bytes, of which only {stored} are stored")
