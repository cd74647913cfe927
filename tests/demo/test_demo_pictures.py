"""The demo's pictures are neither grey nor saturated, in any layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cnnvis_cli.report import Report
from cnnvis_cli.settings import OptimizePlan, Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.optimize.stage import optimize
from cnnvis_cli.store.optimized import OptimizedFile

RANGES = {"3": (1.0, 40.0), "natural": (15.0, 105.0)}  # of standard deviation, in grey levels


@pytest.mark.parametrize("style", RANGES)
def test_no_layer_is_grey_or_saturated(style: str, tmp_path: Path) -> None:
    plan = Plan(
        model="demo",
        run=str(tmp_path / "run"),
        units="2,7,11,15,18,20,22,23",
        batch_size=8,
        optimize=OptimizePlan(style=(style,), iterations=40),
    )
    with open_session(plan, Report(quiet=True)) as session:
        optimize(session)
        layers, mean = session.layers, np.asarray(session.network.preprocessing.mean, np.float32)
    assert [layer.alias for layer in layers] == [
        *(f"conv{n}" for n in range(1, 6)),
        *(f"fc{n}" for n in range(6, 9)),
    ]
    for layer in layers:
        file = OptimizedFile(tmp_path / "run" / "optimized" / f"{layer.alias}.h5")
        image = file.read(style, "image").astype(np.float32)
        contrast = float(np.median(image.std(axis=(2, 3, 4))))
        faint, harsh = RANGES[style]
        assert faint < contrast < harsh, layer.alias
        shown = image + mean
        clipped = ((shown <= 0.05) | (shown >= 254.95)).mean()
        assert clipped < 0.03, layer.alias  # conv1 sees 7 pixels, and wants black and white
        assert (file.read(style, "outcome") != 3).all(), layer.alias
        assert (file.read(style, "activation") > file.read(style, "start")).mean() > 0.9, (
            layer.alias
        )
