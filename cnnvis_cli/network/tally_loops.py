"""The tally's loops over a layer's maps, compiled for the CPU by numba.

Maps are (B, places, C), channels last, as the network computes them: the inner loops run along the
channels, one vector register after the other. Running sums are kept for one image at a time, so
that they stay in the nearest cache; the last image comes first, because it is what the layer has
just written. Each value is read from memory once, which is nearly the whole cost. Maps in bfloat16
come as the upper halves of float32 (int16), and are widened row by row on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from cnnvis_cli.arrays import Doubles, Floats, Int32s, Int64s

Maps = NDArray[Any]  # float32, or int16 for bfloat16

_FLOAT32_BLOCK = 128  # places that are summed in float32 before they are added in float64
_NARROW = 128  # channels; below, two places at a time are faster, from there on one
_ZERO, _ONE, _NONE = np.float32(0), np.int32(1), np.int32(0)
_NEAR_VALUES = 4096  # values in float32, 16 kB, that fit in the nearest cache
_NEAR = 64  # channels whose histograms, 128 kB, fit in a near cache


def _compile(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Return `loop` as machine code, cached on disk between processes where possible."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = njit(cache=True, **options)(loop)
    except RuntimeError:  # numba: no locator available, an installation that cannot be written to
        compiled = njit(**options)(loop)
    return compiled


def _adder(rows: int, rectify: bool) -> Callable[..., None]:
    """Return a loop that adds several places of a map at once to the channels' running sums.

    On request it rectifies them: values of 0 or below become 0.
    """

    def add(  # noqa: PLR0913 - the running sums
        some: Floats,
        first: int,
        top: Floats,
        at: Int32s,
        added: Floats,
        squared: Floats,
        above: Floats,
        on: Int32s,
    ) -> None:
        for c in range(some.shape[1]):  # all loads before all stores, or it is not vectorized
            best, where, ons = top[c], at[c], on[c]
            total, squares, positive = added[c], squared[c], above[c]
            for row in range(rows):
                x = some[row, c]
                stronger, is_on = x > best, x > _ZERO
                best = x if stronger else best
                where = np.int32(first + row) if stronger else where
                total += x
                squares += x * x
                positive += x if is_on else _ZERO
                ons += _ONE if is_on else _NONE
                if rectify:
                    some[row, c] = _ZERO if x <= _ZERO else x  # NaN stays
            top[c], at[c], on[c] = best, where, ons
            added[c], squared[c], above[c] = total, squares, positive

    inlined: Callable[..., None] = njit(inline="always", error_model="numpy")(add)
    return inlined


_add_one, _add_two = _adder(1, rectify=False), _adder(2, rectify=False)
_rectify_one, _rectify_two = _adder(1, rectify=True), _adder(2, rectify=True)


def _rows(_maps: Maps, _first: int, _last: int, _wide: Int32s) -> Any:
    """Return some places of a map in float32; those of a halved map stand in `wide`."""


def _put_back(_maps: Maps, _first: int, _last: int, _wide: Int32s) -> Any:
    """Write the places that `_rows` has widened, which have been rectified, back to their map."""


@overload(_rows, inline="always", strict=False)
def _rows_by_type(maps: Any, first: Any, last: Any, wide: Any) -> Callable[..., Any]:
    def own(maps: Floats, first: int, last: int, wide: Int32s) -> Any:
        return maps[first:last]

    def widened(maps: Maps, first: int, last: int, wide: Int32s) -> Any:
        halves, rows = maps[first:last], wide[: last - first]
        for row in range(len(halves)):
            for c in range(halves.shape[1]):
                rows[row, c] = np.int32(halves[row, c]) << 16
        return rows.view(np.float32)

    return widened if maps.dtype == types.int16 else own


@overload(_put_back, inline="always", strict=False)
def _put_back_by_type(maps: Any, first: Any, last: Any, wide: Any) -> Callable[..., Any]:
    def nothing(maps: Floats, first: int, last: int, wide: Int32s) -> None:
        pass

    def narrowed(maps: Maps, first: int, last: int, wide: Int32s) -> None:
        halves, rows = maps[first:last], wide[: last - first]
        for row in range(len(halves)):
            for c in range(halves.shape[1]):
                halves[row, c] = rows[row, c] >> 16

    return narrowed if maps.dtype == types.int16 else nothing


@_compile
def _add(  # noqa: PLR0913 - the running sums
    rows: Floats,
    first: int,
    rectify: bool,
    top: Floats,
    at: Int32s,
    added: Floats,
    squared: Floats,
    above: Floats,
    on: Int32s,
) -> None:
    """Add places of a map, the first of which has this number, to the running sums."""
    count, channels = rows.shape
    pairs = 0 if channels >= _NARROW else count - count % 2
    for here in range(0, pairs, 2):
        two = rows[here : here + 2]
        if rectify:
            _rectify_two(two, first + here, top, at, added, squared, above, on)
        else:
            _add_two(two, first + here, top, at, added, squared, above, on)
    for here in range(pairs, count):
        one = rows[here : here + 1]
        if rectify:
            _rectify_one(one, first + here, top, at, added, squared, above, on)
        else:
            _add_one(one, first + here, top, at, added, squared, above, on)


@_compile
def _first_number(maps: Maps, channel: int, lowest: float, wide: Int32s) -> int:
    """Return the first place of a map with this value; -1 if all are NaN."""
    for here in range(maps.shape[0]):
        if _rows(maps[:, channel : channel + 1], here, here + 1, wide)[0, 0] == lowest:
            return here
    return -1


@_compile
def _scratch(channels: int) -> tuple[Floats, Floats, Floats, Floats, Int32s, Int32s]:
    """Return rows for an image's largest values, sums, squares and positive parts, places, counts.

    Their distances are not powers of two, or all would need the same cache lines.
    """
    width = (channels + 15) // 16 * 16 + 16
    floats, wholes = np.empty(4 * width, np.float32), np.empty(2 * width, np.int32)
    top, added = floats[:channels], floats[width : width + channels]
    squared, above = floats[2 * width : 2 * width + channels], floats[3 * width :][:channels]
    return top, added, squared, above, wholes[:channels], wholes[width : width + channels]


@_compile
def _keep_largest(  # noqa: PLR0913 - the running maxima
    maps: Maps, rectify: bool, wide: Int32s, top: Floats, at: Int32s, value: Floats, place: Int32s
) -> None:
    """Write an image's largest values and their places; the first number's where none is larger."""
    for c in range(len(top)):
        if at[c] < 0:  # nothing above minus infinity, which rectifying has made 0
            at[c] = _first_number(maps, c, 0.0 if rectify else -np.inf, wide)
        value[c] = top[c] + _ZERO
        place[c] = at[c]


@_compile
def read(  # noqa: PLR0913 - four results
    maps: Maps,
    used: NDArray[np.bool_],
    rectify: bool,
    value: Floats,
    place: Int32s,
    positive: Doubles,
    sums: Doubles,
) -> None:
    """Fill the arrays of a `tally.Summary` from maps (B, places, C), and `rectify` these."""
    images, places, channels = maps.shape
    top, added, squared, above, at, on = _scratch(channels)
    wide = np.empty((max(2, _NEAR_VALUES // channels // 2 * 2), channels), np.int32)
    for image in range(images - 1, -1, -1):
        top[:], at[:], on[:] = -np.inf, -1, 0
        positive[image] = 0
        for start in range(0, places, _FLOAT32_BLOCK):
            added[:], squared[:], above[:] = 0, 0, 0
            stop = min(start + _FLOAT32_BLOCK, places)
            for first in range(start, stop, len(wide)):
                last = min(first + len(wide), stop)
                rows = _rows(maps[image], first, last, wide)
                _add(rows, first, rectify, top, at, added, squared, above, on)
                if rectify:
                    _put_back(maps[image], first, last, wide)
            positive[image] += above
            if used[image]:
                sums[0] += added
                sums[1] += squared
        _keep_largest(maps[image], rectify, wide, top, at, value[image], place[image])
        if used[image]:
            sums[2] += positive[image]
            sums[3] += on


@_compile
def fill(maps: Maps, rows: Int64s, places: Int64s, counts: Int32s, shift: int, lowest: int) -> None:
    """Count the places (n, s) of the images `rows` (n,) in the histograms `counts` (C, BINS).

    Channels are taken in groups, so that their histograms stay in a near cache. `shift` and
    `lowest` are DROPPED_BITS and FIRST of `histogram`: cached machine code does not notice
    changes in other files, so it must not contain them.
    """
    all_bins = counts.shape[1]
    side = all_bins // 2
    channels = maps.shape[2]
    flat = counts.ravel()
    found, wide = np.empty(_NEAR, np.int32), np.empty((2, _NEAR), np.int32)
    for first in range(0, channels, _NEAR):
        some = min(_NEAR, channels - first)
        for i in range(len(rows)):
            for here in places[i]:
                part = maps[rows[i], :, first : first + some]
                values = _rows(part, here, here + 1, wide[:, :some])[0]
                row = values.view(np.int32)
                for c in range(some):  # vectorized, unlike the counting below
                    x = row[c]
                    size = ((x & 0x7FFFFFFF) >> shift) - lowest
                    step = min(max(size, 0), side - 1)
                    above = x >= 0 or x == -0x80000000
                    found[c] = (first + c) * all_bins + (side + step if above else side - 1 - step)
                for c in range(some):
                    flat[found[c]] += values[c] == values[c]  # NaN is not


@_compile
def pack(counts: Int32s, where: Int32s, found: Int32s) -> int:
    """Write the positions of non-zero counts to `where`, the counts to `found`; return how many."""
    size = 0
    for i in range(len(counts)):
        if counts[i]:
            where[size], found[size] = i, counts[i]
            size += 1
    return size


@_compile
def rank(  # noqa: PLR0913 - what is offered and what is kept
    value: Floats,
    place: Int32s,
    used: NDArray[np.bool_],
    first: int,
    activation: Floats,
    image: Int64s,
    where: Int32s,
) -> None:
    """Insert values (B, M) of images from `first` on into the kept (M, k), strongest first.

    Images come in ascending order, so among equals the later one goes behind.
    """
    k = activation.shape[1]
    for b in range(value.shape[0]):
        if not used[b]:
            continue
        for c in range(value.shape[1]):
            x = value[b, c]
            if place[b, c] < 0 or (image[c, k - 1] >= 0 and x <= activation[c, k - 1]):
                continue
            slot = k - 1
            while slot > 0 and (image[c, slot - 1] < 0 or activation[c, slot - 1] < x):
                activation[c, slot] = activation[c, slot - 1]
                image[c, slot], where[c, slot] = image[c, slot - 1], where[c, slot - 1]
                slot -= 1
            activation[c, slot], image[c, slot], where[c, slot] = x, first + b, place[b, c]
