"""Small figures beside the pictures that they should be: ``python -m tests.figure.test_golden``
draws those anew; look at them before they are committed.

Pillow and FreeType differ a little from version to version, so most pixels must be near.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.lines import Plot, plots
from cnnvis_cli.figure.sheets import (
    Caption,
    Cell,
    CellRow,
    Pane,
    rows_of_cells,
    sheet,
    single,
    toolbox_montage,
)
from cnnvis_cli.figure.tone import TONE_RULES, toned

GOLDEN = Path(__file__).parent / "golden"


def waves(seed: int, count: int, side: int) -> Pixels:
    """Toned pictures (count, side, side, 3) of coloured waves."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    angle, pitch, hue = draw.uniform((0, 2, 0), (np.pi, 6, 6), (count, 3)).T[..., None, None]
    phase = 2 * np.pi * pitch * (np.cos(angle) * x + np.sin(angle) * y)
    colours = np.cos(hue[..., 0] + np.array([0, 2, 4]))[:, None, None]
    signal = np.sin(phase)[..., None] * colours * np.exp(-8 * (x**2 + y**2))[..., None]
    found: Pixels = toned(signal[None].astype(np.float32), "max")[0]
    return found


CAPTION = Caption(
    "demo conv5 (features.10) · 6 of 64 units", f"Preferred images. {TONE_RULES['max']}."
)


def optimized() -> Canvas:
    tiles = waves(0, 6, 40)
    cells = [Cell.of(f"{n} bird", tile, dead=n == 4) for n, tile in enumerate(tiles)]
    return sheet(cells, CAPTION)


def small() -> Canvas:
    return sheet([Cell.of(f"{n}", tile) for n, tile in enumerate(waves(1, 24, 9))], CAPTION, 2)


def top() -> Canvas:
    names = ("cat", "butterfly", "night train", "n01440764", "")
    cells = [
        Cell(f"{n}", (Pane(waves(n, 5, 50), 3, ("",) * 5), Pane(waves(9 + n, 5, 50), 3, names)))
        for n in range(2)
    ]
    return sheet(cells, CAPTION)


def styles() -> Canvas:
    panes = tuple(Pane(waves(n, 4, 30), 2, title=f"style {n}") for n in (1, 2, 3, 4))
    return single(Cell("3", panes, across=2), CAPTION)


def layers() -> Canvas:
    sizes = {"fc8": 60, "conv3": 30, "conv1": 7}
    rows = [
        CellRow(name, tuple(Cell(f"{n} fish", (Pane(waves(n, 4, side), 2),)) for n in range(2)))
        for name, side in sizes.items()
    ]
    return rows_of_cells(rows, CAPTION)


def history() -> Canvas:
    steps = np.arange(0, 80, 8)
    values = np.stack([np.log1p(steps) * 3 - 2, np.sqrt(steps) - 1])
    return plots([Plot("7", steps, values, np.array([72, 40]))], CAPTION)


def toolbox() -> Canvas:
    return toolbox_montage({"1": waves(1, 9, 20), "3": waves(3, 9, 20)})


FIGURES: tuple[Callable[[], Canvas], ...] = (
    optimized,
    small,
    top,
    styles,
    layers,
    history,
    toolbox,
)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_looks_as_it_did(figure: Callable[[], Canvas]) -> None:
    found = figure().pixels.astype(int)
    golden = np.asarray(Image.open(GOLDEN / f"{figure.__name__}.png").convert("RGB"))
    assert found.shape == golden.shape
    apart = np.abs(found - golden).max(axis=-1)
    assert apart.mean() < 1
    assert (apart <= 12).mean() > 0.98


def test_a_golden_picture_would_tell() -> None:
    """Two tiles that change places are seen."""
    golden = np.asarray(Image.open(GOLDEN / "optimized.png").convert("RGB")).astype(int)
    cells = [Cell.of(f"{n} bird", tile) for n, tile in enumerate(waves(0, 6, 40)[::-1])]
    apart = np.abs(sheet(cells, CAPTION).pixels.astype(int) - golden).max(axis=-1)
    assert (apart <= 12).mean() < 0.98


if __name__ == "__main__":
    for draw in FIGURES:
        (GOLDEN / f"{draw.__name__}.png").write_bytes(draw().png({}))
