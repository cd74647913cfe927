"""Images in the rows of a Parquet file, as the Hugging Face hub has them."""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from cnnvis_cli.dataset.kinds import LABEL_COLUMNS, PARQUET, TABLES, Found, Unreadable
from cnnvis_cli.dataset.samples import Member, stated_by
from cnnvis_cli.errors import UsageError

ROWS = 16  # images that are in memory at a time
LABEL_ROWS = 1 << 16  # labels
ROWS_PER_BYTE = 1  # of a file, at most; it could state any number
BUFFER = 1 << 20  # bytes that are read at a time
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")  # of columns, the likeliest first
LABEL_NAMES = ("label", "labels", "fine_label", "class", "cls", "category", "class_name")


def parquet_members(path: Path, found: Found) -> Iterator[Member]:
    """Yield a row for each image, with the class that its label column states.

    The size of each is that of the file: rows do not tell theirs before they are unpacked. A file
    without a column of images is passed over. Raise `UsageError` for a broken file.
    """
    try:
        file = _opened(path)
        if file is None:
            found.leave(PARQUET)
            return
        columns = _columns(file.schema_arrow, path)
        if columns is None:
            found.leave(TABLES)
            return
        if columns.names:
            found.state(columns.names, path)
        size, rows = path.stat().st_size, file.metadata.num_rows
        if rows > ROWS_PER_BYTE * size:
            raise ValueError(f"{rows} rows in {size} bytes")
        found.leave(LABEL_COLUMNS, columns.ignored)
        for row, label in enumerate(_labels(file, columns.label)):
            if columns.names and isinstance(label, int) and not -1 <= label < len(columns.names):
                raise UsageError(
                    f"{path}: row {row} has the label {label}, and its column names the classes 0 "
                    f"to {len(columns.names) - 1}; mend the file, or take it out"
                )
            yield Member(f"{row:09d}", size, row, stated_by(label, found))
    except (ValueError, OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"{path}: is not a complete Parquet file ({reason}); copy it again"
        ) from None


def _opened(path: Path | str) -> Any:
    """Return a file that is read piece by piece; None without pyarrow."""
    try:
        from pyarrow import parquet
    except ImportError:
        return None
    return parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)


@dataclass(frozen=True)
class _Columns:
    """Which columns hold the images and their classes."""

    image: str  # with the field of its structure, such as image.bytes
    label: str | None
    names: tuple[str, ...]  # of the classes, by their number
    ignored: int  # columns that are called like labels, and are none


def _columns(schema: Any, path: Path) -> _Columns | None:
    """Return the columns of a file; None if none holds images, by its type and name.

    Of several columns of classes one is chosen by its name, or none. Raise `UsageError` for
    several columns of images of which none has a usual name.
    """
    features = _features(schema)
    images = {f.name: inner for f in schema if (inner := _image_field(f, features))}
    if not images:
        return None
    usual = [name for name in IMAGE_NAMES if name in images]
    if not usual and len(images) > 1:
        raise UsageError(
            f"{path}: has several columns of images ({', '.join(images)}); keep one of them, or "
            "rename it to image"
        )
    image = images[(usual or list(images))[0]]
    odd = [f.name for f in schema if f.name in LABEL_NAMES and not _may_label(f.type)]
    named = [n for n, about in features.items() if about.get("_type") == "ClassLabel"]
    plain = [f.name for f in schema if f.name in LABEL_NAMES and _may_label(f.type)]
    known = [name for name in LABEL_NAMES if name in named] or (named if len(named) == 1 else [])
    label = next(iter(known or [name for name in LABEL_NAMES if name in plain]), None)
    names = features.get(label or "", {}).get("names") if label in named else None
    texts = tuple(map(str, names)) if isinstance(names, list) else ()
    return _Columns(image, label, texts, 0 if label else len(odd))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face's metadata say of each column."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        found = json.loads(text)["info"]["features"]
        return {name: about for name, about in found.items() if isinstance(about, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _image_field(column: Any, features: dict[str, dict[str, Any]]) -> str:
    """Return the path of a column's image files; empty if it has none."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    kind, name = column.type, str(column.name)
    said = features.get(name, {}).get("_type")
    if types.is_struct(kind) and said in (None, "Image"):
        inner = kind.get_field_index("bytes")
        return f"{name}.bytes" if inner >= 0 and is_bytes(kind.field(inner).type) else ""
    return name if is_bytes(kind) and (said == "Image" or name in IMAGE_NAMES) else ""


def _may_label(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _labels(file: Any, column: str | None) -> Iterator[Any]:
    """Yield the label of each row; None without one."""
    if column is None:
        yield from (None for _ in range(file.metadata.num_rows))
        return
    for batch in file.iter_batches(LABEL_ROWS, columns=[column], use_threads=False):
        yield from batch.column(0).to_pylist()


@dataclass
class _Rows:
    """A file's images, read forwards a few at a time; going back begins at a group of rows."""

    path: str
    file: Any = field(init=False)
    column: str = field(init=False)
    starts: list[int] = field(init=False)  # the first row of each group, and the number of rows
    batches: Iterator[Any] = field(init=False)
    group: int = -1
    first: int = 0  # the row at which the batch begins
    batch: Any = ()

    def __post_init__(self) -> None:
        self.file = _opened(self.path)
        columns = None if self.file is None else _columns(self.file.schema_arrow, Path(self.path))
        if columns is None:
            raise Unreadable("its Parquet file cannot be read here: pip install 'cnnvis[parquet]'")
        self.column = columns.image
        about = self.file.metadata
        lengths = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
        self.starts = list(accumulate(lengths, initial=0))

    def content(self, row: int) -> bytes:
        """Return a row's image; raise `Unreadable` for one that holds none."""
        if not 0 <= row < self.starts[-1]:
            raise Unreadable("its Parquet file has no such row")
        group = bisect_right(self.starts, row) - 1
        if group != self.group or row < self.first:
            columns = [self.column]
            self.batches = self.file.iter_batches(ROWS, [group], columns, use_threads=False)
            self.group, self.first, self.batch = group, self.starts[group], ()
        while row >= self.first + len(self.batch):
            self.first += len(self.batch)
            self.batch = next(self.batches).column(0)
        value = self.batch[row - self.first].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise Unreadable("its row holds no bytes, only a path at most")
        return content


_mine = threading.local()  # the file that each thread is reading


def read_image(path: str, version: tuple[int, int], row: int) -> bytes:
    """Return the image of a row; `version` tells a replaced file.

    Raise `Unreadable` for a row without an image or a damaged one, and OSError for what may pass.
    """
    key = (os.getpid(), path, version)
    try:
        if getattr(_mine, "key", None) != key:
            _mine.rows, _mine.key = _Rows(path), key
        return bytes(_mine.rows.content(row))
    except Unreadable:
        raise
    except (ValueError, OSError, StopIteration, NotImplementedError) as error:
        _mine.key = None  # its place in the file is unknown
        if isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split())[:120]
        raise Unreadable(f"is damaged in its Parquet file: {reason}") from None
