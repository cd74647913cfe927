"""`cnnvis activations`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import PRINTING, WORKING, section, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("activations", cls=Grouped)
@click.argument(
    "activations__image",
    metavar="IMAGE-OR-VIDEO...",
    nargs=-1,
    shell_complete=completing.path_items,
)
@takes(*section("activations"), "topk.max_unreadable", *PRINTING, *WORKING, idle=("seed",))
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
    run_command("activations", flags, _show_activations)


def _show_activations(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.single.activations import activations, check_activations

    check_activations(plan)
    with open_session(plan, report) as session:
        activations(session)
