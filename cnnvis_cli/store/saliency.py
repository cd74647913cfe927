"""One image's maps by method: ``saliency/<image>_<target>.h5``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cnnvis_cli.store.hdf5 import stored_key
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import SALIENCY, VERSION, create


@dataclass(frozen=True)
class SaliencyFile:
    """A file of an image and a target."""

    path: Path

    def key(self) -> str | None:
        """Return the file's key; None if absent, damaged or not ours."""
        return stored_key(self.path, "saliency")

    def publish(self, record: Record, arrays: dict[str, NDArray[Any]]) -> None:
        """Write arrays by their names in the schema; the record becomes attributes."""
        with publishing_hdf5(self.path) as file:
            file.attrs.update(format="cnnvis/saliency", version=VERSION)
            for name, value in record.items():
                file.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
            for name, values in arrays.items():
                create(file, SALIENCY, name, values.shape)[...] = values
