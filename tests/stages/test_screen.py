"""`montage screen`: what its panes show, against slow twins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from cnnvis_cli.cli import _code
from cnnvis_cli.figure.screen import back_filtered, boosted
from cnnvis_cli.network.backward import rectify
from cnnvis_cli.nouns import Box
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.single.inputs import batch_of, photographs
from cnnvis_cli.stages.single.screen_unit import ScreenUnit

UNIT = "conv3/0005"
FLAGS: dict[str, Any] = {"model": "demo", "device": "cpu", "workers": 0, "run": "run"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((112, 112), Image.Resampling.BICUBIC).save("one.png")


def call(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["cnnvis", *line.split()])
    return _code()


def test_back_filters_are_the_toolbox_s() -> None:
    x = np.random.default_rng(1).normal(size=(30, 40, 3)).astype(np.float32)
    length = np.linalg.norm(x, axis=2)
    for how, wanted in (("norm", length), ("blur", gaussian_filter(length, 4))):
        white = np.percentile(wanted, 99)
        levels = np.rint(np.clip(wanted / white, 0, 1) * 255)
        assert np.abs(back_filtered(x, how, "tile")[..., 0] - levels).max() <= 1
    grey = back_filtered(x, "gray", "max")
    mean = x.mean(axis=2)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert np.abs(grey[..., 0] - (mean / (2 * np.abs(mean).max()) + 0.5) * 255).max() <= 1
    assert np.ptp(back_filtered(x, "raw", "tile"), axis=2).max() > 100, "in colour"


def test_gamma_lifts_weak_activations_and_keeps_signs() -> None:
    maps = np.array([[[-0.25, 0.0, 0.25, 1.0]]], np.float32)
    np.testing.assert_allclose(boosted(maps, 0.5), [[[-0.5, 0, 0.5, 1]]], atol=1e-6)
    assert boosted(maps, 1) is maps


@pytest.mark.parametrize("start", ["map", "place"])
def test_the_way_back_is_from_this_image(start: str) -> None:
    plan = Plan.make(None, FLAGS | {"montage__unit": (UNIT,), "montage__start": start})
    with open_session(plan, Report(quiet=True)) as session:
        unit = ScreenUnit.of(session, UNIT)
        (image,) = photographs(session, ["one.png"])
        centred = batch_of(session.network, [image])
        maps, back, classes = unit.seen(centred)
        x = centred.clone().requires_grad_()
        with rectify("deconv"):
            output, _ = session.network.values(unit.layer, Box.whole(session.network.size), x)
        own = output[0, 5]
        value = (own.clamp(min=0).detach() * own).sum() if start == "map" else own.max()
        (wanted,) = torch.autograd.grad(value, x)
    np.testing.assert_allclose(back, wanted[0].permute(1, 2, 0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps[5], own.detach(), rtol=1e-5)
    assert len(classes) == 5
    assert [share for _, share in classes] == sorted((s for _, s in classes), reverse=True)


def test_a_screen_needs_no_run_and_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"montage screen one.png --model demo --device cpu --run run -q --unit {UNIT}"
    path = Path("run/figures/screen/one_conv3_0005.png")
    assert call(line, monkeypatch) == 0
    with Image.open(path) as image:
        image.load()
        record = json.loads(image.info["cnnvis"])
    assert record["unit"] == UNIT
    assert record["back"] == "raw"
    before = path.stat().st_mtime_ns
    assert call(line, monkeypatch) == 0
    assert path.stat().st_mtime_ns == before
    assert call(f"{line} --back norm", monkeypatch) == 0
    assert path.stat().st_mtime_ns != before


def test_of_frames_there_is_a_film_with_a_screen_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each shows its own frame; one that cannot be read is told and left out."""
    av = pytest.importorskip("av")
    Path("frames").mkdir()
    for number, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (112, 112), colour).save(f"frames/{number}.png")
    Path("frames/2.png").write_bytes(b"no image")
    line = (
        f"montage screen frames one.png --frames --model demo --device cpu --run run --unit {UNIT}"
    )
    path = Path("run/figures/screen/frames_conv3_0005.mp4")
    assert call(line, monkeypatch) == 0
    told = capsys.readouterr()
    assert told.out.split()[-1] == str(path)
    assert "frames: 2.png is left out" in told.err
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Image.open("run/figures/screen/one_conv3_0005.png") as still:
        assert shown[0].shape[1] in (still.width, still.width + 1)
    assert len(shown) == 3
    for sheet, rgb in zip(shown, ((255, 0, 0), (0, 128, 0), (255, 255, 255)), strict=True):
        inputs = sheet[120:200, 60:160].reshape(-1, 3).astype(int)
        assert np.abs(inputs - rgb).mean() < 20
    before = path.stat().st_mtime_ns
    assert call(line, monkeypatch) == 0
    assert path.stat().st_mtime_ns == before
    assert call(f"{line} --every 3", monkeypatch) == 0
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 2


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("montage screen", "which image"),
        ("montage screen one.png", "which unit"),
        ("montage screen one.png --unit conv3/9999", "has units 0 to"),
        ("montage screen two.png --unit conv3/5", "two.png"),
        ("montage top screen", "alone"),
    ],
)
def test_what_is_missing_is_named(
    line: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"{line} --model demo --device cpu --run run", monkeypatch) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert word in told
