"""The calibrated step: the same pictures whatever the scale of a network's gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from cnnvis_cli.ascent.calibrate import (
    ABOVE_NOISE,
    ADDITION_TOLERANCE,
    CLIPPED,
    FAINTEST,
    LARGEST_ADDITION,
    SLOWEST,
    UNITS,
    Probe,
    calibrate,
    probe_channels,
    remaining_noise,
)
from cnnvis_cli.ascent.climb import Ascent, AscentBatch, AscentSpec, Outcome, climb
from cnnvis_cli.ascent.starts import noise, seed_of
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import STYLES, Style
from cnnvis_cli.nouns import Unit

MEAN = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64).view(1, 3, 1, 1)
SIZE = (13, 15)
SHORT = 60  # iterations: enough for a probe


def network(scale: float) -> nn.Sequential:
    """Two layers whose gradients are `scale` times as large; the last channel is dead."""
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 5, 3)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn * 0.1)
        module.get_parameter("2.weight").mul_(scale)
        module.get_parameter("2.bias").zero_()  # or the largest bias would lead at small scales
        module.get_parameter("2.weight")[4] = 0
    return module.requires_grad_(False)


def probe(scale: float, channels: list[int]) -> Probe:
    module = network(scale)
    drawn = [noise(seed_of(0, Unit("conv2", i), 0), SIZE) for i in channels]
    start = torch.stack(drawn).double()

    def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().requires_grad_()
        out = module(x)[:, :, 1, 2]
        value = out[torch.arange(len(x)), targets]
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), out.detach().amax(dim=1) <= value.detach(), gradient

    def ascend(style: Style) -> list[Ascent]:
        tasks = [[AscentSpec(i, c, style, start[i])] for i, c in enumerate(channels)]
        found = climb(evaluate, tasks, AscentBatch(len(channels), last=True), MEAN)
        return sorted(found, key=lambda ascent: int(str(ascent.key)))

    gradient = evaluate(start, torch.tensor(channels))[2]
    sizes = gradient.flatten(1).pow(2).mean(dim=1).sqrt()
    return Probe(start, MEAN, float(sizes.median()), ascend)


def images(found: Sequence[Ascent]) -> Tensor:
    return torch.stack([ascent.last for ascent in found])


def short(name: str) -> Style:
    return replace(STYLES[name], iterations=SHORT)


@pytest.mark.parametrize("name", STYLES)
def test_the_rate_follows_the_scale_of_the_gradients(name: str) -> None:
    rates = {}
    for scale in (1e-4, 1.0, 1e4):
        style = calibrate(short(name), probe(scale, [0, 1, 2, 3]))
        assert isinstance(style.step, Constant)
        assert style == replace(short(name), step=style.step)
        rates[scale] = style.step.rate
    # The rule doubles a rate until units lead, so scales may end one doubling apart.
    assert 0.45e4 < rates[1e-4] / rates[1.0] < 2.2e4
    assert 0.45e4 < rates[1.0] / rates[1e4] < 2.2e4


@pytest.mark.parametrize("name", ["1", "3"])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_what_is_added_stands_out_as_stated(name: str, scale: float) -> None:
    probing = probe(scale, [0, 1, 2, 3])
    style = calibrate(short(name), probing)
    assert isinstance(style.step, Constant)
    still = images(probing.ascend(style.with_step(Constant(0.0))))
    found = probing.ascend(style)
    added = float((images(found) - still).flatten(1).std(dim=1).quantile(SLOWEST))
    wanted = max(FAINTEST, ABOVE_NOISE * remaining_noise(short(name), probing))
    shown = images(found) + MEAN
    clipped = float(((shown <= 0) | (shown >= 255)).double().mean())
    leading = sum(ascent.outcome is Outcome.LARGEST for ascent in found) / len(found)
    assert clipped <= CLIPPED
    least = wanted / ADDITION_TOLERANCE / 1.1  # the rate has two digits
    assert added > least or clipped > CLIPPED / 4
    assert leading == 1 or added >= LARGEST_ADDITION / 1.1 or clipped > CLIPPED / 4
    if leading == 1:
        softer = probing.ascend(style.with_step(Constant(style.step.rate / 4)))
        less = float((images(softer) - still).flatten(1).std(dim=1).quantile(SLOWEST))
        fewer = sum(ascent.outcome is Outcome.LARGEST for ascent in softer) / len(softer)
        assert less < wanted or fewer < 1, "a much smaller rate would have done"


def test_the_rate_has_two_digits_and_is_found_again() -> None:
    first, again = (calibrate(short("3"), probe(1.0, [0, 1, 2, 3])) for _ in range(2))
    assert first == again
    assert isinstance(first.step, Constant)
    assert first.step.rate == float(f"{first.step.rate:.2g}")


def test_a_dead_layer_keeps_the_style_s_own_step() -> None:
    dead = probe(1.0, [4, 4])
    assert dead.gradient == 0
    assert calibrate(short("3"), dead) == short("3")
    assert calibrate(short("3"), replace(dead, gradient=1e-3)) == short("3")


def test_dead_units_among_others_do_not_count() -> None:
    some = probe(1.0, [0, 1, 2, 3])
    mixed = probe(1.0, [0, 1, 2, 3, 4])
    one, other = (calibrate(short("3"), p).step for p in (some, mixed))
    assert isinstance(one, Constant)
    assert isinstance(other, Constant)
    assert other.rate == pytest.approx(one.rate, rel=0.5)


@pytest.mark.parametrize("channels", [1, 3, UNITS, UNITS + 1, 96, 4096])
def test_the_probe_s_channels_are_spread_over_the_layer(channels: int) -> None:
    chosen = probe_channels(channels)
    assert len(chosen) == len(set(chosen)) == min(UNITS, channels)
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    assert chosen[-1] < channels
    gaps = {b - a for a, b in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
