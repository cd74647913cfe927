"""Figures of accentuated photographs: each beside the photograph and what has changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.sheets import Cell, Pane
from cnnvis_cli.figure.tone import TONE_RULES, as_photograph, toned
from cnnvis_cli.figure.words import four_digits
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import OptimizedImages, style_of, styles_of
from cnnvis_cli.stages.figures.montages import Cells, Pages, kind, unit_figures
from cnnvis_cli.store.run import Run

UNSEEN = 0.5  # grey levels: what rounding leaves of no difference


@kind("accent", Run.optimized)
def accents(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return a photograph, what it becomes towards a unit, and the difference: Hamblin et al."""
    tone, asked = session.plan.figure.tone, session.plan.layer
    sources = [_accentuated(session, layer) for layer in layers]
    found = [images for images in sources if images is not None]
    if not found and (asked or session.plan.montage.kind):
        raise UsageError(
            f"{session.run.path} holds no accentuated photograph; run cnnvis optimize --style "
            "accent --start PHOTO first"
        )
    note = (
        "A photograph, what it becomes near it for the unit (in styles that end in min: against "
        "it), with the unit's values, and the difference, with its root mean square in grey "
        "levels; below half of one it is shown as none. Tone of differences: "
        f"{TONE_RULES['tile' if tone == 'true' else tone]}."
    )
    return unit_figures("accent", note, session, [_accent_cells(each) for each in found])


def _accentuated(session: Session, layer: Layer) -> OptimizedImages | None:
    """Return the style of a layer that begins at a photograph, if it has one."""
    if session.plan.montage.style:
        return style_of(session, layer)
    every = styles_of(session, layer)
    return next((images for images in every if images.is_accent), None)


def _accent_cells(images: OptimizedImages) -> Cells:
    session, mean = images.session, images.session.network.preprocessing.mean
    tone = session.plan.figure.tone
    rule = "tile" if tone == "true" else tone

    def make(unit: int) -> Cell:
        best = images.best([unit])[:, 0]  # (1, h, w, 3)
        photograph = images.read("photograph", [unit])
        change = best + np.array(mean, np.float32) - photograph
        start, value = (float(images.read(name, [unit]).max()) for name in ("start", "activation"))
        away = float(np.sqrt(np.square(change).mean()))
        if away < UNSEEN:
            change = np.zeros_like(change)
        dead = bool((images.read("outcome", [unit]) == Outcome.NO_GRADIENT).all())
        panes = (
            Pane(photograph, 1, title=f"photograph: {four_digits(start)}"),
            Pane(as_photograph(best, mean), 1, title=f"{images.style}: {four_digits(value)}"),
            Pane(toned(change[None], rule)[0], 1, title=f"difference: {away:.1f}"),
        )
        return Cell(images.label(unit), panes, dead)

    return Cells(images.layer, images.held, make, images.record, images.size)
