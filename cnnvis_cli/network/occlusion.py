"""A network's output while a grey square covers one part of its input after the other.

Zeiler & Fergus 2013, section 4.2. One forward pass per position gives all results. A square changes
only a small part of the first maps, so these are computed in a window around it, up to a cut, and
put into the maps of the image without it; see `cut`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnvis_cli.arrays import Int64s
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.cut import Cut, cuts
from cnnvis_cli.network.fusion import left_out
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.probability import ending_of, probabilities
from cnnvis_cli.network.survey import canonical, reading_outputs
from cnnvis_cli.network.window import NotWindowable, Window
from cnnvis_cli.nouns import Axis, Box, Layer, Size

GAIN = 0.1  # share of a pass's arithmetic that windows must save to be worth their own cost
Answer = tuple[Tensor, Tensor]  # a layer's totals (B, C), the classes' probabilities (B, K)


@dataclass(frozen=True)
class Squares:
    """Squares of `size` pixels in a grid: the top of each row, the left of each column."""

    size: int
    stride: int
    top: Int64s
    left: Int64s

    @classmethod
    def over(cls, image: Size, size: int, stride: int) -> Squares:
        """Return squares with centres `stride` pixels apart over the whole image, symmetrically.

        Each stands for the `stride` x `stride` pixels around its centre; parts beyond the border
        are cut off.
        """
        top, left = (_starts(length, size, stride) for length in image)
        return cls(size, stride, top, left)

    def nearest(self, image: Size) -> tuple[Int64s, Int64s]:
        """Return, for each row and each column of the image, the square with the nearest centre."""
        rows, columns = (
            np.abs(starts + (self.size - 1) / 2 - np.arange(length)[:, None]).argmin(axis=1)
            for starts, length in ((self.top, image[0]), (self.left, image[1]))
        )
        return rows, columns

    @property
    def shape(self) -> Size:
        return len(self.top), len(self.left)

    def __len__(self) -> int:
        return len(self.top) * len(self.left)


def _starts(length: int, size: int, stride: int) -> Int64s:
    count = -(-length // stride)
    centre = (length - 1 - (count - 1) * stride) / 2 + stride * np.arange(count)
    starts: Int64s = np.floor(centre - (size - 1) / 2 + 0.5).astype(np.int64)
    return starts


@dataclass(frozen=True)
class Occluded:
    """The result of each square, (rows, columns)."""

    total: NDArray[np.float32]  # of the map
    probability: NDArray[np.float32]  # of the class
    predicted: NDArray[np.int32]  # the most probable class


@dataclass(frozen=True)
class Side:
    """One axis, per square: the window of pixels, and the part of the cut's map that it gives."""

    low: Int64s  # pixels, inclusive
    high: Int64s  # exclusive
    first: Int64s  # places of the map
    last: Int64s  # exclusive
    kind: Int64s  # squares of one kind have windows of one size that meet the border alike

    @classmethod
    def of(cls, axis: Axis, starts: Int64s, size: int, length: int, places: int) -> Side:
        """Return the windows for squares of `size` pixels, on a side of `length` and `places`."""
        field, stride, start = axis.size, axis.stride, axis.start
        first = (starts - field - start) // stride + 1  # the first place that sees the square
        count = int((-(-(starts + size - start) // stride) - first).max())
        before = max(0, -(start // stride))  # places whose field extends beyond the border
        after = sum(start + stride * i + field > length for i in range(places))
        if count + before + after >= places:
            zero = np.zeros_like(starts)
            return cls(zero, zero + length, zero, zero + places, zero)
        kind = np.select([first < before, first + count > places - after], [0, 2], 1)
        begin = np.choose(kind, [np.zeros_like(first), first, places - after - count])
        end = np.choose(kind, [before + count + 0 * first, first + count, places + 0 * first])
        low = np.where(begin == 0, 0, start + stride * begin)
        high = np.where(end == places, length, start + stride * (end - 1) + field)
        return cls(low, high, begin, end, kind)

    def pixels(self, chosen: Int64s) -> Int64s:
        """Return the pixels of the windows of squares of one kind: (n, size)."""
        first = int(chosen[0])
        return self.low[chosen][:, None] + np.arange(self.high[first] - self.low[first])

    def places(self, chosen: Int64s) -> Int64s:
        """Return the places of the map that they give: (n, count)."""
        first = int(chosen[0])
        return self.first[chosen][:, None] + np.arange(self.last[first] - self.first[first])

    @property
    def mean(self) -> float:
        """The mean number of pixels of a window."""
        return float((self.high - self.low).mean())


@dataclass(frozen=True)
class Windows:
    """A cut, and the windows that are computed up to it."""

    cut: Cut
    rows: Side
    columns: Side
    saved: float  # share of the arithmetic of the whole pass

    @classmethod
    def of(cls, cut: Cut, squares: Squares, image: Size) -> Windows:
        rows, columns = (
            Side.of(axis, starts, squares.size, length, places)
            for axis, starts, length, places in zip(
                (cut.field.rows, cut.field.columns),
                (squares.top, squares.left),
                image,
                cut.map,
                strict=True,
            )
        )
        share = rows.mean * columns.mean / math.prod(image)
        return cls(cut, rows, columns, cut.work * (1 - share))


def best_windows(network: Network, layer: Layer, squares: Squares) -> Windows | None:
    """Return the cut before the layer that saves most arithmetic; None if none is worth it."""
    found = [
        Windows.of(cut, squares, network.size)
        for cut in cuts(network)
        if not any(_within(layer.module, name) for name in cut.modules)
    ]
    for windows in sorted(found, key=lambda each: -each.saved):
        if windows.saved < GAIN:
            break
        if _possible(network, windows):
            return windows
    return None


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _possible(network: Network, windows: Windows) -> bool:
    """Return whether the modules before the cut run on a window, with an unchanged rest.

    The rest could depend on the size of its input, which is then that of the map.
    """
    noise = torch.randn(1, 3, *network.size, generator=torch.Generator().manual_seed(0))
    inputs = network.normalise(50 * noise.to(network.device))  # grey levels
    cut = windows.cut
    with torch.no_grad():
        try:
            with Window(Box.whole(network.size), network.size) as walk:
                known = cut.early(network, walk.begin(inputs))
        except NotWindowable:
            return False
        whole = network.module(inputs)
        with left_out(cut.parts(network)):
            rest = network.module(known)
    return not isinstance(whole, Tensor) or bool(torch.allclose(whole, rest, 1e-3, 1e-4))


@contextmanager
def asking(network: Network, layer: Layer) -> Iterator[Callable[[Tensor], Answer]]:
    """Yield a function from normalised pixels (B, 3, h, w) to a layer's totals and probabilities.

    A channel's total is the sum of its rectified values over the map. Raise `UsageError` for a
    layer that runs more than once, and for a network whose output is not a row of class scores.
    """
    if layer.calls > 1:
        raise UsageError(
            f"{network.name}: {layer.alias} ({layer.module}) runs {layer.calls} times in one "
            "pass, so its maps have no single value; choose another --layer"
        )
    seen: list[Tensor] = []

    def see(layer: Layer, raw: object) -> None:
        output = canonical(layer, raw)
        seen.append(output.clamp(min=0).flatten(2).sum(2) if output.dim() > 2 else output.relu())

    def ask(pixels: Tensor) -> Answer:
        seen.clear()
        scores = network.module(pixels)
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            raise UsageError(f"{network.name}: gives no scores of classes, one for each")
        (totals,) = seen
        return totals, probabilities(network, scores)

    ending_of(network)  # before there are hooks
    with (
        torch.inference_mode(),
        network.in_place(),
        reading_outputs(network.module, [layer], see),
    ):
        yield ask


@dataclass(frozen=True)
class Scene:
    """An image (1, 3, h, w) and the colour of a square (1, 3, 1, 1), both normalised."""

    network: Network
    image: Tensor
    fill: Tensor

    @classmethod
    def of(cls, network: Network, centred: Tensor) -> Scene:
        """Return the scene of mean-subtracted pixels (1, 3, h, w); a square has the mean colour."""
        fill = network.normalise(centred.new_zeros(1, 3, 1, 1))
        return cls(network, network.normalise(centred), fill)


@dataclass(frozen=True)
class Positions:
    """Some of the squares, by their numbers, row by row, and what each covers of the input."""

    number: Int64s  # (n,)
    top: Int64s
    left: Int64s
    size: int

    @classmethod
    def of(cls, squares: Squares, order: Int64s) -> Positions:
        row, column = np.divmod(order, len(squares.left))
        return cls(order, squares.top[row], squares.left[column], squares.size)

    def __getitem__(self, part: slice) -> Positions:
        return Positions(self.number[part], self.top[part], self.left[part], self.size)

    def __len__(self) -> int:
        return len(self.number)

    def hides(self, rows: Int64s, columns: Int64s) -> Tensor:
        """Return which pixels, at rows (n, h) and columns (n, w), each covers: (n, 1, h, w)."""
        down, across = (
            torch.from_numpy((pixels >= start[:, None]) & (pixels < start[:, None] + self.size))
            for pixels, start in ((rows, self.top), (columns, self.left))
        )
        return down[:, None, :, None] & across[:, None, None, :]


SquareBatch = tuple[Int64s, Tensor]  # numbers of squares, and their network input


def whole_images(scene: Scene, squares: Squares, batch: int) -> Iterator[SquareBatch]:
    """Yield the whole image behind every square."""
    positions = Positions.of(squares, np.arange(len(squares)))
    height, width = scene.image.shape[2:]
    buffer = _copies(scene.image, min(batch, len(squares)))
    rows, columns = np.arange(height)[None], np.arange(width)[None]
    for start in range(0, len(positions), batch):
        part = positions[start : start + batch]
        hidden = part.hides(rows, columns).to(scene.image.device, non_blocking=True)
        inputs = buffer[: len(part)]
        torch.where(hidden, scene.fill, scene.image, out=inputs)
        yield part.number, inputs


def patched_maps(
    scene: Scene, windows: Windows, squares: Squares, batch: int
) -> Iterator[SquareBatch]:
    """Yield the map at the cut behind every square: the image's own, except in its window."""
    cut, rows, columns = windows.cut, windows.rows, windows.columns
    kinds = 3 * rows.kind[:, None] + columns.kind
    order = np.argsort(kinds.ravel(), kind="stable")
    positions, kind = Positions.of(squares, order), kinds.ravel()[order]
    known = cut.early(scene.network, scene.image.clone())
    buffer = _copies(known, min(batch, len(squares)))
    for start in range(0, len(positions), batch):
        part = positions[start : start + batch]
        maps = buffer[: len(part)]
        maps.copy_(known.expand_as(maps))
        ends = np.flatnonzero(np.diff(kind[start : start + batch])) + 1
        for begin, end in pairwise([0, *ends.tolist(), len(part)]):
            _patch(scene, windows, part[begin:end], maps[begin:end])
        yield part.number, maps


def _patch(scene: Scene, windows: Windows, part: Positions, maps: Tensor) -> None:
    """Put the changes behind squares of one kind into their maps (n, C, rows, columns)."""
    rows, columns, network = windows.rows, windows.columns, scene.network
    row, column = np.divmod(part.number, len(columns.low))
    down, across = rows.pixels(row), columns.pixels(column)
    device = maps.device
    pixels = _picked(scene.image, down, across)
    hidden = part.hides(down, across).to(device, non_blocking=True)
    inputs = torch.where(hidden, scene.fill, pixels)
    box = Box(int(down[0, 0]), int(across[0, 0]), int(down[0, -1]) + 1, int(across[0, -1]) + 1)
    with Window(box, network.size) as walk:
        found = windows.cut.early(network, walk.begin(inputs))
        top, left = walk.origin(found)
    places_down, places_across = rows.places(row), columns.places(column)
    begin = int(places_down[0, 0]) - top, int(places_across[0, 0]) - left
    height, width = places_down.shape[1], places_across.shape[1]
    found = found[:, :, begin[0] : begin[0] + height, begin[1] : begin[1] + width]
    _picked_places(maps, places_down, places_across, found)


def _picked(image: Tensor, rows: Int64s, columns: Int64s) -> Tensor:
    """Return windows of one image: (1, 3, h, w), rows (n, a), columns (n, b) -> (n, 3, a, b)."""
    down, across = (torch.from_numpy(each).to(image.device) for each in (rows, columns))
    last = image.permute(0, 2, 3, 1)[0]  # channels last, like the result
    return last[down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def _picked_places(maps: Tensor, rows: Int64s, columns: Int64s, values: Tensor) -> None:
    """Write values (n, C, a, b) at these rows and columns of n maps."""
    down, across = (torch.from_numpy(each).to(maps.device) for each in (rows, columns))
    each = torch.arange(len(maps), device=maps.device)[:, None, None]
    target = maps.permute(0, 2, 3, 1)
    target[each, down[:, :, None], across[:, None, :]] = values.permute(0, 2, 3, 1)


def _copies(image: Tensor, count: int) -> Tensor:
    """Return room for so many copies of (1, C, h, w), channels last."""
    shape = (count, *image.shape[1:])
    return torch.empty(
        shape, dtype=image.dtype, device=image.device, memory_format=torch.channels_last
    )


@dataclass(frozen=True)
class Occluder:
    """How squares are computed for a network's images: which, how many at a time, and where."""

    network: Network
    layer: Layer
    squares: Squares
    batch: int
    windows: Windows | None

    @classmethod
    def of(cls, network: Network, layer: Layer, squares: Squares, batch: int) -> Occluder:
        windows = best_windows(network, layer, squares)
        return cls(network, layer, squares, batch, windows)

    def unoccluded(self, centred: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the layer's totals (C,) and class probabilities (K,) of an image (1, 3, h, w)."""
        with asking(self.network, self.layer) as ask:
            totals, probabilities = ask(self.network.normalise(centred))
            return totals[0].cpu().numpy(), probabilities[0].cpu().numpy()

    def run(
        self,
        centred: Tensor,
        channel: int,
        label: int,
        told: Callable[[int], None] = lambda _: None,
    ) -> Occluded:
        """Return a channel's total, a class's probability and the most probable class per square.

        `told` is called after each batch with its number of squares.
        """
        scene = Scene.of(self.network, centred)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        order: list[Int64s] = []
        with asking(self.network, self.layer) as ask:
            for numbers, inputs in self._batches(scene):
                with left_out(self._before):
                    totals, chances = ask(inputs)
                found.append((totals[:, channel], chances[:, label], chances.argmax(1)))
                order.append(numbers)
                told(len(numbers))
            columns = [torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)]
        back = np.argsort(np.concatenate(order))
        total, probability, predicted = (c[back].reshape(self.squares.shape) for c in columns)
        return Occluded(total, probability, predicted.astype(np.int32))

    def _batches(self, scene: Scene) -> Iterator[SquareBatch]:
        if self.windows is None:
            return whole_images(scene, self.squares, self.batch)
        return patched_maps(scene, self.windows, self.squares, self.batch)

    @property
    def _before(self) -> list[nn.Module]:
        """The modules before the cut, whose output the map already is."""
        return self.windows.cut.parts(self.network) if self.windows else []
