"""`cnnvis montage`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import planned, working_on_units


@click.command("montage")
@click.argument("montage__kind", metavar="[KIND]...", nargs=-1)
@click.option("--style", "montage__style", help="Which style of optimized images to show.")
@click.option("--method", "montage__method", help="Which projections to show.")
@click.option(
    "--tone",
    "montage__tone",
    type=click.Choice(["tile", "unit", "sheet", "true"]),
    help="What shares one scale of grey; true adds the mean colour back.  [default: tile]",
)
@click.option("--scale", "montage__scale", type=int, help="Pixels a pixel.  [default: 1]")
@click.option("--dataset", help="Where the images are now, if they have moved.")
@working_on_units
def command(**flags: Any) -> None:
    """Draw figures from what the run directory holds, as PNG.

    KIND is `optimized` (one tile a channel, Fig. S1 of Yosinski et al. 2015) or `top`
    (projections beside image patches, Fig. 2 of Zeiler & Fergus 2013); both by default; or
    `history`, the activation at each step of every ascent.

    Example: cnnvis montage optimized --model demo --layer conv1 (after that of optimize)
    """
    plan, report = planned(flags)
    from cnnvis_cli.stages.montage import check_kinds, montage
    from cnnvis_cli.stages.session import open_session

    check_kinds(plan)
    with open_session(plan, report, new=False) as session:
        montage(session)
