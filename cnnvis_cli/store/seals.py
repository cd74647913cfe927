"""Seals of HDF5 files: the SHA-256 of all bytes, which tells whether a file is what was written."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from cnnvis_cli.digests import file_digest
from cnnvis_cli.store.inside import open_regular

USER_BLOCK = 512  # bytes before HDF5's first one, which it leaves to its users (the "user block")


def seal_of(file: BinaryIO) -> bytes:
    """Return the user block's content: the SHA-256 of all bytes behind it."""
    file.flush()
    file.seek(USER_BLOCK)
    found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return f"cnnvis sha256 {found}\n".encode().ljust(USER_BLOCK, b"\0")


CHECKED_WHEN_READ = 64 << 20  # bytes: up to this size, checking takes a sixth of the reading time


def seems_intact(path: Path) -> bool:
    """Return False if a file of up to 64 MiB is not what `publishing_hdf5` wrote; raise OSError.

    A process looks once at a file that does not change.
    """
    found = path.lstat()
    state = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
    return found.st_size > CHECKED_WHEN_READ or _intact_once(path, state)


@lru_cache(maxsize=1024)
def _intact_once(path: Path, _state: tuple[int, ...]) -> bool:
    return intact(path)


def content_digest(path: Path) -> str:
    """Return what stands for a file's content: its SHA-256, of a large one that in its seal.

    So a few units of a large file are drawn without reading all of it.
    """
    if path.stat().st_size > CHECKED_WHEN_READ:
        with os.fdopen(open_regular(path), "rb") as file:
            words = file.read(USER_BLOCK).rstrip(b"\0").split()
        if words[:2] == [b"cnnvis", b"sha256"] and len(words) == 3:
            return words[2].decode("ascii", "replace")
    return file_digest(path)


def intact(path: Path) -> bool:
    """Return whether a file is exactly what `publishing_hdf5` wrote; raise `OSError`."""
    with os.fdopen(open_regular(path), "rb") as file:
        written = file.read(USER_BLOCK)
        return written == seal_of(file)
