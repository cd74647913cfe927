"""The units that a figure shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Units
from cnnvis_cli.ascent.starts import seed_of
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Layer, Unit
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.numbers.unit_tables import UnitTables
from cnnvis_cli.store.topk_file import TopKFile

Held = NDArray[np.integer[Any]]


def choose_units(session: Session, layer: Layer, held: Held) -> tuple[int, ...]:
    """Return the plan's units, of those with results.

    These are ``--units`` (or all), reduced to a ``--random`` sample, in the order of ``--sort``,
    the first ``--best`` of them. Raise `UsageError` if ``--units`` names one that is not done, or
    nothing is left.
    """
    plan = session.plan.montage
    units = session.units(layer) if session.plan.units else tuple(held.tolist())
    missing = sorted(set(units) - set(held.tolist()))
    if missing or not units:
        first = f", the first {missing[0]}," if missing else ""
        raise UsageError(
            f"{layer.alias}: {len(missing) or 'all'} of the chosen units{first} are not done; run "
            "cnnvis optimize or project for them, or choose others with --units"
        )
    if plan.random:
        if plan.random > len(units):
            has = f"--units leaves {len(units)}" if session.plan.units else f"has {len(units)}"
            session.report.once(f"{layer.alias}: --random {plan.random}: {has} to show")
        units = sample(session, layer, units, plan.random)
    if plan.sort or plan.best:
        units = _sorted(session, layer, units)
    return units[: plan.best]


def sample(session: Session, layer: Layer, units: Units, count: int) -> tuple[int, ...]:
    """Return a random sample of the units, in their order, from the seed and the layer."""
    if count >= len(units):
        return tuple(units)
    draw = np.random.default_rng(seed_of(session.plan.seed, Unit(layer.alias, 0), count))
    return tuple(units[i] for i in sorted(draw.choice(len(units), count, replace=False).tolist()))


def _sorted(session: Session, layer: Layer, units: Units) -> tuple[int, ...]:
    """Return the units, highest first by a statistic of topk.h5; unknown ones by number."""
    by = session.plan.montage.sort or "max"
    if by == "score":
        return _sorted_by_score(session, layer, units)
    if not session.run.topk.is_file():
        raise UsageError(
            f"--sort and --best need {session.run.topk}, which is not there; run cnnvis topk"
        )
    known = TopKFile(session.run.topk).layer(layer.alias).stats[by]
    rank = np.where(np.isfinite(known), known, -np.inf)
    return tuple(sorted(units, key=lambda unit: (-float(rank[unit]), unit)))


def _sorted_by_score(session: Session, layer: Layer, units: Units) -> tuple[int, ...]:
    """Return the units, the highest first by how well their images explain them."""
    tables = UnitTables.of(session.run)
    scores = {unit: tables.score(Unit(layer.alias, unit)) for unit in units}
    if all(map(math.isnan, scores.values())):
        raise UsageError(
            f"--sort score: {session.run.path / 'scores.tsv'} has no score of these units of "
            f"{layer.alias}; run cnnvis score --layer {layer.alias}"
        )
    unknown = sum(map(math.isnan, scores.values()))
    if unknown:
        session.report.once(
            f"{layer.alias}: {unknown} of {len(units)} units have no score and come last; cnnvis "
            f"score --layer {layer.alias} scores them"
        )
    return tuple(sorted(units, key=lambda unit: (math.isnan(scores[unit]), -scores[unit], unit)))
