"""`occlude`: one pass per position equals a plain loop, and its files have the results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnvis_cli.cli import _code
from cnnvis_cli.network.cut import cuts
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.occlusion import Occluder, Squares
from cnnvis_cli.nouns import Layer, Preprocessing
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network

CAT = "cat.png"
RUN = Path("run")


def photograph(seed: int, size: int = 112) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


class Residual(nn.Module):
    """Functional rectifiers, two branches that meet, and a rectifier that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8))
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        scores: torch.Tensor = self.fc(x.mean((2, 3)))
        return scores


class Shortcut(nn.Sequential):
    """Its last layer also reads the input: no map carries everything."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self[1](self[0](x))
        colours = x.mean((2, 3))
        scores: torch.Tensor = self[2](maps.mean((2, 3)) + torch.cat([colours, colours], 1))
        return scores


def small(module: nn.Module, side: int = 48) -> Network:
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    known = Preprocessing(side, (side, side))
    return Network.prepare("small", module, known).to(torch.device("cpu"))


def demo() -> Network:
    return load_network(Plan.make(None, {"model": "demo", "device": "cpu"}))


def pixels(network: Network, seed: int = 5) -> torch.Tensor:
    image = np.array(photograph(seed, network.size[0]))
    return network.centre(torch.from_numpy(image)[None])


def plain_loop(
    network: Network, layer: Layer, image: torch.Tensor, squares: Squares, channel: int, label: int
) -> list[np.ndarray[Any, Any]]:
    """Return one position after the other, by hand: totals, probabilities, predictions."""
    kept: list[torch.Tensor] = []
    module = network.module.get_submodule(layer.module)
    handle = module.register_forward_hook(lambda _m, _i, out: kept.append(out.clone()))
    found = np.zeros((3, *squares.shape))
    for row, top in enumerate(squares.top.tolist()):
        for column, left in enumerate(squares.left.tolist()):
            hidden = image.clone()
            down = slice(max(top, 0), max(top + squares.size, 0))
            across = slice(max(left, 0), max(left + squares.size, 0))
            hidden[:, :, down, across] = 0
            kept.clear()
            with torch.no_grad():
                chances = network.module(network.normalise(hidden)).softmax(1)[0]
            total = kept[0][0, channel].clamp(min=0).sum()
            found[:, row, column] = float(total), float(chances[label]), int(chances.argmax())
    handle.remove()
    return list(found)


NETWORKS: dict[str, tuple[Callable[[], Network], str, int, int]] = {
    "demo": (demo, "conv5", 22, 13),
    "demo, early": (demo, "conv2", 9, 17),
    "residual": (lambda: small(Residual()), "two", 9, 5),
    "small square": (lambda: small(Residual()), "two", 1, 3),
    "no cut": (
        lambda: small(Shortcut(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4))),
        "1",
        9,
        6,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_equals_a_plain_loop(name: str) -> None:
    make, asked, size, stride = NETWORKS[name]
    network = make()
    layer, squares = network.layer(asked), Squares.over(network.size, size, stride)
    image = pixels(network)
    occluder = Occluder.of(network, layer, squares, 16)
    totals, chances = occluder.unoccluded(image)
    channel, label = int(totals.argmax()), int(chances.argmax())
    total, probability, predicted = plain_loop(network, layer, image, squares, channel, label)
    assert (occluder.windows is None) == (name == "no cut")
    for way in (occluder, replace(occluder, windows=None)):
        found = way.run(image, channel, label)
        assert abs(found.total - total).max() <= 1e-5 * total.max()
        assert abs(found.probability - probability).max() <= 1e-5
        assert (found.predicted == predicted).all()
    assert np.ptp(probability) > 1e-4, "the square changed nothing, so this tested nothing"


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_any_batch_size_gives_the_same(batch: int) -> None:
    network = demo()
    squares, layer = Squares.over(network.size, 22, 20), network.layer("conv5")
    image = pixels(network)
    one = Occluder.of(network, layer, squares, 7).run(image, 3, 4)
    other = Occluder.of(network, layer, squares, batch).run(image, 3, 4)
    assert np.allclose(one.total, other.total, rtol=1e-5, atol=1e-4)
    assert np.allclose(one.probability, other.probability, atol=1e-6)
    assert (one.predicted == other.predicted).all()


def test_a_cut_carries_everything() -> None:
    """Where a network is cut, its early modules and its rest together are the network."""
    network = small(Residual())
    image = network.normalise(pixels(network))
    found = cuts(network)
    assert [cut.modules[-1] for cut in found] == ["stem.0", "stem.1", "pool"]
    assert [cut.field.size for cut in found] == [(5, 5), (5, 5), (9, 9)]
    early = found[-1].early(network, image)
    assert early.shape[2:] == found[-1].map
    shortcut = Shortcut(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4))
    assert not cuts(small(shortcut))


@pytest.mark.parametrize(("size", "stride"), [(45, 11), (1, 1), (10, 7), (31, 31)])
def test_centres_cover_the_image_evenly(size: int, stride: int) -> None:
    squares = Squares.over((100, 64), size, stride)
    for starts, nearest, length in zip(
        (squares.top, squares.left), squares.nearest((100, 64)), (100, 64), strict=True
    ):
        centres = starts + (size - 1) / 2
        assert (np.diff(starts) == stride).all()
        assert abs((centres[0] - 0) - (length - 1 - centres[-1])) <= 1
        assert abs(centres[nearest] - np.arange(length)).max() <= stride / 2 + 0.5


@pytest.fixture
def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], str]]:
    """A function from a command line to its exit code, lines of results, and what else it said."""
    photograph(5).save(CAT)

    def call(line: str) -> tuple[int, list[str], str]:
        words = f"occlude --stride 30 --size 22 -m demo -r run --device cpu {line}".split()
        monkeypatch.setattr(sys, "argv", ["cnnvis", *words])
        code = _code()
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return call


Told = Callable[..., tuple[int, list[str], str]]


def attributes(path: str | Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: value for name, value in file.attrs.items() if name != "mean"}


def test_the_file_says_what_it_holds(told: Told) -> None:
    code, lines, _ = told(CAT)
    assert code == 0
    assert lines == ["run/occluded/cat_conv5.h5", "run/figures/occlude/cat_conv5.png"]
    known = attributes(lines[0])
    assert (known["format"], known["version"], known["model"]) == ("cnnvis/occluded", 1, "demo")
    assert (known["layer"], known["size"], known["stride"]) == ("conv5", 22, 30)
    assert known["class"] == known["whole_predicted"]
    network = demo()
    squares = Squares.over(network.size, 22, 30)
    image = pixels(network)
    loop = plain_loop(
        network, network.layer("conv5"), image, squares, known["channel"], known["class"]
    )
    with h5py.File(lines[0]) as file:
        for name, values in zip(("total", "probability", "predicted"), loop, strict=True):
            assert np.allclose(file[name], values, rtol=1e-5, atol=1e-5)
            assert file[name].fletcher32
        assert (file["top"][()] == squares.top).all()
        assert (file["left"][()] == squares.left).all()
        assert file["projection"].shape == (112, 112, 3)
        assert abs(file["projection"][()]).max() == 1
    with Image.open(lines[1]) as figure:
        assert figure.info["Title"].startswith("demo · cat · ")


def test_a_rerun_changes_no_byte(
    told: Told, snapshot: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    assert told(f"{CAT} --pdf")[0] == 0
    before = snapshot(RUN)
    assert "figures/occlude/cat_conv5.pdf" in before
    code, lines, _ = told(f"{CAT} --pdf")
    assert (code, len(lines)) == (0, 3)
    assert snapshot(RUN) == before
    content = Path(lines[0]).read_bytes()
    Path(lines[0]).unlink()
    told(CAT)
    assert Path(lines[0]).read_bytes() == content


def test_another_image_under_the_same_name_is_done_again(told: Told) -> None:
    _, lines, _ = told(CAT)
    once = Path(lines[0]).read_bytes(), Path(lines[1]).read_bytes()
    photograph(6).save(CAT)
    code, _, said = told(CAT)
    assert code == 0
    assert "made again" in said
    assert Path(lines[0]).read_bytes() != once[0]
    assert Path(lines[1]).read_bytes() != once[1]


def test_a_folder_with_an_unreadable_image(told: Told) -> None:
    folder = Path("images")
    folder.mkdir()
    photograph(1).convert("RGBA").save(folder / "a.png")
    photograph(2, 300).convert("CMYK").save(folder / "b.jpg")
    grey = np.array(photograph(3).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "c.png")
    (folder / "d.jpg").write_bytes(b"nothing")
    code, lines, said = told(f"images {CAT}")
    assert code == 3
    assert "d.jpg" in said
    assert [Path(line).name for line in lines[::2]] == [
        f"{name}_conv5.h5" for name in ("a", "b", "c", "cat")
    ]


def test_a_class_by_name_or_number(told: Told) -> None:
    _, lines, _ = told(f"{CAT} --class Umbrella --layer conv4 --method guided")
    known = attributes(lines[0])
    assert (known["class_name"], known["layer"]) == ("umbrella", "conv4")
    told(f"{CAT} --class {known['class']} --layer conv4 --method guided")
    assert attributes(lines[0]) == known


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--class umbrela", "did you mean 'umbrella'"),
        ("--class 24", "0 to 23"),
        ("--size 113", "112x112"),
        ("--stride 113", "112x112"),
        ("--size 0", "--size 0: must be at least 1"),
        ("--stride 0", "--stride 0: must be at least 1"),
        ("--layer conv9", "did you mean"),
        ("--method decov", "did you mean 'deconv'"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_wrong_usage_is_one_line(flags: str, message: str, told: Told) -> None:
    code, lines, said = told(f"{CAT} {flags}")
    assert code == 2
    assert not lines
    assert message in said
    assert len(said.splitlines()) == 1
