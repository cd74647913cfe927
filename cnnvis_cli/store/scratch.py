"""Large arrays of work in progress, on disk instead of in memory."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.errors import StorageError


def scratch(folder: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an array of bytes in a file without a name: it vanishes however the process ends.

    Its room is reserved at once, since a full disk under a mapped file ends the process. Raise
    `StorageError` if there is too little.
    """
    size = math.prod(shape)
    if not size:  # an empty file can be neither reserved nor mapped
        return np.empty(shape, np.uint8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"cannot keep {size >> 20} MB in {folder}: {reason}") from error
    finally:
        with suppress(OSError):  # parts of other work are in it
            folder.rmdir()
