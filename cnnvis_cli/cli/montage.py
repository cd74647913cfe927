"""`cnnvis montage`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import DRAWING, MOVED, SHOWING_UNITS, section, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan

MOVING = ("activations.frames", "activations.every")  # of the videos of screen


@click.command("montage", cls=Grouped)
@click.argument(
    "montage__kind", metavar="[KIND]... [IMAGE]...", nargs=-1, shell_complete=completing.kinds
)
@takes(*section("montage"), *MOVING, MOVED, *DRAWING, *SHOWING_UNITS, idle=("batch_size",))
def command(**flags: Any) -> None:
    """Draw figures as PNG from the results in the run directory.

    \b
    KIND, repeatable; by default optimized and top:
      optimized  one tile per channel (Yosinski et al. 2015, Fig. S1)
      top        projections beside image patches (Zeiler & Fergus 2013, Fig. 2)
      styles     3x3 runs in each style that the run has, per unit (Yosinski et al., Fig. 4)
      layers     all layers at true size, four runs per channel (Fig. 5)
      unit       optimized, patches, projections, 3x3 each (panes of Fig. 1)
      toolbox    JPEGs in the folders that the deep-visualization-toolbox reads
      intervals  patches from five intervals of a unit's activation (topk --sample)
      accent     a photograph, accentuated for each unit, the difference (--style accent)
      history    the activation during each ascent
      screen     the toolbox's screen for IMAGE and --unit (Fig. 1), alone: it runs the network;
                 of a video a film

    Example: cnnvis montage optimized --model demo --layer conv1 (after the example of optimize)
    """
    kinds = flags["montage__kind"]
    if kinds[:1] == ("screen",):
        flags["montage__kind"], flags["montage__images"] = kinds[:1], kinds[1:]
    run_command("montage", flags, _draw_montage)


def _draw_montage(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.figures.montage import check_kinds, montage

    check_kinds(plan)
    if "screen" in plan.montage.kind:
        from cnnvis_cli.stages.common.beforehand import check_layers
        from cnnvis_cli.stages.single.screen import check_screen, screen

        check_screen(plan)
        check_layers(plan, plan.montage.unit)
        with open_session(plan, report) as session:
            screen(session)
        return
    with open_session(plan, report, new=False, weights=False) as session:
        montage(session)
