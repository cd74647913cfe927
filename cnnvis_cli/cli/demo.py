"""`cnnvis demo`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("demo")
@click.option("-r", "--run", help="The run directory.  [default: outputs/demo]")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress, only results and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Show more detail, and tracebacks for errors.")
def command(**flags: Any) -> None:
    """Run the whole pipeline on the bundled network and generated images.

    It needs no download and no GPU, and ends by naming the pictures to open.

    Example: cnnvis demo
    """
    given = {**flags, "run": flags["run"] or "outputs/demo", "config": None, "log": None}
    carry_out("demo", {**given, "model": "demo", "dataset": "demo"}, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.demo import demo

    demo(plan, report)
