"""`cnnvis demo`: the whole pipeline on the bundled network and generated images."""

from __future__ import annotations

import time
from dataclasses import replace

from cnnvis_cli.demo.synthetic import CLASSES
from cnnvis_cli.report import Report
from cnnvis_cli.settings import FigurePlan, MontagePlan, OptimizePlan, Plan, Stage, TopKPlan
from cnnvis_cli.stages.common.dataset_images import PER_CLASS
from cnnvis_cli.stages.common.session import Session, open_session
from cnnvis_cli.stages.figures.filters import filters
from cnnvis_cli.stages.figures.montage import montage
from cnnvis_cli.stages.gallery.stage import gallery
from cnnvis_cli.stages.optimize.stage import optimize
from cnnvis_cli.stages.project.stage import project
from cnnvis_cli.stages.topk.stage import topk

STAGES: tuple[Stage, ...] = ("topk", "optimize", "project")


def run_demo(plan: Plan, report: Report) -> None:
    """Run all stages on all layers, draw each picture as early as it can be, and name the best."""
    folder, start = plan.folder, time.monotonic()
    settings = replace(
        plan,
        optimize=OptimizePlan(iterations=96),
        topk=TopKPlan(sample=len(CLASSES) * PER_CLASS),
        stages=STAGES,
    )
    with open_session(settings, report) as session:
        session.run.note("stages", {"asked": list(STAGES)})
        topk(session)
        filters(session)
        for layer in session.layers:
            one = replace(session, plan=replace(settings, layer=(layer.alias,)))
            optimize(one)
            montage(_drawing(one, "optimized", scale=3))
        project(session)
        montage(_drawing(session, "top", scale=1))
        montage(_drawing(session, "layers", scale=1))
        gallery(session)
        units = sum(layer.channels for layer in session.layers)
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    report.result(
        f"\nDone in {minutes} min {seconds} s, {units} units. Open this page in a browser, and:\n"
        f"  {folder}/gallery/index.html           every unit of every layer\n"
        f"  {folder}/figures/optimized/fc8.png    what each class looks like to the network\n"
        f"  {folder}/figures/top/conv5.png        projections beside the strongest image patches\n"
        f"  {folder}/figures/layers/all.png       all layers at one scale\n"
        f"  {folder}/figures/filters/conv1.png    the first layer's filters"
    )


def _drawing(session: Session, kind: str, scale: int) -> Session:
    """Return the same session with a plan for one kind of figure."""
    figure = FigurePlan(scale=scale)
    plan = replace(session.plan, montage=MontagePlan(kind=(kind,)), figure=figure)
    return replace(session, plan=plan)
