"""Where ascents start, and the directions that they follow, from files of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.ascent.objectives import Objective, check_directions, parse_sum
from cnnvis_cli.dataset.decode import Unreadable, decode
from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.strongest import strongest_windows
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.settings import OptimizePlan
from cnnvis_cli.stages.common.session import Session

STARTS = ("noise", "uniform", "mean")


def start_record(start: str) -> str:
    """Return the start by name, an image by its content."""
    path = Path(start)
    return file_digest(path) if start not in STARTS and path.is_file() else start


def given_start(session: Session, box: Box) -> Tensor | None:
    """Return the start image that the plan names, mean-subtracted: (3, h, w); None if drawn."""
    start = session.plan.optimize.start
    if start in ("noise", "uniform"):
        return None
    if start == "mean":
        return torch.zeros(3, *box.size)
    whole = session.network.centre(torch.from_numpy(start_pixels(session))[None])[0].cpu()
    return whole[:, box.top : box.bottom, box.left : box.right].clone()


def start_pixels(session: Session) -> Pixels:
    """Return the image file that the plan names as the network takes it: (H, W, 3)."""
    start = session.plan.optimize.start
    try:
        pixels = decode(Path(start).read_bytes(), session.network.preprocessing)
    except OSError as error:
        raise UsageError(
            f"--start {start}: use noise, uniform, mean or an image file ({error.strerror})"
        ) from None
    except Unreadable as error:
        raise UsageError(f"--start {start}: cannot be used as an image ({error})") from None
    return pixels.copy()


@dataclass(frozen=True)
class Patches:
    """The part of a photograph at which each target's ascent begins."""

    whole: Pixels  # (H, W, 3)
    boxes: tuple[Box, ...]  # by target

    def pixels(self, target: int) -> Pixels:
        """Return a target's part, (h, w, 3)."""
        box = self.boxes[target]
        return self.whole[box.top : box.bottom, box.left : box.right]

    def centred(self, target: int, mean: Tensor) -> Tensor:
        """Return it mean-subtracted, (3, h, w); `mean` is (1, 3, 1, 1)."""
        pixels = torch.from_numpy(self.pixels(target).copy())
        return pixels.permute(2, 0, 1).float() - mean[0].cpu()


def strongest_patches(session: Session, layer: Layer, canvas: Box, objective: Objective) -> Patches:
    """Return where each target answers most, among the places that see nothing but the photograph.

    That is the whole photograph if the canvas is.
    """
    network, whole = session.network, start_pixels(session)
    count = layer.channels if objective.directions is None else len(objective.directions)
    if canvas == Box.whole(network.size):
        return Patches(whole, (canvas,) * count)
    with torch.no_grad():
        x = network.centre(torch.from_numpy(whole)[None])
        maps = network.values(layer, Box.whole(network.size), x)[0][0].cpu()  # (C, h, w)
    values = maps
    if objective.directions is not None:
        values = torch.einsum("nc,chw->nhw", objective.directions.to(maps), maps)
    return Patches(whole, strongest_windows(layer.field, objective.sign * values, network.size))


def directions_of(settings: OptimizePlan, layer: Layer) -> tuple[Tensor | None, tuple[str, ...]]:
    if settings.sum:
        rows = [parse_sum(text, layer.channels, layer.alias) for text in settings.sum]
        return check_directions(torch.tensor(rows), layer.channels, "--sum"), settings.sum
    if settings.direction is None:
        return None, ()
    path = Path(settings.direction)
    found = check_directions(_read_numbers(path), layer.channels, f"--direction {path}")
    name = f"{path.name}:{file_digest(path)[:16]}"
    return found, tuple(f"{name}:{row}" for row in range(len(found)))


def _read_numbers(path: Path) -> Tensor:
    """Return the numbers of an .npy file; raise `UsageError` for anything else."""
    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"--direction {path}: cannot be read ({error.strerror})") from None
    except (ValueError, EOFError):
        raise UsageError(f"--direction {path}: is not an .npy file of numbers") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise UsageError(f"--direction {path}: is not an .npy file of real numbers")
    return torch.from_numpy(found.astype(np.float32))
