"""Large datasets written chunk by chunk, compressed on all cores.

HDF5 compresses in one thread, while all others wait for its lock. Here threads do the work of its
filters (shuffle, gzip, fletcher32; "HDF5 File Format Specification", IV.A.2.l), and HDF5 receives
finished chunks. Readers see no difference, and the bytes do not depend on the threads.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from heapq import merge
from itertools import groupby, product
from operator import itemgetter
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Chunk = tuple[tuple[int, ...], NDArray[Any]]  # its offset and its values
LEVEL = 1  # gzip's, as in `schema.storage`


def write_rows(dataset: h5py.Dataset, rows: Iterable[tuple[int, NDArray[Any]]]) -> None:
    """Write rows of the first axis, in ascending order; rows that are not given stay 0.

    Raise ValueError for a dataset without the filters of lasting `schema.storage`.
    """
    if dataset.chunks is None:  # without elements, HDF5 has no filters
        for row, values in rows:
            dataset[row] = values
        return
    _check_filters(dataset)
    _write_chunks((dataset, *chunk) for chunk in _chunks(dataset, rows))


def write_bands(datasets: Sequence[h5py.Dataset], bands: Iterable[Sequence[NDArray[Any]]]) -> None:
    """Write bands of rows, one array per dataset and band, side by side.

    A chunk of each dataset is a band: all its columns and as many rows as each band has, except
    for the last one. Raise ValueError as `write_rows`.
    """
    for dataset in datasets:
        _check_filters(dataset)

    def chunks() -> Iterator[tuple[h5py.Dataset, tuple[int, ...], NDArray[Any]]]:
        first = 0
        for band in bands:
            for dataset, values in zip(datasets, band, strict=True):
                missing = dataset.chunks[0] - len(values)
                padded = np.pad(values, [(0, missing), (0, 0)]) if missing else values
                yield dataset, (first, 0), padded.astype(dataset.dtype, copy=False)
            first += len(band[0])

    _write_chunks(chunks())


def _write_chunks(
    chunks: Iterable[tuple[h5py.Dataset, tuple[int, ...], NDArray[Any]]],
) -> None:
    """Write chunks in their order, compressed on all cores."""
    threads = len(os.sched_getaffinity(0))
    going: deque[tuple[h5py.Dataset, tuple[int, ...], Future[bytes]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for dataset, offset, values in chunks:
            going.append((dataset, offset, pool.submit(_packed_chunk, values)))
            if len(going) > 2 * threads:
                _write_chunk(*going.popleft())
        while going:
            _write_chunk(*going.popleft())


def _write_chunk(dataset: h5py.Dataset, offset: tuple[int, ...], done: Future[bytes]) -> None:
    dataset.id.write_direct_chunk(offset, done.result())


def _check_filters(dataset: h5py.Dataset) -> None:
    """Raise ValueError unless the filters are those applied here, in the same order."""
    known = dataset.id.get_create_plist()
    filters = [known.get_filter(i)[0] for i in range(known.get_nfilters())]
    wanted = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]
    if filters != wanted or dataset.compression_opts != LEVEL:
        raise ValueError(f"{dataset.name} has filters {filters}, not {wanted}")


def _chunks(dataset: h5py.Dataset, rows: Iterable[tuple[int, NDArray[Any]]]) -> Iterator[Chunk]:
    """Yield whole chunks as (offset, values), those at the far edges padded with zeros."""
    height, *sides = dataset.chunks
    for number, group in groupby(rows, key=lambda row: row[0] // height):
        band = np.zeros((height, *dataset.shape[1:]), dataset.dtype)
        for row, values in group:
            band[row - number * height] = values
        steps = (range(0, n, side) for n, side in zip(dataset.shape[1:], sides, strict=True))
        for offset in product(*steps):
            slices = (slice(o, o + side) for o, side in zip(offset, sides, strict=True))
            part = band[(slice(None), *slices)]
            if part.shape != dataset.chunks:
                missing = zip(dataset.chunks, part.shape, strict=True)
                part = np.pad(part, [(0, whole - there) for whole, there in missing])
            yield (number * height, *offset), part


def _packed_chunk(values: NDArray[Any]) -> bytes:
    """Return a chunk as HDF5's filters would store it."""
    flat = np.ascontiguousarray(values).reshape(-1)
    shuffled = flat.view(np.uint8).reshape(-1, flat.itemsize).T
    packed = zlib.compress(shuffled.tobytes(), LEVEL)
    return packed + fletcher32(packed).to_bytes(4, "little")


def fletcher32(content: bytes) -> int:
    """Return HDF5's checksum: Fletcher's, 16-bit big-endian words modulo 65535 (H5checksum.c)."""
    words = np.frombuffer(content + b"\0" * (len(content) % 2), ">u2").astype(np.uint64)
    first = int(words.sum())
    second = int((words * np.arange(len(words), 0, -1, dtype=np.uint64)).sum())
    return _folded(second) << 16 | _folded(first)


def _folded(total: int) -> int:
    """Return a sum with its carries added again; 0 only for 0."""
    return (total - 1) % 65535 + 1 if total else 0


def merged_rows(pieces: Iterable[Iterable[Any]]) -> Iterator[Any]:
    """Return the rows of several sorted inputs in order of their first numbers, each once."""
    by_unit = groupby(merge(*pieces, key=itemgetter(0)), key=itemgetter(0))
    return (next(rows) for _, rows in by_unit)
