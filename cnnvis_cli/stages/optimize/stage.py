"""`cnnvis optimize`: every unit climbs to the image that it prefers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product, starmap
from operator import attrgetter
from typing import Any

import numpy as np

from cnnvis_cli.ascent.styles import Style
from cnnvis_cli.engine import Aside, Cluster, Pool, resolve_precision, run_tasks
from cnnvis_cli.errors import CnnvisError, TasksFailed
from cnnvis_cli.nouns import size_text
from cnnvis_cli.report import Meter
from cnnvis_cli.stages.common.blocks import Blocks
from cnnvis_cli.stages.common.disk import check_disk
from cnnvis_cli.stages.common.layer_job import LayerTask, announce, tasks_of
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.optimize.job import LayerOptimization
from cnnvis_cli.stages.optimize.setup import LayerSetup
from cnnvis_cli.stages.optimize.spectrum import with_spectrum
from cnnvis_cli.stages.optimize.start import strongest_patches
from cnnvis_cli.stages.optimize.styles import asked_styles
from cnnvis_cli.stages.optimize.worker import (
    MEMORY,
    OptimizeJob,
    Steps,
    history_length,
    optimize_blocks,
)
from cnnvis_cli.store.optimized import Optimized
from cnnvis_cli.store.room import Room, joined_room

SHARES = 16  # of a layer's units, from which processes take one after the other


def optimize(session: Session) -> None:
    """Optimize every chosen unit of every chosen layer in every chosen style."""
    session.plan.optimize.check(session.plan)
    resolve_precision(session.plan.optimize.precision, session.device)
    styles = [with_spectrum(session, style) for style in asked_styles(session.plan)]
    climbs = list(starmap(partial(LayerOptimization.of, session), product(session.layers, styles)))
    pending = list(filter(attrgetter("pending"), climbs))
    lost: TasksFailed | None = None
    if pending:
        _check_room(session, pending)
        announce("optimize", pending)
        with session.timed("optimize"):
            lost = _optimize_layers(session, pending)
        if session.plan.shard is not None:
            units = sum(len(Blocks(each.parts, 1).units()) for each in pending)
            session.shard_is_done(f", {units} images of units are kept there so far")
    for each in climbs if session.plan.shard is None else ():
        if not each.pending:
            each.clear()
        if each.file.styles().get(each.group):
            session.report.result(each.summary())
            each.warn()
    if lost is not None:
        raise lost


def _check_room(session: Session, pending: Sequence[LayerOptimization]) -> None:
    """Say what the images will take; raise `CnnvisError` for more than is free."""
    by_layer: dict[str, list[Room]] = {}
    for each in pending:
        by_layer.setdefault(each.layer.alias, []).append(each.room)
    layers = []
    for rooms in by_layer.values():  # published together
        layers.append(Room(sum(r.results for r in rooms), sum(r.parts for r in rooms)))
    remedy = "ask for fewer --units, --style or --runs"
    check_disk(session, "optimize", joined_room(layers), remedy)


def _optimize_layers(session: Session, climbs: Sequence[LayerOptimization]) -> TasksFailed | None:
    """Optimize layer after layer; return the first that had to set blocks aside."""
    lost: list[TasksFailed] = []
    with Aside() as publisher:
        kinds = [(each.layer, each.setup.typical) for each in climbs]  # of one pass each
        for kind in dict.fromkeys(kinds):
            own = [each for each, its in zip(climbs, kinds, strict=True) if its == kind]
            try:
                optimize_layer(session, own, publisher)
            except TasksFailed as error:
                lost.append(error)
        publisher.settle()
    return lost[0] if lost else None


def optimize_layer(session: Session, climbs: Sequence[LayerOptimization], publisher: Aside) -> None:
    """Make all ascents of one layer, in every style at once, then publish them together.

    Where GPUs do the work they are published beside the next layer's; no process may be forked
    while a thread writes. A shard leaves its blocks for `merge`. Raises `TasksFailed`, when the
    rest is published, for blocks that ended their processes.
    """
    if not climbs:
        return
    pool = session.pool(MEMORY, gradients=True)
    blocks = [_blocks_of(each, isinstance(pool, Cluster)) for each in climbs]
    styles, tasks = tuple(each.style for each in climbs), tasks_of(climbs, blocks)
    plan, setup = session.portable_plan, _with_patches(session, climbs[0], styles)
    work = OptimizeJob(plan, setup, session.network, styles, tasks)
    lost: TasksFailed | None = None
    if work.tasks:
        try:
            _climb(session, climbs, work, pool)
        except TasksFailed as error:
            lost = error
        _check_all_there(climbs, blocks, lost)
    if session.plan.shard is None:
        publisher.begin(_publish_layer, session, climbs, blocks)
        if session.device.type == "cpu":
            publisher.settle()
    if lost is not None:
        raise lost


def _with_patches(
    session: Session, climbs: LayerOptimization, styles: Sequence[Style]
) -> LayerSetup:
    """Return a layer's setup, with the parts of the photograph that the style accent begins at."""
    setup, layer = climbs.setup, climbs.layer
    if not any(style.accentuates for style in styles):
        return setup
    if setup.box.size != session.network.size:
        session.report.once(
            f"{layer.alias}: accent takes the {size_text(setup.box.size)} pixels of the photograph "
            "where each unit answers most; --mean takes the whole photograph"
        )
    patches = strongest_patches(session, layer, setup.box, setup.objective)
    return replace(setup, patches=patches)


def _blocks_of(climbs: LayerOptimization, alone: bool) -> Blocks:
    """Return half batches, for two processes to share evenly; whole ones for lone processes.

    On CPUs there are at least `SHARES` blocks if there are as many units, so that few units keep
    all cores at work too. The division depends on what is asked alone: shards have to agree.
    """
    runs = climbs.session.plan.optimize.runs
    size = climbs.setup.size // (runs if alone else runs * 2)
    if climbs.session.device.type == "cpu":
        size = min(size, -(-len(climbs.asked) // SHARES))
    return Blocks(climbs.parts, max(1, size))


def _climb(
    session: Session, climbs: Sequence[LayerOptimization], work: OptimizeJob, pool: Pool
) -> None:
    """Let the pool do the tasks of a layer."""
    for each in climbs:
        each.parts.describe(each.described)
    tasks, runs = work.tasks, session.plan.optimize.runs
    if isinstance(pool, Cluster):
        used = runs * max(len(task.units) for task in tasks)  # each is a call of its own
    else:
        pool = pool[: len(tasks)]
        ascents = runs * sum(len(task.units) for task in tasks)
        share = -(-ascents // len(pool))  # so that one process does not take what is there for two
        rounds = -(-share // work.setup.size)
        used = -(-share // rounds)
    run_group = work.setup.objective.run_group
    used = min(work.setup.size, -(-used // run_group) * run_group)
    work = replace(work, max_active=used)
    on_event = _OptimizeProgress(session, climbs, tasks)
    run_tasks(partial(optimize_blocks, work), pool, range(len(tasks)), on_event, work.describe)
    on_event.meter.end()


def _check_all_there(
    climbs: Sequence[LayerOptimization], blocks: Sequence[Blocks], lost: TasksFailed | None
) -> None:
    """Raise `CnnvisError` where workers say that they have done what is not to be found here."""
    left = tasks_of(climbs, blocks)
    if left and lost is None:
        raise CnnvisError(
            f"{left[0].parts.folder}: what the workers have done is not there; the run directory "
            "must be the same folder, under the same path, on all machines"
        )


class _OptimizeProgress:
    """Hear what the processes tell, and say how far the layer is."""

    def __init__(
        self, session: Session, climbs: Sequence[LayerOptimization], tasks: Sequence[LayerTask]
    ) -> None:
        self._session, runs = session, session.plan.optimize.runs
        self._runs, self._ended = runs, 0
        self._units = sum(len(task.units) for task in tasks)
        steps = sum(len(task.units) * runs * climbs[task.job].style.iterations for task in tasks)
        names = ", ".join(map(attrgetter("group"), climbs))
        what = f"optimize {climbs[0].layer.alias} style {names}"
        self.meter: Meter = session.report.meter(what, steps, "steps")

    def __call__(self, message: Any) -> None:
        self._session.on_event(message)
        if isinstance(message, Steps):
            self._ended += message.ended
            done = f"{self._ended // self._runs} of {self._units} units"
            self.meter.add(message.made, done)


def _publish_layer(
    session: Session, climbs: Sequence[LayerOptimization], blocks: Sequence[Blocks]
) -> None:
    settings, added = session.plan.optimize, {}
    for each, kept in zip(climbs, blocks, strict=True):
        shape = (settings.runs, *each.setup.box.size)
        steps = history_length(each.style, settings.history)
        units = np.array(kept.units(), np.int32)
        if len(units):
            added[each.group] = Optimized(each.record, units, shape, steps, kept)
    if added:
        climbs[0].file.publish(session.header(climbs[0].layer), added)
    for kept in blocks:
        kept.parts.clear()
