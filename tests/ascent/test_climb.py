"""The ascent against a reference implementation of the authors' loop in numpy and scipy."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from cnnvis_cli.ascent.climb import (
    CHECK,
    Ascent,
    AscentBatch,
    AscentSpec,
    AscentState,
    Evaluate,
    Outcome,
    UnderWay,
    climb,
)
from cnnvis_cli.ascent.maco import MacoParameterization
from cnnvis_cli.ascent.regularizers import Decay
from cnnvis_cli.ascent.spectrum import ImageSpectrum
from cnnvis_cli.ascent.starts import noise, seed_of, uniform
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
    """Return the second layer's own output at one place: (B, 3, H, W) -> (B, 7)."""

    def score(x: Tensor) -> Tensor:
        out: Tensor = network[:3](x)
        return out[:, :, 2, 2]

    return score


@dataclass
class Told:
    """The record of one ascent."""

    best: Image
    value: float
    start: float
    step: int
    outcome: int
    values: list[float]


def evaluate(network: nn.Sequential, x: Image, unit: int) -> tuple[NDArray[np.float64], Image]:
    """Return all units' activations, and the gradient of one."""
    image = torch.from_numpy(x[None]).requires_grad_()
    activations = score_of(network)(image)[0]
    (gradient,) = torch.autograd.grad(activations[unit], image)
    return activations.detach().numpy(), gradient[0].numpy()


def ascend(network: nn.Sequential, x: Image, unit: int, row: Row, iterations: int) -> Told:
    """Run the loop, step by step as in the deep-visualization-toolbox; keep the best image."""
    told = Told(x, -np.inf, 0, 0, 0, [])
    mean = MEAN[:, None, None]
    for i in range(iterations):
        x = np.clip(x + mean, 0, 255) - mean
        activations, g = evaluate(network, x, unit)
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


def starts(count: int, scale: float = 1.0) -> list[Tensor]:
    seeds = [seed_of(0, Unit("conv2", i), 0) for i in range(count)]
    return [noise(seed, SIZE).double() * scale for seed in seeds]


Score = Callable[[Tensor], Tensor]


def looking(score: Score) -> Evaluate:
    """Return what the loop needs of activations (B, C): value, whether it leads, and gradient."""

    def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().requires_grad_()
        activations = score(x)
        value = activations[torch.arange(len(x)), targets]
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), activations.detach().amax(dim=1) <= value.detach(), gradient

    return evaluate


def made(score: Score, tasks: list[AscentSpec], size: int | None = None) -> list[Ascent]:
    """Return the ascents of these tasks, in their order."""
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1).to(tasks[0].start.dtype)
    found = list(
        climb(
            looking(score),
            ([task] for task in tasks),
            AscentBatch(size or len(tasks), last=True),
            mean,
        )
    )
    assert len(found) == len(tasks)
    by_key = {ascent.key: ascent for ascent in found}
    return [by_key[task.key] for task in tasks]


def package(
    style: Style, start: list[Tensor], channels: list[int], network: nn.Sequential
) -> list[Ascent]:
    tasks = [
        AscentSpec(i, channel, style, image)
        for i, (channel, image) in enumerate(zip(channels, start, strict=True))
    ]
    return made(score_of(network), tasks)


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
    for unit, ascent in enumerate(found):
        told = ascend(network, start[unit].numpy(), unit, TABLE[name], iterations)
        assert ascent.start == pytest.approx(told.start, rel=1e-6, abs=1e-9)
        assert ascent.activation == pytest.approx(told.value, rel=1e-6, abs=1e-9)
        assert ascent.outcome == told.outcome
        assert ascent.best_step == told.step
        np.testing.assert_allclose(ascent.image.numpy(), told.best, atol=1e-4)
        np.testing.assert_allclose(ascent.history[: len(told.values)], told.values, rtol=1e-5)
        outcomes.add(told.outcome)
    assert outcomes >= ({1, 3} if iterations == 51 else {2, 3})


@pytest.mark.parametrize("name", TABLE)
def test_single_precision_follows_it(name: str) -> None:
    """One step to 1e-4 of the image's range, 50 steps to 1 % of the activation."""
    network = small_network()
    single, start = small_network().float(), starts(7)
    for iterations, tolerance in ((2, 1e-4), (51, 0.01)):
        style = replace(STYLES[name], iterations=iterations)
        found = package(style, [image.float() for image in start], [*range(7)], single)
        for i, ascent in enumerate(found):
            assert ascent.image.dtype == torch.float32
            told = ascend(network, start[i].numpy(), i, TABLE[name], iterations)
            assert ascent.activation == pytest.approx(told.value, rel=tolerance, abs=1e-4)


@pytest.mark.parametrize("name", TABLE)
def test_the_activation_rises(name: str) -> None:
    style = replace(STYLES[name], iterations=40)
    found = package(style, starts(7), list(range(7)), small_network())
    live = [ascent for ascent in found if ascent.outcome is not Outcome.NO_GRADIENT]
    assert [ascent.key for ascent in live] == [0, 1, 2, 3, 4, 6]
    assert all(ascent.activation > ascent.start for ascent in live)
    assert all(ascent.best_step > 0 for ascent in live)


def test_the_best_image_is_the_one_with_the_best_activation() -> None:
    """Also where the ascent overshoots: the last image is worse than the best."""
    network, start = small_network(), starts(7)
    style = replace(STYLES["2"], iterations=30, step=Constant(1e6))
    found = package(style, start, list(range(7)), network)
    again = score_of(network)(torch.stack([ascent.image for ascent in found]))
    last = score_of(network)(torch.stack([ascent.last for ascent in found]))
    for i, ascent in enumerate(found):
        assert float(again[i, i]) == pytest.approx(ascent.activation, rel=1e-12)
        assert ascent.activation == pytest.approx(float(ascent.history.max()))
        assert ascent.activation >= float(last[i, i])
    told = [
        ascend(network, start[i].numpy(), i, TABLE["2"]._replace(max_rate=1e6), 30)
        for i in range(7)
    ]
    assert any(0 < t.step < 29 for t in told)
    assert [ascent.best_step for ascent in found] == [t.step for t in told]


@pytest.mark.parametrize("name", TABLE)
def test_a_unit_without_a_gradient_keeps_its_first_image(name: str) -> None:
    network, start = small_network(), starts(2, 20)  # strong enough for the clipping to matter
    found = package(replace(STYLES[name], iterations=9), start, [5, 5], network)
    mean = torch.from_numpy(MEAN).view(3, 1, 1)
    for ascent, image in zip(found, start, strict=True):
        assert (ascent.outcome, ascent.best_step) == (Outcome.NO_GRADIENT, 0)
        torch.testing.assert_close(ascent.image, (image + mean).clamp(0, 255) - mean)
        assert ascent.activation == ascent.start
        assert not ascent.image.isnan().any()


def test_a_gradient_that_dies_on_the_way_is_not_outcome_3() -> None:
    """A unit that one step takes to where it cannot rise any more has an image to show."""

    def score(x: Tensor) -> Tensor:
        height = x[:, 0, 0, 0]
        unit = torch.relu(height - 5) - torch.relu(height - 30)
        return torch.stack([unit, torch.zeros_like(unit) - 9], dim=1)

    start = torch.zeros(3, *SIZE).double()
    start[0, 0, 0] = 20
    style = replace(STYLES["3"], iterations=9, step=Constant(50.0), regularizers=())
    (found,) = made(score, [AscentSpec(0, 0, style, start)])
    assert (found.outcome, found.best_step) == (Outcome.LARGEST, 1)
    assert found.activation == pytest.approx(25)
    assert found.start == pytest.approx(15)
    assert float(found.image[0, 0, 0]) == pytest.approx(70)


def test_an_ascent_without_a_gradient_has_ended_even_if_decay_would_bring_it_back() -> None:
    def score(x: Tensor) -> Tensor:
        height = x[:, 0, 0, 0]  # up to 25 at 30, down to 5 at 40, and flat from there on
        unit = torch.relu(height - 5) - 3 * torch.relu(height - 30) + 2 * torch.relu(height - 40)
        return torch.stack([unit, torch.zeros_like(unit) - 9], dim=1)

    start = torch.zeros(3, *SIZE).double()
    start[0, 0, 0] = 20
    style = replace(STYLES["3"], iterations=9, step=Constant(50.0), regularizers=(Decay(0.4),))
    (found,) = made(score, [AscentSpec(0, 0, style, start)])
    # 20 -> (20 + 50) 0.6 = 42, where the authors' loop ends; decay alone would go on to 25
    assert found.best_step == 0
    assert found.activation == pytest.approx(15)


def single(order: list[int], styles: list[Style]) -> list[AscentSpec]:
    """Return tasks in single precision, each the same at any place in the order."""
    images = [image.float() for image in starts(max(order) + 1)]
    return [AscentSpec(i, i % 7, styles[i % len(styles)], images[i]) for i in order]


def alike(one: Ascent, other: Ascent) -> bool:
    """Return whether two ascents are identical bit for bit."""
    same = [
        getattr(one, name) == getattr(other, name)
        for name in ("key", "activation", "start", "best_step", "outcome", "majority_step")
    ]
    if one.majority is not None and other.majority is not None:
        same.append(torch.equal(one.majority, other.majority))
    if one.opacity is not None and other.opacity is not None:
        same.append(torch.equal(one.opacity, other.opacity))
    same.append((one.opacity is None) == (other.opacity is None))
    return all(same) and torch.equal(one.image, other.image)


def ready(name: str) -> Style:
    """Return a style, maco with a spectrum that falls with the frequency."""
    style = STYLES[name]
    if not isinstance(style.image, MacoParameterization):
        return style
    fall = 1 / (1 + np.add.outer(np.abs(np.fft.fftfreq(16)), np.fft.rfftfreq(16)) * 16)
    magnitude = np.stack([fall * 100] * 3).astype(np.float32)
    magnitude[:, 0, 0] = 0
    plain = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    return replace(style, image=replace(style.image, spectrum=ImageSpectrum(magnitude, *plain, 16)))


def test_a_result_does_not_depend_on_its_neighbours_nor_on_its_place() -> None:
    score, style = score_of(small_network().float()), replace(STYLES["1"], iterations=25)
    one = made(score, single([0, 1, 2, 3, 4, 5, 6, 7], [style]))
    other = made(score, single([11, 12, 3, 13, 5, 14, 0, 15], [style]))
    for place, moved in ((3, 2), (5, 4), (0, 6)):
        assert alike(one[place], other[moved])


LENGTHS = {"1": 25, "2": 40, "3": 33, "4": 70}
MIXED = [replace(STYLES[name], iterations=length) for name, length in LENGTHS.items()]


@pytest.mark.parametrize("size", [4, 8])
def test_styles_share_a_batch_and_slots_are_refilled(size: int) -> None:
    """An ascent is identical bit for bit, whatever shares its batch and whenever it enters it."""
    score = score_of(small_network().float())
    order = [*range(30)]
    all_at_once = made(score, single(order, MIXED), size)
    backwards = made(score, single(order[::-1], MIXED), size)[::-1]
    for one, other in zip(all_at_once, backwards, strict=True):
        assert alike(one, other)
    alone = made(score, single([13], MIXED), size)
    assert alike(alone[0], all_at_once[13])
    assert {len(a.history) for a in all_at_once if a.outcome != 3} <= set(LENGTHS.values())


def test_a_slot_without_a_gradient_is_given_to_another() -> None:
    """Dead units cost a batch no more than the steps until they are found."""
    network, evaluations = small_network().float(), []
    evaluate = looking(score_of(network))

    def counted(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        evaluations.append(len(x))
        return evaluate(x, targets)

    style = replace(STYLES["3"], iterations=10 * CHECK)
    start = [image.float() for image in starts(8)]
    tasks = [[AscentSpec(i, 5 if i < 4 else i % 4, style, start[i])] for i in range(8)]
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1).float()
    found = list(climb(counted, tasks, AscentBatch(4), mean))
    assert [ascent.outcome == 3 for ascent in found] == [True] * 4 + [False] * 4
    assert len(evaluations) == 11 * CHECK
    assert set(evaluations) == {4}  # always full batches: the last bits depend on their size
    assert [len(ascent.history) for ascent in found] == [1] * 4 + [10 * CHECK] * 4


class Replayed:
    """Does again what was done first for a key, as a CUDA graph does, and counts the keys."""

    def __init__(self) -> None:
        self.first: dict[Hashable, Callable[[], None]] = {}

    def __call__(self, key: Hashable, work: Callable[[], None], state: Sequence[Tensor]) -> None:
        self.first.setdefault(key, work)()


@pytest.mark.parametrize("name", ["1", "2", "3", "4", "fourier", "natural", "maco", "accent"])
def test_replayed_steps_of_a_steady_batch_give_the_same_ascents(name: str) -> None:
    """To the bit, also where a batch is not full and where an ascent has no gradient."""
    network, channels = small_network(), (0, 5, 2, 3)  # 5 is dead
    style = replace(ready(name), iterations=45)
    styles = [style, replace(style, name="other", iterations=39)]
    tasks = [
        AscentSpec(i, channels[i % 4], styles[i // 5], start.float(), seed=i, place=2 * i)
        for i, start in enumerate(starts(7))
    ]
    score = score_of(network.float())
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1).float()
    run_groups = [[task] for task in tasks]
    usual = {a.key: a for a in climb(looking(score), run_groups, AscentBatch(3), mean)}
    replayed = Replayed()
    steady = AscentBatch(3, steady=True, run=replayed)
    found = {a.key: a for a in climb(looking(score), run_groups, steady, mean)}
    assert found.keys() == usual.keys()
    assert all(alike(found[key], usual[key]) for key in usual)
    assert len(replayed.first) <= 10  # of 45 + 45 + 39 steps


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 0, 3, 1, 2], [3, 0]])
def test_an_ascent_has_the_same_slot_of_a_steady_batch_in_any_company(order: list[int]) -> None:
    places, seen = [5, 3, 1, 2, 6], []  # of a batch of 3: 2, 0, 1, 2, 0

    def watched(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(targets.tolist())
        value = x.flatten(1).sum(dim=1)
        return value, value > 0, torch.ones_like(x)

    style = replace(STYLES["2"], iterations=3)
    run_groups = [[AscentSpec(i, i, style, starts(1)[0].float(), place=places[i])] for i in order]
    mean = torch.zeros(1, 3, 1, 1)
    found = [int(str(a.key)) for a in climb(watched, run_groups, AscentBatch(3, steady=True), mean)]
    assert sorted(found) == sorted(order)
    for i in order:
        slots = {slot for row in seen for slot, target in enumerate(row) if target == i and i}
        assert slots <= {places[i] % 3}


def test_teams_stay_side_by_side() -> None:
    """The three runs of a unit are in neighbouring slots all the time."""
    network, seen = small_network().float(), []
    evaluate = looking(score_of(network))

    def watched(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(targets.tolist())
        return evaluate(x, targets)

    style, start = replace(STYLES["3"], iterations=40), [image.float() for image in starts(18)]
    run_groups = [
        [AscentSpec((u, r), u, style, start[3 * u + r]) for r in range(3)] for u in (1, 2, 5, 3, 4)
    ]
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1).float()
    found = list(climb(watched, iter(run_groups), AscentBatch(6), mean))
    assert {ascent.key for ascent in found} == {
        task.key for run_group in run_groups for task in run_group
    }
    assert all(row[:3] == row[:1] * 3 and row[3:] == row[3:4] * 3 for row in seen)
    dead = [ascent for ascent in found if ascent.outcome == 3]
    assert len(dead) == 3


def test_no_more_slots_are_used_than_there_is_room_for() -> None:
    score, style = score_of(small_network().float()), replace(STYLES["3"], iterations=5)
    tasks, mean = single([*range(8)], [style]), torch.from_numpy(MEAN).view(1, 3, 1, 1).float()
    given: list[int] = []

    def run_groups() -> Iterator[list[AscentSpec]]:
        for task in tasks:
            given.append(task.target)
            yield [task]

    found = climb(looking(score), run_groups(), AscentBatch(8, max_active=2), mean)
    next(found)
    assert len(given) == 2
    whole = made(score, tasks)
    for ascent in [*climb(looking(score), run_groups(), AscentBatch(8, max_active=2), mean)]:
        assert alike(ascent, next(a for a in whole if a.key == ascent.key))


def test_nothing_to_do_is_done_at_once() -> None:
    assert not list(
        climb(looking(score_of(small_network())), [], AscentBatch(4), torch.zeros(1, 3, 1, 1))
    )


def test_starts_are_functions_of_seed_unit_and_run_alone() -> None:
    named = [("conv1", 3, 0), ("conv1", 3, 1), ("conv2", 3, 0), ("fc8", 0, 2)]
    seeds = [seed_of(s, Unit(name, c), run) for s in (0, 1) for name, c, run in named]
    assert len(set(seeds)) == 8
    first = torch.stack([noise(seed, SIZE) for seed in seeds])
    torch.manual_seed(99)
    torch.randn(5)
    again = torch.stack([noise(seed, SIZE) for seed in seeds[::-1]]).flip(0)
    assert torch.equal(first, again)
    assert len({image.numpy().tobytes() for image in first}) == 8
    assert float(first.mean()) == pytest.approx(0, abs=0.5)
    assert float(first.std()) == pytest.approx(10, rel=0.05)
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1).float()
    shown = torch.stack([uniform(seed, SIZE, mean) for seed in seeds]) + mean
    assert 0 <= float(shown.min()) < 2
    assert 253 < float(shown.max()) <= 255
    assert float(shown.mean()) == pytest.approx(127.5, rel=0.03)


class Halted(Exception):
    """Raised at a step of which the ascents under way are known."""


def in_pieces(
    evaluate: Evaluate, run_groups: list[list[AscentSpec]], batch: AscentBatch, length: int
) -> dict[Hashable, Ascent]:
    """Return ascents that are made in so many steps at a time, each time from what was kept."""
    ended: dict[Hashable, Ascent] = {}
    states: dict[Hashable, AscentState] = {}
    steps = 0

    def on_step(under_way: UnderWay) -> None:
        nonlocal steps
        steps += 1
        if steps > length:
            states.clear()
            states.update(under_way())
            raise Halted

    batch, mean = replace(batch, on_step=on_step), torch.from_numpy(MEAN).view(1, 3, 1, 1).float()
    for _ in range(1000):
        steps, left = (
            0,
            [
                [replace(task, state=states.get(task.key)) for task in run_group]
                for run_group in run_groups
                if run_group[0].key not in ended
            ],
        )
        try:
            for ascent in climb(evaluate, left, batch, mean):
                ended[ascent.key] = ascent
            return ended
        except Halted:
            continue
    raise AssertionError("no end")


def same_history(one: Ascent, other: Ascent) -> bool:
    return alike(one, other) and np.array_equal(one.history, other.history)


@pytest.mark.parametrize("steady", [False, True])
@pytest.mark.parametrize("name", ["1", "2", "3", "4", "fourier", "natural", "maco", "accent"])
def test_ascents_made_in_pieces_are_those_made_at_once(name: str, steady: bool) -> None:
    """Dead ones too (channel 5), in slots that are refilled, with pieces of any length."""
    network = small_network().float()
    style = replace(ready(name), iterations=45)
    run_groups = [
        [AscentSpec(i, (0, 5, 2)[i % 3], style, start.float(), seed=i, place=2 * i)]
        for i, start in enumerate(starts(5))
    ]
    evaluate = looking(score_of(network))
    batch = AscentBatch(2, steady=steady, majority=True)
    mean = torch.from_numpy(MEAN).view(1, 3, 1, 1).float()
    whole = {ascent.key: ascent for ascent in climb(evaluate, run_groups, batch, mean)}
    for length in (7, 40):
        found = in_pieces(evaluate, run_groups, batch, length)
        assert found.keys() == whole.keys()
        assert all(same_history(found[key], whole[key]) for key in whole)


def coupled(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours pull each other, as with --diversity; one whose corner is bright has no gradient.

    Its image goes on to change, and its neighbour feels it.
    """
    pairs = x.view(-1, 2, *x.shape[1:])
    others = pairs.flip(1).reshape(x.shape)
    gradient = (others * 0.05 + 10 + targets[:, None, None, None]).contiguous()
    gradient[x[:, 0, 0, 0] > 60] = 0
    value = x.mean(dim=(1, 2, 3)) - others.mean(dim=(1, 2, 3)) * 0.1
    return value, value > 0, gradient


@pytest.mark.parametrize("steady", [False, True])
def test_a_run_without_gradient_stays_with_its_group_across_a_stop(steady: bool) -> None:
    """The others' gradients depend on where it is."""
    style = replace(STYLES["3"], iterations=45, step=Constant(0.1), regularizers=())
    run_groups = []
    for unit in range(2):
        first, second = (image.float() for image in starts(2))
        first[0, 0, 0], second[0, 0, 0] = 50 + unit, -50
        specs = [
            AscentSpec((unit, run), unit, style, start, place=2 * unit + run)
            for run, start in enumerate((first, second))
        ]
        run_groups.append(specs)
    batch, mean = AscentBatch(2, steady=steady), torch.from_numpy(MEAN).view(1, 3, 1, 1).float()
    whole = {ascent.key: ascent for ascent in climb(coupled, run_groups, batch, mean)}
    assert 1 < len(whole[0, 0].history) < len(whole[0, 1].history) == 45
    for length in (7, 40):
        found = in_pieces(coupled, run_groups, batch, length)
        assert found.keys() == whole.keys()
        assert all(same_history(found[key], whole[key]) for key in whole)
