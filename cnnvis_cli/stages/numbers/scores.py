"""`cnnvis score`: how well pictures of each unit tell what activates it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cnnvis_cli.arrays import Floats
from cnnvis_cli.errors import UsageError
from cnnvis_cli.measures.interpretability import (
    EXPLANATION_SIZE,
    bootstrap_spread,
    certainties,
    least_images,
    likeness_gaps,
    unit_length,
    unit_tasks,
)
from cnnvis_cli.nouns import Layer, Unit
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.numbers.encoding import Encoder
from cnnvis_cli.stages.numbers.names import sample_of
from cnnvis_cli.stages.numbers.table import TableRow, publish_table, read_table, shown_table
from cnnvis_cli.store.optimized import OptimizedFile

IMAGES, STRONGEST = "images", "images+"  # explanations: both tails of the sample, the upper one


class Pictures(NamedTuple):
    """Features of the pictures that explain a unit, (K, F); None where there are none of a side."""

    above: Floats
    below: Floats | None


@dataclass(frozen=True)
class Scored:
    """How well one explanation of a unit solves its tasks."""

    unit: str
    explanation: str
    score: float
    error: float  # the bootstrap's, over tasks
    solved: float  # share of tasks whose difference is on the right side
    control: float  # the score with the unit's values shuffled over the images
    tasks: int


@dataclass(frozen=True)
class LayerScore:
    """Means over a layer's units."""

    layer: str
    explanation: str
    units: int
    score: float
    error: float
    solved: float
    control: float


def score_units(session: Session, as_json: bool) -> None:
    """Score the units that are asked for by every explanation that the run has.

    Raise `UsageError` without a sample, with one too small for tasks, and for weights of nothing.
    """
    if session.plan.score.encoder_weights is not None and session.plan.score.encoder is None:
        raise UsageError("--encoder-weights: whose? name the network with --encoder")
    file = sample_of(session.run)
    images = file.images()
    used = ~images.skipped
    if used.sum() < least_images():
        raise UsageError(
            f"{file.path}: {int(used.sum())} images can be used, and tasks need "
            f"{least_images()}; make a larger --sample"
        )
    encoder = Encoder.of(session)
    raw = encoder.images(session, images.index[used].tolist())
    mean = encoder.from_mean * raw.mean(axis=0, dtype=np.float64).astype(np.float32)
    features, held, found = unit_length(raw, mean), file.layers(), list[Scored]()
    layers = [layer for layer in session.layers if layer.alias in held]
    for layer in session.report.track(layers, "score", len(layers), "layers"):
        pictures = _pictures(session, layer, encoder, mean)
        found += _layer_scores(session, layer, file.values(layer.alias)[used], features, pictures)
    path = session.run.path / "scores.tsv"
    how = {"encoder": encoder.words, "alpha": f"{session.plan.score.alpha:g}"}
    _add(session, path, found, how | {"images": str(len(features))})
    records = list(map(asdict, _means(found)))
    session.report.result(json.dumps(records, indent=1) if as_json else shown_table(records))
    session.report.note(f"{path}: {len(found)} scores, similarity by {encoder.words}")


def _add(session: Session, path: Path, found: Sequence[Scored], how: Mapping[str, str]) -> None:
    """Write the scores beside those of other units that were made in the same way.

    Those made in another way are dropped, with a line about them.
    """
    rows: dict[tuple[str, str], TableRow] = {}
    for each in found:
        rows[each.unit, each.explanation] = {**asdict(each), **how}
    aliases, others = list(map(attrgetter("alias"), session.network.layers)), 0
    for row in read_table(path):
        if not how.items() <= row.items():
            others += 1
        elif row.get("unit", "").rpartition("/")[0] in aliases:
            rows.setdefault((row["unit"], row.get("explanation", "")), row)
    if others:
        session.report.note(f"{path}: scores of another encoder, alpha or sample are replaced")

    def place(row: TableRow) -> tuple[int, int]:
        unit = Unit.parse(row["unit"])
        return aliases.index(unit.layer), unit.channel

    publish_table(path, sorted(rows.values(), key=place))


Explained = dict[str, dict[int, Pictures]]  # by explanation and unit


def _pictures(session: Session, layer: Layer, encoder: Encoder, mean: Floats) -> Explained:
    """Return the optimized images of a layer's units by style, those minimised as the other side.

    A style without minimised images explains one side only, and its name ends with a +.
    """
    file = OptimizedFile(session.run.optimized(layer.alias))
    colour = np.array(session.network.preprocessing.mean, np.float32)
    single = {name: made for name, made in file.styles().items() if not made.get("targets")}
    encoded: dict[str, dict[int, Floats]] = {}
    for style in single:
        chosen = set(session.units(layer))
        encoded[style] = {}
        for row, unit in enumerate(file.units(style).tolist()):
            if unit in chosen:
                session.report.check_stop()
                runs = file.read(style, "image", slice(row, row + 1))[0, :EXPLANATION_SIZE]
                shown = np.clip(runs.astype(np.float32) + colour, 0, 255)
                encoded[style][unit] = unit_length(encoder.pictures(shown), mean)
    return dict(_two_sides(encoded))


def _two_sides(
    encoded: Mapping[str, Mapping[int, Floats]],
) -> Iterator[tuple[str, dict[int, Pictures]]]:
    for style, units in encoded.items():
        if style.endswith("-min"):
            continue
        other = encoded.get(f"{style}-min", {})
        yield f"{style}+", {unit: Pictures(above, None) for unit, above in units.items()}
        both = {unit: Pictures(units[unit], other[unit]) for unit in units if unit in other}
        if both:
            yield style, both


def _layer_scores(
    session: Session, layer: Layer, values: Floats, features: Floats, optimized: Explained
) -> Iterator[Scored]:
    """Yield the scores of a layer's units; none for a unit whose values are all the same."""
    alpha, number = session.plan.score.alpha, session.network.layers.index(layer)
    for unit in session.units(layer):
        session.report.check_stop()
        column = values[:, unit]
        if len(np.unique(column[~np.isnan(column)])) < 2:
            continue
        generator = np.random.default_rng([session.plan.seed, number, unit])
        real, control = unit_tasks(column), unit_tasks(generator.permutation(column))
        sides = [
            Pictures(features[tasks.strongest], features[tasks.weakest])
            for tasks in (real, control)
        ]
        explained = {IMAGES: sides, STRONGEST: [Pictures(side.above, None) for side in sides]}
        explained |= {name: [each[unit]] * 2 for name, each in optimized.items() if unit in each}
        for name, (here, there) in explained.items():
            apart = likeness_gaps(real, features, *here)
            sure = certainties(apart, alpha)
            shuffled = certainties(likeness_gaps(control, features, *there), alpha)
            yield Scored(
                str(Unit(layer.alias, unit)),
                name,
                float(sure.mean()),
                bootstrap_spread(sure, generator),
                float((apart > 0).mean()),
                float(shuffled.mean()),
                len(sure),
            )


def _means(found: Sequence[Scored]) -> Iterator[LayerScore]:
    """Yield the means of each layer and explanation, with the error of the mean over its units."""

    groups: dict[tuple[str, str], list[Scored]] = {}
    for each in found:
        groups.setdefault((Unit.parse(each.unit).layer, each.explanation), []).append(each)
    for (layer, explanation), units in groups.items():
        score, solved, control = np.array(list(map(_NUMBERS, units))).T
        error = float(score.std(ddof=1) / len(units) ** 0.5) if len(units) > 1 else float("nan")
        mean, solved, control = float(score.mean()), float(solved.mean()), float(control.mean())
        yield LayerScore(layer, explanation, len(units), mean, error, solved, control)


_NUMBERS = attrgetter("score", "solved", "control")
