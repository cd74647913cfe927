"""Chunks that threads have compressed are those that HDF5 would have written."""

from __future__ import annotations

import io
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnvis_cli.store.chunks import fletcher32, write_rows
from cnnvis_cli.store.schema import storage

SHAPES = [(5, 3), (7, 2, 300, 300, 3), (3000, 2, 11, 11, 3), (2, 1, 700, 900, 3), (1, 1)]


def values_of(shape: tuple[int, ...], dtype: str) -> Any:
    drawn = np.random.default_rng(0).standard_normal(shape) * 3
    return np.where(np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) % 3, drawn, 0).astype(
        dtype
    )


def written(values: Any, plainly: bool, rows: list[int]) -> h5py.File:
    file = h5py.File(io.BytesIO(), "w")
    how = storage(values.shape, values.dtype.itemsize)
    dataset = file.create_dataset("x", values.shape, values.dtype, **how)
    if plainly:
        for row in rows:
            dataset[row] = values[row]
    else:
        write_rows(dataset, ((row, values[row]) for row in rows))
    file.flush()
    return file


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_what_is_read_is_what_was_written(shape: tuple[int, ...], dtype: str) -> None:
    values, rows = values_of(shape, dtype), list(range(shape[0]))
    with written(values, False, rows) as file:
        assert np.array_equal(file["x"][()], values)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_chunk_is_the_one_that_hdf5_writes_itself(shape: tuple[int, ...]) -> None:
    """But for gzip, of which the two may have different versions: its content is compared."""
    import zlib

    values, rows = values_of(shape, "f2"), list(range(shape[0]))
    with written(values, False, rows) as ours, written(values, True, rows) as theirs:
        count = theirs["x"].id.get_num_chunks()
        assert ours["x"].id.get_num_chunks() == count
        for number in range(count):
            place = theirs["x"].id.get_chunk_info(number).chunk_offset
            (mask, one), (other_mask, other) = (
                file["x"].id.read_direct_chunk(place) for file in (ours, theirs)
            )
            assert mask == other_mask == 0
            assert zlib.decompress(one[:-4]) == zlib.decompress(other[:-4])
            assert fletcher32(other[:-4]).to_bytes(4, "little") == other[-4:]


def test_rows_that_are_not_given_are_zero() -> None:
    values = values_of((3000, 2, 11, 11, 3), "f2")
    with written(values, False, [1, 2, 2999]) as file:
        found = file["x"][()]
        assert np.array_equal(found[[1, 2, 2999]], values[[1, 2, 2999]])
        assert not np.delete(found, [1, 2, 2999], axis=0).any()


def test_a_dataset_with_other_filters_is_refused() -> None:
    with h5py.File(io.BytesIO(), "w") as file:
        dataset = file.create_dataset("x", (4, 4), "f4", chunks=(2, 4), compression="gzip")
        with pytest.raises(ValueError, match="filters"):
            write_rows(dataset, [(0, np.zeros(4, np.float32))])


@given(st.binary(max_size=3000))
@settings(max_examples=60, deadline=None)
def test_the_checksum_is_that_of_the_definition(content: bytes) -> None:
    first = second = 0
    for i in range(0, len(content), 2):
        first += int.from_bytes(content[i : i + 2].ljust(2, b"\0"), "big")
        first = (first & 0xFFFF) + (first >> 16)
        second += first
        second = (second & 0xFFFF) + (second >> 16)
    assert fletcher32(content) == second << 16 | first
