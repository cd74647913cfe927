"""The pictures of README and docs, made again: `make figures`.

    python tests/docs/draw_figures.py [WORK] [--weights FILE [--images FOLDER]] [--only NAME]...

WORK, by default outputs/figures, keeps the runs, so that the pictures alone are made when it is
called again. --weights, SqueezeNet's of ImageNet, also makes the picture at the top of README, and
--images, photographs, that of three styles side by side (no photograph is in it).
Takes half an hour of two cores at first, most of it ascents.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import cnnvis_cli

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"  # of this checkout
CAT = "demo-images/cat/003.png"
SHOWN = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc8")  # layers of the figure of all layers
CLASSES = (
    "1,71,76,84,107,130,277,323,327,388,409,417,"
    "483,511,607,643,723,780,849,883,949,954,980,987"
)  # of ImageNet, whose pictures a stranger can name
FEW_CLASSES = "71,130,277,417,483,607,849,949"


class Drawing(NamedTuple):
    """A picture of the docs, the command lines that make it, and the file that they make."""

    name: str
    lines: tuple[str, ...]
    file: str


def drawings(weights: str | None, images: str | None) -> Iterator[Drawing]:
    """Yield all pictures; those of real networks only with their weights."""
    yield Drawing(
        "demo-top.png",
        ("montage top --together --run demo -l conv3 -l conv5 --units 3,19,22,58",),
        "demo/figures/top/all.png",
    )
    yield Drawing(
        "demo-optimized-fc8.png",
        ("montage optimized --run demo -l fc8",),
        "demo/figures/optimized/fc8.png",
    )
    yield Drawing("demo-filters.png", ("filters --run demo",), "demo/figures/filters/conv1.png")
    for command, file in (
        (f"activations {CAT} --model demo --run one", "activations/003/all.png"),
        (f"saliency {CAT} --model demo --run one --scale 2", "saliency/003_predicted.png"),
        (f"occlude {CAT} --model demo --run one", "occlude/003_conv5.png"),
    ):
        yield Drawing(f"demo-{command.split()[0]}.png", (command,), f"one/figures/{file}")
    yield Drawing(
        "demo-unit-fc8.png",
        (
            "optimize --run styles -l fc8 --units 10 --runs 9",
            "montage unit --run styles -l fc8 --units 10 --style natural",
        ),
        "styles/figures/unit/fc8_0010.png",
    )
    yield Drawing(
        "demo-styles-fc8.png",
        (
            "optimize --run styles -l fc8 --units 13,16 --runs 9 "
            "--style 1 --style 2 --style 3 --style 4",
            "montage styles --run styles -l fc8 --units 13,16 --together --scale 0.75 "
            "--style 1 --style 2 --style 3 --style 4",
        ),
        "styles/figures/styles/fc8.png",
    )
    yield Drawing(
        "demo-layers.png",
        (
            *(
                f"optimize --run layers -l {layer} --runs 4 --units {best_units(layer)}"
                for layer in SHOWN
            ),
            "montage layers --run layers --best 8 --scale 0.5 "
            + " ".join(f"-l {n}" for n in SHOWN),
        ),
        "layers/figures/layers/all.png",
    )
    yield Drawing(
        "demo-fourier-fc8.png",
        (
            "optimize --model demo -l fc8 --style fourier --runs 2 --run modern",
            "montage optimized --run modern",
        ),
        "modern/figures/optimized/fc8.png",
    )
    yield Drawing(
        "demo-search-conv4.png",
        ("search --model demo -l conv4 --trials 24 --iterations 200 --run search",),
        "search/figures/search/conv4.png",
    )
    if weights is not None:
        yield Drawing(
            "squeezenet-classes.jpg",
            (
                f"optimize -m squeezenet1_0 -w {weights} -l conv26 --mean --run classes "
                f"-u {CLASSES}",
                f"montage optimized --run classes -l conv26 -u {CLASSES} --columns 2 --dpi 118 "
                "--points 9",
            ),
            "classes/figures/optimized/conv26.png",
        )
    if weights is not None and images is not None:
        yield Drawing(
            "squeezenet-styles.jpg",
            (
                f"topk {images} -m squeezenet1_0 -w {weights} --run photographs",
                f"optimize --run photographs -l conv26 --mean -u {FEW_CLASSES} --style fourier "
                "--style natural --style typical",
                f"montage styles --run photographs -l conv26 -u {FEW_CLASSES} "
                "--style fourier-mean --style natural-mean --style typical-mean --together "
                "--scale 0.6",
            ),
            "photographs/figures/styles/conv26.png",
        )


def best_units(layer: str) -> str:
    """Return the eight units of the demo's layer with the largest values, as --units takes them."""
    run = cnnvis_cli.open("demo")
    units = sorted(run[layer], key=lambda unit: -unit.stats["max"])[:8]
    return ",".join(str(unit.channel) for unit in units)


def cnnvis(line: str, work: Path) -> None:
    """Run a command line in the work folder."""
    print(f"cnnvis {line}", flush=True)
    subprocess.run([sys.executable, "-m", "cnnvis_cli", *line.split(), "-q"], cwd=work, check=True)


def begun(work: Path) -> None:
    """Make the demo's run, and copies of it without its optimized images."""
    cnnvis("demo --run demo", work)
    for name in ("styles", "layers"):
        if not (work / name).exists():
            left_out = shutil.ignore_patterns("optimized", "receipts", "figures", "gallery")
            shutil.copytree(work / "demo", work / name, ignore=left_out)


def kept(source: Path, target: Path) -> None:
    """Copy a picture into docs/figures; one that is there unchanged is left alone."""
    if target.suffix == ".jpg":
        with Image.open(source) as image:
            image.convert("RGB").save(target, quality=82, subsampling=0, progressive=True)
    elif not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)


def gallery_seen(work: Path) -> None:
    """Take a picture of the gallery in Chromium; say so where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("gallery.png: there is no chromium on the PATH; left as it is")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 720})
        page.goto((work / "demo/gallery/index.html").resolve().as_uri() + "#conv5/0058")
        page.locator("section:not([hidden]) h2").first.wait_for()
        page.wait_for_timeout(2000)
        page.screenshot(path=work / "gallery.png")
        browser.close()
    with Image.open(work / "gallery.png") as image:
        image.convert("RGB").quantize(256).save(FIGURES / "gallery.png", optimize=True)


def notebook_run(work: Path) -> None:
    """Run docs/notebook.ipynb from its first cell to its last, and keep its outputs."""
    from importlib import import_module

    from nbclient import NotebookClient

    nbformat: Any = import_module("nbformat")  # has no types

    path = FIGURES.parent / "notebook.ipynb"
    notebook = nbformat.read(path, as_version=4)
    about = notebook.metadata.copy()
    shutil.rmtree(work / "outputs", ignore_errors=True)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": work}}).execute()
    notebook.metadata = about
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="?", type=Path, default=Path("outputs/figures"))
    parser.add_argument("--weights")
    parser.add_argument("--images")
    parser.add_argument("--only", action="append", default=[])
    given = parser.parse_args()
    weights, images = (path and str(Path(path).resolve()) for path in (given.weights, given.images))
    given.work.mkdir(parents=True, exist_ok=True)
    begun(given.work)
    os.chdir(given.work)
    for drawing in drawings(weights, images):
        if given.only and drawing.name not in given.only:
            continue
        for line in drawing.lines:
            cnnvis(line, Path())
        kept(Path(drawing.file), FIGURES / drawing.name)
    if not given.only or "gallery.png" in given.only:
        gallery_seen(Path())
    if not given.only or "notebook.ipynb" in given.only:
        notebook_run(Path().resolve())


if __name__ == "__main__":
    main()
