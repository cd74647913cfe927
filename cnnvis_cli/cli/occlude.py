"""`cnnvis occlude`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import ONE_IMAGE, SHARING, SIZING, setting_option, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("occlude", cls=Grouped)
@click.argument(
    "occlude__images", metavar="IMAGE...", nargs=-1, shell_complete=completing.path_items
)
@takes(
    "occlude.size",
    "occlude.stride",
    setting_option(
        "layer",
        help="Layer whose strongest map is shown; repeatable.",
        shown="the last convolution with a map that is not the network's last layer",
    ),
    "occlude.target",
    "occlude.method",
    "occlude.zero",
    "occlude.together",
    "topk.max_unreadable",
    "figure.tone",
    *SIZING,
    "workers",
    *SHARING,
    *ONE_IMAGE,
    idle=("seed",),
)
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
    run_command("occlude", flags, _occlude_images)


def _occlude_images(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.beforehand import check_images, check_layers
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.single.occlude import occlude

    check_images(plan.occlude.images, "occlude")
    check_layers(plan)
    with open_session(plan, report) as session:
        occlude(session)
