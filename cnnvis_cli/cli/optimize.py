"""`cnnvis optimize`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import SHARING, WORKING_ON_UNITS, section, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("optimize", cls=Grouped)
@takes(*section("optimize"), *SHARING, "yes", *WORKING_ON_UNITS)
def command(**flags: Any) -> None:
    """Draw the image that each unit prefers: regularized activation maximization.

    A convolution's centre unit is optimized on exactly its receptive field, a fully connected
    unit on the whole input. The result is optimized/<layer>.h5 in the run directory.

    Example: cnnvis optimize --model demo --layer conv1 --units 0-7
    """
    run_command("optimize", flags, _optimize_units)


def _optimize_units(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.beforehand import check_layers
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.optimize.stage import optimize

    check_layers(plan)
    with open_session(plan, report) as session:
        optimize(session)
