"""An image's results for a square at every position: ``occluded/<image>_<layer>.h5``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.store.hdf5 import Header, reading, stored_key
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import OCCLUDED, write


@dataclass(frozen=True)
class OccludedFile:
    """A file of an image and a layer."""

    path: Path

    def key(self) -> str | None:
        """Return the file's key; None if absent, damaged or not ours."""
        return stored_key(self.path, "occluded")

    def read(self) -> tuple[Record, Arrays]:
        """Return its attributes, and its arrays by their names in the schema."""
        with reading(self.path, "occluded") as file:
            return dict(file.attrs), {name: file[name][()] for name in OCCLUDED}

    def publish(self, header: Header, record: Record, arrays: Arrays) -> None:
        """Write the whole file; the record becomes attributes beside those of the header."""
        with publishing_hdf5(self.path) as file:
            header.write(file, "occluded")
            file.attrs.update(record)
            write(file, OCCLUDED, arrays)
