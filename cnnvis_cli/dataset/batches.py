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

from cnnvis_cli.dataset.decode import decode, is_plain_jpeg
from cnnvis_cli.dataset.decode_on_gpu import decode_plain
from cnnvis_cli.dataset.kinds import Unreadable
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
    crcs: NDArray[np.uint32]  # (B,) of the images' bytes as read; 0 where none were
    failures: dict[int, str]  # image index -> why it could not be used
    labels: NDArray[np.int32]  # (B,) class index; -1 in padding, or without a class
    contents: tuple[bytes, ...] = ()  # plain JPEGs still to be decoded, per slot; or none
    fault: str = ""  # why an image cannot be read now; the batch then does not count

    def pin_memory(self) -> Batch:
        """Return the batch with page-locked pixels; the DataLoader calls this."""
        return replace(self, pixels=torch.as_tensor(self.pixels).pin_memory())


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """The batches of a manifest, of `size` images, decoded by `workers` processes (0: in this one).

    `fast` is as in `decode`; `pin` puts pixels into memory that a CUDA device reads directly; with
    `gpu` plain JPEGs are only read here, and decoded on that device. Pixels come from the workers
    in shared memory, or through `pipes`, which costs a copy.
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
        """The bytes of the batches that each worker decodes ahead."""
        height, width = self.preprocessing.crop
        return BATCHES_AHEAD * self.size * height * width * 3

    def read(self, numbers: Iterable[int]) -> Iterator[Batch]:
        """Yield the batches of these numbers, in their order.

        Numbers are taken one by one: two per worker ahead, and without workers none ahead. Raise
        `WorkerDied` when a worker dies, `StorageError` when an image cannot be read now.
        """
        loader = DataLoader(
            self,
            batch_size=None,  # an item is a batch already, put together in the worker
            sampler=numbers,
            num_workers=self.workers,
            prefetch_factor=BATCHES_AHEAD if self.workers else None,
            collate_fn=_unshared if self.pipes else _as_it_is,
            worker_init_fn=_begin,
            # However this process was started: workers need its memory, and no device.
            multiprocessing_context="fork" if self.workers else None,
            pin_memory=self.pin and torch.cuda.is_available(),
        )
        with _deaths_found_when_asking():
            batches = iter(loader)
        while (batch := _next(batches)) is not None:
            if batch.fault:
                del batches  # ends the workers now, not once the error is handled
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
            except StorageError as error:  # sent as text to the parent: torch would wrap it
                fault = str(error)
                break
        shown = torch.from_numpy(pixels)
        if self.gpu is not None and all(contents[slot] for slot in np.flatnonzero(used)):
            shown = shown[:0].clone()  # nothing to send
        return Batch(number, first, shown, used, crcs, failures, labels, tuple(contents), fault)

    def _decoded(self, batch: Batch, device: torch.device) -> Batch:
        """Return the batch with its plain JPEGs decoded on the device."""
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
    """Return the next batch, None after the last; raise `WorkerDied` if a worker died."""
    try:
        return next(batches, None)
    except (ConnectionResetError, EOFError) as error:  # while a batch was being sent
        raise WorkerDied(f"a decoding process died ({error}); is memory short?") from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # torch has no class for it
            raise
        if "Bus error" in str(error):
            raise WorkerDied("a decoding process died: shared memory (/dev/shm) is full") from None
        raise WorkerDied(
            f"a decoding process died ({error}); is memory short? use fewer --workers"
        ) from None


@contextmanager
def _deaths_found_when_asking() -> Iterator[None]:
    """Keep torch from raising in a signal handler, and so anywhere in the program.

    A dead worker is then found within seconds when its batch is waited for.
    """
    if threading.current_thread() is not threading.main_thread():  # there torch sets no handler
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


BATCHES_AHEAD = 2  # batches per worker


def _as_it_is(batch: Any) -> Any:
    return batch


def _unshared(batch: Any) -> Any:
    """Return a batch whose pixels are sent through a pipe, not as a tensor in shared memory."""
    return replace(batch, pixels=batch.pixels.numpy())


def _begin(_worker: int) -> None:
    leave_signals_to_the_parent()
