"""`cnnvis name`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import JSON, MOVED, WORKING_ON_UNITS, section, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("name", cls=Grouped)
@takes(
    *section("name"),
    "figure.classes",
    JSON,
    *WORKING_ON_UNITS,
    MOVED,
    idle=("batch_size", "workers"),
)
def command(as_json: bool, **flags: Any) -> None:
    """Find a word for each unit: the class that its activations separate best.

    Needs topk --sample. A unit's name is the class of the dataset, or the folder or WordNet's
    noun (dog, vehicle) for several classes, with the largest area under the ROC curve over all
    images of the sample. A unit that does no better than it would with shuffled images is unnamed;
    its best class is in the last column. The table of all units is names.tsv in the run directory;
    those of --layer and --units are printed.

    With --clip the name is the word of any list that fits the unit's strongest images best, by
    soft-WPMI of CLIP-Dissect (Oikarinen and Weng 2023); needs pip install 'cnnvis[clip]', and
    weights and words from files.

    Example: cnnvis name --run outputs/demo --layer fc8 --least 2 (after cnnvis demo)
    """
    run_command("name-json" if as_json else "name", flags, partial(_name, as_json=as_json))


def _name(plan: Plan, report: Report, as_json: bool) -> None:
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.numbers.names import name_units

    with open_session(plan, report, new=False, weights=False) as session:
        name_units(session, as_json)
