"""`saliency` through the command line: its files, its targets, and images of every kind."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cnnvis_cli.cli import _code
from cnnvis_cli.demo.synthetic import draw
from cnnvis_cli.figure.tone import toned
from cnnvis_cli.network.saliency import METHODS

FIRST = 2_000_000  # images that the network was not trained on
FAST = "--method gradient --method guided"
FIGURES = Path("run/figures/saliency")


class Told(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[[str], Told]


@pytest.fixture
def saliency(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The command on the bundled network, in a folder with three drawn images."""
    Path("images").mkdir()
    for number, name in enumerate(("cat", "fish", "wheel")):
        Image.fromarray(draw(name, FIRST + number)).save(f"images/{name}.png")

    def call(line: str) -> Told:
        network = "" if "--model" in line else "--model demo"
        words = f"cnnvis saliency {line} {network} --run run --device cpu"
        monkeypatch.setattr(sys, "argv", shlex.split(words))
        capfd.readouterr()
        code = _code()
        return Told(code, *capfd.readouterr())

    return call


def record_of(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        image.load()
        return {"title": image.info["Title"], **json.loads(image.info["cnnvis"])}


def stored(path: str) -> dict[str, NDArray[Any]]:
    with h5py.File(path) as file:
        return {name: values[()] for name, values in file.items()}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_gives_a_figure_an_image(saliency: Call) -> None:
    told = saliency("images --batch-size 2")
    assert told.code == 0, told.err
    names = [f"{name}_predicted.png" for name in ("cat", "fish", "wheel")]
    assert told.out.splitlines() == [f"run/figures/saliency/{name}" for name in names]
    assert files(FIGURES) == names
    for name in ("cat", "fish", "wheel"):
        record = record_of(FIGURES / f"{name}_predicted.png")
        assert record["title"].startswith(f"demo · {name} · predicted {name} (class ")
        assert record["methods"] == ["gradient", "guided", "deconv", "gradcam"]
        assert record["parameters"]["gradcam"] == {"layer": "conv5"}


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("cat", "class0004"),
        ("CAT", "class0004"),
        ("4", "class0004"),
        ("conv3/7", "conv3_0007"),
        ("features.6/0007", "conv3_0007"),
        ("fc8/4", "fc8_0004"),
    ],
)
def test_a_target_is_a_class_or_a_unit(target: str, name: str, saliency: Call) -> None:
    told = saliency(f"images/fish.png --target {target} {FAST}")
    assert told.code == 0, told.err
    assert told.out.strip() == f"run/figures/saliency/fish_{name}.png"
    assert record_of(Path(told.out.strip()))["target"] == name


WRONG = {
    "no image": ("", "which images"),
    "image": ("images/cta.png", "images/cta.png"),
    "method": ("images --method grad-cam", "gradcam"),
    "class": ("images --target cta", "'cat'"),
    "class number": ("images --target 24", "0 to 23"),
    "layer": ("images --target cnv3/1", "conv3"),
    "unit": ("images --target conv3/96", "0 to 95"),
    "unit number": ("images --target conv3/x", "layer/channel"),
    "at": ("images --at conv6", "conv5"),
    "at without a map": ("images --at fc6", "conv5"),
    "at behind the target": ("images --target conv3/1 --at conv4", "conv2"),
    "nothing before the target": ("images --target conv1/1", "Grad-CAM"),
    "save": ("images --save csv", "--save"),
    "tone": ("images --tone true", "--tone"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_one_line_and_exit_2(case: str, saliency: Call) -> None:
    line, remedy = WRONG[case]
    told = saliency(line)
    assert told.code == 2, told
    assert len(told.err.splitlines()) == 1
    assert remedy in told.err
    assert not told.out
    assert not FIGURES.exists()


def test_a_rerun_changes_no_byte(
    saliency: Call, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    line = f"images {FAST} --save h5 --pdf"
    first = saliency(line)
    assert first.code == 0, first.err
    before = snapshot(Path("run"))
    assert {"saliency/cat_predicted.h5", "figures/saliency/cat_predicted.pdf"} < set(before)
    assert saliency(line) == first
    assert snapshot(Path("run")) == before


def test_a_changed_image_is_explained_anew(saliency: Call) -> None:
    line = f"images/cat.png {FAST} --save h5"
    assert saliency(line).code == 0
    paths = [FIGURES / "cat_predicted.png", Path("run/saliency/cat_predicted.h5")]
    before = [path.read_bytes() for path in paths]
    content = Path("images/cat.png").read_bytes()
    Path("images/cat.png").write_bytes(Path("images/wheel.png").read_bytes())
    assert saliency(line).code == 0
    assert "predicted wheel" in record_of(paths[0])["title"]
    assert all(path.read_bytes() != old for path, old in zip(paths, before, strict=True))
    Path("images/cat.png").write_bytes(content)
    assert saliency(line).code == 0
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("damage", ["cut short", "gone"])
def test_what_is_damaged_is_made_again_alike(damage: str, saliency: Call) -> None:
    """In a batch with other neighbours: those that were done are left out of it."""
    line = f"images {FAST} --save h5"
    assert saliency(line).code == 0
    paths = [FIGURES / "fish_predicted.png", Path("run/saliency/fish_predicted.h5")]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-400])
    assert saliency(line).code == 0
    assert [path.read_bytes() for path in paths] == before


def test_all_methods_are_kept_as_numbers(saliency: Call) -> None:
    every = " ".join(f"--method {name}" for name in METHODS)
    told = saliency(f"images/cat.png {every} --save h5 --target cat")
    assert told.code == 0, told.err
    arrays = stored("run/saliency/cat_class0004.h5")
    assert set(arrays) == {*METHODS, "image", "probability"}
    for name, method in METHODS.items():
        shape = (12, 12) if method.shown == "map" else (112, 112, 3)
        assert arrays[name].shape == shape
        assert arrays[name].dtype == np.float32
        assert arrays[name].any()
    assert (arrays["image"] == np.asarray(Image.open("images/cat.png"))).all()
    assert arrays["probability"].sum() == pytest.approx(1)
    with h5py.File("run/saliency/cat_class0004.h5") as file:
        found = dict(file.attrs)
        assert file["gradient"].fletcher32
        assert file["gradient"].compression == "gzip"
    assert (found["format"], found["version"]) == ("cnnvis/saliency", 1)
    assert (found["model"], found["target"], found["channel"]) == ("demo", "class0004", 4)
    assert len(found["weights_sha256"]) == 64
    assert json.loads(found["parameters"])["smoothgrad"] == {
        "samples": 50,
        "spread": 0.15,
        "seed": 0,
    }
    assert arrays["integrated"].sum() == pytest.approx(found["value"], rel=0.3)


def contains(sheet: NDArray[np.uint8], tile: NDArray[np.uint8]) -> bool:
    """Return whether a picture is somewhere on a sheet, to the pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (1, tile.shape[1], 3))[:, :, 0, 0]
    height, row = len(tile), len(tile) // 2
    starts = (windows == tile[row]).all(axis=(2, 3)).nonzero()
    return any(
        np.array_equal(sheet[y - row : y - row + height, x : x + tile.shape[1]], tile)
        for y, x in zip(*starts, strict=True)
    )


def test_the_figure_shows_image_and_maps(saliency: Call) -> None:
    assert saliency(f"images/cat.png {FAST} --save h5").code == 0
    sheet = np.asarray(Image.open(FIGURES / "cat_predicted.png"))
    arrays = stored("run/saliency/cat_predicted.h5")
    assert contains(sheet, arrays["image"])
    assert contains(sheet, toned(arrays["guided"][None, None], "tile")[0, 0])
    magnitude = np.abs(arrays["gradient"]).max(axis=2)
    white = np.percentile(magnitude[magnitude > 0], 99)
    levels = np.rint(np.clip(magnitude / white, 0, 1) * 255).astype(np.uint8)
    assert contains(sheet, np.repeat(levels[..., None], 3, axis=2))


def test_smoothgrad_is_decided_by_seed_and_image(saliency: Call) -> None:
    def one(line: str) -> NDArray[Any]:
        assert saliency(f"{line} --method smoothgrad --save h5 --target cat").code == 0
        return stored("run/saliency/cat_class0004.h5")["smoothgrad"]

    once = one("images")
    Path("run/saliency/cat_class0004.h5").unlink()
    assert (one("images/cat.png") == once).all()
    assert (one("images/cat.png --seed 1") != once).any()


def test_an_unreadable_image_does_not_stop_the_others(saliency: Call) -> None:
    Path("images/broken.png").write_bytes(b"no picture")
    Path("images/empty.jpg").write_bytes(b"")
    told = saliency(f"images {FAST}")
    assert told.code == 3
    assert len(told.err.splitlines()) == 3
    assert "images/broken.png" in told.err
    assert "2 of 5" in told.err
    assert len(told.out.splitlines()) == len(files(FIGURES)) == 3
    assert saliency(f"images {FAST} --max-unreadable 0.5").code == 0


def test_images_of_one_name_in_two_folders(saliency: Call) -> None:
    Path("more").mkdir()
    Image.fromarray(draw("clock", FIRST)).save("more/cat.png")
    told = saliency(f"images/cat.png more/cat.png {FAST}")
    assert told.code == 0, told.err
    assert files(FIGURES) == ["images_cat_predicted.png", "more_cat_predicted.png"]
    assert "predicted clock" in record_of(FIGURES / "more_cat_predicted.png")["title"]


def odd_images() -> dict[str, Image.Image]:
    """Return the same picture in modes that need a rule."""
    drawn = draw("cat", FIRST)
    picture = Image.fromarray(drawn)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.fromarray(drawn[..., 0]))
    palette = picture.quantize(64)
    palette.info["transparency"] = 3
    return {
        "rgba.png": clear,
        "cmyk.jpg": picture.convert("CMYK"),
        "deep.png": Image.fromarray(drawn[..., 1].astype(np.uint16) << 8),
        "palette.png": palette,
        "grey.png": picture.convert("L"),
        "bit.png": picture.convert("1"),
        "animated.gif": picture.quantize(64),
    }


def test_transparent_cmyk_deep_and_palette_images(saliency: Call) -> None:
    Path("odd").mkdir()
    for name, image in odd_images().items():
        if name == "animated.gif":
            image.save(f"odd/{name}", save_all=True, append_images=[image.rotate(90)])
        else:
            image.save(f"odd/{name}")
    told = saliency(f"odd {FAST} --save h5")
    assert told.code == 0, told.err
    assert not told.err
    drawn = draw("cat", FIRST).astype(int)
    for name in odd_images():
        shown = stored(f"run/saliency/{Path(name).stem}_predicted.h5")["image"].astype(int)
        assert shown.shape == (112, 112, 3)
        if name == "rgba.png":
            assert (shown == drawn).all()
        if name == "deep.png":
            assert (shown == drawn[..., 1:2]).all()
        if name in ("cmyk.jpg", "palette.png", "animated.gif"):
            assert np.abs(shown - drawn).mean() < 25


def test_a_network_without_a_rule_is_refused_by_name(saliency: Call) -> None:
    Path("small.toml").write_text("[preprocessing]\nresize = 64\ncrop = 64\n")
    line = "images/cat.png --model efficientnet_b0 -w random -c small.toml"
    told = saliency(f"{line} --method guided")
    assert (told.code, len(told.err.splitlines())) == (2, 1)
    for word in ("efficientnet_b0", "guided", "silu", "gradcam"):
        assert word in told.err
    assert saliency(f"{line} --method gradient --method gradcam").code == 0
    told = saliency(line)  # nothing was asked for by name: what has no rule is left out
    assert (told.code, len(told.err.splitlines())) == (0, 2)
    assert all(f"{name} cannot go back" in told.err for name in ("guided", "deconv"))


def test_settings_may_stand_in_a_file(saliency: Call) -> None:
    Path("saliency.toml").write_text(
        "[saliency]\nimages = ['images/cat.png']\nmethod = 'gradient'\ntarget = 13\n"
    )
    told = saliency("--config saliency.toml")
    assert told.code == 0, told.err
    assert files(FIGURES) == ["cat_class0013.png"]


def test_the_tone_of_signed_maps_can_be_shared(saliency: Call) -> None:
    line = "images/cat.png --method guided --method deconv --save h5"
    assert saliency(f"{line} --tone sheet").code == 0
    sheet = np.asarray(Image.open(FIGURES / "cat_predicted.png"))
    arrays = stored("run/saliency/cat_predicted.h5")
    both = np.stack([arrays["guided"], arrays["deconv"]])
    for tile in toned(both[None], "sheet")[0]:
        assert contains(sheet, tile)
