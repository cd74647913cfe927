"""An image's results for a square at every position: ``occluded/<image>_<layer>.h5``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.store.hdf5 import Header, stored_key
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import OCCLUDED, write
from cnnvis_cli.store.validate import check_file, open_hdf5


@dataclass(frozen=True)
class OccludedFile:
    """A file of an image and a layer."""

    path: Path

    def key(self) -> str | None:
        """Return the file's key; None if absent, damaged or not ours."""
        return stored_key(self.path, "occluded")

    def read(self) -> tuple[Record, Arrays]:
        """Return its attributes, and its arrays by their names in the schema."""
        try:
            check_file(self.path, "occluded")
            with open_hdf5(self.path) as file:
                return dict(file.attrs), {name: file[name][()] for name in OCCLUDED}
        except (OSError, ValueError, KeyError) as error:
            raise CnnvisError(
                f"{self.path}: cannot be read ({error}); delete it and run again"
            ) from None

    def publish(self, header: Header, record: Record, arrays: Arrays) -> None:
        """Write the whole file; the record becomes attributes beside those of the header."""
        with publishing_hdf5(self.path) as file:
            header.write(file, "occluded")
            file.attrs.update(record)
            write(file, OCCLUDED, arrays)
