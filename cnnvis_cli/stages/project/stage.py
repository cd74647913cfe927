"""`cnnvis project`: stored activations, projected back through the network to the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cnnvis_cli.digests import file_digest
from cnnvis_cli.engine import Cluster, TaskDone, run_tasks
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.backward import check_rules
from cnnvis_cli.stages.common.blocks import Blocks
from cnnvis_cli.stages.common.dataset_images import gather
from cnnvis_cli.stages.common.layer_job import announce, tasks_of
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.project.batching import StoredPlaces
from cnnvis_cli.stages.project.job import Made, Projections, memory_need
from cnnvis_cli.stages.project.worker import ProjectJob, project_blocks
from cnnvis_cli.store.topk_file import TopKFile


def check_ways_back(session: Session) -> None:
    """Raise `UsageError` if a method has no rule for a function of the network."""
    for method in session.plan.project.method:
        check_rules(session.network, session.layers, method)


def project(session: Session) -> None:
    """Project the stored places of the chosen units, for every chosen layer and method."""
    asked = _asked_projections(session)
    todo = [projections for projections in asked if projections.pending]
    for method in session.plan.project.method:
        layers = [projections.layer for projections in todo if projections.method == method]
        if layers:
            check_rules(session.network, layers, method)
    if todo:
        announce("project", todo)
        with session.timed("project"):
            _do(session, todo)
    if session.plan.shard is not None:
        session.shard_is_done()
        return
    for projections in asked:
        group, file = projections.group, projections.file
        projections.parts.clear()  # possible remains of a killed process
        session.report.result(f"{file.path}: {group}, {int(file.done(group).sum())} units")


def _do(session: Session, todo: Sequence[Projections]) -> None:
    """Make the missing blocks, and publish each layer's when the last one is done."""
    tasks = tasks_of(todo, [Blocks(each.parts, each.block) for each in todo])
    pool = session.pool(memory_need(session), gradients=True)
    pieces = tuple((each.layer.alias, each.method) for each in todo)
    tops = {each.layer.alias: each.top for each in todo}
    plan, source = session.portable_plan, todo[0].source
    work = ProjectJob(plan, pieces, tasks, tops, source, session)
    if not isinstance(pool, Cluster) and pool[0].device.type == "cpu" and not pool[0].fresh:
        work = replace(work, read=gather(session, work.images(tasks)))
    for each in todo:
        each.parts.describe(each.described)
    on_event = _ProjectProgress(session, todo, work)
    run_tasks(partial(project_blocks, work), pool, range(len(tasks)), on_event, work.describe)
    on_event.settle()


class _ProjectProgress:
    """Receive the processes' messages, and publish a layer's projections when all are done."""

    def __init__(self, session: Session, todo: Sequence[Projections], work: ProjectJob) -> None:
        self._session, self._todo, self._work = session, todo, work
        self._left = Counter(task.job for task in work.tasks)
        count = sum(len(StoredPlaces.of(todo[task.job].top, task.units)) for task in work.tasks)
        self._meter = session.report.meter("project", count, "places")

    def __call__(self, message: Any) -> None:
        self._session.on_event(message)
        if isinstance(message, Made):
            self._meter.add(message.places)
        if isinstance(message, TaskDone):
            piece = self._work.tasks[message.number].job
            self._left[piece] -= 1
            if not self._left[piece]:
                self._publish(piece)

    def settle(self) -> None:
        """Publish results that needed no more work."""
        self._meter.end()
        for piece in range(len(self._todo)):
            if piece not in self._left:
                self._publish(piece)

    def _publish(self, piece: int) -> None:
        if self._session.plan.shard is None:
            self._todo[piece].publish()


def _asked_projections(session: Session) -> list[Projections]:
    """Return the plan's projections; without --layer those of the layers in topk.h5.

    Raise `UsageError` if there are none.
    """
    file = TopKFile(session.run.topk)
    if file.identity() is None:
        raise UsageError(f"{session.run.path} has no topk.h5 yet; run cnnvis topk first")
    held, source = file.layers(), file_digest(session.run.topk)
    found = []
    for layer in session.layers:
        if session.plan.layer or layer.alias in held:
            top = file.layer(layer.alias)
            for method in session.plan.project.method:
                found.append(Projections(session, layer, method, top, source))
    return found
