"""`cnnvis filters`."""

from __future__ import annotations

from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import PRINTING, WORKING, section, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("filters", cls=Grouped)
@takes(*section("filters"), *PRINTING, *WORKING, idle=("device", "seed", "batch_size", "workers"))
def command(**flags: Any) -> None:
    """Show first-layer filters: which dominate, which are dead, how fine they are.

    One figure shows the filters in RGB, raw and clipped: those whose RMS exceeds the radius are
    framed, and scaled down to it (Zeiler & Fergus 2013, Fig. 6 and section 3). Dead filters, never
    active over the images of topk.h5, are crossed out. The other figure plots mean activation
    against the filters' spatial frequency (Yosinski et al. 2015, supplement S1). All numbers are
    in a table beside them. Dead filters and activations need topk.h5, the rest does not.

    The RMS is that of the raw weights, for the network's own normalised input, and so is --radius.
    The paper's 0.1 is for pixels of about -128 to 128; where the input is divided by a standard
    deviation, the default is that many times larger.

    Without --layer, the first convolution that takes the image is shown.

    Example: cnnvis filters --model demo
    """
    run_command("filters", flags, _show_filters)


def _show_filters(plan: Plan, report: Report) -> None:
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.figures.filters import filters

    with open_session(plan, report) as session:
        filters(session)
