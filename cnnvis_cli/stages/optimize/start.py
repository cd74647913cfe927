"""Where ascents start, and the directions that they follow, from files of the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.ascent.objectives import check_directions, parse_sum
from cnnvis_cli.dataset.decode import Unreadable, decode
from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import UsageError
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
    start, network = session.plan.optimize.start, session.network
    if start in ("noise", "uniform"):
        return None
    if start == "mean":
        return torch.zeros(3, *box.size)
    try:
        pixels = decode(Path(start).read_bytes(), network.preprocessing)
    except OSError as error:
        raise UsageError(
            f"--start {start}: use noise, uniform, mean or an image file ({error.strerror})"
        ) from None
    except Unreadable as error:
        raise UsageError(f"--start {start}: cannot be used as an image ({error})") from None
    whole = network.centre(torch.from_numpy(pixels.copy())[None])[0].cpu()
    return whole[:, box.top : box.bottom, box.left : box.right].clone()


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
