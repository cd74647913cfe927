"""`cnnvis layers`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import describing, planned


@click.command("layers")
@describing
def command(**flags: Any) -> None:
    """List a network's layers.

    The table has each layer's alias, module path, kind, channels, map size, and its receptive
    field and stride in input pixels. No weights are needed.

    Example: cnnvis layers --model alexnet
    """
    plan, report = planned(flags)
    from cnnvis_cli.stages.layers import layers

    layers(plan, report)
