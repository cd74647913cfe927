"""Are the pictures of a run grey or saturated? `python tests/steps.py outputs/run`

For each layer and style: the step that was found, the median standard deviation of the images in
grey levels, the share of values at 0 or 255, the share of images that make their unit the largest
of its layer, and the share that no gradient reached.
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np

from cnnvis_cli.store.optimized import OptimizedFile


def lines(path: Path) -> list[str]:
    """Return one line a style of a layer's file."""
    file, found = OptimizedFile(path), []
    with h5py.File(path) as hdf5:
        mean = np.asarray(hdf5.attrs["mean"], np.float32)
    for style, parameters in file.styles().items():
        image = file.read(style, "image").astype(np.float32)
        outcome = file.read(style, "outcome")
        live = outcome != 3
        clipped = ((image <= -mean + 0.05) | (image >= 255 - mean - 0.05))[live].mean()
        deviation = np.median(image[live].std(axis=(1, 2, 3)))
        step = parameters["policy"].get("rate", parameters["policy"]["kind"])
        found.append(
            f"{path.stem:8}{style:10}{image.shape[2]:4}{step!s:>12}{deviation:8.2f}"
            f"{clipped:9.3%}{(outcome == 1).mean():7.0%}{(outcome == 3).mean():7.1%}"
        )
    return found


def main() -> None:
    print(
        f"{'layer':8}{'style':10}{'size':>4}{'step':>12}{'std':>8}{'clipped':>9}{'lead':>7}{'dead':>7}"
    )
    folder = Path(sys.argv[1]) / "optimized"
    for path in sorted(
        folder.glob("*.h5"), key=lambda p: (p.stem[:2], int(p.stem.lstrip("convf")))
    ):
        print("\n".join(lines(path)))


if __name__ == "__main__":
    main()
