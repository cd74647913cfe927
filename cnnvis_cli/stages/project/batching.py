"""Stored places in batches: those that can share a pass, on their windows or the whole input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnvis_cli.engine import limit_to_memory
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Layer, Size
from cnnvis_cli.store.topk_file import LayerTopK, box_of

# Pixels of a batch's windows: on a CPU about 20 inputs of 224x224, or thousands of small ones.
PIXELS = {"cpu": 1 << 20, "cuda": 1 << 24}


# Starting a pass costs about half as much as the whole input in a large batch (AlexNet,
# 0.3 to 0.8 for conv1 to conv5): separate windows must save this.
PASS = 0.5


@dataclass(frozen=True)
class StoredPlaces:
    """Stored places, (n,) or (n, ...) of each."""

    channel: NDArray[Any]
    rank: NDArray[Any]
    image: NDArray[Any]
    place: NDArray[Any]  # row, column in the layer's map
    activation: NDArray[Any]
    box: NDArray[Any]  # the receptive field

    @classmethod
    def of(cls, top: LayerTopK, channels: Sequence[int]) -> StoredPlaces:
        """Return the slots of these channels that are not empty."""
        channels = list(channels)
        row, rank = np.nonzero(top.places.image[channels] >= 0)
        at, places = (np.asarray(channels)[row], rank), top.places
        place = np.stack([places.row[at], places.column[at]], axis=-1)
        return cls(*at, places.image[at], place, places.activation[at], top.box[at])

    def __len__(self) -> int:
        return len(self.channel)

    def __getitem__(self, chosen: Any) -> StoredPlaces:
        return StoredPlaces(*(values[chosen] for values in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Batching:
    """How the places of a layer are divided into passes."""

    network: Network
    layer: Layer
    device: torch.device
    batch_size: int | None
    whole: bool  # always on the whole input
    known: dict[bytes, bool] = field(default_factory=dict)  # whether windows work, by contact

    @property
    def size(self) -> Size:
        return self.network.size

    def batches(self, slots: StoredPlaces) -> Iterator[tuple[StoredPlaces, bool]]:
        """Yield the slots in batches of one pass each, and whether that is on the whole input."""
        for group, whole in self._alike(slots):
            size = self.batch_size or self._batch(group.box[0], whole)
            for first in range(0, len(group), size):
                yield group[first : first + size], whole

    def _batch(self, box: NDArray[np.int32], whole: bool) -> int:
        """Return how many windows like this one share a pass."""
        network, device = self.network, self.device
        height, width = self.size if whole else box_of(box).clip(self.size).size
        each = network.map_bytes(self.layer) * height * width // (self.size[0] * self.size[1])
        return limit_to_memory(max(1, PIXELS[device.type] // (height * width)), each, device)

    def _alike(self, slots: StoredPlaces) -> Iterator[tuple[StoredPlaces, bool]]:
        """Yield the slots in groups that can share a pass, and whether it is on the whole input.

        Windows that meet the image's border alike share one: the same pixels are padding. If
        separate windows would not save the cost of a pass, the whole input serves any of them.
        """
        contact = _contact(slots.box, self.size)
        kinds, first, kind = np.unique(contact, axis=0, return_index=True, return_inverse=True)
        count = np.bincount(kind.ravel(), minlength=len(kinds))
        on_whole = np.ones(len(kinds), np.bool_)
        for number, start in enumerate(first.tolist()):
            box = box_of(slots.box[start])
            on_whole[number] = not self._worth_it(box, int(count[number]))
        chosen = on_whole[kind.ravel()]
        if chosen.any():
            yield slots[chosen], True
        for number in np.flatnonzero(~on_whole).tolist():
            yield slots[kind.ravel() == number], False

    def _worth_it(self, box: Box, count: int) -> bool:
        """Return whether so many places can have a pass on their windows, and save time by it."""
        height, width = box.clip(self.size).size
        saved = count * (1 - height * width / (self.size[0] * self.size[1]))
        if self.whole or saved < PASS:
            return False
        contact = _contact(np.array([box]), self.size).tobytes()
        if contact not in self.known:
            window = self.network.window(self.layer, box)
            self.known[contact] = window != Box.whole(self.size)
        return self.known[contact]


def _contact(boxes: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return how windows meet the image's border: the crop on each side, and the contact.

    (n, 4) -> (n, 8)
    """
    low, high = np.zeros(2, boxes.dtype), np.array(size, boxes.dtype)
    clipped = np.hstack([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)])
    return np.hstack([boxes - clipped, clipped == np.hstack([low, high])])
