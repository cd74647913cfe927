"""`cnnvis look`: one sheet that shows what the other commands compute."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnvis_cli.cli import main
from cnnvis_cli.figure.canvas import read_record
from cnnvis_cli.report import Report
from cnnvis_cli.settings import LookPlan, Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.single.inputs import batch_of, photographs
from cnnvis_cli.stages.single.look import Look
from cnnvis_cli.store.image_names import names_in
from cnnvis_cli.store.run import Run


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["cnnvis", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(str(ended.value.code or 0))


def test_the_bundled_picture_is_looked_at_without_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, "look", "demo") == 0
    (line,) = capsys.readouterr().out.split()
    path = Path(line)
    assert path == Path("outputs/demo/figures/look/bird.png")
    assert np.asarray(Image.open(path)).std() > 10
    record = json.loads(read_record(path)["cnnvis"])
    assert record["layers"][-1] == "conv5"
    before = path.stat().st_mtime_ns
    assert called(monkeypatch, "look", "demo") == 0
    assert path.stat().st_mtime_ns == before
    assert called(monkeypatch, "topk", "demo", "--model", "demo", "--layer", "conv5", "-q") == 0
    assert called(monkeypatch, "look", "demo") == 0
    assert path.stat().st_mtime_ns > before  # the run now knows each unit's best image


def test_what_it_shows_is_the_network_s_own(tmp_path: Path) -> None:
    picture = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(picture)
    plan = Plan(model="demo", run=str(tmp_path / "run"), look=LookPlan((str(picture),)))
    with open_session(plan, Report(quiet=True)) as session:
        (image,) = photographs(session, plan.look.images)
        shown = Look(session, image)
        network = session.network
        layer = shown.layers[0]
        kept: list[torch.Tensor] = []
        module = network.module.get_submodule(layer.module)
        handle = module.register_forward_hook(lambda *given: kept.append(given[2].clone()))
        with torch.no_grad():
            out = network.module(network.normalise(batch_of(network, [image])))[0].softmax(0)
        handle.remove()
        own = kept[0][0].numpy()
        np.testing.assert_allclose(shown.maps()[layer.alias], own, rtol=1e-4, atol=1e-4)
        cells = list(shown.units(layer, shown.maps()[layer.alias]))
        strongest = int(own.max(axis=(1, 2)).argmax())
        assert cells[0].label.startswith(f"{layer.alias}/{strongest:04d}: ")
        canvas = shown.draw("title")
        best = int(out.argmax())
        text = " ".join(getattr(mark, "text", "") for mark in canvas.marks)
        assert f"{network.classes[best]} {float(out[best]):.1%}" in text


def test_a_photograph_for_the_bundled_network_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be called a flower or a zigzag otherwise, without a word."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (120, 120), (90, 120, 60)).save("photo.png")
    for words, told in (((), True), (("--model", "demo"), False)):
        assert called(monkeypatch, "look", "photo.png", *words, "--dpi", "90") == 0
        assert ("no photographs; for these give" in capsys.readouterr().err) == told
        (tmp_path / "outputs").rename(tmp_path / f"done{len(words)}")


@pytest.mark.parametrize(
    ("words", "code"), [((), 2), (("nowhere.jpg",), 2)], ids=["no picture", "a missing one"]
)
def test_without_a_picture_it_says_so(
    words: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, "look", *words) == code


@pytest.mark.parametrize(
    "command",
    [
        "look",
        "activations --layer conv2 --save h5",
        "saliency --method gradient --save h5",
        "occlude --stride 60",
    ],
)
def test_two_images_of_one_name_never_take_each_other_s_files(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(("a", "b", "a_b")):
        Path(folder).mkdir()
        noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(Path(folder, "photo.png"))
    made: dict[str, set[str]] = {}
    contents: dict[str, bytes] = {}
    for image in ("a/photo.png", "b/photo.png", "a/photo.png", "a_b/photo.png", "b/photo.png"):
        name, *options = command.split()
        assert called(monkeypatch, name, image, "--model", "demo", "--run", "r", *options) == 0
        told = set(capsys.readouterr().out.split())
        assert made.setdefault(image, told) == told
        for path in told:
            assert contents.setdefault(path, Path(path).read_bytes()) == Path(path).read_bytes()
    assert len(set.union(*made.values())) == sum(map(len, made.values()))


def test_names_of_images_are_apart_in_one_call_too(tmp_path: Path) -> None:
    paths = [f"{tmp_path}/{name}" for name in ("a/b.png", "c/b.png", "a_b.png", "a/b.jpg")]
    names = names_in(Run(tmp_path), paths)
    assert len(set(names)) == 4
