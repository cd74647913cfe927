"""Every array that cnnvis stores: its path, shape, type and unit, in one table per file."""

from __future__ import annotations

from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

VERSION = 1
VERSION_WITH_LOCAL_FIELDS = 2  # of a topk.h5 with layers whose places are tokens or see by gates


class Column(NamedTuple):
    """One dataset: its type, its axes by name, and its meaning."""

    dtype: str
    axes: tuple[str, ...]
    meaning: str


Table = dict[str, Column]

IMAGES: Table = {
    "path": Column("S", ("N",), "path relative to the dataset, UTF-8, /-separated"),
    "label": Column("i4", ("N",), "index of the class folder, -1 without one"),
    "skipped": Column("?", ("N",), "could not be used"),
    "size": Column("i8", ("N",), "bytes of the image"),
    "crc": Column("u4", ("N",), "CRC-32 of the bytes that were read; 0 if none were"),
    "offset": Column("i8", ("N",), "its offset in its tar or zip; -1 for a plain file"),
}
HISTOGRAM_BINS: Table = {
    "edges": Column("f8", ("bins + 1",), "edges of the histogram bins"),
    "levels": Column("f8", ("Q",), "the levels of the quantiles"),
}
PLACES: Table = {
    "activation": Column("f4", ("C", "k"), "strongest first; NaN in an empty slot"),
    "image": Column("i8", ("C", "k"), "index into images; -1 in an empty slot"),
    "position": Column("i4", ("C", "k", "2"), "row and column in the layer's map"),
    "box": Column("i4", ("C", "k", "4"), "top, left, bottom, right in input pixels, half-open"),
}
LOCAL: Table = {
    "local_box": Column("i4", ("C", "k", "4"), "the local field, as box"),
}
TOPK_LAYER: Table = {
    **PLACES,
    "stats/mean": Column("f8", ("C",), "over every place of every image"),
    "stats/std": Column("f8", ("C",), "standard deviation over the same places"),
    "stats/max": Column("f8", ("C",), "largest value"),
    "stats/active": Column("f8", ("C",), "share of places above 0"),
    "stats/dead": Column("?", ("C",), "never above 0"),
    "stats/selectivity": Column("f8", ("C",), "class selectivity index, 0 to 1"),
    "stats/class": Column("i4", ("C",), "class with the highest mean rectified activation"),
    "stats/quantiles": Column("f8", ("C", "Q"), "of the places in the histogram"),
    "histogram": Column("i8", ("C", "bins"), "places by activation, up to 8 per image"),
}
SAMPLE_IMAGES: Table = {
    "index": Column("i8", ("N",), "index into the images of topk.h5, ascending"),
    **{name: IMAGES[name] for name in ("path", "label", "skipped", "crc")},
}
SAMPLE_LAYER: Table = {
    "value": Column("f2", ("N", "C"), "largest value of the map in units of scale; NaN: none"),
    "place": Column("i4", ("N", "C"), "its place in the map, row by row; -1: none"),
    "scale": Column("f4", ("C",), "a power of two, which makes value the activation"),
}
OPTIMIZED_STYLE: Table = {
    "image": Column("f2", ("U", "R", "H", "W", "3"), "RGB, mean-subtracted, 0..255 units"),
    "activation": Column("f4", ("U", "R"), "the unit's value for the best image"),
    "start": Column("f4", ("U", "R"), "its value for the first image"),
    "best_step": Column("i4", ("U", "R"), "iteration of the best image"),
    "outcome": Column("i1", ("U", "R"), "1 largest of its layer, 2 not, 3 no gradient, 0 not done"),
    "history": Column("f4", ("U", "R", "T"), "the value every few steps; NaN once it has ended"),
    "unit": Column("i4", ("U",), "channel index, or that of a sum or direction"),
}
TRANSPARENCY: Table = {  # of the styles that keep it
    "transparency": Column("f2", ("U", "R", "H", "W"), "sum of absolute gradients, largest 1"),
}
PHOTOGRAPH: Table = {  # of styles that begin at one
    "photograph": Column("u1", ("U", "H", "W", "3"), "RGB, what the ascent began with"),
}
MAJORITY: Table = {  # on request
    "majority": Column("f2", ("U", "R", "H", "W", "3"), "the first image where the unit leads"),
    "majority_step": Column("i4", ("U", "R"), "iteration of that; -1: it never leads"),
}
SPECTRUM: Table = {
    "magnitude": Column("f4", ("3", "H", "F"), "mean magnitude of each frequency, by component"),
    "colour": Column("f4", ("3", "3"), "from components (columns) to RGB (rows)"),
    "offset": Column("f4", ("3",), "mean of RGB"),
}
TYPICAL: Table = {
    "middle": Column("f4", ("2", "n"), "of each channel's mean and deviation: mean of the images"),
    "spread": Column("f4", ("2", "n"), "and their standard deviation"),
}
SEARCHED: Table = {
    "image": Column("f2", ("N", "U", "H", "W", "3"), "RGB, mean-subtracted, 0..255 units"),
    "activation": Column("f4", ("N", "U"), "the unit's value for the best image"),
    "outcome": Column("i1", ("N", "U"), "as for optimized images"),
    "robustness": Column("f4", ("N", "U"), "share of disturbances after which the unit leads"),
    "variation": Column("f4", ("N", "U"), "mean total variation per pixel, grey levels"),
    "grey": Column("f4", ("N", "U"), "share of pixels near the mean colour"),
    "clipped": Column("f4", ("N", "U"), "share of values at 0 or 255"),
    "deviation": Column("f4", ("N", "U"), "standard deviation, grey levels"),
    "row": Column("i4", ("N",), "number of the row of parameters"),
    "unit": Column("i4", ("U",), "channel index"),
}
PROJECTED_METHOD: Table = {
    "projection": Column("f2", ("C", "k", "h", "w", "3"), "RGB, signed, max |value| 1"),
    "scale": Column("f4", ("C", "k"), "undoes the scaling; NaN where nothing was projected"),
    "done": Column("?", ("C",), "the channel has been projected"),
}
SALIENCY: Table = {
    "image": Column("u1", ("h", "w", "3"), "RGB, as the network sees it"),
    "probability": Column("f4", ("N",), "of each class: softmax of the network's output"),
    **dict.fromkeys(
        ("gradient", "guided", "deconv", "smoothgrad"),
        Column("f4", ("h", "w", "3"), "RGB, signed, change of the value per grey level"),
    ),
    "integrated": Column("f4", ("h", "w", "3"), "RGB, signed, shares of the value"),
    "gradcam": Column("f4", ("rows", "columns"), "not negative, one value per place of the map"),
}
OCCLUDED: Table = {
    "total": Column("f4", ("rows", "columns"), "sum of the map's rectified activations"),
    "probability": Column("f4", ("rows", "columns"), "of the class: softmax of the output"),
    "predicted": Column("i4", ("rows", "columns"), "the most probable class"),
    "top": Column("i4", ("rows",), "first input row of a square, may be outside"),
    "left": Column("i4", ("columns",), "first input column of a square, may be outside"),
    "projection": Column("f2", ("h", "w", "3"), "RGB, signed, max |value| 1"),
}
ACTIVATIONS: Table = {  # of one image; a dataset per layer, with its name
    "map": Column("f4", ("C", "h", "w"), "output of the module"),
    "vector": Column("f4", ("C",), "output of the module, one value per channel"),
}


def create(group: h5py.Group, table: Table, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """Return an empty dataset of the table's type, compressed and checksummed."""
    column = table[name]
    if len(shape) != len(column.axes):
        raise ValueError(f"{name} has axes {column.axes}, not the shape {shape}")
    itemsize = np.dtype(column.dtype).itemsize
    return group.create_dataset(name, shape, column.dtype, **storage(shape, itemsize))


def write(group: h5py.Group, table: Table, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays in the table's order, each with the table's type."""
    for name in table:
        values = arrays[name]
        if table[name].dtype == "S":
            _write_text(group, name, values)
        else:
            create(group, table, name, values.shape)[...] = values


_CHUNK = 1 << 20  # bytes


def storage(shape: tuple[int, ...], itemsize: int, lasting: bool = True) -> dict[str, Any]:
    """Return a dataset's storage: gzip 1, shuffle and fletcher32, in chunks of up to a megabyte.

    A chunk takes whole trailing axes: one read fetches one unit, or many small ones. Datasets that
    are not `lasting` have only checksums. HDF5 has no filters for arrays without elements.
    """
    if 0 in shape:
        return {}
    chunks, room = [], _CHUNK // itemsize
    for length in reversed(shape):
        taken = max(1, min(length, room))
        chunks.append(taken)
        room //= taken
    checked = {"chunks": tuple(reversed(chunks)), "fletcher32": True}
    smaller = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    return checked | smaller if lasting else checked


def _write_text(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    """Write fixed-length UTF-8 from an array of byte strings."""
    length = max(1, values.dtype.itemsize)
    kind = h5py.string_dtype("utf-8", length)
    group.create_dataset(name, data=values.astype(kind), **storage(values.shape, length))
