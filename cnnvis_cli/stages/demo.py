"""`cnnvis demo`: the whole pipeline on the bundled network and generated images."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from cnnvis_cli.dataset.decode import write_png
from cnnvis_cli.dataset.synthetic import CLASSES, draw
from cnnvis_cli.plan import MontagePlan, OptimizePlan, Plan
from cnnvis_cli.report import Report
from cnnvis_cli.stages.pipeline import run_all
from cnnvis_cli.stages.session import open_session

PER_CLASS = 25
FIRST_SEED = 2_000_000  # images that the network was neither trained nor tested on


def demo(plan: Plan, report: Report) -> None:
    """Draw a small dataset, run all four stages on all layers, and name the pictures to open."""
    folder = Path(plan.run or "outputs/demo")
    images = folder.with_name(f"{folder.name}-images")
    start = time.monotonic()
    _draw_images(images, report)
    settings = replace(
        plan,
        model="demo",
        dataset=str(images),
        run=str(folder),
        optimize=OptimizePlan(iterations=96),
        montage=MontagePlan(scale=2),
    )
    quiet = Report(quiet=report.quiet, verbose=report.verbose)
    with open_session(settings, quiet) as session:
        run_all(session)
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    report.result(
        f"\nDone in {minutes} min {seconds} s. Open these pictures:\n"
        f"  {folder}/figures/optimized/conv5.png   what each unit of conv5 prefers\n"
        f"  {folder}/figures/optimized/fc8.png     what each class looks like to the network\n"
        f"  {folder}/figures/top/conv5.png         projections beside the strongest image patches\n"
        f"  {folder}/figures/                      and the other layers"
    )


def _draw_images(folder: Path, report: Report) -> None:
    """Class folders of generated images; those that are there already are kept."""
    names = [(name, number) for name in CLASSES for number in range(PER_CLASS)]
    for name, number in report.track(names, "drawing", len(names), "images"):
        path = folder / name / f"{number:03d}.png"
        if not path.exists():
            write_png(path, draw(name, FIRST_SEED + number))
