"""Images in full batches, always of the same size, in the manifest's order."""

from __future__ import annotations

import signal
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnvis_cli.dataset.containers import Unreadable
from cnnvis_cli.dataset.decode import decode, is_plain_jpeg
from cnnvis_cli.dataset.decode_on_gpu import decode_plain
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import StorageError, WorkerDied
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.report import leave_signals_to_the_parent


@dataclass(frozen=True)
class Batch:
    """Pixels of consecutive images; a slot without a usable image is black and not `used`.

    A batch is always full: values depend on its size in their last bits, so the last one and
    unreadable images are padded rather than left out.
    """

    number: int  # of the batch in the manifest; its first image is number * size
    first: int  # index of the first image
    pixels: Tensor  # (B, height, width, 3) uint8
    used: NDArray[np.bool_]  # (B,)
    crcs: NDArray[np.uint32]  # (B,) of the images' bytes as they were read; 0 where none were
    failures: dict[int, str]  # image index -> why it could not be used
    labels: NDArray[np.int32]  # (B,) class index; -1 in padding, or where there is no class
    contents: tuple[bytes, ...] = ()  # plain JPEGs that are still to be decoded; empty: none
    fault: str = ""  # why some image cannot be read now; then nothing of the batch counts

    def pin_memory(self) -> Batch:
        """The batch with page-locked pixels; the DataLoader calls it."""
        return replace(self, pixels=torch.as_tensor(self.pixels).pin_memory())


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """Batches `size` images long of a manifest, decoded by `workers` processes (0: in this one).

    `fast` is that of `decode`; `pin` puts pixels where a CUDA device fetches them directly; with
    `gpu` the workers only read plain JPEGs, which are decoded on that device. Pixels come from the
    workers in shared memory, or through `pipes`, which costs a copy.
    """

    manifest: Manifest
    preprocessing: Preprocessing
    size: int
    workers: int = 0
    fast: bool = False
    pin: bool = False
    gpu: torch.device | None = None
    pipes: bool = False

    def __len__(self) -> int:
        return -(-len(self.manifest) // self.size)

    @property
    def ahead(self) -> int:
        """Bytes of the batches that each worker has decoded before they are asked for."""
        height, width = self.preprocessing.crop
        return AHEAD * self.size * height * width * 3

    def read(self, numbers: Iterable[int]) -> Iterator[Batch]:
        """The batches of these numbers, in their order.

        Numbers are taken one by one: with workers two a worker ahead, without none ahead.
        Raises `WorkerDied` when a worker does.
        """
        loader = DataLoader(
            self,
            batch_size=None,  # an item is a batch already, put together in the worker
            sampler=numbers,
            num_workers=self.workers,
            prefetch_factor=AHEAD if self.workers else None,
            collate_fn=_unshared if self.pipes else _as_it_is,
            worker_init_fn=_begin,
            # Whatever has started this process: they need what it has, and no device.
            multiprocessing_context="fork" if self.workers else None,
            pin_memory=self.pin and torch.cuda.is_available(),
        )
        with _deaths_found_when_asking():
            batches = iter(loader)
        while (batch := _next(batches)) is not None:
            if batch.fault:
                del batches  # ends the workers now, not when the error has been told
                raise StorageError(batch.fault)
            batch = replace(batch, pixels=torch.as_tensor(batch.pixels))
            yield batch if self.gpu is None else self._decoded(batch, self.gpu)

    def __getitem__(self, number: int) -> Batch:
        """Read and decode one batch here."""
        if not 0 <= number < len(self):
            raise ValueError(f"batch {number}: there are {len(self)}")
        first = number * self.size
        images = range(first, min(first + self.size, len(self.manifest)))
        pixels = np.zeros((self.size, *self.preprocessing.crop, 3), np.uint8)
        contents = [b""] * self.size
        used, crcs = np.zeros(self.size, np.bool_), np.zeros(self.size, np.uint32)
        labels, failures = np.full(self.size, -1, np.int32), {}
        fault, labels[: len(images)] = "", self.manifest.labels[first : images.stop]
        for slot, index in enumerate(images):
            try:
                content = self.manifest.read(index)
                crcs[slot] = zlib.crc32(content)
                if self.gpu is not None and is_plain_jpeg(content):
                    contents[slot] = content
                else:
                    pixels[slot] = decode(content, self.preprocessing, self.fast)
                used[slot] = True
            except Unreadable as reason:
                failures[index] = str(reason)
            except StorageError as error:  # for this process's parent: torch would wrap it
                fault = str(error)
                break
        shown = torch.from_numpy(pixels)
        if self.gpu is not None and all(contents[slot] for slot in np.flatnonzero(used)):
            shown = shown[:0].clone()  # nothing to send
        return Batch(number, first, shown, used, crcs, failures, labels, tuple(contents), fault)

    def _decoded(self, batch: Batch, device: torch.device) -> Batch:
        """The batch with its plain JPEGs decoded on the device."""
        shape = (self.size, *self.preprocessing.crop, 3)
        pixels, used, failures = batch.pixels.to(device), batch.used.copy(), dict(batch.failures)
        if not len(pixels):
            pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        slots = [slot for slot, content in enumerate(batch.contents) if content]
        files = [batch.contents[slot] for slot in slots]
        for slot, found in zip(slots, decode_plain(files, self.preprocessing, device), strict=True):
            if isinstance(found, Unreadable):
                used[slot], failures[batch.first + slot] = False, str(found)
            else:
                pixels[slot] = found
        return replace(batch, pixels=pixels, used=used, failures=failures, contents=())


def _next(batches: Iterator[Batch]) -> Batch | None:
    """The next batch, None after the last; raises `WorkerDied` when a worker has."""
    try:
        return next(batches, None)
    except (ConnectionResetError, EOFError) as error:  # while a batch was on its way
        raise WorkerDied(f"a decoding process died ({error}); is memory short?") from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # as torch names no class for it
            raise
        if "Bus error" in str(error):
            raise WorkerDied("a decoding process died: shared memory (/dev/shm) is full") from None
        raise WorkerDied(
            f"a decoding process died ({error}); is memory short? use fewer --workers"
        ) from None


@contextmanager
def _deaths_found_when_asking() -> Iterator[None]:
    """Keep torch from raising in a signal handler, which is to say anywhere in the program.

    A dead worker is then found within seconds by whoever waits for its batch.
    """
    if threading.current_thread() is not threading.main_thread():  # where torch sets none
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


AHEAD = 2  # batches a worker


def _as_it_is(batch: Any) -> Any:
    return batch


def _unshared(batch: Any) -> Any:
    """A batch whose pixels travel like any other bytes: those of tensors lie in shared memory."""
    return replace(batch, pixels=batch.pixels.numpy())


def _begin(_worker: int) -> None:
    leave_signals_to_the_parent()
