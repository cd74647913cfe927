"""The frozen, sorted list of a run's images."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.dataset.classes import WORDNET, deeper_folder, labels_of
from cnnvis_cli.dataset.containers import (
    INDEXES,
    is_container,
    members,
    read_file,
    read_member,
)
from cnnvis_cli.dataset.kinds import (
    AWAY,
    COMPRESSED,
    FIRST_BYTES,
    FORBIDDEN,
    HIDDEN,
    IMAGE_SUFFIXES,
    LASTING,
    LINKED,
    RUNS,
    TWICE,
    Found,
    Where,
    begins_like_an_image,
    folders_of,
    is_hidden,
    is_image,
    kind_left,
)
from cnnvis_cli.errors import StorageError, UsageError
from cnnvis_cli.folders import open_folder

LISTS = (".txt", ".lst")
ACCEPTED = f"a folder, a list ({', '.join(LISTS)}) or a file ({', '.join(INDEXES)})"
LONGEST_PATH = 4096  # bytes of a path, PATH_MAX of Linux; a longer one would widen every row
MISSING = -1  # size of a file that is named and not there
ROWS_AS_ARRAYS = 1 << 16  # number of rows that are turned into arrays at a time

ImageRow = tuple[str, int, int, Where]  # path, bytes, place in its container or -1, its folders
Paths = NDArray[np.bytes_]
Columns = tuple[Paths, NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class Manifest:
    """N images in the order of ``sorted()``, in arrays that processes share without a copy.

    Paths are `os.fsencode`d, ``/``-separated and relative to `root`; a container's member is
    ``shard.tar/member.jpg``. The label is the index, among the sorted `classes`, of the image's
    folder at the `level` that is the class (see `dataset.classes`); -1 without one. Where the
    dataset states classes itself, it is the stated number, or the index of the stated name.
    """

    root: Path
    paths: Paths  # (N,)
    sizes: NDArray[np.int64]  # (N,) bytes of the image
    offsets: NDArray[np.int64]  # (N,) tar: the first byte, zip: the header; -1: a plain file
    labels: NDArray[np.int32]  # (N,)
    classes: tuple[str, ...]
    level: str = ""  # which folder is the class; see `dataset.classes.class_at`
    passed_over: Mapping[str, int] = field(default_factory=dict)  # what is no image, by kind
    deeper: str = ""  # a folder below a class folder that may have been meant as a class

    @classmethod
    def scan(cls, dataset: Path, level: str = "auto") -> Manifest:
        """List a dataset's images; raise `UsageError` if it is invalid, broken or empty.

        `level` says which folder is the class, as in `dataset.classes.labels_of`. Raise
        `StorageError` if the dataset cannot be listed now, or if it names a file that is not there.
        """
        found = Found()
        try:
            root = root_of(dataset)
            columns, places = _arranged(_image_rows(dataset, found), found)
        except OSError as error:
            place = error.filename or dataset
            lasts = error.errno in LASTING and error.errno not in AWAY
            failure = UsageError if lasts else StorageError
            raise failure(f"dataset {place}: cannot be listed ({error.strerror})") from None
        if found.missing:
            _refuse_missing(dataset, found.missing, len(columns[0]))
        if not len(columns[0]):
            raise UsageError(
                f"dataset {dataset}: holds no images ({', '.join(IMAGE_SUFFIXES)})"
                + (f"; passed over: {in_words(found.passed_over)}" if found.passed_over else "")
            )
        ranks, classes, level = labels_of(places, found, level, is_list(dataset))
        paths, sizes, offsets, codes = columns
        labels, passed = ranks[codes], dict(sorted(found.passed_over.items()))
        deeper = deeper_folder(places, level)
        return cls(root, paths, sizes, offsets, labels, classes, level, passed, deeper)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Return the path of an image, relative to the root."""
        return os.fsdecode(self.paths[index])

    def read(self, index: int) -> bytes:
        """Return an image's undecoded file.

        Raise `Unreadable` with the reason, and `StorageError` for what may be read another time.
        """
        path, offset = self.path(index), int(self.offsets[index])
        if offset < 0:
            return read_file(self.root / path)
        return read_member(self.root, path, offset, int(self.sizes[index]))

    def sample(self, count: int) -> NDArray[np.int64]:
        """Return the indices, ascending, of the `count` images whose paths have the least hashes.

        All images if there are fewer. A smaller sample is part of a larger one.
        """
        if count >= len(self):
            return np.arange(len(self))
        hashes = [hashlib.blake2b(path, digest_size=8).digest() for path in self.paths.tolist()]
        order = np.argsort(np.frombuffer(b"".join(hashes), ">u8"), kind="stable")
        return np.sort(order[:count])

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


def _refuse_missing(dataset: Path, missing: Sequence[str], there: int) -> None:
    """Raise `StorageError` for files that are named and not there.

    Raise `UsageError` if that is because a list has more than a path in its lines.
    """
    name, listed = missing[0], is_list(dataset)
    path, *others = name.split() or [name]
    if listed and others and not there and is_image(path):
        raise UsageError(
            f"dataset {dataset}: none of its {len(missing)} images is there, such as {name!r}; "
            "a list has one path per line, and nothing else"
        )
    count = f"{len(missing)} of its {len(missing) + there} files" if listed else len(missing)
    what = f"{count} that it names" if listed else f"{count} of its links or files"
    where = "the list (paths are relative to it, or absolute)" if listed else "the dataset"
    raise StorageError(
        f"dataset {dataset}: {what} cannot be found, such as {name!r}; nothing is left out for "
        f"this: bring back what is missing and run again, or take it out of {where}"
    )


def in_words(counts: Mapping[str, int]) -> str:
    """Return counts by kind in words."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def is_list(dataset: Path) -> bool:
    return dataset.suffix.lower() in LISTS and not dataset.is_dir()


def root_of(dataset: Path) -> Path:
    """Return the folder that a dataset's paths are relative to: itself, or the file's folder."""
    is_file = dataset.suffix.lower() in (*LISTS, *INDEXES) and not dataset.is_dir()
    return dataset.parent if is_file else dataset


def _image_rows(dataset: Path, found: Found) -> Iterator[ImageRow]:
    """Return the images of any dataset, in any order; raise `UsageError` for anything else."""
    if dataset.is_dir():
        return _of_folder(dataset, found)
    readers: dict[str, Callable[[Path, Found], Iterator[ImageRow]]] = {
        **dict.fromkeys(LISTS, _of_list),
        **dict.fromkeys(INDEXES, _of_container),
    }
    suffix = dataset.suffix.lower()
    if dataset.is_file() and suffix in readers:
        return readers[suffix](dataset, found)
    if not dataset.exists():
        raise UsageError(f"dataset {dataset}: there is no such folder or file")
    if suffix in COMPRESSED:
        raise UsageError(
            f"dataset {dataset}: is compressed; unpack it ({COMPRESSED[suffix]} {dataset.name}) "
            "and give the .tar or folder, which is read in place"
        )
    raise UsageError(f"dataset {dataset}: is not a dataset; give {ACCEPTED}")


def _of_folder(root: Path, found: Found) -> Iterator[ImageRow]:
    """Yield files and members with image names; linked folders once each.

    Hidden names and run directories are passed over.
    """
    seen: set[tuple[int, int]] = set()
    pending = [""]  # folders as prefixes of paths
    while pending:
        prefix = pending.pop()
        place = root / prefix
        status = place.stat()
        inode = (status.st_dev, status.st_ino)
        if inode in seen:
            found.leave(LINKED)
        elif (place / "run.json").is_file():  # its figures are not its images
            found.leave(RUNS)
        else:
            subfolders = yield from _of_one_folder(place, prefix, found)
            pending.extend(sorted(subfolders, reverse=True))
        seen.add(inode)


def _of_one_folder(place: Path, prefix: str, found: Found) -> Generator[ImageRow, None, list[str]]:
    """Yield the images of a folder and of the containers in it; return its subfolders."""
    folders, containers, where, images = [], [], folders_of(prefix), False
    with open_folder(place) as number, os.scandir(number) as entries:
        for entry in entries:
            name = entry.name
            if is_hidden(name):
                found.leave(HIDDEN)
                continue
            size = _look(entry)
            if size == MISSING:
                found.missing.append(prefix + name)
            elif size is None:
                folders.append(f"{prefix}{name}/")
            elif is_image(name) or ("." not in name and _begins_like_one(name, number)):
                yield prefix + name, size, -1, where
                images = True
            elif is_container(name):
                containers.append(place / name)
            else:
                found.leave(kind_left(name))
    if not (folders or containers or images):
        found.folders.add(where)
    for container in containers:
        yield from _of_container(container, found, prefix)
    return folders


def _begins_like_one(name: str, folder: int) -> bool:
    """Return whether a file without a suffix is an image by its first bytes."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno in (*LASTING, *FORBIDDEN):  # what cannot be read has no image's name either
            return False
        raise
    try:
        regular = stat.S_ISREG(os.fstat(file).st_mode)
        return regular and begins_like_an_image(os.pread(file, FIRST_BYTES, 0))
    finally:
        os.close(file)


def _look(entry: os.DirEntry[str]) -> int | None:
    """Return a file's size, `MISSING` for a link that leads nowhere, None for a folder."""
    try:
        return None if entry.is_dir() else entry.stat().st_size
    except OSError as error:
        return _size_of_none(error)


def _size_of_none(error: OSError) -> int:
    """Return the size that stands for a file that is not there; raise any other error."""
    if error.errno not in LASTING:
        raise error
    return MISSING


def _of_list(file: Path, found: Found) -> Iterator[ImageRow]:
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
            if not path or path.startswith("#"):
                continue
            size = _file_size(path, folder)
            if size == MISSING:
                found.missing.append(path)
            else:
                yield path, size, -1, folders_of(path)


def _file_size(path: str, folder: int) -> int:
    """Return the size of a file as seen from a folder; `MISSING` if it is not there."""
    try:
        return os.stat(path, dir_fd=folder).st_size
    except OSError as error:
        return _size_of_none(error)
    except ValueError:  # a null character
        return MISSING


def _of_container(container: Path, found: Found, prefix: str = "") -> Iterator[ImageRow]:
    """Yield the images of a container in a folder whose paths begin with `prefix`.

    A container named by a WordNet id, as ILSVRC's, is the class of images that lie loose in it.
    """
    start = f"{prefix}{container.name}/"
    loose = (container.stem,) if WORDNET.fullmatch(container.stem) else ()
    for name, size, place, stated in members(container, found):
        folders = folders_of(name) or loose
        where = stated._replace(folders=folders) if stated else folders
        yield start + name, size, place, where


def _arranged(rows: Iterator[ImageRow], found: Found) -> tuple[Columns, list[Where]]:
    """Return sorted paths, sizes, offsets and the numbers of their places, each path once.

    Then the places, by their numbers.
    """
    codes: dict[Where, int] = {}  # of the places, in the order of their appearance
    paths, sizes, offsets, places = _columns_of_rows(rows, codes)
    order = _order(paths)
    paths = paths[order]
    last = np.append(paths[1:] != paths[:-1], True)[: len(paths)]  # the last of equals, as in a tar
    if not last.all():
        found.leave(TWICE, int((~last).sum()))
        paths, order = paths[last], order[last]
    return (paths, sizes[order], offsets[order], places[order]), list(codes)


def _columns_of_rows(rows: Iterator[ImageRow], codes: dict[Where, int]) -> Columns:
    """Return rows as arrays, built in blocks: a million strings never exist at once."""
    blocks = [_block([], codes)]
    while block := list(islice(rows, ROWS_AS_ARRAYS)):
        blocks.append(_block(block, codes))
    paths, sizes, offsets, places = zip(*blocks, strict=True)
    return (
        np.concatenate(paths),
        np.concatenate(sizes),
        np.concatenate(offsets),
        np.concatenate(places),
    )


def _block(rows: list[ImageRow], codes: dict[Where, int]) -> Columns:
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
    if all(_is_utf8(paths[i : i + ROWS_AS_ARRAYS]) for i in range(0, len(paths), ROWS_AS_ARRAYS)):
        return np.argsort(paths, kind="stable")  # bytes of UTF-8 sort as its characters do
    names = [os.fsdecode(path) for path in paths]
    return np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)


def _is_utf8(paths: Paths) -> bool:
    try:
        b"\n".join(paths.tolist()).decode()
    except UnicodeDecodeError:
        return False
    return True
