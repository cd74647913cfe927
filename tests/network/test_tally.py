"""What a pass tells of every channel, against loops over single numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli import histogram
from cnnvis_cli.arrays import Arrays
from cnnvis_cli.network import tally
from cnnvis_cli.network.tally import Slots, Summary, Tally
from cnnvis_cli.nouns import Axis, Layer, ReceptiveField

FEW = [-math.inf, -2.0, -0.0, 0.0, 0.25, 1.0, 1.0, 3.0, math.inf, math.nan]
CPU = torch.device("cpu")
Reader = Callable[[Tensor], Summary]


def every(count: int) -> NDArray[np.bool_]:
    return np.ones(count, np.bool_)


def compiled(maps: Tensor) -> Summary:
    assert tally.load_loops() is not None
    return tally.summarise(tally.places_first(maps), every(len(maps)))


def tensors(maps: Tensor) -> Summary:
    """Return the reading in tensor operations, whatever else there is."""
    return tally._summarize(tally.places_first(maps), torch.ones(len(maps), dtype=torch.bool))


def halved(maps: Tensor) -> Summary:
    """Return the compiled reading of bfloat16 as it lies; all of FEW are numbers of bfloat16."""
    flat = tally.places_first(maps.bfloat16(), halved=True)
    assert flat.dtype == torch.bfloat16
    return tally.summarise(flat, every(len(maps)))


READERS = {"compiled": compiled, "tensors": tensors, "halved": halved}


@pytest.fixture(params=["compiled", "tensors"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With numba's loops and without."""
    if request.param == "tensors":
        monkeypatch.setattr(tally, "load_loops", lambda: None)
    else:
        assert tally.load_loops() is not None
    return str(request.param)


def layer(alias: str, channels: int, height: int, width: int) -> Layer:
    return Layer(alias, alias, "conv", channels, (height, width), ReceptiveField(Axis(), Axis()))


def slowly(values: list[float]) -> tuple[float, int]:
    """Return the largest of a map's values and the first place where it is; NaN is no value."""
    known = [(i, v) for i, v in enumerate(values) if not math.isnan(v)]
    if not known:
        return -math.inf, -1
    best = max(v for _, v in known)
    return best + 0.0, next(i for i, v in known if v == best)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_largest_value_and_the_first_place_of_it(reader: Reader, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, 4)) for _ in range(4))
    count = int(np.prod(shape))
    drawn = data.draw(st.lists(st.sampled_from(FEW), min_size=count, max_size=count))
    maps = torch.tensor(drawn).reshape(shape)
    found = reader(maps)
    for b in range(shape[0]):
        for c in range(shape[1]):
            value, place = slowly(maps[b, c].flatten().tolist())
            assert (found.value[b, c].item(), found.place[b, c].item()) == (value, place)
            assert not (value == 0 and np.signbit(found.value[b, c].item()))
    on = [sum(x > 0 for x in maps[:, c].flatten().tolist()) for c in range(shape[1])]
    assert found.sums[3].tolist() == on


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("shape", [(3, 5, 40, 41), (2, 33, 7, 3), (4, 6)])
def test_sums_over_the_map(reader: Reader, shape: tuple[int, ...]) -> None:
    drawn = np.random.default_rng(0).normal(0.3, 2, shape).astype(np.float32)
    maps = torch.from_numpy(drawn).bfloat16().float()
    found = reader(maps)
    exact = maps.double().reshape(*shape[:2], -1)
    positive = exact.clamp_min(0).sum(-1)
    assert ((found.positive - positive).abs() <= 2e-7 * exact.abs().sum(-1)).all()
    scale = torch.stack((exact.abs(), exact * exact, exact.abs())).sum(dim=(1, 3))
    sums = torch.stack((exact, exact * exact, exact.clamp_min(0))).sum(dim=(1, 3))
    assert ((found.sums[:3] - sums).abs() <= 2e-7 * scale).all()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("loops", [True, False])
def test_rectifying_on_the_way_is_reading_and_then_rectifying(
    loops: bool, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not loops:
            patch.setattr(tally, "load_loops", lambda: None)
        shape = tuple(data.draw(st.integers(1, 5)) for _ in range(3))
        count = int(np.prod(shape))
        drawn = data.draw(st.lists(st.sampled_from(FEW), min_size=count, max_size=count))
        maps = torch.tensor(drawn).reshape(shape)
        rectified = maps.clone()
        used = every(len(maps))
        plain = vars(tally.summarise(maps, used))
        found = vars(tally.summarise(rectified, used, rectify=True))
        for name, values in plain.items():
            assert values.equal(found[name]) or torch.allclose(values, found[name], equal_nan=True)
        torch.testing.assert_close(rectified, maps.relu(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("shape", [(2, 130, 13, 9), (3, 20, 30, 31), (2, 70)])
def test_maps_in_bfloat16_are_read_where_they_lie_to_the_same_bits(
    shape: tuple[int, ...], rectify: bool
) -> None:
    maps = torch.randn(shape).bfloat16()
    maps[0, 0], maps[1, 1], maps[maps.abs() < 0.1] = math.nan, -math.inf, -0.0
    if maps.dim() == 4:
        maps = maps.contiguous(memory_format=torch.channels_last)
    one = layer("conv1", shape[1], *(shape[2:] or (1, 1)))
    slots = Slots(0, np.arange(shape[0]) > 0, np.zeros(shape[0], np.int32))
    found = []
    for output in (maps, maps.float()):
        account = Tally([one], 2, False, CPU)
        account.see(one, output, slots, rectify)
        account.end(slots)
        found.append(account.arrays() | {"output": output.float().numpy()})
    for name, values in found[1].items():
        np.testing.assert_array_equal(found[0][name], values, name)


@pytest.mark.parametrize("way_of", ["compiled", "tensors"])
def test_sums_leave_out_what_is_not_used(way_of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way_of == "tensors":
        monkeypatch.setattr(tally, "load_loops", lambda: None)
    maps = torch.randn(3, 4, 5, 5)
    maps[1] = math.nan
    some = tally.summarise(tally.places_first(maps), np.array([True, False, True]))
    others = tally.summarise(tally.places_first(maps[[0, 2]]), every(2))
    torch.testing.assert_close(some.sums, others.sums)


def test_channels_last_and_first_are_read_alike() -> None:
    maps = torch.randn(3, 20, 9, 8)
    last = maps.contiguous(memory_format=torch.channels_last)
    for a, b in zip(*(vars(compiled(m)).values() for m in (maps, last)), strict=True):
        assert torch.equal(a, b)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_bin_holds_its_values(drawn: list[float]) -> None:
    values = np.array(drawn, np.float32)
    edges = histogram.edges()
    assert len(edges) == histogram.BINS + 1
    assert (np.diff(edges) > 0).all()
    for value, number in zip(values.tolist(), histogram.bins(values).tolist(), strict=True):
        inside = min(max(value, np.nextafter(edges[0], 0)), np.nextafter(edges[-1], 0))
        if value >= 0:
            assert edges[number] <= inside < edges[number + 1] or number == histogram.BINS_PER_SIGN
        else:
            assert (
                edges[number] < inside <= edges[number + 1] or number == histogram.BINS_PER_SIGN - 1
            )


def test_the_histogram_counts_the_sampled_places(way: str) -> None:
    maps = torch.randn(4, 5, 9, 7) * torch.tensor([1e-7, 1e-3, 1, 1e3, 1e9])[:, None, None]
    maps[1, 2, 3] = math.nan
    maps[2, 3] = 0
    slots = Slots(10, np.array([True, True, False, True]), np.full(4, -1, np.int32))
    account = Tally([layer("conv1", 5, 9, 7)], 2, False, CPU)
    account.see(layer("conv1", 5, 9, 7), maps, slots)
    account.end(slots)
    arrays = account.arrays()
    counts = np.zeros((5, histogram.BINS), np.int64)
    counts.ravel()[arrays["bin"]] = arrays["count"]
    wanted = np.zeros_like(counts)
    for b in (0, 1, 3):
        places = tally.sampled_places(np.array([10 + b]), 63)[0]
        assert len(set(places.tolist())) == tally.HISTOGRAM_SAMPLE
        for c in range(5):
            sample = maps[b, c].flatten()[places].numpy()
            for number in histogram.bins(sample[~np.isnan(sample)]):
                wanted[c, number] += 1
    np.testing.assert_array_equal(counts, wanted)


def test_small_maps_are_counted_whole() -> None:
    places = tally.sampled_places(np.arange(50), tally.HISTOGRAM_SAMPLE)
    assert all(sorted(row) == list(range(tally.HISTOGRAM_SAMPLE)) for row in places.tolist())


def test_every_place_has_its_turn() -> None:
    places = tally.sampled_places(np.arange(5000), 400)
    turns = np.bincount(places.ravel(), minlength=400)
    assert turns.min() > 0.8 * turns.mean()


def test_quantiles_are_those_of_the_values_to_a_bin() -> None:
    values = np.random.default_rng(1).normal(1, 3, (3, 20000)).astype(np.float32)
    counts = np.stack([np.bincount(histogram.bins(v), minlength=histogram.BINS) for v in values])
    found = histogram.quantiles(counts, values.max(axis=1).astype(np.float64))
    wanted = np.quantile(values, histogram.LEVELS, axis=1).T
    assert (np.abs(found - wanted) <= 0.13 * np.abs(wanted) + 0.01).all()
    assert (found <= values.max(axis=1, keepdims=True)).all()
    assert np.isnan(histogram.quantiles(counts * 0, np.zeros(3))).all()


class Place(NamedTuple):
    activation: float
    image: int
    place: int


def strongest(maps: NDArray[np.float32], used: NDArray[np.bool_], k: int, c: int) -> list[Place]:
    """Return the k strongest places of a channel by Python's sort; maps (N, C, places)."""
    seen = [(slowly(maps[i, c].tolist()), i) for i in range(len(maps)) if used[i]]
    places = [Place(value, i, at) for (value, at), i in seen if at >= 0]
    return sorted(places, key=lambda p: (-p.activation, p.image))[:k]


def told(arrays: Arrays, prefix: str, c: int) -> list[Place]:
    columns = (arrays[prefix + name][c].tolist() for name in ("activation", "image", "place"))
    slots = [Place(*slot) for slot in zip(*columns, strict=True)]
    empty = [slot for slot in slots if slot.image < 0]
    assert all(math.isnan(slot.activation) and slot.place == 0 for slot in empty)
    assert slots == [slot for slot in slots if slot.image >= 0] + slots[len(slots) - len(empty) :]
    return slots[: len(slots) - len(empty)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("loops", [True, False])
def test_a_tally_keeps_the_k_strongest_and_the_k_lowest(loops: bool, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not loops:
            patch.setattr(tally, "load_loops", lambda: None)
        size, k = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
        batches = data.draw(st.integers(1, 4))
        count = size * batches
        numbers = st.lists(st.sampled_from(FEW), min_size=count * 10, max_size=count * 10)
        maps = np.array(data.draw(numbers), np.float32).reshape(count, 2, 5)
        fc = maps[:, 1, :3].copy()
        used = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
        layers = [layer("conv1", 2, 1, 5), layer("fc2", 3, 1, 1)]
        account = Tally(layers, k, True, CPU)
        for first in range(0, count, size):
            rows = slice(first, first + size)
            slots = Slots(first, used[rows], np.zeros(size, np.int32))
            account.see(layers[0], torch.from_numpy(maps[rows, :, None]), slots)
            account.see(layers[1], torch.from_numpy(fc[rows]), slots)
            account.end(slots)
    arrays = account.arrays()
    assert arrays["images"] == used.sum()
    everything = [(maps, c) for c in range(2)] + [(fc[..., None], c) for c in range(3)]
    for row, (values, c) in enumerate(everything):
        assert told(arrays, "", row) == strongest(values, used, k, c)
        assert told(arrays, "min.", row) == strongest(-values, used, k, c)


def test_class_sums_take_the_rectified_values_of_used_images(way: str) -> None:
    labels = np.array([0, 0, 2, -1, 2, 1], np.int32)
    used = np.array([True, False, True, True, True, True])
    values = torch.randn(6, 4)
    slots = Slots(0, used, labels)
    account = Tally([layer("fc1", 4, 1, 1)], 1, False, CPU)
    account.see(layer("fc1", 4, 1, 1), values, slots)
    account.end(slots)
    arrays = account.arrays()
    assert arrays["class"].tolist() == [0, 1, 2]
    assert arrays["class_images"].tolist() == [1, 1, 2]
    positive = values.clamp_min(0).double().numpy()
    wanted = [positive[0], positive[5], positive[2] + positive[4]]
    np.testing.assert_allclose(arrays["class_positive"], wanted)
