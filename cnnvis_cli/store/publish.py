"""Files that are complete or absent: written beside their final name, then moved into place.

A reader never sees half a file, whatever kills the writer, and two writers never mix their halves.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cnnvis_cli.errors import StorageError
from cnnvis_cli.store.seals import USER_BLOCK, seal_of

if TYPE_CHECKING:
    import h5py


@contextmanager
def publishing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that appears at `path`, complete and on disk, when the block ends.

    If the block raises, nothing appears and the old content of `path` stays. Raise `StorageError`
    if the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(path: Path, content: bytes) -> None:
    """Write a small file atomically; raise `StorageError`."""
    with publishing(path) as file:
        file.write(content)


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # as above


def is_temporary(name: str) -> bool:
    """Return whether a name is one that `publishing` gives to a file that is not complete yet."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_remains(folder: Path) -> None:
    """Remove remains of killed writers in a folder and below; only for the lock's holder."""
    for place, _, names in os.walk(folder):
        for name in filter(is_temporary, names):
            with suppress(OSError):
                Path(place, name).unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNKNOWN_THERE:
            raise
    finally:
        os.close(handle)


_UNKNOWN_THERE = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)  # of systems without it


class _Guarded(io.RawIOBase):
    """A file for HDF5 that never fails while HDF5 uses it.

    HDF5 crashes with a segmentation fault when a write fails while it closes a file. So the first
    failure is kept, everything after it is ignored, and the writer raises it at the end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0
        self.failure: OSError | None = None

    def _try(self, action: Any, *arguments: Any, otherwise: Any) -> Any:
        if self.failure is None:
            try:
                return action(*arguments)
            except OSError as error:
                self.failure = error.with_traceback(None)  # its frames hold HDF5's buffer
        return otherwise

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._try(self._file.seek, offset, whence, otherwise=self._size))

    def tell(self) -> int:
        return int(self._try(self._file.tell, otherwise=0))

    def readinto(self, buffer: Any) -> int:
        return int(self._try(self._file.readinto, buffer, otherwise=len(buffer)))  # type: ignore[attr-defined]

    def write(self, content: Any) -> int:
        self._size += len(content)
        return int(self._try(self._file.write, content, otherwise=len(content)))

    def truncate(self, size: int | None = None) -> int:
        return int(self._try(self._file.truncate, size, otherwise=size or 0))

    def flush(self) -> None:
        if not self.closed:
            self._try(self._file.flush, otherwise=None)


@contextmanager
def publishing_hdf5(path: Path) -> Iterator[h5py.File]:
    """Build an HDF5 file that appears at `path`, complete and sealed, when the block ends.

    The same content gives the same bytes. Raise `StorageError` if the disk is full or fails.
    """
    import h5py  # imported here: small files are published without it

    with publishing(path) as file:
        guarded = _Guarded(file)
        try:
            with h5py.File(guarded, "w", userblock_size=USER_BLOCK) as hdf5:
                yield hdf5
        except (OSError, RuntimeError, ValueError):
            if guarded.failure is None:
                raise
        if guarded.failure is not None:
            raise guarded.failure
        content = seal_of(file)
        file.seek(0)
        file.write(content)
