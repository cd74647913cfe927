"""`montage`: where the figures are, what they show, and that nothing is drawn twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.figures.render import Figure, draw_figures

UNITS = (1, 4, 5)


@pytest.fixture
def flags(tmp_path: Path, photographs: Callable[..., Path]) -> dict[str, Any]:
    """Flags that go with a run of conv1 that has everything to draw."""
    folder = photographs(tmp_path / "images", 12, classes=2, size=(112, 112))
    return {
        "model": "demo",
        "device": "cpu",
        "dataset": str(folder),
        "run": str(tmp_path / "run"),
        "layer": ("conv1",),
        "workers": 0,
    }


@pytest.fixture
def ready(do: Callable[..., None], flags: dict[str, Any]) -> dict[str, Any]:
    do("topk", **flags)
    flags |= {"units": "1,4-5"}
    made = {"optimize__style": ("3",), "optimize__iterations": 10, "optimize__runs": 3}
    do("optimize", **flags | made)
    do("project", **flags)
    return flags | {"dataset": None, "figure__scale": 1}


def stretched(tile: NDArray[Any]) -> Pixels:
    """Return the tone: x / (2 p) + 0.5, p the 99th percentile of |x| where x is not 0."""
    x = tile.astype(np.float32)
    p = np.percentile(np.abs(x[x != 0]), 99)
    grey = np.clip(x / (2 * p) + np.float32(0.5), 0, 1)
    levels: Pixels = (grey * 255 + np.float32(0.5)).astype(np.uint8)
    return levels


def contains(sheet: Pixels, tile: Pixels) -> bool:
    """Return whether a picture is somewhere on a sheet, to the pixel."""
    height, width = tile.shape[:2]
    busiest = int(tile.std(axis=(1, 2)).argmax())
    for top in range(len(sheet) - height + 1):
        for left in _within(tile[busiest], sheet[top + busiest]):
            if (sheet[top : top + height, left : left + width] == tile).all():
                return True
    return False


def _within(piece: Pixels, line: Pixels) -> list[int]:
    """Return where a row of pixels begins in a longer one."""
    starts = (line[: len(line) - len(piece) + 1] == piece[0]).all(axis=-1).nonzero()[0].tolist()
    return [s for s in starts if (line[s : s + len(piece)] == piece).all()]


def opened(path: Path) -> Pixels:
    return np.asarray(Image.open(path))


def test_the_best_image_of_each_unit_is_on_the_sheet(
    do: Callable[..., None], ready: dict[str, Any], tmp_path: Path
) -> None:
    do("montage", **ready | {"montage__kind": ("optimized",)})
    sheet = opened(tmp_path / "run" / "figures" / "optimized" / "conv1.png")
    with h5py.File(tmp_path / "run" / "optimized" / "conv1.h5") as file:
        for row in range(len(UNITS)):
            best = int(file["3/activation"][row].argmax())
            for run in range(3):
                assert contains(sheet, stretched(file["3/image"][row, run])) == (run == best)


def test_projections_and_patches_are_on_the_sheet(
    do: Callable[..., None], ready: dict[str, Any], tmp_path: Path
) -> None:
    do("montage", **ready | {"montage__kind": ("top",)})
    sheet = opened(tmp_path / "run" / "figures" / "top" / "conv1.png")
    with (
        h5py.File(tmp_path / "run" / "topk.h5") as top,
        h5py.File(tmp_path / "run" / "projected" / "conv1.h5") as file,
    ):
        for unit in UNITS:
            for rank in range(9):
                projection = file["deconv/projection"][unit, rank].astype(np.float32)
                assert contains(sheet, stretched(projection * file["deconv/scale"][unit, rank]))
                path = top["images/path"][top["layers/conv1/image"][unit, rank]].decode()
                y, x, bottom, right = top["layers/conv1/box"][unit, rank].tolist()
                assert min(y, x) >= 0
                photograph = opened(tmp_path / "images" / path)
                assert contains(sheet, photograph[y:bottom, x:right])


def test_the_picture_says_what_it_shows(
    do: Callable[..., None], ready: dict[str, Any], tmp_path: Path
) -> None:
    do("montage", **ready | {"figure__tone": "sheet"})
    for kind in ("optimized", "top"):
        with Image.open(tmp_path / "run" / "figures" / kind / "conv1.png") as image:
            image.load()
            text = image.info
        assert "demo conv1" in text["Title"]
        record = json.loads(text["cnnvis"])
        assert record["units"] == list(UNITS)
        assert record["layer"] == "conv1"
        assert "one scale for the whole sheet" in record["tone"]


def test_a_rerun_changes_no_byte(
    do: Callable[..., None],
    ready: dict[str, Any],
    snapshot: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    do("montage", **ready)
    before = snapshot(tmp_path / "run")
    assert {"figures/optimized/conv1.png", "figures/top/conv1.png"} < set(before)
    do("montage", **ready)
    assert snapshot(tmp_path / "run") == before


def test_the_same_picture_is_the_same_file(
    do: Callable[..., None], ready: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "figures" / "optimized" / "conv1.png"
    do("montage", **ready)
    once = path.read_bytes()
    path.unlink()
    do("montage", **ready)
    assert path.read_bytes() == once


@pytest.mark.parametrize("damage", ["truncated", "another scale", "more units"])
def test_a_picture_that_is_not_the_one_asked_for_is_drawn_again(
    damage: str, do: Callable[..., None], ready: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "figures" / "optimized" / "conv1.png"
    do("montage", **ready)
    once = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(once[:-400])
    elif damage == "another scale":
        do("montage", **ready | {"figure__scale": 2})
        assert path.read_bytes() != once
    else:
        do("montage", **ready | {"units": "1"})
        assert path.read_bytes() != once
    do("montage", **ready)
    assert path.read_bytes() == once


def test_pixels_can_be_drawn_larger(
    do: Callable[..., None], ready: dict[str, Any], tmp_path: Path
) -> None:
    do("montage", **ready | {"montage__kind": ("optimized",), "figure__scale": 3})
    sheet = opened(tmp_path / "run" / "figures" / "optimized" / "conv1.png")
    with h5py.File(tmp_path / "run" / "optimized" / "conv1.h5") as file:
        best = int(file["3/activation"][0].argmax())
        tile = stretched(file["3/image"][0, best])
    assert contains(sheet, tile.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": "7"}, "optimize"),
        ({"montage__style": ("2",)}, "2"),
        ({"layer": ("conv2",)}, "optimize"),
        ({"montage__kind": ("top",), "units": "7"}, "project"),
        ({"montage__kind": ("top",), "montage__method": "guided"}, "guided"),
    ],
)
def test_what_is_not_there_is_named(
    change: dict[str, Any], message: str, do: Callable[..., None], ready: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=message):
        do("montage", **ready | change)


def test_one_scale_for_a_unit_keeps_its_projections_comparable(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags | {"layer": ("conv2",)})
    flags |= {"layer": ("conv2",), "units": "0-2"}
    do("project", **flags)
    do("montage", **flags | {"montage__kind": ("top",), "figure__tone": "unit", "figure__scale": 1})
    sheet = opened(tmp_path / "run" / "figures" / "top" / "conv2.png")
    with h5py.File(tmp_path / "run" / "projected" / "conv2.h5") as file:
        for unit in range(3):
            scale = file["deconv/scale"][unit]
            assert scale.min() < 0.9 * scale.max()
            tiles = file["deconv/projection"][unit].astype(np.float32)
            tiles *= scale[:, None, None, None]
            tops = [np.percentile(np.abs(tile[tile != 0]), 99) for tile in tiles]
            grey = np.clip(tiles[scale.argmin()] / (2 * max(tops)) + np.float32(0.5), 0, 1)
            weakest = (grey * 255 + np.float32(0.5)).astype(np.uint8)
            assert contains(sheet, weakest)


def test_a_place_that_reaches_outside_the_image_is_grey_there(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    flags |= {"layer": ("conv5",), "units": "0-3"}
    do("topk", **flags | {"units": ""})
    do("project", **flags)
    do("montage", **flags | {"montage__kind": ("top",)})
    sheet = opened(tmp_path / "run" / "figures" / "top" / "conv5.png")
    outside = 0
    with h5py.File(tmp_path / "run" / "topk.h5") as top:
        for unit in range(4):
            for rank in range(9):
                box = top["layers/conv5/box"][unit, rank].tolist()
                path = top["images/path"][top["layers/conv5/image"][unit, rank]].decode()
                photograph = opened(tmp_path / "images" / path)
                wide = np.pad(photograph, ((83, 83), (83, 83), (0, 0)), constant_values=128)
                patch = wide[83 + box[0] : 83 + box[2], 83 + box[1] : 83 + box[3]]
                outside += min(box) < 0 or max(box) > 112
                assert contains(sheet, patch)
    assert outside, "no place reached outside, so this tested nothing"


def test_a_figure_is_told_once_it_is_drawn_and_not_with_the_last(tmp_path: Path) -> None:
    """The second figure waits until the first one's file has been told."""
    told, seen = list[Path](), tmp_path / "seen"

    def tell(path: Path) -> None:
        told.append(path)
        seen.touch()

    def late() -> Canvas:
        end = time.monotonic() + 5
        while not seen.exists() and time.monotonic() < end:
            time.sleep(0.02)
        return Canvas(20, 20 if seen.exists() else 1)

    plan = Plan(model="demo", run=str(tmp_path / "run"), workers=0, device="cpu")
    with open_session(plan, Report(quiet=True)) as session:
        drawn: list[Callable[[], Canvas]] = [lambda: Canvas(20, 20), late]
        figures = [Figure("test", name, name, {}, d) for name, d in zip("ab", drawn, strict=True)]
        draw_figures(session, figures, tell)
        assert [path.name for path in told] == ["a.png", "b.png"]
        assert opened(told[1]).shape[:2] == (20, 20)
        draw_figures(session, figures, tell)  # what is there is told as well
        assert told[2:] == told[:2]


def test_what_to_run_for_a_kind_of_figure_is_named(plans: None, cnnvis: Callable[..., Any]) -> None:
    """A run with a topk alone is not said to hold nothing."""
    cnnvis("topk -c demo.toml --run r --layer conv1")
    Path("r/sample.h5").unlink()
    for kind, makers in {
        "top": "cnnvis project",
        "styles": "cnnvis optimize",
        "toolbox": "cnnvis optimize or cnnvis project",
        "intervals": "cnnvis topk --sample 10000",
    }.items():
        told = cnnvis(f"montage {kind} --run r", 2).err
        assert f"r holds nothing to show as {kind} yet; run {makers} first" in told
    assert "to show yet; run cnnvis optimize or cnnvis project" in cnnvis("montage --run r", 2).err
