"""A quiz on a gallery's pictures: which of two photographs drives a unit more?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cnnvis_cli.arrays import Int64s
from cnnvis_cli.digests import digest
from cnnvis_cli.stages.figures.data import STRONGEST_SHOWN
from cnnvis_cli.stages.gallery.layers import ShownLayer
from cnnvis_cli.stages.gallery.panes import PicturePane
from cnnvis_cli.store.run import Record

QUIZ_UNITS = 4  # per layer and explanation


class Question(NamedTuple):
    """Two images by their numbers in topk.h5; which of them has the larger value."""

    alias: str
    unit: int
    pane: int  # the number of the layer's pane that is shown
    left: int
    right: int
    answer: str

    @property
    def order(self) -> str:
        return digest([self.alias, self.unit, self.pane])


def quiz_questions(shown: Sequence[ShownLayer]) -> list[Question]:
    """Return the questions in a mixed order, the same each time; none without a sample."""
    found = [question for layer in shown for question in _of_layer(layer)]
    return sorted(found, key=lambda question: question.order)


def _of_layer(shown: ShownLayer) -> Iterator[Question]:
    if not (shown.sampled and shown.top and shown.photographs):
        return
    for number, pane in enumerate(shown.panes):
        if pane.kind in ("patches", "optimized"):
            for unit in _spread(shown, pane):
                yield from _question(shown, unit, number)


def _spread(shown: ShownLayer, pane: PicturePane) -> list[int]:
    """Return some of the units with a pane's pictures, evenly spread over the layer."""
    held = np.intersect1d(shown.units, pane.held)
    places = np.linspace(0, len(held) - 1, min(QUIZ_UNITS, len(held))).round().astype(int)
    return list(held[places].tolist())


def _question(shown: ShownLayer, unit: int, pane: int) -> Iterator[Question]:
    """Yield a question on a unit, or none if both values are equal.

    It compares the strongest and the median photograph of the sample, without those shown.
    """
    assert shown.sampled is not None
    assert shown.top is not None
    about = shown.sampled.images
    values = np.asarray(about.values[:, unit], np.float64)
    images = np.asarray(about.images.index, np.int64)
    kept = np.flatnonzero(
        np.isfinite(values) & ~np.isin(images, shown.top.places.image[unit, :STRONGEST_SHOWN])
    )
    if not len(kept):
        return
    rows = kept[np.argsort(-values[kept], kind="stable")]
    strong, weak = int(rows[0]), int(rows[len(rows) // 2])
    if values[strong] > values[weak]:
        pair = (int(images[strong]), int(images[weak]))
        first = int(digest([shown.layer.alias, unit, pane, "side"]), 16) % 2 == 0
        yield Question(
            shown.layer.alias, unit, pane, *(pair if first else pair[::-1]),
            "left" if first else "right",
        )  # fmt: skip


def quiz_images(questions: Sequence[Question]) -> Int64s:
    """Return the images that are compared."""
    return np.asarray([[q.left, q.right] for q in questions], np.int64).ravel()


def quiz_record(shown: Sequence[ShownLayer], questions: Sequence[Question]) -> Record:
    """Return the page's data: the questions, with the names of their images."""
    dataset = next((layer.dataset for layer in shown if layer.dataset), None)
    names = {i: dataset.name(i) for i in quiz_images(questions).tolist()} if dataset else {}
    rows = []
    for asked in questions:
        rows.append([*asked, names[asked.left], names[asked.right]])
    return {"key": digest(rows), "questions": rows}
