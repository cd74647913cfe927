"""`cnnvis search`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import (
    DRAWING,
    SHARING,
    WORKING_ON_UNITS,
    section,
    setting_option,
    takes,
)
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("search", cls=Grouped)
@takes(
    *section("search"),
    setting_option("optimize.step", help="Step size: calibrated, or a number."),
    *DRAWING,
    "optimize.mean",
    *SHARING,
    *WORKING_ON_UNITS,
)
def command(**flags: Any) -> None:
    """Search for regularization parameters that give good pictures.

    This is how the paper found its four styles: random rows of parameters, the same few units for
    each, and a contact sheet with the parameters under the pictures, sorted by a score. Without
    --units, four units spread over the layer are used. The numbers are in search/<layer>.h5.

    Example: cnnvis search --model demo --layer conv2 --trials 6 --iterations 30
    """
    run_command("search", flags, _search_styles)


def _search_styles(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.beforehand import check_layers
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.optimize.search import search

    check_layers(plan)
    with open_session(plan, report) as session:
        search(session)
