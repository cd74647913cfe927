"""`cnnvis run`: the stages of a plan, in order."""

from __future__ import annotations

from collections.abc import Callable

from cnnvis_cli.errors import TooManyUnreadable
from cnnvis_cli.stages.gallery import gallery
from cnnvis_cli.stages.montage import check_kinds, montage
from cnnvis_cli.stages.optimize import asked_styles, check_optimize, optimize
from cnnvis_cli.stages.project import check_methods, check_ways_back, project
from cnnvis_cli.stages.search import search
from cnnvis_cli.stages.session import Session
from cnnvis_cli.stages.topk import topk

STAGES: dict[str, Callable[[Session], None]] = {
    "topk": topk,
    "search": search,
    "optimize": optimize,
    "project": project,
    "montage": montage,
    "gallery": gallery,
}


def check(session: Session) -> None:
    """Raise `UsageError` for what a later stage could not do, before any works through a night."""
    check_optimize(session.plan)
    asked_styles(session.plan)
    check_methods(session.plan)
    check_kinds(session.plan)
    for layer in session.layers:
        session.units(layer)
    if "project" in session.plan.stages:
        check_ways_back(session)


def run_all(session: Session) -> None:
    """Do every stage that the plan names; each returns at once where it has nothing left to do.

    Too many unreadable images do not keep the later stages from their work: that is said last.
    """
    check(session)
    unreadable: TooManyUnreadable | None = None
    for name in session.plan.stages:
        session.report.detail(f"stage {name}")
        try:
            STAGES[name](session)
        except TooManyUnreadable as error:
            unreadable = error
    if unreadable is not None:
        raise unreadable
