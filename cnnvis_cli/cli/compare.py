"""`cnnvis compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import JSON, TALKING, planned, takes
from cnnvis_cli.light_imports import load_torch


@click.command("compare", cls=Grouped)
@click.argument("run_a", type=click.Path(path_type=Path), shell_complete=completing.folders)
@click.argument("run_b", type=click.Path(path_type=Path), shell_complete=completing.folders)
@takes(JSON, "seed", *TALKING)
def command(run_a: Path, run_b: Path, as_json: bool, **flags: Any) -> None:
    """Match the units of two runs by their values over the same images.

    Both need topk --sample over the same dataset: two networks, two seeds, two checkpoints. A unit
    of RUN_A is matched with the unit of the counterpart layer of RUN_B whose largest values per
    image correlate most (Li et al. 2016); it survives if that is more than shuffled images
    give. Two tables, a matrix of all layers, the strongest patches of units with their matches
    and of units without, and a page of it all go to figures/compare/ of RUN_A.

    Example: cnnvis compare outputs/demo outputs/demo (after cnnvis demo)
    """
    plan, report = planned({**flags, "config": None})
    load_torch()
    from cnnvis_cli.stages.numbers.comparison import compare_runs

    compare_runs(run_a, run_b, plan.seed, as_json, report)
