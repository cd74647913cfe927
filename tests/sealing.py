"""Files of a run, changed by someone who seals them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from cnnvis_cli.store.seals import USER_BLOCK, seal_of


def seal_again(path: Path) -> None:
    """Make a changed file's seal right."""
    with path.open("rb+") as sealed:
        seal = seal_of(sealed)
        assert len(seal) == USER_BLOCK
        sealed.seek(0)
        sealed.write(seal)


@contextmanager
def altered(path: Path) -> Iterator[h5py.File]:
    """Open a result for changes, and seal it again."""
    with h5py.File(path, "r+") as file:
        yield file
    seal_again(path)
