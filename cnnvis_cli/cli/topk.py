"""`cnnvis topk`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.options import sharing, working
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("topk")
@click.argument("dataset", required=False, shell_complete=completing.files)
@click.option("-k", "topk__k", type=int, help="Places to keep a channel.  [default: 9]")
@click.option(
    "--max-unreadable",
    "topk__max_unreadable",
    type=float,
    help="Share of bad images above which the exit code is 3.  [default: 0.01]",
)
@click.option("--min", "topk__min", is_flag=True, default=None, help="Also keep the k lowest.")
@click.option(
    "--decode",
    "topk__decode",
    type=click.Choice(["exact", "fast", "gpu"]),
    help="fast: let the JPEG decoder scale; gpu: decode on the device.  [default: exact]",
)
@click.option(
    "--precision",
    "topk__precision",
    type=click.Choice(["float32", "tf32", "bf16"]),
    help="The network's arithmetic.  [default: float32]",
)
@sharing
@working
def command(**flags: Any) -> None:
    """Find the images, and the places in them, that each channel answers most strongly.

    DATASET is a folder of images, best with one folder a class as ImageNet has it; or of tar
    shards; or one .tar or .zip file; or a text file of paths; or `demo` for images that are drawn.
    The result is topk.h5 in the run directory, with statistics of every channel.

    Example: cnnvis topk demo --model demo
    """
    carry_out("topk", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.session import open_session
    from cnnvis_cli.stages.topk import topk

    with open_session(plan, report) as session:
        topk(session)
