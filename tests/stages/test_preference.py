"""Whether preferred images are preferred: optimized values beside the strongest photographs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnvis_cli.measures.preference import EQUAL, Preference
from cnnvis_cli.stages.optimize.preference import preference_of
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.topk_file import TopKFile

Do = Callable[..., None]
Call = Callable[..., Any]
NAN = float("nan")


def beside(
    optimized: list[float], photograph: list[float], live: list[bool] | None = None
) -> Preference:
    """Return the preference of units 10, 11, ... with these values."""
    return Preference(
        np.arange(10, 10 + len(optimized), dtype=np.int32),
        np.array(optimized, np.float32),
        np.array(photograph, np.float32),
        np.array(live or [True] * len(optimized)),
        images=7,
    )


def test_the_ratio_is_to_the_strongest_photograph() -> None:
    found = beside([3, 1, -2], [2, 4, 1])
    assert found.ratio.tolist() == [1.5, 0.25, -2]
    assert found.preferred.tolist() == [True, False, False]
    assert found.below == [11, 12]
    assert found.summary() == (
        "1 of 3 live units prefer their image to the best of 7 images (median 0.25 times its value)"
    )


@pytest.mark.parametrize("best", [50.0, -50.0])
def test_a_unit_at_its_ceiling_prefers_its_image(best: float) -> None:
    """Images are kept in half precision, so a value that cannot be exceeded is missed by a hair."""
    hair = abs(best) * EQUAL
    found = beside([best, best - 0.9 * hair, best - 1.1 * hair], [best] * 3)
    assert found.preferred.tolist() == [True, True, False]
    assert found.below == [12]


def test_dead_units_are_neither_counted_nor_named() -> None:
    found = beside([3, -1, 0], [2, 4, 0], live=[True, False, False])
    assert found.below == []
    assert found.summary() == (
        "1 of 1 live units prefer their image to the best of 7 images (median 1.50 times its value)"
    )


def test_where_the_best_photograph_is_negative_there_is_no_ratio() -> None:
    found = beside([-1, -3, 5], [-2, -2, 0])
    assert np.isnan(found.ratio).all()
    assert found.below == [11]
    assert found.summary() == "2 of 3 live units prefer their image to the best of 7 images"


def test_a_unit_without_a_photograph_is_not_compared() -> None:
    found = beside([3, 1], [NAN, 0.5])
    assert found.below == []
    assert found.summary().startswith("1 of 1 live units")


# ---- as the command finds them


@pytest.fixture
def flags(tmp_path: Path, photographs: Callable[..., Path]) -> dict[str, Any]:
    folder = photographs(tmp_path / "images", 9, size=(112, 112))
    return {
        "model": "demo",
        "device": "cpu",
        "dataset": str(folder),
        "run": str(tmp_path / "run"),
        "layer": ("conv1",),
        "units": "3,1,5",
        "batch_size": 4,
        "workers": 0,
        "optimize__iterations": 33,
        "optimize__runs": 2,
    }


def test_it_compares_the_best_run_with_the_strongest_place(
    do: Do, flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags | {"units": ""})
    do("optimize", **flags)
    run = Run(tmp_path / "run")
    found = preference_of(run, "conv1", "natural")
    assert found is not None
    assert found.units.tolist() == [1, 3, 5]
    assert found.images == 9
    values = OptimizedFile(run.optimized("conv1")).read("natural", "activation")
    assert found.optimized.tolist() == values.max(axis=1).tolist()
    strongest = TopKFile(run.topk).layer("conv1").places.activation
    assert found.photograph.tolist() == [strongest[unit, 0] for unit in (1, 3, 5)]
    assert found.live.all()


@pytest.mark.parametrize(
    ("change", "group"),
    [
        ({"optimize__mean": True}, "natural-mean"),
        ({"optimize__minimise": True}, "natural-min"),
        ({"units": "", "optimize__sum": ("1 + 2",)}, "natural-sum"),
        ({"layer": ("fc8",), "optimize__softmax": True, "optimize__style": ("3",)}, "3-softmax"),
    ],
    ids=str,
)
def test_another_value_than_a_unit_s_is_not_compared(
    change: dict[str, Any], group: str, do: Do, flags: dict[str, Any], tmp_path: Path
) -> None:
    flags |= change | {"optimize__iterations": 2}
    do("topk", **flags | {"units": ""})
    do("optimize", **flags)
    (alias,) = flags["layer"]
    run = Run(tmp_path / "run")
    assert group in OptimizedFile(run.optimized(alias)).styles()
    assert preference_of(run, alias, group) is None


def test_without_top_images_of_the_layer_there_is_nothing_to_compare(
    do: Do, flags: dict[str, Any], tmp_path: Path
) -> None:
    flags["optimize__iterations"] = 2
    run = Run(tmp_path / "run")
    do("optimize", **flags)
    assert preference_of(run, "conv1", "natural") is None  # no topk.h5
    assert preference_of(run, "conv1", "3") is None  # no such style
    do("topk", **flags | {"layer": ("conv2",), "units": ""})
    assert preference_of(run, "conv1", "natural") is None  # topk.h5 of another layer


LINE = "optimize --model demo --device cpu --workers 0 --layer conv2 --units 0-5 --run run"
COUNT = r"; (\d+) of (\d+) live units prefer their image to the best of 9 images"


@pytest.fixture
def scanned(cnnvis: Call, photographs: Callable[..., Path]) -> None:
    photographs(Path("images"), 9, size=(112, 112))
    cnnvis("topk images --model demo --device cpu --workers 0 --layer conv2 --run run")


def test_the_command_counts_and_names_those_that_do_not(scanned: None, cnnvis: Call) -> None:
    """One step leaves the images at their noise; the style's own number of steps does not."""
    told = cnnvis(f"{LINE} --iterations 1 --style 3 --step 1")
    preferring, live = map(int, re.search(COUNT, told.out).groups())  # type: ignore[union-attr]
    (warning,) = told.err.splitlines()
    found = preference_of(Run(Path("run")), "conv2", "3")
    assert found is not None
    assert live == int(found.live.sum())
    assert live - preferring == len(found.below) > 0
    assert warning.startswith(
        f"conv2 style 3: {len(found.below)} units answer more to an image of the dataset "
        f"than to their optimized one ({', '.join(map(str, found.below))});"
    )
    assert cnnvis(f"{LINE} --iterations 1 --style 3 --step 1").out == told.out


def test_by_default_all_live_units_prefer_their_image(scanned: None, cnnvis: Call) -> None:
    told = cnnvis(LINE)
    preferring, live = map(int, re.search(COUNT, told.out).groups())  # type: ignore[union-attr]
    assert preferring == live > 0
    assert told.err == ""


def test_a_run_without_top_images_is_not_told_of_any(cnnvis: Call) -> None:
    told = cnnvis(f"{LINE} --iterations 2")
    assert "prefer their image" not in told.out
    assert told.err == ""


def test_a_warning_names_the_first_units_and_counts_all(scanned: None, cnnvis: Call) -> None:
    told = cnnvis(f"{LINE.replace('0-5', '0-29')} --iterations 1 --style 3 --step 1")
    found = preference_of(Run(Path("run")), "conv2", "3")
    assert found is not None
    assert len(found.below) > 8
    named = ", ".join(map(str, found.below[:8]))
    assert f" {len(found.below)} units answer more" in told.err
    assert f"({named}, ...)" in told.err


def test_a_rerun_says_what_it_said_and_a_later_topk_refreshes_it(plans: None, cnnvis: Call) -> None:
    """The receipt answers; with the warning, and not from before there was a topk."""
    line = "optimize -c demo.toml --run r"
    assert "prefer their image" not in cnnvis(line).out
    cnnvis("topk -c demo.toml --run r")
    told = cnnvis(line)
    assert "prefer their image" in told.out
    assert "answer more to an image of the dataset" in told.err
    again = cnnvis(line)
    assert again.out == told.out
    assert [x for x in told.err.splitlines() if "answer more" in x] == again.err.splitlines()
