"""`cnnvis demo`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import QUIET, VERBOSE, setting, takes
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("demo")
@takes(setting("run", shown="outputs/demo"), QUIET, VERBOSE)
def command(**flags: Any) -> None:
    """Run the whole pipeline on the bundled network and generated images.

    It needs no download and no GPU, and ends by naming the pictures to open.

    Example: cnnvis demo
    """
    given = {**flags, "run": flags["run"] or "outputs/demo", "config": None, "log": None}
    carry_out("demo", {**given, "model": "demo", "dataset": "demo"}, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.run.demo import demo

    demo(plan, report)
