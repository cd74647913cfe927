"""Colours and frequencies of the dataset's images: ``spectrum.h5``."""

from __future__ import annotations

import json
from pathlib import Path

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.store.hdf5 import reading, stored_plan
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import SPECTRUM, VERSION, write


class SpectrumFile:
    """The file ``spectrum.h5``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> Record | None:
        """Return the plan that the file was made by; None if there is no file."""
        return stored_plan(self.path, "spectrum", {"images", "dataset"})

    def read(self) -> tuple[Arrays, int]:
        """Return its arrays by the names of the schema, and the width of the images."""
        with reading(self.path, "spectrum") as file:
            arrays = {name: file[name][()] for name in SPECTRUM}
            width = int(file.attrs["width"])
            if arrays["magnitude"].shape[2] != width // 2 + 1:
                raise ValueError(f"its magnitudes are not those of images {width} pixels wide")
            return arrays, width

    def publish(self, plan: Record, arrays: Arrays, width: int) -> None:
        """Write the whole file; a rerun compares `plan`, its identity."""
        with publishing_hdf5(self.path) as file:
            file.attrs.update(format="cnnvis/spectrum", version=VERSION)
            for name in ("model", "weights_sha256", "images"):
                file.attrs[name] = plan[name]
            file.attrs["width"] = width
            file.attrs["preprocessing"] = json.dumps(plan["preprocessing"], sort_keys=True)
            file.attrs["plan"] = json.dumps(plan, sort_keys=True)
            write(file, SPECTRUM, arrays)
