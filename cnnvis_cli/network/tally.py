"""What a pass over images records per channel: its strongest places, sums and a histogram.

The channels of all layers lie side by side, M of them; the places of a map are counted row by row.
One pass over a layer's maps gives everything. On a CPU the loops are compiled (numba), because a
convnet's maps are so large that every further pass over them costs as much as a layer; on a GPU,
and without numba, tensor operations give the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli import histogram
from cnnvis_cli.arrays import Arrays
from cnnvis_cli.light_imports import uncollected, without_library
from cnnvis_cli.nouns import Layer

PIECE = 1 << 25  # values that are summed at a time in tensor operations
HISTOGRAM_SAMPLE = 8  # places of an image's map that are counted in the histogram


class Slots(NamedTuple):
    """Which images a batch holds: consecutive ones from `first`."""

    first: int
    used: NDArray[np.bool_]  # (B,)
    labels: NDArray[np.int32]  # (B,), -1 without a class


@dataclass(frozen=True)
class Summary:
    """Of B images and C channels: the largest value and its place, and sums over the maps.

    NaN is not an activation: a map of only NaN has place -1. Sums include it. A value is never -0.
    Sums are in float32 for up to 128 places, in float64 beyond.
    """

    value: Tensor  # (B, C) float32
    place: Tensor  # (B, C) int32, row by row
    positive: Tensor  # (B, C) float64, the sum of the values above 0
    sums: Tensor  # (4, C) float64 over used images: values, squares, positive, places above 0


def summarise(flat: Tensor, used: NDArray[np.bool_], rectify: bool = False) -> Summary:
    """Read maps (B, places, C), counting the images `used` (B,); then `rectify` them in place.

    Rectifying on the way costs nothing more if the loops are compiled.
    """
    compiled = _compiled(flat.device)
    if compiled is None:
        found = _read_in_pieces(flat, _moved(used, flat.device))
        if rectify:
            flat.relu_()
        return found
    images, _, channels = flat.shape
    shape, doubles = (images, channels), torch.float64
    value, place = torch.empty(shape), torch.empty(shape, dtype=torch.int32)
    positive, sums = torch.empty(shape, dtype=doubles), torch.zeros(4, channels, dtype=doubles)
    results = (t.numpy() for t in (value, place, positive, sums))
    compiled.read(_numbers(flat), used, rectify, *results)
    return Summary(value, place, positive, sums)


def places_first(maps: Tensor, halved: bool = False) -> Tensor:
    """Return (B, C, h, w) or (B, C) as (B, h * w, C), contiguous, float32.

    Those in bfloat16 may stay `halved`: the compiled loops read them as they are.
    """
    flat = maps.permute(0, 2, 3, 1).flatten(1, 2) if maps.dim() == 4 else maps[:, None]
    flat = flat.contiguous()
    return flat if halved and flat.dtype == torch.bfloat16 else flat.float()


def _numbers(flat: Tensor) -> NDArray[Any]:
    """Return maps as the compiled loops take them: bfloat16 as whole numbers of 16 bits."""
    return (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy()


def _moved(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return a small array on a device, without waiting for the device's pending work."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _read_in_pieces(flat: Tensor, used: Tensor) -> Summary:
    """Read some images at a time, since sums in float64 need copies in float64."""
    some = max(1, PIECE // flat[0].numel())
    firsts = range(0, len(flat), some)
    pieces = [_summarize(flat[i : i + some], used[i : i + some]) for i in firsts]
    return Summary(
        value=torch.cat([piece.value for piece in pieces]),
        place=torch.cat([piece.place for piece in pieces]),
        positive=torch.cat([piece.positive for piece in pieces]),
        sums=torch.stack([piece.sums for piece in pieces]).sum(dim=0),
    )


def _summarize(flat: Tensor, used: Tensor) -> Summary:
    """Read maps with tensor operations."""
    none = flat.isnan()
    value, place = flat.masked_fill(none, float("-inf")).max(dim=1)
    number = none.logical_not().byte().argmax(dim=1)  # the first place with a number
    place = torch.where(value == float("-inf"), number, place)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    total = flat.sum(dim=1, dtype=torch.float64)
    positive = torch.where(flat > 0, flat, 0).sum(dim=1, dtype=torch.float64)
    active = (flat > 0).sum(dim=1, dtype=torch.float64)
    sums = torch.stack((total, norm**2, positive, active))  # (4, B, C)
    return Summary(
        value=value + 0.0,
        place=place.int().masked_fill_(none.all(dim=1), -1),
        positive=positive,
        sums=sums.masked_fill(~used[:, None], 0).sum(dim=1),
    )


def sampled_places(images: NDArray[np.int64], places: int) -> NDArray[np.int64]:
    """Return the places of each image's map that are counted: (B,) -> (B, up to SAMPLE).

    They are evenly spread, from a start that differs from image to image, so that no part of the
    map is preferred; small maps are counted in full.
    """
    count = min(HISTOGRAM_SAMPLE, places)
    start = images * 2654435761 % places  # Knuth's multiplicative hash
    return (start[:, None] + np.arange(count) * (places // count)) % places


class Ranking(Protocol):
    """The k largest values of each of M channels over images that come in ascending order."""

    def offer(self, value: Tensor, place: Tensor, slots: Slots) -> None:
        """Take a batch's largest values and their places, (B, M) each; place -1 means none."""

    def arrays(self) -> Arrays:
        """Return `activation` float32, `image` int64 (-1 if empty), and `place`: (M, k) each."""


class Inserted:
    """A ranking by insertion, one value after the other."""

    def __init__(self, channels: int, k: int, loops: Loops) -> None:
        self._activation = np.full((channels, k), np.nan, np.float32)
        self._image = np.full((channels, k), -1, np.int64)
        self._place = np.zeros((channels, k), np.int32)
        self._loops = loops

    def offer(self, value: Tensor, place: Tensor, slots: Slots) -> None:
        kept = (self._activation, self._image, self._place)
        self._loops.rank(value.numpy(), place.numpy(), slots.used, slots.first, *kept)

    def arrays(self) -> Arrays:
        return {"activation": self._activation, "image": self._image, "place": self._place}


class Keyed:
    """A ranking by keys: unique whole numbers, value first and then the earlier image.

    So ties have the same order on every device, which Tensor.topk does not guarantee.
    """

    def __init__(self, channels: int, k: int, device: torch.device) -> None:
        self._keys = torch.full((channels, k), _EMPTY, device=device)
        self._places = torch.zeros((channels, k), dtype=torch.int32, device=device)

    def offer(self, value: Tensor, place: Tensor, slots: Slots) -> None:
        images = torch.arange(slots.first, slots.first + len(value), device=value.device)
        unused = _moved(~slots.used, value.device)
        keys = _key(value, images[:, None]).masked_fill((place < 0) | unused[:, None], _EMPTY)
        both = torch.cat((self._keys, keys.T), dim=1)
        self._keys, rows = both.topk(self._keys.shape[1], dim=1)
        self._places = torch.cat((self._places, place.T), dim=1).gather(1, rows)

    def arrays(self) -> Arrays:
        value, image = _unkey(self._keys)
        none = self._keys == _EMPTY
        return {
            "activation": value.masked_fill(none, float("nan")).cpu().numpy(),
            "image": image.masked_fill(none, -1).cpu().numpy(),
            "place": self._places.masked_fill(none, 0).cpu().numpy(),
        }


def _ranking(channels: int, k: int, device: torch.device) -> Ranking:
    loops = _compiled(device)
    return Keyed(channels, k, device) if loops is None else Inserted(channels, k, loops)


_EMPTY = torch.iinfo(torch.int64).min
_LOW = 0xFFFFFFFF


def _key(value: Tensor, image: Tensor) -> Tensor:
    """Return a whole number that orders by value, and equal values by the earlier image."""
    bits = value.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as whole numbers they now sort like floats
    return (ordered.long() << 32) | (_LOW - image)


def _unkey(keys: Tensor) -> tuple[Tensor, Tensor]:
    ordered = (keys >> 32).int()
    value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return value, _LOW - (keys & _LOW)


class Tally:
    """Running statistics of M channels, layer beside layer; read with `arrays`."""

    def __init__(self, layers: Sequence[Layer], k: int, minima: bool, device: torch.device) -> None:
        self._layers, self._device = layers, device
        starts = np.cumsum([0, *(layer.channels for layer in layers)]).tolist()
        self._start = {layer.alias: start for layer, start in zip(layers, starts, strict=False)}
        channels = starts[-1]
        self._strongest = _ranking(channels, k, device)
        self._weakest = _ranking(channels, k, device) if minima else None
        self._sums = torch.zeros(4, channels, dtype=torch.float64, device=device)
        self._histogram = torch.zeros(channels, histogram.BINS, dtype=torch.int32, device=device)
        self._classes: dict[int, tuple[int, Tensor]] = {}
        self._images = 0
        self._seen: dict[str, Summary] = {}
        self._low: dict[str, Summary] = {}
        self._sampled: dict[int, NDArray[np.int64]] = {}

    def see(self, layer: Layer, output: Tensor, slots: Slots, rectify: bool = False) -> None:
        """Read a layer's output for a batch, (B, C, h, w) or (B, C); then `rectify` it in place."""
        compiled = _compiled(self._device) is not None
        flat = places_first(output, halved=compiled and self._weakest is None)
        self._count(self._start[layer.alias], flat, slots)
        if self._weakest is not None:
            self._low[layer.alias] = summarise(-flat, slots.used)
        own = flat.data_ptr() == output.data_ptr()
        self._seen[layer.alias] = summarise(flat, slots.used, rectify and own)
        if rectify and not own:
            output.relu_()

    def end(self, slots: Slots) -> Summary:
        """Record a batch, once all layers have been seen; return all layers side by side."""
        seen = self._joined(self._seen)
        self._strongest.offer(seen.value, seen.place, slots)
        if self._weakest is not None:
            low = self._joined(self._low)
            self._weakest.offer(low.value, low.place, slots)
        self._sums += seen.sums
        self._images += int(slots.used.sum())
        self._sort_by_class(seen.positive, slots)
        self._sampled.clear()
        return seen

    def _joined(self, by_layer: dict[str, Summary]) -> Summary:
        """Return the layers side by side, and forget them."""
        pieces = [by_layer.pop(layer.alias) for layer in self._layers]
        names = Summary.__dataclass_fields__
        return Summary(*(torch.cat([getattr(p, n) for p in pieces], dim=1) for n in names))

    def _sort_by_class(self, positive: Tensor, slots: Slots) -> None:
        """Add each image's positive sums to its class, in runs of images of one class."""
        rows = np.flatnonzero(slots.used & (slots.labels >= 0))
        if not len(rows):
            return
        labels = slots.labels[rows]
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(labels)) + 1):
            label, chosen = int(labels[run[0]]), _moved(rows[run], self._device)
            count, total = self._classes.get(label, (0, torch.zeros_like(positive[0])))
            self._classes[label] = count + len(run), total + positive[chosen].sum(dim=0)

    def _sample(self, places: int, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the same places for all maps of a size."""
        if places not in self._sampled:
            self._sampled[places] = sampled_places(images, places)
        return self._sampled[places]

    def _count(self, start: int, flat: Tensor, slots: Slots) -> None:
        """Count some places of each used image in the histogram of its channels."""
        rows = np.flatnonzero(slots.used)
        places = self._sample(flat.shape[1], slots.first + rows)
        part = self._histogram[start : start + flat.shape[2]]
        compiled = _compiled(self._device)
        if compiled is not None:
            bits = (histogram.DROPPED_BITS, histogram.FIRST_BIN)
            compiled.fill(_numbers(flat), rows, places, part.numpy(), *bits)
            return
        chosen = flat[_moved(rows[:, None], self._device), _moved(places, self._device)]
        _count(chosen.flatten(0, 1), part)

    def arrays(self) -> Arrays:
        """Return everything as numpy arrays, channel first except for the classes.

        `total`, `squares`, `positive`, `active`: (M,) sums over `images` images; `bin` and
        `count`: the histogram's entries that are not 0, by position in (M, BINS); `class` (L,)
        with `class_images` (L,) and `class_positive` (L, M).
        """
        names = ("total", "squares", "positive", "active")
        filled, counts = self._filled()
        labels = sorted(self._classes)
        found = self._strongest.arrays() | dict(zip(names, self._sums.cpu().numpy(), strict=True))
        if self._weakest is not None:
            found |= {f"min.{name}": values for name, values in self._weakest.arrays().items()}
        by_class = [self._classes[label][1] for label in labels]
        table = torch.stack(by_class) if labels else self._sums[:0]
        return found | {
            "images": np.array([self._images]),
            "bin": filled,
            "count": counts,
            "class": np.array(labels, np.int32),
            "class_images": np.array([self._classes[label][0] for label in labels], np.int64),
            "class_positive": table.float().cpu().numpy(),  # shuffled classes give many rows
        }

    def _filled(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the positions in the flattened histograms that are not 0, and their values."""
        counts = self._histogram.cpu().numpy().ravel()
        compiled = _compiled(self._device)
        if compiled is None:
            where = np.flatnonzero(counts).astype(np.int32)
            return where, counts[where]
        where, found = np.empty_like(counts), np.empty_like(counts)
        size = compiled.pack(counts, where, found)
        return where[:size].copy(), found[:size].copy()


def _count(values: Tensor, part: Tensor) -> None:
    """Count (n, C) values in the histograms (C, BINS) of their channels."""
    bits = values.contiguous().view(torch.int32)
    step = ((bits & 0x7FFFFFFF) >> histogram.DROPPED_BITS) - histogram.FIRST_BIN
    step = step.clamp(0, histogram.BINS_PER_SIGN - 1).long()
    found = torch.where(
        values < 0, histogram.BINS_PER_SIGN - 1 - step, histogram.BINS_PER_SIGN + step
    )
    found += histogram.BINS * torch.arange(values.shape[1], device=values.device)
    known = values.isnan().logical_not().int()
    part.view(-1).index_add_(0, found.flatten(), known.flatten())


class Loops(NamedTuple):
    """The loops of `tally_loops`."""

    read: Callable[..., None]
    fill: Callable[..., None]
    pack: Callable[..., int]
    rank: Callable[..., None]


@cache
def load_loops(halved: bool = False) -> Loops | None:
    """Return the compiled loops; None if numba is missing. The first time takes a while.

    Call it before forking: child processes inherit the loaded loops, with `halved` those for maps
    in bfloat16 as well.
    """
    if halved:
        loops = load_loops()
        if loops is not None:
            _warm(loops, np.zeros((1, 1, 1), np.int16))
        return loops
    with uncollected(), without_library("scipy"):  # which numba imports for linear algebra alone
        try:
            from cnnvis_cli.network import tally_loops
        except ImportError:
            return None
        loops = Loops(*(getattr(tally_loops, name) for name in Loops._fields))
        _warm(loops, np.zeros((1, 1, 1), np.float32))
    return loops


def _warm(loops: Loops, maps: NDArray[Any]) -> None:
    """Compile the loops for maps of this type."""
    used = np.zeros(1, np.bool_)
    value, place = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int32)
    image, doubles = np.zeros((1, 1), np.int64), np.zeros((4, 1))
    loops.read(maps, used, False, value, place, doubles[:1], doubles)
    loops.pack(place[0], place[0], place[0])
    counts = np.zeros((1, histogram.BINS), np.int32)
    loops.fill(maps, image[0], image, counts, histogram.DROPPED_BITS, histogram.FIRST_BIN)
    loops.rank(value, place, used, 0, value, image, place)


def _compiled(device: torch.device) -> Loops | None:
    return load_loops() if device.type == "cpu" else None
