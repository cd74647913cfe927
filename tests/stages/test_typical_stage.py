"""The style typical from the command line: what is measured, kept, and reached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from cnnvis_cli.ascent.typical import ActivationStatistics, TypicalParameterization, penalty
from cnnvis_cli.dataset.decode import decode
from cnnvis_cli.nouns import Box
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.store.publish import publishing_hdf5

Call = Callable[..., Any]
TYPICAL = "--style typical --iterations 48 --workers 0"
CONV = f"optimize --run r --layer conv2 --units 0-3 {TYPICAL}"


def held(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}, dict(file.attrs)


def test_without_a_topk_it_says_what_to_do(cnnvis: Call) -> None:
    told = cnnvis(f"optimize --model demo --layer conv2 --units 0 {TYPICAL} --run new", 2).err
    assert "new has no topk.h5 yet; run cnnvis topk DATASET with this --run first" in told
    told = cnnvis("bench optimize --model demo --layer conv2 --style typical", 2).err
    assert "bench optimize: style typical needs a run's images" in told


def test_a_whole_inputs_statistics_are_those_of_the_images(topk_run: Path, cnnvis: Call) -> None:
    """By torch alone: the first convolution's map of every image."""
    cnnvis(CONV.replace("0-3", "0").replace("48", "2") + " --mean")
    arrays, stated = held(topk_run / "typical-mean/conv2.h5")
    assert json.loads(stated["layers"]) == [["conv1", arrays["middle"].shape[1]]]
    network = load_network(Plan.make(None, {"model": "demo"}))
    paths = sorted(path for path in Path("images").rglob("*") if path.is_file())
    del paths[3]
    pixels = np.stack([decode(path.read_bytes(), network.preprocessing, False) for path in paths])
    maps = network.values(
        network.layer("conv1"), Box.whole(network.size), network.centre(torch.from_numpy(pixels))
    )[0].double()
    found = torch.stack([maps.mean((2, 3)), maps.var((2, 3), correction=0).add(1e-6).sqrt()], 1)
    np.testing.assert_allclose(arrays["middle"], found.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(arrays["spread"], found.std(0, correction=0), rtol=1e-3, atol=1e-4)


def test_statistics_are_made_once_and_belong_to_the_results(topk_run: Path, cnnvis: Call) -> None:
    shutil.copytree(topk_run, "other")
    cnnvis(CONV)
    path, stamp = topk_run / "typical/conv2.h5", (topk_run / "typical/conv2.h5").stat().st_mtime_ns
    images = (topk_run / "optimized/conv2.h5").read_bytes()
    cnnvis(CONV.replace("0-3", "0-1"))
    assert path.stat().st_mtime_ns == stamp
    for number in (1, 2):  # divided, and joined
        cnnvis(CONV.replace("--run r", f"--run other --shard {number}/2"))
    cnnvis("merge other --run other")
    assert Path("other/typical/conv2.h5").read_bytes() == path.read_bytes()
    assert Path("other/optimized/conv2.h5").read_bytes() == images
    assert "wrong" not in cnnvis("verify r").out
    arrays, stated = held(path)
    arrays["spread"] *= 1.1
    with publishing_hdf5(path) as file:
        file.attrs.update(stated)
        for name, values in arrays.items():
            file[name] = values
    told = cnnvis(CONV, 2).err
    assert "conv2.h5 holds style typical of another plan: image is" in told
    found = cnnvis("verify r", 1).out
    assert "its spread is another one, measured again" in found
    assert "style typical: was made with other statistics than" in found


def test_layers_of_one_canvas_are_measured_together(topk_run: Path, cnnvis: Call) -> None:
    short = CONV.replace("0-3", "0").replace("48", "1") + " --mean"
    shutil.copytree(topk_run, "other")
    cnnvis(short + " --layer conv3 --layer conv4")
    cnnvis(short.replace("--run r", "--run other"))
    cnnvis(short.replace("conv2", "conv4").replace("--run r", "--run other"))
    for name in ("conv2", "conv4"):
        alone = Path(f"other/typical-mean/{name}.h5").read_bytes()
        assert (topk_run / f"typical-mean/{name}.h5").read_bytes() == alone


def test_merged_runs_bring_their_statistics(topk_run: Path, cnnvis: Call) -> None:
    short = CONV.replace("48", "2")
    cnnvis(short.replace("0-3", "0,1"))
    shutil.copytree(topk_run, "second")
    cnnvis(short.replace("0-3", "2").replace("--run r", "--run second"))
    cnnvis("merge r second --run both")
    assert (
        Path("both/typical/conv2.h5").read_bytes() == (topk_run / "typical/conv2.h5").read_bytes()
    )
    path = Path("second/typical/conv2.h5")
    path.write_bytes(path.read_bytes() + b"more")
    told = cnnvis("merge r second --run both", 2).err
    assert "were measured from different images" in told


def test_its_pictures_are_more_typical(topk_run: Path, cnnvis: Call) -> None:
    """Than those of natural, of the same units and steps; and each unit still prefers its own."""
    cnnvis(CONV + " --style natural")
    arrays, stated = held(topk_run / "typical/conv2.h5")
    layers = tuple((alias, channels) for alias, channels in json.loads(stated["layers"]))
    style = TypicalParameterization(statistics_below=ActivationStatistics(layers, **arrays))
    network = load_network(Plan.make(None, {"model": "demo"}))
    layer, costs = network.layer("conv2"), {}
    with h5py.File(topk_run / "optimized/conv2.h5") as file:
        for name in ("typical", "natural"):
            group = file[name]
            x = torch.from_numpy(group["image"][:, 0].astype(np.float32)).permute(0, 3, 1, 2)
            below, box = network.layers_below(layer), network.canvas(layer)
            maps, _ = network.values_with(below, layer, box, x)
            costs[name] = penalty(maps, style, x).numpy()
            assert (group["activation"][:, 0] > group["start"][:, 0]).all()
    assert (costs["typical"] <= costs["natural"]).all()
    assert costs["typical"].mean() < 0.5 * costs["natural"].mean()


def test_the_first_layer_has_none_below(topk_run: Path, cnnvis: Call) -> None:
    cnnvis(CONV.replace("conv2", "conv1").replace("48", "8") + " --style natural")
    with h5py.File(topk_run / "optimized/conv1.h5") as file:
        assert np.array_equal(file["typical/image"][()], file["natural/image"][()])
