"""`cnnvis optimize`: every unit climbs to the image that it prefers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.ascent.objectives import Objective, check_directions, parse_sum
from cnnvis_cli.ascent.steps import Constant, Progress01
from cnnvis_cli.ascent.styles import STYLES, VARIANTS, Style, check_name, read_style
from cnnvis_cli.dataset.decode import Unreadable, decode
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.engine import (
    Aside,
    Cluster,
    Pool,
    limit_to_memory,
    resolve_precision,
    run_tasks,
)
from cnnvis_cli.errors import CnnvisError, TasksFailed, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.registry import unknown
from cnnvis_cli.report import Meter
from cnnvis_cli.settings import OptimizePlan, Plan
from cnnvis_cli.stages.common.blocks import Blocks, Takes
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.optimize.worker import (
    Calibrations,
    Found,
    LayerSetup,
    OptimizeJob,
    OptimizeTask,
    Steps,
    find_steps,
    history_length,
    optimize_blocks,
    probing,
)
from cnnvis_cli.store.optimized import Optimized, OptimizedFile
from cnnvis_cli.store.parts import Parts
from cnnvis_cli.store.run import Record, differences


def optimize(session: Session) -> None:
    """Optimize every chosen unit of every chosen layer in every chosen style."""
    session.plan.optimize.check(session.plan)
    resolve_precision(session.plan.optimize.precision, session.device)
    styles = asked_styles(session.plan)
    climbs = [
        LayerOptimization.of(session, layer, style) for layer in session.layers for style in styles
    ]
    pending = [each for each in climbs if each.pending]
    lost: TasksFailed | None = None
    if pending:
        session.announce("optimize", dict(each.job for each in pending))
        with session.timed("optimize"):
            ready = calibrate_all(session, pending)
            lost = _optimize_layers(session, ready)
        if session.plan.shard is not None:
            session.report.result(_told_of_shard(session, ready))
    for each in climbs if session.plan.shard is None else ():
        if not each.pending:
            each.clear()
        if each.file.styles().get(each.group):
            session.report.result(each.summary())
    if lost is not None:
        raise lost


def _optimize_layers(session: Session, climbs: Sequence[LayerOptimization]) -> TasksFailed | None:
    """Layer after layer, also where some blocks of one had to be set aside: the first of those."""
    lost: list[TasksFailed] = []
    with Aside() as publisher:
        for layer in dict.fromkeys(each.setup.layer for each in climbs):
            own = [each for each in climbs if each.setup.layer == layer]
            try:
                optimize_layer(session, own, publisher)
            except TasksFailed as error:
                lost.append(error)
        publisher.settle()
    return lost[0] if lost else None


def _told_of_shard(session: Session, climbs: Sequence[LayerOptimization]) -> str:
    units = sum(len(Blocks(each.parts, 1).units()) for each in climbs)
    return (
        f"{session.run.path}: shard {session.plan.shard} is done, {units} images of units are kept "
        "there so far; join the shards with cnnvis merge"
    )


def asked_styles(plan: Plan) -> list[Style]:
    """The styles of the plan; raises `UsageError` for one that does not exist."""
    return [_asked(name, plan) for name in plan.optimize.style]


def known_styles(plan: Plan) -> dict[str, Style]:
    """All styles by name: the built-in ones, the run directory's own, and the plan's."""
    kept = Path(plan.folder) / "styles.toml"
    own = {**(_read_kept(kept) if kept.is_file() else {}), **plan.styles}
    for name in own:
        check_name(name)
    return {**STYLES, **{name: read_style(name, table, "styles") for name, table in own.items()}}


def _read_kept(path: Path) -> dict[str, Any]:
    """The styles that a search has kept in the run directory."""
    return dict(Plan.make(path, {}).styles)


def _asked(name: str, plan: Plan) -> Style:
    """The style as the plan wants it, its step not yet calibrated."""
    settings, known = plan.optimize, known_styles(plan)
    if name not in known:
        raise unknown("style", name, known)
    style = known[name]
    if settings.iterations:
        style = replace(style, iterations=settings.iterations)
    if not style.calibrates:
        if settings.start != "noise":
            raise UsageError(f"--start {settings.start}: style {name} has a start of its own")
        return style
    if settings.step == "calibrated" and settings.softmax:
        return style.with_step(SOFTMAX_STEP)
    if settings.step in ("calibrated", "paper"):
        return style
    with suppress(ValueError):
        rate = float(settings.step)
        if 0 < rate < float("inf"):
            return style.with_step(Constant(rate))
    raise UsageError(f"--step {settings.step!r}: use calibrated, paper, or a number above 0")


SOFTMAX_STEP = Progress01(max_rate=1e8, early=0.03, late=0.1)  # probabilities end at 1


def variant(settings: OptimizePlan) -> str:
    """What is added to a style's name where something else than a unit's value is climbed."""
    asked = (
        settings.mean,
        settings.softmax,
        settings.sum,
        settings.direction,
        settings.minimise,
    )
    return "".join(f"-{word}" for word, yes in zip(VARIANTS, asked, strict=True) if yes)


@dataclass(frozen=True)
class LayerOptimization:
    """The ascents of one layer in one style: what is asked for, and what is there."""

    session: Session
    setup: LayerSetup
    style: Style
    file: OptimizedFile

    @classmethod
    def of(cls, session: Session, layer: Layer, style: Style) -> LayerOptimization:
        file = OptimizedFile(session.run.optimized(layer.alias))
        return cls(session, setup_of(session, layer), style, file)

    @property
    def group(self) -> str:
        """Where the file keeps it."""
        return self.style.name + variant(self.session.plan.optimize)

    @property
    def record(self) -> Record:
        """What decides the pictures of a unit; a style that was made otherwise is refused."""
        settings = self.session.plan.optimize
        return {
            **self.style.parameters(),
            "step": settings.step,
            "policy": self.style.parameters()["step"],
            "seed": self.session.plan.seed,
            "runs": settings.runs,
            "batch_size": self.setup.size,
            "canvas": list(self.setup.box.size),
            "objective": "mean" if settings.mean else "centre",
            "softmax": settings.softmax,
            "minimise": settings.minimise,
            "diversity": settings.diversity,
            "start": _start_record(settings.start),
            "precision": resolve_precision(settings.precision, self.session.device),
            "device": self.session.device.type,
            "history": settings.history,
            **({"targets": list(self.setup.names)} if self.setup.names else {}),
        }

    @property
    def asked(self) -> tuple[int, ...]:
        """The targets that the plan asks for."""
        if self.setup.names:
            return tuple(range(self.setup.targets))
        return self.session.units(self.setup.layer)

    @property
    def takes(self) -> Takes:
        """Which blocks of them are for this shard."""
        return self.session.takes(self.setup.layer)

    @property
    def done(self) -> list[int]:
        """Targets that are in the file; raises `UsageError` if it is of another plan."""
        held = self.file.styles().get(self.group)
        if held is None:
            return []
        if _asked_for(held) != _asked_for(self.record):
            raise UsageError(
                f"{self.file.path} holds style {self.group} of another plan: "
                f"{differences(_asked_for(held), _asked_for(self.record))}; choose another --run"
            )
        units: list[int] = self.file.units(self.group).tolist()
        return units

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return not set(self.asked) <= set(self.done)

    @property
    def job(self) -> tuple[str, Record]:
        """For `cnnvis status`: what is to be done, and where it will be."""
        alias, group = self.setup.layer.alias, self.group
        units = {*self.asked, *self.done}
        job = {"unit": "units", "total": len(units), "layer": alias, "group": group}
        return f"{alias} style {group}", {**job, "parts": f"{alias}-{group}-*"}

    @property
    def settled(self) -> Style | None:
        """The style with its step, where none has to be found (any more)."""
        held = self.file.styles().get(self.group, {}).get("policy", {})
        calibrates = self.style.calibrates and self.session.plan.optimize.step == "calibrated"
        if not calibrates or self.session.plan.optimize.softmax:
            return self.style
        return self.style.with_step(Constant(held["rate"])) if "rate" in held else None

    @property
    def parts(self) -> Parts:
        """Where finished blocks are kept until the layer is done."""
        alias = self.setup.layer.alias
        plan = digest(self.described)
        folder = self.session.run.parts("optimized", f"{alias}-{self.group}-{plan}")
        return Parts(folder, plan)

    def clear(self) -> None:
        """Remove what a process that was killed has left of pieces that are published."""
        replace(self, style=self.settled or self.style).parts.clear()
        _kept_steps(self).clear()

    @property
    def described(self) -> Record:
        """All that decides what a block holds."""
        return {
            "identity": self.session.identity,
            "record": self.record,
            "layer": self.setup.layer.alias,
            "group": self.group,
        }

    def summary(self) -> str:
        """What was found, and why some images are grey."""
        outcomes = self.file.read(self.group, "outcome")
        counts = Counter(outcomes.ravel().tolist())
        text = (
            f"{self.file.path}: style {self.group}, {len(outcomes)} units; "
            f"{counts[Outcome.LARGEST]} of {outcomes.size} images make their unit "
            "the largest of its layer"
        )
        if self.session.plan.optimize.minimise:
            text = text.replace("largest", "lowest")
        if counts[Outcome.NO_GRADIENT]:
            text += (
                f"; {counts[Outcome.NO_GRADIENT]} are grey because no gradient reaches the "
                "image: nothing that feeds the unit is on"
            )
        return text


def _asked_for(record: Record) -> Record:
    """A record without what calibration finds."""
    asked = dict(record)
    if asked.get("step") == "calibrated":
        asked.pop("policy", None)
    return asked


def _start_record(start: str) -> str:
    """The start by name, an image by its content."""
    path = Path(start)
    return file_digest(path) if start not in STARTS and path.is_file() else start


STARTS = ("noise", "uniform", "mean")


def setup_of(session: Session, layer: Layer) -> LayerSetup:
    """What the ascents of a layer share."""
    settings, network = session.plan.optimize, session.network
    box = Box.whole(network.size) if settings.mean else network.canvas(layer)
    directions, names = _directions(settings, layer)
    objective = Objective(
        mean=settings.mean,
        minimise=settings.minimise,
        softmax=settings.softmax,
        directions=directions,
        diversity=settings.diversity,
        run_group=settings.runs if settings.diversity else 1,
    )
    size = session.plan.batch_size or suitable_batch(network, layer, box, session.device)
    size = -(-size // objective.run_group) * objective.run_group
    return LayerSetup(layer, box, objective, size, names, _given(session, box))


def _directions(settings: OptimizePlan, layer: Layer) -> tuple[Tensor | None, tuple[str, ...]]:
    if settings.sum:
        rows = [parse_sum(text, layer.channels, layer.alias) for text in settings.sum]
        return check_directions(torch.tensor(rows), layer.channels, "--sum"), settings.sum
    if settings.direction is None:
        return None, ()
    path = Path(settings.direction)
    found = check_directions(_numbers(path), layer.channels, f"--direction {path}")
    name = f"{path.name}:{file_digest(path)[:16]}"
    return found, tuple(f"{name}:{row}" for row in range(len(found)))


def _numbers(path: Path) -> Tensor:
    """The numbers of an .npy file; raises `UsageError` for anything else."""
    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"--direction {path}: cannot be read ({error.strerror})") from None
    except (ValueError, EOFError):
        raise UsageError(f"--direction {path}: is not an .npy file of numbers") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise UsageError(f"--direction {path}: is not an .npy file of real numbers")
    return torch.from_numpy(found.astype(np.float32))


def _given(session: Session, box: Box) -> Tensor | None:
    """The start image that the plan names, mean-subtracted: (3, h, w); None for drawn ones."""
    start, network = session.plan.optimize.start, session.network
    if start in ("noise", "uniform"):
        return None
    if start == "mean":
        return torch.zeros(3, *box.size)
    try:
        pixels = decode(Path(start).read_bytes(), network.preprocessing)
    except OSError as error:
        raise UsageError(
            f"--start {start}: use noise, uniform, mean or an image file ({error.strerror})"
        ) from None
    except Unreadable as error:
        raise UsageError(f"--start {start}: cannot be used as an image ({error})") from None
    whole = network.centre(torch.from_numpy(pixels.copy())[None])[0].cpu()
    return whole[:, box.top : box.bottom, box.left : box.right].clone()


def suitable_batch(network: Network, layer: Layer, box: Box, device: torch.device) -> int:
    """Ascents at a time for a canvas: the largest batch that still gains, a power of two.

    On one core that is about 260,000 pixels, 8 to 128 ascents (docs/measurements.md), and no more
    than half of the layer's channels, so that two processes have something to do. A GPU takes 8
    million pixels, 32 to 4,096 ascents, no more than nine runs of the layer, and no more than its
    memory holds.
    """
    area, channels = box.size[0] * box.size[1], _power_of_two(layer.channels)
    if device.type == "cpu":
        wanted = max(8, min(128, (1 << 18) // area, channels // 2))
    else:
        wanted = max(32, min(4096, (1 << 23) // area, 9 * channels))
    each = network.map_bytes(layer) * area // (network.size[0] * network.size[1])
    return limit_to_memory(1 << (wanted.bit_length() - 1), each, device)


def _power_of_two(number: int) -> int:
    """The next one from here on."""
    return 1 << (number - 1).bit_length()


def calibrate_all(session: Session, climbs: Sequence[LayerOptimization]) -> list[LayerOptimization]:
    """The climbs with the steps that suit their layers; those that were found before are kept."""
    found = {number: each.settled for number, each in enumerate(climbs)}
    kept = {number: _kept_steps(each) for number, each in enumerate(climbs)}
    for number, each in enumerate(climbs):
        if found[number] is None and "rate" in kept[number]:
            rate = float(kept[number]["rate"]["rate"][0])
            found[number] = each.style.with_step(Constant(rate))
    open_ones = [number for number, style in found.items() if style is None]
    open_ones.sort(key=lambda number: -math.prod(climbs[number].setup.box.size))  # longest first
    if open_ones:
        _find(session, climbs, open_ones, found, kept)
    return [
        replace(each, style=style)
        for each, style in zip(climbs, found.values(), strict=True)
        if style is not None
    ]


def _kept_steps(climbs: LayerOptimization) -> Parts:
    """Where a calibrated step is kept until the layer's first units are published."""
    alias = climbs.setup.layer.alias
    record = {**climbs.session.identity, **_asked_for(climbs.record), "layer": alias}
    plan = digest(record)
    name = f"{alias}-{climbs.group}-step-{plan}"
    return Parts(climbs.session.run.parts("optimized", name), plan)


def _find(
    session: Session,
    climbs: Sequence[LayerOptimization],
    numbers: Sequence[int],
    found: dict[int, Style | None],
    kept: dict[int, Parts],
) -> None:
    probes: dict[str, OptimizeJob] = {}  # one a layer: styles share its pass
    for number in session.report.each(numbers):
        setup = climbs[number].setup
        if setup.layer.alias not in probes:
            probes[setup.layer.alias] = probing(
                OptimizeJob(session.portable_plan, setup, session.network)
            )
    works = tuple(probes[climbs[number].setup.layer.alias] for number in numbers)
    pieces = Calibrations(works, tuple(climbs[n].style for n in numbers))
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

    describe = [f"the step of {climbs[n].setup.layer.alias} {climbs[n].group}" for n in numbers]
    pool = session.pool(MEMORY, gradients=True)
    run_tasks(
        partial(find_steps, pieces), pool, range(len(numbers)), on_event, describe.__getitem__
    )
    session.report.clear()


MEMORY = 1 << 30  # bytes that a process on a CPU may come to need


def optimize_layer(session: Session, climbs: Sequence[LayerOptimization], publisher: Aside) -> None:
    """Make all ascents of one layer, in every style at once, then publish them together.

    Where GPUs do the work they are published beside the next layer's; no process may be forked
    while a thread writes. A shard leaves its blocks for `merge`. Raises `TasksFailed`, when the
    rest is published, for blocks that ended their processes.
    """
    if not climbs:
        return
    pool = session.pool(MEMORY, gradients=True)
    blocks = [_blocks(each, isinstance(pool, Cluster)) for each in climbs]
    work = OptimizeJob(
        session.portable_plan, climbs[0].setup, session.network, _jobs(climbs, blocks)
    )
    lost: TasksFailed | None = None
    if work.jobs:
        try:
            _climb(session, climbs, work, pool)
        except TasksFailed as error:
            lost = error
        _check_all_there(climbs, blocks, lost)
    if session.plan.shard is None:
        publisher.begin(_publish, session, climbs, blocks)
        if session.device.type == "cpu":
            publisher.settle()
    if lost is not None:
        raise lost


def _blocks(climbs: LayerOptimization, alone: bool) -> Blocks:
    """Half batches, which two processes can share evenly; whole ones where each is on its own."""
    runs = climbs.session.plan.optimize.runs
    return Blocks(climbs.parts, max(1, climbs.setup.size // (runs if alone else runs * 2)))


def _jobs(
    climbs: Sequence[LayerOptimization], blocks: Sequence[Blocks]
) -> tuple[OptimizeTask, ...]:
    """What this shard has to do, and nobody has done."""
    return tuple(
        OptimizeTask(each.style, kept.parts, *block)
        for each, kept in zip(climbs, blocks, strict=True)
        for block in kept.missing(each.asked, each.done, each.takes)
    )


def _climb(
    session: Session, climbs: Sequence[LayerOptimization], work: OptimizeJob, pool: Pool
) -> None:
    """Have the pool do the jobs of a layer."""
    for each in climbs:
        each.parts.describe(each.described)
    jobs, run_group, size = work.jobs, work.setup.objective.run_group, work.setup.size
    if not isinstance(pool, Cluster):
        pool = pool[: len(jobs)]
        ascents = sum(len(job.targets) for job in jobs) * session.plan.optimize.runs
        share = -(-ascents // len(pool))  # so that one process does not take what is there for two
        work = replace(work, max_active=min(size, -(-share // run_group) * run_group))
    on_event = _Progress(session, climbs, jobs)
    run_tasks(partial(optimize_blocks, work), pool, range(len(jobs)), on_event, work.describe)
    on_event.meter.end()


def _check_all_there(
    climbs: Sequence[LayerOptimization], blocks: Sequence[Blocks], lost: TasksFailed | None
) -> None:
    """Raise `CnnvisError` where workers say that they have done what is not to be found here."""
    left = _jobs(climbs, blocks)
    if left and lost is None:
        raise CnnvisError(
            f"{left[0].parts.folder}: what the workers have done is not there; the run directory "
            "must be the same folder, under the same path, on all machines"
        )


class _Progress:
    """Hears what the processes tell, and says how far the layer is."""

    def __init__(
        self, session: Session, climbs: Sequence[LayerOptimization], jobs: Sequence[OptimizeTask]
    ) -> None:
        self._session, runs = session, session.plan.optimize.runs
        self._runs, self._ended = runs, 0
        self._units = sum(len(job.targets) for job in jobs)
        steps = sum(len(job.targets) * runs * job.style.iterations for job in jobs)
        names = ", ".join(each.group for each in climbs)
        what = f"optimize {climbs[0].setup.layer.alias} style {names}"
        self.meter: Meter = session.report.meter(what, steps, "steps")

    def __call__(self, message: Any) -> None:
        self._session.on_event(message)
        if isinstance(message, Steps):
            self._ended += message.ended
            done = f"{self._ended // self._runs} of {self._units} units"
            self.meter.add(message.made, done)


def _publish(
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
        climbs[0].file.publish(session.header(climbs[0].setup.layer), added)
    for each, kept in zip(climbs, blocks, strict=True):
        kept.parts.clear()
        _kept_steps(each).clear()
