"""The objectives against plain numpy: one image and one number at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.ascent.objectives import Objective, check_directions, likeness, parse_sum
from cnnvis_cli.errors import UsageError

Maps = NDArray[np.float64]
PLACE = (2, 1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MAPS = drawn(6, 5, 4, 3)  # images, channels, rows, columns
TARGETS = torch.tensor([0, 4, 2, 2, 1, 3])
DIRECTIONS = drawn(5, 5, seed=1) * torch.tensor([0.1, 1, 7, 3, 0.5])[:, None]


def vector(maps: Maps, objective: Objective) -> Maps:
    """Return the numbers by which one image's channels count: (C, h, w) -> (C,)."""
    found: Maps = maps.mean(axis=(1, 2)) if objective.mean else maps[:, PLACE[0], PLACE[1]]
    if objective.softmax:
        powers = np.exp(found)
        found = powers / powers.sum()
    return found


PLAIN = [
    Objective(),
    Objective(mean=True),
    Objective(minimise=True),
    Objective(softmax=True),
    Objective(mean=True, softmax=True, minimise=True),
]


@pytest.mark.parametrize("objective", PLAIN, ids=str)
def test_a_unit_is_one_number_of_its_image(objective: Objective) -> None:
    climbed, value, leads = objective(MAPS, TARGETS, PLACE)
    for image, unit in enumerate(TARGETS.tolist()):
        numbers = vector(MAPS[image].numpy(), objective)
        wanted = -numbers[unit] if objective.minimise else numbers[unit]
        assert float(value[image]) == pytest.approx(wanted, rel=1e-12)
        assert float(climbed[image]) == float(value[image])
        best = numbers.argmin() if objective.minimise else numbers.argmax()
        assert bool(leads[image]) == (int(best) == unit)


@pytest.mark.parametrize("objective", PLAIN, ids=str)
def test_a_direction_is_a_weighted_sum_and_its_length_does_not_help_it_to_lead(
    objective: Objective,
) -> None:
    climbed, value, leads = replace(objective, directions=DIRECTIONS)(MAPS, TARGETS, PLACE)
    for image, row in enumerate(TARGETS.tolist()):
        numbers, weights = vector(MAPS[image].numpy(), objective), DIRECTIONS[row].numpy()
        sign = -1 if objective.minimise else 1
        wanted = sign * sum(n * w for n, w in zip(numbers, weights, strict=True))
        assert float(value[image]) == pytest.approx(wanted, rel=1e-9)
        assert float(climbed[image]) == float(value[image])
        along = wanted / math.sqrt(sum(w * w for w in weights))
        assert bool(leads[image]) == bool((sign * numbers <= along).all())


def test_a_direction_leads_where_the_activations_lie_along_it_whatever_its_length() -> None:
    direction = torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64)
    along = torch.tensor([[6.0, 8.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)[..., None, None]
    for length in (0.01, 1.0, 100.0):
        objective = Objective(directions=direction * length)
        _, value, leads = objective(along, torch.tensor([0, 0]), (0, 0))
        assert value.tolist() == pytest.approx([50 * length, 4 * length])
        assert leads.tolist() == [True, False]  # 10 of at most 8; 0.8 of 1


def test_the_axis_of_a_channel_is_the_channel() -> None:
    axes = Objective(directions=torch.eye(5, dtype=torch.float64))(MAPS, TARGETS, PLACE)
    for unit, axis in zip(Objective()(MAPS, TARGETS, PLACE), axes, strict=True):
        assert torch.equal(unit, axis)


def gram(run: Maps) -> Maps:
    """Return the Gram matrix of the channels: (C, P) -> (C, C)."""
    channels = len(run)
    found = np.zeros((channels, channels))
    for a in range(channels):
        for b in range(channels):
            found[a, b] = (run[a] * run[b]).sum()
    return found


def cosine(a: Maps, b: Maps) -> float:
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("run_group", [1, 2, 3, 5])
@pytest.mark.parametrize(("channels", "places"), [(1, 1), (4, 1), (1, 6), (3, 4), (7, 2)])
def test_likeness_is_the_mean_cosine_of_gram_matrices(
    channels: int, places: int, run_group: int
) -> None:
    maps = drawn(3 * run_group, channels, places, seed=run_group)
    found = likeness(maps, run_group)
    assert found.shape == (3 * run_group,)
    for image in range(3 * run_group):
        first = image // run_group * run_group
        own = gram(maps[image].numpy())
        others = [gram(maps[i].numpy()) for i in range(first, first + run_group) if i != image]
        wanted = sum(cosine(own, other) for other in others) / max(1, len(others))
        assert float(found[image]) == pytest.approx(wanted, abs=1e-12)


def test_likeness_is_1_for_the_same_and_0_for_what_has_nothing_in_common() -> None:
    one = drawn(1, 4, 9)
    assert likeness(one.expand(3, 4, 9), 3).tolist() == pytest.approx([1, 1, 1])
    # -1 times the maps, or the same places in another order, have the same Gram matrix
    assert likeness(torch.cat([one, -one.flip(2)]), 2).tolist() == pytest.approx([1, 1])
    apart = torch.zeros(3, 3, 2, dtype=torch.float64)
    for run in range(3):
        apart[run, run] = 1
    assert likeness(apart, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "scale",
    [
        1e-2,
        1.0,
        1e3,
        1e6,
        1e-6,
    ],
)
def test_likeness_does_not_depend_on_how_strong_the_activations_are(scale: float) -> None:
    maps = drawn(4, 8, 5).float()
    torch.testing.assert_close(likeness(maps * scale, 2), likeness(maps, 2))


def test_a_run_where_nothing_is_on_is_like_no_other() -> None:
    maps = drawn(2, 3, 4)
    maps[1] = 0
    assert likeness(maps, 2).tolist() == [0, 0]


def test_a_run_where_nothing_is_on_leaves_the_others_a_gradient() -> None:
    maps = drawn(2, 3, 4)
    maps[1] = 0
    maps.requires_grad_()
    likeness(maps, 2).sum().backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None
    assert bool(maps.grad.isfinite().all())


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("minimise", [False, True])
def test_what_is_climbed_is_less_by_the_share_that_runs_have_in_common(
    mean: bool, minimise: bool
) -> None:
    objective = Objective(mean=mean, minimise=minimise, diversity=0.5, run_group=3)
    climbed, value, leads = objective(MAPS, TARGETS, PLACE)
    plain = replace(objective, diversity=0.0)(MAPS, TARGETS, PLACE)
    assert torch.equal(value, plain[1])  # the value that is kept is the unit's alone
    assert torch.equal(leads, plain[2])
    counted = MAPS.flatten(2) if mean else MAPS[:, :, PLACE[0], PLACE[1]][:, :, None]
    shared = likeness(counted, 3)
    torch.testing.assert_close(climbed, value - 0.5 * value.abs() * shared)
    assert bool((climbed < value).all())


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("minimise", [False, True])
def test_diversity_pushes_runs_apart(mean: bool, minimise: bool) -> None:
    """A small step along the gradient of the diversity penalty makes the runs less alike."""
    objective = Objective(mean=mean, minimise=minimise, diversity=0.5, run_group=3)
    maps = MAPS.clone().requires_grad_()
    climbed, value, _ = objective(maps, TARGETS, PLACE)
    (pull,) = torch.autograd.grad((climbed - value).sum(), maps)

    def alike(of: Tensor) -> float:
        counted = of if mean else of[:, :, PLACE[0], PLACE[1]][:, :, None]
        return float((likeness(counted.flatten(2), 3) * value.detach().abs()).sum())

    assert alike((maps + 1e-3 * pull).detach()) < alike(maps.detach())
    assert bool(pull[3:].any())
    # and each run group is pushed by its own runs alone
    changed = maps.detach().clone()
    changed[:3] = drawn(3, 5, 4, 3, seed=9)
    changed.requires_grad_()
    climbed, value, _ = objective(changed, TARGETS, PLACE)
    (other,) = torch.autograd.grad((climbed - value).sum(), changed)
    torch.testing.assert_close(other[3:], pull[3:])


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("12", {12: 1}),
        ("12 + 0.5*31 - 7", {12: 1, 31: 0.5, 7: -1}),
        ("-7", {7: -1}),
        ("+7", {7: 1}),
        ("  1+2  ", {1: 1, 2: 1}),
        ("3 + 3", {3: 2}),
        (".5*1", {1: 0.5}),
        ("1e-2 * 4", {4: 0.01}),
        ("- 2 * 0", {0: -2}),
        ("0*3 + 4", {4: 1}),
        ("007", {7: 1}),
    ],
)
def test_a_sum_is_read(text: str, weights: dict[int, float]) -> None:
    found = parse_sum(text, 32, "conv1")
    assert len(found) == 32
    assert {unit: weight for unit, weight in enumerate(found) if weight} == weights


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "1 2",
        "1 +",
        "+",
        "1 + + 2",
        "1*",
        "*1",
        "0.5",
        "1.5",
        "1 * 2 * 3",
        "1e3",
        "1,2",
        "1.*3",
    ],
)
def test_what_is_no_sum_is_answered_with_one_that_is(text: str) -> None:
    with pytest.raises(UsageError) as found:
        parse_sum(text, 32, "conv1")
    (line,) = str(found.value).splitlines()
    assert repr(text) in line
    assert "12 + 0.5*31 - 7" in line
    assert "conv1" in line


def test_a_sum_of_units_that_the_layer_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="conv1 has no unit 32; it has 0 to 31"):
        parse_sum("3 + 32", 32, "conv1")


@pytest.mark.parametrize("text", ["", " ", "3 - 3", "0*5", "1 + 2 - 1 - 2"])
def test_a_sum_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_sum(text, 32, "conv1")


TERMS = st.lists(
    st.tuples(
        st.booleans(),
        st.none()
        | st.decimals(0, 1000, allow_nan=False, allow_infinity=False, places=3)
        | st.integers(0, 99),
        st.integers(0, 31),
        st.sampled_from(["", " ", "  "]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(TERMS)
def test_any_sum_that_is_written_is_read_as_written(
    terms: list[tuple[bool, object, int, str]],
) -> None:
    text, wanted = "", [0.0] * 32
    for plus, weight, unit, gap in terms:
        sign = ("+" if text or len(terms) % 2 else "") if plus else "-"
        factor = "" if weight is None else f"{weight}{gap}*{gap}"
        text += f"{sign}{gap}{factor}{unit}{gap}"
        wanted[unit] += (1 if plus else -1) * (1.0 if weight is None else float(str(weight)))
    if any(wanted):
        assert parse_sum(text, 32, "conv1") == wanted
    else:
        with pytest.raises(UsageError, match="nothing"):
            parse_sum(text, 32, "conv1")


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789+-*.e ", max_size=12))
def test_any_text_is_a_sum_or_a_usage_error(text: str) -> None:
    try:
        weights = parse_sum(text, 32, "conv1")
    except UsageError:
        return
    assert any(weights)


def test_directions_are_rows() -> None:
    rows: Any = np.arange(1, 11, dtype=np.float64).reshape(2, 5)
    found = check_directions(torch.from_numpy(rows), 5, "here")
    assert found.tolist() == rows.tolist()
    assert check_directions(torch.from_numpy(rows[0]), 5, "here").tolist() == [rows[0].tolist()]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.ones((2, 4)), r"here: needs numbers \(n, 5\), has \(2, 4\)"),
        (np.ones(4), r"\(4,\)"),
        (np.ones((1, 2, 5)), r"\(1, 2, 5\)"),
        (np.float64(3), r"\(\)"),
        (np.array([[1, 2, 3, 4, np.nan]]), "finite"),
        (np.array([1, 2, 3, 4, np.inf]), "finite"),
        (np.array([1, 2, 3, 4, 1e300]), "finite"),  # in single precision
        (np.zeros((1, 5)), "zeros"),
        (np.eye(5)[[0, 1]] * [[1], [0]], "zeros"),
        (np.ones((0, 5)), "here"),
    ],
    ids=str,
)
def test_what_is_no_direction_is_refused(rows: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_directions(torch.as_tensor(rows, dtype=torch.float32), 5, "here")
