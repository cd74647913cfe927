"""Step policies: how far they go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnnvis_cli.ascent.steps import CALIBRATED, Normalized


@pytest.mark.parametrize("scale", [1e-18, 1e-4, 1.0, 1e9])
def test_a_normalized_step_has_one_length_whatever_the_gradient_s(scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 3, 7, 9, generator=generator)
    gradient = torch.randn(3, 3, 7, 9, generator=generator) * scale
    gradient[1] = 0
    moved = Normalized(2.0).along(x.clone(), torch.zeros(3), gradient)
    step = (moved - x).double()
    lengths = step.square().mean(dim=(1, 2, 3)).sqrt().tolist()
    assert lengths == pytest.approx([2, 0, 2], rel=1e-4)
    expected = gradient[2].double() / gradient[2].double().square().mean().sqrt() * 2
    np.testing.assert_allclose(step[2].numpy(), expected.numpy(), atol=1e-5)


def test_a_step_does_not_depend_on_its_neighbours() -> None:
    x, gradient = torch.randn(5, 3, 8, 8), torch.randn(5, 3, 8, 8)
    together = CALIBRATED.along(x.clone(), torch.zeros(5), gradient)
    for i in range(5):
        alone = CALIBRATED.along(x[i : i + 1].clone(), torch.zeros(1), gradient[i : i + 1])
        assert torch.equal(together[i], alone[0])
