"""The steps that suit the layers, found before their ascents begin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from cnnvis_cli.ascent.calibrate import Probe, calibrate, probe_channels
from cnnvis_cli.ascent.climb import Ascent, climb
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import Style
from cnnvis_cli.engine import Emit, TaskDone, WorkerSlot, run_tasks
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.optimize.job import LayerOptimization
from cnnvis_cli.stages.optimize.worker import OptimizeJob, Pulse, Steps, batch_on
from cnnvis_cli.store.parts import Parts


def calibrate_all(session: Session, climbs: Sequence[LayerOptimization]) -> list[LayerOptimization]:
    """Return the climbs with the steps that suit their layers; known steps are kept."""
    found: dict[int, Style | None] = {}
    kept: dict[int, Parts] = {}
    for number, each in enumerate(climbs):
        found[number], kept[number] = each.settled, each.kept_steps
        if found[number] is None and "rate" in kept[number]:
            rate = float(kept[number]["rate"]["rate"][0])
            found[number] = each.style.with_step(Constant(rate))
    open_ones = [number for number, style in found.items() if style is None]
    open_ones.sort(key=lambda number: -math.prod(climbs[number].setup.box.size))  # longest first
    if open_ones:
        _run_calibrations(session, climbs, open_ones, found, kept)
    ready = []
    for each, style in zip(climbs, found.values(), strict=True):
        if style is not None:
            ready.append(replace(each, style=style))
    return ready


def _run_calibrations(
    session: Session,
    climbs: Sequence[LayerOptimization],
    numbers: Sequence[int],
    found: dict[int, Style | None],
    kept: dict[int, Parts],
) -> None:
    probes: dict[str, OptimizeJob] = {}  # one per layer: styles share its pass
    works, styles, titles = [], [], []
    for number in session.report.each(numbers):
        each, alias = climbs[number], climbs[number].layer.alias
        if alias not in probes:
            job = OptimizeJob(session.portable_plan, each.setup, session.network)
            probes[alias] = probing(job)
        works.append(probes[alias])
        styles.append(each.style)
        titles.append(f"the step of {alias} {each.group}")
    pieces = Calibrations(tuple(works), tuple(styles))
    done = steps = 0

    def on_event(message: Any) -> None:
        nonlocal done, steps
        session.on_event(message)
        if isinstance(message, Steps):
            steps += message.made
            told = f"calibrating the step: {done} of {len(numbers)} done, {steps} steps so far"
            session.report.progress(told)
        if isinstance(message, Found):
            number, style = numbers[message.number], message.style
            found[number] = style
            if isinstance(style.step, Constant):
                kept[number]["rate"] = {"rate": np.array([style.step.rate])}
            done += 1

    pool = session.pool(MEMORY, gradients=True)
    run_tasks(partial(find_steps, pieces), pool, range(len(numbers)), on_event, titles.__getitem__)
    session.report.clear()


MEMORY = 1 << 30  # bytes that a process on a CPU may come to need


@dataclass(frozen=True)
class Calibrations:
    """Layers and styles whose steps are to be found, each a piece of work."""

    works: tuple[OptimizeJob, ...]
    styles: tuple[Style, ...]


class Found(NamedTuple):
    """Told: the style with the step that suits the layer."""

    number: int
    style: Style


PROBES = 8  # ascents per batch of a probe


def find_steps(
    work: Calibrations, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit
) -> None:
    """Calibrate the steps of these numbers."""
    for number in numbers:
        emit(Found(number, calibrated(work.works[number], work.styles[number], worker_slot, emit)))
        emit(TaskDone(number))


def probing(work: OptimizeJob) -> OptimizeJob:
    """Return the work of a probe: each ascent by itself."""
    objective = replace(work.setup.objective, diversity=0.0, run_group=1)
    return replace(
        work, setup=replace(work.setup, objective=objective), evaluations={}, checked=set()
    )


def calibrated(work: OptimizeJob, style: Style, worker_slot: WorkerSlot, emit: Emit) -> Style:
    """Return the style with the step that suits the layer; see `ascent.calibrate`."""
    network, setup = work.on(worker_slot.device), work.setup
    evaluate = work.evaluate(network, PROBES)
    chosen = [work.ascents(network, style, target)[0] for target in probe_channels(setup.targets)]
    start = torch.stack([task.start for task in chosen]).to(network.device)

    def ascend(probe: Style) -> list[Ascent]:
        tasks = [[replace(task, style=probe)] for task in chosen]
        batch = batch_on(worker_slot, PROBES, Pulse(PROBES, emit), last=True)
        found = {ascent.key: ascent for ascent in climb(evaluate, tasks, batch, network.mean)}
        return [found[task.key] for task in chosen]

    padded = start.new_zeros(PROBES, *start.shape[1:])
    padded[: len(start)] = start
    targets = torch.zeros(PROBES, dtype=torch.long, device=network.device)
    wanted = torch.tensor([task.target for task in chosen], device=network.device)
    targets[: len(start)] = wanted
    padded = padded.contiguous(memory_format=torch.channels_last)
    gradient = evaluate(padded, targets)[2][: len(start)]
    sizes = gradient.flatten(1).pow(2).mean(dim=1).sqrt()
    live = sizes[sizes > 0]
    typical = float(live.median()) if len(live) else 0.0
    return calibrate(style, Probe(start, network.mean.cpu(), typical, ascend))
