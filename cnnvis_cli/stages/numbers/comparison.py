"""`cnnvis compare`: the units of two runs, matched by their values over the same images."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Doubles
from cnnvis_cli.digests import digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.matrix import matrix
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.measures.likeness import alignment, centred, dependence
from cnnvis_cli.measures.matching import match_layers
from cnnvis_cli.report import Report
from cnnvis_cli.stages.numbers.compared import ComparedRun, Comparison
from cnnvis_cli.stages.numbers.comparison_page import draw_comparison
from cnnvis_cli.stages.numbers.names import sample_of
from cnnvis_cli.stages.numbers.table import publish_table, shown_table
from cnnvis_cli.store.inside import check_inside
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.sample_file import common_rows

LEAST_IMAGES = 10


def compare_runs(first: Path, second: Path, seed: int, as_json: bool, report: Report) -> None:
    """Match the units of two runs; write tables, a matrix and a page below the first one's figures.

    Raise `UsageError` for a run without a sample, or samples with too few images in common.
    """
    for folder in (first, second):
        check_inside(folder)
    with report.stoppable(), Run(first).lock(say=report.once):
        one, two, count = _sides(Run(first), Run(second), report)
        likeness = _likeness(one, two, report)
        names = _counterparts(one, two, likeness)
        order = np.random.default_rng(seed).permutation(count)
        layers, units = [], []
        for row, (layer, other) in enumerate(report.each(names.items())):
            cka = float(likeness[row, list(two.layers).index(other)])
            x, y = one.layers[layer], two.layers[other]
            match, found = match_layers(x, y, (layer, other), cka, order)
            layers.append(match)
            units += found
        compared = Comparison(one, two, count, likeness, layers, units)
        path = _written(compared)
        records = list(map(asdict, layers))
        report.result(json.dumps(records, indent=1) if as_json else shown_table(records))
        for drawn in (path, *draw_comparison(compared, path, report)):
            report.result(str(drawn))


def _sides(first: Run, second: Run, report: Report) -> tuple[ComparedRun, ComparedRun, int]:
    """Return both runs' values over the images that both samples have, and how many these are."""
    files = [sample_of(run) for run in (first, second)]
    for run in (first, second):
        if not run.read():
            raise UsageError(f"{run.manifest}: is gone, so it is not known whose {run.sample} is")
    images = [file.images() for file in files]
    rows = common_rows(*images)
    count = len(rows[0])
    if count < LEAST_IMAGES:
        raise UsageError(
            f"{files[0].path} and {files[1].path} have {count} images in common, by path and "
            f"content, and at least {LEAST_IMAGES} are needed; make both with topk --sample over "
            "the same dataset"
        )
    most = max(len(each.index) for each in images)
    if count < most:
        report.note(f"{count} of {most} images are usable in both samples")
    sides = []
    for run, file, chosen in zip((first, second), files, rows, strict=True):
        layers = {name: centred(file.values(name)[chosen]) for name in file.layers()}
        sides.append(ComparedRun(run, run.read(), layers))
    return sides[0], sides[1], count


def _likeness(one: ComparedRun, two: ComparedRun, report: Report) -> Doubles:
    """Return the alignment of each layer of one run with each of the other."""
    found = np.zeros((len(one.layers), len(two.layers)))
    own = [_own_dependence(one), _own_dependence(two)]
    for row, x in enumerate(report.track(one.layers.values(), "compare", len(found), "layers")):
        for column, y in enumerate(two.layers.values()):
            found[row, column] = alignment(x, y, own[0][row] * own[1][column])
    return found


def _own_dependence(side: ComparedRun) -> list[float]:
    """Return the dependence of each layer on itself, which is computed once for all pairs."""
    return [dependence(x, x) for x in side.layers.values()]


def _sizes(side: ComparedRun) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in side.layers.items()}


def _counterparts(one: ComparedRun, two: ComparedRun, likeness: Doubles) -> dict[str, str]:
    """Return each layer's counterpart: of the same name in networks alike, else the most alike."""
    if _sizes(one) == _sizes(two):
        return dict(zip(one.layers, one.layers, strict=True))
    names = list(two.layers)
    nearest = np.nan_to_num(likeness, nan=-1).argmax(axis=1).tolist()
    return {layer: names[column] for layer, column in zip(one.layers, nearest, strict=True)}


def _written(compared: Comparison) -> Path:
    """Write the tables and the matrix; return the path of the matrix."""
    one, two, count = compared.one, compared.two, compared.count
    name = f"{two.run.path.resolve().name}-{str(two.record['weights_sha256'])[:8]}"
    base = one.run.figure("compare", name)
    publish_table(base.with_name(f"{name}-layers.tsv"), list(map(asdict, compared.layers)))
    publish_table(base.with_name(f"{name}-units.tsv"), list(map(asdict, compared.units)))
    title = f"{one.title} beside {two.title}"
    note = (
        f"Similarity of layers (unbiased linear CKA) by the largest values of their units in "
        f"{count} images. Rows: {one.title}; columns: {two.title}. 0: nothing in common; 1: the "
        "same up to rotation and scale."
    )
    caption = Caption(title, note)
    canvas = matrix(compared.likeness, list(one.layers), list(two.layers), caption)
    weights = [side.record["weights_sha256"] for side in (one, two)]
    record = {"kind": "compare", "images": count, "weights_sha256": weights}
    text = {"Title": title, "Software": "cnnvis", "cnnvis": json.dumps(record)}
    path = base.with_name(f"{name}.png")
    publish(path, canvas.png(text | {"cnnvis-key": digest(record)}))
    return path
