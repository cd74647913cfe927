"""What the dataset's images leave in the layers below one: ``typical/<layer>.h5``."""

from __future__ import annotations

import json
from pathlib import Path

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.store.hdf5 import Header, reading, stored_plan
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import TYPICAL, write


class TypicalFile:
    """The file ``typical/<layer>.h5``, or ``typical-mean/<layer>.h5`` for the whole input."""

    def __init__(self, path: Path) -> None:
        self.path, self.kind = path, path.parent.name

    def identity(self) -> Record | None:
        """Return the plan that the file was made by; None if there is no file."""
        return stored_plan(self.path, self.kind, {"images", "windows", "dataset", "box"})

    def read(self) -> tuple[tuple[tuple[str, int], ...], Arrays]:
        """Return the layers with their channels, and the arrays by the names of the schema."""
        with reading(self.path, self.kind) as file:
            arrays = {name: file[name][()] for name in TYPICAL}
            layers = tuple((str(n), int(c)) for n, c in json.loads(file.attrs["layers"]))
            count = sum(channels for _, channels in layers)
            if any(array.shape != (2, count) for array in arrays.values()):
                raise ValueError("its arrays are not those of its layers")
            return layers, arrays

    def publish(
        self, header: Header, plan: Record, layers: tuple[tuple[str, int], ...], arrays: Arrays
    ) -> None:
        """Write the whole file; a rerun compares `plan`, its identity."""
        with publishing_hdf5(self.path) as file:
            header.write(file, self.kind)
            file.attrs["layers"] = json.dumps(layers)
            file.attrs["plan"] = json.dumps(plan, sort_keys=True)
            write(file, TYPICAL, arrays)
