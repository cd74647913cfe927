"""Where a plan may have its log: a plan from elsewhere must not write into files of yours."""

from __future__ import annotations

from pathlib import Path

from cnnvis_cli.errors import StorageError, UsageError
from cnnvis_cli.settings import Plan
from cnnvis_cli.store.inside import check_regular, is_ours


def check_log(log: Path, plan: Plan) -> None:
    """Raise `UsageError` for a log of the command line in the place of a run directory's own file.

    Folders above the log count too: ``--log run/optimized/x.h5`` names the run directory's.
    """
    there = log.resolve()
    for run in (plan.run and plan.folder.resolve(), *there.parents):
        if run and (run / "run.json").exists() and there.is_relative_to(run):
            first = there.relative_to(run).parts[0]
            if is_ours(first):
                raise UsageError(f"--log {log}: cnnvis uses {first} itself; choose another name")


def plan_log(plan: Plan) -> Path:
    """Return the log that a plan names, with the run directory made for it.

    Raise `UsageError` for one outside the run directory, or under a name that cnnvis uses there.
    """
    path, run = Path(str(plan.log)), plan.folder
    there = path.resolve()
    if there == run.resolve() or not there.is_relative_to(run.resolve()):
        raise UsageError(
            f"log = {str(path)!r}: a plan's log is a file in its run directory, such as "
            f"{run / path.name}; --log on the command line writes anywhere"
        )
    first = there.relative_to(run.resolve()).parts[0]
    if is_ours(first):
        raise UsageError(f"log = {str(path)!r}: cnnvis uses {first} itself; choose another name")
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.exists():
            check_regular(there)
    except OSError as error:
        raise StorageError(f"cannot use {there.parent}: {error.strerror}") from None
    return there
