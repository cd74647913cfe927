"""One pass of a batch: the values that are climbed, and their gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cnnvis_cli.ascent.climb import Evaluate
from cnnvis_cli.ascent.starts import noise
from cnnvis_cli.ascent.typical import kept_typical, penalty
from cnnvis_cli.engine import arithmetic, one_thread, tensor_cores, threads_of_torch
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.part_batch import doubled, pad_to_full
from cnnvis_cli.network.trace import trace
from cnnvis_cli.nouns import Box
from cnnvis_cli.settings import Precision
from cnnvis_cli.stages.optimize.setup import LayerSetup

WORTH_FEWER = 0.8  # of a full batch: what a process with fewer ascents than that does without
WORTH_THREADS = 0.8  # of the time on one thread: what more threads must reach to be used


def evaluate_window(
    network: Network, setup: LayerSetup, box: Box, x: Tensor, targets: Tensor
) -> Any:
    """Run one pass and follow it: values (B,), leads (B,), gradient (B, 3, h, w)."""
    x = x.detach().requires_grad_()
    kept, layer = setup.typical, setup.layer
    below = network.aliased(kept.below) if kept else ()
    maps, (top, left) = network.values_with(below, layer, box, x)
    centre = layer.centre[0] - top, layer.centre[1] - left
    climbed, value, leads = setup.objective(maps[layer.alias].to(x.dtype), targets, centre)
    (gradient,) = torch.autograd.grad(climbed.sum(), x, retain_graph=bool(kept))
    if kept:
        costs = penalty(maps, kept, x)
        (against,) = torch.autograd.grad(costs.sum(), x)
        gradient = kept_typical(gradient, costs.detach(), against, kept.weight)
    return value.detach(), leads, gradient


def traced_evaluate(
    network: Network, setup: LayerSetup, size: int, precision: Precision
) -> Evaluate:
    """Return the pass of `size` images without the network's modules and autograd.

    On a CPU each has the bits that it has in a full batch of the layer, if `part_batch` finds how.
    """
    few = size < setup.size and network.device.type == "cpu"
    then = partial(pad_to_full, count=size, full=setup.size) if few else id
    x = torch.zeros(size, 3, *setup.box.size, device=network.device)
    x = x.contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(size, dtype=torch.long, device=network.device)
    with arithmetic(precision, network.device):
        traced = trace(partial(evaluate_window, network, setup, setup.box), x, targets, then=then)

    def evaluate(x: Tensor, targets: Tensor) -> Any:
        with tensor_cores(precision, network.device):
            return traced(x, targets)

    return evaluate if precision == "tf32" else traced


class PassShape(NamedTuple):
    """How a process evaluates its ascents."""

    slots: int  # computed at a time
    threads: int


def fitting_shape(
    setup: LayerSetup, pass_of: Callable[[int], Evaluate], used: int, threads: int
) -> PassShape:
    """Return the fewest slots and the most threads that `used` ascents on a CPU have use for.

    All shapes give the bits of a full batch on one thread, which are those that the record stands
    for: random images are tried, and what differs is not taken. `pass_of` returns the pass of a
    number of slots.
    """
    group = setup.objective.run_group
    if used >= int(setup.size * WORTH_FEWER) and threads == 1:
        return PassShape(setup.size, 1)
    x = torch.stack([noise(seed, setup.box.size) for seed in range(setup.size)])
    x = x.contiguous(memory_format=torch.channels_last)
    targets = torch.arange(setup.size) * 7 % setup.targets
    slots = setup.size
    with one_thread():
        whole = pass_of(slots)(x, targets)
        for count in doubled(used, int(setup.size * WORTH_FEWER)):
            few = min(setup.size, -(-count // group) * group)
            if _equal(pass_of(few)(x[-few:], targets[-few:]), whole):
                slots = few
                break
    return PassShape(slots, _useful_threads(pass_of(slots), x[-slots:], targets[-slots:], threads))


def _useful_threads(evaluate: Evaluate, x: Tensor, targets: Tensor, threads: int) -> int:
    """Return `threads` if that many are faster than one and give the same bits; otherwise 1."""
    if threads == 1:
        return 1
    found, seconds = [], []
    for count in (1, threads):
        with threads_of_torch(count):
            evaluate(x, targets)  # the threads are there then
            start = time.perf_counter()
            found.append(evaluate(x, targets))
            seconds.append(time.perf_counter() - start)
    gains = seconds[1] < WORTH_THREADS * seconds[0]
    return threads if gains and _equal(found[0], found[1]) else 1


def _equal(few: Sequence[Tensor], whole: Sequence[Tensor]) -> bool:
    """Return whether a pass gives its images what they have at the end of another pass."""
    pairs = zip(few, whole, strict=True)
    return all(torch.equal(part, of_all[-len(part) :]) for part, of_all in pairs)


class Tolerance(NamedTuple):
    """Return how far a traced pass may be from the whole network's: shares of the largest."""

    value: float
    gradient: float


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(1e-3, 1e-2),
    "tf32": Tolerance(2e-2, 1e-1),
    "bf16": Tolerance(1e-1, 0.3),  # of 1.4 for a gradient of another unit, 1 for none
}
