"""One process's work in `cnnvis project`: blocks of channels, projected and stored as parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from cnnvis_cli.engine import Emit, TaskDone, WorkerSlot, ahead, steady
from cnnvis_cli.nouns import units_text
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.dataset_images import ReadImage, gather
from cnnvis_cli.stages.common.layer_job import LayerTask, Portable
from cnnvis_cli.stages.common.network_loading import network_on
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.project.job import Projections
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.topk_file import LayerTopK


@dataclass(frozen=True)
class ProjectJob(Portable):
    """The data that every process needs; a copy in another process loads the network itself."""

    stays: ClassVar[tuple[str, ...]] = ("session", "read")
    plan: Plan
    pieces: tuple[tuple[str, str], ...]  # a layer's alias and a method
    tasks: tuple[LayerTask, ...]
    tops: dict[str, LayerTopK]  # by layer
    source: str  # digest of topk.h5
    session: Session | None
    read: ReadImage | None = None  # for images that are already decoded

    def describe(self, number: int) -> str:
        """Return a task's name for messages."""
        task = self.tasks[number]
        alias, method = self.pieces[task.job]
        return f"{method} of {alias} {units_text(task.units)}"

    def on(self, device: torch.device) -> list[Projections]:
        """Return the pieces, for computing on a device."""
        network = network_on(device, self.plan, self.session.network if self.session else None)
        quiet = Report(quiet=True)
        session = self.session or Session(self.plan, network, Run(self.plan.folder), quiet)
        session = replace(session, network=network)
        layers = {alias: network.aliased((alias,))[0] for alias in self.tops}
        return [
            Projections(session, layers[alias], method, self.tops[alias], self.source)
            for alias, method in self.pieces
        ]

    def images(self, tasks: Sequence[LayerTask]) -> NDArray[np.int64]:
        """Return the images that some tasks need, sorted."""
        found = [np.empty(0, np.int64)]
        for task in tasks:
            alias, _ = self.pieces[task.job]
            found.append(self.tops[alias].places.image[list(task.units)].ravel())
        images = np.unique(np.concatenate(found))
        return images[images >= 0]


def project_blocks(
    work: ProjectJob, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit
) -> None:
    """Make the blocks of these numbers, and store them as parts."""
    pieces = work.on(worker_slot.device)

    def readers() -> Iterator[tuple[int, ReadImage]]:
        for number in numbers:
            images = work.images([work.tasks[number]])
            yield number, work.read or gather(pieces[0].session, images)

    for number, read in ahead(readers(), 1 if worker_slot.device.type == "cuda" else 0):
        task = work.tasks[number]
        with steady():
            task.keep(pieces[task.job].compute(task.units, read, emit))
        emit(TaskDone(number))
