"""Reading and writing the run's HDF5 files, which are only ever replaced as a whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnvis_cli import histogram
from cnnvis_cli.errors import CnnvisError, StorageError, UsageError
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.store.chunks import write_rows
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import (
    BINS,
    IMAGES,
    OPTIMIZED_STYLE,
    PLACES,
    PROJECTED_METHOD,
    SEARCHED,
    TOPK_LAYER,
    VERSION,
    create,
    write,
)
from cnnvis_cli.store.topk import TopK
from cnnvis_cli.store.validate import check_file, kind_of

Array = NDArray[Any]


STATS = [name.removeprefix("stats/") for name in TOPK_LAYER if name.startswith("stats/")]
DAMAGED = (  # exceptions of h5py, and of reading foreign arrays as ours
    *(OSError, LookupError, ValueError, TypeError, AttributeError),
    *(RuntimeError, MemoryError, RecursionError),
)


def _record(text: Any) -> Record:
    """Return a record from an attribute; raise ValueError for anything else."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("holds no record of its plan")
    return found


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open one of our files; raise `UsageError` for any other, `CnnvisError` for damage.

    Raise `StorageError` if the disk fails.
    """
    try:
        check_file(path, kind)
        with h5py.File(path, "r") as file:
            if kind_of(file) != kind:
                raise UsageError(f"{path}: is not a cnnvis/{kind} file; choose another --run")
            yield file
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ENOSPC):
            raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None
        raise CnnvisError(f"{path}: cannot be read ({error}); delete it and run again") from None


def stored_key(path: Path, kind: str) -> str | None:
    """Return the key of a file of one image; None if absent, damaged or not ours."""
    try:
        check_file(path, kind)
        with h5py.File(path, "r") as file:
            return str(file.attrs["key"]) if kind_of(file) == kind else None
    except DAMAGED:
        return None


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
        if not self.path.exists():
            return None
        with _reading(self.path, "topk") as file:
            plan = _record(file.attrs["plan"])
            if not {"layers", "decode"} <= plan.keys():
                raise ValueError("holds no record of its plan")
            return plan

    def summary(self) -> tuple[int, int]:
        """Return the number of its images, and how many of them could not be used."""
        with _reading(self.path, "topk") as file:
            return int(file.attrs["images"]), int(file.attrs["skipped"])

    def layers(self) -> list[str]:
        with _reading(self.path, "topk") as file:
            return sorted(file["layers"], key=lambda name: int(file["layers"][name].attrs["order"]))

    def images(self) -> Images:
        with _reading(self.path, "topk") as file:
            group = file["images"]
            columns = {name: group[name][()] for name in IMAGES}
            return Images(**columns | {"path": columns["path"].astype("S")})

    def layer(self, alias: str) -> LayerTopK:
        """Return a layer's places; raise `UsageError` if the file does not have it."""
        with _reading(self.path, "topk") as file:
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
            _check_places(places, box, int(file.attrs["images"]))
            return LayerTopK(places, box, stats, str(file.attrs["precision"]))

    def histogram(self, alias: str) -> NDArray[np.int64]:
        """Return the number of a layer's places in each bin: (C, bins)."""
        with _reading(self.path, "topk") as file:
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
            write(file.create_group("bins"), BINS, bins)
            for order, result in enumerate(layers):
                group = file.create_group(f"layers/{result.layer.alias}")
                _write_layer(group, result)
                group.attrs["order"] = order


SIDE = 1 << 14  # pixels; the windows of the deepest networks are 2000 wide


def _check_places(places: TopK, box: NDArray[np.int32], images: int) -> None:
    """Raise ValueError for places in unknown images, or windows without size."""
    if places.image.min(initial=-1) < -1 or places.image.max(initial=-1) >= images:
        raise ValueError("speaks of images that it does not list")
    sides = box[..., 2:].astype(np.int64) - box[..., :2]
    if sides.min(initial=0) < 0 or sides.max(initial=0) > SIDE:
        raise ValueError("speaks of windows that no network has")


def _write_layer(group: h5py.Group, result: LayerResult) -> None:
    layer = result.layer
    group.attrs.update(module=layer.module, kind=layer.kind, channels=layer.channels)
    group.attrs.update(map=layer.map, receptive_field=layer.field.size, stride=layer.field.stride)
    write(group, TOPK_LAYER, _places(layer, result.strongest) | result.arrays)
    if result.lowest is not None:
        write(group.create_group("min"), PLACES, _places(layer, result.lowest))


def _places(layer: Layer, places: TopK) -> dict[str, Array]:
    return {
        "activation": places.activation,
        "image": places.image,
        "position": np.stack([places.row, places.column], axis=-1),
        "box": boxes(layer, places),
    }


def boxes(layer: Layer, places: TopK) -> NDArray[np.int32]:
    """Return the receptive field of each place in the input, (C, k, 4); zeros in empty slots."""
    rows, columns = layer.field.rows, layer.field.columns
    top = rows.start + rows.stride * places.row
    left = columns.start + columns.stride * places.column
    found = np.stack([top, left, top + rows.size, left + columns.size], axis=-1)
    return np.where((places.image >= 0)[..., None], found, 0).astype(np.int32)


@dataclass(frozen=True)
class Header:
    """What the files of one layer record about their origin."""

    model: str
    weights_sha256: str
    layer: str
    module: str
    mean: tuple[float, float, float]  # RGB, 0..255 units

    def write(self, file: h5py.File, kind: str) -> None:
        file.attrs.update(format=f"cnnvis/{kind}", version=VERSION, **self.__dict__)


@dataclass(frozen=True)
class Optimized:
    """Optimized images of some units in one style, in blocks of whole units."""

    record: Record
    units: Array  # (U,) channels
    shape: tuple[int, ...]  # (R, H, W)
    steps: int  # values of its history
    blocks: Iterable[dict[str, Array]]  # arrays by the names of the schema

    @classmethod
    def joined(cls, pieces: Sequence[Optimized]) -> Optimized:
        """Return the units of several pieces of one plan, each once."""
        rows = _in_order(map(_rows, pieces))
        blocks = ({n: v[i : i + 1] for n, v in block.items()} for _, block, i in rows)
        units = np.unique(np.concatenate([piece.units for piece in pieces]))
        return replace(pieces[0], units=units, blocks=blocks)


class OptimizedFile:
    """The file ``optimized/<layer>.h5``: one group per style, arrays by unit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def styles(self) -> dict[str, Record]:
        """Return the parameters of each stored style."""
        if not self.path.exists():
            return {}
        with _reading(self.path, "optimized") as file:
            return {name: _record(group.attrs["parameters"]) for name, group in file.items()}

    def units(self, style: str) -> NDArray[np.int32]:
        """Return the finished channels of a style."""
        if style not in self.styles():
            return np.empty(0, np.int32)
        with _reading(self.path, "optimized") as file:
            units: NDArray[np.int32] = file[style]["unit"][()]
            return units

    def canvas(self, style: str) -> tuple[int, int]:
        """Return the height and width of a style's images."""
        with _reading(self.path, "optimized") as file:
            shape = file[style]["image"].shape
            return int(shape[2]), int(shape[3])

    def read(self, style: str, name: str, rows: slice = slice(None)) -> Array:
        """Return one array of a style by its name in the schema, or the rows of some units."""
        with _reading(self.path, "optimized") as file:
            values: Array = file[style][name][rows]
            return values

    def pick(self, style: str, rows: Sequence[int], runs: Sequence[int]) -> NDArray[np.float32]:
        """Return one run of each of some rows: (n, h, w, 3)."""
        found = np.empty((len(rows), *self.canvas(style), 3), np.float32)
        with _reading(self.path, "optimized") as file:
            images = file[style]["image"]
            for i, (row, run) in enumerate(zip(rows, runs, strict=True)):
                found[i] = images[row, run]
        return found

    def publish(self, header: Header, added: dict[str, Optimized]) -> None:
        """Write the file anew with these styles beside those that it already holds.

        A style that exists already gains units and keeps its old ones.
        """
        styles = {name: [self.held(name)] for name in self.styles()}
        for name, optimized in added.items():
            styles.setdefault(name, []).append(optimized)
        with publishing_hdf5(self.path) as file:
            header.write(file, "optimized")
            for name, pieces in sorted(styles.items()):
                group = file.create_group(name)
                group.attrs["parameters"] = json.dumps(pieces[-1].record, sort_keys=True)
                _write_style(group, pieces)

    def held(self, style: str) -> Optimized:
        """Return a stored style, in blocks of a few units."""
        with _reading(self.path, "optimized") as file:
            shape, steps = file[style]["image"].shape, file[style]["history"].shape[2]
        units = self.units(style)
        room = max(1, (1 << 26) // (2 * int(np.prod(shape[1:]))))

        def blocks() -> Iterator[dict[str, Array]]:
            for first in range(0, len(units), room):
                with _reading(self.path, "optimized") as file:
                    rows = slice(first, first + room)
                    yield {name: file[style][name][rows] for name in OPTIMIZED_STYLE}

        return Optimized(self.styles()[style], units, tuple(shape[1:4]), steps, blocks())


class SearchFile:
    """The file ``search/<layer>.h5``: one group per search or sweep, arrays by row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def searches(self) -> dict[str, Record]:
        """Return the record of each stored search."""
        if not self.path.exists():
            return {}
        with _reading(self.path, "search") as file:
            return {name: _record(group.attrs["parameters"]) for name, group in file.items()}

    def read(self, search: str, name: str) -> Array:
        """Return one array of a search by its name in the schema."""
        with _reading(self.path, "search") as file:
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


@dataclass(frozen=True)
class Projected:
    """Projections of some channels of a layer in one method's group."""

    record: Record
    shape: tuple[int, ...]  # (C, k, h, w)
    channels: Iterable[tuple[int, Array, Array]]  # in order, each with (k, h, w, 3) and scale (k,)

    @classmethod
    def joined(cls, pieces: Sequence[Projected]) -> Projected:
        """Return the channels of several pieces of one plan, each once."""
        return replace(pieces[0], channels=_in_order(piece.channels for piece in pieces))


class ProjectedFile:
    """The file ``projected/<layer>.h5``: one group per method, arrays by channel and rank."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def methods(self) -> dict[str, Record]:
        """Return the plan of each method's projections."""
        if not self.path.exists():
            return {}
        with _reading(self.path, "projected") as file:
            return {name: _record(group.attrs["plan"]) for name, group in file.items()}

    def done(self, method: str) -> NDArray[np.bool_]:
        """Return which channels are projected: (C,)."""
        with _reading(self.path, "projected") as file:
            group = file[method]
            done: NDArray[np.bool_] = group["done"][()]
            return done

    def read(self, method: str, channel: int) -> tuple[Array, Array]:
        """Return a channel's projections (k, h, w, 3), float16, and their scales (k,)."""
        with _reading(self.path, "projected") as file:
            group = file[method]
            return group["projection"][channel], group["scale"][channel]

    def canvas(self, method: str) -> tuple[int, int]:
        """Return the height and width of a method's projections."""
        with _reading(self.path, "projected") as file:
            shape = file[method]["projection"].shape
            return int(shape[2]), int(shape[3])

    def publish(self, header: Header, added: dict[str, Projected]) -> None:
        """Write the file anew with these methods beside those that it already holds.

        A method that exists already gains channels and keeps its old ones.
        """
        methods = {name: [self.held(name)] for name in self.methods()}
        for name, projected in added.items():
            methods.setdefault(name, []).append(projected)
        with publishing_hdf5(self.path) as file:
            header.write(file, "projected")
            for name, pieces in sorted(methods.items()):
                group = file.create_group(name)
                group.attrs["plan"] = json.dumps(pieces[-1].record, sort_keys=True)
                _write_method(group, pieces)

    def held(self, method: str) -> Projected:
        """Return a stored method, channel by channel."""
        with _reading(self.path, "projected") as file:
            shape = file[method]["projection"].shape[:4]
        return Projected(self.methods()[method], shape, self._channels(method))

    def _channels(self, method: str) -> Iterator[tuple[int, Array, Array]]:
        for channel in np.flatnonzero(self.done(method)).tolist():
            yield (channel, *self.read(method, channel))


def _write_style(group: h5py.Group, pieces: list[Optimized]) -> None:
    """Write the units of several pieces in the order of their channels, each once."""
    units = np.unique(np.concatenate([piece.units for piece in pieces]))
    runs, *canvas = pieces[0].shape
    shapes = {
        "image": (len(units), runs, *canvas, 3),
        "history": (len(units), runs, pieces[0].steps),
        "unit": (len(units),),
    }
    columns = {
        name: create(group, OPTIMIZED_STYLE, name, shapes.get(name, (len(units), runs)))
        for name in OPTIMIZED_STYLE
    }
    small = {name: np.empty(c.shape, c.dtype) for name, c in columns.items() if name != "image"}
    written = 0

    def images() -> Iterator[tuple[int, Array]]:
        nonlocal written
        for row, (_, block, place) in enumerate(_in_order(map(_rows, pieces))):
            for name, values in small.items():
                values[row] = block[name][place]
            yield row, block["image"][place]
            written += 1

    write_rows(columns["image"], images())
    if written != len(units):
        raise CnnvisError(f"{group.file.filename}: a part has been removed meanwhile; run again")
    for name, values in small.items():
        columns[name][...] = values


def _rows(piece: Optimized) -> Iterator[tuple[int, dict[str, Array], int]]:
    """Yield each unit with its block and its row there."""
    for block in piece.blocks:
        yield from ((unit, block, row) for row, unit in enumerate(block["unit"].tolist()))


Rows = Iterable[Any]


def _in_order(pieces: Iterable[Rows]) -> Rows:
    """Yield the rows of several sorted pieces in the order of their first numbers, each once."""
    by_unit = groupby(merge(*pieces, key=itemgetter(0)), key=itemgetter(0))
    return (next(rows) for _, rows in by_unit)


def _write_method(group: h5py.Group, pieces: list[Projected]) -> None:
    """Write the channels of several pieces in their order, each once."""
    shape = pieces[0].shape
    projection = create(group, PROJECTED_METHOD, "projection", (*shape, 3))
    scales = np.full(shape[:2], np.nan, np.float32)
    done = np.zeros(shape[0], np.bool_)

    def projections() -> Iterator[tuple[int, Array]]:
        for channel, values, scale in _in_order(piece.channels for piece in pieces):
            scales[channel], done[channel] = scale, True
            yield channel, values

    write_rows(projection, projections())
    create(group, PROJECTED_METHOD, "scale", scales.shape)[...] = scales
    create(group, PROJECTED_METHOD, "done", done.shape)[...] = done


def box_of(row: NDArray[np.int32]) -> Box:
    """Return a stored box as a value."""
    return Box(*(int(edge) for edge in row))
