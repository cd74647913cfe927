"""Regularized activation maximization: the loop itself.

Yosinski et al. 2015, section 3, equation (2), in the order in which the authors' toolbox does it,
for a batch of slots at a time. A slot holds one ascent, of whatever channel, start and style; where
ascents end, others take their place. An ascent's result does not depend on what shares its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.ascent.styles import Brush, Style

Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Images (B, 3, h, w), mean-subtracted, and targets (B,): what each image's value is (B,), whether
its target is the largest of its layer (B,), and the gradient to follow (B, 3, h, w)."""

CHECK = 32  # steps from one look at which ascents have no gradient to the next: it waits for a GPU
REFILL = 8  # a batch is filled up when this fraction of it is free


class Outcome(IntEnum):
    """How an ascent ended."""

    NOT_DONE = 0
    LARGEST = 1  # at its best image the unit is the largest of its layer at its place
    NOT_LARGEST = 2
    NO_GRADIENT = 3  # the gradient was zero throughout: nothing that feeds the unit is on


@dataclass(frozen=True)
class Task:
    """One ascent to make: `target` says what for, `seed` decides all that is random on the way."""

    key: Hashable
    target: int
    style: Style
    start: Tensor  # (3, h, w) mean-subtracted
    seed: int = 0


@dataclass(frozen=True)
class Ascent:
    """The best image of one ascent and how it came about."""

    key: Hashable
    image: Tensor  # (3, h, w) mean-subtracted, 0..255 units
    activation: float
    start: float  # the value for the first image
    best_step: int
    outcome: Outcome
    last: Tensor  # (3, h, w) the image where the ascent ended
    history: NDArray[np.float32]  # (steps,) the value shown at each, while there was a gradient


def climb(
    look: Look, teams: Iterable[Sequence[Task]], size: int, mean: Tensor, room: int | None = None
) -> Iterator[Ascent]:
    """Make these ascents, `size` at a time, and give each when it has ended.

    Parameters
    ----------
    teams : ascents that have to go side by side, in neighbouring slots; mostly of one each, and
        all of one length.
    mean : (1, 3, 1, 1) the mean colour, which the clipping to 0..255 needs; on the look's device.
    room : at most so many slots are used, where there is less to do than would fill a batch.
    """
    waiting = iter(teams)
    first = next(waiting, None)
    if first is None:
        return
    slots = _Slots(size, first[0].start.shape[1:], mean)
    room = min(size, room or size) // len(first)
    slots.fill([first, *islice(waiting, room - 1)])
    while slots.cohorts:
        slots.step(look)
        yield from slots.ended()
        free = room - slots.busy // len(first)
        if not slots.cohorts or free >= max(1, room // REFILL):
            slots.fill(list(islice(waiting, free)))


@dataclass(eq=False)
class _Cohort:
    """Slots that began together in one style."""

    tasks: list[Task]
    rows: list[int]
    born: int  # the step of the batch at which they began
    brush: Brush
    alone: bool  # none of them has to stay for another's sake
    index: Tensor | None  # the same rows, on the device; None for the whole batch


@dataclass
class _Slots:
    """A batch of ascents on their way: B of each."""

    size: int
    canvas: Sequence[int]
    mean: Tensor
    cohorts: list[_Cohort] = field(default_factory=list)
    now: int = 0  # steps made so far

    def __post_init__(self) -> None:
        device = self.mean.device
        self.x = torch.zeros(self.size, 3, *self.canvas, device=device, dtype=self.mean.dtype)
        self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.best = torch.zeros_like(self.x)
        self.targets = torch.zeros(self.size, dtype=torch.long, device=device)
        self.best_value = torch.zeros(self.size, device=device, dtype=self.mean.dtype)
        self.first = torch.zeros_like(self.best_value)
        self.age = torch.zeros(self.size, dtype=torch.int32, device=device)
        self.best_age, self.lived = torch.zeros_like(self.age), torch.zeros_like(self.age)
        self.leads = torch.zeros(self.size, dtype=torch.bool, device=device)
        self.alive, self.moved = torch.zeros_like(self.leads), torch.zeros_like(self.leads)
        self._values: list[Tensor] = []  # of the steps since the last time they were fetched
        self._history = np.empty((0, self.size), np.float32)  # of the steps before those
        self._since = 0  # the step that the history begins with

    @property
    def busy(self) -> int:
        return sum(len(cohort.rows) for cohort in self.cohorts)

    def fill(self, teams: Sequence[Sequence[Task]]) -> None:
        """Begin these ascents in free slots."""
        length = len(teams[0]) if teams else 1
        taken = {row for cohort in self.cohorts for row in cohort.rows}
        places = range(0, self.size - length + 1, length)
        free = (place for place in places if taken.isdisjoint(range(place, place + length)))
        begun: dict[Style, tuple[list[Task], list[int]]] = {}
        for team, place in zip(teams, free, strict=False):
            for row, task in enumerate(team, start=place):
                tasks, rows = begun.setdefault(task.style, ([], []))
                tasks.append(task)
                rows.append(row)
        for style, (tasks, rows) in begun.items():
            self._begin(style, tasks, rows, length == 1)

    def _begin(self, style: Style, tasks: list[Task], rows: list[int], alone: bool) -> None:
        device = self.mean.device
        start = torch.stack([task.start for task in tasks]).to(device)
        images, brush = style.image.begin(style, start, self.mean, [task.seed for task in tasks])
        index = torch.tensor(rows, device=device)
        self.x[index] = images
        self.best[index] = images  # until there is a better one
        self.targets[index] = torch.tensor([task.target for task in tasks], device=device)
        self.best_value[index] = float("-inf")
        self.age[index], self.best_age[index], self.lived[index] = 0, 0, 0
        self.leads[index], self.alive[index] = False, True
        whole = rows == list(range(self.size))
        cohort = _Cohort(tasks, rows, self.now, brush, alone, None if whole else index)
        self.cohorts.append(cohort)

    def step(self, look: Look) -> None:
        """Look at every image, keep what is better than before, and go on to the next ones."""
        value, leads, gradient = look(self.x, self.targets)
        self._values.append(value.clone())
        better = self.alive & (value > self.best_value)
        lost = gradient.permute(0, 2, 3, 1).flatten(1).abs().amax(dim=1) == 0
        for cohort in self.cohorts:
            if not cohort.brush.plain(self.now - cohort.born):
                better[_rows(cohort)] = lost[_rows(cohort)] = False  # of a jittered picture
        torch.where(better[:, None, None, None], self.x, self.best, out=self.best)
        self.best_value = torch.where(better, value, self.best_value)
        self.best_age = torch.where(better, self.age, self.best_age)
        self.leads = torch.where(better, leads, self.leads)
        self.lived = torch.where(self.alive, self.age + 1, self.lived)
        self.alive &= ~lost
        for cohort in self.cohorts:
            self._advance(cohort, value, gradient)
        self.age += 1
        self.now += 1

    def _advance(self, cohort: _Cohort, value: Tensor, gradient: Tensor) -> None:
        age, rows = self.now - cohort.born, _rows(cohort)
        if age == 0:
            self.first[rows], self.moved[rows] = value[rows], self.alive[rows]
        if age < cohort.brush.style.iterations - 1:
            # One layout for whole and partial batches: sums over channels depend on it.
            x, slope = (
                part[rows].contiguous(memory_format=torch.channels_last)
                for part in (self.x, gradient)
            )
            moved = cohort.brush.advance(x, value[rows], slope, age)
            if cohort.index is None:
                self.x = moved
            else:
                self.x[rows] = moved

    def ended(self) -> Iterator[Ascent]:
        """Those that have made all their steps, or have no gradient to follow."""
        for cohort in list(self.cohorts):
            if self.now - cohort.born == cohort.brush.style.iterations:
                self._fetch()
                self.cohorts.remove(cohort)
                yield from self._give(cohort, list(range(len(cohort.rows))))
        if self.now % CHECK == 0:
            self._fetch()
            alive = self.alive.tolist()
            for cohort in list(self.cohorts):
                yield from self._without_gradient(cohort, alive)

    def _without_gradient(self, cohort: _Cohort, alive: list[bool]) -> Iterator[Ascent]:
        gone = [i for i, row in enumerate(cohort.rows) if not alive[row]]
        if not gone or not cohort.alone:
            return
        left = [i for i in range(len(cohort.rows)) if i not in gone]
        self.cohorts.remove(cohort)
        if left:
            rows = [cohort.rows[i] for i in left]
            tasks = [cohort.tasks[i] for i in left]
            index = torch.tensor(rows, device=self.mean.device)
            brush = cohort.brush.keep(left)
            self.cohorts.append(_Cohort(tasks, rows, cohort.born, brush, True, index))
        yield from self._give(cohort, gone)

    def _give(self, cohort: _Cohort, which: list[int]) -> Iterator[Ascent]:
        rows = [cohort.rows[i] for i in which]
        index = torch.tensor(rows, device=self.mean.device)
        done = torch.where(self.leads, int(Outcome.LARGEST), int(Outcome.NOT_LARGEST))
        outcome = torch.where(self.moved, done, int(Outcome.NO_GRADIENT))
        images, last = self.best[index].cpu(), self.x[index].cpu()
        columns = (self.best_value, self.first, self.best_age, outcome, self.lived)
        values, firsts, ages, outcomes, lived = (column[index].tolist() for column in columns)
        steps = self._history[cohort.born - self._since :]
        for i, row in enumerate(rows):
            yield Ascent(
                cohort.tasks[which[i]].key,
                images[i],
                values[i],
                firsts[i],
                ages[i],
                Outcome(outcomes[i]),
                last[i],
                steps[: lived[i], row].copy(),
            )

    def _fetch(self) -> None:
        """Bring the values of the last steps over, and forget those that no cohort needs."""
        if self._values:
            fresh = torch.stack(self._values).cpu().numpy()
            self._values = []
            self._history = np.concatenate([self._history, fresh])
        oldest = min((cohort.born for cohort in self.cohorts), default=self._since)
        self._history = self._history[oldest - self._since :]
        self._since = oldest


def _rows(cohort: _Cohort) -> Tensor | slice:
    return slice(None) if cohort.index is None else cohort.index
