"""Images in full batches, always of the same size, in the manifest's order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnvis_cli.dataset.decode import Unreadable, decode
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.nouns import Preprocessing


@dataclass(frozen=True)
class Batch:
    """Pixels of consecutive images; a slot without a usable image is black and not `used`.

    A batch is always full: values depend on its size in their last bits, so the last one and
    unreadable images are padded rather than left out.
    """

    first: int  # index of the first image
    pixels: Tensor  # (B, height, width, 3) uint8
    used: NDArray[np.bool_]  # (B,)
    failures: dict[int, str]  # image index -> why it could not be used


@dataclass(frozen=True)
class _Decoded(Dataset[tuple[int, Tensor, str]]):
    """One image a piece: its index, its pixels, and why there are none."""

    root: Path
    paths: tuple[str, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor, str]:
        try:
            pixels = decode(self.root / self.paths[index], self.preprocessing)
        except Unreadable as reason:
            return index, torch.zeros(*self.preprocessing.crop, 3, dtype=torch.uint8), str(reason)
        return index, torch.from_numpy(pixels.copy()), ""


def _leave_signals_to_the_parent(_worker: int) -> None:
    """A signal to the whole group stops the parent, which then ends its workers in good order."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class Batches:
    """Batches `size` images long of a manifest, decoded by `workers` processes (0: in this one)."""

    manifest: Manifest
    preprocessing: Preprocessing
    size: int
    workers: int = 0

    def __len__(self) -> int:
        return -(-len(self.manifest) // self.size)

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` (exclusive)."""
        last = min(stop * self.size, len(self.manifest))
        rows = [
            list(range(i, min(i + self.size, last)))
            for i in range(start * self.size, last, self.size)
        ]
        source = _Decoded(self.manifest.root, self.manifest.paths, self.preprocessing)
        loader = DataLoader(
            source,
            batch_sampler=rows,
            num_workers=self.workers,
            collate_fn=self._collate,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        yield from loader

    def _collate(self, items: list[tuple[int, Tensor, str]]) -> Batch:
        pixels = torch.zeros(self.size, *self.preprocessing.crop, 3, dtype=torch.uint8)
        used = np.zeros(self.size, np.bool_)
        for slot, (_, image, reason) in enumerate(items):
            pixels[slot], used[slot] = image, not reason
        failures = {index: reason for index, _, reason in items if reason}
        return Batch(items[0][0], pixels, used, failures)
