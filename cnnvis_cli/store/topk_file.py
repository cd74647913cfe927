"""The strongest places of every layer: ``topk.h5``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnvis_cli import histogram
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Box, Layer, ReceptiveField, Size
from cnnvis_cli.store.hdf5 import Array, plain_value, reading, stored_plan
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import (
    HISTOGRAM_BINS,
    IMAGES,
    LOCAL,
    PLACES,
    TOPK_LAYER,
    VERSION,
    VERSION_WITH_LOCAL_FIELDS,
    write,
)
from cnnvis_cli.store.topk import TopK

STATS = [name.removeprefix("stats/") for name in TOPK_LAYER if name.startswith("stats/")]
LARGEST_BOX = 1 << 14  # pixels; the windows of the deepest networks are 2000 wide


@dataclass(frozen=True)
class Images:
    """The images of a topk.h5: N of each."""

    path: NDArray[np.bytes_]  # UTF-8
    label: NDArray[np.int32]
    skipped: NDArray[np.bool_]
    size: NDArray[np.int64]  # bytes
    crc: NDArray[np.uint32]
    offset: NDArray[np.int64]

    def name(self, index: int) -> str:
        """Return the path of an image as text."""
        return os.fsdecode(self.path[index])


@dataclass(frozen=True)
class LayerTopK:
    """A layer's strongest places with their windows in the image."""

    places: TopK
    box: NDArray[np.int32]  # (C, k, 4)
    stats: dict[str, Array]  # (C,) each, quantiles (C, Q)
    precision: str  # the arithmetic that the activations were computed in
    local_box: NDArray[np.int32] | None = None  # (C, k, 4), where it is not `box`

    @property
    def is_local(self) -> bool:
        """Whether what a place is about is less than all that it sees."""
        return self.local_box is not None

    def tile(self, unit: int, rank: int, size: Size) -> Box:
        """Return the window of an input of `size` that figures show for a place."""
        shown = self.box if self.local_box is None else self.local_box
        return box_of(shown[unit, rank]).tile(size)


@dataclass(frozen=True)
class LayerResult:
    """A layer's results for topk.h5; `arrays` by the names of the schema."""

    layer: Layer
    strongest: TopK
    lowest: TopK | None
    arrays: dict[str, Array]


class TopKFile:
    """The file ``topk.h5``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> Record | None:
        """Return the plan that the file was made by; None if there is no file."""
        return stored_plan(self.path, "topk", {"layers", "decode"})

    def summary(self) -> tuple[int, int]:
        """Return the number of its images, and how many of them could not be used."""
        with reading(self.path, "topk") as file:
            return int(file.attrs["images"]), int(file.attrs["skipped"])

    def layers(self) -> list[str]:
        with reading(self.path, "topk") as file:
            return sorted(file["layers"], key=lambda name: int(file["layers"][name].attrs["order"]))

    def images(self) -> Images:
        with reading(self.path, "topk") as file:
            group = file["images"]
            columns = {name: group[name][()] for name in IMAGES}
            return Images(**columns | {"path": columns["path"].astype("S")})

    def attributes(self, alias: str | None = None) -> Record:
        """Return what the file states of itself, or of one of its layers, as plain values."""
        with reading(self.path, "topk") as file:
            stated = (file if alias is None else file["layers"][alias]).attrs
            return {name: plain_value(value) for name, value in stated.items()}

    def bins(self) -> tuple[Array, Array]:
        """Return the edges of the histograms' bins, and the levels of the quantiles."""
        with reading(self.path, "topk") as file:
            return file["bins/edges"][()], file["bins/levels"][()]

    def lowest(self, alias: str) -> LayerTopK | None:
        """Return a layer's lowest places, lowest first; None if the file has none."""
        with reading(self.path, "topk") as file:
            group = file["layers"][alias].get("min")
            if group is None:
                return None
            position = group["position"][()].astype(np.int64)
            places = TopK(
                group["activation"][()], group["image"][()], position[..., 0], position[..., 1]
            )
            _check_places(places, group["box"][()], int(file.attrs["images"]))
            return LayerTopK(places, group["box"][()], {}, str(file.attrs["precision"]))

    def layer(self, alias: str) -> LayerTopK:
        """Return a layer's places; raise `UsageError` if the file does not have it."""
        with reading(self.path, "topk") as file:
            if alias not in file["layers"]:
                raise UsageError(
                    f"{self.path}: holds no {alias}; it needs a topk of its own in another --run"
                )
            group = file["layers"][alias]
            position = group["position"][()].astype(np.int64)
            places = TopK(
                group["activation"][()], group["image"][()], position[..., 0], position[..., 1]
            )
            stats = {name: group[f"stats/{name}"][()] for name in STATS}
            box = group["box"][()]
            local = group["local_box"][()] if "local_box" in group else None
            for windows in (box,) if local is None else (box, local):
                _check_places(places, windows, int(file.attrs["images"]))
            return LayerTopK(places, box, stats, str(file.attrs["precision"]), local)

    def histogram(self, alias: str) -> NDArray[np.int64]:
        """Return the number of a layer's places in each bin: (C, bins)."""
        with reading(self.path, "topk") as file:
            counts: NDArray[np.int64] = file["layers"][alias]["histogram"][()]
            return counts

    def publish(self, plan: Record, images: Images, layers: Iterable[LayerResult]) -> None:
        """Write the whole file; a rerun compares `plan`, its identity."""
        with publishing_hdf5(self.path) as file:
            file.attrs.update(format="cnnvis/topk", version=VERSION)
            for name in ("model", "weights_sha256", "k", "precision", "decode"):
                file.attrs[name] = plan[name]
            file.attrs["preprocessing"] = json.dumps(plan["preprocessing"], sort_keys=True)
            file.attrs["images"] = len(images.path)
            file.attrs["skipped"] = int(images.skipped.sum())
            file.attrs["plan"] = json.dumps(plan, sort_keys=True)
            write(file.create_group("images"), IMAGES, vars(images))
            bins = {"edges": histogram.edges(), "levels": np.array(histogram.LEVELS)}
            write(file.create_group("bins"), HISTOGRAM_BINS, bins)
            for order, result in enumerate(layers):
                group = file.create_group(f"layers/{result.layer.alias}")
                _write_topk_layer(group, result)
                group.attrs["order"] = order
                if result.layer.needs_local_fields:
                    file.attrs["version"] = VERSION_WITH_LOCAL_FIELDS


def _check_places(places: TopK, box: NDArray[np.int32], images: int) -> None:
    """Raise ValueError for places in unknown images, or windows without size."""
    if places.image.min(initial=-1) < -1 or places.image.max(initial=-1) >= images:
        raise ValueError("speaks of images that it does not list")
    sides = box[..., 2:].astype(np.int64) - box[..., :2]
    if sides.min(initial=0) < 0 or sides.max(initial=0) > LARGEST_BOX:
        raise ValueError("speaks of windows that no network has")


def _write_topk_layer(group: h5py.Group, result: LayerResult) -> None:
    layer = result.layer
    group.attrs.update(module=layer.module, kind=layer.kind, channels=layer.channels)
    group.attrs.update(map=layer.map, receptive_field=layer.field.size, stride=layer.field.stride)
    write(group, TOPK_LAYER, _place_columns(layer, result.strongest) | result.arrays)
    if layer.needs_local_fields:
        local = layer.local
        group.attrs.update(local_field=local.size, local_stride=local.stride, apart=layer.apart)
        write(group, LOCAL, {"local_box": boxes(local, result.strongest)})
    if result.lowest is not None:
        write(group.create_group("min"), PLACES, _place_columns(layer, result.lowest))


def _place_columns(layer: Layer, places: TopK) -> dict[str, Array]:
    return {
        "activation": places.activation,
        "image": places.image,
        "position": np.stack([places.row, places.column], axis=-1),
        "box": boxes(layer.field, places),
    }


def boxes(field: ReceptiveField, places: TopK) -> NDArray[np.int32]:
    """Return the field of each place in the input, (C, k, 4); zeros in empty slots."""
    rows, columns = field.rows, field.columns
    top = rows.start + rows.stride * places.row
    left = columns.start + columns.stride * places.column
    found = np.stack([top, left, top + rows.size, left + columns.size], axis=-1)
    return np.where((places.image >= 0)[..., None], found, 0).astype(np.int32)


def box_of(row: NDArray[np.int32]) -> Box:
    """Return a stored box as a value."""
    return Box(*(int(edge) for edge in row))
