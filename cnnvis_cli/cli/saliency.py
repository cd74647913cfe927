"""`cnnvis saliency`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.options import explaining, sizing
from cnnvis_cli.cli.work import carry_out
from cnnvis_cli.plan import Plan
from cnnvis_cli.report import Report


@click.command("saliency")
@click.argument("saliency__images", metavar="IMAGE...", nargs=-1, shell_complete=completing.files)
@click.option(
    "--method",
    "saliency__method",
    multiple=True,
    help="gradient, guided, deconv, gradcam, smoothgrad or integrated; repeatable.  [default: "
    "gradient, guided, deconv, gradcam]",
)
@click.option(
    "--target",
    "saliency__target",
    metavar="CLASS|NUMBER|UNIT",
    help="A class name or number, or a unit such as conv5/0151.  [default: each image's predicted "
    "class]",
)
@click.option(
    "--at",
    "saliency__at",
    metavar="LAYER",
    help="Layer for Grad-CAM.  [default: the last convolution]",
)
@click.option(
    "--save",
    "saliency__save",
    type=click.Choice(["h5"]),
    help="Also save the numbers, as saliency/<image>_<target>.h5.",
)
@click.option(
    "--max-unreadable",
    "topk__max_unreadable",
    type=float,
    help="Share of unreadable images above which the exit code is 3.  [default: 0.01]",
)
@click.option(
    "--tone",
    "figure__tone",
    type=click.Choice(["tile", "sheet"]),
    help="What shares one grey scale: each signed map, or all of an image.  [default: tile]",
)
@sizing
@explaining
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
    carry_out("saliency", flags, _work)


def _work(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.saliency import check_saliency, saliency
    from cnnvis_cli.stages.session import open_session

    check_saliency(plan)
    with open_session(plan, report) as session:
        saliency(session)
