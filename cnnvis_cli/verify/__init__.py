"""`cnnvis verify`: are a run directory's files complete, and still true?

Complete: every sealed file has the bytes that were written, every picture its checksums.
Consistent: what is stored more than once, or follows from something else that is stored, agrees.
True: the dataset is the one that was used, and stored values can be computed again.

A seal proves no more than that a file is whole: whoever changes a file can seal it again. So what
is not computed again from weights and images is called unproven.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cnnvis_cli.errors import UsageError
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network, outlined, planned_for
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.store.inside import check_inside
from cnnvis_cli.store.run import Run, differences
from cnnvis_cli.verify.ascents import check_ascents
from cnnvis_cli.verify.dataset import DatasetToday
from cnnvis_cli.verify.files import check_files, check_presence, held_topk
from cnnvis_cli.verify.findings import Findings
from cnnvis_cli.verify.pages import check_gallery
from cnnvis_cli.verify.places import check_stored
from cnnvis_cli.verify.projections import check_projections
from cnnvis_cli.verify.sampled_values import check_sample
from cnnvis_cli.verify.spectrum import check_spectrum
from cnnvis_cli.verify.typical import check_typical
from cnnvis_cli.verify.values import check_everything, check_values

Check = tuple[str, Callable[[], None]]


def verify(plan: Plan, report: Report, sample: int, everything: bool) -> Findings:
    """Check everything in a run directory; nothing there is changed.

    `sample` images are computed again, and as many optimized images; so are the projections of a
    few channels per layer. With `everything`, or for a dataset of no more images, the whole top-k
    is made again. Raise `UsageError` if there is no run.
    """
    run = Run(plan.folder)
    check_inside(run.path)
    if not run.read():
        raise UsageError(f"{plan.folder}: holds no run; begin one with cnnvis topk or optimize")
    findings = Findings()
    with report.stoppable():
        check_files(run, findings, report)
        check_presence(run, findings)
        plan = planned_for(plan)
        session = Session(plan, load_network(plan, report.once), run, report).here()
        for what, check in _checks(session, findings, sample, everything):
            with findings.guarded(what):
                check()
    return findings


def _checks(session: Session, findings: Findings, sample: int, everything: bool) -> list[Check]:
    """Return the checks beyond the files, by name: no values if the network is another one."""
    file = held_topk(session.run, findings)
    same = _check_network(session, findings)
    checks: list[Check] = []
    photographs = None if file is None else DatasetToday(session, file, findings)
    if photographs is not None:
        checks += [
            ("images in the list", photographs.check_list),
            ("skipped images", photographs.check_skipped),
        ]
    if not same:
        if photographs is not None:
            checks.append(("images read", lambda: photographs.read_some(sample)))
        findings.leave("values", 1, "until the network is the run's own")
        return checks
    if photographs is not None:
        checks += _topk_checks(session, findings, photographs, sample, everything)
    generator = np.random.default_rng([session.plan.seed, 1])
    return [
        *checks,
        (
            "optimized images",
            lambda: check_ascents(session, findings, generator, sample, everything),
        ),
        ("gallery", lambda: check_gallery(session, findings)),
    ]


def _topk_checks(
    session: Session, findings: Findings, photographs: DatasetToday, sample: int, everything: bool
) -> list[Check]:
    """Return the checks of the top-k and of what was made from it."""
    file, generator = photographs.file, np.random.default_rng(session.plan.seed)

    def values() -> None:
        count = len(photographs.images.path) if everything else sample
        if count >= len(photographs.images.path) and photographs.same:
            check_everything(photographs, findings)
        else:
            check_values(photographs, findings, generator, count)

    return [
        ("places", lambda: check_stored(session, file, findings)),
        ("places", values),
        (
            "sample values",
            lambda: check_sample(
                photographs,
                findings,
                np.random.default_rng([session.plan.seed, 2]),
                len(photographs.images.path) if everything else sample,
            ),
        ),
        (
            "spectrum",
            lambda: check_spectrum(photographs, findings, None if everything else sample),
        ),
        (
            "typical",
            lambda: check_typical(photographs, findings, None if everything else sample),
        ),
        ("projections", lambda: check_projections(photographs, findings, generator)),
    ]


def _check_network(session: Session, findings: Findings) -> bool:
    """Check that the network is the run's, and is what run.json says of it."""
    run, known = session.run, session.run.read()
    stated = {name: known.get(name) for name in session.identity}
    apart = differences(stated, session.identity)
    problem = f"{run.manifest}: is of another network: {apart}"
    findings.recomputed("networks", 1, [problem] if apart else [])
    outline = outlined(session.network)
    if not apart and known.get("network", outline) != outline:
        findings.recomputed("run.json", 1, [f"{run.manifest}: its network is not this network"])
    why = "times, devices, versions and where things were are only told"
    findings.leave("run.json", 1, why)
    return not apart
