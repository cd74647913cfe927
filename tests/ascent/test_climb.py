"""The ascent against a second telling of the authors' loop: numpy, scipy, one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from cnnvis_cli.ascent.climb import Ascent, Outcome, climb, noise
from cnnvis_cli.ascent.regularizers import Decay
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import STYLES, Style
from cnnvis_cli.nouns import Unit

Image = NDArray[np.float64]  # (3, H, W), mean-subtracted
MEAN = np.array([123.675, 116.28, 103.53])
SIZE = (15, 17)


class Row(NamedTuple):
    """A row of Table 1 of Yosinski et al. 2015, with the toolbox's own step policy."""

    decay: float
    blur_width: float
    blur_every: int
    norm_percentile: float
    contribution_percentile: float
    max_rate: float
    progress: float | None  # None: the rate is constant


TABLE = {
    "1": Row(0, 0.5, 4, 50, 0, 100, 2),
    "2": Row(0.3, 0, 0, 20, 0, 100, None),
    "3": Row(0.0001, 1.0, 4, 0, 0, 100, None),
    "4": Row(0, 0.5, 4, 0, 90, 1e8, 2),
}
ITERATIONS_OF_ROW = {"1": 500, "2": 750, "3": 1000, "4": 1000}


def small_network(scale: float = 0.02, seed: int = 3) -> nn.Sequential:
    """Two layers, in double precision so that 50 steps cannot drift apart; channel 5 is dead."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 7, 3), nn.ReLU(), nn.AvgPool2d(2)
    ).double()
    with torch.no_grad():
        for parameter in network.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn * (0.3 if parameter.dim() == 4 else 0.1))
        first, second = weight(network, 0), weight(network, 2)
        first *= scale  # of the order of 1 / the spread of a photograph's values
        second[5] = 0  # no gradient
    return network.requires_grad_(False)


def weight(network: nn.Sequential, number: int) -> Tensor:
    return network.get_parameter(f"{number}.weight")


def score_of(network: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """The second layer's own output at one place: (B, 3, H, W) -> (B, 7)."""

    def score(x: Tensor) -> Tensor:
        out: Tensor = network[:3](x)
        return out[:, :, 2, 2]

    return score


@dataclass
class Told:
    """How one ascent went."""

    best: Image
    value: float
    start: float
    step: int
    outcome: int
    values: list[float]


def look(network: nn.Sequential, x: Image, unit: int) -> tuple[NDArray[np.float64], Image]:
    """All units' activations, and the gradient of one."""
    image = torch.from_numpy(x[None]).requires_grad_()
    activations = score_of(network)(image)[0]
    (gradient,) = torch.autograd.grad(activations[unit], image)
    return activations.detach().numpy(), gradient[0].numpy()


def ascend(network: nn.Sequential, x: Image, unit: int, row: Row, iterations: int) -> Told:
    """The loop, step by step as in the deep-visualization-toolbox; the best image is kept."""
    told = Told(x, -np.inf, 0, 0, 0, [])
    mean = MEAN[:, None, None]
    for i in range(iterations):
        x = np.clip(x + mean, 0, 255) - mean
        activations, g = look(network, x, unit)
        value = float(activations[unit])
        told.values.append(value)
        if i == 0:
            told.start = value
        if value > told.value:
            outcome = 1 if activations.argmax() == unit else 2
            told = Told(x, value, told.start, i, outcome, told.values)
        if not g.any():
            told.outcome = 3
            return told
        rate = row.max_rate
        if row.progress is not None:
            rate = min(row.max_rate, row.progress / (g**2).sum())
        if i == iterations - 1:
            return told
        x = x + rate * g
        x = x * (1 - row.decay)
        if row.blur_every and i % row.blur_every == 0:
            x = np.stack([gaussian_filter(channel, row.blur_width) for channel in x])
        if row.norm_percentile:
            norm = np.sqrt((x**2).sum(axis=0))
            x = x * (norm >= np.percentile(norm, row.norm_percentile))
        if row.contribution_percentile:
            effect = np.abs((x * g).sum(axis=0))
            x = x * (effect >= np.percentile(effect, row.contribution_percentile))
    return told


def starts(count: int) -> Tensor:
    return noise([(Unit("conv2", i), 0) for i in range(count)], 0, SIZE).double()


def package(style: Style, start: Tensor, channels: list[int], network: nn.Sequential) -> Ascent:
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1)
    return climb(score_of(network), start, torch.tensor(channels), style, mean)


@pytest.mark.parametrize("name", TABLE)
def test_the_styles_have_the_paper_s_numbers(name: str) -> None:
    style, row = STYLES[name], TABLE[name]
    assert style.iterations == ITERATIONS_OF_ROW[name]
    numbers = {
        (part["kind"], key): value
        for part in [*style.parameters()["regularizers"], style.parameters()["step"]]
        for key, value in part.items()
        if key != "kind"
    }
    assert numbers.pop(("Decay", "rate")) == row.decay
    assert numbers.pop(("Blur", "width")) == row.blur_width
    assert numbers.pop(("Blur", "every")) == row.blur_every
    assert numbers.pop(("ClipNorm", "percentile")) == row.norm_percentile
    assert numbers.pop(("ClipContribution", "percentile")) == row.contribution_percentile
    if row.progress is None:
        assert numbers == {("Constant", "rate"): row.max_rate}
    else:
        wanted = {("Progress", "max_rate"): row.max_rate, ("Progress", "desired"): row.progress}
        assert numbers == wanted


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("iterations", [1, 2, 51])
def test_it_is_the_authors_loop(name: str, iterations: int) -> None:
    network, start, channels = small_network(), starts(7), [0, 1, 2, 3, 4, 5, 6]
    found = package(replace(STYLES[name], iterations=iterations), start, channels, network)
    outcomes = set()
    for i, unit in enumerate(channels):
        told = ascend(network, start[i].numpy(), unit, TABLE[name], iterations)
        assert float(found.start[i]) == pytest.approx(told.start, rel=1e-6, abs=1e-9)
        assert float(found.activation[i]) == pytest.approx(told.value, rel=1e-6, abs=1e-9)
        assert int(found.outcome[i]) == told.outcome
        assert int(found.best_step[i]) == told.step
        np.testing.assert_allclose(found.image[i].numpy(), told.best, atol=1e-4)
        outcomes.add(told.outcome)
    assert outcomes >= ({1, 3} if iterations == 51 else {2, 3})


@pytest.mark.parametrize("name", TABLE)
def test_single_precision_follows_it(name: str) -> None:
    """One step to 1e-4 of the image's range, 50 steps to 1 % of the activation."""
    network = small_network()
    single, start = small_network().float(), starts(7)
    for iterations, tolerance in ((2, 1e-4), (51, 0.01)):
        style = replace(STYLES[name], iterations=iterations)
        mean = torch.from_numpy(MEAN).float().view(1, 3, 1, 1)
        found = climb(score_of(single), start.float(), torch.arange(7), style, mean)
        assert found.image.dtype == found.activation.dtype == torch.float32
        for i in range(7):
            told = ascend(network, start[i].numpy(), i, TABLE[name], iterations)
            assert float(found.activation[i]) == pytest.approx(told.value, rel=tolerance, abs=1e-4)


@pytest.mark.parametrize("name", TABLE)
def test_the_activation_rises(name: str) -> None:
    found = package(
        replace(STYLES[name], iterations=40), starts(7), list(range(7)), small_network()
    )
    live = found.outcome != int(Outcome.NO_GRADIENT)
    assert live.tolist() == [True] * 5 + [False, True]
    gain = found.activation - found.start
    assert (gain[live] > 0).all()
    assert (found.best_step[live] > 0).all()


def test_the_best_image_is_the_one_with_the_best_activation() -> None:
    """Also where the ascent overshoots: the last image is worse than the best."""
    network, start = small_network(), starts(7)
    style = replace(STYLES["2"], iterations=30, step=Constant(1e6))
    found = package(style, start, list(range(7)), network)
    again = score_of(network)(found.image)[range(7), range(7)]
    np.testing.assert_array_equal(again.numpy(), found.activation.numpy())
    last = score_of(network)(found.last)[range(7), range(7)]
    assert (found.activation >= last).all()
    told = [
        ascend(network, start[i].numpy(), i, TABLE["2"]._replace(max_rate=1e6), 30)
        for i in range(7)
    ]
    assert any(0 < t.step < 29 for t in told)
    assert found.best_step.tolist() == [t.step for t in told]


@pytest.mark.parametrize("name", TABLE)
def test_a_unit_without_a_gradient_keeps_its_first_image(name: str) -> None:
    network, start = small_network(), starts(2) * 20  # strong enough for the clipping to matter
    found = package(replace(STYLES[name], iterations=9), start, [5, 5], network)
    assert found.outcome.tolist() == [3, 3]
    assert found.best_step.tolist() == [0, 0]
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1)
    assert torch.equal(found.image, (start + mean).clamp(0, 255) - mean)
    assert torch.equal(found.activation, found.start)
    assert not found.image.isnan().any()


def test_a_gradient_that_dies_on_the_way_is_not_outcome_3() -> None:
    """A unit that one step takes to where it cannot rise any more has an image to show."""

    def score(x: Tensor) -> Tensor:
        height = x[:, 0, 0, 0]
        unit = torch.relu(height - 5) - torch.relu(height - 30)
        return torch.stack([unit, torch.zeros_like(unit) - 9], dim=1)

    start = torch.zeros(1, 3, *SIZE).double()
    start[:, 0, 0, 0] = 20
    style = replace(STYLES["3"], iterations=9, step=Constant(50.0), regularizers=())
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1)
    found = climb(score, start, torch.tensor([0]), style, mean)
    assert (found.outcome.tolist(), found.best_step.tolist()) == ([1], [1])
    assert found.activation.tolist() == pytest.approx([25])
    assert found.start.tolist() == pytest.approx([15])
    assert float(found.image[0, 0, 0, 0]) == pytest.approx(70)


def test_an_ascent_without_a_gradient_has_ended_even_if_decay_would_bring_it_back() -> None:
    def score(x: Tensor) -> Tensor:
        height = x[:, 0, 0, 0]  # up to 25 at 30, down to 5 at 40, and flat from there on
        unit = torch.relu(height - 5) - 3 * torch.relu(height - 30) + 2 * torch.relu(height - 40)
        return torch.stack([unit, torch.zeros_like(unit) - 9], dim=1)

    start = torch.zeros(1, 3, *SIZE).double()
    start[:, 0, 0, 0] = 20
    style = replace(STYLES["3"], iterations=9, step=Constant(50.0), regularizers=(Decay(0.4),))
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1)
    found = climb(score, start, torch.tensor([0]), style, mean)
    # 20 -> (20 + 50) 0.6 = 42, where the authors' loop ends; decay alone would go on to 25
    assert found.best_step.tolist() == [0]
    assert found.activation.tolist() == pytest.approx([15])


def test_a_result_does_not_depend_on_its_neighbours_nor_on_its_place() -> None:
    network = small_network().float()
    mean = torch.from_numpy(MEAN).float().view(1, 3, 1, 1)
    style = replace(STYLES["1"], iterations=25)

    def run(order: list[int]) -> Ascent:
        start = noise([(Unit("conv2", i), 0) for i in order], 0, SIZE)
        channels = torch.tensor([i % 7 for i in order])
        return climb(score_of(network), start, channels, style, mean)

    one = run([0, 1, 2, 3, 4, 5, 6, 7])
    other = run([11, 12, 3, 13, 5, 14, 0, 15])
    for place, moved in ((3, 2), (5, 4), (0, 6)):
        for name in ("image", "activation", "start", "best_step", "outcome"):
            assert torch.equal(getattr(one, name)[place], getattr(other, name)[moved])


def test_noise_is_a_function_of_seed_unit_and_run_alone() -> None:
    units = [
        (Unit("conv1", 3), 0),
        (Unit("conv1", 3), 1),
        (Unit("conv2", 3), 0),
        (Unit("fc8", 0), 2),
    ]
    first = noise(units, 0, SIZE)
    torch.manual_seed(99)
    torch.randn(5)
    again = noise(units[::-1], 0, SIZE).flip(0)
    assert torch.equal(first, again)
    assert torch.equal(noise(units[2:3], 0, SIZE)[0], first[2])
    everything = torch.cat([first, noise(units, 1, SIZE)])
    assert len({image.numpy().tobytes() for image in everything}) == len(everything)
    assert everything.shape == (8, 3, *SIZE)
    assert float(everything.mean()) == pytest.approx(0, abs=0.5)
    assert float(everything.std()) == pytest.approx(10, rel=0.05)
