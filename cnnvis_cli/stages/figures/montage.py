"""`cnnvis montage`: figures from the results in the run directory."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path

from cnnvis_cli.errors import UsageError
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures import (  # noqa: F401  (they register their kinds)
    accents,
    intervals,
    preferred,
    strongest,
    toolbox,
)
from cnnvis_cli.stages.figures.montages import KINDS, MontageKind, Pages
from cnnvis_cli.stages.figures.render import draw_figures, figure_files, figure_key

__all__ = ["KINDS", "SCREEN", "check_kinds", "montage"]

SCREEN = "screen"  # the kind that runs the network, by a stage of its own


def check_kinds(plan: Plan) -> None:
    """Raise `UsageError` for an unknown kind of figure."""
    for kind in plan.montage.kind:
        if kind != SCREEN:
            KINDS.require(kind)


def montage(session: Session) -> None:
    """Draw every chosen kind of figure for every chosen layer; by default all with results.

    Raise `UsageError` for a requested layer without results, or if there are none at all.
    """
    asked = session.plan.montage.kind
    if SCREEN in asked:
        raise UsageError("screen takes images: cnnvis montage screen IMAGE --unit conv5/151")
    usual = [name for name, kind in KINDS.items() if not kind.asked]
    pages: list[Pages] = []
    for name in asked or usual:
        pages += _pages(session, KINDS[name])
    if not pages:
        shown = f"show as {', '.join(asked)}" if asked else "show"
        makers = " or ".join(_makers(session, asked or usual))
        raise UsageError(f"{session.run.path} holds nothing to {shown} yet; run {makers} first")
    figures = list(chain.from_iterable(pages))
    draw_figures(session, figures, lambda path: session.report.result(str(path)))
    for figures in pages:
        _drop_other_pages(session, figures)


MAKERS = {
    "optimized": "cnnvis optimize",
    "projected": "cnnvis project",
    "sample.h5": "cnnvis topk --sample 10000",
}


def _makers(session: Session, kinds: Iterable[str]) -> list[str]:
    """Return the commands that make what some kinds of figures show."""
    files = chain.from_iterable(KINDS[name].files for name in kinds)
    places = [file(session.run, "").relative_to(session.run.path).parts[0] for file in files]
    return list(dict.fromkeys(map(MAKERS.__getitem__, places)))


def _pages(session: Session, kind: MontageKind) -> list[Pages]:
    """Return the pages of a kind's figures, for the requested layers or those with a file."""
    asked = bool(session.plan.layer and session.plan.montage.kind)
    layers = []
    for layer in session.layers:
        needed = [file(session.run, layer.alias) for file in kind.files]
        if asked or any(map(Path.is_file, needed)):
            layers.append(layer)
    return kind.make(session, layers) if layers else []


def _drop_other_pages(session: Session, figures: Pages) -> None:
    """Remove the pages of a larger selection than this one."""
    for path in figure_files(session, figures[0]):
        for number in count(len(figures) + 1):
            stale = path.with_name(f"{path.stem}_page{number}{path.suffix}")
            if figure_key(stale) is None:  # absent, or not one of ours
                break
            stale.unlink()
