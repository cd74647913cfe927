"""`cnnvis run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import RUNNING, SHARING, setting_option, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("run", cls=Grouped)
@click.argument("config", type=click.Path(path_type=Path))
@takes(
    setting_option("dataset", help="Images to use instead of the plan's dataset."),
    *SHARING,
    "yes",
    *RUNNING,
)
def command(**flags: Any) -> None:
    """Run all stages of a TOML file, in order; when run again, continue where it stopped.

    This is the command for cron. A finished run returns at once.

    Example: cnnvis run configs/demo.toml
    """
    run_command("run", flags, _run_stages)


def _run_stages(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.beforehand import check_dataset, check_layers
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.run.pipeline import run_all

    if "topk" in plan.stages:
        check_dataset(plan)
    check_layers(plan)
    with open_session(plan, report) as session:
        run_all(session)
