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
@click.option("-k", "topk__k", type=int, help="Places to keep per channel.  [default: 9]")
@click.option(
    "--max-unreadable",
    "topk__max_unreadable",
    type=float,
    help="Share of unreadable images above which the exit code is 3.  [default: 0.01]",
)
@click.option(
    "--min", "topk__min", is_flag=True, default=None, help="Also keep the k lowest places."
)
@click.option(
    "--decode",
    "topk__decode",
    type=click.Choice(["exact", "fast", "gpu"]),
    help="fast: the JPEG decoder scales; gpu: decode on the GPU.  [default: exact]",
)
@click.option(
    "--precision",
    "topk__precision",
    type=click.Choice(["float32", "tf32", "bf16"]),
    help="Arithmetic of the network.  [default: float32]",
)
@sharing
@working
def command(**flags: Any) -> None:
    """Find the images, and the places in them, that activate each channel most strongly.

    DATASET is a folder of images, ideally with one folder per class as in ImageNet; a folder of
    tar shards; a .tar or .zip file; a text file of paths; or `demo` for generated images. The
    result is topk.h5 in the run directory, with statistics of every channel.

    Example: cnnvis topk demo --model demo
    """
    carry_out("topk", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.session import open_session
    from cnnvis_cli.stages.topk import topk

    with open_session(plan, report) as session:
        topk(session)
