"""`cnnvis project`: stored activations, projected back through the network to the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

from cnnvis_cli.digests import file_digest
from cnnvis_cli.engine import Cluster, TaskDone, run_tasks
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.backward import way_back
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.blocks import Blocks
from cnnvis_cli.stages.common.dataset_images import gather
from cnnvis_cli.stages.common.disk import check_disk
from cnnvis_cli.stages.common.layer_job import announce, tasks_of
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.project.batching import StoredPlaces
from cnnvis_cli.stages.project.job import Made, Projections, memory_need
from cnnvis_cli.stages.project.worker import ProjectJob, project_blocks
from cnnvis_cli.store.room import joined_room
from cnnvis_cli.store.topk_file import TopKFile


def with_ways_back(session: Session, layers: Sequence[Layer] | None = None) -> Session:
    """Return the session with projection methods that have a rule for the network.

    The default gives way to the gradient. Raise `UsageError` if a method that was asked for by name
    has no rule for a function before one of the layers (those of the plan).
    """
    chosen = session.layers if layers is None else tuple(layers)
    methods = []
    for method in session.plan.project.methods if chosen else ():
        found, note = way_back(session.network, chosen, method, bool(session.plan.project.method))
        if note is not None:
            session.report.once(note)
        methods.append(found)
    return session.with_project(session.plan.batch_size, method=tuple(methods))


def project(session: Session) -> None:
    """Project the stored places of the chosen units, for every chosen layer and method."""
    top = TopKFile(session.run.topk)
    if top.identity() is None:
        raise UsageError(f"{session.run.path} has no topk.h5 yet; run cnnvis topk first")
    held = top.layers()
    layers = [la for la in session.layers if session.plan.layer or la.alias in held]
    session = with_ways_back(session, layers)
    asked = _asked_projections(session, layers)
    todo = list(filter(attrgetter("pending"), asked))
    if todo:
        room = joined_room(list(map(attrgetter("room"), todo)))
        check_disk(session, "project", room, "ask for fewer --units, --layer or --method")
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


def _asked_projections(session: Session, layers: Sequence[Layer]) -> list[Projections]:
    """Return the plan's projections of some layers."""
    file, source = TopKFile(session.run.topk), file_digest(session.run.topk)
    tops = {layer.alias: file.layer(layer.alias) for layer in layers}
    return [
        Projections(session, layer, method, tops[layer.alias], source)
        for layer in layers
        for method in session.plan.project.method
    ]
