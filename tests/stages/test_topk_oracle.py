"""However the images are cut up and put together, the result is what one long sort finds."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.network import tally
from cnnvis_cli.network.tally import Slots, Tally
from cnnvis_cli.nouns import Axis, Layer, ReceptiveField
from cnnvis_cli.stages.topk.assemble import _layer_groups, _results
from cnnvis_cli.stages.topk.job import Partition
from cnnvis_cli.store.topk import TopK
from cnnvis_cli.store.topk_file import LayerResult

VALUES = [-math.inf, -2.5, -0.0, 0.0, 0.5, 1.0, 1.0, 3.0, math.nan]
FIELD = ReceptiveField(Axis(), Axis())
LAYERS = (
    Layer("conv1", "0", "conv", 2, (2, 3), FIELD),
    Layer("conv2", "1", "conv", 1, (1, 2), FIELD),
    Layer("fc3", "2", "fc", 3, (1, 1), FIELD),
)


class Slot(NamedTuple):
    """One kept place; the order of the contract is that of `key`."""

    activation: float
    image: int
    row: int
    column: int

    @property
    def key(self) -> tuple[float, int, int, int]:
        return -self.activation, self.image, self.row, self.column


class Shelf(dict[int, Arrays]):
    """Parts in memory."""

    folder = Path("nowhere")

    def read(self, number: int, _names: Sequence[str]) -> Arrays:
        return self[number]


class Case(NamedTuple):
    """A dataset as its activations, and how it is cut."""

    maps: dict[str, NDArray[np.float32]]  # by layer: (N, C, h, w)
    used: NDArray[np.bool_]
    labels: NDArray[np.int32]
    k: int
    cut: Partition


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few distinct values, so that ties are the rule; often fewer images than k."""
    size, k = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    count = draw(st.integers(1, 40 // size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.array(draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=9)), np.float32)
    maps = {la.alias: rng.choice(values, (count, la.channels, *la.map)) for la in LAYERS}
    used = rng.random(count) < draw(st.sampled_from([0.0, 0.5, 1.0, 1.0]))
    labels = np.sort(rng.integers(-1, 3, count)).astype(np.int32)
    return Case(maps, used, labels, k, Partition(count, size))


def part_of(case: Case, number: int) -> Arrays:
    """Return what one process finds in one part: full batches, padded."""
    size, account = case.cut.size, Tally(LAYERS, case.k, True, torch.device("cpu"))
    for batch in case.cut.batches_of(number):
        rows = slice(batch * size, (batch + 1) * size)
        used, labels = np.zeros(size, np.bool_), np.full(size, -1, np.int32)
        used[: len(case.used[rows])] = case.used[rows]
        labels[: len(case.used[rows])] = case.labels[rows]
        slots = Slots(batch * size, used, labels)
        for layer in LAYERS:
            maps = np.full((size, layer.channels, *layer.map), 9, np.float32)  # padding is loud
            maps[: len(case.used[rows])] = case.maps[layer.alias][rows]
            output = torch.from_numpy(maps if layer.kind == "conv" else maps[..., 0, 0])
            account.see(layer, output, slots)
        account.end(slots)
    return account.arrays()


def put_together(case: Case, sources: list[Shelf], room: int = 100) -> list[LayerResult]:
    identity = {"k": case.k, "min": True}
    return list(_results(identity, case.cut, _layer_groups(LAYERS, room), sources))  # type: ignore[arg-type]


def sorted_places(case: Case, layer: Layer, channel: int, sign: int) -> list[Slot]:
    """Return the k strongest places by one sort over everything, one an image."""
    best = []
    for image in np.flatnonzero(case.used).tolist():
        places = [
            Slot(float(sign * value) + 0.0, image, row, column)
            for (row, column), value in np.ndenumerate(case.maps[layer.alias][image, channel])
            if not math.isnan(value)
        ]
        best += [min(places, key=lambda slot: slot.key)] if places else []
    return sorted(best, key=lambda slot: slot.key)[: case.k]


def told(places: TopK, channel: int, sign: int) -> list[Slot]:
    """Return the slots of a channel in use; the others must be empty, and at the end."""
    columns = (values[channel].tolist() for values in vars(places).values())
    slots = [Slot(*slot) for slot in zip(*columns, strict=True)]
    taken = [slot for slot in slots if slot.image >= 0]
    for slot in slots[len(taken) :]:
        assert math.isnan(slot.activation)
        assert slot[1:] == (-1, 0, 0)
    assert not any(slot.activation == 0 and np.signbit(slot.activation) for slot in taken)
    return [slot._replace(activation=sign * slot.activation + 0.0) for slot in taken]


def same(a: LayerResult, b: LayerResult) -> None:
    """Return whether two values are identical bit for bit."""
    assert a.lowest is not None
    assert b.lowest is not None
    pairs = [
        (vars(a.strongest), vars(b.strongest)),
        (vars(a.lowest), vars(b.lowest)),
        (a.arrays, b.arrays),
    ]
    for mine, yours in pairs:
        assert mine.keys() == yours.keys()
        for name, values in mine.items():
            assert values.dtype == yours[name].dtype
            assert values.tobytes() == yours[name].tobytes(), name


@settings(max_examples=300, deadline=None)
@given(case=cases(), shards=st.integers(1, 7), seed=st.integers(0, 999))
def test_any_cut_in_any_order_with_overlaps_is_one_long_sort(
    case: Case, shards: int, seed: int
) -> None:
    chance = random.Random(seed)
    numbers = list(range(case.cut.count))
    chance.shuffle(numbers)
    everything = Shelf({number: part_of(case, number) for number in numbers})
    shelves = [Shelf() for _ in range(shards)]
    for number in numbers:  # every part is somewhere, some in several places
        for shelf in chance.sample(shelves, chance.randint(1, shards)):
            shelf[number] = part_of(case, number)
    whole = put_together(case, [everything])
    for a, b in zip(put_together(case, shelves, chance.randint(1, 6)), whole, strict=True):
        same(a, b)
    for result in whole:
        assert result.lowest is not None
        for channel in range(result.layer.channels):
            wanted = sorted_places(case, result.layer, channel, 1)
            assert told(result.strongest, channel, 1) == wanted
            lowest = sorted_places(case, result.layer, channel, -1)
            assert told(result.lowest, channel, -1) == lowest


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_statistics_are_over_every_place_of_every_used_image(case: Case) -> None:
    shelf = Shelf({number: part_of(case, number) for number in range(case.cut.count)})
    for result in put_together(case, [shelf]):
        maps = case.maps[result.layer.alias][case.used].astype(np.float64)
        values = maps.transpose(1, 0, 2, 3).reshape(result.layer.channels, -1)
        found = result.arrays
        if not values.size:
            for name in ("mean", "std", "max", "active"):
                assert np.isnan(found[f"stats/{name}"]).all()
            continue
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(found["stats/mean"], values.mean(axis=1), rtol=1e-6)
            finite = np.isfinite(values).all(axis=1)
            np.testing.assert_allclose(
                found["stats/std"][finite], values[finite].std(axis=1), atol=1e-6
            )
        known = ~np.isnan(values).all(axis=1)
        assert np.isnan(found["stats/max"][~known]).all()
        np.testing.assert_array_equal(
            found["stats/max"][known], np.nanmax(values[known], axis=1) if known.any() else []
        )
        np.testing.assert_allclose(found["stats/active"], (values > 0).mean(axis=1))
        np.testing.assert_array_equal(found["stats/dead"], ~(values > 0).any(axis=1))
        assert found["histogram"].sum() == (~np.isnan(values)).sum()  # small maps count whole


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_selectivity_is_that_of_morcos(case: Case) -> None:
    shelf = Shelf({number: part_of(case, number) for number in range(case.cut.count)})
    seen = sorted(set(case.labels[case.used & (case.labels >= 0)].tolist()))
    for result in put_together(case, [shelf]):
        maps = np.maximum(case.maps[result.layer.alias].astype(np.float64), 0)
        means = maps.mean(axis=(2, 3))  # NaN > 0 is false: NaN is not above 0
        means = np.nan_to_num(maps, nan=0.0).mean(axis=(2, 3))
        for channel in range(result.layer.channels):
            by_class = [means[case.used & (case.labels == la), channel].mean() for la in seen]
            index = result.arrays["stats/selectivity"][channel]
            label = result.arrays["stats/class"][channel]
            if len(seen) < 2 or max(by_class) == 0:
                assert (np.isnan(index), label) == (True, -1)
                continue
            best = int(np.argmax(by_class))
            others = [mean for i, mean in enumerate(by_class) if i != best]
            wanted = (by_class[best] - np.mean(others)) / (by_class[best] + np.mean(others))
            assert index == pytest.approx(wanted, rel=1e-6, abs=1e-9)
            assert by_class[seen.index(label)] == pytest.approx(by_class[best])


@given(st.integers(1, 200_000), st.integers(1, 300))
def test_parts_cover_every_batch_once(images: int, size: int) -> None:
    cut = Partition(images, size)
    assert [b for part in range(cut.count) for b in cut.batches_of(part)] == list(
        range(cut.batches)
    )
    assert sum(len(cut.images_of(part)) for part in range(cut.count)) == images
    assert cut.count <= 512 or cut.length == 1
    assert all(len(cut.batches_of(part)) for part in range(cut.count))


def test_tensors_and_compiled_loops_agree() -> None:
    """The tensor operations of a GPU, on the same maps."""
    maps, used = torch.randn(4, 6, 9, 8), np.array([True, True, False, True])
    compiled = tally.summarise(tally.places_first(maps), used)
    plain = tally._summarize(tally.places_first(maps), torch.from_numpy(used))
    assert torch.equal(compiled.value, plain.value)
    assert torch.equal(compiled.place, plain.place)
    torch.testing.assert_close(compiled.sums, plain.sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled.positive, plain.positive, rtol=1e-5, atol=1e-5)
