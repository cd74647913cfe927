"""What a pass over images tells of every channel: its strongest places, sums and a histogram.

The channels of all layers lie side by side, M of them; a place is counted row by row in its map.
One reading of a layer's maps gives everything. On a CPU the loops are compiled (numba), because
a convnet's maps are so large that every further reading of them costs as much as a layer; on a
GPU, and where numba is missing, the same is told in tensor operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli import histogram
from cnnvis_cli.nouns import Layer

Arrays = dict[str, NDArray[Any]]
SAMPLE = 16  # places of an image's map that are counted in the histogram


class Slots(NamedTuple):
    """Which images a batch holds: consecutive ones from `first`."""

    first: int
    used: NDArray[np.bool_]  # (B,)
    labels: NDArray[np.int32]  # (B,), -1 without a class


@dataclass(frozen=True)
class Summary:
    """Of each image and channel, (B, C): the largest value and its place, and sums over the map.

    NaN is no activation: a map of nothing else has place -1. Sums hold it. A value is never -0.
    """

    value: Tensor  # float32
    place: Tensor  # int32, row by row
    total: Tensor  # float64
    squares: Tensor  # float64
    positive: Tensor  # float64, the sum of the values above 0
    active: Tensor  # int32, the number of values above 0


def summarise(maps: Tensor) -> Summary:
    """Read maps (B, h, w, C) or values (B, C); sums are in float32 for up to 128 places at most."""
    flat = _places_first(maps)
    compiled = _compiled()
    if flat.device.type == "cpu" and compiled is not None:
        return _read_compiled(flat, compiled.read)
    return _read(flat)


def lowest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest value of each map, negated, and its place: (B, C) each, as in `Summary`."""
    turned = -_places_first(maps)
    compiled = _compiled()
    if turned.device.type == "cpu" and compiled is not None:
        found = _read_compiled(turned.contiguous(), compiled.read)
    else:
        found = _read(turned)
    return found.value, found.place


def _places_first(maps: Tensor) -> Tensor:
    """(B, C, h, w) or (B, C) -> (B, h * w, C), contiguous, float32."""
    if maps.dim() == 4:
        return maps.permute(0, 2, 3, 1).flatten(1, 2).contiguous().float()
    return maps[:, None].contiguous().float()


def _read(flat: Tensor) -> Summary:
    none = flat.isnan()
    value, place = flat.masked_fill(none, float("-inf")).max(dim=1)
    number = none.logical_not().byte().argmax(dim=1)  # the first that is one
    place = torch.where(value == float("-inf"), number, place)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return Summary(
        value=value + 0.0,
        place=place.int().masked_fill_(none.all(dim=1), -1),
        total=flat.sum(dim=1, dtype=torch.float64),
        squares=norm**2,
        positive=flat.clamp_min(0).sum(dim=1, dtype=torch.float64),
        active=(flat > 0).sum(dim=1, dtype=torch.int32),
    )


def _read_compiled(flat: Tensor, read: Callable[..., None]) -> Summary:
    images, _, channels = flat.shape
    kinds = (torch.float32, torch.int32, torch.float64, torch.float64, torch.float64, torch.int32)
    found = [torch.empty(images, channels, dtype=kind) for kind in kinds]
    read(flat.numpy(), *(values.numpy() for values in found))
    return Summary(*found)


def sampled_places(images: NDArray[np.int64], places: int) -> NDArray[np.int64]:
    """Which places of each image's map are counted: (B,) -> (B, up to SAMPLE).

    Evenly spread, from a start that differs from image to image, so that no part of the map is
    preferred; small maps are counted whole.
    """
    count = min(SAMPLE, places)
    start = images * 2654435761 % places  # Knuth's multiplicative hash
    return (start[:, None] + np.arange(count) * (places // count)) % places


class Ranking:
    """The k largest values of each of M channels over images that come in ascending order."""

    def __init__(self, channels: int, k: int, device: torch.device) -> None:
        self.keys = torch.full((channels, k), _EMPTY, device=device)
        self.places = torch.zeros((channels, k), dtype=torch.int32, device=device)

    def offer(self, value: Tensor, place: Tensor, slots: Slots) -> None:
        """Take a batch's largest values and their places, (B, M) each; place -1 is none.

        Keys are unique whole numbers (value first, then the earlier image), so that ties have
        one order on every device (Tensor.topk leaves them open).
        """
        images = torch.arange(slots.first, slots.first + len(value), device=value.device)
        keys = _key(value, images[:, None])
        unused = torch.from_numpy(~slots.used).to(value.device)
        keys = keys.masked_fill((place < 0) | unused[:, None], _EMPTY)
        self._keep(keys.T, place.T)

    def _keep(self, keys: Tensor, places: Tensor) -> None:
        """Merge (M, B) keys and places into the k that are there."""
        k = self.keys.shape[1]
        rows: Any = slice(None)
        if not keys.is_cuda:  # where looking first costs nothing
            rows = (keys > self.keys[:, -1:]).any(dim=1).nonzero()[:, 0]
        both = torch.cat((self.keys[rows], keys[rows]), dim=1)
        found = both.topk(k, dim=1)
        where = torch.cat((self.places[rows], places[rows]), dim=1).gather(1, found.indices)
        self.keys[rows], self.places[rows] = found.values, where

    def arrays(self) -> Arrays:
        """`activation` float32, `image` int64, -1 in an empty slot, and `place`: (M, k) each."""
        value, image = _unkey(self.keys)
        none = self.keys == _EMPTY
        return {
            "activation": value.masked_fill(none, float("nan")).cpu().numpy(),
            "image": image.masked_fill(none, -1).cpu().numpy(),
            "place": self.places.masked_fill(none, 0).cpu().numpy(),
        }


_EMPTY = torch.iinfo(torch.int64).min
_LOW = 0xFFFFFFFF


def _key(value: Tensor, image: Tensor) -> Tensor:
    """A whole number that orders by value, and among equals puts the earlier image first."""
    bits = value.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as whole numbers they order like floats now
    return (ordered.long() << 32) | (_LOW - image)


def _unkey(keys: Tensor) -> tuple[Tensor, Tensor]:
    ordered = (keys >> 32).int()
    value = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return value, _LOW - (keys & _LOW)


class Tally:
    """A running account of M channels, layer beside layer; read off with `arrays`."""

    def __init__(self, layers: Sequence[Layer], k: int, minima: bool, device: torch.device) -> None:
        self._layers, self._device = layers, device
        starts = np.cumsum([0, *(layer.channels for layer in layers)]).tolist()
        self._start = {layer.alias: start for layer, start in zip(layers, starts, strict=False)}
        channels = starts[-1]
        self._strongest = Ranking(channels, k, device)
        self._weakest = Ranking(channels, k, device) if minima else None
        self._sums = torch.zeros(4, channels, dtype=torch.float64, device=device)
        self._histogram = torch.zeros(channels, histogram.BINS, dtype=torch.int32, device=device)
        self._classes: dict[int, tuple[int, Tensor]] = {}
        self._images = 0
        self._seen: dict[str, Summary] = {}
        self._low: dict[str, tuple[Tensor, Tensor]] = {}

    def see(self, layer: Layer, output: Tensor, slots: Slots) -> None:
        """Read a layer's output for a batch, (B, C, h, w) or (B, C)."""
        self._seen[layer.alias] = summarise(output)
        if self._weakest is not None:
            self._low[layer.alias] = lowest(output)
        self._count(self._start[layer.alias], _places_first(output), slots)

    def end(self, slots: Slots) -> None:
        """Account for a batch, once all layers have been seen."""
        order = [layer.alias for layer in self._layers]
        seen = [self._seen[alias] for alias in order]
        value, place, total, squares, positive, active = (
            torch.cat([getattr(summary, name) for summary in seen], dim=1)
            for name in Summary.__dataclass_fields__
        )
        self._strongest.offer(value, place, slots)
        if self._weakest is not None:
            low, where = (torch.cat([self._low[a][i] for a in order], dim=1) for i in (0, 1))
            self._weakest.offer(low, where, slots)
        sums = torch.stack((total, squares, positive, active.double()))  # (4, B, M)
        used = torch.from_numpy(np.flatnonzero(slots.used)).to(self._device)
        self._sums += sums[:, used].sum(dim=1)
        self._images += len(used)
        self._sort_by_class(positive, slots)
        self._seen.clear()
        self._low.clear()

    def _sort_by_class(self, positive: Tensor, slots: Slots) -> None:
        """Add each image's positive sums to its class, run by run of images of one class."""
        rows = np.flatnonzero(slots.used & (slots.labels >= 0))
        if not len(rows):
            return
        labels = slots.labels[rows]
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(labels)) + 1):
            label, chosen = int(labels[run[0]]), torch.from_numpy(rows[run]).to(self._device)
            count, total = self._classes.get(label, (0, torch.zeros_like(positive[0])))
            self._classes[label] = count + len(run), total + positive[chosen].sum(dim=0)

    def _count(self, start: int, flat: Tensor, slots: Slots) -> None:
        """Count some places of each used image in the histogram of its channels."""
        rows = np.flatnonzero(slots.used)
        places = sampled_places(slots.first + rows, flat.shape[1])
        part = self._histogram[start : start + flat.shape[2]]
        compiled = _compiled()
        if flat.device.type == "cpu" and compiled is not None:
            compiled.fill(flat.numpy(), rows, places, part.numpy())
            return
        indices = (torch.from_numpy(rows[:, None]), torch.from_numpy(places))
        chosen = flat[tuple(index.to(self._device) for index in indices)]
        _count(chosen.flatten(0, 1), part)

    def arrays(self) -> Arrays:
        """Everything as numpy arrays, by channel first but for the classes.

        `total`, `squares`, `positive`, `active`: (M,) sums over `images` images; `bin` and
        `count`: the histogram's entries that are not 0, by position in (M, BINS); `class` (L,)
        with `class_images` (L,) and `class_positive` (L, M).
        """
        names = ("total", "squares", "positive", "active")
        counts = self._histogram.cpu().numpy().ravel()
        filled = np.flatnonzero(counts)
        labels = sorted(self._classes)
        found = self._strongest.arrays() | dict(zip(names, self._sums.cpu().numpy(), strict=True))
        if self._weakest is not None:
            found |= {f"min.{name}": values for name, values in self._weakest.arrays().items()}
        by_class = [self._classes[label][1] for label in labels]
        table = torch.stack(by_class) if labels else self._sums[:0]
        return found | {
            "images": np.array([self._images]),
            "bin": filled.astype(np.int32),
            "count": counts[filled],
            "class": np.array(labels, np.int32),
            "class_images": np.array([self._classes[label][0] for label in labels], np.int64),
            "class_positive": table.cpu().numpy(),
        }


def _count(values: Tensor, part: Tensor) -> None:
    """Count (n, C) values in the histograms (C, BINS) of their channels."""
    bits = values.contiguous().view(torch.int32)
    step = ((bits & 0x7FFFFFFF) >> histogram.SHIFT) - histogram.FIRST
    step = step.clamp(0, histogram.SIDE - 1).long()
    found = torch.where(values < 0, histogram.SIDE - 1 - step, histogram.SIDE + step)
    found += histogram.BINS * torch.arange(values.shape[1], device=values.device)
    known = values.isnan().logical_not().int()
    part.view(-1).index_add_(0, found.flatten(), known.flatten())


class _Loops(NamedTuple):
    """The compiled loops."""

    read: Callable[..., None]
    fill: Callable[..., None]


@cache
def _compiled() -> _Loops | None:
    """The loops of `tally_loops`, compiled; None where numba is missing."""
    try:
        from cnnvis_cli.network import tally_loops
    except ImportError:
        return None
    return _Loops(tally_loops.read, tally_loops.fill)
