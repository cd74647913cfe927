"""`cnnvis verify`: a good run passes, and each way of not being good is found and named."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cnnvis_cli.store.publish import USER_BLOCK, intact, publishing_hdf5

Call = Callable[..., Any]
VERIFY = "verify --trust-code --device cpu"


@pytest.fixture
def made(plans: None, cnnvis: Call) -> Path:
    """A run of all stages, with a part of unfinished work."""
    text = Path("exact.toml").read_text().replace('"project"]', '"project", "montage"]')
    Path("all.toml").write_text(text + "[montage]\nkind = ['optimized']\n")
    cnnvis("run all.toml --run run --layer conv2 --layer fc3")
    cnnvis("optimize -c exact.toml --run run --layer conv1 --units 0-3 --shard 1/2")
    return Path("run")


def verify(cnnvis: Call, options: str = "", wrong: str = "") -> Any:
    """Run it; `wrong` must be among its findings, and alone gives exit code 1."""
    told = cnnvis(f"{VERIFY} run {options}", code=1 if wrong else 0)
    assert re.search(f"wrong: .*{wrong}" if wrong else "checked:", told.out), told
    assert bool(wrong) == ("wrong:" in told.out)
    return told


def checked(cnnvis: Call, options: str = "") -> dict[str, Any]:
    """Return the table of a good run."""
    found: dict[str, Any] = json.loads(cnnvis(f"{VERIFY} run --json {options}").out)
    assert found["wrong"] == found["faults"] == []
    return dict(found["checked"])


def test_a_good_run_passes_and_nothing_is_changed(made: Path, cnnvis: Call, snapshot: Call) -> None:
    before = snapshot(made)
    told = verify(cnnvis)
    for what in ("files", "images in the list", "places", "statistics", "projections"):
        assert re.search(rf"{what} +[1-9]\d*", told.out)
    for what in ("images read", "places", "optimized images", "projections"):
        assert checked(cnnvis)[what]["recomputed"]
    assert snapshot(made) == before


def test_samples(made: Path, cnnvis: Call) -> None:
    """A few images are computed whole; what they leave open is counted, with the reason."""
    places = 3 * (8 + 10)
    for options in ("--all", "--sample 20"):  # a dataset of no more images than the sample
        found = checked(cnnvis, options)
        assert found["images read"]["recomputed"] == 20
        assert found["places"] == {**found["places"], "recomputed": places, "unproven": 0}
        assert found["statistics"]["unproven"] == 0
    for sample in (0, 5, 12):
        found = checked(cnnvis, f"--sample {sample}")
        assert found["places"]["stored"] == places
        assert found["places"]["recomputed"] + found["places"]["unproven"] == places
        others = found["images not listed"]
        assert found["places"]["recomputed"] + others["recomputed"] == max(1, sample) * 18
        assert "all 20 images; --all proves them" in found["statistics"]["why"][0]
    assert checked(cnnvis, "--all")["ascents made again"]["recomputed"]


def flip(path: Path, offset: int) -> None:
    """Turn one bit of a file over; an offset below 0 counts from the end."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(bytes(content))


FILES = {
    "topk": "topk.h5",
    "optimized": "optimized/fc3.h5",
    "projected": "projected/conv2.h5",
    "part": "parts/optimized/conv1-3-*/*.h5",
}
PLACES = {
    "name": 0,
    "digest": 20,
    "padding": 200,
    "last of the seal": USER_BLOCK - 1,
    "first": USER_BLOCK,
    "last": -1,
}


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found(name: str, made: Path, cnnvis: Call) -> None:
    path = sorted(made.glob(FILES[name]))[0]
    whole = path.read_bytes()
    middle = {"middle": len(whole) // 2, "two thirds": len(whole) * 2 // 3}
    for offset in (PLACES | middle).values():
        flip(path, offset)
        assert not intact(path)
        path.write_bytes(whole)
    flip(path, PLACES["padding"])
    verify(cnnvis, wrong=f"{path.name}: is not what was written")
    path.write_bytes(whole)
    verify(cnnvis)


def test_a_flipped_bit_of_a_picture_is_found(made: Path, cnnvis: Call) -> None:
    path = next(made.rglob("*.png"))
    whole = path.read_bytes()
    for offset in (0, 40, len(whole) // 2, -1):
        flip(path, offset)
        verify(cnnvis, wrong=f"{path.name}: is not what was written")
        path.write_bytes(whole)
    for other in (whole[:-12], b"", whole + b"\0"):
        path.write_bytes(other)
        verify(cnnvis, wrong=f"{path.name}: is not what was written")


def test_a_part_that_was_set_aside_is_named(made: Path, cnnvis: Call) -> None:
    path = sorted(made.glob(FILES["part"]))[0]
    path.rename(path.with_suffix(".damaged"))
    verify(cnnvis, wrong="a damaged part, set aside")


def change(path: Path, array: str, to: Callable[[Any], Any]) -> None:
    """Rewrite a file with one array changed: its seal is valid, its content is wrong."""
    with h5py.File(path) as old:
        names: list[str] = []
        old.visit(names.append)
        attributes = {name: dict(old[name].attrs) for name in ["/", *names]}
        arrays = {name: old[name][()] for name in names if isinstance(old[name], h5py.Dataset)}
        groups = [name for name in names if name not in arrays]
    arrays[array] = to(arrays[array].copy())
    path.unlink()
    with publishing_hdf5(path) as new:
        for name in groups:
            new.create_group(name)
        for name, values in arrays.items():
            new.create_dataset(name, data=values)
        for name, own in attributes.items():
            new[name].attrs.update(own)
    assert intact(path)


def first(value: float, scale: float = 0) -> Callable[[Any], Any]:
    """Add to the first number of each channel."""

    def to(values: Any) -> Any:
        flat = values.reshape(len(values), -1)
        flat[:, 0] = flat[:, 0] * scale + value
        return flat.reshape(values.shape)

    return to


def noise(values: Any) -> Any:
    return np.random.default_rng(0).normal(0, 40, values.shape).astype(values.dtype)


@pytest.mark.parametrize(
    ("path", "array", "to", "wrong"),
    [
        ("topk.h5", "layers/fc3/activation", first(7.5, 1), r"topk.h5: fc3/\d+, rank 0: is .*"),
        ("topk.h5", "layers/conv2/position", first(1, 1), r"topk.h5: conv2/\d+, rank 0"),
        ("topk.h5", "images/crc", first(1, 1), "has other content now"),
        ("optimized/fc3.h5", "3/image", noise, r"fc3.h5: style 3, unit \d+, run 0: is"),
        ("optimized/conv2.h5", "3/activation", first(99, 1), r"conv2.h5: style 3, unit"),
        ("projected/conv2.h5", "deconv/projection", np.negative, r"conv2.h5: deconv, unit"),
        ("projected/fc3.h5", "deconv/scale", first(0, 2), r"fc3.h5: deconv, unit \d+: gives"),
    ],
)
def test_a_changed_number_behind_a_good_seal_is_found(
    path: str, array: str, to: Callable[[Any], Any], wrong: str, made: Path, cnnvis: Call
) -> None:
    change(made / path, array, to)
    if array.startswith("layers"):  # which the projections say that they are of
        shutil.rmtree(made / "projected")
    verify(cnnvis, "--sample 60 --all", wrong)


def test_writing_again_alone_is_no_change(made: Path, cnnvis: Call) -> None:
    change(made / "optimized/fc3.h5", "3/image", lambda values: values)
    change(made / "projected/fc3.h5", "deconv/scale", lambda values: values)
    verify(cnnvis)


def test_a_dataset_that_is_another_one_is_named(made: Path, cnnvis: Call) -> None:
    image, other = Path("images/class0/000.png"), Path("images/class0/002.png")
    whole = image.read_bytes()
    image.write_bytes(other.read_bytes())
    verify(cnnvis, "--all", "class0/000.png: has other content now")
    image.write_bytes(whole + b"more")
    verify(cnnvis, "--sample 0", "class0/000.png: has another size now")
    image.unlink()
    verify(cnnvis, "--sample 0", "class0/000.png: is gone from the dataset")
    image.write_bytes(whole)
    Path("images/class1/new\x1b.png").write_bytes(whole)
    told = verify(cnnvis, "--sample 0", "class1/new.*is new in the dataset")
    assert "\x1b" not in told.out


def test_a_dataset_that_has_moved(made: Path, cnnvis: Call) -> None:
    Path("images").rename("elsewhere")
    verify(cnnvis, wrong="images")
    verify(cnnvis, "--dataset elsewhere")


def test_another_network_is_refused_by_name(made: Path, cnnvis: Call) -> None:
    text = Path("tinynet.py").read_text()
    Path("tinynet.py").write_text(text.replace("seed=1", "seed=2"))
    del sys.modules["tinynet"]
    told = verify(cnnvis, wrong="run.json: is of another network: weights_sha256 is ")
    assert re.search("images read  *-  *20", told.out)  # the dataset is the same
    assert "until the network is the run's own" in told.out


def test_what_is_of_no_single_units_is_said_to_be_left_out(plans: None, cnnvis: Call) -> None:
    cnnvis("optimize -c exact.toml --run run --layer fc3 --sum 1+2")
    told = cnnvis(f"{VERIFY} run")
    assert "run/optimized/fc3.h5: 3-sum, since its targets are not single units" in told.out


def test_where_there_is_no_run(plans: None, cnnvis: Call) -> None:
    assert "holds no run" in cnnvis(f"{VERIFY} nowhere", code=2).err
    assert not Path("nowhere").exists()
