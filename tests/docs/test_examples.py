"""The code of the documentation runs: of extending.md, store.md and the README."""

from __future__ import annotations

import ast
import hashlib
import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.run.pipeline import STAGES

if TYPE_CHECKING:
    from tests.docs.conftest import Told
    from tests.docs.pages import PAGES, ROOT, Block, blocks, command_lines, name_of
else:
    from pages import PAGES, ROOT, Block, blocks, command_lines, name_of

Call = Callable[[list[str]], "Told"]

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="this is no checkout")

IMAGE = "outputs/demo-images/cat/003.png"
BEFOREHAND = (  # what store.md says that its examples come after
    "search --run outputs/demo --layer conv2 --trials 2",
    f"activations {IMAGE} --run outputs/demo --save h5",
    f"saliency {IMAGE} --run outputs/demo --save h5",
    f"occlude {IMAGE} --run outputs/demo",
    "optimize --model demo --run outputs/half --layer conv1 --units 0-3 --shard 1/2",
)


def code(page: str) -> list[Block]:
    """Return the Python of a page that stands alone."""
    return [b for b in blocks(ROOT / page) if b.language == "python" and not b.file]


def run(block: Block, python: Call) -> str:
    """Run a block as a file; return its output."""
    Path("example.py").write_text(block.text, encoding="utf-8")
    return python(["example.py"]).out


def test_all_code_can_be_read() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                ast.parse(block.text, f"{name_of(page)}:{block.number}")


def test_the_readme_s_python_runs(python: Call) -> None:
    found = code("README.md")
    assert len(found) == 1
    assert run(found[0], python).split()[0].endswith(".png")
    assert Path("conv5-42.png").is_file()


def test_the_store_s_examples_run(cnnvis: Call, python: Call) -> None:
    for line in BEFOREHAND:
        told = cnnvis(line.split())
        assert told.code == 0, told.err
    said = "".join(run(block, python) for block in code("docs/store.md"))
    for word in ("most selective:", "hidden here", "whole", "'kind': 'Natural'", "on its own"):
        assert word in said, said
    assert "damaged" not in said


def test_the_store_s_examples_read_names_that_are_no_utf_8(
    photographs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = min(photographs(Path("images"), 2).rglob("*.png"))
    image.rename(image.with_name(os.fsdecode(b"\xff\xfe.png")))
    settings: dict[str, object] = {
        "model": "demo",
        "dataset": "images",
        "run": "outputs/demo",
        "device": "cpu",
    }
    settings |= {"layer": ("conv5",), "topk__sample": 2, "workers": 0}
    with open_session(Plan.make(None, settings), Report(quiet=True)) as session:
        STAGES["topk"](session)
    found = [block.text for block in code("docs/store.md") if "images/path" in block.text]
    assert len(found) == 2
    for number, text in enumerate(found):
        Path(f"{number}.py").write_text(text, encoding="utf-8")
        runpy.run_path(f"{number}.py")


def test_the_seal_is_what_sha256sum_gives(furnished: None) -> None:
    """The two shell lines, written in Python."""
    (block,) = (b for b in blocks(ROOT / "docs/store.md") if b.language == "sh")
    tail, digest, head = (line.words for line in command_lines(block))
    assert (tail[0], digest[0], head[0]) == ("tail", "sha256sum", "head")
    content = Path(tail[3]).read_bytes()
    behind = content[int(tail[2].removeprefix("+")) - 1 :]  # tail counts from 1
    shown = content[: int(head[2])].decode()
    assert shown.split() == ["cnnvis", "sha256", hashlib.sha256(behind).hexdigest()]


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_stage_from_outside_runs(python: Call) -> None:
    """Its answers are the network's own; a stopped one goes on from its parts."""
    files = {b.file: b for b in blocks(ROOT / "docs/extending.md") if b.file}
    Path("colours.py").write_text(files["colours.py"].text, encoding="utf-8")
    run = Path("outputs/colours")
    begun = runpy.run_path("colours.py", run_name="begun")
    begun["FlatColours"].publish = _stop
    plan = Plan(model="demo", run=str(run), layer=("fc8",))
    with pytest.raises(KeyboardInterrupt), open_session(plan, Report(quiet=True)) as session:
        begun["colours"](session)
    parts = sorted(run.glob("parts/colours/*/*.h5"))
    assert parts
    assert not list(run.glob("colours/*"))
    assert python(["colours.py", "fc8"]).out.strip() == str(run / "colours/fc8.tsv")
    assert not list(run.glob("parts/colours/*/*.h5"))
    table = np.loadtxt(run / "colours/fc8.tsv", skiprows=1)
    network = load_network(Plan(model="demo"))
    flat = torch.eye(3)[:, :, None, None].expand(-1, -1, *network.size) * 255 - network.mean
    with torch.inference_mode():
        own = network.module(network.normalise(flat)).T.numpy()
    units = table[:, 0].astype(int)
    assert len(units) > 5
    np.testing.assert_allclose(table[:, 1:], own[units], rtol=1e-3, atol=1e-3)


def test_a_figure_from_outside_is_drawn(cnnvis: Call, python: Call) -> None:
    """`test_command_lines` runs the commands of extending.md; this checks their files."""
    files = {b.file: b for b in blocks(ROOT / "docs/extending.md") if b.file}
    assert set(files) >= {"tiny.py", "soft.toml", "median.py", "average.py"}
    for name, block in files.items():
        Path(str(name)).write_text(block.text, encoding="utf-8")
    assert "'quiet': (0, 1)" in python(["use_median.py"]).out
    assert "average/conv1.png" in python(["draw_average.py"]).out
    assert Path("outputs/median/figures/average/conv1.png").stat().st_size > 1000
    assert cnnvis(["optimize", "--config", "tiny.toml", "--layer", "conv1"]).code == 0
    wrong = Path("median.toml").read_text().replace("every = 4", "every = 0")
    Path("wrong.toml").write_text(wrong, encoding="utf-8")
    shutil.rmtree("outputs/with-median", ignore_errors=True)
    told = cnnvis(["optimize", "--config", "wrong.toml", "--layer", "conv2"])
    assert (told.code, "every = 0" in told.err) == (2, True)
