"""`cnnvis verify`: a good run passes, and each way of not being good is found and named."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cnnvis_cli.dataset import containers
from cnnvis_cli.store.publish import publishing_hdf5
from cnnvis_cli.store.seals import USER_BLOCK, intact
from tests.sealing import altered

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


def test_tables_and_runs_without_results_are_named_as_unproven(plans: None, cnnvis: Call) -> None:
    Path("run").mkdir()
    cnnvis("topk images -c exact.toml --run run --sample 20")
    cnnvis("name --run run --trust-code --level 0.9")
    assert checked(cnnvis)["tables"]["unproven"] == 1
    Path("run/topk.h5").unlink()
    Path("run/sample.h5").unlink()
    known = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(known | {"asked": {}}))
    told = cnnvis(f"{VERIFY} run --json", 1)  # a dataset is noted, and the top-k is gone
    assert json.loads(told.out)["checked"]["asked work"]["unproven"] == 1


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
        (
            "sample.h5",
            "layers/fc3/value",
            first(9e3, 1),
            r"sample.h5: fc3/\d+ in .*png: is .*, and",
        ),
        (
            "sample.h5",
            "layers/conv2/place",
            first(1, 1),
            r"conv2/\d+ in .*: is .*, computed",
        ),
        ("sample.h5", "images/crc", first(1, 1), "its images have another crc than in topk.h5"),
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
    if path == "topk.h5" and array.startswith("layers"):  # they say that they are of it
        shutil.rmtree(made / "projected")
    verify(cnnvis, "--sample 60 --all", wrong)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("optimized/fc3.h5", "optimize -c exact.toml --run other --layer fc3 --iterations 7"),
        ("optimized/fc3.h5", "optimize -c exact.toml --run other --layer fc3 --seed 7"),
        ("projected/fc3.h5", "project -c exact.toml --run other --layer fc3 --batch-size 3"),
        ("topk.h5", "topk -c exact.toml --run other --layer conv2 --layer fc3 -k 2"),
    ],
)
def test_a_result_of_other_parameters_is_found(
    name: str, line: str, made: Path, cnnvis: Call
) -> None:
    """It is whole, of this network and layer, and true; it is not what was asked for."""
    if "project" in line:
        Path("other").mkdir()
        for kept in ("run.json", "topk.h5"):
            shutil.copy(made / kept, Path("other") / kept)
    cnnvis(line)
    shutil.copy(Path("other") / name, made / name)
    if name == "topk.h5":
        shutil.rmtree(made / "projected")
    verify(
        cnnvis, "--sample 0", rf"{name}: .*made by .*than run.json says was asked for|were asked"
    )


def test_every_ascent_is_made_again(made: Path, cnnvis: Call) -> None:
    """An early step of one ascent of a layer, that no other number contradicts."""

    plan = Path("exact.toml").read_text().replace("optimize = {", "optimize = {history = 1, ")
    Path("each.toml").write_text(plan)
    cnnvis("optimize -c each.toml --run run --layer fc3 --style 1")

    def lower(history: Any) -> Any:
        history[-1, -1, 1] -= np.float32(1e-3)
        return history

    change(made / "optimized/fc3.h5", "1/history", lower)
    verify(cnnvis, "--sample 1 --all", r"fc3.h5: style 1, unit \d+, run \d+: its history is an")


def test_another_version_is_found(made: Path, cnnvis: Call) -> None:
    with altered(made / "topk.h5") as file:
        file.attrs["version"] = 2
    verify(cnnvis, "--sample 0", "topk.h5: states version 2, and is of version 1")


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


def columns(path: Path, group: str, to: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a file with several arrays of a group changed together."""
    with h5py.File(path) as file:
        own = {name: file[group][name][()] for name in PLACE}
        own["stats/max"] = file[group]["stats/max"][()]
    to(own)
    for name, values in own.items():
        change(path, f"{group}/{name}", lambda _, values=values: values)  # type: ignore[misc]


PLACE = ("activation", "image", "position", "box")


def without_the_strongest(own: dict[str, Any]) -> None:
    """Leave out each unit's strongest place, and make up the last one."""
    for name in PLACE:
        own[name][:, :-1] = own[name][:, 1:]
    for channel, images in enumerate(own["image"]):
        images[-1] = np.setdiff1d(np.arange(20), images)[0]
        own["activation"][channel, -1] -= np.float32(1)
    own["stats/max"][:] = own["activation"][:, 0]


def test_the_strongest_place_replaced_by_the_second_is_found(made: Path, cnnvis: Call) -> None:
    columns(made / "topk.h5", "layers/conv2", without_the_strongest)
    shutil.rmtree(made / "projected")  # which says that it is of another topk.h5
    verify(cnnvis, "--sample 4", r"topk.h5: conv2/\d+")


@pytest.mark.parametrize(
    ("path", "array", "to", "wrong"),
    [
        ("topk.h5", "layers/fc3/stats/mean", first(1, 1), "its mean"),
        ("topk.h5", "layers/conv2/stats/std", first(0.5, 1), "its std"),
        ("topk.h5", "layers/conv2/stats/max", first(1, 1), "its max"),
        ("topk.h5", "layers/conv2/box", first(1, 1), "a box is not the window of its place"),
        ("topk.h5", "layers/conv2/histogram", first(1, 1), "its histogram"),
        ("topk.h5", "images/label", first(1, 1), "has another label now"),
        ("topk.h5", "images/skipped", np.logical_not, "skipped.tsv: does not list"),
        ("optimized/fc3.h5", "3/outcome", first(0), "its outcome is none of 1, 2, 3"),
        ("optimized/fc3.h5", "3/start", first(1, 1), "its history does not begin with its start"),
        ("optimized/fc3.h5", "3/best_step", first(99), "its best step is none that it made"),
        ("optimized/fc3.h5", "3/history", first(1, 1), "its history"),
    ],
)
def test_what_contradicts_the_rest_is_found(
    path: str, array: str, to: Callable[[Any], Any], wrong: str, made: Path, cnnvis: Call
) -> None:
    change(made / path, array, to)
    verify(cnnvis, "", wrong)


def test_deleted_results_are_missed(plans: None, cnnvis: Call) -> None:
    cnnvis("run demo.toml --run run")
    cnnvis("montage optimized --run run")
    cnnvis("gallery --run run")
    assert checked(cnnvis)["pages"]["recomputed"] > 5
    sheet = "gallery/photographs/0000.jpg"
    for name in ("topk.h5", "optimized/conv1.h5", "figures/optimized/conv1.png", sheet):
        path, kept = Path("run", name), Path("kept")
        path.rename(kept)
        verify(cnnvis, wrong=f"{path}: is gone|run: .*are there")
        kept.rename(path)
    for name in ("gallery/index.html", "gallery/conv1/layer.js", "gallery/gallery.css"):
        path = Path("run", name)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        verify(cnnvis, wrong=path.name)
        path.write_bytes(whole)
    verify(cnnvis)


def test_one_bad_file_does_not_hide_another(made: Path, cnnvis: Call) -> None:
    flip(made / "optimized/fc3.h5", PLACES["last"])
    change(made / "optimized/conv2.h5", "3/activation", first(99, 1))
    told = verify(cnnvis, wrong="fc3.h5: is not what was written")
    assert "conv2.h5: style 3" in told.out
    assert checked_places(told.out)


def checked_places(text: str) -> bool:
    return re.search(r"places +[1-9]\d* +[1-9]", text) is not None


def test_a_skipped_image_that_can_be_decoded_is_reported(plans: None, cnnvis: Call) -> None:
    image = Path("images/class0/000.png")
    whole = image.read_bytes()
    image.write_bytes(whole[:60].ljust(len(whole), b"\0"))
    cnnvis("topk -c exact.toml --run run", code=3)
    assert checked(cnnvis)["skipped images"]["recomputed"] == 1
    image.write_bytes(whole)
    verify(cnnvis, wrong="class0/000.png: has other content now")
    content = int(np.uint32(zlib.crc32(whole)))
    change(Path("run/topk.h5"), "images/crc", first(content))
    verify(cnnvis, wrong="class0/000.png: was left out as unreadable, and can be decoded")


def test_a_dataset_that_cannot_be_read_now_is_no_finding(
    made: Path, cnnvis: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = containers._without_waiting

    def failing(path: Any) -> int:
        if str(path).endswith("000.png"):
            raise OSError(errno.EIO, "Input/output error")
        return int(real(path))

    monkeypatch.setattr(containers, "_without_waiting", failing)
    told = cnnvis(f"{VERIFY} run --sample 12 --seed 1", code=4)
    assert "fault: " in told.out
    assert "wrong: " not in told.out
