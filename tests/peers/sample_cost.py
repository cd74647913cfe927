"""What a sample costs in `cnnvis topk`, and its memory, over many images in pairs of runs.

    python tests/peers/sample_cost.py PHOTOGRAPHS -m squeezenet1_0 -w squeezenet1_0.safetensors

The images are crops of the photographs, every other one mirrored, in folders of their classes;
they are kept in --images for another run. Each pair is a `topk` without and one with a sample of
all of them, in alternating order: processor time of the process with its children, and peak memory.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from PIL import Image, ImageOps

SHARE = (0.6, 1.0)  # of the shorter side that a crop has
SIDE = 256  # pixels of a crop


def make_crops(photographs: Path, folder: Path, count: int) -> None:
    """Write so many crops of photographs below `folder`, unless they are there."""
    paths = sorted(
        path for path in photographs.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    draw = random.Random(0)
    for number in range(count):
        source = paths[number % len(paths)]
        goal = folder / source.parent.name / f"{source.stem}-{number // len(paths):04d}.jpg"
        share, across, down = draw.uniform(*SHARE), draw.random(), draw.random()
        if goal.exists():
            continue
        with Image.open(source) as image:
            whole = image.convert("RGB")
        side = max(1, int(share * min(whole.size)))
        left, top = int(across * (whole.width - side)), int(down * (whole.height - side))
        crop = whole.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        goal.parent.mkdir(parents=True, exist_ok=True)
        (ImageOps.mirror(crop) if number // len(paths) % 2 else crop).save(goal, quality=90)


def cost_of_topk(words: list[str], folder: Path) -> tuple[float, float]:
    """Return the seconds of processor time and the peak megabytes of a topk in a new run."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "cnnvis_cli", "topk", *words, "--run", str(folder), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


@click.command(help=__doc__)
@click.argument("photographs", type=click.Path(path_type=Path, exists=True))
@click.option("-m", "--model", required=True)
@click.option("-w", "--weights", required=True)
@click.option("--count", default=10_000, show_default=True, help="Images.")
@click.option("--pairs", default=2, show_default=True)
@click.option("--images", type=click.Path(path_type=Path), help="Where crops are kept.")
def main(
    photographs: Path, model: str, weights: str, count: int, pairs: int, images: Path | None
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = images or Path(place, "images")
        make_crops(photographs, folder, count)
        words = [str(folder), "-m", model, "-w", weights, "--workers", "0"]
        kinds = {"without": words, "with": [*words, "--sample", str(count)]}
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for pair in range(pairs):
            for name in sorted(kinds, reverse=bool(pair % 2)):
                spent, peak = cost_of_topk(kinds[name], Path(place, "run"))
                seconds[name].append(spent)
                print(f"{name:8} {spent:8.1f} s of processor time, {peak:6.0f} MB", flush=True)
        ratio = statistics.median(seconds["with"]) / statistics.median(seconds["without"])
        print(f"with a sample of {count}: {ratio:.3f} of the time without")


if __name__ == "__main__":
    main()
