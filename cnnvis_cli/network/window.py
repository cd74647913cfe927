"""Running a network on a window of its input, with exactly the values of the whole input.

A convolution's unit sees only its receptive field, so only that has to be computed: each map is a
patch of the full map, and a window operation pads only where the patch touches the full map's
border. With exactly the field of one unit as input, its layer's output is that one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.network.operations import WEIGHTED, Role, Sliding
from cnnvis_cli.network.walk import (
    PERMUTING,
    Call,
    Map,
    Walk,
    function_name,
    permuted,
    stays_in_place,
    tensors,
)
from cnnvis_cli.nouns import Box, Size


class NotWindowable(CnnvisError):
    """The network mixes all places before the layer; only the whole input gives its value."""


@dataclass(frozen=True)
class Patch:
    """Rows or columns ``begin`` to ``end`` of a full map of `full`, along one axis."""

    begin: int
    end: int
    full: int

    @property
    def length(self) -> int:
        return self.end - self.begin

    def overlap(self, other: Patch) -> Patch:
        begin = max(self.begin, other.begin)
        return Patch(begin, max(min(self.end, other.end), begin), self.full)


Patches = tuple[Patch, Patch]  # rows, columns


class Window(Walk[Patches]):
    """A forward pass over the window `box` of an input of `size`; to be used in a ``with`` block.

    Pass the window's pixels to `begin`. Raise `NotWindowable` if the value of a place does not
    depend on a window alone (a fully connected layer, adaptive or ceil-mode averages).
    """

    def __init__(self, box: Box, size: Size) -> None:
        super().__init__()
        self.box, self.size = box, size

    def begin(self, pixels: Tensor) -> Tensor:
        """Take the window's pixels, (B, 3, h, w), as the start of the pass."""
        rows = Patch(self.box.top, self.box.bottom, self.size[0])
        columns = Patch(self.box.left, self.box.right, self.size[1])
        self[pixels] = Map((rows, columns))
        return pixels

    def origin(self, output: Tensor) -> Size:
        """Return the row and column of the full map of the output's first place."""
        known = self[output]
        if known is None or not all(patch.length for patch in known.state):
            raise NotWindowable("the window is smaller than the receptive field")
        return known.state[0].begin, known.state[1].begin

    def slide(
        self, known: Map[Patches], window: Sliding, func: Call, args: tuple[Any, ...], kwargs: Any
    ) -> Tensor:
        if not window.exact:
            raise NotWindowable("averages over a partly counted border need the whole input")
        tensor: Tensor = args[0]
        cuts = [_cut_axis(patch, window, axis) for axis, patch in enumerate(known.state)]
        (top, bottom, rows), (left, right, columns) = cuts
        if rows.length and columns.length:
            margin = (left, right, top, bottom)
            out = window.apply(nn.functional.pad(tensor, margin, value=window.fill))
        else:  # a branch that sees more than this window; its values must not be used
            channels = window.channels or tensor.shape[1]
            out = tensor.new_empty(len(tensor), channels, rows.length, columns.length)
        self[out] = Map((rows, columns))
        return out

    def pad(
        self,
        known: Map[Patches],
        tensor: Tensor,
        pad: Sequence[int],
        mode: str = "constant",
        value: float | None = None,
    ) -> Tensor:
        if mode != "constant" or known.dims is None:
            raise NotWindowable(f"a {mode} padding needs the whole input")
        inner, patches = list(pad), []
        for dim, patch in zip(known.dims, known.state, strict=True):
            place = 2 * (-1 - dim)
            before, after = inner[place : place + 2] or [0, 0]
            if min(before, after) < 0:
                raise NotWindowable("a negative padding needs the whole input")
            first, last = patch.begin == 0, patch.end == patch.full
            begin = 0 if first else patch.begin + before
            end = patch.end + before + (after if last else 0)
            if place < len(inner):
                inner[place : place + 2] = [before * first, after * last]
            patches.append(Patch(begin, end, patch.full + before + after))
        out = nn.functional.pad(tensor, inner, value=value)
        self[out] = Map((patches[0], patches[1]), known.dims)
        return out

    def pointwise(self, maps: list[Map[Patches]], func: Call, args: Any, kwargs: Any) -> Any:
        if len({(known.dims, *(patch.full for patch in known.state)) for known in maps}) > 1:
            raise NotWindowable("maps of unequal sizes meet")
        if func not in WEIGHTED and self._differs_by_place([args, kwargs], maps[0]):
            raise NotWindowable("the network has numbers of its own for each place")
        rows, columns = maps[0].state
        for known in maps[1:]:
            rows, columns = rows.overlap(known.state[0]), columns.overlap(known.state[1])
        shared = Map((rows, columns), maps[0].dims)
        out = func(*self._crop(args, shared), **self._crop(kwargs, shared))
        for result in tensors(out):
            self[result] = shared
        return out

    def mix(self, role: Role, maps: list[Map[Patches]], func: Call, args: Any, kwargs: Any) -> Any:
        if func in PERMUTING and maps[0].dims is not None:
            out = func(*args, **kwargs)
            self[out] = permuted(maps[0], func, args, kwargs)
            return out
        if stays_in_place(role, func, args, kwargs, maps[0]):
            return self.pointwise(maps, func, args, kwargs)
        raise NotWindowable(f"{function_name(func)} mixes all places of its map")

    def unknown(self, maps: list[Map[Patches]], func: Call, out: Any) -> Any:
        raise NotWindowable(f"{function_name(func)} is not an operation that cnnvis knows")

    def unseen(self, tensor: Tensor) -> Map[Patches]:
        raise NotWindowable("a part of the network cannot be followed")

    def _differs_by_place(self, values: Any, known: Map[Patches]) -> bool:
        """Return whether nested arguments contain a tensor of the network with rows or columns."""
        return any(
            self[tensor] is None and tensor.dim() >= -dim and tensor.shape[dim] > 1
            for tensor in tensors(values)
            for dim in known.dims or ()
        )

    def _crop(self, values: Any, shared: Map[Patches]) -> Any:
        """Crop each map among nested arguments to their common patch."""
        if isinstance(values, Tensor):
            known = self[values]
            return values if known is None else _narrow(values, known, shared)
        if isinstance(values, dict):
            return {name: self._crop(value, shared) for name, value in values.items()}
        if isinstance(values, (list, tuple)):
            return type(values)(self._crop(value, shared) for value in values)
        return values


def _cut_axis(patch: Patch, window: Sliding, axis: int) -> tuple[int, int, Patch]:
    """Return the padding before and after a patch (negative: crop), and the resulting patch."""
    (before, _), stride = window.padding[axis], window.stride[axis]
    extent = window.dilation[axis] * (window.kernel[axis] - 1) + 1
    places = window.length(axis, patch.full)
    first = 0 if patch.begin == 0 else -(-(patch.begin + before) // stride)
    last = places if patch.end == patch.full else (patch.end + before - extent) // stride + 1
    if last <= first:
        return 0, 0, Patch(first, first, places)
    start = first * stride - before  # in the full map, of the first window
    stop = (last - 1) * stride - before + extent
    return patch.begin - start, stop - patch.end, Patch(first, last, places)


def _narrow(tensor: Tensor, known: Map[Patches], shared: Map[Patches]) -> Tensor:
    """Return the part of a map's patch that the shared patch covers."""
    if known.state == shared.state or known.dims is None:
        return tensor
    for dim, have, want in zip(known.dims, known.state, shared.state, strict=True):
        begin = min(want.begin - have.begin, have.length)
        tensor = tensor.narrow(dim, begin, want.length)
    return tensor
