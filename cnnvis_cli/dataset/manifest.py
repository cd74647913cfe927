"""The frozen, sorted list of a run's images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.dataset.containers import (
    IMAGE_SUFFIXES,
    INDEXES,
    is_container,
    members,
    read_file,
    read_member,
)
from cnnvis_cli.errors import UsageError
from cnnvis_cli.folders import open_folder

LISTS = (".txt", ".lst")
ACCEPTED = f"a folder, a list ({', '.join(LISTS)}) or a file {' or '.join(INDEXES)}"
COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
LONGEST_PATH = 4096  # bytes of a path, PATH_MAX of Linux; a longer one would widen every row
NAMELESS = ("", ".", "..")  # parts of a path that are not a class
ROWS = 1 << 16  # number of rows that are turned into arrays at a time

ImageRow = tuple[str, int, int, str]  # path, bytes, place in its container or -1, class or ""
Paths = NDArray[np.bytes_]
Columns = tuple[Paths, NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class Manifest:
    """N images in the order of ``sorted()``, in arrays that processes share without a copy.

    Paths are `os.fsencode`d, ``/``-separated and relative to `root`; a container's member is
    ``shard.tar/member.jpg``. The label is the index, among the sorted `classes`, of the first
    folder below the root or inside the container, or of the image's own folder in a list; -1
    without a folder.
    """

    root: Path
    paths: Paths  # (N,)
    sizes: NDArray[np.int64]  # (N,) bytes of the image; 0 for a missing file
    offsets: NDArray[np.int64]  # (N,) tar: the first byte, zip: the header; -1: a plain file
    labels: NDArray[np.int32]  # (N,)
    classes: tuple[str, ...]

    @classmethod
    def scan(cls, dataset: Path) -> Manifest:
        """List a dataset's images; raise `UsageError` if it is invalid, broken or empty."""
        try:
            root = root_of(dataset)
            columns, classes = _arranged(_image_rows(dataset))
        except OSError as error:
            place = error.filename or dataset
            raise UsageError(f"dataset {place}: cannot be listed ({error.strerror})") from None
        _refuse_where_nothing_is_there(dataset, columns[0], columns[1])
        if not len(columns[0]):
            raise UsageError(f"dataset {dataset}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
        return cls(root, *columns, classes)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Return the path of an image, relative to the root."""
        return os.fsdecode(self.paths[index])

    def read(self, index: int) -> bytes:
        """Return an image's undecoded file.

        Raise `Unreadable` with the reason, and `StorageError` for what may be read another time.
        """
        path, offset, size = self.path(index), int(self.offsets[index]), int(self.sizes[index])
        if offset < 0:
            return read_file(self.root / path, size)
        return read_member(self.root, path, offset, size)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of paths, sizes and labels, in order: any change is another dataset."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        width = int(np.char.str_len(self.paths).max(initial=1))  # a wider column is equivalent
        paths = self.paths.astype(f"S{width}")
        for column in (paths, self.sizes.astype("<i8"), self.labels.astype("<i4")):
            digest.update(f"{column.shape} {column.itemsize}\n".encode())
            digest.update(np.ascontiguousarray(column).data.cast("B"))
        return digest.hexdigest()


def _refuse_where_nothing_is_there(dataset: Path, paths: Paths, sizes: NDArray[np.int64]) -> None:
    """Raise `UsageError` if a list names no existing file, or has more than one per line."""
    names = [os.fsdecode(path) for path in paths[:100]]
    if (
        len(names) > 1
        and not sizes.any()
        and not any((root_of(dataset) / n).exists() for n in names)
    ):
        raise UsageError(
            f"dataset {dataset}: none of its {len(paths)} images is there, such as {names[0]!r}; "
            "a list has one path per line, relative to the list or absolute"
        )


def root_of(dataset: Path) -> Path:
    """Return the folder that a dataset's paths are relative to: itself, or the file's folder."""
    is_file = dataset.suffix.lower() in (*LISTS, *INDEXES) and not dataset.is_dir()
    return dataset.parent if is_file else dataset


def _image_rows(dataset: Path) -> Iterator[ImageRow]:
    """Return the images of any dataset, in any order; raise `UsageError` for anything else."""
    if dataset.is_dir():
        return _of_folder(dataset)
    readers: dict[str, Callable[[Path], Iterator[ImageRow]]] = {
        **dict.fromkeys(LISTS, _of_list),
        **dict.fromkeys(INDEXES, _of_container),
    }
    suffix = dataset.suffix.lower()
    if dataset.is_file() and suffix in readers:
        return readers[suffix](dataset)
    if not dataset.exists():
        raise UsageError(f"dataset {dataset}: there is no such folder or file")
    if suffix in COMPRESSED:
        raise UsageError(f"dataset {dataset}: is compressed; unpack it to a .tar")
    raise UsageError(f"dataset {dataset}: is not a dataset; give {ACCEPTED}")


def _of_folder(root: Path) -> Iterator[ImageRow]:
    """Yield files and members with image names; linked folders once each.

    Hidden names and run directories are skipped.
    """
    seen: set[tuple[int, int]] = set()
    pending = [""]  # folders as prefixes of paths
    while pending:
        prefix = pending.pop()
        place = root / prefix
        status = place.stat()
        inode = (status.st_dev, status.st_ino)
        # a run directory's figures are not its images
        if inode not in seen and not (place / "run.json").is_file():
            subfolders = yield from _of_one_folder(place, prefix)
            pending.extend(sorted(subfolders, reverse=True))
        seen.add(inode)


def _of_one_folder(place: Path, prefix: str) -> Generator[ImageRow, None, list[str]]:
    """Yield the images of a folder and of the containers in it; return its subfolders."""
    folders, containers, label = [], [], prefix.partition("/")[0]
    with open_folder(place) as number, os.scandir(number) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            size = _look(entry)
            if size is None:
                folders.append(f"{prefix}{name}/")
            elif name.lower().endswith(IMAGE_SUFFIXES):
                yield prefix + name, size, -1, label
            elif is_container(name):
                containers.append(place / name)
    for container in containers:
        yield from _of_container(container, prefix)
    return folders


def _look(entry: os.DirEntry[str]) -> int | None:
    """Return a file's size, 0 for a dangling link (reading will report it), None for a folder."""
    try:
        return None if entry.is_dir() else entry.stat().st_size
    except OSError:
        return 0


def _of_list(file: Path) -> Iterator[ImageRow]:
    """Yield the images that a text file names, one path per line; # begins a comment line."""
    with (
        open_folder(file.parent) as folder,
        file.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines,
    ):
        while line := lines.readline(LONGEST_PATH + 1):
            if len(line) > LONGEST_PATH and not line.endswith("\n"):
                raise UsageError(
                    f"{file}: has a line of over {LONGEST_PATH} bytes; give one path per line"
                )
            path = line.strip().removeprefix("./")
            if path and not path.startswith("#"):
                holder = path.rpartition("/")[0].rpartition("/")[2]
                yield path, _file_size(path, folder), -1, "" if holder in NAMELESS else holder


def _file_size(path: str, folder: int) -> int:
    """Return the size of a file as seen from a folder; 0 if it is missing."""
    try:
        return os.stat(path, dir_fd=folder).st_size
    except (OSError, ValueError):
        return 0


def _of_container(container: Path, prefix: str = "") -> Iterator[ImageRow]:
    """Yield the images of a tar or zip in a folder whose paths begin with `prefix`."""
    start = f"{prefix}{container.name}/"
    for name, size, offset in members(container):
        folders = (part for part in name.split("/")[:-1] if part not in NAMELESS)
        yield start + name, size, offset, next(folders, "")


def _arranged(rows: Iterator[ImageRow]) -> tuple[Columns, tuple[str, ...]]:
    """Return sorted paths, sizes, offsets and labels, each path once, and the sorted classes."""
    codes: dict[str, int] = {}  # of the classes, in the order of their appearance
    paths, sizes, offsets, labels = _columns_of_rows(rows, codes)
    order = _order(paths)
    paths = paths[order]
    last = np.append(paths[1:] != paths[:-1], True)[: len(paths)]  # the last of equals, as in a tar
    if not last.all():
        paths, order = paths[last], order[last]
    classes = tuple(sorted(codes.keys() - {""}))
    rank = {name: number for number, name in enumerate(classes)}
    ranks = np.array([rank.get(name, -1) for name in codes], np.int32)
    return (paths, sizes[order], offsets[order], ranks[labels[order]]), classes


def _columns_of_rows(rows: Iterator[ImageRow], codes: dict[str, int]) -> Columns:
    """Return rows as arrays, built in blocks: a million strings never exist at once."""
    blocks = [_block([], codes)]
    while block := list(islice(rows, ROWS)):
        blocks.append(_block(block, codes))
    paths, sizes, offsets, labels = zip(*blocks, strict=True)
    return (
        np.concatenate(paths),
        np.concatenate(sizes),
        np.concatenate(offsets),
        np.concatenate(labels),
    )


def _block(rows: list[ImageRow], codes: dict[str, int]) -> Columns:
    """Return some rows as arrays; raise `UsageError` for a path that no file system allows."""
    paths = np.array(_encoded_paths([row[0] for row in rows]), np.bytes_)
    if paths.itemsize > LONGEST_PATH:
        longest = max((row[0] for row in rows), key=len)
        raise UsageError(
            f"the dataset has a path of over {LONGEST_PATH} bytes: {longest[:60]!r}..."
        )
    labels = [codes.setdefault(row[3], len(codes)) for row in rows]
    return (
        paths,
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.int64),
        np.array(labels, np.int32),
    )


def _encoded_paths(paths: list[str]) -> list[bytes]:
    """Return `os.fsencode` of each."""
    try:
        return [path.encode() for path in paths]
    except UnicodeEncodeError:  # a name that is not UTF-8
        return [os.fsencode(path) for path in paths]


def _order(paths: Paths) -> NDArray[np.int64]:
    """Return the rows in the order of `sorted()` of the paths as text; equal ones stay in order."""
    if all(_is_utf8(paths[i : i + ROWS]) for i in range(0, len(paths), ROWS)):
        return np.argsort(paths, kind="stable")  # bytes of UTF-8 sort as its characters do
    names = [os.fsdecode(path) for path in paths]
    return np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)


def _is_utf8(paths: Paths) -> bool:
    try:
        b"\n".join(paths.tolist()).decode()
    except UnicodeDecodeError:
        return False
    return True
