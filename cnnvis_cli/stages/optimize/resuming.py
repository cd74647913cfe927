"""Ascents of blocks that are not complete, kept so that a later process goes on with them.

One piece per block, beside the parts: the ascents that have ended and the states of those under
way. A process that opens a block takes from all pieces what is of its units, so another selection
of units finds it too. The bytes of the results are as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, starmap
from typing import Any

import numpy as np
import torch

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.ascent.climb import Ascent, AscentSpec, AscentState, Outcome
from cnnvis_cli.ascent.styles import Style
from cnnvis_cli.digests import digest
from cnnvis_cli.stages.common.layer_job import LayerTask
from cnnvis_cli.store.parts import Parts

AscentKey = tuple[int, int]  # target, run


@dataclass
class KeptAscents:
    """What is kept of a block's ascents."""

    ended: dict[AscentKey, Ascent] = field(default_factory=dict)
    states: dict[AscentKey, AscentState] = field(default_factory=dict)

    def going_on(self, spec: AscentSpec) -> list[AscentSpec]:
        """Return the ascent from where it was; none if it has ended."""
        key: Any = spec.key
        key = key[1:]
        return [] if key in self.ended else [replace(spec, state=self.states.get(key))]


def kept_ascents(task: LayerTask, style: Style) -> KeptAscents:
    """Return what is kept of a task's ascents in a style; a damaged piece counts as not there."""
    pieces, found = _pieces(task, style), KeptAscents()
    for name in pieces.names():
        with suppress(KeyError):
            arrays = pieces[name]
            wanted = np.isin(arrays["target"], task.units)
            for row in np.flatnonzero(wanted).tolist():
                _take(found, task, {column: values[row] for column, values in arrays.items()})
    return found


def _take(found: KeptAscents, task: LayerTask, row: Arrays) -> None:
    """Add one ascent."""
    key = int(row["target"]), int(row["run"])
    history = row["history"][: int(row["shown"])].copy()
    known = found.states.get(key)
    if known is not None and known.age >= int(row["age"]) > 0:  # of another selection of units
        return
    if int(row["age"]):
        parts = [row[name] for name in sorted(row) if name.startswith("updater")]
        found.states[key] = AscentState(
            age=int(row["age"]),
            image=torch.from_numpy(row["image"]),
            best=torch.from_numpy(row["best"]),
            best_value=float(row["best_value"]),
            first=float(row["first"]),
            best_step=int(row["best_step"]),
            lived=int(row["lived"]),
            leads=bool(row["leads"]),
            moved=bool(row["moved"]),
            alive=bool(row["alive"]),
            history=history,
            updater=tuple(map(torch.from_numpy, parts)),
            **_majority_in(row),
        )
        return
    found.ended[key] = Ascent(
        key=(task.job, *key),
        image=torch.from_numpy(row["best"]),
        activation=float(row["best_value"]),
        start=float(row["first"]),
        best_step=int(row["best_step"]),
        outcome=Outcome(int(row["outcome"])),
        last=torch.empty(0),
        history=history,
        opacity=torch.from_numpy(row["opacity"]) if "opacity" in row else None,
        **_majority_in(row),
    )


def _majority_in(row: Arrays) -> dict[str, Any]:
    """Return the first leading image of a row, if it has one."""
    if "majority" not in row:
        return {}
    step = int(row["majority_step"])
    return {"majority": torch.from_numpy(row["majority"]), "majority_step": step}


def _majority_of(kept: Ascent | AscentState) -> dict[str, Any]:
    """Return the first leading image as columns of a row, if it is kept."""
    if kept.majority is None:
        return {}
    return {"majority": kept.majority.float(), "majority_step": kept.majority_step}


def keep_ascents(task: LayerTask, style: Style, held: KeptAscents) -> None:
    """Keep a block's ascents, in place of what was kept of them before."""
    waiting = {key: held.states[key] for key in sorted(held.states.keys() - held.ended.keys())}
    rows = [*starmap(_row_ended, held.ended.items()), *starmap(_row_under_way, waiting.items())]
    if rows:
        _pieces(task, style)[task.part] = _stacked(rows)


def forget(task: LayerTask, style: Style) -> None:
    """Remove what was kept of a block that is complete."""
    _pieces(task, style).remove(task.part)


def _pieces(task: LayerTask, style: Style) -> Parts:
    """Return the pieces of a style: the rows of a search, each its own, have one folder."""
    key = digest({"parts": task.parts.key, "style": style.parameters()})
    return Parts(task.parts.folder / "under_way", key)


def _row_ended(key: AscentKey, ascent: Ascent) -> dict[str, Any]:
    opacity = {} if ascent.opacity is None else {"opacity": ascent.opacity}
    return {
        "target": key[0],
        "run": key[1],
        "age": 0,
        "best": ascent.image.float(),
        "best_value": ascent.activation,
        "first": ascent.start,
        "best_step": ascent.best_step,
        "outcome": int(ascent.outcome),
        "history": ascent.history,
        "shown": len(ascent.history),
        **opacity,
        **_majority_of(ascent),
    }


def _row_under_way(key: AscentKey, state: AscentState) -> dict[str, Any]:
    updater = {f"updater{i:02d}": part for i, part in enumerate(state.updater)}
    return {
        "target": key[0],
        "run": key[1],
        "age": state.age,
        "image": state.image,
        "best": state.best,
        "best_value": state.best_value,
        "first": state.first,
        "best_step": state.best_step,
        "lived": state.lived,
        "leads": state.leads,
        "moved": state.moved,
        "alive": state.alive,
        "history": state.history,
        "shown": len(state.history),
        **updater,
        **_majority_of(state),
    }


def _stacked(rows: Sequence[dict[str, Any]]) -> Arrays:
    """Return columns of rows; what a row does not have, or has less of, is 0."""
    columns: Arrays = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = {place: np.asarray(row[name]) for place, row in enumerate(rows) if name in row}
        shape = max(value.shape for value in values.values())
        column = np.zeros((len(rows), *shape), next(iter(values.values())).dtype)
        for place, value in values.items():
            here: tuple[Any, ...] = tuple(map(slice, value.shape))
            column[(place, *here)] = value
        columns[name] = column
    return columns
