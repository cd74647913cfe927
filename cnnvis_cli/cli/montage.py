"""`cnnvis montage`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.options import drawing, working_on_units
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("montage")
@click.argument("montage__kind", metavar="[KIND]...", nargs=-1, shell_complete=completing.kinds)
@click.option(
    "--style",
    "montage__style",
    multiple=True,
    help="Style of the optimized images to show; repeatable for the kind styles.",
)
@click.option("--method", "montage__method", help="Method of the projections to show.")
@click.option(
    "--random",
    "montage__random",
    type=int,
    help="Show this many units, chosen at random by --seed.",
)
@click.option(
    "--sort",
    "montage__sort",
    type=click.Choice(["max", "selectivity", "active"]),
    help="Sort units, highest first, by a statistic of topk.h5: strongest activation, class "
    "selectivity, or share of places above 0.  [default: by number]",
)
@click.option(
    "--best",
    "montage__best",
    type=int,
    help="Show only this many units, the first by --sort.  [default of --sort: max]",
)
@click.option(
    "--together",
    "montage__together",
    is_flag=True,
    default=None,
    help="Draw one figure for all layers (top), or for all units of a layer (styles, unit).",
)
@click.option("--dataset", help="Where the images are now, if they have moved.")
@drawing
@working_on_units
def command(**flags: Any) -> None:
    """Draw figures as PNG from the results in the run directory.

    \b
    KIND, repeatable; by default optimized and top:
      optimized  one tile per channel (Yosinski et al. 2015, Fig. S1)
      top        projections beside image patches (Zeiler & Fergus 2013, Fig. 2)
      styles     3x3 runs in each of four styles, per unit (Yosinski et al., Fig. 4)
      layers     all layers at true size, four runs per channel (Fig. 5)
      unit       optimized, patches, projections, 3x3 each (panes of Fig. 1)
      toolbox    JPEGs in the folders that the deep-visualization-toolbox reads
      history    the activation during each ascent

    Example: cnnvis montage optimized --model demo --layer conv1 (after the example of optimize)
    """
    carry_out("montage", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.montage import check_kinds, montage
    from cnnvis_cli.stages.session import open_session

    check_kinds(plan)
    with open_session(plan, report, new=False, weights=False) as session:
        montage(session)
