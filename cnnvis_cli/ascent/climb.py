"""Regularized activation maximization: the loop itself.

Yosinski et al. 2015, section 3, equation (2), in the order of the authors' toolbox, for one batch
of slots at a time. A slot holds one ascent, of any channel, start and style; when ascents end,
others take their place. An ascent's result does not depend on what shares its batch.

On a GPU all slots begin and end together: then a step works on the same tensors in the same order
each time, can be replayed as one launch, and the host waits for the device once per `CHECK` steps.
There an ascent's slot is always the same one: in TF32, the last bits of cuDNN's convolutions depend
on an image's place in the batch, though not on its neighbours (measured on an H200).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.ascent.majority import FirstLeads
from cnnvis_cli.ascent.styles import Style, Updater

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From images (B, 3, h, w), mean-subtracted, and targets (B,): each image's value (B,), whether its
target is the largest of its layer (B,), and the gradient to follow (B, 3, h, w)."""


UnderWay = Callable[[], list[tuple[Hashable, "AscentState"]]]
"""Returns the ascents under way, with their keys."""


class StepRunner(Protocol):
    """Does work that changes only the tensors of `state`; it is always the same for one `key`."""

    def __call__(
        self, key: Hashable, work: Callable[[], None], state: Sequence[Tensor]
    ) -> None: ...


def directly(key: Hashable, work: Callable[[], None], state: Sequence[Tensor]) -> None:
    """Do the work directly."""
    work()


CHECK = 32  # steps between looks for ascents without gradient: each look waits for the GPU
REFILL = 8  # a batch is filled up when this fraction of it is free


class Outcome(IntEnum):
    """How an ascent ended."""

    NOT_DONE = 0
    LARGEST = 1  # at its best image the unit is the largest of its layer at its place
    NOT_LARGEST = 2
    NO_GRADIENT = 3  # the gradient was zero throughout: nothing that feeds the unit is on


@dataclass(frozen=True)
class AscentState:
    """An ascent under way, between two steps: another process goes on with it, to the same bits.

    `image` is the one to evaluate next, `best` the best so far, both (3, h, w); `updater` holds
    what the updater calls its progress.
    """

    age: int  # steps made
    image: Tensor
    best: Tensor
    best_value: float
    first: float  # the value for the first image
    best_step: int
    lived: int
    leads: bool
    moved: bool  # whether there has been a gradient
    alive: bool  # whether there is one still; its run group may go on after it
    history: NDArray[np.float32]  # (age,)
    updater: tuple[Tensor, ...]
    majority: Tensor | None = None  # see `FirstLeads`; None unless asked for
    majority_step: int = -1


@dataclass(frozen=True)
class AscentSpec:
    """One ascent to make, which maximises `target`; `seed` decides all that is random in it."""

    key: Hashable
    target: int
    style: Style
    start: Tensor  # (3, h, w) mean-subtracted
    seed: int = 0
    place: int = 0  # its slot in a steady batch, modulo the batch's size
    state: AscentState | None = None  # where to go on; None: from the start

    @property
    def age(self) -> int:
        return self.state.age if self.state else 0


@dataclass(frozen=True)
class Ascent:
    """The best image of one ascent, and how it was reached."""

    key: Hashable
    image: Tensor  # (3, h, w) mean-subtracted, 0..255 units
    activation: float
    start: float  # the value for the first image
    best_step: int
    outcome: Outcome
    last: Tensor  # (3, h, w) the image where the ascent ended; (0,) unless asked for
    history: NDArray[np.float32]  # (steps,) the value shown at each, while there was a gradient
    opacity: Tensor | None = None  # (h, w) sum of absolute gradients, where the style keeps it
    majority: Tensor | None = None  # (3, h, w) where the unit first leads; None unless asked for
    majority_step: int = -1  # the step of that; -1 where it never leads


@dataclass(frozen=True)
class AscentBatch:
    """How ascents are made side by side.

    `size` is the number of slots, of which at most `max_active` are used if there are fewer ascents
    than slots. In a `steady` batch all slots begin and end together and no tensor moves, so that
    `run` can make a step one launch on a GPU. Before each step `on_step` is called with a function
    that returns the ascents under way; what it raises ends the work at a safe moment. With `half`
    the best images are returned in half precision, as files store them; with `last` the last ones
    are returned too, with `majority` the first ones at which a unit leads.
    """

    size: int
    max_active: int | None = None
    steady: bool = False
    run: StepRunner = directly
    on_step: Callable[[UnderWay], None] = lambda _: None
    half: bool = False
    last: bool = False
    majority: bool = False

    @property
    def used(self) -> int:
        return min(self.size, self.max_active or self.size)


def climb(
    evaluate: Evaluate, run_groups: Iterable[Sequence[AscentSpec]], batch: AscentBatch, mean: Tensor
) -> Iterator[Ascent]:
    """Yield these ascents as they end, made one batch at a time.

    Parameters
    ----------
    run_groups : ascents that must run side by side, in neighbouring slots; all groups have one
        length, mostly 1.
    mean : (1, 3, 1, 1) the mean colour, for the clipping to 0..255; on the network's device.
    """
    waiting = iter(run_groups)
    first = next(waiting, None)
    if first is None:
        return
    slots = _Slots(batch, first[0].start.shape[1:], mean)
    ascend = _climb_together if slots.steady else _one_after_another
    yield from ascend(evaluate, chain([first], waiting), slots, len(first))


def _one_after_another(
    evaluate: Evaluate, run_groups: Iterator[Sequence[AscentSpec]], slots: _Slots, length: int
) -> Iterator[Ascent]:
    """Yield ascents, filling free slots while others go on; run groups have `length` ascents."""
    max_active = slots.batch.used // length
    slots.fill(list(islice(run_groups, max_active)))
    while slots.cohorts:
        slots.step(evaluate)
        yield from slots.ended()
        free = max_active - slots.busy // length
        if not slots.cohorts or free >= max(1, max_active // REFILL):
            slots.fill(list(islice(run_groups, free)))


def _climb_together(
    evaluate: Evaluate, run_groups: Iterator[Sequence[AscentSpec]], slots: _Slots, length: int
) -> Iterator[Ascent]:
    """Yield ascents of one style and age at a time; others begin when all of them have ended.

    An ascent whose slot is taken waits for the next batch.
    """
    max_active = slots.batch.used // length
    for _, alike in groupby(run_groups, key=_shared_step):
        waiting: list[Sequence[AscentSpec]] = []
        while waiting := [*waiting, *islice(alike, max_active - len(waiting))]:
            chosen: dict[int, Sequence[AscentSpec]] = {}
            for run_group in waiting:
                chosen.setdefault(slots.place(run_group), run_group)
            slots.fill(list(chosen.values()), list(chosen))
            while slots.cohorts:
                slots.step(evaluate)
                yield from slots.ended()
            begun = {id(run_group) for run_group in chosen.values()}
            waiting = [run_group for run_group in waiting if id(run_group) not in begun]


def _shared_step(run_group: Sequence[AscentSpec]) -> tuple[Style, int]:
    """Return what slots must share to make their steps together."""
    return run_group[0].style, run_group[0].age


@dataclass(eq=False)
class _Cohort:
    """Slots of one style and age."""

    tasks: list[AscentSpec]
    rows: list[int]
    born: int  # the step of the batch at which they began, or would have
    filled: int  # the step of the batch from which on they are here
    updater: Updater
    alone: bool  # each may leave by itself: run groups of one
    index: Tensor | None  # the same rows, on the device; None for the whole batch


@dataclass
class _Slots:
    """The tensors of a batch of ascents: B rows each, one per slot."""

    batch: AscentBatch
    canvas: Sequence[int]
    mean: Tensor
    cohorts: list[_Cohort] = field(default_factory=list)
    now: int = 0  # steps made so far

    def __post_init__(self) -> None:
        self.device, size = self.mean.device, self.batch.size
        self.steady = self.batch.steady
        zeros = partial(torch.zeros, size, device=self.device)
        shape = (size, 3, *self.canvas)
        self.x = torch.zeros(shape, device=self.device, dtype=self.mean.dtype)
        self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.best = torch.zeros_like(self.x)
        self.led = FirstLeads.like(self.x) if self.batch.majority else None
        self.targets = zeros(dtype=torch.long)
        self.best_value, self.first = zeros(dtype=self.mean.dtype), zeros(dtype=self.mean.dtype)
        self.age, self.best_age, self.lived = (zeros(dtype=torch.int32) for _ in range(3))
        self.leads, self.alive, self.moved = (zeros(dtype=torch.bool) for _ in range(3))
        # The values of the steps since they were last fetched; the last row is for `alive`.
        self._values = torch.zeros(CHECK + 1, size, device=self.device, dtype=self.mean.dtype)
        self._next = torch.zeros(1, dtype=torch.long, device=self.device)  # the row to write
        self._written = 0
        self._history = np.empty((0, size), np.float32)  # values that have been fetched
        self._since = 0  # the first step of the history
        self._kept: dict[Style, Updater] = {}  # their tensors are used again

    @property
    def busy(self) -> int:
        return sum(len(cohort.rows) for cohort in self.cohorts)

    @property
    def _state(self) -> list[Tensor]:
        """All that a step changes, except the updaters' own tensors."""
        about = (self.best_value, self.age, self.best_age, self.lived)
        flags = (self.leads, self.alive, self.moved)
        led = [] if self.led is None else [self.led.image, self.led.step]
        return [self.x, self.best, self._values, self._next, *about, *flags, *led]

    def place(self, run_group: Sequence[AscentSpec]) -> int:
        """Return the first slot of a run group in a steady batch."""
        whole = self.batch.size // len(run_group) * len(run_group)
        return run_group[0].place % whole // len(run_group) * len(run_group)

    def fill(
        self, run_groups: Sequence[Sequence[AscentSpec]], places: Iterable[int] | None = None
    ) -> None:
        """Begin each run group at its place, or in free slots."""
        length = len(run_groups[0]) if run_groups else 1
        begun: dict[tuple[Style, int], tuple[list[AscentSpec], list[int]]] = {}
        for run_group, place in zip(run_groups, places or self._free(length), strict=False):
            for row, task in enumerate(run_group, start=place):
                tasks, rows = begun.setdefault((task.style, task.age), ([], []))
                tasks.append(task)
                rows.append(row)
        for (style, age), (tasks, rows) in begun.items():
            self._begin(style, tasks, rows, length == 1)
            if age:
                self._resume(self.cohorts[-1], age)

    def _free(self, length: int) -> Iterator[int]:
        """Yield the places where `length` neighbouring slots are free."""
        taken = {row for cohort in self.cohorts for row in cohort.rows}
        for place in range(0, self.batch.size - length + 1, length):
            if taken.isdisjoint(range(place, place + length)):
                yield place

    def _begin(self, style: Style, tasks: list[AscentSpec], rows: list[int], alone: bool) -> None:
        drawn = self._padded(tasks, rows) if self.steady else tasks
        seeds = [task.seed for task in drawn]
        images, updater = style.image.begin(style, self._starts(drawn), self.mean, seeds)
        whole = self.steady or rows == list(range(self.batch.size))
        index = torch.tensor(rows, device=self.device)
        shown = slice(None) if whole else index
        self.x[shown] = images
        self.best[shown] = images  # until there is a better one
        self.targets[index] = torch.tensor([task.target for task in tasks], device=self.device)
        self.best_value[index] = float("-inf")
        self.age[index], self.best_age[index], self.lived[index] = 0, 0, 0
        self.leads[index], self.moved[index], self.alive[index] = False, False, True
        if self.led is not None:
            self.led.begin(index)
        if self.steady:
            updater = self._again(style, updater)
        row_index = None if whole else index
        self.cohorts.append(_Cohort(tasks, rows, self.now, self.now, updater, alone, row_index))

    def _resume(self, cohort: _Cohort, age: int) -> None:
        """Put slots that have just begun where their ascents were after `age` steps."""
        drawn = self._padded(cohort.tasks, cohort.rows) if self.steady else cohort.tasks
        states = [task.state for task in drawn if task.state]
        cohort.born = self.now - age
        cohort.updater.resume(age)
        for tensor, parts in zip(
            cohort.updater.progress, zip(*(s.updater for s in states), strict=True), strict=True
        ):
            tensor.copy_(torch.stack(parts))
        rows = _cohort_rows(cohort)
        for tensor, name in self._columns:
            values = [getattr(state, name) for state in states]
            like = values if isinstance(values[0], Tensor) else list(map(torch.tensor, values))
            tensor[rows] = torch.stack(like).to(tensor)
        self.age[rows] = age
        alive = [task.state is not None and task.state.alive for task in cohort.tasks]
        cohort_rows = torch.tensor(cohort.rows, device=self.device)
        self.alive[cohort_rows] = torch.tensor(alive, device=self.device)

    @property
    def _columns(self) -> tuple[tuple[Tensor, str], ...]:
        """Return the tensors that hold the slots' states, by the names of `AscentState`."""
        return (
            (self.x, "image"),
            (self.best, "best"),
            (self.best_value, "best_value"),
            (self.first, "first"),
            (self.best_age, "best_step"),
            (self.lived, "lived"),
            (self.leads, "leads"),
            (self.moved, "moved"),
            *(self.led.columns if self.led is not None else ()),
        )

    def under_way(self) -> list[tuple[Hashable, AscentState]]:
        """Return the state of every ascent that has made a step."""
        alive = self._fetch()
        found: list[tuple[Hashable, AscentState]] = []
        columns = {name: tensor.cpu() for tensor, name in self._columns}
        for cohort in self.cohorts:
            age = self.now - cohort.born
            progress = [tensor.cpu() for tensor in cohort.updater.progress]
            for i, row in enumerate(cohort.rows if age else ()):
                own = row if self.steady else i  # of the updater
                values = {name: column[row].clone() for name, column in columns.items()}
                about: Any = {n: v if v.dim() else v.item() for n, v in values.items()}
                about["updater"] = tuple(tensor[own].clone() for tensor in progress)
                about |= {"alive": alive[row], "history": self._history_of(cohort, i)}
                found.append((cohort.tasks[i].key, AscentState(age, **about)))
        return found

    def _history_of(self, cohort: _Cohort, i: int) -> NDArray[np.float32]:
        """Return the values that an ascent has shown, up to the last that was fetched."""
        here = self._history[cohort.filled - self._since :, cohort.rows[i]]
        state = cohort.tasks[i].state
        return here.copy() if state is None else np.concatenate([state.history, here])

    def _padded(self, tasks: list[AscentSpec], rows: list[int]) -> list[AscentSpec]:
        """Return a full batch, so that all steps have one shape; the added ones are not alive."""
        self.alive.zero_()
        by_row = dict(zip(rows, tasks, strict=True))
        return [by_row.get(row, tasks[-1]) for row in range(self.batch.size)]

    def _starts(self, tasks: Sequence[AscentSpec]) -> Tensor:
        """Return the first images on the device, (N, 3, h, w); a steady batch does not wait."""
        if not self.steady:
            return torch.stack([task.start for task in tasks]).to(self.device)
        shape = len(tasks), 3, *self.canvas
        starts = torch.empty(shape, device=self.device, dtype=self.mean.dtype)
        for row, task in enumerate(tasks):
            starts[row].copy_(task.start, non_blocking=True)
        return starts

    def _again(self, style: Style, updater: Updater) -> Updater:
        """Return the updater whose tensors the captured steps use, with the new one's values."""
        kept = self._kept.setdefault(style, updater)
        for old, new in zip(kept.state, updater.state, strict=True):
            if old is not new:
                old.copy_(new)
        return kept

    def step(self, evaluate: Evaluate) -> None:
        """Evaluate every image, keep those better than before, and make the next ones."""
        self.batch.on_step(self.under_way)
        if self.steady:
            self._replayed(evaluate)
        else:
            value, gradient = self._seen(evaluate, plain=True)
            for cohort in self.cohorts:
                self._advance(cohort, value, gradient)
            self._ended_step()
        for cohort in self.cohorts:
            if cohort.born == self.now:
                rows = _cohort_rows(cohort)
                self.first[rows] = self._values[self._written][rows]
        self._written += 1
        self.now += 1

    def _replayed(self, evaluate: Evaluate) -> None:
        """Make a step of the only cohort, as work that depends on its phase alone."""
        (cohort,) = self.cohorts
        age = self.now - cohort.born
        plain, last = cohort.updater.plain(age), age == cohort.updater.style.iterations - 1

        def work() -> None:
            value, gradient = self._seen(evaluate, plain)
            if not last:
                moved = cohort.updater.advance(self.x, value, gradient, age)
                if moved is not self.x:
                    self.x.copy_(moved)
            self._ended_step()

        key = (id(self), cohort.updater.style, plain, last, cohort.updater.phase(age))
        self.batch.run(key, work, [*self._state, *cohort.updater.state])

    def _seen(self, evaluate: Evaluate, plain: bool) -> tuple[Tensor, Tensor]:
        """Return values and gradients of all images, and keep images better than before.

        Jittered pictures, those that are not `plain`, are not kept, nor tested for a zero gradient.
        """
        value, leads, gradient = evaluate(self.x, self.targets)
        self._values.index_copy_(0, self._next, value[None].to(self._values.dtype))
        torch.where(self.alive, self.age + 1, self.lived, out=self.lived)
        if plain:
            self._keep(value, leads, gradient)
        return value, gradient

    def _keep(self, value: Tensor, leads: Tensor, gradient: Tensor) -> None:
        better = self.alive & (value > self.best_value)
        lost = torch.linalg.vector_norm(gradient, float("inf"), dim=(1, 2, 3)) == 0
        moved = self.alive & ~lost
        leading = self.alive & leads
        for cohort in self.cohorts:
            rows = _cohort_rows(cohort)
            if not self.steady and not cohort.updater.plain(self.now - cohort.born):
                better[rows] = moved[rows] = lost[rows] = leading[rows] = False
            if cohort.updater.wanders:
                lost[rows] = False
        torch.where(better[:, None, None, None], self.x, self.best, out=self.best)
        torch.where(better, value, self.best_value, out=self.best_value)
        torch.where(better, self.age, self.best_age, out=self.best_age)
        torch.where(better, leads, self.leads, out=self.leads)
        if self.led is not None:
            self.led.keep(self.x, self.age, leading)
        self.moved |= moved
        self.alive &= ~lost

    def _ended_step(self) -> None:
        self.age += 1
        self._next += 1

    def _advance(self, cohort: _Cohort, value: Tensor, gradient: Tensor) -> None:
        age, rows = self.now - cohort.born, _cohort_rows(cohort)
        if age < cohort.updater.style.iterations - 1:
            # One layout for whole and partial batches: sums over channels depend on it.
            x, slope = (
                part[rows].contiguous(memory_format=torch.channels_last)
                for part in (self.x, gradient)
            )
            moved = cohort.updater.advance(x, value[rows], slope, age)
            if cohort.index is None:
                self.x = moved
            else:
                self.x[rows] = moved

    def ended(self) -> Iterator[Ascent]:
        """Yield the ascents that have made all their steps, or have no gradient to follow."""
        over = [c for c in self.cohorts if self.now - c.born == c.updater.style.iterations]
        if not over and self._written < CHECK:
            return
        alive = self._fetch()
        for cohort in over:
            self.cohorts.remove(cohort)
            yield from self._give(cohort, list(range(len(cohort.rows))))
        for cohort in list(self.cohorts):
            yield from self._without_gradient(cohort, alive)

    def _without_gradient(self, cohort: _Cohort, alive: list[bool]) -> Iterator[Ascent]:
        gone = [i for i, row in enumerate(cohort.rows) if not alive[row]]
        if not gone or not cohort.alone:
            return
        left = [i for i in range(len(cohort.rows)) if i not in gone]
        self.cohorts.remove(cohort)
        if left:
            self.cohorts.append(self._rest(cohort, left))
        yield from self._give(cohort, gone)

    def _rest(self, cohort: _Cohort, left: list[int]) -> _Cohort:
        """Return the cohort of some of its ascents."""
        rows, tasks = [cohort.rows[i] for i in left], [cohort.tasks[i] for i in left]
        if self.steady:  # the others' slots keep computing, unused
            return replace(cohort, rows=rows, tasks=tasks)
        index = torch.tensor(rows, device=self.device)
        return replace(
            cohort, rows=rows, tasks=tasks, index=index, updater=cohort.updater.keep(left)
        )

    def _give(self, cohort: _Cohort, which: list[int]) -> Iterator[Ascent]:
        rows = [cohort.rows[i] for i in which]
        index = torch.tensor(rows, device=self.device)
        done = torch.where(self.leads, int(Outcome.LARGEST), int(Outcome.NOT_LARGEST))
        found = self.leads & (self.best_value > self.first)  # by wandering, where all is flat
        outcome = torch.where(self.moved | found, done, int(Outcome.NO_GRADIENT))
        images = self._fetched(self.best, index)
        led = None if self.led is None else self._fetched(self.led.image, index)
        led_steps = [-1] * len(rows) if self.led is None else self.led.step[index].tolist()
        last = self.x[index].cpu() if self.batch.last else torch.empty(len(rows), 0)
        columns = (self.best_value, self.first, self.best_age, outcome, self.lived)
        about = torch.stack([column.double() for column in columns])[:, index].tolist()
        values, firsts, ages, outcomes, lived = about
        kept = cohort.updater.transparency
        opacity = None if kept is None else kept[rows if self.steady else which].cpu()
        for i in range(len(rows)):
            yield Ascent(
                cohort.tasks[which[i]].key,
                images[i],
                values[i],
                firsts[i],
                int(ages[i]),
                Outcome(int(outcomes[i])),
                last[i],
                self._history_of(cohort, which[i])[: int(lived[i])],
                None if opacity is None else opacity[i],
                None if led is None else led[i],
                led_steps[i],
            )

    def _fetched(self, images: Tensor, index: Tensor) -> Tensor:
        """Return some slots' images as they are handed on, from the device."""
        chosen = images[index]
        return (chosen.half() if self.batch.half else chosen).cpu()

    def _fetch(self) -> list[bool]:
        """Copy the last steps' values from the device, drop those that no cohort needs.

        Return which slots are alive.
        """
        self._values[CHECK] = self.alive
        fresh = self._values.cpu()
        self._history = np.concatenate([self._history, fresh[: self._written].numpy()])
        self._next.zero_()
        self._written = 0
        oldest = min((cohort.filled for cohort in self.cohorts), default=self._since)
        self._history = self._history[oldest - self._since :]
        self._since = oldest
        return fresh[CHECK].bool().tolist()


def _cohort_rows(cohort: _Cohort) -> Tensor | slice:
    return slice(None) if cohort.index is None else cohort.index
