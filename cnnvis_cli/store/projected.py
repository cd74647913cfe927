"""A layer's projections by method: ``projected/<layer>.h5``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.store.chunks import merged_rows, write_rows
from cnnvis_cli.store.hdf5 import Array, Header, parse_record, reading
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import PROJECTED_METHOD, create


@dataclass(frozen=True)
class Projected:
    """Projections of some channels of a layer in one method's group."""

    record: Record
    shape: tuple[int, ...]  # (C, k, h, w)
    channels: Iterable[tuple[int, Array, Array]]  # in order, each with (k, h, w, 3) and scale (k,)

    @classmethod
    def joined(cls, pieces: Sequence[Projected]) -> Projected:
        """Return the channels of several pieces of one plan, each once."""
        return replace(pieces[0], channels=merged_rows(piece.channels for piece in pieces))


class ProjectedFile:
    """The file ``projected/<layer>.h5``: one group per method, arrays by channel and rank."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def methods(self) -> dict[str, Record]:
        """Return the plan of each method's projections."""
        if not self.path.exists():
            return {}
        with reading(self.path, "projected") as file:
            return {name: parse_record(group.attrs["plan"]) for name, group in file.items()}

    def done(self, method: str) -> NDArray[np.bool_]:
        """Return which channels are projected: (C,)."""
        with reading(self.path, "projected") as file:
            group = file[method]
            done: NDArray[np.bool_] = group["done"][()]
            return done

    def read(self, method: str, channel: int) -> tuple[Array, Array]:
        """Return a channel's projections (k, h, w, 3), float16, and their scales (k,)."""
        with reading(self.path, "projected") as file:
            group = file[method]
            return group["projection"][channel], group["scale"][channel]

    def rows(self, method: str, rows: slice) -> tuple[Array, Array]:
        """Return the same of neighbouring channels: (n, k, h, w, 3) and (n, k)."""
        with reading(self.path, "projected") as file:
            group = file[method]
            return group["projection"][rows], group["scale"][rows]

    def canvas(self, method: str) -> tuple[int, int]:
        """Return the height and width of a method's projections."""
        with reading(self.path, "projected") as file:
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
        with reading(self.path, "projected") as file:
            shape = file[method]["projection"].shape[:4]
        return Projected(self.methods()[method], shape, self._channels(method))

    def _channels(self, method: str) -> Iterator[tuple[int, Array, Array]]:
        for channel in np.flatnonzero(self.done(method)).tolist():
            yield (channel, *self.read(method, channel))


def _write_method(group: h5py.Group, pieces: list[Projected]) -> None:
    """Write the channels of several pieces in their order, each once."""
    shape = pieces[0].shape
    projection = create(group, PROJECTED_METHOD, "projection", (*shape, 3))
    scales = np.full(shape[:2], np.nan, np.float32)
    done = np.zeros(shape[0], np.bool_)

    def projections() -> Iterator[tuple[int, Array]]:
        for channel, values, scale in merged_rows(piece.channels for piece in pieces):
            scales[channel], done[channel] = scale, True
            yield channel, values

    write_rows(projection, projections())
    create(group, PROJECTED_METHOD, "scale", scales.shape)[...] = scales
    create(group, PROJECTED_METHOD, "done", done.shape)[...] = done
