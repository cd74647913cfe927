"""What must hold of a sheet for a paper, measured on the boxes of its marks."""

from __future__ import annotations

from itertools import combinations

from cnnvis_cli.figure.canvas import Canvas, Mark, PlotArea, TextLine, Tile, extent

LEAST_POINTS = 6.0
Box = tuple[int, int, int, int]


def meet(a: Box, b: Box) -> bool:
    """Return whether two boxes (left, top, width, height) have a pixel in common."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return across > 0 and down > 0


def box_of(mark: Mark) -> Box:
    """Return a mark's box; of a text that of its ink, without the room above small letters."""
    left, top, width, height = extent(mark)
    if isinstance(mark, TextLine):
        return left, top + mark.size // 5, width, height - mark.size // 5
    return left, top, width, height


def faults(canvas: Canvas, width: float) -> list[str]:
    """Return what is wrong with a sheet for a column of so many points; empty if it is right."""
    assert canvas.unit is not None, "not for a paper"
    found = []
    if abs(canvas.size_in_print[0] - width) > 0.01:
        found.append(f"is {canvas.size_in_print[0]} points wide")
    solid = [m for m in canvas.marks if isinstance(m, Tile | TextLine | PlotArea)]
    for mark in canvas.marks:
        left, top, wide, high = extent(mark)
        if left < 0 or top < 0 or left + wide > canvas.width or top + high > canvas.height:
            found.append(f"outside: {told(mark)}")
    for mark in solid:
        if isinstance(mark, TextLine) and mark.size * canvas.unit < LEAST_POINTS:
            found.append(f"{mark.size * canvas.unit} points: {told(mark)}")
    for one, other in combinations(solid, 2):
        if meet(box_of(one), box_of(other)):
            found.append(f"{told(one)} over {told(other)}")
    return found


def told(mark: Mark) -> str:
    return f"{mark.text!r} {mark.place}" if isinstance(mark, TextLine) else f"{extent(mark)}"
