"""The work of any stage on one layer: what is asked for, what is done, and the parts between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.digests import digest
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.blocks import Blocks
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.store.parts import Name, Parts
from cnnvis_cli.store.run import Record


class LayerTask(NamedTuple):
    """What a worker takes: some units of one of the jobs, and the part that keeps their result."""

    job: int  # its place among the jobs of a call
    parts: Parts
    part: Name
    units: tuple[int, ...]

    def keep(self, arrays: Arrays) -> None:
        """Store the result."""
        self.parts[self.part] = arrays


@dataclass(frozen=True, eq=False)
class LayerJob(ABC):
    """A group of a layer's file: a stage states its name, what decides it, and what is done."""

    session: Session
    layer: Layer

    kind: ClassVar[str]  # of results: where parts are kept
    counted: ClassVar[str] = "units"

    @property
    @abstractmethod
    def group(self) -> str:
        """The name of the group in the file."""

    @property
    @abstractmethod
    def record(self) -> Record:
        """What decides the results of a unit."""

    @property
    def kept_record(self) -> Record:
        """The part of the file's own record that the plan decides: what `cnnvis verify` expects."""
        return self.record

    @property
    @abstractmethod
    def done(self) -> Sequence[int]:
        """The units in the file; raises `UsageError` if it is of another plan."""

    @property
    def asked(self) -> tuple[int, ...]:
        """The units that the plan asks for."""
        return self.session.units(self.layer)

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return not set(self.asked) <= set(self.done)

    @property
    def title(self) -> str:
        """Its name for messages."""
        return f"{self.layer.alias} {self.group}"

    @property
    def status(self) -> Record:
        """For `cnnvis status` and `verify`: the work to do, where its results go, and of what."""
        total = len({*self.asked, *self.done})
        about = {"unit": self.counted, "total": total, "layer": self.layer.alias}
        where = {"group": self.group, "parts": f"{self.layer.alias}-{self.group}-*"}
        return {**about, **where, "record": digest(self.kept_record)}

    @property
    def described(self) -> Record:
        """Everything that decides the content of a part."""
        about = {"identity": self.session.identity, "record": self.record}
        return {**about, "layer": self.layer.alias, "group": self.group}

    @property
    def parts(self) -> Parts:
        """Where finished blocks are kept until the layer is done."""
        return self.parts_for(self.group, self.described)

    def parts_for(self, name: str, described: Record) -> Parts:
        """Return the folder of parts of the layer under a name, decided by a record."""
        key = digest(described)
        folder = f"{self.layer.alias}-{name}-{key}"
        return Parts(self.session.run.parts(self.kind, folder), key)


def tasks_of(jobs: Sequence[LayerJob], blocks: Sequence[Blocks]) -> tuple[LayerTask, ...]:
    """Return what this shard has to do of the jobs, each cut into blocks, and nobody has done."""
    found: list[LayerTask] = []
    for number, (job, cut) in enumerate(zip(jobs, blocks, strict=True)):
        missing = cut.missing(job.asked, job.done, job.session.takes(job.layer))
        found += [LayerTask(number, cut.parts, *block) for block in missing]
    return tuple(found)


def announce(stage: str, jobs: Sequence[LayerJob]) -> None:
    """Note what is to be done, for `cnnvis status`."""
    if jobs:
        jobs[0].session.announce(stage, {job.title: job.status for job in jobs})


class Portable:
    """What worker processes are given: a copy in another process is without what stays here."""

    stays: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        defaults = {f.name: f.default_factory for f in fields(self) if callable(f.default_factory)}  # type: ignore[arg-type]
        state = dict(vars(self))
        for name in self.stays:
            state[name] = defaults[name]() if name in defaults else None
        return state
