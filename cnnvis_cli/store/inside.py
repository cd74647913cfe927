"""What is in a run directory is a regular file or a folder, or it is refused by name.

A run directory may come from anywhere. A link there may lead to files of yours, and a pipe or a
device in a file's place would hang its reader. So nothing below a run directory is followed outside
it. The directory itself may be a link: that is its owner's choice.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from cnnvis_cli.errors import CnnvisError, StorageError, UsageError

OWN_FOLDERS = frozenset(
    {
        *("optimized", "projected", "search", "saliency", "occluded", "activations"),
        *("typical", "typical-mean"),
        *("figures", "gallery", "parts", "shards", "receipts"),
    }
)
OWN_FILES = re.compile(
    r"run\.json|(skipped|names|paths|scores)\.tsv|styles\.toml|[^.].*\.h5|\.(lock|progress|failed)(-.+)?"
)
_KINDS = (
    *((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder")),
    *((stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device")),
)


def is_ours(name: str) -> bool:
    """Return whether a name in a run directory is one that cnnvis uses."""
    return name in OWN_FOLDERS or OWN_FILES.fullmatch(name) is not None


def check_inside(run: Path) -> None:
    """Raise `UsageError` for a link, a pipe or the like among all that cnnvis uses there.

    Raise `StorageError` for a folder that cannot be listed, since it may hold some. Other names in
    the run directory are not looked at.
    """
    pending = list(_folders(entry for entry in _entries(run) if is_ours(entry.name)))
    while pending:
        pending += _folders(_entries(pending.pop()))


def _folders(entries: Iterable[os.DirEntry[str]]) -> Iterator[Path]:
    """Yield the folders; raise `UsageError` for all but them and regular files."""
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)
        elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
            raise refused(Path(entry.path))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder; nothing if it has gone."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed ({error.strerror})") from None


def refused(path: Path) -> UsageError:
    """Return the refusal of what is no regular file."""
    mode = path.lstat().st_mode if os.path.lexists(path) else 0
    if stat.S_ISLNK(mode):
        return UsageError(
            f"{path}: is a link, and cnnvis follows none in a run directory: put what it leads to "
            "in its place, or remove it; only the run directory itself may be a link"
        )
    found = next((name for is_kind, name in _KINDS if is_kind(mode)), "not a regular file")
    return UsageError(f"{path}: is {found}, where cnnvis has a file of its own; remove it")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return the descriptor of a file in a run directory.

    Raise `UsageError` if it is no regular file, and OSError as `os.open` does.
    """
    try:
        number = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV):
            raise refused(path) from None
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise refused(path)
    return number


def read_regular(path: Path) -> bytes:
    """Return the content of a file in a run directory; raise as `open_regular` does."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def check_regular(path: Path) -> os.stat_result:
    """Return the state of a file that is opened by its name; raise as `open_regular` does."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise refused(path)
    return found


def no_folder(path: Path) -> CnnvisError:
    """Return the error for a run directory that cannot be: a file, in a file, or a link nowhere."""
    files = [place for place in (path, *path.parents) if place.exists() and not place.is_dir()]
    if files:
        return UsageError(f"{files[0]}: is a file, and a run is a folder; choose another --run")
    return StorageError(
        f"{path}: leads to a folder that is not there; bring it back, or choose another --run"
    )
