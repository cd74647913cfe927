"""One process's work in `cnnvis optimize`: ascents of one layer, batch after batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.ascent.climb import (
    Ascent,
    AscentBatch,
    AscentSpec,
    Evaluate,
    UnderWay,
    climb,
)
from cnnvis_cli.ascent.starts import noise, seed_of, uniform
from cnnvis_cli.ascent.styles import Style
from cnnvis_cli.engine import (
    Aside,
    Emit,
    Graphs,
    Notice,
    TaskDone,
    WorkerSlot,
    ahead,
    arithmetic,
    resolve_precision,
    threads_of_torch,
)
from cnnvis_cli.errors import CnnvisError, Stopped
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Unit, units_text
from cnnvis_cli.settings import Plan, Precision
from cnnvis_cli.stages.common.layer_job import LayerTask, Portable
from cnnvis_cli.stages.common.network_loading import network_on
from cnnvis_cli.stages.optimize.evaluation import (
    TOLERANCES,
    PassShape,
    evaluate_window,
    fitting_shape,
    traced_evaluate,
)
from cnnvis_cli.stages.optimize.resuming import (
    AscentKey,
    KeptAscents,
    forget,
    keep_ascents,
    kept_ascents,
)
from cnnvis_cli.stages.optimize.setup import LayerSetup

MEMORY = 1 << 30  # bytes that a process on a CPU may come to need
STEPS_PER_MESSAGE = 8  # steps of a batch from one message about them to the next, or
PAUSE = 1.0  # seconds
SECONDS_AT_RISK = 240.0  # the longest work of ascents under way that a killed process loses


class Steps(NamedTuple):
    """Emitted now and then: steps that single ascents have made, and ascents that have ended."""

    made: int
    ended: int = 0


@dataclass(frozen=True)
class OptimizeJob(Portable):
    """What every process must know; a copy in another process loads the network anew."""

    stays: ClassVar[tuple[str, ...]] = ("network", "evaluations", "checked")
    plan: Plan
    setup: LayerSetup
    network: Network | None
    styles: tuple[Style, ...] = ()
    tasks: tuple[LayerTask, ...] = ()  # `job`: the place among the styles
    max_active: int | None = None  # slots of a batch that are used
    checked: set[int] = field(default_factory=set)  # networks whose pass is right
    evaluations: dict[Any, Evaluate] = field(default_factory=dict)  # by network and size

    def describe(self, number: int) -> str:
        """Return a task's name for messages."""
        units, alias = self.tasks[number].units, self.setup.layer.alias
        return f"{alias} {units_text(units)} in style {self.style_of(number).name}"

    def style_of(self, number: int) -> Style:
        """Return a task's style."""
        return self.styles[self.tasks[number].job]

    def on(self, device: torch.device) -> Network:
        """Return the network on a worker slot's device."""
        return network_on(device, self.plan, self.network)

    def evaluate(self, network: Network, size: int) -> Evaluate:
        """Return the traced pass of a batch of this size."""
        key = id(network), size
        if key not in self.evaluations:
            precision = self.precision(network)
            self.evaluations[key] = traced_evaluate(network, self.setup, size, precision)
        return self.evaluations[key]

    def precision(self, network: Network) -> Precision:
        """Return the arithmetic of the network's pass; the ascent's own is float32."""
        return resolve_precision(self.plan.optimize.precision, network.device)

    @property
    def used(self) -> int:
        """Return how many ascents a process makes at a time."""
        return self.max_active or self.setup.size

    @property
    def kept(self) -> dict[str, Any]:
        """Return what an `AscentBatch` is to use and to keep."""
        majority = self.plan.optimize.majority
        return {"max_active": self.max_active, "half": True, "majority": majority}

    def shape(self, network: Network, threads: int) -> PassShape:
        """Return how a process evaluates them, with up to this many threads."""
        if network.device.type != "cpu":
            return PassShape(self.setup.size, 1)
        return fitting_shape(self.setup, partial(self.evaluate, network), self.used, threads)

    def ascents(
        self, network: Network, style: Style, target: int, number: int = 0
    ) -> list[AscentSpec]:
        """Return the ascents of a target, one per run."""
        found, runs = [], self.plan.optimize.runs
        for run in range(runs):
            seed = seed_of(self.plan.seed, Unit(self._name, target), run)
            start = self._start(network, seed, style, target)
            if network.device.type == "cuda":
                start = start.pin_memory()  # copied there while the device works on
            place = target * runs + run
            found.append(AscentSpec((number, target, run), target, style, start, seed, place))
        return found

    @property
    def _name(self) -> str:
        """Return the name that seeds are drawn for: directions have seeds of their own."""
        alias = self.setup.layer.alias
        return alias if self.setup.objective.directions is None else f"{alias} directions"

    def _start(self, network: Network, seed: int, style: Style, target: int) -> Tensor:
        size = self.setup.box.size
        if self.setup.patches and style.accentuates:
            return self.setup.patches.centred(target, network.mean)
        if self.setup.given is not None:
            return self.setup.given
        if self.plan.optimize.start == "uniform":
            return uniform(seed, size, network.mean.cpu())
        return noise(seed, size)


def check_pass(work: OptimizeJob, network: Network) -> None:
    """Raise `CnnvisError` unless the traced pass equals the whole network's on the whole input.

    For two ascents from noise, on the window of the centre unit: the value, and the gradient there
    and (none) elsewhere.
    """
    if id(network) in work.checked:
        return
    work.checked.add(id(network))
    setup, precision = replace(work.setup, typical=None), work.precision(network)
    plain = replace(work, setup=setup, evaluations={}) if work.setup.typical else work
    count = max(2, setup.objective.run_group) if setup.size > 1 else 1
    targets = (torch.arange(setup.size) * 7 % setup.targets).to(network.device)
    seeds = [seed_of(1, Unit(setup.layer.alias, i), 0) for i in range(setup.size)]
    x = torch.stack([noise(seed, setup.box.size) for seed in seeds]).to(network.device)
    x = x.contiguous(memory_format=torch.channels_last)
    whole = torch.zeros(count, 3, *network.size, device=network.device)
    rows, columns = slice(setup.box.top, setup.box.bottom), slice(setup.box.left, setup.box.right)
    whole[:, :, rows, columns] = x[:count]
    value, _, gradient = (part[:count] for part in plain.evaluate(network, setup.size)(x, targets))
    with arithmetic(precision, network.device):
        full = evaluate_window(network, setup, Box.whole(network.size), whole, targets[:count])
        maps, _ = network.values(setup.layer, Box.whole(network.size), whole)
    tolerance = TOLERANCES[precision]
    scale = 1.0 if setup.objective.softmax else float(maps.abs().amax())
    apart = float((value - full[0]).abs().max()) / max(scale, 1e-30)
    full[2][:, :, rows, columns] -= gradient
    slope = float(full[2].norm()) / max(float(gradient.norm()), 1e-30)
    wrong = slope > tolerance.gradient and float(full[2].norm()) > 1e-12
    if apart > tolerance.value or wrong:
        raise CnnvisError(
            f"{setup.layer.alias}: on its receptive field the network gives other numbers than on "
            f"the whole input (value {apart:.1e}, gradient {slope:.1e} apart); please report this"
        )


def optimize_blocks(
    work: OptimizeJob, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit
) -> None:
    """Make the ascents of the jobs of these numbers, and keep them as parts.

    Those under way are kept every few minutes, and when the work is stopped: see `resuming`.
    """
    network = work.on(worker_slot.device)
    check_pass(work, network)
    shape = work.shape(network, worker_slot.threads)
    desk, pulse = OpenBlocks(work), Pulse(work.used, emit)
    pulse.keep = desk.keep_under_way

    def run_groups() -> Iterator[Sequence[AscentSpec]]:
        for number in numbers:
            held = desk.open(number)
            for target in work.tasks[number].units:
                runs = []
                for spec in work.ascents(network, work.style_of(number), target, number):
                    runs += held.going_on(spec)
                pulse.emit(Steps(sum(spec.age for spec in runs)))
                if runs:
                    yield from [runs] if work.setup.objective.run_group > 1 else [[r] for r in runs]

    evaluate = work.evaluate(network, shape.slots)
    batch = batch_on(worker_slot, shape.slots, pulse, **work.kept)
    drawn = ahead(run_groups(), batch.used if worker_slot.device.type == "cuda" else 0)
    with threads_of_torch(shape.threads), Aside() as writer, closing(drawn), pulse.keeping():
        for ascent in climb(evaluate, drawn, batch, network.mean):
            number = desk.put(ascent)
            iterations = work.style_of(number).iterations
            pulse.emit(Steps(iterations - len(ascent.history), 1))
            if desk.complete(number):
                desk.write(number, writer, pulse.emit)
        for number in desk.complete_ones():  # kept from an earlier process, each of its ascents
            desk.write(number, writer, pulse.emit)
        writer.settle()
        desk.emit_kept(pulse.emit)
    pulse.check()


def batch_on(worker_slot: WorkerSlot, size: int, pulse: Pulse, **settings: Any) -> AscentBatch:
    """Return a batch of ascents on a worker slot's device; on a GPU each step is one launch."""
    run = Graphs(worker_slot.device, lambda text: pulse.emit(Notice(text)))
    steady = worker_slot.device.type == "cuda"
    return AscentBatch(size, steady=steady, run=run, on_step=pulse, **settings)


STOPS = (Stopped, EOFError, BrokenPipeError, ConnectionResetError)
"""What ends a worker's work: a signal, in the command's own process; elsewhere its pipe closes."""


@dataclass
class Pulse:
    """Tell now and then how many steps have been made, and see that what is under way is kept.

    A message that finds the work stopped is the last one; `Stopped` is raised before the next
    step, where all ascents are whole.
    """

    busy: int
    tell: Emit
    keep: Callable[[UnderWay], None] | None = None  # called every few minutes and at the end
    steps: int = 0
    spoken: float = field(default_factory=time.monotonic)
    kept: float = field(default_factory=time.monotonic)
    stop: BaseException | None = None
    under_way: UnderWay | None = None

    def emit(self, message: Any) -> None:
        """Tell a message."""
        if self.stop is None:
            try:
                self.tell(message)
            except STOPS as error:
                self.stop = error

    def check(self) -> None:
        """Raise what has stopped the work."""
        if self.stop is not None:
            raise self.stop

    def __call__(self, under_way: UnderWay) -> None:
        self.under_way = under_way
        self.check()
        self.steps += 1
        now = time.monotonic()
        if self.steps == STEPS_PER_MESSAGE or now - self.spoken > PAUSE:
            self.emit(Steps(self.steps * self.busy))
            self.steps, self.spoken = 0, now
            self.check()
        if self.keep and now - self.kept > SECONDS_AT_RISK:
            self.keep(under_way)
            self.kept = now

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep what is under way when the work in the block is stopped."""
        try:
            yield
        except STOPS:
            if self.keep and self.under_way:
                self.keep(self.under_way)
            raise


@dataclass
class OpenBlocks:
    """Blocks whose ascents are under way."""

    work: OptimizeJob
    open_blocks: dict[int, KeptAscents] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)

    def open(self, number: int) -> KeptAscents:
        """Begin a block; return what is kept of its ascents from an earlier process."""
        work = self.work
        held = kept_ascents(work.tasks[number], work.style_of(number))
        self.open_blocks[number] = held
        return held

    def put(self, ascent: Ascent) -> int:
        """Keep an ascent that has ended; gives the number of its block."""
        key: Any = ascent.key
        self.open_blocks[key[0]].ended[key[1:]] = ascent
        return int(key[0])

    def complete(self, number: int) -> bool:
        whole = len(self.work.tasks[number].units) * self.work.plan.optimize.runs
        return len(self.open_blocks[number].ended) == whole

    def complete_ones(self) -> list[int]:
        """Return the open blocks that have all their ascents."""
        return list(filter(self.complete, self.open_blocks))

    def write(self, number: int, writer: Aside, emit: Emit) -> None:
        """Begin to keep a block that is complete as its part."""
        writer.settle()
        self.emit_kept(emit)
        self.kept.append(number)
        writer.begin(self._write, number, self.open_blocks.pop(number).ended)

    def _write(self, number: int, found: dict[AscentKey, Ascent]) -> None:
        task = self.work.tasks[number]
        task.keep(block_arrays(self.work, number, found))
        forget(task, self.work.style_of(number))

    def emit_kept(self, emit: Emit) -> None:
        """Say which blocks are safe: those whose writing has been waited for."""
        for number in self.kept:
            emit(TaskDone(number))
        self.kept.clear()

    def keep_under_way(self, under_way: UnderWay) -> None:
        """Keep the ascents of all open blocks: ended, under way, and those that wait to go on."""
        key: Any
        for key, state in under_way():
            self.open_blocks[key[0]].states[key[1:]] = state
        for number, held in self.open_blocks.items():
            keep_ascents(self.work.tasks[number], self.work.style_of(number), held)


def block_arrays(work: OptimizeJob, number: int, found: dict[AscentKey, Ascent]) -> Arrays:
    """Return the arrays of a task's ascents, by the names of the schema."""
    targets = work.tasks[number].units
    settings, sign = work.plan.optimize, work.setup.objective.sign
    shape = len(targets), settings.runs
    ascents = [found[target, run] for target in targets for run in range(settings.runs)]

    def numbers(name: str, dtype: str) -> Any:
        return np.array([getattr(ascent, name) for ascent in ascents], dtype).reshape(shape)

    steps = history_length(work.style_of(number), settings.history)
    history = np.full((len(ascents), steps), np.nan, np.float32)
    for row, ascent in zip(history, ascents, strict=True):
        values = ascent.history[:: settings.history]
        row[: len(values)] = sign * values
    first = [ascent.majority for ascent in ascents if ascent.majority is not None]
    patches = work.setup.patches if work.style_of(number).accentuates else None
    begun = [] if patches is None else list(map(patches.pixels, targets))
    kept = [ascent.opacity for ascent in ascents if ascent.opacity is not None]
    return {
        **({"transparency": _by_unit(opacities(kept), shape)} if kept else {}),
        **({"majority": _by_unit(_pictures(first, work), shape)} if first else {}),
        **({"majority_step": numbers("majority_step", "i4")} if first else {}),
        **({"photograph": np.stack(begun)} if begun else {}),
        "image": _by_unit(_pictures([ascent.image for ascent in ascents], work), shape),
        "activation": sign * numbers("activation", "f4"),
        "start": sign * numbers("start", "f4"),
        "best_step": numbers("best_step", "i4"),
        "outcome": numbers("outcome", "i1"),
        "history": history.reshape(*shape, steps),
        "unit": np.array(targets, np.int32),
    }


def _by_unit(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return one array per ascent by unit and run: (U * R, ...) -> (U, R, ...)."""
    return values.reshape(*shape, *values.shape[1:])


def _pictures(images: Sequence[Tensor], work: OptimizeJob) -> NDArray[np.float16]:
    """Return images (3, h, w) as a file has them: (n, h, w, 3)."""
    stacked = torch.stack(list(images))
    if work.setup.grey:  # the network has seen no more of the colours than their mean
        stacked = stacked.mean(1, keepdim=True).expand_as(stacked)
    found: NDArray[np.float16] = stacked.permute(0, 2, 3, 1).half().numpy()
    return found


def opacities(sums: Sequence[Tensor]) -> NDArray[np.float16]:
    """Return sums of gradients, (h, w) each, with 1 as the largest of each that has any."""
    stacked = torch.stack(list(sums)).double().numpy()
    largest = stacked.max(axis=(1, 2), keepdims=True)
    return (stacked / np.where(largest > 0, largest, 1)).astype(np.float16)


def history_length(style: Style, every: int) -> int:
    """Return how many values of an ascent are kept."""
    return math.ceil(style.iterations / every)
