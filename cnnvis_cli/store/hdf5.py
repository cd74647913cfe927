"""What the run's HDF5 files share: their header, how they are opened, records of settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from cnnvis_cli.errors import CnnvisError, StorageError, UsageError
from cnnvis_cli.store.origin import check_origin
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import VERSION
from cnnvis_cli.store.seals import seems_intact
from cnnvis_cli.store.validate import check_file, kind_of, open_hdf5

Array = NDArray[Any]
DAMAGED = (  # exceptions of h5py, and of reading arrays that are not ours
    *(OSError, LookupError, ValueError, TypeError, AttributeError),
    *(RuntimeError, MemoryError, RecursionError),
)


@dataclass(frozen=True)
class Header:
    """The origin that the files of one layer record."""

    model: str
    weights_sha256: str
    layer: str
    module: str
    mean: tuple[float, float, float]  # RGB, 0..255 units

    def write(self, file: h5py.File, kind: str) -> None:
        file.attrs.update(format=f"cnnvis/{kind}", version=VERSION, **self.__dict__)


@contextmanager
def reading(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open one of our files; raise `UsageError` for any other, `CnnvisError` if it is damaged.

    A file of another network, layer or run, or of a later version, is another one. Raise
    `StorageError` if the disk fails.
    """
    try:
        check_file(path, kind)
        with open_hdf5(path) as file:
            if kind_of(file) != kind:
                raise UsageError(f"{path}: is not a cnnvis/{kind} file; choose another --run")
            check_origin(path, kind, file)
            if not seems_intact(path):
                raise UsageError(
                    f"{path}: is not as cnnvis wrote it (its seal is broken, as by an edit or by "
                    "damage); put the original back, or delete it and run its command again"
                )
            yield file
    except DAMAGED as error:
        _raise_if_the_system_failed(path, error)
        raise CnnvisError(f"{path}: cannot be read ({error}); delete it and run again") from None


def _raise_if_the_system_failed(path: Path, error: Exception) -> None:
    """Raise `StorageError` for what says nothing about the file, which may be a good one."""
    if isinstance(error, OSError) and error.errno is not None:
        raise StorageError(f"{path}: cannot be read ({os.strerror(error.errno)})") from None


def parse_record(text: Any) -> Record:
    """Return a record from an attribute; raise ValueError for anything else."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("holds no record of its plan")
    return found


def stated(path: Path, kind: str) -> Record:
    """Return what one of our files states of itself, as plain values."""
    with reading(path, kind) as file:
        return {name: plain_value(value) for name, value in file.attrs.items()}


def plain_value(value: Any) -> Any:
    """Return an attribute's numbers as Python's, an array's as a list."""
    return value.tolist() if hasattr(value, "tolist") else value


def stored_key(path: Path, kind: str) -> str | None:
    """Return the key of one image's file; None if absent, damaged or not ours.

    Raise `StorageError` if the disk fails.
    """
    try:
        check_file(path, kind)
        with open_hdf5(path) as file:
            ours = kind_of(file) == kind and seems_intact(path)
            return str(file.attrs["key"]) if ours else None
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        _raise_if_the_system_failed(path, error)
        return None


def stored_plan(path: Path, kind: str, keys: AbstractSet[str]) -> Record | None:
    """Return the plan that a file was made by, with at least these keys; None without a file."""
    if not path.exists():
        return None
    with reading(path, kind) as file:
        plan = parse_record(file.attrs["plan"])
        if not keys <= plan.keys():
            raise ValueError("holds no record of its plan")
        return plan
