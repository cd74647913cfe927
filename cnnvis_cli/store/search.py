"""A layer's searches and sweeps: ``search/<layer>.h5``."""

from __future__ import annotations

import json
from pathlib import Path

from cnnvis_cli.store.hdf5 import Array, Header, parse_record, reading
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import SEARCHED, write


class SearchFile:
    """The file ``search/<layer>.h5``: one group per search or sweep, arrays by row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def searches(self) -> dict[str, Record]:
        """Return the record of each stored search."""
        if not self.path.exists():
            return {}
        with reading(self.path, "search") as file:
            return {name: parse_record(group.attrs["parameters"]) for name, group in file.items()}

    def read(self, search: str, name: str) -> Array:
        """Return one array of a search by its name in the schema."""
        with reading(self.path, "search") as file:
            values: Array = file[search][name][()]
            return values

    def publish(
        self, header: Header, search: str, record: Record, arrays: dict[str, Array]
    ) -> None:
        """Write the file anew with this search beside those that it already holds."""
        kept = {
            name: (known, {column: self.read(name, column) for column in SEARCHED})
            for name, known in self.searches().items()
            if name != search
        }
        with publishing_hdf5(self.path) as file:
            header.write(file, "search")
            for name, (known, columns) in sorted({**kept, search: (record, arrays)}.items()):
                group = file.create_group(name)
                group.attrs["parameters"] = json.dumps(known, sort_keys=True)
                write(group, SEARCHED, columns)
