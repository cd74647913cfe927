"""What only a GPU can show; skipped without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnvis_cli.engine import Graphs
from cnnvis_cli.store.optimized import OptimizedFile

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def test_replayed_work_equals_the_work_itself() -> None:
    heard: list[str] = []
    graphs = Graphs(torch.device("cuda", 0), heard.append)
    weight, x = torch.randn(4, 4, device="cuda") / 4, torch.randn(8, 4, device="cuda")
    plain = x.clone()

    def work() -> None:
        x.copy_(torch.relu(x @ weight) + 1)

    for _ in range(3):
        graphs("work", work, [x])
        plain = torch.relu(plain @ weight) + 1
        assert torch.equal(x, plain)
    assert not heard


def test_work_that_cannot_be_captured_is_run_as_it_is() -> None:
    heard: list[str] = []
    graphs = Graphs(torch.device("cuda", 0), heard.append)
    x = torch.ones(4, device="cuda")

    def work() -> None:
        x.add_(float(x.sum()))  # waits for the device, which a capture forbids

    for expected in (5, 25, 125):
        graphs("work", work, [x])
        assert x.tolist() == [expected] * 4
    assert len(heard) == 1
    assert "cannot be captured" in heard[0]


@pytest.mark.parametrize("style", ["1", "3", "fourier", "natural", "accent"])
@pytest.mark.parametrize("layer", ["conv1", "conv3", "fc8"])
def test_ascents_follow_those_of_the_cpu(
    style: str, layer: str, do: Callable[..., None], tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"model": "demo", "layer": (layer,), "units": "0-5", "batch_size": 8}
    flags |= {"optimize__style": (style,), "optimize__iterations": 8, "optimize__step": "50"}
    flags["optimize__precision"] = "float32"
    if style == "accent":
        Image.effect_noise((112, 112), 60).convert("RGB").save(tmp_path / "photo.png")
        flags["optimize__start"] = str(tmp_path / "photo.png")
    found, begun = {}, {}
    for device in ("cpu", "cuda"):
        do("optimize", **flags, device=device, run=str(tmp_path / device))
        file = OptimizedFile(tmp_path / device / "optimized" / f"{layer}.h5")
        found[device] = file.read(style, "activation")
        begun[device] = file.read(style, "start")
    np.testing.assert_allclose(begun["cuda"], begun["cpu"], rtol=1e-3, atol=1e-3)
    # Adam turns the last bits of small gradients into whole steps
    rtol, atol = (0.02, 1e-3) if style in ("1", "3") else (0.1, 0.3)
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=rtol, atol=atol)


@pytest.mark.parametrize("layer", ["conv2", "fc6"])
def test_the_same_bytes_again_and_in_another_order(
    layer: str, do: Callable[..., None], tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"model": "demo", "device": "cuda", "layer": (layer,), "batch_size": 8}
    flags |= {"optimize__iterations": 40, "optimize__style": ("1", "3"), "optimize__step": "50"}
    do("optimize", **flags, units="0-20", run=str(tmp_path / "once"))
    for units in ("13-20", "0-5", "0-20"):
        do("optimize", **flags, units=units, run=str(tmp_path / "pieces"))
    once, pieces = (tmp_path / n / "optimized" / f"{layer}.h5" for n in ("once", "pieces"))
    assert once.read_bytes() == pieces.read_bytes()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_arithmetic_is_near(precision: str, do: Callable[..., None], tmp_path: Path) -> None:
    flags: dict[str, Any] = {"model": "demo", "device": "cuda", "layer": ("conv3",), "units": "0-7"}
    flags |= {"optimize__style": ("3",), "optimize__iterations": 10, "optimize__step": "50"}
    found = {}
    for each in ("float32", precision):
        do("optimize", **flags, optimize__precision=each, run=str(tmp_path / each))
        file = OptimizedFile(tmp_path / each / "optimized" / "conv3.h5")
        found[each] = file.read("3", "activation")
    np.testing.assert_allclose(found[precision], found["float32"], rtol=0.1, atol=0.02)
