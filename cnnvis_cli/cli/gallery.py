"""`cnnvis gallery`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import working_on_units
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("gallery")
@click.option("--title", "gallery__title", help="Title of the page.  [default: the network]")
@click.option("--dataset", help="Where the images are now, if they have moved.")
@click.option(
    "--tone",
    "figure__tone",
    type=click.Choice(["tile", "unit", "sheet", "true"]),
    help="What shares one grey scale; true adds the mean colour back.  [default: tile]",
)
@click.option(
    "--classes",
    "figure__classes",
    help="A file of class names: one per line, or a folder name and its class name per line.",
)
@working_on_units
def command(**flags: Any) -> None:
    """Make a web page to browse every unit of the run: <run>/gallery/index.html.

    It shows what the run directory holds: optimized images, the strongest patches, projections,
    histograms, classes and neighbours. It opens from disk or from any web server, and requests
    nothing from outside its folder.

    Example: cnnvis gallery --run outputs/demo (after cnnvis demo)
    """
    carry_out("gallery", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.gallery import gallery
    from cnnvis_cli.stages.session import open_session

    with open_session(plan, report, new=False, weights=False) as session:
        gallery(session)
