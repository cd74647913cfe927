"""`cnnvis optimize`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.options import MEAN, sharing, working_on_units
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("optimize")
@click.option(
    "--style",
    "optimize__style",
    multiple=True,
    help="1 to 4, the rows of Table 1 of Yosinski et al. 2015; fourier; or one of your own; "
    "repeatable.  [default: 3]",
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
@MEAN
@click.option(
    "--softmax",
    "optimize__softmax",
    is_flag=True,
    default=None,
    help="Climb the unit's probability among the layer's units.",
)
@click.option(
    "--minimise", "optimize__minimise", is_flag=True, default=None, help="Go down, not up."
)
@click.option(
    "--sum",
    "optimize__sum",
    multiple=True,
    help="Climb a weighted sum of a layer's units, like '12 + 0.5*31 - 7'; repeatable.",
)
@click.option(
    "--direction",
    "optimize__direction",
    help="Climb along directions among a layer's channels: an .npy file of (n, channels) numbers.",
)
@click.option(
    "--diversity",
    "optimize__diversity",
    type=float,
    help="How much the runs of a unit shun each other; try 0.5.  [default: 0]",
)
@click.option(
    "--start",
    "optimize__start",
    help="noise (about the mean colour), uniform, mean, or an image file.  [default: noise]",
)
@click.option(
    "--precision",
    "optimize__precision",
    type=click.Choice(["float32", "tf32", "bf16"]),
    help="The network's arithmetic.  [default: tf32 on a GPU, float32 on a CPU]",
)
@click.option(
    "--history",
    "optimize__history",
    type=int,
    help="Steps between two activations that are kept.  [default: 8]",
)
@sharing
@working_on_units
def command(**flags: Any) -> None:
    """Draw the image that each unit prefers: regularized activation maximization.

    A convolution's centre unit is optimized on exactly its receptive field, a fully connected
    unit on the whole input. The result is optimized/<layer>.h5 in the run directory.

    Example: cnnvis optimize --model demo --layer conv1 --units 0-7
    """
    carry_out("optimize", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.optimize import optimize
    from cnnvis_cli.stages.session import open_session

    with open_session(plan, report) as session:
        optimize(session)
