"""Folders that are read name by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Open a folder's descriptor: looking up names from there is faster than whole paths."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield number
    finally:
        os.close(number)
