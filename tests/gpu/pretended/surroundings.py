"""The environment in which a command, and every interpreter that it starts, has the device."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parents[1]  # sitecustomize is here
SWITCH = "PRETEND_CUDA"  # how many devices there are; nothing is pretended without it
COUNTED = "PRETEND_COUNTS"  # a folder: each process writes there what it has counted
EXCLUSIVE = "PRETEND_EXCLUSIVE"  # a folder of locks: each device is for one process
FREE = "PRETEND_FREE"  # bytes of free memory a device; a larger tensor finds none


def surroundings(
    devices: int = 2,
    counts: Path | None = None,
    exclusive: Path | None = None,
    free: int | None = None,
) -> dict[str, str]:
    """Return the environment variables that put a command on pretended devices.

    They come on top of this process's own; the package under test is found as it is here.
    """
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    asked = {COUNTED: counts, EXCLUSIVE: exclusive, FREE: free}
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        SWITCH: str(devices),
        **{name: str(value) for name, value in asked.items() if value is not None},
    }
