"""Every kind of figure in a column of a paper: measured by boxes, fonts and files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnvis_cli.cli import _code
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.stages.figures import render
from cnnvis_cli.stages.figures.montage import KINDS
from tests.figure.boxes import faults

Drawn = dict[str, Canvas]
WIDTHS = {"3.25in": 234.0, "6.875in": 495.0, "82mm": 232.44}
WIDE = ("top", "unit together", "layers, equal", "occlude", "saliency", "sweep", "filters")
NETWORK = "--model demo --device cpu --run run -q"
HERE = "--run run --workers 0 -q"  # in this process
ONE = "images/cat/0.png"
MONTAGES = tuple(kind for kind in KINDS if kind != "toolbox")
LINES = {
    **{kind: f"montage {kind} {HERE}" for kind in MONTAGES},
    "intervals": f"montage intervals {HERE} --units 0,5",
    "intervals together": f"montage intervals {HERE} --units 0,5,9 --together",
    "optimized together": f"montage optimized --together {HERE}",
    "top together": f"montage top --together {HERE}",
    "top together, equal": f"montage top --together --equal {HERE}",
    "layers, equal": f"montage layers --equal {HERE}",
    "unit together": f"montage unit --together {HERE}",
    "styles together": f"montage styles --together {HERE}",
    "screen": f"montage screen {ONE} --run run -q --unit conv3/5 --unit fc8/9",
    "look": f"look {ONE} {NETWORK} --layer conv3",
    "filters": f"filters {NETWORK}",
    "filters beside": f"filters {NETWORK} --beside run",
    "saliency": f"saliency {ONE} {NETWORK}",
    "saliency of a unit": f"saliency {ONE} {NETWORK} --target conv3/0002 --method gradient",
    "occlude": f"occlude {ONE} {NETWORK} --workers 0 --stride 40 --size 40 --layer conv3",
    "occlude together": f"occlude {ONE} images/dog/1.png {NETWORK} --workers 0 --stride 50 "
    "--size 40 --layer conv3 --together",
    "activations": f"activations {ONE} {NETWORK} --workers 0",
    "activations of a unit": f"activations {ONE} {NETWORK} --workers 0 --unit conv3/2",
    "activations compared": f"activations {ONE} images/dog/1.png {NETWORK} --workers 0 --compare "
    "--layer conv3 --layer prob",
    "activations of a video": f"activations images/cat {NETWORK} --workers 0 --frames "
    "--layer conv3 --layer fc8",
    "search": f"search {NETWORK} --workers 0 --layer conv3 --units 2,9 --trials 5 --iterations 2",
    "sweep": f"search {NETWORK} --workers 0 "
    "--layer conv3 --units 2 --sweep all --values 5 --iterations 2",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo network with something for every kind."""
    folder = tmp_path_factory.mktemp("paper")
    draw = np.random.default_rng(0)
    for name in ("cat", "dog", "a class of a very long name"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(4):
            coarse = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            picture = Image.fromarray(coarse).resize((112, 112), Image.Resampling.BICUBIC)
            picture.save(folder / "images" / name / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        layers = "--layer conv1 --layer conv3 --layer fc8 --units 0,5,9"
        assert call(f"topk images {NETWORK} --workers 0 --sample 12") == 0
        for style in ("3 --style fourier --runs 4", "1 --runs 1"):
            how = f"--workers 0 --style {style} --iterations 2 --step paper"
            assert call(f"optimize {NETWORK} {layers} {how}") == 0
        start = f"--workers 0 --style accent --start {ONE} --iterations 2"
        assert call(f"optimize {NETWORK} --layer fc8 --units 0,5 {start}") == 0
        assert call(f"project {NETWORK} --workers 0 {layers}") == 0
    return folder


def call(line: str) -> int:
    """Run a command; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cnnvis", *line.split()])
        return _code()


@pytest.fixture
def drawn(made: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The sheets of all figures that a test draws, by the name of their file."""
    monkeypatch.chdir(made)
    found: Drawn = {}
    encode: Callable[..., bytes] = render._encoded_figure

    def keep(canvas: Canvas, path: Path, *rest: Any) -> bytes:
        found[str(path)] = canvas
        return encode(canvas, path, *rest)

    monkeypatch.setattr(render, "_encoded_figure", keep)
    return found


@pytest.mark.parametrize(
    ("name", "width"),
    [(name, "3.25in") for name in LINES] + [(name, "6.875in") for name in WIDE] + [("top", "82mm")],
)
def test_nothing_overlaps_and_no_text_is_small(name: str, width: str, drawn: Drawn) -> None:
    assert call(f"{LINES[name]} --width {width} --dpi 150") == 0
    assert drawn
    wrong = {path: faults(canvas, WIDTHS[width]) for path, canvas in drawn.items()}
    assert not {path: found[:6] for path, found in wrong.items() if found}


def test_a_fault_would_be_found() -> None:
    canvas = Canvas(60, 90)
    canvas.tile(np.zeros((20, 20, 3), np.uint8), 10, 0)
    canvas.text("over it", 15, 10, 11)
    canvas.text("small", 40, 10, 8)
    found = faults(canvas.printed(90, 0.65), 58.5)
    assert len(found) == 2
    assert any("over it" in fault for fault in found)
    assert any("points" in fault and "small" in fault for fault in found)
    assert faults(canvas.printed(90, 0.65), 60)
    with pytest.raises(UsageError, match="inches"):
        canvas.printed(20, 0.65)


def test_larger_text_needs_no_more_room(drawn: Drawn) -> None:
    assert call(f"{LINES['unit together']} --paper --points 9") == 0
    assert not any(faults(canvas, 234) for canvas in drawn.values())
    (unit,) = {canvas.unit for canvas in drawn.values()}
    assert unit is not None
    assert unit * 11 == pytest.approx(9, abs=0.05)


def test_a_paper_s_files(drawn: Drawn) -> None:
    assert call("montage optimized --run run -q --workers 0 --layer fc8 --paper") == 0
    folder = Path("run/figures/optimized")
    names = {path.name for path in folder.iterdir() if path.stem == "fc8"}
    assert names == {"fc8.png", "fc8.pdf", "fc8.txt", "fc8.tex"}
    with Image.open(folder / "fc8.png") as image:
        assert image.width == pytest.approx(3.25 * 300, abs=1)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    content = (folder / "fc8.pdf").read_bytes()
    box = re.search(rb"/MediaBox \[([^\]]*)\]", content)
    assert box is not None
    assert float(box[1].split()[2]) == pytest.approx(234, abs=0.1)
    assert b"/Author" not in content
    assert b"Helvetica" not in content
    assert content.count(b"/Type /Font\n") + content.count(b"/Type /Font ") >= 1
    caption = (folder / "fc8.txt").read_text()
    assert caption.startswith("demo fc8 (classifier.")
    assert "99th percentile" in caption
    latex = (folder / "fc8.tex").read_text()
    assert r"\includegraphics[width=3.25in]{fc8.pdf}" in latex
    assert r"\textbar{}x\textbar{}" in latex
    drawn.clear()
    assert call("montage optimized --run run -q --workers 0 --layer fc8 --paper") == 0
    assert not drawn, "a rerun draws nothing"
    (folder / "fc8.txt").unlink()
    assert call("montage optimized --run run -q --workers 0 --layer fc8 --paper") == 0
    assert (folder / "fc8.txt").read_text() == caption


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--width 3.25", "in, cm, mm or pt"),
        ("--width 3in --columns 2", "only one"),
        ("--columns 3", "columns"),
        ("--points 5", "points"),
        ("--width 30in", "20in"),
    ],
)
def test_impossible_columns_are_refused(
    flags: str, word: str, drawn: Drawn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"montage optimized --run run {flags}") == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert word in told
