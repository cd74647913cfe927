"""`cnnvis topk`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import SHARING, WORKING, section, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("topk", cls=Grouped)
@click.argument("dataset", required=False, shell_complete=completing.path_items)
@takes(*section("topk"), *SHARING, "yes", *WORKING, idle=("seed",))
def command(**flags: Any) -> None:
    """Find the images, and the places in them, that activate each channel most strongly.

    DATASET is a folder of images, ideally with one folder per class as in ImageNet; a folder of
    tar shards (WebDataset) or Parquet files; a .tar, .zip or .parquet file; a text file of paths;
    or `demo` for generated images. What is passed over is counted in the result, which is topk.h5
    in the run directory, with statistics of every channel.

    Example: cnnvis topk demo --model demo
    """
    run_command("topk", flags, _collect_topk)


def _collect_topk(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.beforehand import check_dataset, check_layers
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.topk.stage import topk

    check_dataset(plan)
    check_layers(plan)
    with open_session(plan, report) as session:
        topk(session)
