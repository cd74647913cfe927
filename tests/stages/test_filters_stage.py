"""`filters`: what the figures, the table and the clipped weights hold, against slow twins."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

import cnnvis_cli.demo
from cnnvis_cli.arrays import Pixels
from cnnvis_cli.cli import _code
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.filters import FRAME
from cnnvis_cli.network.zoo import CaffeNet
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.figures.filters import filters

DEMO = Path(cnnvis_cli.demo.__file__).parent / "demo.safetensors"
RADIUS = 0.05
IMAGES = 40
Table = dict[str, list[str]]


class Heard(Report):
    """A report that remembers the results."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def result(self, text: str) -> None:
        self.lines.append(text)


def show(**flags: Any) -> list[str]:
    """Do the stage as the command does; gives its results."""
    plan, report = Plan.make(None, {"device": "cpu", "workers": 0, **flags}), Heard()
    with open_session(plan, report) as session:
        filters(session)
    return report.lines


@pytest.fixture
def demo(tmp_path: Path) -> dict[str, Any]:
    return {"model": "demo", "run": str(tmp_path / "run"), "filters__radius": RADIUS}


@pytest.fixture
def seen(
    do: Callable[..., None], exact: dict[str, Any], photographs: Callable[..., Path], tmp_path: Path
) -> dict[str, Any]:
    """Flags of a run with a topk.h5, whose channel 4 is never on."""
    folder = photographs(tmp_path / "images", IMAGES)
    flags = {**exact, "run": str(tmp_path / "seen"), "layer": ("conv1",)}
    do("topk", **flags, dataset=str(folder))
    return flags


@pytest.fixture
def weights() -> NDArray[np.float32]:
    """The demo network's first filters: (32, 3, 7, 7)."""
    found: NDArray[np.float32] = load_file(DEMO)["features.0.weight"].numpy()
    return found


def opened(path: Path) -> Pixels:
    return np.asarray(Image.open(path))


def places(paper: Pixels, tile: Pixels) -> list[tuple[int, int]]:
    """Return where a picture is on a sheet, to the pixel."""
    height, width = tile.shape[:2]
    corners = paper[: len(paper) - height + 1, : paper.shape[1] - width + 1]
    starts = np.argwhere((corners == tile[0, 0]).all(axis=-1)).tolist()
    return [(y, x) for y, x in starts if np.array_equal(paper[y : y + height, x : x + width], tile)]


def picture(filter_: NDArray[np.float32], largest: float, scale: int) -> Pixels:
    """Return the stated tone: x / (2 max |x|) + 0.5; (3, h, w) to pixels."""
    grey = filter_.transpose(1, 2, 0) / np.float32(2 * largest) + np.float32(0.5)
    levels: Pixels = (grey * 255 + np.float32(0.5)).astype(np.uint8)
    return levels.repeat(scale, axis=0).repeat(scale, axis=1)


def renormalised(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each filter on its own, as the paper's sentence says."""
    found = weights.copy()
    for number, each in enumerate(weights):
        rms = np.sqrt(np.mean(each.astype(np.float64) ** 2))
        if rms > RADIUS:
            found[number] = each * (RADIUS / rms)
    return found


def table(path: Path) -> Table:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize(("tone", "scale"), [("sheet", None), ("tile", 3)])
def test_raw_and_clipped_filters_are_on_the_sheet(
    tone: str, scale: int | None, demo: dict[str, Any], weights: Any, tmp_path: Path
) -> None:
    show(**demo, filters__tone=tone, filters__scale=scale)
    paper = opened(tmp_path / "run" / "figures" / "filters" / "conv1.png")
    half = paper.shape[1] / 2
    for side, state in (("left", weights), ("right", renormalised(weights))):
        for each in state:
            largest = np.abs(state if tone == "sheet" else each).max()
            found = places(paper, picture(each, largest, scale or 6))
            assert any((x < half) == (side == "left") for _, x in found)


def test_the_exceeding_ones_are_framed(demo: dict[str, Any], weights: Any, tmp_path: Path) -> None:
    show(**demo, filters__tone="tile")
    paper = opened(tmp_path / "run" / "figures" / "filters" / "conv1.png")
    marked = 0
    for each in weights:
        top, left = places(paper, picture(each, np.abs(each).max(), 6))[0]
        framed = (paper[top - 2, left + 20] != 255).any()
        assert framed == (np.sqrt((each.astype(np.float64) ** 2).mean()) > RADIUS)
        marked += int(framed)
    assert 0 < marked < len(weights)


def test_a_network_of_caffe_is_shown_in_rgb(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = CaffeNet().state_dict()
    state["conv1.weight"] *= 0
    state["conv1.weight"][:, 2] = 0.05  # its channels are blue, green, red
    save_file(state, tmp_path / "caffe.safetensors")
    show(model="caffenet", weights=str(tmp_path / "caffe.safetensors"), run=str(tmp_path / "run"))
    paper = opened(tmp_path / "run" / "figures" / "filters" / "conv1.png")
    assert len(places(paper, np.full((44, 44, 3), (255, 128, 128), np.uint8))) == 2 * 96


def test_the_table_has_the_numbers(seen: dict[str, Any], tmp_path: Path) -> None:
    show(**seen)
    found = table(tmp_path / "seen" / "figures" / "filters" / "conv1.tsv")
    weights = load_network(Plan.make(None, seen)).module.get_submodule("0").weight
    assert isinstance(weights, torch.Tensor)
    values = activations(seen, tmp_path / "images")  # (images, channels, places)
    assert found["channel"] == [str(n) for n in range(6)]
    rms = weights.double().square().flatten(1).mean(dim=1).sqrt()
    np.testing.assert_allclose([float(v) for v in found["rms"]], rms, rtol=1e-5)
    assert [v == "1" for v in found["exceeds"]] == (rms > 0.1).tolist()
    assert [v == "1" for v in found["dead"]] == (values <= 0).all(axis=(0, 2)).tolist()
    assert found["dead"][4] == "1"
    mean, rectified = values.mean(axis=(0, 2)), values.clip(0).mean(axis=(0, 2))
    np.testing.assert_allclose([float(v) for v in found["mean_activation"]], mean, rtol=1e-4)
    estimate = np.array([float(v) for v in found["rectified_activation"]])
    assert estimate[4] == 0
    np.testing.assert_allclose(estimate, rectified, atol=0.2 * rectified.max())  # 8 places an image


def activations(flags: dict[str, Any], folder: Path) -> NDArray[np.float32]:
    """Return the first layer's output for every image: (N, C, places)."""
    network = load_network(Plan.make(None, flags))
    photographs = np.stack([opened(path) for path in sorted(folder.rglob("*.png"))])
    inputs = network.normalise(network.centre(torch.from_numpy(photographs)))
    found: NDArray[np.float32] = network.module.get_submodule("0")(inputs).flatten(2).numpy()
    return found


def test_dead_filters_are_named_and_crossed_out(seen: dict[str, Any], tmp_path: Path) -> None:
    lines = show(**seen)
    (dead,) = [line for line in lines if line.startswith("dead")]
    assert "(4" in dead
    assert f"{IMAGES} images" in dead
    with Image.open(tmp_path / "seen" / "figures" / "filters" / "conv1.png") as image:
        image.load()
        record, paper = json.loads(image.info["cnnvis"]), np.asarray(image)
    assert 4 in record["dead"]
    whole = np.full((45, 45, 3), 128, np.uint8)  # filters 2 and 4 are all zeros, so grey
    assert len(places(paper, whole)) == 2 * (2 - len({2, 4} & set(record["dead"])))


def test_the_frequency_figure_says_what_it_shows(seen: dict[str, Any], tmp_path: Path) -> None:
    lines = show(**seen)
    path = tmp_path / "seen" / "figures" / "filters" / "conv1_frequency.png"
    assert str(path) in lines
    found = table(path.with_name("conv1.tsv"))
    by_frequency = sorted(range(6), key=lambda n: float(found["frequency"][n]))
    values = [float(found["rectified_activation"][n]) for n in by_frequency]
    with Image.open(path) as image:
        image.load()
        record = json.loads(image.info["cnnvis"])
    wanted = [np.mean(values[:3]), np.mean(values[-3:])]  # three of six: not five
    np.testing.assert_allclose(record["averages"], wanted, rtol=1e-4)
    assert "topk.h5" in record["note"]


def test_without_activations_the_filters_are_shown_all_the_same(
    demo: dict[str, Any], tmp_path: Path
) -> None:
    lines = show(**demo)
    assert sum("topk" in line for line in lines) == 2
    folder = tmp_path / "run" / "figures" / "filters"
    assert sorted(path.name for path in folder.iterdir()) == ["conv1.png", "conv1.tsv"]
    found = table(folder / "conv1.tsv")
    assert set(found["dead"] + found["mean_activation"]) == {""}
    assert "" not in found["frequency"]


def test_a_rerun_changes_no_byte(
    seen: dict[str, Any], snapshot: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    seen |= {"filters__save_clipped": str(tmp_path / "seen" / "c.safetensors"), "figure__pdf": True}
    once = show(**seen)
    before = snapshot(tmp_path / "seen")
    assert show(**seen) == once
    assert snapshot(tmp_path / "seen") == before
    show(**seen | {"filters__radius": 0.2})
    after = snapshot(tmp_path / "seen")
    changed = {Path(name).name for name in after if after[name] != before[name]}
    assert {"conv1.png", "c.safetensors"} <= changed


def command(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr("sys.argv", ["cnnvis", *line.split()])
    return _code()


def test_clipped_weights_load_again(
    monkeypatch: pytest.MonkeyPatch, weights: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"filters -m demo --radius {RADIUS} --run raw --save-clipped new/clipped.safetensors"
    assert command(monkeypatch, line) == 0
    assert "new/clipped.safetensors" in capsys.readouterr().out
    network = load_network(Plan.make(None, {"model": "demo", "weights": "new/clipped.safetensors"}))
    state, raw = network.module.state_dict(), load_file(DEMO)
    first = state.pop("features.0.weight")
    np.testing.assert_allclose(first, renormalised(weights), rtol=1e-6)
    assert all(torch.equal(state[name], raw[name]) for name in state)
    assert state.keys() | {"features.0.weight"} == raw.keys()
    again = f"filters -m demo -w new/clipped.safetensors --radius {RADIUS} --run clipped"
    assert command(monkeypatch, again) == 0
    assert f"above {RADIUS}: none of 32" in capsys.readouterr().out


OWN = f"-m demo -w own.safetensors --radius {RADIUS}"
WRONG = {
    "suffix": ("--model demo --save-clipped clipped.pth", ".safetensors"),
    "folder": ("--model demo --save-clipped folder.safetensors", "folder"),
    "the weights themselves": (f"{OWN} --save-clipped own.safetensors", "own"),
    "by another name": (f"{OWN} --save-clipped link.safetensors", "link"),
    "layer of maps": ("--model demo --layer conv2", "32 channels"),
    "fully connected": ("--model demo --layer fc6", "convolution"),
    "layer": ("--model demo --layer cnv1", "conv1"),
    "radius 0": ("--model demo --radius 0", "--radius"),
    "radius nan": ("--model demo --radius nan", "--radius"),
    "scale 0": ("--model demo --scale 0", "--scale"),
    "scale": ("--model demo --scale 1.5", "--scale"),
    "tone": ("--model demo --tone true", "--tone"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_and_exit_2(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.safetensors").mkdir()
    Path("own.safetensors").write_bytes(DEMO.read_bytes())
    Path("link.safetensors").symlink_to("own.safetensors")
    line, wanted = WRONG[case]
    assert command(monkeypatch, f"filters {line} --run run") == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert wanted in told
    assert Path("own.safetensors").read_bytes() == DEMO.read_bytes()


def test_the_first_layer_may_be_split_or_absent() -> None:
    Path("oddnet.py").write_text(
        "from torch import nn\n"
        "def split():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(5400, 2))\n"
    )
    flags = {"model": "oddnet:split", "trust_code": True, "run": "odd"}
    flags |= {"preprocessing__crop": 32, "preprocessing__resize": 32}
    with pytest.raises(UsageError, match="no convolution"):
        show(**flags)
    with pytest.raises(UsageError, match="3 groups"):
        show(**flags, layer=("conv1",))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    state = load_file(DEMO)
    state["features.0.weight"][5, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(Exception, match=r"features\.0\.weight holds NaN"):
        show(model="demo", weights=str(tmp_path / "nan.safetensors"), run=str(tmp_path / "run"))


def test_the_example_of_the_help_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "filters --model demo") == 0
    assert Path("outputs/demo/figures/filters/conv1.png").is_file()


def test_the_radius_is_in_the_filters_own_units() -> None:
    """The paper's 0.1 is for pixels that are not divided: 0.1 becomes 5.76 for 57.6 of them."""
    told = show(model="demo", run="run")[1]
    assert told.startswith("RMS above 5.76 (0.1 for pixels of 0 to 255): none of 32")
    told = show(model="demo", run="other", preprocessing__std=(1.0, 1.0, 1.0))[1]
    assert told.startswith("RMS above 0.1: 3 of 32 (3, 11, 15);")


def test_two_networks_are_shown_side_by_side(demo: dict[str, Any], tmp_path: Path) -> None:
    """Each with its own filters and frames; another run is only read."""
    other = load_file(DEMO)
    other["features.0.weight"] = other["features.0.weight"][:, [2, 1, 0]] * 3
    save_file(other, tmp_path / "other.safetensors")
    two = {"model": "demo", "weights": str(tmp_path / "other.safetensors")}
    show(**two, run=str(tmp_path / "two"))
    before = {path: path.read_bytes() for path in (tmp_path / "two").rglob("*.*")}
    told = show(**demo, filters__beside=str(tmp_path / "two"))
    assert told[-1] == str(tmp_path / "run/figures/filters/conv1_beside_two.png")
    assert {path: path.read_bytes() for path in (tmp_path / "two").rglob("*.*")} == before
    with Image.open(told[-1]) as image:
        sheet = np.asarray(image.convert("RGB"))
        record = json.loads(str(image.info["cnnvis"]))
    assert len(set(record["weights_sha256"])) == 2
    framed = [len(each) for each in record["framed"]]
    assert framed[0] > 0
    assert framed != [framed[0], framed[0]]
    middle = sheet.shape[1] // 2
    orange = (sheet == FRAME).all(axis=2)
    assert orange[:, :middle].sum() != orange[:, middle:].sum()
    with pytest.raises(UsageError, match="--beside none: holds no run"):
        show(**demo, filters__beside="none")
    other["features.0.weight"] *= 2
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="no longer holds that run's weights"):
        show(**demo, filters__beside=str(tmp_path / "two"))
