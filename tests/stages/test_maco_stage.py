"""The style maco from the command line: the run's spectrum, what is kept and what is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from cnnvis_cli.store.publish import publishing_hdf5

Call = Callable[..., Any]
MACO = "--style maco --iterations 20 --workers 0"
CONV = f"optimize --run r --layer conv2 --units 0-3 {MACO}"


def held(topk_run: Path, name: str) -> Any:
    with h5py.File(topk_run / "optimized/conv2.h5") as file:
        return file["maco"][name][()]


def test_without_a_topk_it_says_what_to_do(cnnvis: Call) -> None:
    told = cnnvis(f"optimize --model demo --layer conv2 --units 0 {MACO} --run new", 2).err
    assert "new has no topk.h5 yet; run cnnvis topk DATASET with this --run first" in told
    told = cnnvis("bench optimize --model demo --layer conv2 --style maco", 2).err
    assert "bench optimize: style maco needs a run's images" in told


def test_the_spectrum_is_made_once_and_belongs_to_the_results(topk_run: Path, cnnvis: Call) -> None:
    before = (topk_run / "topk.h5").read_bytes()
    shutil.copytree(topk_run, "other")
    cnnvis(CONV)
    spectrum = (topk_run / "spectrum.h5").read_bytes()
    stamp = (topk_run / "spectrum.h5").stat().st_mtime_ns
    with h5py.File(topk_run / "spectrum.h5") as file:
        assert file.attrs["images"] == 11
        assert file["magnitude"].shape == (3, 112, 57)
    cnnvis(CONV.replace("0-3", "0-1"))
    assert (topk_run / "spectrum.h5").stat().st_mtime_ns == stamp
    assert (topk_run / "topk.h5").read_bytes() == before
    for number in (1, 2):  # divided, in another order, and joined
        cnnvis(CONV.replace("--run r", f"--run other --shard {number}/2"))
    cnnvis("merge other --run other")
    for name in ("spectrum.h5", "optimized/conv2.h5"):
        assert Path("other", name).read_bytes() == (topk_run / name).read_bytes(), name
    assert (topk_run / "spectrum.h5").read_bytes() == spectrum
    with h5py.File(topk_run / "spectrum.h5") as file:
        arrays, stated = {name: file[name][()] for name in file}, dict(file.attrs)
    arrays["offset"] += 0.01
    with publishing_hdf5(topk_run / "spectrum.h5") as file:
        file.attrs.update(stated)
        for name, values in arrays.items():
            file[name] = values
    told = cnnvis(CONV, 2).err
    assert "conv2.h5 holds style maco of another plan: image is" in told
    found = cnnvis("verify r", 1).out
    assert "its offset is another one, measured again" in found
    assert "style maco: was made by another spectrum" in found


def test_what_is_kept_is_where_the_ascents_looked(topk_run: Path, cnnvis: Call) -> None:
    cnnvis(CONV + " --runs 2")
    with h5py.File(topk_run / "optimized/conv2.h5") as file:
        made = json.loads(file["maco"].attrs["parameters"])
    assert made["image"]["kind"] == "Maco"
    assert len(made["image"]["spectrum"]) == 16
    sums, images = held(topk_run, "transparency"), held(topk_run, "image")
    assert sums.dtype == np.float16
    assert sums.shape == images.shape[:4]
    assert (sums.max(axis=(2, 3)) == 1).all()
    assert sums.min() >= 0
    first = held(topk_run, "image")[:2]
    cnnvis(CONV.replace("0-3", "0-5") + " --runs 2")  # more units beside the old ones
    assert np.array_equal(held(topk_run, "image")[:2], first)
    assert np.array_equal(held(topk_run, "transparency")[:4], sums)


def test_a_figure_fades_what_no_gradient_reached(topk_run: Path, cnnvis: Call) -> None:
    cnnvis(CONV)
    cnnvis(CONV.replace("maco", "natural"))
    draw = "montage optimized --run r --layer conv2 --style maco --tone true --scale 1 --units 2"
    image = held(topk_run, "image")[2, 0].astype(np.float32)
    sums = held(topk_run, "transparency")[2, 0].astype(np.float32)
    full = np.sort(sums.ravel())[-sums.size // 5]  # a fifth is shown in full
    mean = (123.675, 116.28, 103.53)
    for flag, opacity in (("", np.ones_like(sums)), (" --fade", np.minimum(sums / full, 1))):
        cnnvis(draw + flag)
        with Image.open(topk_run / "figures/optimized/conv2.png") as picture:
            assert ("fade" in json.loads(str(picture.info["cnnvis"]))) == bool(flag)
            sheet = np.asarray(picture.convert("RGB")).astype(np.float32)
        tile = np.clip(image * opacity[..., None] + mean, 0, 255)
        windows = sliding_window_view(sheet, tile.shape)[:, :, 0]
        apart = min(float(np.abs(row - tile).mean(axis=(1, 2, 3)).min()) for row in windows)
        assert apart < 1, flag
    told = cnnvis(draw.replace("maco", "natural") + " --fade", 2).err
    assert "--fade: style natural keeps no gradients to fade by" in told
