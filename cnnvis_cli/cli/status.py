"""`cnnvis status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cnnvis_cli.cli.options import JSON, TALKING, planned, takes


@click.command("status")
@click.argument("run", type=click.Path(path_type=Path))
@takes(JSON, *TALKING)
def command(run: Path, as_json: bool, **flags: Any) -> None:
    """Show what a run has done, what is left and skipped, its speed and the time left.

    RUN is a run directory; it may be in use by any number of shards. Nothing in it is changed.

    Example: cnnvis status outputs/demo
    """
    _, report = planned({**flags, "config": None})
    from cnnvis_cli.stages.run.status import status

    found = status(run)
    report.result(json.dumps(found.record(), indent=1) if as_json else found.table())
