"""The bytes of an image: in a plain file, or in a container that is never extracted."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from cnnvis_cli.dataset import parquet
from cnnvis_cli.dataset.kinds import (
    AWAY,
    FIRST_BYTES,
    HIDDEN,
    LASTING,
    NESTED,
    PACKED,
    SPECIAL,
    Found,
    Unreadable,
    folders_of,
    is_hidden,
    is_image,
    kind_left,
)
from cnnvis_cli.dataset.samples import Member, images_of_sample, is_image_member, key_of
from cnnvis_cli.errors import Gone, StorageError, UsageError

LARGEST_IMAGE = 256 << 20  # bytes of an image; a photograph of 100 megapixels has a fifth of this
OPEN = 16  # containers that a process keeps open
INDEX = 1 << 30  # bytes of a zip's list of members: about ten million of them
ENTRY = 1 << 20  # bytes of a tar's header with a long name; Linux allows paths of 4096
FURTHEST = (1 << 63) - 1  # bytes: what a file system, and our arrays, can count to
TAR_BLOCK = 512  # bytes of a tar's headers and end marks
ZIP_HEADER = struct.Struct("<4s5H3I2H")  # of a zip's member; 4.3.7 of PKWARE's APPNOTE.TXT
DESCRIPTOR = struct.Struct("<4s2I")  # the start of what may follow a zip's member (4.3.9)
ENCRYPTED, CRC_FOLLOWS = 1 << 0, 1 << 3  # bits of a zip member's flags (4.4.4)
CONTAINER_ERRORS = (  # what tarfile and zipfile raise for invalid files
    tarfile.TarError,
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    OverflowError,
    RecursionError,  # headers that each announce another one
    struct.error,
)


def members(container: Path, found: Found) -> Iterator[Member]:
    """Yield the images of a container, in its order; of equal names the last one counts.

    All else is counted in `found`. Raise `UsageError` for a broken container, as half a list would
    be another dataset, and for one that holds nothing but other containers.
    """
    if not stat.S_ISREG(container.stat().st_mode):
        raise UsageError(f"{container}: is not a regular file; take it out of the dataset")
    return INDEXES[container.suffix.lower()](container, found)


def _of_tar(path: Path, found: Found) -> Iterator[Member]:
    """Yield the images of a tar; of a WebDataset one of each sample, with the class it states."""
    file = _Handle(str(path))

    def read(entry: Member, size: int) -> bytes:
        return os.pread(file.number, min(size, entry.size), entry.place)

    entries = _visible(path, _tar(path, found), found)
    for _, group in groupby(entries, lambda entry: key_of(entry.name)):
        yield from images_of_sample(path, list(group), read, found)


def _of_zip(path: Path, found: Found) -> Iterator[Member]:
    """Yield the images of a zip."""
    file = _Handle(str(path))

    def first_bytes(entry: Member) -> bytes:
        return _start_in_zip(file.number, entry.place)

    for entry in _visible(path, _zip(path, found), found):
        if is_image_member(entry, first_bytes):
            yield entry
        else:
            found.leave(kind_left(entry.name))


def _visible(path: Path, entries: Iterator[Member], found: Found) -> Iterator[Member]:
    """Yield the files that are neither hidden nor archives; raise if there are only archives."""
    others, nested = False, ""
    for entry in entries:
        if any(map(is_hidden, entry.name.split("/"))):
            found.leave(HIDDEN)
        elif entry.name.endswith("/"):
            found.folders.add(folders_of(entry.name))
        elif is_container(entry.name) or kind_left(entry.name) == PACKED:
            found.leave(NESTED)
            nested = nested or entry.name
        else:
            others = True
            yield entry
    if nested and not others:
        unpack = "tar -xf" if path.suffix.lower() == ".tar" else "unzip"
        raise UsageError(
            f"{path}: holds archives, such as {nested}, and no images; unpack it once ({unpack} "
            f"{path.name}, in a new folder) and give the folder: the archives in it are read in "
            "place"
        )


class _Frugal:
    """An open file that is never read in large pieces, whatever lengths its headers state.

    tarfile and zipfile read a long name or a list of members at once, whatever its stated length.
    """

    def __init__(self, file: BinaryIO, largest: int) -> None:
        self._file, self._largest = file, largest

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(self._largest + 1) if size < 0 else b""
        if max(size, len(content)) > self._largest:
            raise ValueError(f"a header of {max(size, len(content))} bytes")
        return content if size < 0 else self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _tar(path: Path, found: Found) -> Iterator[Member]:
    """Yield the regular files and folders of a tar, by seeking from header to header."""
    place = 0  # of the next header
    try:
        with (
            path.open("rb") as file,
            tarfile.open(
                fileobj=_Frugal(file, ENTRY),
                mode="r:",
                encoding="utf-8",
                errors="surrogateescape",
            ) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # it would keep a million
                if tar.offset <= place:  # a negative size, which would loop for ever
                    raise tarfile.ReadError("a member has no end")
                place = tar.offset
                if member.issparse() and is_image(member.name):
                    raise tarfile.ReadError(f"{member.name} is sparse; pack it without --sparse")
                name = member.name.removeprefix("./")  # as `tar -C folder .` writes them
                if member.isreg():
                    yield Member(name, member.size, member.offset_data)
                elif member.isdir():
                    yield Member(f"{name}/", 0, -1)
                else:
                    found.leave(SPECIAL)
        _require_end(path, place)
    except CONTAINER_ERRORS as error:
        _raise_what_may_pass(path, error)
        raise UsageError(
            f"{path}: is compressed, cut off or broken at byte {place} ({error}); "
            "unpack it to a .tar or copy it again"
        ) from None


def _raise_what_may_pass(path: Path, error: Exception) -> None:
    """Raise `StorageError` for an error that says nothing of the file."""
    number = error.errno if isinstance(error, OSError) else None
    if number and (number not in LASTING or number in AWAY):
        raise StorageError(f"{path}: cannot be read ({os.strerror(number)}); run again") from None


def _require_end(path: Path, place: int) -> None:
    """Raise if a tar does not end in zeros: tarfile takes most damage for the end."""
    with path.open("rb") as stream:
        stream.seek(place)
        mark = stream.read(TAR_BLOCK)
        if mark.count(0) != TAR_BLOCK:
            raise tarfile.ReadError("no header and no end mark")
        while rest := stream.read(1 << 20):
            if rest.count(0) != len(rest):
                raise tarfile.ReadError("something follows its end mark")


def _zip(path: Path, found: Found) -> Iterator[Member]:
    """Yield the regular files and folders of a zip, from its central directory."""
    try:
        with (
            path.open("rb") as file,
            zipfile.ZipFile(_Frugal(file, INDEX)) as archive,
        ):
            listed = archive.infolist()
    except CONTAINER_ERRORS as error:
        _raise_what_may_pass(path, error)
        raise UsageError(f"{path}: is not a complete zip ({error}); copy it again") from None
    for info in listed:
        if not info.filename:  # zipfile ends a name at its first zero
            raise UsageError(
                f"{path}: is not a complete zip (a file in it has no name); copy it again"
            )
        if info.header_offset < 0:
            raise UsageError(
                f"{path}: is not a complete zip (its beginning is missing); copy it again"
            )
        if max(info.file_size, info.header_offset) > FURTHEST:
            raise UsageError(
                f"{path}: is not a complete zip (it states absurd sizes); copy it again"
            )
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if it was not written on Unix
        name = info.filename.removeprefix("./")
        if info.is_dir() or kind in (0, stat.S_IFREG):
            yield Member(name, info.file_size, info.header_offset)
        else:
            found.leave(SPECIAL)


INDEXES: dict[str, Callable[[Path, Found], Iterator[Member]]] = {
    ".tar": _of_tar,
    ".zip": _of_zip,
    ".parquet": parquet.parquet_members,
}


def is_container(name: str) -> bool:
    """Return whether a file has the name of a tar, a zip or a Parquet file."""
    return name.lower().endswith(tuple(INDEXES))


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raise `Unreadable` for one that holds no image, such as a FIFO, which would block for ever, and
    `StorageError` for one that cannot be read now: that is no reason to leave it out for ever.
    """
    try:
        _readable_size(path.stat())  # before opening: opening a device may have side effects
        with os.fdopen(_without_waiting(path), "rb") as file:
            size = _readable_size(os.fstat(file.fileno()))
            content = file.read(size + 1)
        if content is None or len(content) != size:  # files of /proc are longer than they state
            raise Unreadable("changes while it is read")
        return content
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise Unreadable(_why(error)) from None


def _unreadable(place: str | Path, error: OSError) -> StorageError:
    """Return the error for what may pass: a mount that is away, a disk that fails, no memory."""
    kind = Gone if error.errno in AWAY else StorageError
    return kind(
        f"{place}: cannot be read ({_why(error)}); nothing is left out for this: bring it back and "
        "run again, or take it out of the dataset in a new --run"
    )


def _without_waiting(path: str | Path) -> int:
    """Open a file that may just have become a FIFO, or is one of /proc that blocks."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def _readable_size(status: os.stat_result) -> int:
    """Return the size of a regular file; raise `Unreadable` for anything else, or if too large."""
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a regular file")
    _check_size(status.st_size)
    return status.st_size


def read_member(root: Path, path: str, offset: int, size: int) -> bytes:
    """Return the bytes of a member, where `path` is ``some/shard.tar/name``.

    Raise `Unreadable` for a member that is no image, and `StorageError` if the container cannot be
    read now.
    """
    try:
        container, status = _container(root, path)
        if container.lower().endswith(".parquet"):
            content = parquet.read_image(container, (status.st_dev, status.st_ino), offset)
            _check_size(len(content))
            return content
        _check_size(size)
        handle = _open_container(container, status.st_dev, status.st_ino)
        if container.lower().endswith(".tar"):
            return _exactly(handle.number, size, offset)
        return _from_zip(handle.number, size, offset)
    except OSError as error:
        raise _unreadable(root / path, error) from None
    except ValueError as error:
        raise Unreadable(_why(error)) from None


def _check_size(size: int) -> None:
    if size > LARGEST_IMAGE:
        raise Unreadable(f"too large: {size} bytes")


def _why(error: OSError | ValueError) -> str:
    """Return the system's message, without the path."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return ((isinstance(error, OSError) and error.strerror) or str(error)).lower()


def _container(root: Path, path: str) -> tuple[str, os.stat_result]:
    """Return the shortest prefix of a path that is a container, not a folder named so."""
    end = path.find("/")
    while end > 0:
        if is_container(path[:end]):
            place = str(root / path[:end])
            status = os.stat(place)  # noqa: PTH116 - also what tells a replaced file
            if stat.S_ISREG(status.st_mode):
                return place, status
        end = path.find("/", end + 1)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


class _Handle:
    """An open file that closes itself when it is no longer referenced."""

    def __init__(self, path: str) -> None:
        self.number = _without_waiting(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=OPEN)
def _open_container(path: str, device: int, inode: int) -> _Handle:
    """Return a container kept open; `pread` has no position, which forked processes would share."""
    return _Handle(path)


def _exactly(file: int, size: int, offset: int) -> bytes:
    """Return exactly `size` bytes from there; raise `Unreadable` if the file ends before."""
    pieces = []
    while size:
        piece = os.pread(file, size, offset)
        if not piece:
            raise Unreadable("its container ends early")
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    return b"".join(pieces)


def _from_zip(file: int, size: int, offset: int) -> bytes:
    """Return the member whose header is there, of that unpacked size; raise `Unreadable`."""
    fields = ZIP_HEADER.unpack(_exactly(file, ZIP_HEADER.size, offset))
    signature, _, flags, method, _, _, crc, _, _, name, extra = fields
    if signature != b"PK\3\4":
        raise Unreadable("its zip has no member there")
    if flags & ENCRYPTED:
        raise Unreadable("is encrypted")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unreadable(f"is compressed by method {method}; only deflate can be read")
    start = offset + ZIP_HEADER.size + name + extra
    content, end = _inflated(file, size, start) if method else _stored(file, size, start)
    if zlib.crc32(content) not in (_crcs_behind(file, end) if flags & CRC_FOLLOWS else (crc,)):
        raise Unreadable("is damaged in its zip: wrong CRC")
    return content


def _start_in_zip(file: int, offset: int) -> bytes:
    """Return a member's first bytes; none where there is no member that can be read."""
    try:
        fields = ZIP_HEADER.unpack(_exactly(file, ZIP_HEADER.size, offset))
        packed = os.pread(file, 1024, offset + ZIP_HEADER.size + fields[9] + fields[10])
        if fields[3] == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, FIRST_BYTES)
        return packed[:FIRST_BYTES]
    except (Unreadable, zlib.error):
        return b""


def _stored(file: int, size: int, start: int) -> tuple[bytes, int]:
    return _exactly(file, size, start), start + size


def _inflated(file: int, size: int, place: int) -> tuple[bytes, int]:
    """Return a deflated member and where it ends; at most one byte more than its listed size."""
    stream, content = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    furthest = place + 2 * size + (1 << 20)  # packing adds a little, unless it is malicious
    try:
        while not stream.eof:
            packed = stream.unconsumed_tail
            if not packed:
                packed = os.pread(file, min(size + 1024, 1 << 20), place)
                place += len(packed)
            if not packed:
                raise Unreadable("its container ends early")
            if place > furthest:
                raise Unreadable("is damaged in its zip: it has no end")
            content += stream.decompress(packed, size + 1 - len(content))
            if len(content) > size:
                raise Unreadable(f"holds more than the {size} bytes listed")
    except zlib.error as error:
        raise Unreadable(f"is damaged in its zip: {error}") from None
    if len(content) < size:
        raise Unreadable(f"holds {len(content)} bytes, not the {size} listed")
    return bytes(content), place - len(stream.unused_data)


def _crcs_behind(file: int, end: int) -> tuple[int, ...]:
    """Return the possible CRCs after a member; some writers leave out the signature before it."""
    signature, second, _ = DESCRIPTOR.unpack(_exactly(file, DESCRIPTOR.size, end))
    (first,) = struct.unpack("<I", signature)
    return (first, second) if signature == b"PK\7\10" else (first,)
