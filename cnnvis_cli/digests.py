"""Digests of contents: equal contents have equal names."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

CODE = (".py", ".js", ".css", ".html", ".svg")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; cached while the file is unchanged."""
    known = path.stat()
    return _file_digest(path, known.st_ino, known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=1024)
def _file_digest(path: Path, inode: int, size: int, changed: int) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # a failed read does not say of what
        raise OSError(error.errno, error.strerror, str(path)) from None


def digest(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a plain value."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def source_digest() -> str:
    """Return a digest of this package's code, and of the files of its pages."""
    folder = Path(__file__).parent
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        if path.suffix in CODE:
            content.update(path.read_bytes())
    return content.hexdigest()[:16]
