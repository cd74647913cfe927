"""A gallery's scripts of data, and the pictures that each was written for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cnnvis_cli.digests import digest
from cnnvis_cli.figure import site
from cnnvis_cli.store.inside import read_regular


def digest_of_pictures(paths: Iterable[Path]) -> str:
    """Return a digest of the contents of some files, in their order; empty for none."""
    contents = [hashlib.sha256(read_regular(path)).hexdigest() for path in paths]
    return digest(contents) if contents else ""


def is_made(script: Path, key: str, pictures: Sequence[Path]) -> bool:
    """Return whether a script exists, made from the sources of a key, with its own pictures."""
    with suppress(OSError):
        found = read_regular(script)
        if site.script_key(found) == key and all(map(Path.is_file, pictures)):
            return site.pictures_of(found) in ("", digest_of_pictures(pictures))
    return False
