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
    help="1 to 4 (the rows of Table 1 of Yosinski et al. 2015), fourier, or a style of your own; "
    "repeatable.  [default: 3]",
)
@click.option("--runs", "optimize__runs", type=int, help="Random starts per unit.  [default: 1]")
@click.option(
    "--step",
    "optimize__step",
    help="Step size: calibrated, paper (the paper's constants), or a number.  "
    "[default: calibrated]",
)
@click.option(
    "--iterations", "optimize__iterations", type=int, help="Iterations, instead of the style's own."
)
@MEAN
@click.option(
    "--softmax",
    "optimize__softmax",
    is_flag=True,
    default=None,
    help="Maximise the unit's softmax probability among the layer's units.",
)
@click.option(
    "--minimise",
    "optimize__minimise",
    is_flag=True,
    default=None,
    help="Minimise the activation instead of maximising it.",
)
@click.option(
    "--sum",
    "optimize__sum",
    multiple=True,
    help="Maximise a weighted sum of a layer's units, such as '12 + 0.5*31 - 7'; repeatable.",
)
@click.option(
    "--direction",
    "optimize__direction",
    help="Maximise along directions in the space of a layer's channels: an .npy file of shape "
    "(n, channels).",
)
@click.option(
    "--diversity",
    "optimize__diversity",
    type=float,
    help="Weight of a penalty on runs of a unit that look alike; try 0.5.  [default: 0]",
)
@click.option(
    "--start",
    "optimize__start",
    help="First image: noise (about the mean colour), uniform, mean, or a file.  [default: noise]",
)
@click.option(
    "--precision",
    "optimize__precision",
    type=click.Choice(["float32", "tf32", "bf16"]),
    help="Arithmetic of the network.  [default: tf32 on a GPU, float32 on a CPU]",
)
@click.option(
    "--history",
    "optimize__history",
    type=int,
    help="Record the activation every this many steps.  [default: 8]",
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
