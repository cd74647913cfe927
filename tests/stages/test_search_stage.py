"""`search` on the bundled network: rows of parameters, their images, scores, sheets and styles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cnnvis_cli.ascent.search import Ranges, draw_rows
from cnnvis_cli.errors import Stopped, UsageError
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.optimize.search import search
from cnnvis_cli.store.search import SearchFile


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "demo",
        "device": "cpu",
        "workers": 0,
        "run": str(tmp_path / "run"),
        "layer": ("conv1",),
        "units": "1,4",
        "batch_size": 8,
        "search__trials": 5,
        "search__iterations": 12,
        "optimize__step": "3",
    }


def do_search(report: Report | None = None, **flags: Any) -> None:
    with open_session(Plan.make(None, flags), report or Report(quiet=True)) as session:
        search(session)


def test_every_row_is_an_ascent_of_its_own_style(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    """A row that is kept and optimized again gives the image that the search has."""
    do_search(**flags | {"search__save": "kept", "search__row": 3})
    file = SearchFile(tmp_path / "run" / "search" / "conv1.h5")
    assert file.read("random", "image").shape == (5, 2, 7, 7, 3)
    rows = draw_rows(Ranges(), 5, 0)
    assert [row["rate"] for row in file.searches()["random"]["rows"]] == [r.rate for r in rows]
    again = {k: v for k, v in flags.items() if not k.startswith("search__")}
    do("optimize", **again | {"optimize__style": ("kept",), "optimize__step": "paper"})
    with h5py.File(tmp_path / "run" / "optimized" / "conv1.h5") as made:
        np.testing.assert_array_equal(made["kept/image"][:, 0], file.read("random", "image")[3])
        activation = made["kept/activation"][:, 0]
    np.testing.assert_array_equal(activation, file.read("random", "activation")[3])


def test_the_scores_are_those_of_the_stored_images(flags: dict[str, Any], tmp_path: Path) -> None:
    do_search(**flags)
    file = SearchFile(tmp_path / "run" / "search" / "conv1.h5")
    image = file.read("random", "image").astype(np.float32)
    np.testing.assert_allclose(
        file.read("random", "deviation"), image.reshape(5, 2, -1).std(axis=2, ddof=1), rtol=1e-4
    )
    mean = np.array([123.675, 116.28, 103.53], np.float32)
    clipped = ((image + mean <= 0) | (image + mean >= 255)).mean(axis=(2, 3, 4))
    np.testing.assert_allclose(file.read("random", "clipped"), clipped, atol=1e-6)
    robust = file.read("random", "robustness")
    assert ((robust >= 0) & (robust <= 1)).all()
    assert set(np.unique(robust * 8) % 1) == {0.0}  # eight disturbances


def test_a_rerun_changes_no_byte_and_a_stopped_one_carries_on(
    flags: dict[str, Any],
    snapshot: Callable[[Path], dict[str, Any]],
    interrupted: Callable[[int], Any],
    tmp_path: Path,
) -> None:
    do_search(**flags)
    before = snapshot(tmp_path / "run")
    assert {"search/conv1.h5", "figures/search/conv1.png"} < set(before)
    do_search(**flags)
    assert snapshot(tmp_path / "run") == before
    other = flags | {"run": str(tmp_path / "other"), "batch_size": 8}
    for moments in (1, 4):
        with pytest.raises(Stopped):
            do_search(interrupted(moments), **other)
    do_search(**other | {"workers": 2})
    one, two = (tmp_path / name / "search" / "conv1.h5" for name in ("run", "other"))
    assert one.read_bytes() == two.read_bytes()
    assert not (tmp_path / "other" / "parts").exists()


def test_a_longer_search_begins_with_the_rows_of_a_shorter_one(
    flags: dict[str, Any], tmp_path: Path
) -> None:
    do_search(**flags)
    do_search(**flags | {"search__trials": 8, "run": str(tmp_path / "long")})
    short, long = (
        SearchFile(tmp_path / name / "search" / "conv1.h5").read("random", "image")
        for name in ("run", "long")
    )
    np.testing.assert_array_equal(short, long[:5])


def test_sweeps_stand_beside_the_search(flags: dict[str, Any], tmp_path: Path) -> None:
    do_search(**flags)
    do_search(**flags | {"search__sweep": "decay", "search__values": 3})
    do_search(**flags | {"search__sweep": "all", "search__values": 2})
    file = SearchFile(tmp_path / "run" / "search" / "conv1.h5")
    assert set(file.searches()) == {"random", "sweep-decay", "sweep-all"}
    assert file.read("sweep-decay", "image").shape[0] == 3
    assert file.read("sweep-all", "image").shape[0] == 10
    figures = {path.name for path in (tmp_path / "run" / "figures" / "search").iterdir()}
    assert figures == {"conv1.png", "conv1_sweep-decay.png", "conv1_sweep-all.png"}
    decays = [row["decay"] for row in file.searches()["sweep-decay"]["rows"]]
    assert decays == sorted(decays)
    assert len(set(decays)) == 3


def test_ranges_of_a_plan_are_used(flags: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "plan.toml"
    config.write_text("[search.ranges]\nnorm = [20, 30]\nabsent = 0\n")
    plan = Plan.make(config, flags)
    with open_session(plan, Report(quiet=True)) as session:
        search(session)
    rows = SearchFile(tmp_path / "run" / "search" / "conv1.h5").searches()["random"]["rows"]
    assert all(20 <= row["norm"] <= 30 for row in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": ()}, "--layer"),
        ({"search__score": "balance"}, "balanced"),
        ({"search__sweep": "blur"}, "blur_"),
        ({"search__save": "no good"}, "letters"),
        ({"search__save": "3"}, "built-in"),
        ({"search__save": "x", "search__row": 99}, "rows 0 to 4"),
        ({"search__ranges": {"norms": [1, 2]}}, "norm"),
        ({"search__ranges": {"norm": [2, 1]}}, "lowest"),
        ({"optimize__step": "paper"}, "calibrated or a number"),
        ({"units": "99"}, "no unit 99"),
    ],
)
def test_bad_input_is_one_clear_line(
    change: dict[str, Any], message: str, flags: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        do_search(**flags | change)
    assert "\n" not in str(raised.value)


def test_another_search_of_the_same_name_is_refused(flags: dict[str, Any]) -> None:
    do_search(**flags)
    with pytest.raises(UsageError, match="another search random"):
        do_search(**flags | {"search__trials": 6})


def test_a_kept_style_is_kept_once(flags: dict[str, Any], tmp_path: Path) -> None:
    do_search(**flags | {"search__save": "soft"})
    do_search(**flags | {"search__save": "harder", "search__row": 0})
    text = (tmp_path / "run" / "styles.toml").read_text()
    assert text.count("[styles.") == 2
    with pytest.raises(UsageError, match="soft"):
        do_search(**flags | {"search__save": "soft"})


def test_the_sheet_says_what_it_shows(flags: dict[str, Any], tmp_path: Path) -> None:
    from cnnvis_cli.figure.canvas import read_record

    do_search(**flags)
    record = read_record(tmp_path / "run" / "figures" / "search" / "conv1.png")
    assert "units 1, 4" in record["Title"]
    assert json.loads(record["cnnvis"])["score"] == "balanced"
