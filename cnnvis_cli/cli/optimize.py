"""`cnnvis optimize`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import planned, working_on_units


@click.command("optimize")
@click.option(
    "--style",
    "optimize__style",
    multiple=True,
    help="1 to 4, the rows of Table 1 of Yosinski et al. 2015; repeatable.  [default: 3]",
)
@click.option("--runs", "optimize__runs", type=int, help="Random starts a unit.  [default: 1]")
@click.option(
    "--step",
    "optimize__step",
    help="calibrated, paper (the paper's constants), or a rate.  [default: calibrated]",
)
@click.option(
    "--iterations", "optimize__iterations", type=int, help="Instead of the style's own number."
)
@working_on_units
def command(**flags: Any) -> None:
    """Draw the image that each unit prefers: regularized activation maximization.

    A convolution's centre unit is optimized on exactly its receptive field, a fully connected
    unit on the whole input. The result is optimized/<layer>.h5 in the run directory.

    Example: cnnvis optimize --model demo --layer conv1 --units 0-7
    """
    plan, report = planned(flags)
    from cnnvis_cli.stages.optimize import optimize
    from cnnvis_cli.stages.session import open_session

    with open_session(plan, report) as session:
        optimize(session)
