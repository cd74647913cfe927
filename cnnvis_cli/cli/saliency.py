"""`cnnvis saliency`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import ONE_IMAGE, SIZING, section, setting_option, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("saliency", cls=Grouped)
@click.argument(
    "saliency__images", metavar="IMAGE...", nargs=-1, shell_complete=completing.path_items
)
@takes(
    *section("saliency"),
    "topk.max_unreadable",
    setting_option(
        "figure.tone",
        help="What shares one grey scale: each signed map, or all of an image, stretched to the "
        "99th percentile; max stretches each map to its largest value.",
        type=click.Choice(["tile", "max", "sheet"]),
    ),
    *SIZING,
    *ONE_IMAGE,
)
def command(**flags: Any) -> None:
    """Show what in an image a class or a unit depends on.

    IMAGE is a file, or a folder, list, tar or zip of them. Each image gets one figure,
    figures/saliency/<image>_<target>.png, where the target is `predicted`, `class0013` or
    `conv5_0151`: the image with its most probable classes, and each method's map alone and over
    the image.

    \b
      gradient    gradient of the class's score (Simonyan et al. 2013)
      guided      guided backpropagation (Springenberg et al. 2014)
      deconv      deconvnet (Zeiler & Fergus 2013)
      gradcam     Grad-CAM (Selvaraju et al. 2017)
      smoothgrad  SmoothGrad (Smilkov et al. 2017), 50 passes
      integrated  integrated gradients (Sundararajan et al. 2017), 50 passes

    A class is explained by the network's output for it, before any final softmax; a unit by its
    layer's own output at its strongest place in the image.

    Example: cnnvis saliency outputs/demo-images/cat --model demo (after topk demo --model demo)
    """
    run_command("saliency", flags, _map_saliency)


def _map_saliency(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.beforehand import check_images, check_layers
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.single.saliency import saliency

    check_images(plan.saliency.images, "saliency")
    target = plan.saliency.target or ""
    at = [plan.saliency.at] if plan.saliency.at else []
    check_layers(plan, [target] if "/" in target else [], at)
    with open_session(plan, report) as session:
        saliency(session)
