"""`cnnvis topk`: a dataset flows through the network; each channel keeps its strongest places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.dataset.batches import Batch, Batches
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.digests import digest
from cnnvis_cli.errors import TooManyUnreadable, UsageError
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.engine import decode_workers
from cnnvis_cli.stages.images import dataset_folder
from cnnvis_cli.stages.session import Session
from cnnvis_cli.store.files import Images, TopKFile
from cnnvis_cli.store.parts import Arrays, Parts
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Record, differences
from cnnvis_cli.store.stats import Stats
from cnnvis_cli.store.topk import TopK

BATCH = 32  # images; the default
PART = 32  # batches a part: what is lost at most when the power goes


def topk(session: Session) -> None:
    """Stream the dataset through the network and keep each channel's k strongest places.

    Raises `TooManyUnreadable` (exit 3) after finishing, when too many images could not be used.
    """
    manifest = Manifest.scan(dataset_folder(session))
    size = session.plan.batch_size or BATCH
    plan = _identity(session, manifest, size)
    file = TopKFile(session.run.topk)
    if not _is_done(file, plan):
        workers = decode_workers(session.plan.workers)
        batches = Batches(manifest, session.network.preprocessing, size, workers)
        with session.timed("topk"):
            name = digest([plan, PART])
            parts = Parts(session.run.parts("topk", name), name)
            _scan(session, batches, parts)
            _finish(session, manifest, plan, parts, -(-len(batches) // PART))
        parts.clear()
    session.run.note("dataset", {"path": str(manifest.root.resolve()), "digest": manifest.digest})
    _report(session, file)


def _identity(session: Session, manifest: Manifest, size: int) -> Record:
    """All that decides what topk.h5 holds; the batch size decides the last bits of its values."""
    return {
        **session.identity,
        "dataset": manifest.digest,
        "k": session.plan.topk.k,
        "batch_size": size,
        "layers": [layer.alias for layer in session.layers],
    }


def _is_done(file: TopKFile, plan: Record) -> bool:
    """Whether the file has what is asked for; raises `UsageError` if it is of another plan."""
    have = file.identity()
    if have is None:
        return False
    if have | {"layers": plan["layers"]} != plan or not set(plan["layers"]) <= set(have["layers"]):
        raise UsageError(
            f"{file.path} belongs to another plan: {differences(have, plan)}; choose another --run"
        )
    return True


def _scan(session: Session, batches: Batches, parts: Parts) -> None:
    """Compute and keep every part that is not there yet."""
    count = -(-len(batches) // PART)
    pending = list(parts.pending(count))
    todo = (batch for n in pending for batch in _part_of(session, batches, parts, n))
    total = sum(_images_in(batches, n) for n in pending)
    for _ in session.report.track(todo, "topk", total, "images", batches.size):
        pass


def _images_in(batches: Batches, number: int) -> int:
    first = number * PART * batches.size
    return min(PART * batches.size, len(batches.manifest) - first)


def _part_of(session: Session, batches: Batches, parts: Parts, number: int) -> Iterator[Batch]:
    """Work through one part's batches, then publish what they gave."""
    network = session.network
    gatherers = {layer.alias: Gatherer(layer, session.plan.topk.k) for layer in session.layers}
    failures: dict[int, str] = {}
    stop = min((number + 1) * PART, len(batches))
    batch: Batch

    def read(layer: Layer, output: Tensor) -> None:
        gatherers[layer.alias].add(output, batch)

    with torch.no_grad(), network.tap(session.layers, read) as run:
        for batch in batches.read(number * PART, stop):
            run(network.normalise(network.centre(batch.pixels)))
            failures |= batch.failures
            yield batch
    arrays = {
        f"{alias}.{name}": values
        for alias, gatherer in gatherers.items()
        for name, values in gatherer.arrays().items()
    }
    indices = np.array(sorted(failures), np.int64)
    reasons = np.array([failures[i].encode() for i in indices.tolist()], "S")
    parts[number] = {**arrays, "failures": indices, "reasons": reasons}


@dataclass
class Gatherer:
    """One layer's strongest places and sums, batch after batch."""

    layer: Layer
    k: int
    places: TopK = field(init=False)
    stats: Stats = field(init=False)

    def __post_init__(self) -> None:
        self.places = TopK.empty(self.layer.channels, self.k)
        self.stats = Stats.empty(self.layer.channels)

    def add(self, output: Tensor, batch: Batch) -> None:
        """Take a batch's output, (B, C, h, w) or (B, C), in the manifest's order."""
        maps = output if output.dim() == 4 else output[:, :, None, None]
        used = torch.from_numpy(batch.used).to(maps.device)
        self.stats = self.stats.merge(_sums(maps, used))
        channel, slot, value, place = self._candidates(maps, used)
        if not len(value):
            return
        width = int(np.bincount(channel).max())
        column = _rank_within(channel)
        grid = TopK.empty(self.layer.channels, width)
        grid.activation[channel, column] = value
        grid.image[channel, column] = batch.first + slot
        grid.row[channel, column], grid.column[channel, column] = divmod(place, maps.shape[3])
        self.places = self.places.merge(grid)

    def _candidates(self, maps: Tensor, used: Tensor) -> tuple[NDArray[np.int64], ...]:
        """Where an image's maximum can enter its channel's k: channel, slot, value, flat place.

        Only there is the place looked for: after a few batches that is a small share.
        """
        strongest = maps.amax(dim=(2, 3))
        if strongest.isnan().any():  # NaN is no activation
            maps = maps.masked_fill(maps.isnan(), float("-inf"))
            strongest = maps.amax(dim=(2, 3))
        weakest = torch.from_numpy(self.places.activation[:, -1]).to(maps.device)
        wanted = ~(strongest <= weakest) & used[:, None] & (strongest > float("-inf"))
        channel, slot = wanted.T.nonzero(as_tuple=True)
        place = maps[slot, channel].flatten(1).argmax(dim=1)
        found = (channel, slot, strongest[slot, channel], place)
        return tuple(values.cpu().numpy() for values in found)

    def arrays(self) -> Arrays:
        stats = {f"stats.{name}": np.atleast_1d(value) for name, value in vars(self.stats).items()}
        return {**vars(self.places), **stats}

    @staticmethod
    def restore(arrays: Arrays, alias: str) -> tuple[TopK, Stats]:
        """What `arrays` gave, read back from a part."""
        own = {
            k.removeprefix(f"{alias}."): v for k, v in arrays.items() if k.startswith(f"{alias}.")
        }
        places = TopK(*(own[name] for name in ("activation", "image", "row", "column")))
        count, *sums = (own[f"stats.{name}"] for name in Stats.__dataclass_fields__)
        return places, Stats(int(count[0]), *sums)


def _rank_within(channel: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier entries have the same channel; `channel` is sorted."""
    firsts = np.searchsorted(channel, channel)
    return np.arange(len(channel)) - firsts


def _sums(maps: Tensor, used: Tensor) -> Stats:
    """Sums over the places of the images in use; float32 within an image, float64 across."""
    places = maps.shape[2] * maps.shape[3]
    chosen = used.cpu().numpy()

    def total(values: Tensor) -> NDArray[np.float64]:
        return np.asarray(values.cpu().numpy()[chosen].sum(axis=0, dtype=np.float64))

    largest = maps.amax(dim=(2, 3)).cpu().numpy()[chosen]
    return Stats(
        count=places * int(chosen.sum()),
        total=total(maps.sum(dim=(2, 3))),
        squares=total((maps * maps).sum(dim=(2, 3))),
        largest=largest.max(axis=0, initial=-np.inf).astype(np.float64),
        active=total((maps > 0).to(torch.float32).sum(dim=(2, 3))),
    )


def _finish(session: Session, manifest: Manifest, plan: Record, parts: Parts, count: int) -> None:
    """Add the parts up, in their order, and publish topk.h5 and skipped.tsv."""
    skipped = np.zeros(len(manifest), np.bool_)
    reasons: dict[int, str] = {}
    sums = {
        la.alias: (TopK.empty(la.channels, plan["k"]), Stats.empty(la.channels))
        for la in session.layers
    }
    for number in range(count):
        arrays = parts[number]
        skipped[arrays["failures"]] = True
        texts = (text.decode() for text in arrays["reasons"].tolist())
        reasons |= dict(zip(arrays["failures"].tolist(), texts, strict=True))
        for alias, (places, stats) in sums.items():
            more, others = Gatherer.restore(arrays, alias)
            sums[alias] = places.merge(more), stats.merge(others)
    lines = (f"{_one_line(manifest.paths[i])}\t{reasons[i]}\n" for i in sorted(reasons))
    publish(session.run.skipped, "".join(lines).encode("utf-8", "surrogateescape"))
    images = Images(manifest.paths, manifest.labels, skipped)
    layers = [(layer, *sums[layer.alias]) for layer in session.layers]
    TopKFile(session.run.topk).publish(plan, images, layers)


def _one_line(path: str) -> str:
    """A path that cannot break a line of the table."""
    return path.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def _report(session: Session, file: TopKFile) -> None:
    """Say what there is; too many unreadable images are exit code 3."""
    images, skipped = file.summary()
    session.report.result(
        f"{file.path}: {images} images, {skipped} skipped, {len(file.layers())} layers"
    )
    allowed = session.plan.topk.max_unreadable
    if skipped > allowed * images:
        raise TooManyUnreadable(
            f"{skipped} of {images} images could not be used, more than --max-unreadable "
            f"{allowed:g}; they are listed in {session.run.skipped}"
        )
