"""`cnnvis project`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import projecting, sharing, working_on_units
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("project")
@projecting
@click.option("--dataset", help="Where the images are now, if they have moved.")
@sharing
@working_on_units
def command(**flags: Any) -> None:
    """Project the strongest activations back to the pixels that caused them.

    Works on the places that `cnnvis topk` stored in the run directory. The result is
    projected/<layer>.h5, with separate groups for other values of --start and --lrn, such as
    deconv-map and guided-lrn.

    Example: cnnvis project --model demo --layer conv1 (after cnnvis topk demo --model demo)
    """
    carry_out("project", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.project import check_methods, project
    from cnnvis_cli.stages.session import open_session

    check_methods(plan)
    with open_session(plan, report, new=False) as session:
        project(session)
