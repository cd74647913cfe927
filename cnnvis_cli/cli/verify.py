"""`cnnvis verify`."""

from __future__ import annotations

import json
from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import JSON, MOVED, RUN_AS_ALL, VERIFYING, of_run, planned, takes
from cnnvis_cli.errors import CnnvisError, StorageError
from cnnvis_cli.light_imports import load_torch


@click.command("verify", cls=Grouped)
@click.argument("folder", metavar="[RUN]", required=False)
@takes(*RUN_AS_ALL, MOVED)
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Number of images, and of optimized images, to compute again.",
)
@click.option(
    "--all", "everything", is_flag=True, help="Make the whole top-k again, and begin ascents again."
)
@takes(JSON, *VERIFYING)
def command(sample: int, everything: bool, as_json: bool, **flags: Any) -> None:
    """Check that a run is complete, and that its numbers can be reproduced.

    RUN is a run directory, by default that of --model. Every sealed file and every picture is read
    completely, and everything that is stored is held against what it follows from: order, windows,
    statistics, the dataset's list, pages. A sample of images and optimized images is computed
    again, --all makes the whole top-k again. A table says what was proven, how, and what was not.
    Nothing is changed. Whatever is wrong is listed, and gives exit code 1; a fault of the system,
    such as a dataset that cannot be read now, gives 4.

    Example: cnnvis verify outputs/demo
    """
    plan, report = planned(of_run(flags))
    load_torch()
    from cnnvis_cli.verify import verify

    found = verify(plan, report, sample, everything)
    if as_json:
        report.result(json.dumps(found.record(), indent=1))
    else:
        for line in found.lines():
            report.result(line)
    if found.wrong:
        raise CnnvisError(f"{plan.folder}: {len(found.wrong)} of its checks failed, as listed")
    if found.faults:
        raise StorageError(f"{plan.folder}: not all could be read, as listed; run again later")
