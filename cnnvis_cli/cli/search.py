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
    "--iterations",
    "search__iterations",
    type=int,
    help="Iterations of each ascent.  [default: 300]",
)
@click.option(
    "--sweep",
    "search__sweep",
    help="Instead of a random search, vary one parameter from its lowest to its highest value: "
    "decay, blur_width, blur_every, norm, contribution, tv or rate; or all, for one sheet each.",
)
@click.option(
    "--values", "search__values", type=int, help="Number of values of a sweep.  [default: 7]"
)
@click.option(
    "--score",
    "search__score",
    help="The score that sorts the sheet: balanced, activation, robustness, variation, roughness "
    "or grey.  [default: balanced]",
)
@click.option("--save", "search__save", metavar="NAME", help="Save a row as a style of this name.")
@click.option(
    "--row", "search__row", type=int, help="The row to save.  [default: the sheet's first]"
)
@click.option(
    "--step",
    "optimize__step",
    help="Step size: calibrated, or a number.  [default: calibrated]",
)
@drawing
@MEAN
@sharing
@working_on_units
def command(**flags: Any) -> None:
    """Search for regularization parameters that give good pictures.

    This is how the paper found its four styles: random rows of parameters, the same few units for
    each, and a contact sheet with the parameters under the pictures, sorted by a score. Without
    --units, four units spread over the layer are used. The numbers are in search/<layer>.h5.

    Example: cnnvis search --model demo --layer conv2 --trials 6 --iterations 30
    """
    carry_out("search", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.search import search
    from cnnvis_cli.stages.session import open_session

    with open_session(plan, report) as session:
        search(session)
