"""Finished pieces of unfinished work: a piece exists only if it is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.digests import digest
from cnnvis_cli.errors import StorageError
from cnnvis_cli.store.inside import check_regular, read_regular
from cnnvis_cli.store.lock import may_be_shared
from cnnvis_cli.store.publish import publish, publishing_hdf5
from cnnvis_cli.store.schema import storage
from cnnvis_cli.store.seals import intact
from cnnvis_cli.store.validate import open_hdf5

Name = int | str
LOOKED_THROUGH = 1 << 20  # bytes of a piece up to which its seal is checked to look at it


@dataclass(frozen=True)
class Parts:
    """Pieces of one file in their own folder, by number or by name.

    A piece carries the key and is sealed; a damaged piece is set aside, and it or one of another
    key counts as not done.
    """

    folder: Path
    key: str  # digest of what decides the content
    only_looks: bool = False  # nothing is set aside, nor read whole: for those who change nothing

    @classmethod
    def of(cls, folder: Path) -> Parts:
        """Return the pieces in a folder whose name ends with their key."""
        return cls(folder, folder.name.rsplit("-", 1)[-1])

    def __getitem__(self, name: Name) -> Arrays:
        """Return the arrays of a finished piece; raise KeyError if there is no intact one."""
        return self.read(name)

    def read(self, name: Name, arrays: Sequence[str] = ()) -> Arrays:
        """Return the arrays of these names, or all; raise KeyError as above."""
        with self._opened(name) as file:
            return {array: file[array][()] for array in arrays or file}

    def __setitem__(self, name: Name, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.put(name, arrays)

    def put(self, name: Name, arrays: Mapping[str, NDArray[Any]], small: bool = False) -> None:
        """Store a finished piece; a `small` one takes less room and more time."""
        with publishing_hdf5(self._path(name)) as file:
            file.attrs["format"], file.attrs["plan"] = "cnnvis/part", self.key
            for array, values in arrays.items():
                data = np.asarray(values)
                kept = storage(data.shape, data.dtype.itemsize, lasting=small)
                file.create_dataset(array, data=data, **kept)

    def may_hold(self, name: Name) -> bool:
        """Return whether there is a piece of this name, which may be damaged."""
        return self._path(name).exists()

    def listed(self, name: Name) -> list[str]:
        """Return the names of a piece's arrays; raise KeyError as above."""
        with self._opened(name) as file:
            return list(file)

    def remove(self, name: Name) -> None:
        """Remove a piece that is no longer of use, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def __contains__(self, name: Name) -> bool:
        try:
            with self._opened(name):
                return True
        except KeyError:
            return False

    def pending(self, count: int) -> Iterator[int]:
        """Yield the pieces from 0 to `count` that are not done, each checked in its turn."""
        return (number for number in range(count) if number not in self)

    def names(self) -> list[str]:
        """Return the names of all pieces, intact or not, sorted."""
        return sorted(path.stem for path in self.folder.glob("[!.]*.h5"))

    def describe(self, record: Mapping[str, Any]) -> None:
        """Store beside the pieces what their key is made of, for merging."""
        path = self.folder / _ABOUT
        if not path.exists():
            publish(path, json.dumps(record, sort_keys=True, indent=1).encode())

    def clear(self) -> None:
        """Remove all pieces, once their result is published.

        Without locks they stay: another process may be about to read them.
        """
        if may_be_shared(self.folder):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self.folder.parents:
            try:
                parent.rmdir()
            except OSError:  # the folders with other content
                return

    @contextmanager
    def _opened(self, name: Name) -> Iterator[h5py.File]:
        """Open an intact piece of this key; raise KeyError for any other."""
        path = self._path(name)
        try:
            if not self._is_whole(path):
                with suppress(OSError):
                    if self.only_looks:
                        raise KeyError(name)
                    path.replace(path.with_suffix(".damaged"))
                raise KeyError(name)
            with open_hdf5(path) as file:
                if file.attrs["plan"] != self.key:
                    raise KeyError(name)
                yield file
        except FileNotFoundError:
            raise KeyError(name) from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None

    def _is_whole(self, path: Path) -> bool:
        """Return whether the seal is unbroken; whoever only looks does not read large pieces."""
        if self.only_looks and path.lstat().st_size > LOOKED_THROUGH:
            check_regular(path)
            return True
        return _intact(path)

    def _path(self, name: Name) -> Path:
        return self.folder / f"{name if isinstance(name, str) else f'{name:06d}'}.h5"


_ABOUT = "plan.json"


def described(folder: Path) -> dict[str, Any] | None:
    """Return the description of a folder's pieces; None unless it matches their key."""
    try:
        record = json.loads(read_regular(folder / _ABOUT))
    except (OSError, ValueError):
        return None
    return record if folder.name.endswith(digest(record)) else None


def _intact(path: Path) -> bool:
    """Return whether the seal is unbroken; cached while the file is unchanged."""
    known = check_regular(path)
    return _sealed(path, known.st_ino, known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _sealed(path: Path, inode: int, size: int, changed: int) -> bool:
    return intact(path)
