"""`cnnvis verify`."""

from __future__ import annotations

import json
from typing import Any

import click

from cnnvis_cli.cli.options import JSON, MOVED, VERIFYING, planned, takes
from cnnvis_cli.errors import CnnvisError


@click.command("verify")
@click.argument("run")
@takes(MOVED)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Number of places, optimized images and dataset files to check again.",
)
@click.option("--all", "everything", is_flag=True, help="Read every image of the dataset.")
@takes(JSON, *VERIFYING)
def command(sample: int, everything: bool, as_json: bool, **flags: Any) -> None:
    """Check that a run is complete, and that its numbers can be reproduced.

    Every sealed file and every picture is read completely; the dataset's list is compared with the
    one that was used; a sample of stored places, optimized images and projections is recomputed.
    Nothing is changed. Whatever is wrong is listed, and gives exit code 1.

    Example: cnnvis verify outputs/demo
    """
    plan, report = planned({**flags, "config": None})
    from cnnvis_cli.stages.run.verify import verify

    found = verify(plan, report, sample, everything)
    if as_json:
        report.result(json.dumps(found.record(), indent=1))
    else:
        for line in found.lines():
            report.result(line)
    if found.wrong:
        raise CnnvisError(f"{plan.folder}: {len(found.wrong)} of its checks failed, as listed")
