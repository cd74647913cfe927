"""`cnnvis look`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from cnnvis_cli.cli import completing
from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import DRAWING, ONE_IMAGE, section, setting_option, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan

LOOKED_AT = setting_option("layer", shown="an early, a middle and the last one with a map")


@click.command("look", cls=Grouped)
@click.argument("look__images", metavar="PHOTO...", nargs=-1, shell_complete=completing.path_items)
@takes(*section("look"), "topk.max_unreadable", LOOKED_AT, *DRAWING, *ONE_IMAGE, idle=("seed",))
def command(**flags: Any) -> None:
    """Show on one sheet what a network sees in an image.

    PHOTO is a file, a folder of them, or demo, a bundled picture. The sheet has the most probable
    classes, Grad-CAM, where covering the image changes the decision, and the strongest units of
    three layers with their maps; of a run directory also their strongest patches and preferred
    images. Without --model and --run it is the bundled network, which knows 24 drawn things.
    It is figures/look/<image>.png.

    Example: cnnvis look demo
    """
    bundled = not (flags.get("model") or flags.get("run") or flags.get("config"))
    if bundled:
        flags["model"] = "demo"
    run_command("look", flags, partial(_look_at, bundled=bundled))


def _look_at(plan: Plan, report: Report, bundled: bool) -> None:
    from cnnvis_cli.stages.common.beforehand import check_images, check_layers
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.single.look import BUNDLED, look_at

    if plan.look.images != (BUNDLED,):
        check_images([each for each in plan.look.images if each != BUNDLED], "look")
    check_layers(plan)
    if bundled and plan.look.images != (BUNDLED,):
        report.note(
            "the bundled network knows 24 drawn things, and no photographs; for these give a "
            "network, such as --model squeezenet1_0"
        )
    with open_session(plan, report) as session:
        look_at(session)
