"""`cnnvis project`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import planned, working_on_units


@click.command("project")
@click.option(
    "--method",
    "project__method",
    multiple=True,
    help="deconv, guided or gradient; repeatable.  [default: deconv]",
)
@click.option("--dataset", help="Where the images are now, if they have moved.")
@working_on_units
def command(**flags: Any) -> None:
    """Project the strongest activations back to pixels: what in the image caused them.

    Works on the places that `cnnvis topk` stored in the run directory. The result is
    projected/<layer>.h5.

    Example: cnnvis project --model demo --layer conv1 (after cnnvis topk demo --model demo)
    """
    plan, report = planned(flags)
    from cnnvis_cli.stages.project import check_methods, project
    from cnnvis_cli.stages.session import open_session

    check_methods(plan)
    with open_session(plan, report, new=False) as session:
        project(session)
