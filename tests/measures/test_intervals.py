"""Images from five intervals of a unit's activation."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnvis_cli.measures.intervals import class_means, in_intervals

VALUE = st.one_of(st.integers(-3, 60).map(float), st.just(float("nan")))


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUE, max_size=80), st.integers(1, 9), st.integers(0, 99))
def test_each_image_lies_in_its_interval(values: list[float], count: int, seed: int) -> None:
    array = np.array(values, np.float32)
    found = in_intervals(array, count, np.random.default_rng(seed))
    active = sorted(value for value in values if value > 0)
    strongest = [values[n] for n in found["strongest"]]
    assert strongest == active[::-1][:count]
    for name, low, high in (("75 to 90 %", 0.75, 0.9), ("median", 0.45, 0.55), ("low", 0, 0.25)):
        shown = [values[n] for n in found[name]]
        allowed = active[round(low * len(active)) : round(high * len(active))]
        left = max(0, min(len(active) - len(strongest), round(high * len(active))))
        assert len(shown) == min(count, max(0, left - round(low * len(active))))
        assert set(shown) <= set(allowed)
        assert shown == sorted(shown, reverse=True)
        assert not set(found[name].tolist()) & set(found["strongest"].tolist())
    silent = [value for value in values if value <= 0]
    if silent:
        assert len(found["none"]) == min(count, len(silent))
        assert all(values[n] <= 0 for n in found["none"])
    else:
        rest = active[: len(active) - len(strongest)]
        assert [values[n] for n in found["lowest"]] == rest[:count][::-1]
    assert all(len(set(rows.tolist())) == len(rows) for rows in found.values())


def test_the_seed_decides_which_are_drawn() -> None:
    values = np.arange(1, 1001, dtype=np.float32)
    draws = [in_intervals(values, 9, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert (draws[0]["median"] == draws[1]["median"]).all()
    assert (draws[0]["median"] != draws[2]["median"]).any()
    assert (draws[0]["strongest"] == draws[2]["strongest"]).all()


def test_class_means_are_of_values_above_0_and_known_classes() -> None:
    values = np.array([[1, -3], [3, 2], [5, 8], [7, np.nan], [np.nan, np.nan]], np.float32)
    means, counts = class_means(values, np.array([0, 0, -1, 2, 2], np.int32))
    assert counts.tolist() == [2, 0, 1]
    assert means.tolist() == [[2, 1], [0, 0], [7, 0]]
