"""The k strongest places: laws of merging, against Python's own sort with the stated order."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cnnvis_cli.store.topk import TopK

VALUES = st.sampled_from([-math.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, math.inf, math.nan])
CASES = settings(max_examples=300, deadline=None)


class Candidate(NamedTuple):
    activation: float
    image: int
    row: int
    column: int


Channel = list[Candidate]  # what was seen of one channel


@dataclass(frozen=True)
class Recorded:
    """Candidates of a few channels and how many to keep."""

    channels: list[Channel]
    k: int


@st.composite
def candidates(draw: st.DrawFn) -> Recorded:
    """Few distinct values, so that ties are the rule; every (image, row, column) once."""
    k = draw(st.integers(1, 5))
    place = st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 2))
    places = [
        draw(st.lists(place, unique=True, max_size=9)) for _ in range(draw(st.integers(1, 3)))
    ]
    return Recorded([[Candidate(draw(VALUES), *at) for at in channel] for channel in places], k)


def sort_key(candidate: Candidate) -> tuple[float, int, int, int]:
    """Return the contract: activation descending, then image, row and column ascending."""
    return -candidate.activation, candidate.image, candidate.row, candidate.column


def kept(channel: Channel, k: int) -> Channel:
    """Return what a channel should keep, by a slow reference."""
    return sorted((c for c in channel if not math.isnan(c.activation)), key=sort_key)[:k]


def topk_of(channels: list[Channel], k: int) -> TopK:
    """Candidates as one value; rows are filled up with nothing."""
    width = max((len(channel) for channel in channels), default=0)
    padded = [c + [Candidate(7.0, -1, 0, 0)] * (width - len(c)) for c in channels]
    columns = np.array(padded, np.float64).reshape(len(channels), width, 4)
    image, row, column = (columns[..., i].astype(np.int64) for i in (1, 2, 3))
    return TopK.of(columns[..., 0].astype(np.float32), image, row, column, k)


def told(top: TopK) -> list[list[Any]]:
    """Return every slot as plain values, in order; None for an empty one."""
    rows = []
    for channel in range(len(top.image)):
        slots = zip(
            top.activation[channel].tolist(),
            top.image[channel].tolist(),
            top.row[channel].tolist(),
            top.column[channel].tolist(),
            strict=True,
        )
        rows.append([None if math.isnan(s[0]) and s[1:] == (-1, 0, 0) else s for s in slots])
    return rows


def expected(channels: list[Channel], k: int) -> list[list[Any]]:
    return [
        [*map(tuple, kept(channel, k)), *[None] * (k - len(kept(channel, k)))]
        for channel in channels
    ]


@given(candidates())
@CASES
def test_it_keeps_what_a_sort_keeps(seen: Recorded) -> None:
    assert told(topk_of(seen.channels, seen.k)) == expected(seen.channels, seen.k)


@given(candidates(), st.randoms(use_true_random=False), st.integers(1, 4))
@CASES
def test_any_split_in_any_order_gives_the_same(
    seen: Recorded, chance: random.Random, shards: int
) -> None:
    piles: list[list[Channel]] = [[[] for _ in seen.channels] for _ in range(shards)]
    for number, channel in enumerate(seen.channels):
        for candidate in channel:
            piles[chance.randrange(shards)][number].append(candidate)
    for pile in piles:
        for channel in pile:
            chance.shuffle(channel)
    tops = [topk_of(pile, seen.k) for pile in piles]
    chance.shuffle(tops)
    assert told(reduce(TopK.merge, tops)) == expected(seen.channels, seen.k)


@given(candidates(), candidates(), candidates())
@CASES
def test_merging_is_associative_commutative_and_idempotent(
    a: Recorded, b: Recorded, c: Recorded
) -> None:
    """Also where the same place was seen twice, as after a restart."""
    k, count = a.k, min(len(a.channels), len(b.channels), len(c.channels))
    value: dict[tuple[int, ...], float] = {}  # a place has one activation, wherever it is seen
    tops = []
    for seen in (a, b, c):
        channels = [
            [
                x._replace(activation=value.setdefault((number, *x[1:]), x.activation))
                for x in channel
            ]
            for number, channel in enumerate(seen.channels[:count])
        ]
        tops.append(topk_of(channels, k))
    x, y, z = tops
    assert told(x.merge(y).merge(z)) == told(x.merge(y.merge(z)))
    assert told(x.merge(y)) == told(y.merge(x))
    assert told(x.merge(x)) == told(x)
    assert told(x.merge(y).merge(x)) == told(x.merge(y))
    empty = TopK.empty(count, k)
    assert told(x.merge(empty)) == told(x) == told(empty.merge(x))


@given(candidates())
@example(Recorded([[Candidate(math.nan, 0, 0, 0)]], 2))
@example(Recorded([[]], 1))
@CASES
def test_empty_slots_are_as_the_contract_says(seen: Recorded) -> None:
    top = topk_of(seen.channels, seen.k)
    nothing = top.image == -1
    assert np.array_equal(nothing, np.isnan(top.activation))
    assert not top.row[nothing].any()
    assert not top.column[nothing].any()
    assert not (nothing[:, :-1] & ~nothing[:, 1:]).any()  # they come last
    assert top.activation.dtype == np.float32
    assert top.image.dtype == np.int64
    assert top.image.shape == (len(seen.channels), seen.k)


def test_zeros_of_both_signs_are_a_tie() -> None:
    channel = [Candidate(0.0, 2, 0, 0), Candidate(-0.0, 1, 0, 0), Candidate(0.0, 0, 1, 1)]
    assert topk_of([channel], 3).image.tolist() == [[0, 1, 2]]


def test_large_image_numbers_survive() -> None:
    """14 million images and more do not fit into half of an integer key."""
    high = 2**40
    top = TopK.of(
        np.ones((1, 2), np.float32),
        np.array([[high + 1, high]]),
        np.zeros((1, 2), np.int64),
        np.zeros((1, 2), np.int64),
        1,
    )
    assert top.image.tolist() == [[high]]
