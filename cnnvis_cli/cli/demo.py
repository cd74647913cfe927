"""`cnnvis demo`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import QUIET, VERBOSE, setting_option, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("demo", cls=Grouped)
@takes(setting_option("run", shown="outputs/demo"), QUIET, VERBOSE)
def command(**flags: Any) -> None:
    """Run the whole pipeline on the bundled network and generated images.

    It needs no download and no GPU, and ends by naming the pictures to open.

    Example: cnnvis demo
    """
    given = {**flags, "run": flags["run"] or "outputs/demo", "config": None, "log": None}
    run_command("demo", {**given, "model": "demo", "dataset": "demo"}, _run_demo)


def _run_demo(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.run.demo import run_demo

    run_demo(plan, report)
