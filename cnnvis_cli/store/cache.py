"""What can be computed again, kept between commands in the user's cache folder.

An entry is a small file that appears complete and is never changed; whatever is wrong with one, or
with the folder, its value is computed again. The folder can be deleted at any time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from cnnvis_cli.digests import digest
from cnnvis_cli.errors import StorageError
from cnnvis_cli.store.publish import publish

LARGEST = 1 << 24  # bytes of an entry


def cache_folder() -> Path:
    """Return the folder: ``cnnvis`` in XDG_CACHE_HOME, or in ``~/.cache``."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "cnnvis"


def remembered(
    kind: str,
    key: dict[str, Any],
    make: Callable[[], Any],
    read: Callable[[Any], Any] = lambda kept: kept,
) -> Any:
    """Return what belongs to a key: a kept value as `read` turns it out, or what `make` returns.

    What is kept is plain, or a dataclass of plain values.
    """
    path = None
    with suppress(OSError, RuntimeError, ValueError, LookupError, TypeError):
        path = cache_folder() / f"{kind}-{digest(key)}.json"  # RuntimeError: there is no home
        return read(_kept(path, key))
    found = make()
    value = asdict(found) if is_dataclass(found) and not isinstance(found, type) else found
    if path is not None:
        with suppress(StorageError):
            publish(
                path, json.dumps({"key": key, "value": value, "digest": digest(value)}).encode()
            )
    return found


def _kept(path: Path, key: dict[str, Any]) -> Any:
    """Return the value of an entry; raise `ValueError` for one that is damaged or not ours."""
    about = path.stat()
    if about.st_size > LARGEST or about.st_uid != os.geteuid():
        raise ValueError("not an entry")
    entry = json.loads(path.read_bytes())
    if entry["key"] != json.loads(json.dumps(key)) or entry["digest"] != digest(entry["value"]):
        raise ValueError("damaged")
    return entry["value"]
