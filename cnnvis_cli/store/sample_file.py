"""Every channel's largest value in each image of a fixed sample: ``sample.h5``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Doubles, Floats, Int32s
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Layer
from cnnvis_cli.store.chunks import write_bands
from cnnvis_cli.store.hdf5 import reading, stored_plan
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import SAMPLE_IMAGES, SAMPLE_LAYER, VERSION, storage, write
from cnnvis_cli.store.topk_file import Images

IMAGES_PER_CHUNK = 128  # images of a chunk, which holds all channels of a layer
LARGEST_EXPONENT = 15  # stored values stay below 2 to this power; half floats end at 65504
SMALLEST_SCALE = -126  # the exponent of float32's smallest normal number
Rows = tuple[Floats, Int32s]  # values and places of some images, (n, M) each


@dataclass(frozen=True)
class SampledImages:
    """The images of a sample.h5: N of each."""

    index: NDArray[np.int64]
    path: NDArray[np.bytes_]  # UTF-8
    label: NDArray[np.int32]
    skipped: NDArray[np.bool_]
    crc: NDArray[np.uint32]

    @classmethod
    def of(cls, images: Images, index: NDArray[np.int64]) -> SampledImages:
        """Return some of the images of a topk.h5."""
        paths, labels = images.path[index], images.label[index]
        return cls(index, paths, labels, images.skipped[index], images.crc[index])

    def name(self, row: int) -> str:
        """Return the path of an image as text."""
        return os.fsdecode(self.path[row])


class SampleFile:
    """The file ``sample.h5``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> Record | None:
        """Return the plan that the file was made by; None if there is no file."""
        return stored_plan(self.path, "sample", {"layers", "sample"})

    def layers(self) -> list[str]:
        """Return the aliases of its layers, in the network's order."""
        with reading(self.path, "sample") as file:
            return sorted(file["layers"], key=lambda name: int(file["layers"][name].attrs["order"]))

    def images(self) -> SampledImages:
        with reading(self.path, "sample") as file:
            columns = {name: file["images"][name][()] for name in SAMPLE_IMAGES}
            return SampledImages(**columns | {"path": columns["path"].astype("S")})

    def values(self, alias: str) -> Floats:
        """Return a layer's largest values, (N, C) in units of activation; NaN where there is none.

        Raise `UsageError` if the file does not have the layer.
        """
        with reading(self.path, "sample") as file:
            group = self._layer(file, alias)
            found: Floats = group["value"][()].astype(np.float32) * group["scale"][()]
            return found

    def places(self, alias: str) -> Int32s:
        """Return where in the map they are, (N, C), row by row; raise `UsageError` as above."""
        with reading(self.path, "sample") as file:
            found: Int32s = self._layer(file, alias)["place"][()]
            return found

    def _layer(self, file: h5py.File, alias: str) -> h5py.Group:
        if alias not in file["layers"]:
            raise UsageError(
                f"{self.path}: holds no {alias}; it needs a topk --sample of its own in another "
                "--run"
            )
        return file["layers"][alias]

    def publish(
        self,
        plan: Record,
        images: SampledImages,
        layers: Sequence[Layer],
        largest: Floats,
        pieces: Iterable[Rows],
    ) -> None:
        """Write the whole file; a rerun compares `plan`, its identity.

        `largest` (M,) are the largest finite magnitudes, `pieces` the rows in their order, with
        the channels of all layers side by side.
        """
        scale, count = scales(largest), len(images.index)
        with publishing_hdf5(self.path) as file:
            file.attrs.update(format="cnnvis/sample", version=VERSION, images=count)
            for name in ("model", "weights_sha256", "precision", "decode"):
                file.attrs[name] = plan[name]
            file.attrs["preprocessing"] = json.dumps(plan["preprocessing"], sort_keys=True)
            file.attrs["plan"] = json.dumps(plan, sort_keys=True)
            write(file.create_group("images"), SAMPLE_IMAGES, vars(images))
            datasets, sides, first = [], [], 0
            for order, layer in enumerate(layers):
                side = slice(first, first + layer.channels)
                group = file.create_group(f"layers/{layer.alias}")
                datasets += _begin_layer(group, layer, order, count, scale[side])
                sides.append(side)
                first += layer.channels
            write_bands(datasets, _cut(_bands(pieces), scale, sides))


def scales(largest: Floats) -> Floats:
    """Return for each magnitude the power of two that makes it 2^14 to 2^15: (M,)."""
    exponent = np.maximum(np.frexp(largest)[1] - LARGEST_EXPONENT, SMALLEST_SCALE)
    return np.where(largest > 0, np.exp2(exponent.astype(np.float64)), 1).astype(np.float32)


def _begin_layer(
    group: h5py.Group, layer: Layer, order: int, count: int, scale: Floats
) -> list[h5py.Dataset]:
    """Return the empty datasets of a layer's values and places."""
    group.attrs.update(module=layer.module, kind=layer.kind, channels=layer.channels, order=order)
    group.attrs.update(map=layer.map, receptive_field=layer.field.size, stride=layer.field.stride)
    shape, found = (count, layer.channels), []
    for name in ("value", "place"):
        dtype = np.dtype(SAMPLE_LAYER[name].dtype)
        kept = storage(shape, dtype.itemsize) | {
            "chunks": (min(IMAGES_PER_CHUNK, count), layer.channels)
        }
        found.append(group.create_dataset(name, shape, dtype, **kept))
    write(group, {"scale": SAMPLE_LAYER["scale"]}, {"scale": scale})
    return found


def _bands(pieces: Iterable[Rows]) -> Iterator[Rows]:
    """Yield the same rows in bands of `IMAGES_PER_CHUNK`, and a last one of what is left."""
    held: Rows | None = None
    for value, place in pieces:
        if held is not None:
            value, place = np.concatenate([held[0], value]), np.concatenate([held[1], place])  # noqa: PLW2901
        whole = len(value) // IMAGES_PER_CHUNK * IMAGES_PER_CHUNK
        for first in range(0, whole, IMAGES_PER_CHUNK):
            yield value[first : first + IMAGES_PER_CHUNK], place[first : first + IMAGES_PER_CHUNK]
        held = value[whole:], place[whole:]
    if held is not None and len(held[0]):
        yield held


def _cut(
    bands: Iterable[Rows], scale: Doubles | Floats, sides: Sequence[slice]
) -> Iterator[list[NDArray[np.generic]]]:
    """Yield each band as the datasets have it: half floats and places, layer by layer."""
    for value, place in bands:
        half = (value / scale).astype(np.float16)
        both = ((half[:, side], place[:, side]) for side in sides)
        yield [array for pair in both for array in pair]


def common_rows(
    one: SampledImages, two: SampledImages
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of usable images with the same path and content in both samples."""
    here, there = _usable_rows(one), _usable_rows(two)
    both = list(filter(there.__contains__, here))
    first, second = (np.array(list(map(side.get, both)), np.int64) for side in (here, there))
    return first, second


def _usable_rows(images: SampledImages) -> dict[tuple[bytes, int], int]:
    """Return the row of each usable image, by its path and content."""
    rows = {}
    columns = zip(images.path.tolist(), images.crc.tolist(), images.skipped.tolist(), strict=True)
    for row, (path, crc, skipped) in enumerate(columns):
        if not skipped:
            rows[path, crc] = row
    return rows
