"""Where in an image units are strongest."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnvis_cli.nouns import Box, ReceptiveField, Size


def strongest_windows(field: ReceptiveField, values: Tensor, size: Size) -> tuple[Box, ...]:
    """Return the window of each map's largest value, of those inside an image of `size`.

    `values` are (n, rows, columns), on the CPU; a map has at least one such place. The first of
    equal ones is taken.
    """
    _, rows, columns = values.shape
    boxes = [field.box(row, column) for row in range(rows) for column in range(columns)]
    seen = torch.tensor([box.inside(size) for box in boxes])
    found = values.flatten(1).masked_fill(~seen, -torch.inf)
    return tuple(boxes[place] for place in found.argmax(dim=1).tolist())
