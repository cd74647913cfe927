"""`cnnvis bench optimize`: the speed of `optimize` and of bare forward and backward passes."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cnnvis_cli.ascent.climb import AscentBatch, AscentSpec, climb
from cnnvis_cli.ascent.objectives import Objective
from cnnvis_cli.ascent.starts import noise
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import STYLES, Style
from cnnvis_cli.bench.topk import Measure, each_worker, wait_for
from cnnvis_cli.engine import (
    Emit,
    Graphs,
    Notice,
    WorkerSlot,
    choose_devices,
    resolve_precision,
    run_tasks,
    worker_slots,
)
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.survey import canonical, reading_outputs
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.layer_job import LayerTask
from cnnvis_cli.stages.common.session import Session, open_session
from cnnvis_cli.stages.optimize.evaluation import evaluate_window
from cnnvis_cli.stages.optimize.setup import LayerSetup, setup_of
from cnnvis_cli.stages.optimize.styles import asked_styles
from cnnvis_cli.stages.optimize.worker import (
    MEMORY,
    OptimizeJob,
    Steps,
    check_pass,
    optimize_blocks,
)
from cnnvis_cli.store.parts import Parts

SMALL_RATE = 1e-3  # keeps images where they are; a step costs the same at any rate
BLOCKS = 100_000  # of images, more than are made in any measurement
TURNOVER = 4  # blocks of ascents that begin, end and are saved in a measurement


@dataclass(frozen=True)
class LayerRow:
    """One layer's unit-steps per second, round by round."""

    layer: Layer
    canvas: tuple[int, int]
    batch: int
    bare: tuple[float, ...]
    styles: dict[str, tuple[float, ...]]
    toolbox: tuple[float, ...]  # the whole network forward, batch 1
    cut: tuple[float, ...]  # only to the layer, batch 1

    def share(self, style: str) -> float:
        """Return the share of the same round's bare pass that a style reaches: the median."""
        pairs = zip(self.styles[style], self.bare, strict=True)
        return statistics.median(reached / bare for reached, bare in pairs)

    def gain(self, style: str = "3") -> float:
        """Return a style's speed over the toolbox's in the same round: the median."""
        known = style if style in self.styles else next(iter(self.styles))
        pairs = zip(self.styles[known], self.toolbox, strict=True)
        return statistics.median(reached / other for reached, other in pairs)

    def record(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "layer": self.layer.alias,
            "canvas": list(self.canvas),
            "batch": self.batch,
            "bare": [round(rate, 2) for rate in self.bare],
            "styles": {k: [round(rate, 2) for rate in v] for k, v in self.styles.items()},
            "share": {style: round(self.share(style), 4) for style in self.styles},
            "toolbox": [round(rate, 3) for rate in self.toolbox],
            "cut": [round(rate, 3) for rate in self.cut],
            "gain": round(self.gain(), 2),
        }

    def line(self) -> str:
        middle = statistics.median
        shares = "".join(f"{self.share(style):8.2f}" for style in self.styles)
        size = f"{self.canvas[0]}x{self.canvas[1]}"
        return (
            f"{self.layer.alias:8}{size:>9}{self.batch:7}{middle(self.bare):11.1f}{shares}"
            f"{middle(self.toolbox):10.2f}{middle(self.cut):8.2f}{self.gain():8.1f}x"
        )


@dataclass(frozen=True)
class OptimizeBench:
    """The rows of all layers, and what describes the machine."""

    about: dict[str, Any]
    rows: tuple[LayerRow, ...]

    def record(self) -> dict[str, Any]:
        return {**self.about, "layers": [row.record() for row in self.rows]}

    def table(self) -> str:
        """Return the table as text: unit-steps per second, and shares of the bare pass."""
        styles = self.rows[0].styles
        head = "".join(f"{'style ' + name:>8}" for name in styles)
        lines = [", ".join(f"{key} {value}" for key, value in self.about.items()), ""]
        lines.append(
            f"{'layer':8}{'canvas':>9}{'batch':>7}{'bare':>11}{head}"
            f"{'toolbox':>10}{'cut':>8}{'gain':>9}"
        )
        lines += [row.line() for row in self.rows]
        lines += [
            "",
            "bare: unit-steps per second of forward and backward passes; styles: what optimize",
            "reaches of that; toolbox: the whole network on the whole input, one unit at a time;",
            "cut: the same only up to the layer; gain: style 3 (or the first) over the toolbox's.",
        ]
        return "\n".join(lines)


def measure_optimize(plan: Plan, report: Report, seconds: float, rounds: int) -> OptimizeBench:
    """Measure every layer of the plan, in each round."""
    with tempfile.TemporaryDirectory() as folder:
        plan = replace(plan, run=folder + "/run")
        with open_session(plan, report) as session:
            styles = asked_styles(plan)  # with their own steps, which cost what any step costs
            measured = [style.name for style in styles if style.measures]
            if measured:
                raise UsageError(
                    f"bench optimize: style {measured[0]} needs a run's images; name another"
                )
            devices = choose_devices(plan.device)
            pool = worker_slots(devices, plan.workers, MEMORY)
            rows = []
            layers = session.layers
            for layer in report.track(layers, "bench optimize", len(layers), "layers"):
                rows.append(
                    _measure_layer(
                        session, layer, styles, _Measuring(pool, seconds, rounds), folder
                    )
                )
    about = {
        "model": session.network.name,
        "device": str(devices[0]),
        "processes": f"{len(pool)} x {pool[0].threads} threads",
        "precision": resolve_precision(plan.optimize.precision, devices[0]),
        "torch": torch.__version__,
        "rounds": rounds,
    }
    return OptimizeBench(about, tuple(rows))


class _Measuring(NamedTuple):
    """The workers that measure, for how long, and how often."""

    pool: Sequence[WorkerSlot]
    seconds: float
    rounds: int


def _measure_layer(
    session: Session, layer: Layer, styles: Sequence[Style], clock: _Measuring, folder: str
) -> LayerRow:
    setup = setup_of(session, layer)
    work = OptimizeJob(session.plan, setup, session.network)
    if session.device.type == "cpu":
        check_pass(work, session.network)  # in this process: a fork could not trace any more
    bare, toolbox, cut = [], [], []
    reached: dict[str, list[float]] = {style.name: [] for style in styles}
    for _ in range(clock.rounds):
        session.report.check_stop()
        bare.append(_summed_speed(functools.partial(_bare, work, clock.seconds), clock.pool))
        for style in styles:
            short = _shortened(style, bare[-1] / len(clock.pool) / setup.size * clock.seconds)
            parts = Parts(Path(folder) / "parts", "bench")
            task = LayerTask(0, parts, 0, tuple(range(setup.size)))
            own = replace(work, styles=(short,), tasks=(task,))
            measure = functools.partial(_optimize, own, clock.seconds)
            reached[style.name].append(_summed_speed(measure, clock.pool))
        alone = functools.partial(_one_at_a_time, work, clock.seconds)
        toolbox.append(_summed_speed(functools.partial(alone, True), clock.pool[:1]))
        cut.append(_summed_speed(functools.partial(alone, False), clock.pool[:1]))
    rates = {name: tuple(values) for name, values in reached.items()}
    size = setup.box.size
    return LayerRow(layer, size, setup.size, tuple(bare), rates, tuple(toolbox), tuple(cut))


def _shortened(style: Style, steps: float) -> Style:
    """Return a style that ends within the measurement, so that all of `optimize` is measured."""
    shortened = replace(style, iterations=max(2, int(steps / TURNOVER)))
    if isinstance(style.step, Constant):
        shortened = shortened.with_step(Constant(SMALL_RATE))
    return shortened


def _summed_speed(measure: Measure, pool: Sequence[WorkerSlot]) -> float:
    """Return the summed speed of all workers at once."""
    found: list[float] = []

    def on_event(message: Any) -> None:
        if isinstance(message, float):
            found.append(message)

    run_tasks(functools.partial(each_worker, measure), pool, range(len(pool)), on_event)
    return sum(found)


def _bare(
    work: OptimizeJob, seconds: float, worker_slot: WorkerSlot, _number: int, emit: Emit
) -> None:
    network, setup = work.on(worker_slot.device), work.setup
    evaluate = work.evaluate(network, setup.size)
    x = torch.stack([noise(i, setup.box.size) for i in range(setup.size)]).to(worker_slot.device)
    x = x.contiguous(memory_format=torch.channels_last)
    targets = (torch.arange(setup.size) % setup.targets).to(worker_slot.device)
    graphs = Graphs(worker_slot.device, lambda text: emit(Notice(text)))

    def once() -> None:
        evaluate(x, targets)

    emit(pace(lambda: graphs("bare", once, []), setup.size, seconds, worker_slot.device))


class _TimeIsUp(Exception):
    """Ends a measurement."""


def _optimize(
    work: OptimizeJob, seconds: float, worker_slot: WorkerSlot, number: int, emit: Emit
) -> None:
    """Do the stage's own work, task after task, for `seconds`."""
    task = work.tasks[0]
    units = tuple(target % work.setup.targets for target in task.units)
    blocks = (task._replace(part=number, units=units),) * BLOCKS
    made, start = 0, 0.0

    def on_event(message: Any) -> None:
        nonlocal made, start
        now = time.perf_counter()
        if not isinstance(message, Steps) or not message.made:
            return
        if not start:  # the first message comes when everything is warm
            start = now
            return
        made += message.made
        if now - start > seconds:
            emit(made / (now - start))
            raise _TimeIsUp

    try:
        optimize_blocks(replace(work, tasks=blocks), worker_slot, iter(range(BLOCKS)), on_event)
    except _TimeIsUp:
        return


def _one_at_a_time(
    work: OptimizeJob,
    seconds: float,
    whole: bool,
    worker_slot: WorkerSlot,
    _number: int,
    emit: Emit,
) -> None:
    """Optimize one unit by style 3 from the whole input, batch 1, on one worker's threads."""
    network, layer = work.on(worker_slot.device), work.setup.layer
    box, style = Box.whole(network.size), STYLES["3"].with_step(Constant(SMALL_RATE))
    row, column = layer.centre

    def evaluate(x: torch.Tensor, targets: torch.Tensor) -> Any:
        return through_all(network, layer, (row, column), x, targets)

    def cut(x: torch.Tensor, targets: torch.Tensor) -> Any:
        return evaluate_window(network, LayerSetup(layer, box, Objective(), 1), box, x, targets)

    made, start = 0, 0.0
    task = AscentSpec(0, 0, style, noise(0, box.size))

    def timed(x: torch.Tensor, targets: torch.Tensor) -> Any:
        nonlocal made, start
        wait_for(network.device)
        now = time.perf_counter()
        start = start or now
        if made > 2 and now - start > seconds:
            raise _TimeIsUp
        made += 1
        return evaluate(x, targets) if whole else cut(x, targets)

    try:
        for _ in climb(timed, [[task]], AscentBatch(1), network.mean):
            pass
    except _TimeIsUp:
        pass
    emit((made - 1) / (time.perf_counter() - start))


def through_all(
    network: Network, layer: Layer, place: tuple[int, int], x: torch.Tensor, targets: torch.Tensor
) -> Any:
    """Do the toolbox's pass: forward through the whole network, backward from one unit."""
    x = x.detach().requires_grad_()
    kept: list[torch.Tensor] = []

    def keep(layer: Layer, output: Any) -> None:
        kept.append(canonical(layer, output))

    with reading_outputs(network.module, [layer], keep):
        network.module(network.normalise(x))
    values = kept[0][:, :, place[0], place[1]] if kept[0].dim() == 4 else kept[0]
    value = values[:, targets[0]]
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), values.detach().amax(dim=1) <= value.detach(), gradient


def pace(action: Callable[[], Any], size: int, seconds: float, device: torch.device) -> float:
    """Return the unit-steps per second of an action on a batch."""
    for _ in range(2):
        action()
    wait_for(device)
    start, made = time.perf_counter(), 0
    while not made or time.perf_counter() - start < seconds:
        action()
        made += 1
    wait_for(device)
    return made * size / (time.perf_counter() - start)
