"""`cnnvis occlude`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.options import drawing_photographs, explaining, processing, sharing
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("occlude")
@click.argument("occlude__images", metavar="IMAGE...", nargs=-1, shell_complete=completing.files)
@click.option(
    "--size",
    "occlude__size",
    type=int,
    metavar="PIXELS",
    help="Side of the square, in pixels of the network's input.  [default: a fifth of the input's]",
)
@click.option(
    "--stride",
    "occlude__stride",
    type=int,
    metavar="PIXELS",
    help="Distance from one position to the next.  [default: a twentieth of the input's side]",
)
@click.option(
    "-l",
    "--layer",
    multiple=True,
    help="Layer whose strongest map is shown; repeatable.  [default: the last convolution with a "
    "map that is not the network's last layer]",
)
@click.option(
    "--class",
    "occlude__target",
    metavar="NAME|NUMBER",
    help="Class whose probability is shown.  [default: each image's predicted class]",
)
@click.option(
    "--method",
    "occlude__method",
    help="How the map is projected: deconv, guided or gradient.  [default: deconv]",
)
@click.option(
    "--max-unreadable",
    "topk__max_unreadable",
    type=float,
    help="Share of unreadable images above which the exit code is 3.  [default: 0.01]",
)
@drawing_photographs
@processing
@sharing
@explaining
def command(**flags: Any) -> None:
    """Show which parts of an image a prediction depends on (Zeiler & Fergus 2013, Fig. 7).

    IMAGE is a file, or a folder, list, tar or zip of them. A grey square covers one part of the
    image after the other. Each image gets figures/occlude/<image>_<layer>.png and its numbers,
    occluded/<image>_<layer>.h5. The panels:

    \b
      (a)  the image, as the network sees it
      (b)  total activation of the layer's strongest map, by the square's position
      (c)  that map, projected to the pixels; also for its strongest images, where the run has them
      (d)  probability of the class, by the square's position
      (e)  the most probable class, by the square's position

    The square has the mean colour, which is 0 to the network. Its centre visits the whole image,
    so at the border the square extends beyond it.

    Example: cnnvis occlude outputs/demo-images/cat/000.png --model demo (after topk demo --model
    demo)
    """
    carry_out("occlude", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.occlude import check_occlude, occlude
    from cnnvis_cli.stages.session import open_session

    check_occlude(plan)
    with open_session(plan, report) as session:
        occlude(session)
