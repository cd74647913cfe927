"""One image's activations as numbers: ``activations/<image>.h5``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.digests import digest
from cnnvis_cli.store.hdf5 import stored_key
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import ACTIVATIONS, VERSION, storage


@dataclass(frozen=True)
class LayerActivations:
    """A layer's values, (C, h, w) or (C,), and the module and call that gave them."""

    module: str
    call: int
    kind: str
    values: NDArray[np.float32]


class ActivationsFile:
    """A file of one image's activations."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_of(self, record: Record) -> bool:
        """Return whether the file was made from this record; False if absent or damaged."""
        return stored_key(self.path, "activations") == digest(record)

    def publish(self, record: Record, layers: Mapping[str, LayerActivations]) -> None:
        """Write the whole file; a rerun compares `record`."""
        with publishing_hdf5(self.path) as file:
            file.attrs.update(format="cnnvis/activations", version=VERSION, key=digest(record))
            for name in ("model", "weights_sha256", "name"):
                file.attrs[name] = record[name]
            file.attrs["preprocessing"] = json.dumps(record["preprocessing"], sort_keys=True)
            for order, (name, layer) in enumerate(layers.items()):
                _write_layer(file, name, layer).attrs["order"] = order


def _write_layer(file: h5py.File, name: str, layer: LayerActivations) -> Any:
    column = ACTIVATIONS["vector" if layer.values.ndim == 1 else "map"]
    values = np.asarray(layer.values, column.dtype)
    made = file.create_dataset(name, data=values, **storage(values.shape, values.itemsize))
    made.attrs.update(module=layer.module, call=layer.call, kind=layer.kind)
    return made
