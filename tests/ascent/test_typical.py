"""The style typical: what an image leaves in the layers below, against the stated formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cnnvis_cli.ascent.styles import STYLES
from cnnvis_cli.ascent.typical import (
    FULL,
    ActivationStatistics,
    TypicalParameterization,
    kept_typical,
    map_statistics,
    penalty,
)

RANDOM = np.random.default_rng(3)
LAYERS = ("one", 4), ("two", 2)


def statistics(**changed: np.ndarray) -> ActivationStatistics:
    middle = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    spread = np.linspace(0.1, 0.4, 12, dtype=np.float32).reshape(2, 6)
    return ActivationStatistics(LAYERS, **({"middle": middle, "spread": spread} | changed))


def test_the_penalty_is_what_the_docstring_says() -> None:
    """By numpy, in double precision: one layer with places, one of a single place each."""
    held = statistics()
    held.spread[1, 2] = 0  # a channel that never varies counts for nothing
    maps = {
        "one": RANDOM.normal(size=(3, 4, 5, 6)).astype(np.float32),
        "two": RANDOM.normal(size=(3, 2, 1, 1)).astype(np.float32),
    }
    wanted, first = np.zeros(3), 0
    for alias, channels in LAYERS:
        flat = maps[alias].reshape(3, channels, -1).astype(np.float64)
        found = np.stack([flat.mean(2), np.sqrt(flat.var(2) + 1e-6)], axis=1)
        own = slice(first, first + channels)
        spread = held.spread[:, own].astype(np.float64)
        apart = np.abs(found - held.middle[:, own]) / np.where(spread, spread, 1)
        over = np.where(spread, np.maximum(apart - 1.5, 0), 0) ** 2
        wanted += over.mean(axis=(1, 2)) / len(LAYERS)
        first += channels
    style = TypicalParameterization(statistics_below=held)
    tensors = {alias: torch.from_numpy(found) for alias, found in maps.items()}
    np.testing.assert_allclose(penalty(tensors, style, torch.zeros(3)), wanted, rtol=1e-4)
    for alias, channels in LAYERS:  # what images have costs nothing
        first = 0 if alias == "one" else LAYERS[0][1]
        tensors[alias] = torch.from_numpy(held.middle[0, first : first + channels])[None, :, None]
    held.middle[1] = 1e-3
    assert float(penalty(tensors, style, torch.zeros(1))) == 0


def test_map_statistics_do_not_lose_small_deviations() -> None:
    values = 1000 + RANDOM.normal(0, 0.5, (2, 3, 9, 9))
    found = map_statistics(torch.from_numpy(values).float())
    np.testing.assert_allclose(found[:, 1], values.std(axis=(2, 3)), rtol=1e-3)


def test_the_gradient_of_the_value_decides_whether_there_is_one() -> None:
    generator = torch.Generator().manual_seed(2)
    gradient, against = torch.randn(2, 3, 3, 32, 5, generator=generator)
    gradient[1] = 0
    found = kept_typical(gradient, torch.tensor([FULL / 2, 1.0, 0]), against, 2.0)
    unit = [
        part / part.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        for part in (gradient, against)
    ]
    half = unit[1][0] / 2  # half of the cost's weight, on half of 64 pixels
    torch.testing.assert_close(found[0], unit[0][0] - half)
    assert not found[1].any()
    torch.testing.assert_close(found[2], unit[0][2])


def test_other_numbers_are_another_style() -> None:
    one = replace(STYLES["typical"], image=TypicalParameterization(statistics_below=statistics()))
    other = replace(
        one,
        image=TypicalParameterization(statistics_below=statistics(middle=np.zeros((2, 6), "f4"))),
    )
    assert one == replace(one, image=TypicalParameterization(statistics_below=statistics()))
    assert one != other
    record = one.parameters()["image"]
    assert record["kind"] == "Typical"
    assert record["statistics_below"] == statistics().digest
    assert record["statistics_below"] != other.parameters()["image"]["statistics_below"]
    assert STYLES["typical"].parameters()["image"]["statistics_below"] is None


@pytest.mark.parametrize("count", [1, 3])
def test_penalties_do_not_depend_on_the_company(count: int) -> None:
    maps = torch.from_numpy(RANDOM.normal(size=(5, 6, 7, 7)).astype(np.float32))
    maps = maps.contiguous(memory_format=torch.channels_last)
    whole = map_statistics(maps)
    assert torch.equal(map_statistics(maps[2 : 2 + count]), whole[2 : 2 + count])
