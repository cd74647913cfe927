"""`cnnvis project`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import MOVED, SHARING, WORKING_ON_UNITS, section, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("project", cls=Grouped)
@takes(*section("project"), MOVED, *SHARING, "yes", *WORKING_ON_UNITS, idle=("seed",))
def command(**flags: Any) -> None:
    """Project the strongest activations back to the pixels that caused them.

    Works on the places that `cnnvis topk` stored in the run directory. The result is
    projected/<layer>.h5, with separate groups for other values of --start and --lrn, such as
    deconv-map and guided-lrn.

    Example: cnnvis project --model demo --layer conv1 (after cnnvis topk demo --model demo)
    """
    run_command("project", flags, _project_units)


def _project_units(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.project.stage import project

    with open_session(plan, report, new=False) as session:
        project(session)
