"""The style accent from the command line: where it begins, what is kept and what is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session

Call = Callable[..., Any]
ACCENT = "optimize --model demo --style accent --iterations 20 --workers 0 --start photo.png"
CONV = f"{ACCENT} --layer conv3 --units 0-5"


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture of coloured spots, as large as the demo network's input."""
    monkeypatch.chdir(tmp_path)
    coarse = np.random.default_rng(1).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((112, 112), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def held(run: str, layer: str, name: str) -> Any:
    with h5py.File(Path(run, f"optimized/{layer}.h5")) as file:
        return file[name][()]


def test_it_asks_for_a_photograph(photo: Path, cnnvis: Call) -> None:
    told = cnnvis(CONV.replace("--start photo.png", "") + " --run r", 2).err
    assert "style accent begins with a photograph; add --start PHOTO" in told
    told = cnnvis(CONV.replace("photo.png", "none.png") + " --run r", 2).err
    assert "--start none.png: use noise, uniform, mean or an image file" in told
    told = cnnvis("montage accent --model demo --run r", 2).err
    assert "holds nothing to show as accent yet; run cnnvis optimize first" in told


def test_each_unit_begins_where_it_answers_most(photo: Path, cnnvis: Call) -> None:
    """At the place that a pass over the whole photograph finds; the start has that value."""
    told = cnnvis(CONV + " --run r")
    assert "conv3: accent takes the" in told.err
    assert "--mean takes the whole photograph" in told.err
    assert "the median value goes from" in told.out
    began, start = held("r", "conv3", "accent/photograph"), held("r", "conv3", "accent/start")
    assert (held("r", "conv3", "accent/activation") > start).all()
    pixels = np.asarray(Image.open(photo))
    with open_session(
        Plan.make(None, {"model": "demo", "run": "r"}), Report(quiet=True)
    ) as session:
        network = session.network
        layer = network.layer("conv3")
        with torch.no_grad():
            maps = network.values(
                layer,
                network.canvas(layer)._replace(top=0, left=0, bottom=112, right=112),
                network.centre(torch.from_numpy(pixels.copy())[None]),
            )[0][0].numpy()
    inner = [
        place for place in np.ndindex(maps.shape[1:]) if layer.field.box(*place).inside((112, 112))
    ]
    assert len(inner) > 10
    for unit in range(6):
        best = max(inner, key=lambda place: maps[unit][place])
        box = layer.field.box(*best)
        assert np.array_equal(began[unit], pixels[box.top : box.bottom, box.left : box.right])
        assert start[unit, 0] == pytest.approx(maps[unit][best], rel=0.02, abs=0.05)


def test_it_is_the_same_in_parts_and_verified(photo: Path, cnnvis: Call) -> None:
    cnnvis(CONV + " --run r")
    for number in (1, 2):
        cnnvis(CONV + f" --run other --shard {number}/2")
    cnnvis("merge other --run other")
    whole = Path("r/optimized/conv3.h5").read_bytes()
    assert Path("other/optimized/conv3.h5").read_bytes() == whole
    assert cnnvis("verify r --all").err == ""
    shutil.copy("photo.png", "copy.png")  # the same photograph by another name
    cnnvis(CONV.replace("photo.png", "copy.png") + " --run r")
    assert Path("r/optimized/conv3.h5").read_bytes() == whole
    Image.new("RGB", (112, 112)).save("photo.png")
    told = cnnvis(CONV + " --run r", 2).err
    assert "holds style accent of another plan: start is" in told


def test_a_figure_shows_the_photograph_the_picture_and_what_changed(
    photo: Path, cnnvis: Call
) -> None:
    cnnvis(ACCENT + " --layer fc8 --units 4 --run r")
    cnnvis("montage accent optimized --model demo --run r --layer fc8 --scale 1")
    image = held("r", "fc8", "accent/image")[0, 0].astype(np.float32)
    mean = np.array((123.675, 116.28, 103.53), np.float32)
    change = image + mean - np.asarray(Image.open(photo))
    assert np.sqrt(np.square(change).mean()) < 12.6
    shown = np.clip(image + mean, 0, 255)
    with Image.open("r/figures/accent/fc8_0004.png") as picture:
        sheet = np.asarray(picture.convert("RGB")).astype(np.float32)
        assert json.loads(str(picture.info["cnnvis"]))["style"] == "accent"
    lefts = []
    for tile in (np.asarray(Image.open(photo)).astype(np.float32), shown):
        windows = sliding_window_view(sheet, tile.shape)[:, ::1, 0]
        apart = [np.abs(row - tile).mean(axis=(1, 2, 3)) for row in windows]
        _, left = np.unravel_index(np.argmin(apart), np.shape(apart))
        assert np.min(apart) < 1
        lefts.append(left)
    assert lefts[0] < lefts[1]
    with Image.open("r/figures/optimized/fc8.png") as picture:  # in its own colours there too
        sheet = np.asarray(picture.convert("RGB")).astype(np.float32)
    windows = sliding_window_view(sheet, shown.shape)[:, :, 0]
    assert min(float(np.abs(row - shown).mean(axis=(1, 2, 3)).min()) for row in windows) < 1
    cnnvis("gallery --model demo --run r --layer fc8 --trace 0")
    sheets = [np.asarray(Image.open(p).convert("RGB")) for p in Path("r/gallery").rglob("*.jpg")]
    sheets = [each.astype(np.float32) for each in sheets if min(each.shape[:2]) >= len(shown)]
    near = []
    for each in sheets:
        windows = sliding_window_view(each, shown.shape)[:, :, 0]
        near.append(min(float(np.abs(row - shown).mean(axis=(1, 2, 3)).min()) for row in windows))
    assert min(near) < 6  # by JPEG, and in the gallery too
