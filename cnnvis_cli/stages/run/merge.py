"""`cnnvis merge`: the results of shards, in one or many run directories, become one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Layer
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.blocks import Blocks
from cnnvis_cli.stages.common.network_loading import outline, outlined
from cnnvis_cli.stages.common.session import header_of
from cnnvis_cli.stages.project.job import by_channel
from cnnvis_cli.stages.topk.assemble import (
    MANIFEST,
    MANIFEST_COLUMNS,
    announce_result,
    announce_sample,
    dataset_record,
    finish,
    finish_sample,
    is_done,
)
from cnnvis_cli.stages.topk.job import TopKJob
from cnnvis_cli.store.inside import check_inside, read_regular
from cnnvis_cli.store.optimized import Optimized, OptimizedFile
from cnnvis_cli.store.parts import Parts, described
from cnnvis_cli.store.projected import Projected, ProjectedFile
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Record, Run, differences
from cnnvis_cli.store.sample_file import SampleFile
from cnnvis_cli.store.topk_file import TopKFile

IDENTITY = ("model", "weights_sha256", "preprocessing")


def merge(runs: Sequence[Path], plan: Plan, report: Report) -> None:
    """Join the results of the shards in `runs` in the plan's run directory.

    The bytes are those of an undivided run. Shards may overlap. Raise `UsageError` for runs of
    different plans and `CnnvisError` for a missing part of the top-k.
    """
    for run in runs:
        check_inside(run)
    sources = list(map(Run, runs))
    identity = _common_identity(sources)
    target = Run(replace(plan, model=identity["model"]).folder)
    network = outline(replace(Plan(run=str(sources[0].path)), trust_code=plan.trust_code))
    network = replace(network, digest=identity["weights_sha256"])
    with report.stoppable(), target.lock(say=report.once):
        first = sources[0].read()
        target.claim(identity, first.get("weights"), first.get("ema") is True)
        target.note("network", outlined(network))
        _tell_arithmetic(sources, report)
        joining = _Joining(sources, target, network, report)
        joining.measured()
        done = [*map(joining.units, _MERGED_KINDS), joining.searched()]
        joining.asked()
        shards = list(chain.from_iterable(map(_shards, sources)))
        if not shards and not any(done) and not joining.joined:
            where = ", ".join(map(str, runs))
            raise UsageError(f"{where}: holds no shard; make one with --shard i/n")
        if shards:
            _join_topk(shards, target, network, plan, report)


def _common_identity(sources: Sequence[Run]) -> Record:
    """Return the identity of all runs; raise `UsageError` if they differ."""
    identities = []
    for source in sources:
        record = source.read()
        if not record:
            raise UsageError(f"{source.path}: holds no shard; make one with --shard i/n")
        identities.append({name: record[name] for name in IDENTITY})
    for source, identity in zip(sources[1:], identities[1:], strict=True):
        if identity != identities[0]:
            raise UsageError(
                f"{source.path} and {sources[0].path} are of different plans: "
                f"{differences(identities[0], identity)}"
            )
    return identities[0]


def _tell_arithmetic(sources: Sequence[Run], report: Report) -> None:
    """Say where shards were computed in ways that give different last bits."""
    for stage in ("topk", "optimize", "project", "search"):
        found: list[Record] = []
        for source in sources:
            for notes in source.all_notes():
                for record in notes.get(stage, {}).get("arithmetic", []):
                    if record not in found:
                        found.append(record)
        for other in found[1:]:
            report.note(
                f"{stage}: shards were computed in different ways, and their last bits may "
                f"differ: {differences(found[0], other)}"
            )


@dataclass(frozen=True)
class _Joining:
    """The units of all runs, joined layer by layer."""

    sources: Sequence[Run]
    target: Run
    network: Network
    report: Report

    def units(self, kind: _Kind) -> bool:
        """Join the files of one kind; return whether there were any."""
        found: dict[str, dict[str, list[Any]]] = {}
        for alias, group, piece in self._pieces(kind):
            found.setdefault(alias, {}).setdefault(group, []).append(piece)
        for alias, groups in self.report.each(found.items()):
            target = kind.file(self.target, alias)
            for group, pieces in groups.items():
                _agree(target.path, group, kind.groups(target).get(group), pieces)
            added = {group: kind.joined(pieces) for group, pieces in groups.items()}
            target.publish(self._header(alias), added)
            for group in groups:
                done = f"{kind.held(target, group)} units"
                self.report.result(f"{target.path}: {group}, {done}")
        return self._tidy(kind.name) or bool(found)

    def _pieces(self, kind: _Kind) -> Iterator[tuple[str, str, Any]]:
        """Yield layer, group and units: of finished blocks, and of other runs' finished files."""
        for folder, about in self._parts(kind.name):
            blocks = Blocks(Parts.of(folder), 1)
            first = next(iter(blocks), None)
            if first is not None:  # at least one of them is intact
                layer = self.network.aliased((about["layer"],))[0]
                yield layer.alias, about["group"], kind.piece(about["record"], layer, blocks, first)
        for source in self._others:
            for layer in self.network.layers:
                file = kind.file(source, layer.alias)
                yield from ((layer.alias, group, file.held(group)) for group in kind.groups(file))

    def measured(self) -> None:
        """Bring what styles were made with from the other runs; refuse two of a kind."""
        for source in self._others:
            for path in source.measurements():
                there, content = (
                    self.target.path / path.relative_to(source.path),
                    read_regular(path),
                )
                if there.exists() and read_regular(there) != content:
                    raise UsageError(
                        f"{path} and {there} were measured from different images; merge runs of "
                        "one topk"
                    )
                publish(there, content)

    def asked(self) -> None:
        """Note what the runs were asked for, and say where some of it is not there."""
        known: Record = self.target.read().get("asked", {})
        for stage, kind in zip(("optimize", "project"), _MERGED_KINDS, strict=True):
            jobs: Record = {}
            for notes in chain.from_iterable(source.all_notes() for source in self.sources):
                jobs |= notes.get("asked", {}).get(stage, {})
            if jobs:
                known = {**known, stage: {**known.get(stage, {}), **jobs}}
            for job in jobs.values():
                file, group = kind.file(self.target, job["layer"]), job["group"]
                have = kind.held(file, group) if group in kind.groups(file) else 0
                if have < job["total"]:
                    self.report.warn(
                        f"{file.path}: {group}: {have} of {job['total']} units that were asked for "
                        "are there; merge the other shards as well"
                    )
        if known:
            self.target.note("asked", known)

    def searched(self) -> bool:
        """Collect the rows of searches, for `cnnvis search` to score."""
        names = set()
        for folder, _ in self._parts("search"):
            kept = self.target.parts("search", folder.name)
            names.add(folder.name)
            for path in [] if kept == folder else sorted(folder.iterdir()):
                if not (kept / path.name).exists():
                    publish(kept / path.name, read_regular(path))
        for name in sorted(names):
            self.report.result(
                f"{self.target.path}: rows of search {name.rsplit('-', 1)[0]} are complete; run "
                "cnnvis search there without --shard"
            )
        return bool(names)

    @property
    def joined(self) -> bool:
        """Return whether an earlier merge into one of the sources has left nothing to join."""
        made = ("topk.h5", "optimized/*.h5", "projected/*.h5")
        return self._among and any(any(self.target.path.glob(name)) for name in made)

    @property
    def _among(self) -> bool:
        """Return whether the target is one of the sources."""
        return len(self._others) < len(self.sources)

    @property
    def _others(self) -> list[Run]:
        there = self.target.path.resolve()
        return [source for source in self.sources if source.path.resolve() != there]

    def _parts(self, kind: str) -> Iterator[tuple[Path, Record]]:
        """Yield the folders of finished blocks that have a description."""
        for source in self.sources:
            for folder in sorted(source.parts(kind).glob("*")):
                about = described(folder)
                if about is not None:
                    yield folder, about

    def _tidy(self, kind: str) -> bool:
        """Remove published pieces from the target's own parts."""
        if not self._among:
            return False
        folders = [
            path
            for path in self.target.parts(kind).glob("*")
            if described(path) or "-step-" in path.name
        ]
        for folder in folders:
            Parts(folder, "").clear()
        return bool(folders)

    def _header(self, alias: str) -> Any:
        return header_of(self.network, self.network.aliased((alias,))[0])


def _merged_optimized(record: Record, _: Layer, blocks: Blocks, first: Arrays) -> Optimized:
    units = np.array(blocks.units(), np.int32)
    shape, steps = first["image"].shape[1:4], first["history"].shape[2]
    return Optimized(record, units, shape, steps, blocks)


def _merged_projected(record: Record, layer: Layer, blocks: Blocks, first: Arrays) -> Projected:
    shape = (layer.channels, *first["projection"].shape[1:4])
    return Projected(record, shape, by_channel(blocks))


class _Kind(NamedTuple):
    """How files of units are read and joined: optimized images, or projections."""

    name: str
    file: Callable[[Run, str], Any]  # of a layer
    groups: Callable[[Any], dict[str, Record]]  # of a file: styles, or methods
    held: Callable[[Any, str], int]  # units of a group
    piece: Callable[[Record, Layer, Blocks, Arrays], Any]  # of blocks, the first of them loaded
    joined: Callable[[Sequence[Any]], Any]


_MERGED_KINDS = (
    _Kind(
        "optimized",
        lambda run, alias: OptimizedFile(run.optimized(alias)),
        OptimizedFile.styles,
        lambda file, style: len(file.units(style)),
        _merged_optimized,
        Optimized.joined,
    ),
    _Kind(
        "projected",
        lambda run, alias: ProjectedFile(run.projected(alias)),
        ProjectedFile.methods,
        lambda file, method: int(file.done(method).sum()),
        _merged_projected,
        Projected.joined,
    ),
)


def _agree(
    path: Path, group: str, held: Record | None, pieces: Sequence[Optimized | Projected]
) -> None:
    """Raise `UsageError` for pieces of other plans than each other's, or than that of `held`."""
    first = held or pieces[0].record
    for piece in pieces:
        if piece.record != first:
            raise UsageError(
                f"{path}: {group} of different plans: {differences(first, piece.record)}"
            )


@dataclass(frozen=True)
class _Shard:
    """A run directory that contains some parts of a top-k."""

    run: Run
    identity: Record
    parts: Parts
    manifest: Manifest
    sample: tuple[int, Parts] | None  # how many images, and their parts


def _join_topk(
    shards: Sequence[_Shard], target: Run, network: Network, plan: Plan, report: Report
) -> None:
    first = shards[0]
    for shard in shards[1:]:
        if shard.identity != first.identity:
            raise UsageError(
                f"{shard.run.path} and {first.run.path} are of different plans: "
                f"{differences(first.identity, shard.identity)}"
            )
        _check_samples(first, shard)
    file, count = TopKFile(target.topk), first.sample and first.sample[0]
    job = TopKJob.of(target, first.identity, first.manifest, plan, network).sampled(target, count)
    if not is_done(file.path, file.identity(), job.identity):
        target.note(
            "dataset", dataset_record(first.manifest)
        )  # first: a topk.h5 of another one is refused
        finish(target, job, [shard.parts for shard in shards], report)
    target.note("dataset", dataset_record(first.manifest))
    if job.sample is not None:
        sampled = SampleFile(target.sample)
        if not is_done(sampled.path, sampled.identity(), job.sample.identity):
            sources = [shard.sample[1] for shard in shards if shard.sample is not None]
            finish_sample(target, job, sources, report)
        announce_sample(target, report)
    job.clear()  # of shards that shared this directory
    announce_result(file, target, first.manifest, plan.topk.max_unreadable, report)


def _check_samples(one: _Shard, other: _Shard) -> None:
    """Raise `UsageError` for shards with different samples, or of which only one has any."""
    counts = [shard.sample[0] if shard.sample else 0 for shard in (one, other)]
    if counts[0] != counts[1]:
        raise UsageError(
            f"{other.run.path} and {one.run.path} are of different plans: their samples have "
            f"{counts[1]} and {counts[0]} images; run each cnnvis topk --shard with the same "
            "--sample"
        )


def _shards(run: Run) -> Iterator[_Shard]:
    """Yield the shards of a top-k in a run directory; raise `UsageError` for several plans."""
    folders = [path.parent for path in run.parts("topk").glob(f"*/{MANIFEST}.h5")]
    if len(folders) > 1:
        raise UsageError(f"{run.path}: holds shards of several plans; remove those of old ones")
    for folder in folders:
        yield _read_shard(run, folder)


def _read_shard(run: Run, folder: Path) -> _Shard:
    parts = Parts(folder, folder.name)
    try:
        about = parts[MANIFEST]
    except KeyError:
        raise CnnvisError(f"{folder}: is damaged; run its cnnvis topk --shard again") from None
    classes = tuple(name.decode("utf-8", "surrogateescape") for name in about["classes"].tolist())
    columns: dict[str, Any] = {name: about[name] for name in MANIFEST_COLUMNS}
    root = Path(about["root"].tolist()[0].decode("utf-8", "surrogateescape"))
    said = about["about"].tolist()[0] if "about" in about else b'["", {}, ""]'
    level, passed, deeper = json.loads(said)
    manifest = Manifest(
        root, **columns, classes=classes, level=level, passed_over=passed, deeper=deeper
    )
    identity = json.loads(about["plan"].tolist()[0])
    return _Shard(run, identity, parts, manifest, _sample_of(run, identity))


def _sample_of(run: Run, identity: Record) -> tuple[int, Parts] | None:
    """Return the sample that belongs to a shard; raise `UsageError` for several."""
    found = []
    for folder in sorted(run.parts("sample").glob("*")):
        about = described(folder)
        if about is not None and all(identity.get(n) == about[n] for n in about if n != "sample"):
            found.append((int(about["sample"]), Parts.of(folder)))
    if len(found) > 1:
        raise UsageError(
            f"{run.path}: holds samples of {found[0][0]} and {found[1][0]} images; remove the "
            "folder in parts/sample that is not wanted"
        )
    return found[0] if found else None
