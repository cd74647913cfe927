"""`optimize` with each of its options: stored values are recomputed by hand, on the whole input."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

import cnnvis_cli.demo
from cnnvis_cli.ascent.starts import seed_of, uniform
from cnnvis_cli.demo.network import DemoNet
from cnnvis_cli.errors import Stopped, UsageError
from cnnvis_cli.nouns import Unit
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.optimize.stage import optimize

Array = NDArray[np.float32]
Do = Callable[..., None]
Flags = dict[str, Any]

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# alias -> module, centre of the map, and the receptive field's size and first pixel, by hand
LAYERS = {
    "conv1": ("features.0", 26, 7, 52),
    "conv2": ("features.3", 13, 27, 44),
    "fc8": ("classifier.6", 0, 112, 0),
}
UNITS = (1, 4, 5)


def near(value: float, scale: float = 1.0) -> Any:
    """Return what a stored activation has to be: images are kept in half precision."""
    return pytest.approx(value, rel=0.01, abs=0.01 * scale)


@pytest.fixture
def flags(tmp_path: Path) -> Flags:
    return {
        "model": "demo",
        "device": "cpu",
        "run": str(tmp_path / "run"),
        "layer": ("conv1",),
        "units": "1,4-5",
        "batch_size": 4,
        "workers": 0,
        "optimize__style": ("3",),
        "optimize__iterations": 20,
        "optimize__history": 10,
    }


@cache
def network() -> DemoNet:
    """Return the bundled network, loaded by hand, none of its modules working in place."""
    module = DemoNet(24)
    folder = Path(cnnvis_cli.demo.__file__).parent
    module.load_state_dict(load_file(folder / "demo.safetensors"))
    for part in module.modules():
        if isinstance(part, torch.nn.ReLU):
            part.inplace = False
    return module.eval()


def output(alias: str, picture: Array) -> Array:
    """Return a layer's output for a mean-subtracted picture on the mean colour: (C, h, w)."""
    module, _, size, first = LAYERS[alias]
    canvas = np.zeros((112, 112, 3), np.float32)
    if picture.shape == canvas.shape:
        canvas = picture.astype(np.float32)
    else:
        canvas[first : first + size, first : first + size] = picture
    seen: list[torch.Tensor] = []
    tap = network().get_submodule(module).register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        network()(torch.from_numpy(canvas / np.array(STD, np.float32)).permute(2, 0, 1)[None])
    tap.remove()
    found: Array = seen[0][0].reshape(seen[0].shape[1], *(seen[0].shape[2:] or (1, 1))).numpy()
    return found


def at_centre(alias: str, picture: Array) -> Array:
    """Return the activations (C,) of a layer's centre for a picture."""
    centre = LAYERS[alias][1]
    return output(alias, picture)[:, centre, centre]


def result(flags: Flags, group: str = "3") -> dict[str, Any]:
    """Return everything stored of one layer and style, and its record under "record"."""
    with h5py.File(Path(flags["run"]) / "optimized" / f"{flags['layer'][0]}.h5") as file:
        found: dict[str, Any] = {name: values[()] for name, values in file[group].items()}
        return found | {"record": json.loads(file[group].attrs["parameters"])}


def groups(flags: Flags) -> list[str]:
    with h5py.File(Path(flags["run"]) / "optimized" / f"{flags['layer'][0]}.h5") as file:
        return sorted(file)


def same(a: dict[str, Any], b: dict[str, Any], rows: list[int] | slice = slice(None)) -> None:
    """Raise unless all of `b` is that of these rows of `a`, to the last bit."""
    assert set(a) == set(b)
    assert a["record"] == b["record"]
    for name in set(a) - {"record"}:
        assert a[name][rows].tobytes() == b[name].tobytes(), name


def elsewhere(flags: Flags, folder: str) -> Flags:
    return flags | {"run": str(Path(flags["run"]).parent / folder)}


def do_config(text: str, flags: Flags) -> None:
    """Optimize with a TOML file, flags over it, as the command line does."""
    path = Path(flags["run"]).parent / "plan.toml"
    path.write_text(text)
    with open_session(Plan.make(path, flags), Report(quiet=True)) as session:
        optimize(session)


# ---- objectives


@pytest.mark.parametrize("alias", ["conv1", "conv2"])
def test_mean_climbs_the_whole_map_on_the_whole_input(alias: str, do: Do, flags: Flags) -> None:
    flags |= {"layer": (alias,), "optimize__iterations": 6, "optimize__mean": True}
    do("optimize", **flags)
    assert groups(flags) == ["3-mean"]
    found = result(flags, "3-mean")
    assert found["image"].shape == (3, 1, 112, 112, 3)
    assert found["record"]["canvas"] == [112, 112]
    assert found["record"]["objective"] == "mean"
    for row, unit in enumerate(UNITS):
        means = output(alias, found["image"][row, 0]).mean(axis=(1, 2))
        assert found["activation"][row, 0] == pytest.approx(means[unit], rel=0.01, abs=0.001)
        assert found["activation"][row, 0] >= found["start"][row, 0]
        assert found["outcome"][row, 0] == (1 if means.argmax() == unit else 2)
    assert (found["activation"] > found["start"]).sum() >= 2  # in so few steps


def test_minimise_goes_down(do: Do, flags: Flags) -> None:
    flags |= {"optimize__minimise": True, "optimize__iterations": 40}
    do("optimize", **flags)
    assert groups(flags) == ["3-min"]
    found = result(flags, "3-min")
    for row, unit in enumerate(UNITS):
        values = at_centre("conv1", found["image"][row, 0])
        assert found["activation"][row, 0] == near(values[unit])
        assert found["activation"][row, 0] < found["start"][row, 0]
        assert found["outcome"][row, 0] == (1 if values.argmin() == unit else 2)
        assert np.nanmin(found["history"][row, 0]) >= found["activation"][row, 0]
    assert 1 in found["outcome"]


def test_minimise_and_up_start_at_the_same_pictures(do: Do, flags: Flags) -> None:
    do("optimize", **flags)
    do("optimize", **flags | {"optimize__minimise": True})
    assert groups(flags) == ["3", "3-min"]
    up, down = result(flags), result(flags, "3-min")
    assert up["start"].tobytes() == down["start"].tobytes()


def test_softmax_climbs_a_probability(do: Do, flags: Flags) -> None:
    flags |= {"layer": ("fc8",), "optimize__softmax": True, "optimize__iterations": 12}
    do("optimize", **flags)
    assert groups(flags) == ["3-softmax"]
    found = result(flags, "3-softmax")
    assert found["record"]["policy"]["kind"] == "Progress01"
    assert found["record"]["softmax"] is True
    for row, unit in enumerate(UNITS):
        powers = np.exp(at_centre("fc8", found["image"][row, 0]).astype(np.float64))
        assert found["activation"][row, 0] == pytest.approx(powers[unit] / powers.sum(), rel=0.02)
        assert 0 <= found["start"][row, 0] < found["activation"][row, 0] <= 1


def test_sums_are_climbed_in_place_of_units(do: Do, flags: Flags) -> None:
    sums = ("1 + 0.5*4", "2 - 7", "4")
    flags |= {"units": "", "optimize__sum": sums, "optimize__iterations": 30}
    do("optimize", **flags)
    assert groups(flags) == ["3-sum"]
    found = result(flags, "3-sum")
    assert found["record"]["targets"] == list(sums)
    assert found["unit"].tolist() == [0, 1, 2]
    for row, weights in enumerate(({1: 1.0, 4: 0.5}, {2: 1.0, 7: -1.0}, {4: 1.0})):
        values = at_centre("conv1", found["image"][row, 0])
        wanted = sum(weight * values[unit] for unit, weight in weights.items())
        assert found["activation"][row, 0] == near(wanted)
        assert found["activation"][row, 0] > found["start"][row, 0]


@pytest.mark.parametrize(
    ("alias", "dtype"), [("conv1", "f8"), ("conv1", "f2"), ("conv2", "f4"), ("conv2", "i4")]
)
def test_directions_are_climbed_in_place_of_units(
    alias: str, dtype: str, do: Do, flags: Flags, tmp_path: Path
) -> None:
    channels = {"conv1": 32, "conv2": 64}[alias]
    rows = (np.random.default_rng(5).normal(size=(3, channels)) * 10).astype(dtype)
    np.save(tmp_path / "rows.npy", rows)
    flags |= {"layer": (alias,), "units": "", "optimize__iterations": 4}
    do("optimize", **flags | {"optimize__direction": str(tmp_path / "rows.npy")})
    found = result(flags, "3-direction")
    names = found["record"]["targets"]
    assert len(set(names)) == 3
    assert all(name.startswith("rows.npy:") for name in names)
    for row, direction in enumerate(rows.astype(np.float64)):
        wanted = float((at_centre(alias, found["image"][row, 0]) * direction).sum())
        size = float(np.linalg.norm(direction))
        assert found["activation"][row, 0] == near(wanted, size)
        assert found["activation"][row, 0] > found["start"][row, 0]


def test_a_direction_alone_may_be_a_plain_row(do: Do, flags: Flags, tmp_path: Path) -> None:
    flags |= {"units": "", "optimize__direction": str(tmp_path / "d.npy")}
    found = []
    for number, rows in enumerate((np.arange(32) - 15.5, (np.arange(32) - 15.5)[None])):
        np.save(tmp_path / "d.npy", rows)
        there = elsewhere(flags, str(number))
        do("optimize", **there)
        found.append(result(there, "3-direction"))
    one, other = found
    assert one["image"].tobytes() == other["image"].tobytes()
    assert one["image"].shape == (1, 1, 7, 7, 3)


def test_another_file_of_directions_is_another_plan(do: Do, flags: Flags, tmp_path: Path) -> None:
    path = tmp_path / "d.npy"
    flags |= {"units": "", "optimize__direction": str(path)}
    np.save(path, np.eye(32)[:1])
    do("optimize", **flags)
    do("optimize", **flags)
    np.save(path, np.eye(32)[1:2])
    with pytest.raises(UsageError, match="another plan"):
        do("optimize", **flags)


DIVERSE: Flags = {"optimize__runs": 3, "optimize__diversity": 0.5}


@pytest.mark.parametrize(
    "rows",
    [
        np.ones((2, 31)),
        np.ones(33),
        np.ones((1, 1, 32)),
        np.float64(1),
        np.zeros(32),
        np.full(32, np.nan),
        np.array([{}] * 32),  # would have to be unpickled
        np.array(["a"] * 32),
        np.ones((0, 32)),
        np.ones(32) + 1j,
    ],
    ids=lambda rows: f"{rows.dtype}{rows.shape}",
)
def test_what_holds_no_directions_is_refused(
    rows: NDArray[Any], do: Do, flags: Flags, tmp_path: Path
) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    with pytest.raises(UsageError) as found:
        do("optimize", **flags | {"units": "", "optimize__direction": str(path)})
    (line,) = str(found.value).splitlines()
    assert str(path) in line


def test_directions_may_be_of_the_other_byte_order(do: Do, flags: Flags, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.ones(32, ">f8"))
    do("optimize", **flags | {"units": "", "optimize__direction": str(tmp_path / "d.npy")})


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", None])
def test_what_is_no_npy_file_is_refused(
    content: bytes | None, do: Do, flags: Flags, tmp_path: Path
) -> None:
    path = tmp_path / "rows.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--direction .*rows\.npy"):
        do("optimize", **flags | {"units": "", "optimize__direction": str(path)})


def test_an_npz_file_is_refused(do: Do, flags: Flags, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", np.ones(32))
    with pytest.raises(UsageError, match="--direction"):
        do("optimize", **flags | {"units": "", "optimize__direction": str(tmp_path / "d.npz")})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimize__sum": ("1 + 2",)}, "--sum takes the place of --units"),
        ({"optimize__direction": "d.npy"}, "--direction takes the place of --units"),
        ({"units": "", "layer": (), "optimize__sum": ("1",)}, "one layer"),
        ({"units": "", "layer": ("conv1", "conv2"), "optimize__sum": ("1",)}, "one layer"),
        ({"units": "", "layer": ("conv1", "conv2"), "optimize__direction": "d.npy"}, "one layer"),
        ({"units": "", "optimize__sum": ("1",), "optimize__direction": "d.npy"}, "one of them"),
        ({"units": "", "optimize__sum": ("1", "2 2")}, "'2 2'"),
        ({"units": "", "optimize__sum": ("32",)}, "conv1 has no unit 32"),
        ({"units": "", "optimize__sum": ("3 - 3",)}, "nothing"),
        ({"optimize__diversity": 0.5}, "--runs 2"),
        ({"optimize__diversity": -1.0, "optimize__runs": 2}, "--diversity -1.0"),
        ({"optimize__start": "mean", "optimize__runs": 2}, "--runs 1"),
        ({"optimize__start": "mean", **DIVERSE}, "--runs 1"),
        ({"optimize__start": "cat.png", "optimize__runs": 2}, "--runs 1"),
        ({"optimize__start": "uniform", "optimize__style": ("fourier",)}, "start of its own"),
        ({"optimize__start": "uniform", "optimize__style": ("natural",)}, "start of its own"),
        ({"optimize__step": "calibrate"}, "calibrated"),
        ({"optimize__step": "0", "optimize__style": ("natural",)}, "above 0"),
        ({"optimize__step": "0.5", "optimize__style": ("natural",)}, "style natural has steps"),
        (
            {"optimize__step": "paper", "optimize__style": ("natural", "fourier")},
            "natural, fourier has steps",
        ),
        ({"optimize__precision": "tf32"}, "tf32 is arithmetic of CUDA"),
        ({"optimize__precision": "tf33"}, "tf33"),
        ({"optimize__history": 0}, "--history 0"),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused(
    change: Flags, says: str, do: Do, flags: Flags, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says) as found:
        do("optimize", **flags | change)
    assert len(str(found.value).splitlines()) == 1
    assert not (tmp_path / "run" / "optimized").exists()


def test_tf32_on_a_cpu_is_refused_before_any_work(do: Do, flags: Flags, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tf32"):
        do("optimize", **flags | {"optimize__precision": "tf32"})
    assert not (tmp_path / "run" / "parts").exists()


@pytest.mark.parametrize(
    ("change", "group"),
    [
        ({"optimize__mean": True, "optimize__iterations": 4}, "3-mean"),
        ({"layer": ("fc8",), "optimize__softmax": True, "optimize__iterations": 4}, "3-softmax"),
        ({"optimize__minimise": True}, "3-min"),
        ({"optimize__precision": "bf16"}, "3"),
        ({"optimize__start": "uniform", "optimize__runs": 2}, "3"),
        ({"optimize__style": ("fourier",), "optimize__runs": 2}, "fourier"),
        ({"optimize__style": ("natural",), "optimize__runs": 2}, "natural"),
    ],
    ids=str,
)
def test_no_option_makes_a_unit_depend_on_others(
    change: Flags, group: str, do: Do, flags: Flags
) -> None:
    if change.get("optimize__style", ("3",)) == ("3",):
        flags["optimize__step"] = "500"
    flags |= change
    alone = elsewhere(flags, "alone")
    do("optimize", **flags | {"units": "0-5"})
    do("optimize", **alone | {"units": "4"})
    same(result(flags, group), result(alone, group), rows=[4])


# ---- diverse runs


def alike(pictures: Array) -> float:
    """Return the mean squared cosine of the centre's activations for the runs of one unit."""
    vectors = [at_centre("conv1", picture).astype(np.float64) for picture in pictures]
    units = [vector / np.linalg.norm(vector) for vector in vectors]
    pairs = [(a, b) for a in range(len(units)) for b in range(a)]
    return float(np.mean([(units[a] @ units[b]) ** 2 for a, b in pairs]))


def test_diverse_runs_are_less_alike_and_keep_the_unit_s_own_value(do: Do, flags: Flags) -> None:
    plain = elsewhere(flags, "plain")
    do("optimize", **flags | DIVERSE)
    do("optimize", **plain | {"optimize__runs": 3})
    found, usual = result(flags), result(plain)
    assert found["record"]["diversity"] == 0.5
    assert found["start"] == pytest.approx(usual["start"], rel=1e-4, abs=1e-5)
    for row, unit in enumerate(UNITS):
        for run in range(3):
            value = at_centre("conv1", found["image"][row, run])[unit]
            assert found["activation"][row, run] == near(value)
            assert value > found["start"][row, run]
        assert alike(found["image"][row]) < alike(usual["image"][row])


def test_diverse_runs_do_not_depend_on_other_units(do: Do, flags: Flags) -> None:
    do("optimize", **flags | DIVERSE | {"units": "0-6"})
    fewer = elsewhere(flags, "fewer")
    do("optimize", **fewer | DIVERSE)
    same(result(flags), result(fewer), rows=list(UNITS))


@pytest.mark.parametrize("moments", [3, 20])
def test_diverse_runs_do_not_depend_on_interruption(
    moments: int, do: Do, flags: Flags, interrupted: Callable[[int], Any]
) -> None:
    flags |= DIVERSE | {"units": "0-6", "optimize__step": "500"}
    do("optimize", **flags)
    other = elsewhere(flags, "other")
    with pytest.raises(Stopped):
        do("optimize", interrupted(moments), **other)
    do("optimize", **other)
    once, later = (Path(each["run"]) / "optimized" / "conv1.h5" for each in (flags, other))
    assert once.read_bytes() == later.read_bytes()


# ---- where an ascent starts


def picture(seed: int = 3) -> NDArray[np.uint8]:
    """Return a picture of the network's size, so that nothing is resized."""
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 112, 3))
    return pixels.astype(np.uint8)


def start_by_hand(start: str, unit: int, run: int, alias: str, pixels: NDArray[np.uint8]) -> Array:
    """Return the first picture, mean-subtracted, of the canvas: (h, w, 3)."""
    _, _, size, first = LAYERS[alias]
    if start == "mean":
        return np.zeros((size, size, 3), np.float32)
    if start == "uniform":
        mean = torch.tensor(MEAN).view(1, 3, 1, 1)
        drawn: Array = uniform(seed_of(0, Unit(alias, unit), run), (size, size), mean).numpy()
        return drawn.transpose(1, 2, 0)
    whole = pixels.astype(np.float32) - np.array(MEAN, np.float32)
    return whole[first : first + size, first : first + size]


def test_a_start_image_gives_no_warning(do: Do, flags: Flags) -> None:
    Image.fromarray(picture()).save("image.png")
    torch.set_warn_always(True)  # not only once a process
    try:
        do("optimize", **flags | {"optimize__start": "image.png", "optimize__iterations": 1})
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("alias", ["conv1", "conv2"])
@pytest.mark.parametrize("start", ["uniform", "mean", "image.png"])
def test_the_first_value_is_that_of_the_start(start: str, alias: str, do: Do, flags: Flags) -> None:
    runs = 2 if start == "uniform" else 1
    Image.fromarray(picture()).save("image.png")
    flags |= {"layer": (alias,), "optimize__start": start, "optimize__runs": runs}
    do("optimize", **flags | {"optimize__iterations": 3})
    found = result(flags)
    assert found["history"].shape == (3, runs, 1)
    for row, unit in enumerate(UNITS):
        for run in range(runs):
            first = start_by_hand(start, unit, run, alias, picture())
            value = at_centre(alias, first)[unit]
            assert found["start"][row, run] == pytest.approx(value, rel=1e-3, abs=1e-4)
            assert found["history"][row, run, 0] == found["start"][row, run]


def test_another_image_under_the_same_name_is_another_plan(do: Do, flags: Flags) -> None:
    flags |= {"optimize__start": "image.png", "optimize__iterations": 2}
    Image.fromarray(picture()).save("image.png")
    do("optimize", **flags)
    do("optimize", **flags)
    Image.fromarray(picture(4)).save("image.png")
    with pytest.raises(UsageError, match="start"):
        do("optimize", **flags)


@pytest.mark.parametrize("content", [None, b"", b"no image", "cut off", "a folder"])
def test_a_start_that_is_no_image_is_refused(
    content: bytes | str | None, do: Do, flags: Flags
) -> None:
    path = Path("image.png")
    if content == "a folder":
        path.mkdir()
    elif content == "cut off":
        Image.fromarray(picture()).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--start image\.png") as found:
        do("optimize", **flags | {"optimize__start": "image.png"})
    assert len(str(found.value).splitlines()) == 1


# ---- arithmetic


def test_bf16_is_near_single_precision_and_is_recorded(do: Do, flags: Flags) -> None:
    flags["optimize__step"] = "500"
    coarse = elsewhere(flags, "coarse")
    do("optimize", **flags)
    do("optimize", **coarse | {"optimize__precision": "bf16"})
    fine, rough = result(flags), result(coarse)
    assert (fine["record"]["precision"], rough["record"]["precision"]) == ("float32", "bf16")
    assert rough["activation"] == pytest.approx(fine["activation"], rel=0.05)
    assert not np.array_equal(rough["activation"], fine["activation"])
    with pytest.raises(UsageError, match="precision"):
        do("optimize", **flags | {"optimize__precision": "bf16"})


# ---- the history


@pytest.mark.parametrize("every", [1, 7, 30, 1000])
def test_history_holds_the_value_at_every_nth_step(every: int, do: Do, flags: Flags) -> None:
    flags |= {"optimize__iterations": 31, "optimize__runs": 2}
    do("optimize", **flags | {"optimize__history": every})
    found = result(flags)
    history = found["history"]
    assert history.shape == (3, 2, -(-31 // every))
    assert np.isfinite(history).all()
    assert history[..., 0].tobytes() == found["start"].tobytes()
    assert (history.max(axis=2) <= found["activation"]).all()
    for place in np.ndindex(3, 2):
        best = int(found["best_step"][place])
        if best % every == 0:
            assert history[(*place, best // every)] == found["activation"][place]


def test_every_history_is_part_of_the_full_one(do: Do, flags: Flags) -> None:
    fewer = elsewhere(flags, "fewer")
    do("optimize", **flags | {"optimize__history": 1})
    do("optimize", **fewer | {"optimize__history": 6})
    np.testing.assert_array_equal(result(flags)["history"][..., ::6], result(fewer)["history"])


CONSTANT = (2, 4)  # channels of the network of whole numbers that no gradient reaches


@pytest.mark.parametrize("batch", [2, 4, 8])
def test_units_without_a_gradient_end_early_and_disturb_no_other(
    batch: int, do: Do, exact: Flags
) -> None:
    exact |= {"layer": ("conv1",), "batch_size": batch, "optimize__iterations": 70}
    exact |= {"optimize__style": ("3",), "optimize__step": "1", "optimize__history": 10}
    whole, few = (
        exact | {"run": "whole", "units": "0-5"},
        exact | {"run": "few", "units": "0-1,3,5"},
    )
    do("optimize", **whole)
    do("optimize", **few)
    found = result(whole)
    for unit in range(6):
        finite = np.isfinite(found["history"][unit, 0])
        assert (found["outcome"][unit, 0] == 3) == (unit in CONSTANT)
        assert finite.all() == (unit not in CONSTANT)
        assert finite[0]
        assert (np.diff(finite.astype(int)) <= 0).all()  # NaN from some step on
    same(found, result(few), rows=[0, 1, 3, 5])


def test_the_history_of_a_unit_without_a_gradient_does_not_depend_on_others(
    do: Do, exact: Flags
) -> None:
    exact |= {"layer": ("conv1",), "batch_size": 2, "optimize__iterations": 40}
    exact |= {"optimize__style": ("3",), "optimize__step": "1", "optimize__history": 1}
    whole, alone = exact | {"run": "whole", "units": "0-5"}, exact | {"run": "alone", "units": "2"}
    do("optimize", **whole)
    do("optimize", **alone)
    same(result(whole), result(alone), rows=[2])


# ---- styles

OWN = """
[styles.mine]
iterations = 9
step = { kind = "constant", rate = 100 }
regularizers = [
  { kind = "decay", rate = 0.0001 },
  { kind = "blur", width = 1.0, every = 4 },
  { kind = "norm", percentile = 0 },
  { kind = "contribution", percentile = 0 },
]
[styles.other]
iterations = 23
step = { kind = "progress", max_rate = 1e8, desired = 0.2 }
regularizers = [{ kind = "tv", rate = 0.5 }]
"""


def test_a_style_of_one_s_own_that_says_what_row_3_says_is_row_3(do: Do, flags: Flags) -> None:
    flags["optimize__iterations"] = 9
    do("optimize", **flags)
    do_config(OWN, flags | {"optimize__style": ("mine",)})
    assert groups(flags) == ["3", "mine"]
    same(result(flags), result(flags, "mine"))


def test_a_style_s_own_iterations_and_step_are_taken(flags: Flags) -> None:
    del flags["optimize__iterations"]
    do_config(OWN, flags | {"optimize__style": ("mine", "other"), "optimize__step": "paper"})
    mine, other = result(flags, "mine"), result(flags, "other")
    assert (mine["record"]["iterations"], other["record"]["iterations"]) == (9, 23)
    assert mine["record"]["policy"] == {"kind": "Constant", "rate": 100}
    assert other["record"]["policy"] == {"kind": "Progress", "max_rate": 1e8, "desired": 0.2}
    assert mine["history"].shape == (3, 1, 1)
    assert other["history"].shape == (3, 1, 3)
    assert (other["activation"] > other["start"]).all()


def test_styles_kept_in_the_run_directory_are_known(do: Do, flags: Flags) -> None:
    do("optimize", **flags)
    (Path(flags["run"]) / "styles.toml").write_text(OWN)
    do("optimize", **flags | {"optimize__style": ("other",)})
    assert groups(flags) == ["3", "other"]
    del flags["optimize__iterations"]  # the plan's own come first
    with pytest.raises(UsageError, match="another plan"):
        do_config("[styles.other]\niterations = 4", flags | {"optimize__style": ("other",)})


@pytest.mark.parametrize("place", ["plan", "run"])
def test_slips_with_styles_are_named(place: str, do: Do, flags: Flags) -> None:
    do("optimize", **flags | {"optimize__step": "1"})

    def ask(text: str, style: str) -> None:
        if place == "plan":
            do_config(text, flags | {"optimize__style": (style,)})
        else:
            (Path(flags["run"]) / "styles.toml").write_text(text)
            do("optimize", **flags | {"optimize__style": (style,)})

    with pytest.raises(UsageError, match=r"no style 'mne'; did you mean 'mine'\?"):
        ask(OWN, "mne")
    with pytest.raises(UsageError, match=r"'3' is a built-in"):
        ask("[styles.3]\niterations = 3", "3")
    with pytest.raises(UsageError, match=r"did you mean 'iterations'\?"):
        ask("[styles.mine]\niteration = 3", "mine")


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "",
        "3-mean",
    ],
)
def test_a_name_that_the_file_cannot_keep_apart_is_refused(name: str, flags: Flags) -> None:
    """As `search --save` refuses it."""
    with pytest.raises(UsageError):
        do_config(f'[styles."{name}"]\niterations = 4', flags | {"optimize__style": (name,)})


@pytest.mark.parametrize(
    ("workers", "styles", "change"),
    [
        (2, ("3", "fourier", "natural", "1"), {"optimize__iterations": 8}),
        (0, ("mine", "other"), {"optimize__iterations": None, "optimize__step": "paper"}),
    ],
)
def test_styles_at_once_are_as_one_after_the_other(
    workers: int, styles: tuple[str, ...], change: Flags, flags: Flags
) -> None:
    flags |= {"units": "0-6", "workers": workers, **change}
    do_config(OWN, flags | {"optimize__style": styles})
    alone = elsewhere(flags, "alone") | {"workers": 0}
    for style in reversed(styles):
        do_config(OWN, alone | {"optimize__style": (style,)})
    assert groups(flags) == groups(alone) == sorted(styles)
    for style in styles:
        same(result(flags, style), result(alone, style))


@pytest.mark.parametrize("style", ["fourier", "natural"])
def test_pictures_of_frequencies_are_the_same_in_any_number_of_processes(
    style: str, do: Do, flags: Flags
) -> None:
    flags |= {"units": "0-7", "optimize__style": (style,), "optimize__iterations": 33}
    many = elsewhere(flags, "many")
    do("optimize", **flags)
    do("optimize", **many | {"workers": 2})
    found = result(flags, style)
    assert np.isfinite(found["image"]).all()
    assert (found["activation"] > found["start"]).all()
    pixels = found["image"] + np.array(MEAN)
    assert pixels.min() >= -0.1
    assert pixels.max() <= 255.1
    for unit in range(8):
        value = at_centre("conv1", found["image"][unit, 0])[unit]
        assert found["activation"][unit, 0] == near(value)
        assert found["best_step"][unit, 0] in (0, 16, 32)  # where the picture itself is shown
    once, later = (Path(each["run"]) / "optimized" / "conv1.h5" for each in (flags, many))
    assert once.read_bytes() == later.read_bytes()
