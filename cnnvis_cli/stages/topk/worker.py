"""One process's work in `cnnvis topk`: images through the network, part after part."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.dataset.batches import Batch, Batches
from cnnvis_cli.engine import (
    Aside,
    Emit,
    Notice,
    TaskDone,
    WorkerSlot,
    arithmetic,
    cores,
    shared_memory,
    steady,
)
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.tally import Slots, Summary, Tally
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.topk.job import TopKJob


class Step(NamedTuple):
    """Emitted after each batch: its images, and how long it took and waited for them."""

    images: int
    first: bool  # in its process, which takes longer
    seconds: float
    waited: float


def reader_of(work: TopKJob, network: Network, worker_slot: WorkerSlot, emit: Emit) -> Batches:
    """Return what decodes images for a worker slot; emit a notice if shared memory is short."""
    decode, on_gpu = work.plan.topk.decode, worker_slot.device.type == "cuda"
    reader = Batches(
        work.manifest,
        network.preprocessing,
        work.cut.size,
        worker_slot.decoders,
        fast=decode == "fast",
        pin=on_gpu and decode != "gpu",
        gpu=worker_slot.device if decode == "gpu" else None,
    )
    decoders = cores() if work.plan.workers is None else work.plan.workers
    free, wanted = shared_memory(), reader.ahead * decoders  # of all worker slots together
    if not worker_slot.decoders or decode == "gpu" or wanted < free:
        return reader
    emit(
        Notice(
            f"/dev/shm has {free >> 20} MB free and {decoders} decoding processes want "
            f"{wanted >> 20}: images come through pipes, which is slower; in a container, give "
            "it more (docker run --shm-size 2g)"
        )
    )
    return replace(reader, pipes=True)


def scan(work: TopKJob, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    """Compute the parts of these numbers and keep them; emit a `Step` per batch, then `TaskDone`.

    The next part is begun while the last one is still being written.
    """
    network = work.on(worker_slot.device)
    layers, cut = work.layers, work.cut
    batches = (batch for number in numbers for batch in work.batches_of(number))
    read = reader_of(work, network, worker_slot, emit).read(batches)
    precision = work.plan.topk.precision
    account, first = _Part(work, worker_slot.device), True

    def see(layer: Layer, output: Tensor) -> None:
        account.tally.see(layer, output, slots, layer.alias in rectified)

    with (
        Aside() as writer,
        steady(cut.size),
        torch.inference_mode(),
        arithmetic(precision, worker_slot.device),
        network.in_place(),
        network.rectified_by_reader(layers) as rectified,
        network.tap(layers, see) as run,
    ):
        keeper = _Keeper(work, writer, emit)
        for batch, pixels, clock in _feed(read, worker_slot.device):
            slots = Slots(batch.first, batch.used, batch.labels)
            run(network.normalise(network.centre(pixels)))
            account.end(batch, slots)
            emit(Step(min(cut.size, cut.images - batch.first), first, *clock.lap()))
            first = False
            part = batch.number // cut.length
            if batch.number == work.batches_of(part)[-1]:
                keeper.keep(part, account.arrays(), account.sampled.arrays())
                account = _Part(work, worker_slot.device)
        keeper.settle()


class _Part:
    """What is known of one part so far."""

    def __init__(self, work: TopKJob, device: torch.device) -> None:
        settings = work.plan.topk
        self.tally = Tally(work.layers, settings.k, settings.min, device)
        self.sampled = _Sampled(work)
        self._failures: dict[int, str] = {}
        self._crcs: list[Any] = []

    def end(self, batch: Batch, slots: Slots) -> None:
        self.sampled.add(batch, self.tally.end(slots))
        self._failures |= batch.failures
        self._crcs.append(batch.crcs)

    def arrays(self) -> dict[str, Any]:
        """Return the tally's arrays and, of the part's images, the CRCs and the unusable ones."""
        indices = np.array(sorted(self._failures), np.int64)
        reasons = np.array([self._failures[i].encode() for i in indices.tolist()], "S")
        about = {"crc": np.concatenate(self._crcs), "failures": indices, "reasons": reasons}
        return self.tally.arrays() | about


class _Sampled:
    """The largest values in the images of a part that are in the sample: n of M channels."""

    def __init__(self, work: TopKJob) -> None:
        self._sample = work.sample
        self._values: list[Tensor] = []
        self._places: list[Tensor] = []
        self._used: list[NDArray[np.bool_]] = []
        self._crcs: list[NDArray[np.uint32]] = []

    def add(self, batch: Batch, seen: Summary) -> None:
        """Take a batch's rows; they stay on the device until the part ends."""
        if self._sample is None:
            return
        images = range(batch.first, batch.first + len(batch.used))
        rows = self._sample.among(images) - batch.first
        if len(rows):
            there = torch.from_numpy(rows).to(seen.value.device, non_blocking=True)
            self._values.append(seen.value[there])
            self._places.append(seen.place[there])
            self._used.append(batch.used[rows])
            self._crcs.append(batch.crcs[rows])

    def arrays(self) -> Arrays:
        """Return `value` and `place` (n, M), NaN and -1 without one; `largest` (M,), and so on."""
        if not self._values:
            return {}
        value, place = (torch.cat(t).cpu().numpy() for t in (self._values, self._places))
        used = np.concatenate(self._used)
        none = (place < 0) | ~used[:, None]
        value, place = np.where(none, np.float32(np.nan), value), np.where(none, -1, place)
        largest = np.where(np.isfinite(value), np.abs(value), 0).max(axis=0)
        crc = np.concatenate(self._crcs)
        return {"value": value, "place": place, "largest": largest, "used": used, "crc": crc}


@dataclass
class _Keeper:
    """Write parts aside, one at a time."""

    work: TopKJob
    writer: Aside
    emit: Emit
    pending: int | None = None

    def keep(self, number: int, arrays: Arrays, sampled: Arrays) -> None:
        self.writer.begin(self.work.keep, number, arrays, sampled)  # waits for the last one
        done, self.pending = self.pending, number
        if done is not None:
            self.emit(TaskDone(done))

    def settle(self) -> None:
        """Wait until the last part is safe, and say so; raises `StorageError`."""
        self.writer.settle()
        if self.pending is not None:
            self.emit(TaskDone(self.pending))
            self.pending = None


@dataclass
class _Clock:
    """How long a batch took, and how much of that the device waited for its images."""

    start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    def lap(self) -> tuple[float, float]:
        """Return the seconds, and those waited, since the last time."""
        now = time.perf_counter()
        found = now - self.start, self.waited
        self.start, self.waited = now, 0.0
        return found


def _feed(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, Tensor, _Clock]]:
    """Yield batches with their pixels, copied to a GPU while it works on the last batch."""
    clock = _Clock()
    events: deque[Any] = deque()  # torch.cuda's classes are not typed
    copies: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    before = time.perf_counter()
    for batch in batches:
        if not events or events[-1].query():  # the device had nothing left to do
            clock.waited += time.perf_counter() - before
        if copies is None:
            yield batch, batch.pixels, clock
        else:
            yield batch, _upload(batch.pixels, device, copies), clock
            events.append(torch.cuda.current_stream(device).record_event())
            if len(events) > 2:  # never more than a few batches in flight
                events.popleft().synchronize()
        before = time.perf_counter()


def _upload(pixels: Tensor, device: torch.device, copies: Any) -> Tensor:
    """Copy page-locked pixels on a stream of their own, for the current stream to use."""
    with torch.cuda.stream(copies):
        there = pixels.to(device, non_blocking=True)
    current = torch.cuda.current_stream(device)
    current.wait_stream(copies)
    there.record_stream(current)
    return there
