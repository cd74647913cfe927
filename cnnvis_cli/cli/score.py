"""`cnnvis score`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from cnnvis_cli.cli.grouped import Grouped
from cnnvis_cli.cli.options import JSON, MOVED, WORKING_ON_UNITS, section, takes
from cnnvis_cli.cli.work import run_command
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan


@click.command("score", cls=Grouped)
@takes(*section("score"), MOVED, JSON, *WORKING_ON_UNITS, idle=("batch_size", "workers"))
def command(as_json: bool, **flags: Any) -> None:
    """Score how well pictures of each unit tell what activates it.

    Needs topk --sample of at least 140 images. The Machine Interpretability Score (Zimmermann et
    al. 2024): of two images, one from each tail of the unit's values, which looks more like the
    pictures that explain the unit? 0.5 is chance. Explanations are the nine strongest and weakest
    images of the sample (images), the strongest alone (images+), and the optimized images of each
    style in the run (natural+, ...; without a + where they have been minimised as well).

    How alike two pictures look is told by --encoder, by default the network itself, which may
    flatter its own units; dreamsim takes the paper's (pip install dreamsim; --encoder-weights
    names the folder of its weights, and nothing is fetched). All numbers are in scores.tsv; means
    per layer are printed.

    With --natural-path: are activations of optimized images like those of photographs on the way
    to the layer (Geirhos et al. 2024)? Per layer before it, 1 means as those of the unit's own
    strongest photographs, 0 as those of other units' photographs; paths.tsv, figures/paths.

    Example: cnnvis score --run outputs/demo --layer conv5 --units 0-3 (after cnnvis demo)
    """
    run_command("score-json" if as_json else "score", flags, partial(_score, as_json=as_json))


def _score(plan: Plan, report: Report, as_json: bool) -> None:
    from cnnvis_cli.stages.common.session import open_session
    from cnnvis_cli.stages.numbers.natural_path import check_natural_path
    from cnnvis_cli.stages.numbers.scores import score_units

    with open_session(plan, report, new=False) as session:
        if plan.score.natural_path:
            check_natural_path(session, as_json)
        else:
            score_units(session, as_json)
