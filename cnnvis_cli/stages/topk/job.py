"""What a top-k is made of: what decides its file, how its images are cut, where its parts are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from cnnvis_cli.arrays import Arrays, Int64s
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.digests import digest
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Layer
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.layer_job import Portable
from cnnvis_cli.stages.common.network_loading import network_on
from cnnvis_cli.store.parts import Name, Parts
from cnnvis_cli.store.run import Record, Run
from cnnvis_cli.store.stats import joined

GROUPS = (8, 64)  # parts that are joined once all of them are there


def piece_name(parts: range) -> Name:
    """Return the name under which parts are kept together."""
    return parts.start if len(parts) == 1 else f"{parts.start:06d}-{parts[-1]:06d}"


@dataclass(frozen=True)
class StoredPiece:
    """Some parts of a top-k as they are stored: one, or several joined."""

    parts: Parts
    name: Name
    names: tuple[str, ...]

    @classmethod
    def of(cls, parts: Parts, name: Name) -> StoredPiece:
        """Return a piece; raise KeyError if there is no intact one."""
        return cls(parts, name, tuple(parts.listed(name)))

    def read(self, names: Sequence[str]) -> Arrays:
        return self.parts.read(self.name, names)


@dataclass(frozen=True)
class Partition:
    """How images are cut into batches and these into parts; it follows from the plan alone.

    Some 500 parts, but parts of up to four batches where there are few: a part costs a file and
    is what is lost when the power goes, and parts have to divide evenly over processes.
    """

    images: int
    size: int  # images per batch

    @property
    def batches(self) -> int:
        return -(-self.images // self.size)

    @property
    def length(self) -> int:
        """Return the batches per part."""
        return max(-(-self.batches // 512), min(4, -(-self.batches // 8)))

    @property
    def count(self) -> int:
        """Return the number of parts."""
        return -(-self.batches // self.length)

    def batches_of(self, part: int) -> range:
        return range(part * self.length, min((part + 1) * self.length, self.batches))

    def groups_of(self, part: int) -> Iterator[range]:
        """Yield the groups of parts around one, the smallest first; they begin at their multiples.

        Only whole groups count.
        """
        for size in GROUPS:
            start = part // size * size
            if start + size <= self.count:
                yield range(start, start + size)

    def images_of(self, part: int) -> range:
        batches = self.batches_of(part)
        return range(batches.start * self.size, min(batches.stop * self.size, self.images))


@dataclass(frozen=True)
class Sample:
    """The images whose values sample.h5 keeps, and the finished parts of it."""

    images: Int64s  # indices, ascending
    identity: Record  # all that decides what sample.h5 holds
    parts: Parts

    @classmethod
    def of(cls, run: Run, identity: Record, manifest: Manifest, count: int) -> Sample:
        """Return the sample of a top-k with this identity, of up to `count` images."""
        images = manifest.sample(count)
        own = {name: value for name, value in identity.items() if name not in ("k", "min")}
        own["sample"] = len(images)
        key = digest(own)
        return cls(images, own, Parts(run.parts("sample", key), key))

    def among(self, images: range) -> Int64s:
        """Return those of the sample's images that are among consecutive ones."""
        return self.images[slice(*np.searchsorted(self.images, (images.start, images.stop)))]


@dataclass(frozen=True)
class TopKJob(Portable):
    """A top-k, made once for all who work at it; a copy in another process has no network."""

    stays: ClassVar[tuple[str, ...]] = ("network",)
    identity: Record  # all that decides what topk.h5 holds
    manifest: Manifest
    layers: tuple[Layer, ...]
    parts: Parts
    plan: Plan
    network: Network | None
    sample: Sample | None = None
    is_placed: bool = False  # topk.h5 is complete: only the sample is made

    @classmethod
    def of(
        cls, run: Run, identity: Record, manifest: Manifest, plan: Plan, network: Network
    ) -> TopKJob:
        """Return the job whose finished parts are in this run."""
        key = digest(identity)
        layers = network.aliased(tuple(identity["layers"]))
        manifest = replace(manifest, root=manifest.root.absolute())
        return cls(identity, manifest, layers, Parts(run.parts("topk", key), key), plan, network)

    def sampled(self, run: Run, count: int | None) -> TopKJob:
        """Return the same with a sample of `count` images, or without one."""
        sample = None if count is None else Sample.of(run, self.identity, self.manifest, count)
        return replace(self, sample=sample)

    def sampled_in(self, part: int) -> Int64s:
        """Return the sample's images in a part."""
        return (
            np.zeros(0, np.int64)
            if self.sample is None
            else self.sample.among(self.cut.images_of(part))
        )

    def batches_of(self, part: int) -> list[int]:
        """Return the batches of a part that have to be computed."""
        batches = list(self.cut.batches_of(part))
        if not self.is_placed:
            return batches
        return sorted(set((self.sampled_in(part) // self.cut.size).tolist()))

    def is_done(self, part: int) -> bool:
        """Return whether all that is wanted of a part is kept."""
        if not self.is_placed and not self._holds(part):
            return False
        return self.sample is None or not len(self.sampled_in(part)) or part in self.sample.parts

    def keep(self, part: int, arrays: Arrays, sampled: Arrays) -> None:
        """Store what was found in a part; the sample first, since it is made with it."""
        if self.sample is not None and len(self.sampled_in(part)):
            self.sample.parts[part] = sampled
        if not self.is_placed:
            self.parts[part] = arrays
            self._join_around(part)

    def _holds(self, part: int) -> bool:
        """Return whether a part is kept, by itself or in a group."""
        groups = map(piece_name, self.cut.groups_of(part))
        return part in self.parts or any(name in self.parts for name in groups)

    def _join_around(self, part: int) -> None:
        """Put the parts around one together, if all of them are there: they take less room so.

        Other processes may be at the same: then both write the same bytes, or one finds nothing.
        """
        size, channels = 1, sum(layer.channels for layer in self.layers)
        for group in self.cut.groups_of(part):
            members = [piece_name(range(n, n + size)) for n in group[::size]]
            if not all(map(self.parts.may_hold, members)):
                return
            try:
                pieces = [StoredPiece.of(self.parts, name) for name in members]
                whole = joined(pieces, channels)
            except KeyError:  # one is damaged, or another process has joined them
                return
            self.parts.put(piece_name(group), whole, small=True)
            for name in members:
                self.parts.remove(name)
            size = len(group)

    def clear(self) -> None:
        """Remove all parts, once their results are published."""
        self.parts.clear()
        if self.sample is not None:
            self.sample.parts.clear()

    @property
    def cut(self) -> Partition:
        return Partition(len(self.manifest), self.identity["batch_size"])

    def describe(self, part: int) -> str:
        """Return a part's name for a person: its first and last image."""
        images = self.cut.images_of(part)
        first, last = self.manifest.path(images.start), self.manifest.path(images.stop - 1)
        return f"images {images.start} to {images.stop - 1} ({first} to {last})"

    def on(self, device: torch.device) -> Network:
        """Return the network on a worker slot's device."""
        return network_on(device, self.plan, self.network)
