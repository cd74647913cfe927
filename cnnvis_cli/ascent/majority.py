"""The toolbox's "majority" image: the first of an ascent at which the unit leads its layer.

Yosinski et al.'s deep-visualization-toolbox keeps it beside the best one (optimize/
gradient_optimizer.py, majority_xx): it is often the plainer of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FirstLeads:
    """Per slot, the first image at which the unit leads; zeros while there is none."""

    image: Tensor  # (B, 3, h, w)
    step: Tensor  # (B,) int32, -1 while there is none

    @classmethod
    def like(cls, x: Tensor) -> FirstLeads:
        """Return that of ascents with images like these, before they begin."""
        none = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
        return cls(torch.zeros_like(x), none)

    @property
    def columns(self) -> tuple[tuple[Tensor, str], ...]:
        """Return the tensors by the names that they have in an ascent and its state."""
        return (self.image, "majority"), (self.step, "majority_step")

    def begin(self, rows: Tensor) -> None:
        """Forget the ascents that were in some slots."""
        self.image[rows], self.step[rows] = 0, -1

    def keep(self, x: Tensor, age: Tensor, leads: Tensor) -> None:
        """Keep the images at this step whose units lead for the first time, all of them (B,)."""
        new = leads & (self.step < 0)
        torch.where(new[:, None, None, None], x, self.image, out=self.image)
        torch.where(new, age, self.step, out=self.step)
