"""Finished pieces of unfinished work: their presence is what "done" means."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.errors import StorageError
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.schema import storage

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Parts:
    """Numbered pieces of one plan in a folder of their own; a piece may also have a name.

    A piece carries the plan's digest; a damaged piece or one of another plan counts as not done.
    """

    folder: Path
    plan: str  # digest

    def __getitem__(self, number: int | str) -> Arrays:
        """The arrays of a finished piece; raises KeyError where there is none that is whole."""
        return self.read(number)

    def read(self, number: int | str, names: Sequence[str] = ()) -> Arrays:
        """The arrays of these names, or all of them; raises KeyError as above."""
        path = self._path(number)
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("plan") != self.plan:
                    raise KeyError(number)
                return {name: file[name][()] for name in names or file}
        except FileNotFoundError:
            raise KeyError(number) from None
        except (OSError, RuntimeError) as error:
            if getattr(error, "errno", None):  # the system's trouble, not the file's
                raise StorageError(f"{path}: cannot be read ({error})") from None
            with suppress(OSError):
                path.replace(path.with_suffix(".damaged"))
            raise KeyError(number) from None

    def __setitem__(self, number: int | str, arrays: Mapping[str, NDArray[Any]]) -> None:
        with publishing_hdf5(self._path(number)) as file:
            file.attrs["format"], file.attrs["plan"] = "cnnvis/part", self.plan
            for name, values in arrays.items():
                data = np.asarray(values)
                kept = storage(data.shape, data.dtype.itemsize, lasting=False)
                file.create_dataset(name, data=data, **kept)

    def __contains__(self, number: int | str) -> bool:
        try:
            _ = self[number]
        except KeyError:
            return False
        return True

    def pending(self, count: int) -> Iterator[int]:
        """The pieces from 0 to `count` that are not done, each looked at when its turn comes."""
        return (number for number in range(count) if number not in self)

    def next_number(self) -> int:
        """The number after the last piece that was ever kept here."""
        numbers = [int(path.stem) for path in self.folder.glob("[0-9]*.h5")]
        return max(numbers, default=-1) + 1

    def clear(self) -> None:
        """Remove all pieces, once what they add up to is published."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for parent in self.folder.parents:
            try:
                parent.rmdir()
            except OSError:  # the folders that hold something else
                return

    def _path(self, number: int | str) -> Path:
        name = number if isinstance(number, str) else f"{number:06d}"
        return self.folder / f"{name}.h5"
