"""`cnnvis activations`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.options import printing, working
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("activations")
@click.argument(
    "activations__image", metavar="IMAGE-OR-VIDEO...", nargs=-1, shell_complete=completing.files
)
@click.option(
    "--unit",
    "activations__unit",
    multiple=True,
    metavar="LAYER/N",
    help="One channel over the image, like conv5/0151; repeatable.",
)
@click.option(
    "--compare",
    "activations__compare",
    is_flag=True,
    default=None,
    help="Two to six images beside each other, the same channels of each.",
)
@click.option(
    "--save",
    "activations__save",
    type=click.Choice(["h5"]),
    help="Also keep the numbers, in activations/<image>.h5.",
)
@click.option("--every", "activations__every", type=int, help="Use every n-th frame.  [default: 1]")
@click.option(
    "--size", "activations__size", type=int, help="Height of the video in pixels.  [default: 480]"
)
@click.option(
    "--frames",
    "activations__frames",
    is_flag=True,
    default=None,
    help="A folder's images are the frames of a video, 25 a second.",
)
@click.option(
    "--tone",
    "activations__tone",
    type=click.Choice(["layer", "tile"]),
    help="What shares one scale of grey: a layer, or each channel.  [default: layer]",
)
@click.option(
    "--scale",
    "activations__scale",
    type=float,
    help="Pixels a place, a whole number, or a share of 1.  [default: as fits]",
)
@click.option(
    "--max-unreadable",
    "topk__max_unreadable",
    type=float,
    help="Share of unreadable images that is no failure.  [default: 0.01]",
)
@printing
@working
def command(**flags: Any) -> None:
    """Show what every layer makes of an image, or of each frame of a video.

    Each layer is a sheet of its channels, row by row in a square, or bars where a channel has one
    value; above it are the five likeliest classes. all.png has all layers, a walk through the
    network. --layer takes any module, by alias or path; by default it is every module that
    computes something (not containers, dropout or flattening), and prob, the softmax of the
    output. One that runs several times gives name, name#2, ...; functional rectifiers are no
    modules and cannot be shown. With --unit alone only that channel is drawn.

    Where nothing is negative the tone is x / max with 0 black, otherwise x / max(2 max, -2 min) +
    0.5 with 0 mid-grey.

    A video (.mp4, .webm, .gif, ..., or a folder with --frames) gives a video for each layer (by
    default for all convolutions and fully connected layers), the frame and its classes beside the
    sheet, on one scale that only grows; and strongest.tsv, the strongest unit of each layer in each
    frame, with a plot. Frames that cannot be decoded are told and left out. It needs PyAV.

    Images are as in topk: transparency is dropped, 16 bits become 8, CMYK becomes RGB, an image
    that cannot be read is told and left out.

    Example: cnnvis activations outputs/demo-images --model demo --layer conv1 (after cnnvis demo)
    """
    carry_out("activations", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.activations import activations, check_activations
    from cnnvis_cli.stages.session import open_session

    check_activations(plan)
    with open_session(plan, report) as session:
        activations(session)
