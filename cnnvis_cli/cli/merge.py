"""`cnnvis merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import MERGING, planned, takes
from cnnvis_cli.light_imports import load_torch


@click.command("merge", cls=Grouped)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@takes("topk.max_unreadable", *MERGING)
def command(runs: tuple[Path, ...], **flags: Any) -> None:
    """Join runs made with --shard i/n into one.

    RUNS are the run directories of all shards; the result goes to --run. It is bit for bit the
    same as that of an undivided run.

    Example: cnnvis merge outputs/part1 outputs/part2 --run outputs/whole
    """
    plan, report = planned(flags)
    load_torch()
    from cnnvis_cli.stages.run.merge import merge

    merge(runs, plan, report)
