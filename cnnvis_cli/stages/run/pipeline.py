"""`cnnvis run`: the stages of a plan, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cnnvis_cli.errors import CnnvisError, TasksFailed, TooManyUnreadable
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.montage import check_kinds, montage
from cnnvis_cli.stages.gallery.stage import gallery
from cnnvis_cli.stages.optimize.search import search
from cnnvis_cli.stages.optimize.stage import optimize
from cnnvis_cli.stages.optimize.styles import asked_styles
from cnnvis_cli.stages.project.stage import project, with_ways_back
from cnnvis_cli.stages.topk.stage import topk

STAGES: dict[str, Callable[[Session], None]] = {
    "topk": topk,
    "search": search,
    "optimize": optimize,
    "project": project,
    "montage": montage,
    "gallery": gallery,
}


def check(session: Session) -> None:
    """Raise `UsageError` for what a later stage cannot do, before any stage starts."""
    session.plan.optimize.check(session.plan)
    asked_styles(session.plan)
    check_kinds(session.plan)
    for layer in session.layers:
        session.units(layer)
    if "project" in session.plan.stages:
        with_ways_back(session)


NEED_NOTHING = ("topk", "search", "optimize")  # stages that need no other stage's results


def run_all(session: Session) -> None:
    """Run every stage of the plan; each returns at once if it has nothing left to do.

    Too many unreadable images do not stop the later stages, nor do pieces of work set aside stop
    those that do not need them: both are raised at the end. A shard runs the stages that need no
    other shard.
    """
    check(session)
    session.run.note("stages", {"asked": list(session.plan.stages)})
    late: list[TooManyUnreadable | TasksFailed] = []
    for name in session.plan.stages:
        session.report.detail(f"stage {name}")
        try:
            if name in NEED_NOTHING or not _waits(session, name, late):
                STAGES[name](session)
        except (TooManyUnreadable, TasksFailed) as error:
            late.append(error)
    if late:
        raise max(late, key=lambda error: isinstance(error, TasksFailed))


def _waits(session: Session, name: str, late: Sequence[CnnvisError]) -> bool:
    """Return whether a stage must be left for later, and report it."""
    shard = session.plan.shard
    if shard and not (name == "project" and session.run.topk.exists()):
        session.report.note(f"{name} is left for later, when cnnvis merge has joined the shards")
        return True
    if any(isinstance(error, TasksFailed) for error in late):
        session.report.note(f"{name} is left for later, when everything is complete")
        return True
    return False
