"""`cnnvis gallery`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import MOVED, SHOWING_UNITS, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("gallery", cls=Grouped)
@takes(
    *("gallery.title", "gallery.trace", MOVED, "figure.tone", "figure.classes", *SHOWING_UNITS),
    idle=("seed", "batch_size"),
)
def command(**flags: Any) -> None:
    """Make a web page to browse every unit of the run: <run>/gallery/index.html.

    It shows what the run directory holds: optimized images, the strongest patches, projections,
    histograms, classes and neighbours; and, with the weights, what feeds each unit. It opens from
    disk or from any web server, and requests nothing from outside its folder.

    Example: cnnvis gallery --run outputs/demo (after cnnvis demo)
    """
    run_command("gallery", flags, _make_gallery)


def _make_gallery(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.gallery.stage import gallery

    with open_session(plan, report, new=False, weights=False) as session:
        gallery(session)
