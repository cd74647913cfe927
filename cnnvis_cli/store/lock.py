"""One process at a time in a run directory.

The lock only saves work: published files are complete even without it. Nothing heavy is imported
here, so that a second start is refused at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cnnvis_cli.errors import Stopped, StorageError
from cnnvis_cli.store.inside import check_inside, no_folder, open_regular, read_regular

NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_open: dict[Path, IO[str]] = {}  # of this process, which may enter its own directory again
_lockless: set[Path] = set()  # those among them without a working lock


def _leave_to_the_parent() -> None:
    """Drop the locks in a forked child: its parent may end before it."""
    for handle in _open.values():
        with suppress(OSError):
            os.close(handle.fileno())
    _open.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextmanager
def alone(
    folder: Path, shard: str | None = None, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Work alone in a run directory; raise `Stopped` (exit code 75) if another process does.

    Shards work side by side, each alone on its own part. A directory that is still empty at the end
    is removed. A file system without locks is no obstacle; a line about it is passed to `say`.

    Raise `UsageError` for a directory with links or the like in it (see `store.inside`).
    """
    folder = folder.absolute()
    if shard is None:
        with _held(folder / NAME, fcntl.LOCK_EX):
            _tell(folder, say)
            yield
        return
    own = folder / f"{NAME}-{file_name(shard)}"
    with _held(folder / NAME, fcntl.LOCK_SH), _held(own, fcntl.LOCK_EX):
        _tell(folder, say)
        yield


def _tell(folder: Path, say: Callable[[str], None] | None) -> None:
    if say is not None and folder / NAME in _lockless:
        say(
            f"{folder}: its file system has no locks, so nothing stops a second start from doing "
            "the same work at the same time"
        )


def file_name(shard: str) -> str:
    """Return a shard, i/n, in a form for file names."""
    return shard.replace("/", "of")


def is_alone(folder: Path) -> bool:
    """Return whether this process alone has a whole run directory, with working locks."""
    path = folder.absolute() / NAME
    return path in _open and path not in _lockless


def may_be_shared(place: Path) -> bool:
    """Return whether others may be working in a directory because its file system has no locks."""
    return any(place.is_relative_to(path.parent) for path in _lockless)


@contextmanager
def _held(path: Path, kind: int) -> Iterator[None]:
    if path in _open:
        yield
        return
    with _taken(path, kind) as handle:
        _open[path] = handle
        try:
            yield
        finally:
            _open.pop(path, None)
            _lockless.discard(path)
            _tidy(path, handle, kind)


_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def _taken(path: Path, kind: int) -> IO[str]:
    """Return the lock file, locked; raise `Stopped` if another process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_inside(path.parent)
        number = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    except (FileExistsError, NotADirectoryError):
        raise no_folder(path.parent) from None
    except OSError as error:
        remedy = "; copy it, or give another --run" if error.errno in _READ_ONLY else ""
        raise StorageError(f"cannot use {path.parent}: {error.strerror}{remedy}") from None
    handle = os.fdopen(number, "a+", encoding="utf-8")
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        with handle:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
        raise Stopped(f"{path.parent} is in use by {holder}; try again when it has ended") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            handle.close()
            raise StorageError(f"{path}: cannot be locked ({error.strerror})") from None
        _lockless.add(path)
    if not _is_at(path, handle):  # its last holder has just removed it
        handle.close()
        return _taken(path, kind)
    if kind == fcntl.LOCK_EX:  # one of several shards writes nothing here
        _write_holder(
            handle, f"process {os.getpid()} on {os.uname().nodename} since {local_time()}\n"
        )
    return handle


def holder(path: Path) -> str | None:
    """Return the holder of a lock file; None if there is none."""
    try:
        with os.fdopen(open_regular(path), encoding="utf-8", errors="replace") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError):
            return read_regular(path).decode("utf-8", "replace").strip() or None
    except OSError:
        pass
    return None


def _is_at(path: Path, handle: IO[str]) -> bool:
    try:
        return path.lstat().st_ino == os.fstat(handle.fileno()).st_ino
    except OSError:
        return False


def local_time() -> str:
    """Return the date and the time of day."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _write_holder(handle: IO[str], text: str) -> None:
    """Write who holds it; a full disk does not matter here.

    A file that has another name as well, elsewhere, is left as it is.
    """
    with suppress(OSError):
        if os.fstat(handle.fileno()).st_nlink > 1:
            return
        handle.truncate(0)
        handle.write(text)
        handle.flush()


def _tidy(path: Path, handle: IO[str], kind: int) -> None:
    """Clear the lock file, and remove it with its folder if that is otherwise empty."""
    if kind == fcntl.LOCK_EX:
        _write_holder(handle, "")
    with suppress(OSError):
        if all(entry.name.startswith(NAME) for entry in path.parent.iterdir()):
            path.unlink()
            path.parent.rmdir()
        elif kind == fcntl.LOCK_EX and not (path.parent / "run.json").exists():
            path.unlink()  # no run has begun in this folder of the user's
