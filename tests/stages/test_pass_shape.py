"""How many slots and threads a process takes for its ascents, without any change of bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cnnvis_cli.ascent.objectives import Objective
from cnnvis_cli.nouns import Axis, Box, Layer, ReceptiveField
from cnnvis_cli.stages.optimize.evaluation import fitting_shape
from cnnvis_cli.stages.optimize.setup import LayerSetup

SIZE = 16


def setup(run_group: int = 1) -> LayerSetup:
    axis = Axis(3, 1, 0)
    field = ReceptiveField(axis, axis)
    layer = Layer("conv1", "0", "conv", 5, (1, 1), field)
    return LayerSetup(layer, Box(0, 0, 3, 3), Objective(run_group=run_group), SIZE)


def passes(differs: Callable[[int, int], bool], seconds: float = 0.0, divides: bool = True) -> Any:
    """Return passes whose bits differ for some numbers of slots and threads."""

    def pass_of(slots: int) -> Any:
        def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            threads = torch.get_num_threads()
            time.sleep(seconds / (threads if divides else 1))
            value = x.sum((1, 2, 3)) + targets
            return value + 1e-3 * differs(slots, threads), value > 0, x

        return evaluate

    return pass_of


@pytest.mark.parametrize(
    ("used", "least", "slots"), [(1, 1, 1), (3, 1, 3), (1, 2, 2), (3, 4, 4), (3, 8, 8), (1, 16, 16)]
)
def test_as_few_slots_as_give_the_same_bits(used: int, least: int, slots: int) -> None:
    found = fitting_shape(setup(), passes(lambda count, _: count < least), used, 1)
    assert found == (slots, 1)


def test_run_groups_stay_together() -> None:
    assert fitting_shape(setup(run_group=4), passes(lambda *_: False), 4, 1).slots == 4
    assert fitting_shape(setup(run_group=4), passes(lambda n, _: n < 5), 4, 1).slots == 8


@pytest.mark.parametrize(
    ("divides", "differs", "threads"), [(True, False, 2), (True, True, 1), (False, False, 1)]
)
def test_threads_only_for_work_whose_bits_stay(divides: bool, differs: bool, threads: int) -> None:
    different = passes(lambda _, count: differs and count > 1, 0.05, divides)
    assert fitting_shape(setup(), different, SIZE, 2).threads == threads
