"""A layer's optimized images by style: ``optimized/<layer>.h5``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.store.chunks import merged_rows, write_rows
from cnnvis_cli.store.hdf5 import Array, Header, parse_record, reading
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import (
    MAJORITY,
    OPTIMIZED_STYLE,
    PHOTOGRAPH,
    TRANSPARENCY,
    Table,
    create,
)


@dataclass(frozen=True)
class Optimized:
    """Optimized images of some units in one style, in blocks of whole units."""

    record: Record
    units: Array  # (U,) channels
    shape: tuple[int, ...]  # (R, H, W)
    steps: int  # values of its history
    blocks: Iterable[dict[str, Array]]  # arrays by the names of the schema

    @property
    def table(self) -> Table:
        """Return the arrays that its style has."""
        return style_columns(self.record)

    @classmethod
    def joined(cls, pieces: Sequence[Optimized]) -> Optimized:
        """Return the units of several pieces of one plan, each once."""
        rows = merged_rows(map(_unit_rows, pieces))
        blocks = ({n: v[i : i + 1] for n, v in block.items()} for _, block, i in rows)
        units = np.unique(np.concatenate([piece.units for piece in pieces]))
        return replace(pieces[0], units=units, blocks=blocks)


def style_columns(record: Record) -> Table:
    """Return the arrays of a style with these parameters."""
    more = {"Maco": TRANSPARENCY, "Accent": PHOTOGRAPH}
    own = more.get(record.get("image", {}).get("kind", ""), {})
    return OPTIMIZED_STYLE | own | (MAJORITY if record.get("majority") else {})


class OptimizedFile:
    """The file ``optimized/<layer>.h5``: one group per style, arrays by unit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def styles(self) -> dict[str, Record]:
        """Return the parameters of each stored style."""
        if not self.path.exists():
            return {}
        with reading(self.path, "optimized") as file:
            return {name: parse_record(group.attrs["parameters"]) for name, group in file.items()}

    def units(self, style: str) -> NDArray[np.int32]:
        """Return the finished channels of a style."""
        if style not in self.styles():
            return np.empty(0, np.int32)
        with reading(self.path, "optimized") as file:
            units: NDArray[np.int32] = file[style]["unit"][()]
            if (np.diff(units) <= 0).any() or len(units) != len(file[style]["image"]):
                raise ValueError(f"{style}: its units are not in ascending order, each once")
            return units

    def canvas(self, style: str) -> tuple[int, int]:
        """Return the height and width of a style's images."""
        with reading(self.path, "optimized") as file:
            shape = file[style]["image"].shape
            return int(shape[2]), int(shape[3])

    def read(self, style: str, name: str, rows: slice | NDArray[np.intp] = slice(None)) -> Array:
        """Return one array of a style by its name in the schema, or some rows, ascending."""
        with reading(self.path, "optimized") as file:
            values: Array = file[style][name][rows]
            return values

    def pick(self, style: str, rows: Sequence[int], runs: Sequence[int]) -> NDArray[np.float32]:
        """Return one run of each of some rows: (n, h, w, 3)."""
        found = np.empty((len(rows), *self.canvas(style), 3), np.float32)
        with reading(self.path, "optimized") as file:
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
                if not _write_style(group, pieces):
                    raise CnnvisError(f"{self.path}: a part has been removed meanwhile; run again")

    def held(self, style: str) -> Optimized:
        """Return a stored style, in blocks of a few units."""
        with reading(self.path, "optimized") as file:
            shape, steps = file[style]["image"].shape, file[style]["history"].shape[2]
        units, record = self.units(style), self.styles()[style]
        names = list(style_columns(record))
        room = max(1, (1 << 26) // (2 * int(np.prod(shape[1:]))))

        def blocks() -> Iterator[dict[str, Array]]:
            for first in range(0, len(units), room):
                with reading(self.path, "optimized") as file:
                    rows = slice(first, first + room)
                    yield {name: file[style][name][rows] for name in names}

        return Optimized(record, units, tuple(shape[1:4]), steps, blocks())


def _write_style(group: h5py.Group, pieces: list[Optimized]) -> bool:
    """Write the units of several pieces in the order of their channels, each once.

    Return whether all of them were to be had.
    """
    units = np.unique(np.concatenate([piece.units for piece in pieces]))
    runs, *canvas = pieces[0].shape
    table = pieces[-1].table
    shapes = {
        "image": (len(units), runs, *canvas, 3),
        "majority": (len(units), runs, *canvas, 3),
        "history": (len(units), runs, pieces[0].steps),
        "unit": (len(units),),
        "transparency": (len(units), runs, *canvas),
        "photograph": (len(units), *canvas, 3),
    }
    columns = {
        name: create(group, table, name, shapes.get(name, (len(units), runs))) for name in table
    }
    large = {"image", "majority"}
    small = {n: np.empty(c.shape, c.dtype) for n, c in columns.items() if n not in large}
    written = 0

    def images() -> Iterator[tuple[int, Array]]:
        nonlocal written
        for row, (_, block, place) in enumerate(merged_rows(map(_unit_rows, pieces))):
            for name, values in small.items():
                values[row] = block[name][place]
            if "majority" in columns:
                columns["majority"][row] = block["majority"][place]
            yield row, block["image"][place]
            written += 1

    write_rows(columns["image"], images())
    for name, values in small.items():
        columns[name][...] = values
    return written == len(units)


def _unit_rows(piece: Optimized) -> Iterator[tuple[int, dict[str, Array], int]]:
    """Yield each unit with its block and its row there."""
    for block in piece.blocks:
        yield from ((unit, block, row) for row, unit in enumerate(block["unit"].tolist()))
