"""When features appear in training, after Zeiler & Fergus 2013, section 4.1.

    make evolution

runs `python docs/evolution.py`: it trains the demo network (12 minutes on one core) and keeps its
weights before training and after 1, 2, 4 and 8 epochs, finds the strongest images of every unit at
each time, and compares each time with the end by `cnnvis compare`. It prints a table of the
layers and draws units' strongest patches over time. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Doubles
from cnnvis_cli.figure.sheets import Caption, Cell, CellRow, Pane, rows_of_cells
from cnnvis_cli.measures.likeness import centred
from cnnvis_cli.nouns import Unit
from cnnvis_cli.report import Report
from cnnvis_cli.stages.numbers.counterparts import SideBySide
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.sample_file import SampleFile

EPOCHS = (0, 1, 2, 4, 8)
SHOWN = {"conv1": (1, 20), "conv2": (4, 40), "conv4": (5, 77), "conv5": (9, 50), "fc8": (4, 20)}
SIDE = 40  # pixels of a patch
NOTE = (
    "The nine strongest patches of two units per layer in 600 images, before training and after "
    "1, 2, 4 and 8 epochs; r: the correlation of the unit's values with those at the end."
)


def python(*words: str) -> None:
    """Run a module of the package; end with its exit code if it fails."""
    print("python -m", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", *words], check=False).returncode
    if code:
        sys.exit(code)


def trained(folder: Path) -> dict[int, Path]:
    """Return the weights after each number of epochs, made if they are not there."""
    weights = {epoch: folder / f"demo-{epoch}.safetensors" for epoch in EPOCHS}
    if not all(path.is_file() for path in weights.values()):
        output = ("--output", str(folder / "demo.safetensors"))
        keep = ("--keep", *map(str, EPOCHS))
        python("cnnvis_cli.demo.training", *output, *keep)
    return weights


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a comparison's table of layers."""
    with next(path.glob("*-layers.tsv")).open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def own_correlations(run: Path, last: Path) -> dict[str, Doubles]:
    """Return the correlation of each unit's values with its own at the end, by layer."""
    early, late = (SampleFile(each / "sample.h5") for each in (run, last))
    found = {}
    for layer in late.layers():
        both = (centred(file.values(layer)).astype(float) for file in (early, late))
        x, y = (values / np.maximum(np.linalg.norm(values, axis=0), 1e-12) for values in both)
        found[layer] = (x * y).sum(axis=0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/evolution"))
    folder: Path = parser.parse_args().folder
    runs = {epoch: folder / f"epoch-{epoch}" for epoch in EPOCHS}
    images = "demo"
    for epoch, weights in trained(folder).items():
        network = ("--model", "demo", "--weights", str(weights))
        python("cnnvis_cli", "topk", images, *network, "--run", str(runs[epoch]), "--sample", "600")
        images = f"{runs[EPOCHS[0]]}-images"  # which the first has drawn
    layers = {}
    for epoch, run in runs.items():
        python("cnnvis_cli", "compare", str(run), str(runs[EPOCHS[-1]]), "--quiet", "--json")
        layers[epoch] = table(run / "figures/compare")
    same = {epoch: own_correlations(run, runs[EPOCHS[-1]]) for epoch, run in runs.items()}
    tell(layers, same)
    (folder / "evolution.jpg").write_bytes(drawn(runs, same))
    print(folder / "evolution.jpg")


def tell(layers: dict[int, list[dict[str, str]]], same: dict[int, dict[str, Doubles]]) -> None:
    """Print by epoch how alike each layer is to itself at the end."""
    print("CKA with the end; median correlation of units with themselves at the end")
    print(" " * 8, *(f"{epoch:>6}" for epoch in EPOCHS), " ", *(f"{e:>6}" for e in EPOCHS))
    for number, row in enumerate(layers[EPOCHS[0]]):
        alike = (float(layers[epoch][number]["cka"]) for epoch in EPOCHS)
        own = (float(np.median(same[epoch][row["layer"]])) for epoch in EPOCHS)
        shown = (*(f"{value:6.2f}" for value in alike), " ", *(f"{value:6.2f}" for value in own))
        print(f"{row['layer']:8}", *shown)


def drawn(runs: dict[int, Path], same: dict[int, dict[str, Doubles]]) -> bytes:
    """Return a figure of some units over time."""
    report = Report(quiet=True)
    last = Run(runs[EPOCHS[-1]])
    sides = {epoch: SideBySide.of(Run(run), last, report).one for epoch, run in runs.items()}
    rows = []
    for layer, numbers in SHOWN.items():
        cells = []
        for unit in (Unit(layer, number) for number in numbers):
            panes = []
            for epoch, side in sides.items():
                title = f"{epoch}: r {same[epoch][layer][unit.channel]:.2f}"
                panes.append(Pane(side.strongest(unit, SIDE), title=title))
            cells.append(Cell(str(unit), tuple(panes)))
        rows.append(CellRow(layer, tuple(cells), 1))
    caption = Caption("The demo network in training, by epochs", NOTE)
    return rows_of_cells(rows, caption).jpeg({"Title": caption.title}, 70)


if __name__ == "__main__":
    main()
