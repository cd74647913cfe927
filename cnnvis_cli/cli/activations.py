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
    help="Show one channel over the image, such as conv5/0151; repeatable.",
)
@click.option(
    "--compare",
    "activations__compare",
    is_flag=True,
    default=None,
    help="Show the same channels of two to six images side by side.",
)
@click.option(
    "--save",
    "activations__save",
    type=click.Choice(["h5"]),
    help="Also save the numbers, as activations/<image>.h5.",
)
@click.option(
    "--every",
    "activations__every",
    type=int,
    help="Use every n-th frame of a video.  [default: 1]",
)
@click.option(
    "--size", "activations__size", type=int, help="Height of the video in pixels.  [default: 480]"
)
@click.option(
    "--frames",
    "activations__frames",
    is_flag=True,
    default=None,
    help="Treat the images of a folder as the frames of a video, 25 per second.",
)
@click.option(
    "--tone",
    "activations__tone",
    type=click.Choice(["layer", "tile"]),
    help="What shares one grey scale: a layer, or each channel.  [default: layer]",
)
@click.option(
    "--scale",
    "activations__scale",
    type=float,
    help="Pixels per place of a map: a whole number, or a fraction below 1.  [default: as fits]",
)
@click.option(
    "--max-unreadable",
    "topk__max_unreadable",
    type=float,
    help="Share of unreadable images above which the exit code is 3.  [default: 0.01]",
)
@printing
@working
def command(**flags: Any) -> None:
    """Show every layer's activations for an image, or for each frame of a video.

    Each layer is a sheet of its channels, row by row in a square, or bars where a channel has one
    value, below the five most probable classes. all.png shows all layers, one after the other.
    --layer takes any module, by alias or path; the default is every module that computes
    something (not containers, dropout or flattening), and prob, the softmax of the output. A
    module that runs several times gives name, name#2, ...; functional rectifiers are not modules
    and cannot be shown. With --unit alone, only that channel is drawn.

    Where nothing is negative the tone is x / max with 0 black, otherwise x / max(2 max, -2 min) +
    0.5 with 0 mid-grey.

    A video (.mp4, .webm, .gif, ..., or a folder with --frames) gives one video per layer (by
    default all convolutions and fully connected layers), with the frame and its classes beside the
    sheet, on a scale that only grows; and strongest.tsv, the strongest unit of each layer in each
    frame, with a plot. Frames that cannot be decoded are reported and skipped. Videos need PyAV.

    Images are read as in topk: transparency is dropped, 16 bits become 8, CMYK becomes RGB.
    Unreadable images are reported and skipped.

    Example: cnnvis activations outputs/demo-images --model demo --layer conv1 (after cnnvis demo)
    """
    carry_out("activations", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.activations import activations, check_activations
    from cnnvis_cli.stages.session import open_session

    check_activations(plan)
    with open_session(plan, report) as session:
        activations(session)
