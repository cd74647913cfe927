"""A pass of a few images gives each the bits that it has in a full batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cnnvis_cli.network.part_batch import doubled, pad_to_full, with_rows
from cnnvis_cli.network.trace import trace

FULL = 32


def network() -> nn.Sequential:
    """Return a network with what libraries compute differently for few images than for many."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 48, 1),  # with fewer than 16 images on one thread, torch's own code
        nn.ReLU(inplace=True),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 96, 6),  # a map of one place
        nn.Flatten(),
        nn.Linear(96, 400),
        nn.ReLU(inplace=True),
        nn.Linear(400, 7),
    ).to(memory_format=torch.channels_last)


def climbing(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    values = module(x)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient


def images() -> Tensor:
    drawn = torch.randn(FULL, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return drawn.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_few_images_have_the_bits_of_a_full_batch(count: int) -> None:
    run, x = partial(climbing, network()), images()
    whole = trace(run, x)(x)
    few = trace(run, x[:count], then=partial(pad_to_full, count=count, full=FULL))
    for start in (0, FULL - count):  # whatever their place in the batch
        own = slice(start, start + count)
        for part, of_all in zip(few(x[own]), whole, strict=True):
            assert torch.equal(part, of_all[own])


def test_an_operation_with_more_rows_gives_its_own_back() -> None:
    weight, x = torch.randn(5, 4), torch.randn(2, 5)
    found = with_rows("aten.mm.default", (0,), 8, x, weight)
    assert found.shape == (2, 4)
    torch.testing.assert_close(found, x @ weight)


def test_counts_that_are_tried() -> None:
    assert list(doubled(3, 32)) == [3, 4, 8, 16]
    assert list(doubled(8, 8)) == []
