"""`cnnvis status`."""

from __future__ import annotations

import json
from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import JSON, RUN_AS_ALL, TALKING, of_run, planned, takes


@click.command("status", cls=Grouped)
@click.argument("folder", metavar="[RUN]", required=False)
@takes(*RUN_AS_ALL, JSON, *TALKING)
def command(as_json: bool, **flags: Any) -> None:
    """Show what a run has done, what is left and skipped, its speed and the time left.

    RUN is a run directory, by default that of --model; it may be in use by any number of shards.
    Nothing in it is changed.

    Example: cnnvis status outputs/demo
    """
    plan, report = planned(of_run(flags))
    from cnnvis_cli.stages.run.status import status

    found = status(plan.folder)
    report.result(json.dumps(found.record(), indent=1) if as_json else found.table())
