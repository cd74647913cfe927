"""What the page of two runs draws: a matrix and bars as plain numbers, and blocks of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnvis_cli.arrays import Doubles, Pixels
from cnnvis_cli.figure.heat import coloured

CELL, TOP, LEFT = 20, 64, 64  # of the matrix, and the room for the names of both sides
GAP = 2  # pixels between the patches of a block
BARS, BAR_HEIGHT = 24, 38  # of the correlations from 0 to 1
LEGEND_STEPS = 24


def hex_colours(strengths: Doubles) -> list[str]:
    """Return the colours of strengths (n,) from 0 to 1, like ``#160c4a``; NaN as 0."""
    shown = coloured(np.clip(np.nan_to_num(strengths), 0, 1).astype(np.float32)[None])
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in shown[0].tolist()]


def matrix_record(
    values: Doubles, rows: Sequence[str], columns: Sequence[str], chosen: Sequence[int]
) -> dict[str, Any]:
    """Return a matrix (rows, columns) as squares with colours, one of each row being chosen."""
    places = range(LEFT, LEFT + CELL * len(columns), CELL)
    found = []
    for number, (name, own) in enumerate(zip(rows, values, strict=True)):
        said = [f"{name} beside {other}: {v:.2f}" for other, v in zip(columns, own, strict=True)]
        cells = list(zip(places, hex_colours(own), said, strict=True))
        y = TOP + CELL * number
        found.append({"name": name, "y": y, "cells": cells, "chosen": places[chosen[number]]})
    heads = [{"name": c, "x": x + CELL * 0.7} for c, x in zip(columns, places, strict=True)]
    size = {"width": LEFT + CELL * len(columns), "height": TOP + CELL * len(rows)}
    return {"rows": found, "columns": heads, "cell": CELL, "top": TOP, "left": LEFT, **size}


def legend_colours() -> list[str]:
    return hex_colours(np.linspace(0, 1, LEGEND_STEPS))


def correlation_bars(correlations: Doubles, chance: float) -> list[tuple[float, bool]]:
    """Return the height of each bar from 0 to 1, and whether it is above chance.

    A bar that holds the chance level itself counts as above.
    """
    counts, edges = np.histogram(np.clip(correlations, 0, 1), BARS, (0, 1))
    heights = (BAR_HEIGHT * counts / max(1, counts.max())).round(1).tolist()
    return list(zip(heights, (edges[1:] > chance).tolist(), strict=True))


def patch_block(patches: Pixels) -> Pixels:
    """Return nine patches (9, h, w, 3) as a square of three rows, white between them."""
    height, width = patches.shape[1:3]
    block = np.full((3 * height + 2 * GAP, 3 * width + 2 * GAP, 3), 255, np.uint8)
    for number, patch in enumerate(patches):
        top, left = number // 3 * (height + GAP), number % 3 * (width + GAP)
        block[top : top + height, left : left + width] = patch
    return block


def percent_of(share: float) -> str:
    """Return a share in whole per cent; 99 and 1 where it is not quite all or nothing."""
    rounded = round(100 * share)
    shown = min(99, rounded) if share < 1 else rounded
    return f"{max(1, shown) if share > 0 else 0} %"
