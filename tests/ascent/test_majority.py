"""The first image at which a unit leads its layer: against all images that are shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cnnvis_cli.ascent.climb import AscentBatch, AscentSpec, climb
from cnnvis_cli.ascent.starts import noise
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import STYLES

MEAN = torch.full((1, 3, 1, 1), 120.0)
FIRST = 12.0  # value from which on the unit leads


@pytest.mark.parametrize(("name", "every"), [("3", 1), ("natural", 16)])
@pytest.mark.parametrize("steady", [False, True])
def test_it_is_the_first_one_shown_that_leads(name: str, every: int, steady: bool) -> None:
    """Of pictures themselves, not of moved ones; another unit never leads."""
    shown: list[tuple[Tensor, Tensor]] = []

    def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = x.mean(dim=(1, 2, 3))
        leads = (value > FIRST) & (targets == 0)
        shown.append((x.clone(), leads.clone()))
        return value, leads, torch.full_like(x, 1e-3)

    style = replace(STYLES[name], iterations=65)
    style = style.with_step(Constant(2000.0)) if style.calibrates else style
    style = replace(style, regularizers=())
    specs = [[AscentSpec(i, i, style, noise(i, (9, 9)), seed=i, place=i)] for i in range(2)]
    batch = AscentBatch(2, steady=steady, majority=True)
    one, other = sorted(climb(evaluate, specs, batch, MEAN), key=lambda ascent: str(ascent.key))
    plain = [step for step in range(65) if step % every == 0 or step == 64]
    first = next(step for step in plain if shown[step][1][0])
    assert 0 < first < 64
    assert one.majority_step == first
    assert one.majority is not None
    assert torch.equal(one.majority, shown[first][0][0])
    assert one.best_step > first
    assert other.majority_step == -1
    assert other.majority is not None
    assert not other.majority.any()


def test_it_is_kept_on_request_alone() -> None:
    def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.mean(dim=(1, 2, 3)), targets >= 0, torch.ones_like(x)

    style = replace(STYLES["3"], iterations=2)
    (ascent,) = climb(evaluate, [[AscentSpec(0, 0, style, noise(0, (5, 5)))]], AscentBatch(1), MEAN)
    assert ascent.majority is None
    assert ascent.majority_step == -1
