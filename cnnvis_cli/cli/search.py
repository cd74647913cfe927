"""`cnnvis search`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import MEAN, drawing, sharing, working_on_units
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("search")
@click.option(
    "--trials", "search__trials", type=int, help="Random rows of parameters.  [default: 300]"
)
@click.option(
    "--iterations", "search__iterations", type=int, help="Steps of each ascent.  [default: 300]"
)
@click.option(
    "--sweep",
    "search__sweep",
    help="Instead of a random search, one parameter from its lowest to its highest value: decay, "
    "blur_width, blur_every, norm, contribution, tv, rate; or all, for one sheet of each.",
)
@click.option("--values", "search__values", type=int, help="Of a sweep.  [default: 7]")
@click.option(
    "--score",
    "search__score",
    help="What the sheet is sorted by: balanced, activation, robustness, variation, roughness, "
    "grey.  [default: balanced]",
)
@click.option("--save", "search__save", metavar="NAME", help="Keep a row as a style of this name.")
@click.option(
    "--row", "search__row", type=int, help="Which row to keep.  [default: the sheet's first]"
)
@click.option("--step", "optimize__step", help="calibrated, or a rate.  [default: calibrated]")
@drawing
@MEAN
@sharing
@working_on_units
def command(**flags: Any) -> None:
    """Search for regularization parameters that give good pictures.

    As the paper found its four styles: random rows of parameters, the same few units under each,
    one contact sheet with the parameters under the pictures, sorted by a score. Without --units,
    four units are spread over the layer. The numbers are in search/<layer>.h5.

    Example: cnnvis search --model demo --layer conv2 --trials 6 --iterations 30
    """
    carry_out("search", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.search import search
    from cnnvis_cli.stages.session import open_session

    with open_session(plan, report) as session:
        search(session)
