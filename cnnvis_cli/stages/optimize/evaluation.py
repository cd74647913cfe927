"""One pass of a batch: the values that are climbed, and their gradients."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnnvis_cli.ascent.climb import Evaluate
from cnnvis_cli.engine import arithmetic, tensor_cores
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.trace import trace
from cnnvis_cli.nouns import Box
from cnnvis_cli.settings import Precision
from cnnvis_cli.stages.optimize.setup import LayerSetup


def evaluate_window(
    network: Network, setup: LayerSetup, box: Box, x: Tensor, targets: Tensor
) -> Any:
    """Run one pass and follow it: values (B,), leads (B,), gradient (B, 3, h, w)."""
    x = x.detach().requires_grad_()
    maps, (top, left) = network.values(setup.layer, box, x)
    row, column = setup.layer.centre
    climbed, value, leads = setup.objective(maps.to(x.dtype), targets, (row - top, column - left))
    (gradient,) = torch.autograd.grad(climbed.sum(), x)
    return value.detach(), leads, gradient


def traced_evaluate(
    network: Network, setup: LayerSetup, size: int, precision: Precision
) -> Evaluate:
    """Return the pass of a batch without the network's modules and autograd."""
    x = torch.zeros(size, 3, *setup.box.size, device=network.device)
    x = x.contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(size, dtype=torch.long, device=network.device)
    with arithmetic(precision, network.device):
        traced = trace(partial(evaluate_window, network, setup, setup.box), x, targets)

    def evaluate(x: Tensor, targets: Tensor) -> Any:
        with tensor_cores(precision, network.device):
            return traced(x, targets)

    return evaluate if precision == "tf32" else traced


class Tolerance(NamedTuple):
    """Return how far a traced pass may be from the whole network's: shares of the largest."""

    value: float
    gradient: float


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(1e-3, 1e-2),
    "tf32": Tolerance(2e-2, 1e-1),
    "bf16": Tolerance(1e-1, 0.3),  # of 1.4 for a gradient of another unit, 1 for none
}
