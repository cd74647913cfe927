"""`cnnvis name`: a word for each unit, the class or folder of classes that it separates best."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cnnvis_cli.arrays import Doubles, Floats
from cnnvis_cli.errors import UsageError
from cnnvis_cli.measures.separation import (
    Groups,
    areas,
    best_by_chance,
    chances,
    standard_errors,
)
from cnnvis_cli.network.wordnet import sets_above
from cnnvis_cli.nouns import Layer, Unit
from cnnvis_cli.stages.common.class_names import class_names, classes_of, folders_above
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.numbers.table import UNNAMED, publish_table, read_table, shown_table
from cnnvis_cli.stages.numbers.words import WordedUnit, word_units
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.sample_file import SampledImages, SampleFile
from cnnvis_cli.store.topk_file import TopKFile


@dataclass(frozen=True)
class NamedUnit:
    """A unit's name; `best` is the group with the largest area, whether or not chance gives it."""

    unit: str
    name: str
    area: float
    error: float  # standard error of the area
    chance: float  # share of shuffled images whose best area is as large
    images: int  # of the best group in the sample
    best: str


def name_units(session: Session, as_json: bool) -> None:
    """Name every unit in sample.h5, and print those that are asked for.

    Raise `UsageError` without a sample, for a layer that it does not hold, where no class has
    enough images in it, and for a level that no name can reach.
    """
    file = sample_of(session.run)
    _check_asked(session, file)
    found: Sequence[NamedUnit | WordedUnit]
    plan = session.plan.name
    for flag, value in (("--words", plan.words), ("--clip-weights", plan.clip_weights)):
        if value is not None and plan.clip is None:
            raise UsageError(f"{flag}: chooses words by CLIP; name the model with --clip")
    if session.plan.name.clip is not None:
        found, fitting = word_units(session, file)
    else:
        found, fitting = _by_classes(session, file)
    path = session.run.path / "names.tsv"
    before = read_table(path)
    if before and ("clip" in before[0]) != (session.plan.name.clip is not None):
        held = f"by {before[0]['clip']}" if "clip" in before[0] else "of classes"
        session.report.note(f"{path}: names {held} are replaced")
    publish_table(path, list(map(asdict, found)))
    chosen = {str(Unit(la.alias, unit)) for la in session.layers for unit in session.units(la)}
    records = [asdict(each) for each in found if each.unit in chosen and each.name in fitting]
    if as_json:
        session.report.result(json.dumps(records, indent=1))
    else:
        session.report.result(shown_table(records))
    named = sum(each.name != UNNAMED for each in found)
    session.report.note(f"{path}: {named} of {len(found)} units have a name")


def _by_classes(session: Session, file: SampleFile) -> tuple[list[NamedUnit], set[str]]:
    """Return all units' names by class, and the names of those that are asked for."""
    images = file.images()
    used = ~images.skipped
    groups = _groups(session, images)
    plan = session.plan.name
    fitting = _fitting(session, groups)
    by_chance = best_by_chance(groups, plan.shuffles, session.plan.seed)
    held = file.layers()
    layers = [layer for layer in session.network.layers if layer.alias in held]
    found: list[NamedUnit] = []
    for layer in session.report.track(layers, "name", len(layers), "layers"):
        found += _of_layer(session, layer, file.values(layer.alias)[used], groups, by_chance)
    return found, fitting


def _check_asked(session: Session, file: SampleFile) -> None:
    plan = session.plan.name
    if plan.level * (1 + plan.shuffles) < 1:
        raise UsageError(
            f"--level {plan.level:g}: with --shuffles {plan.shuffles} no name can be so rare; "
            f"give --shuffles {math.ceil(1 / plan.level) - 1} or more, or a larger --level"
        )
    for layer in session.layers if session.plan.layer else ():
        file.places(layer.alias)  # raises where it has no such layer


def sample_of(run: Run) -> SampleFile:
    """Return a run's sample; raise `UsageError` if there is none."""
    file = SampleFile(run.sample)
    if file.identity() is None:
        raise UsageError(f"{run.path} has no sample.h5 yet; run cnnvis topk --sample 10000 first")
    return file


def _groups(session: Session, images: SampledImages) -> Groups:
    """Return the classes, and the folders that hold several, with enough images in the sample."""
    every = TopKFile(session.run.topk).images()
    classes = classes_of(session.run, every)
    names = _told_apart(
        class_names(classes, session.network.classes, session.plan.figure.classes), classes
    )
    used = ~images.skipped
    labels, index = images.label[used], images.index[used]
    groups = {names[label]: labels == label for label in np.unique(labels[labels >= 0]).tolist()}
    for folder, inside in folders_above(every, index, labels).items():
        groups.setdefault(folder, inside)
    for word, held in sets_above(classes).items():
        inside = np.isin(labels, [label for label, own in enumerate(classes) if own in held])
        groups[word if word not in groups else f"{word} (any)"] = inside
    least = session.plan.name.least
    kept = {}
    for name, inside in groups.items():
        if least <= inside.sum() <= len(labels) - least:
            kept[name] = inside
    if not groups:
        raise UsageError(
            f"{session.run.sample}: none of its images has a class, so there is no name to give; "
            "run topk on a dataset with class folders or labels, in another --run"
        )
    if not kept:
        most = max((int(inside.sum()) for inside in groups.values()), default=0)
        raise UsageError(
            f"{session.run.sample}: no class has --least {least} images in it, and others beside "
            f"them (the largest has {most}); make a larger --sample, or give a smaller --least"
        )
    return Groups(tuple(kept), np.stack(list(kept.values())))


def _told_apart(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the names, with its class behind each that several classes have, like ``crane``."""
    several = {name for name, count in Counter(names).items() if count > 1}
    pairs = zip(names, classes, strict=True)
    return [f"{name} ({own})" if name in several else name for name, own in pairs]


def _of_layer(
    session: Session,
    layer: Layer,
    values: Floats,
    groups: Groups,
    by_chance: Doubles,
) -> Iterable[NamedUnit]:
    """Return a layer's names, unit by unit, from its values (N, C)."""
    found = areas(values, groups)
    chosen = found.argmax(axis=0)
    largest = found.max(axis=0)
    columns = (largest, standard_errors(values, groups, chosen), chances(largest, by_chance))
    sizes = groups.sizes
    for unit, group in enumerate(chosen.tolist()):
        area, error, chance = (float(column[unit]) for column in columns)
        best = groups.names[group]
        name = best if chance <= session.plan.name.level else UNNAMED
        yield NamedUnit(
            str(Unit(layer.alias, unit)), name, area, error, chance, int(sizes[group]), best
        )


def _fitting(session: Session, groups: Groups) -> set[str]:
    """Return the names that have the word of --named in them, all of them without one.

    Or that are of a group all of whose images are in such a group: a spaniel is a dog.
    """
    word = (session.plan.name.named or "").lower()
    fitting = groups.within([name for name in groups.names if word in name.lower()])
    if word in UNNAMED:
        fitting.add(UNNAMED)
    if not fitting:
        raise UsageError(
            f"--named {word}: is in the name of no class, nor of a set of classes, with --least "
            f"{session.plan.name.least} images in {session.run.sample}"
        )
    return fitting
