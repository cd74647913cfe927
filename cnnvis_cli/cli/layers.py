"""`cnnvis layers`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import DESCRIBING, planned, takes
from cnnvis_cli.light_imports import load_torch


@click.command("layers", cls=Grouped)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a list of objects.")
@takes(*DESCRIBING)
def command(as_json: bool, **flags: Any) -> None:
    """List a network's layers.

    The table has each layer's alias, module path, kind, channels, map size, and its receptive
    field and stride in input pixels. No weights are needed.

    Example: cnnvis layers --model alexnet
    """
    plan, report = planned(flags)
    load_torch()
    from cnnvis_cli.stages.layers import list_layers

    list_layers(plan, report, as_json)
