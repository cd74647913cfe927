"""`optimize` on the bundled network: stored values are those of the whole network for the image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import cnnvis_cli.demo
from cnnvis_cli.ascent.climb import Ascent, Evaluate, climb
from cnnvis_cli.demo.network import DemoNet
from cnnvis_cli.errors import Stopped, UsageError
from cnnvis_cli.stages.optimize import worker as stage

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# alias -> module, centre of the map, and the receptive field's size, stride and start, by hand
LAYERS = {
    "conv1": ("features.0", 26, 7, 2, 0),
    "conv2": ("features.3", 13, 27, 4, -8),
    "conv3": ("features.6", 6, 51, 8, -16),
    "conv4": ("features.8", 6, 67, 8, -24),
    "conv5": ("features.10", 6, 83, 8, -32),
    "fc6": ("classifier.1", 0, 112, 0, 0),
    "fc7": ("classifier.4", 0, 112, 0, 0),
    "fc8": ("classifier.6", 0, 112, 0, 0),
}
UNITS = (1, 4, 5)
SCHEMA = {
    "activation": "float32",
    "start": "float32",
    "best_step": "int32",
    "outcome": "int8",
}


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "demo",
        "device": "cpu",
        "run": str(tmp_path / "run"),
        "layer": ("conv1",),
        "units": "1,4-5",
        "batch_size": 4,
        "optimize__style": ("3",),
        "optimize__iterations": 30,
        "optimize__runs": 2,
    }


def network() -> DemoNet:
    """Return the bundled network, loaded by hand."""
    module = DemoNet(24)
    folder = Path(cnnvis_cli.demo.__file__).parent
    module.load_state_dict(load_file(folder / "demo.safetensors"))
    return module.eval()


def at_centre(alias: str, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a layer's activations at its centre for a picture put on the mean colour: (C,)."""
    module, centre, size, stride, start = LAYERS[alias]
    first = start + stride * centre
    canvas = np.zeros((112, 112, 3), np.float32)  # mean-subtracted: 0 is the mean colour
    canvas[first : first + size, first : first + size] = picture
    seen: list[torch.Tensor] = []
    net = network()
    for part in net.modules():
        if isinstance(part, torch.nn.ReLU):
            part.inplace = False
    net.get_submodule(module).register_forward_hook(lambda *_args: seen.append(_args[2]))
    with torch.no_grad():
        net(torch.from_numpy(canvas / np.array(STD, np.float32)).permute(2, 0, 1)[None])
    out = seen[0][0]
    return (out[:, centre, centre] if out.dim() == 3 else out).numpy()


@pytest.mark.parametrize(
    ("alias", "iterations"),
    [("conv1", 30), ("conv2", 12), *((alias, 4) for alias in [*LAYERS][2:])],
)
def test_the_stored_image_gives_the_stored_activation(
    alias: str, iterations: int, do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    styles = ("3", "natural")
    flags |= {"layer": (alias,), "optimize__iterations": iterations, "optimize__style": styles}
    do("optimize", **flags)
    for style in styles:
        _check_stored(tmp_path / "run" / "optimized" / f"{alias}.h5", style, iterations)


def _check_stored(path: Path, style: str, iterations: int) -> None:
    """Compare what a file holds of a style with the network's values for its images."""
    alias = path.stem
    with h5py.File(path) as file:
        group = file[style]
        for row, unit in enumerate(UNITS):
            assert group["unit"][row] == unit
            for run in range(2):
                values = at_centre(alias, group["image"][row, run].astype(np.float32))
                stored = group["activation"][row, run]
                assert values[unit] == pytest.approx(stored, rel=0.01)
                first = int(values.argmax()) == unit
                assert group["outcome"][row, run] == (1 if first else 2)
                assert stored >= group["start"][row, run]
                assert 0 <= group["best_step"][row, run] < iterations


def test_the_file_has_the_contract_s_schema(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("optimize", **flags | {"optimize__style": ("3", "1")})
    with h5py.File(tmp_path / "run" / "optimized" / "conv1.h5") as file:
        assert file.attrs["format"] == "cnnvis/optimized"
        assert file.attrs["version"] == 1
        assert file.attrs["model"] == "demo"
        assert len(file.attrs["weights_sha256"]) == 64
        assert (file.attrs["layer"], file.attrs["module"]) == ("conv1", "features.0")
        assert tuple(file.attrs["mean"]) == MEAN
        assert sorted(file) == ["1", "3"]
        for group in file.values():
            assert json.loads(group.attrs["parameters"])["iterations"] == 30
            assert set(group) == {"image", "unit", "history", *SCHEMA}
            assert (group["history"].shape, group["history"].dtype) == ((3, 2, 4), np.float32)
            assert (group["image"].shape, group["image"].dtype) == ((3, 2, 7, 7, 3), np.float16)
            assert (group["unit"].shape, group["unit"].dtype) == ((3,), np.int32)
            for name, kind in SCHEMA.items():
                assert (group[name].shape, group[name].dtype) == ((3, 2), np.dtype(kind))
            for values in group.values():
                assert (values.compression, values.compression_opts) == ("gzip", 1)
                assert values.shuffle
                assert values.fletcher32


def test_units_added_later_are_as_if_done_at_once(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("optimize", **flags | {"units": "0-6"})
    other = flags | {"run": str(tmp_path / "other")}
    for units in ("3,5", "0-1", "0-6"):
        do("optimize", **other | {"units": units})
    once, later = (tmp_path / name / "optimized" / "conv1.h5" for name in ("run", "other"))
    assert once.read_bytes() == later.read_bytes()


def test_a_style_added_later_leaves_the_others_as_they_are(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("optimize", **flags | {"optimize__style": ("1", "3", "4")})
    other = flags | {"run": str(tmp_path / "other")}
    for style in ("3", "4", "1"):
        do("optimize", **other | {"optimize__style": (style,)})
    once, later = (tmp_path / name / "optimized" / "conv1.h5" for name in ("run", "other"))
    assert once.read_bytes() == later.read_bytes()


@pytest.mark.parametrize(
    ("style", "moments"), [*(("3", moments) for moments in (0, 15, 30, 50)), ("natural", 50)]
)
def test_a_stopped_run_carries_on_to_the_same_bytes(
    style: str,
    moments: int,
    do: Callable[..., None],
    flags: dict[str, Any],
    interrupted: Callable[[int], Any],
    tmp_path: Path,
) -> None:
    flags |= {"units": "0-27", "workers": 0, "optimize__runs": 1, "optimize__style": (style,)}
    flags["optimize__step"] = "paper" if style == "3" else "calibrated"
    do("optimize", **flags)
    other = flags | {"run": str(tmp_path / "other")}
    with pytest.raises(Stopped):
        do("optimize", interrupted(moments), **other)
    parts = list((tmp_path / "other").rglob("parts/**/*.h5"))
    assert bool(parts) == (moments > 10)
    before = {path: path.stat().st_mtime_ns for path in parts}
    with pytest.raises(Stopped):
        do("optimize", interrupted(5), **other)
    assert {path: path.stat().st_mtime_ns for path in parts} == before
    do("optimize", **other | {"workers": 2})
    once, later = (tmp_path / name / "optimized" / "conv1.h5" for name in ("run", "other"))
    assert once.read_bytes() == later.read_bytes()
    assert not (tmp_path / "other" / "parts").exists()


def test_a_rerun_changes_no_byte(
    do: Callable[..., None],
    flags: dict[str, Any],
    snapshot: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    do("optimize", **flags)
    before = snapshot(tmp_path / "run")
    assert set(before) == {".lock", "run.json", "optimized/conv1.h5"}
    do("optimize", **flags)
    do("optimize", **flags | {"units": "4"})
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch_size": 8},
        {"optimize__runs": 3},
        {"optimize__iterations": 29},
        {"optimize__step": "paper"},
        {"weights": "random"},
    ],
)
def test_another_plan_is_refused_and_changes_nothing(
    change: dict[str, Any],
    do: Callable[..., None],
    flags: dict[str, Any],
    snapshot: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    flags["optimize__step"] = "0.5"
    do("optimize", **flags)
    before = snapshot(tmp_path / "run")
    with pytest.raises(UsageError, match="another plan"):
        do("optimize", **flags | change)
    assert snapshot(tmp_path / "run") == before


def test_more_runs_than_a_batch_holds(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("optimize", **flags | {"optimize__runs": 6})
    do("optimize", **flags | {"optimize__runs": 4, "run": str(tmp_path / "fewer")})
    with (
        h5py.File(tmp_path / "run" / "optimized" / "conv1.h5") as six,
        h5py.File(tmp_path / "fewer" / "optimized" / "conv1.h5") as four,
    ):
        assert six["3/image"].shape == (3, 6, 7, 7, 3)
        np.testing.assert_array_equal(six["3/image"][:, :4], four["3/image"])
        np.testing.assert_array_equal(six["3/activation"][:, :4], four["3/activation"])
        runs = six["3/image"][0].reshape(6, -1)
        assert len({run.tobytes() for run in runs}) == 6  # each from noise of its own


def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every step adds how many slots it computes."""
    sizes: list[int] = []

    def watched(evaluate: Evaluate, *rest: Any) -> Iterator[Ascent]:
        def seen(x: torch.Tensor, targets: torch.Tensor) -> Any:
            sizes.append(len(x))
            return evaluate(x, targets)

        return climb(seen, *rest)

    monkeypatch.setattr(stage, "climb", watched)
    return sizes


@pytest.mark.parametrize("alias", ["conv2", "fc8"])
def test_one_unit_alone_costs_no_full_batch_and_has_the_same_bits(
    alias: str, do: Callable[..., None], flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bits of a result depend on the size of the batch that is recorded, not on others."""
    flags |= {"workers": 0, "layer": (alias,), "batch_size": None, "optimize__runs": 1}
    flags["optimize__iterations"] = 20
    sizes = evaluated(monkeypatch)
    do("optimize", **flags | {"units": "4"})
    alone = set(sizes)
    sizes.clear()
    do("optimize", **flags | {"units": "1-7", "run": flags["run"] + "-more"})
    assert max(alone) <= 2 < max(sizes)
    files = [Path(flags["run"] + end) / "optimized" / f"{alias}.h5" for end in ("", "-more")]
    with h5py.File(files[0]) as one, h5py.File(files[1]) as more:
        assert one["3"].attrs["parameters"] == more["3"].attrs["parameters"]
        for name in ("image", "activation", "history", "best_step"):
            np.testing.assert_array_equal(one["3"][name][0], more["3"][name][3])


def test_units_are_shared_evenly(
    do: Callable[..., None], flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five ascents at a time in two rounds, not four in three with an empty last one."""
    sizes = evaluated(monkeypatch)
    flags |= {"workers": 0, "batch_size": 8, "optimize__runs": 1, "units": "0-9"}
    do("optimize", **flags | {"optimize__iterations": 3})
    assert sizes == [5] * 6


def test_the_paper_s_step_and_a_number_are_taken_as_they_are(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    for step, rate in (("paper", 100), ("0.25", 0.25)):
        do("optimize", **flags | {"optimize__step": step, "run": str(tmp_path / step)})
        with h5py.File(tmp_path / step / "optimized" / "conv1.h5") as file:
            assert json.loads(file["3"].attrs["parameters"])["policy"]["rate"] == rate


def test_units_that_nothing_reaches_are_outcome_3_and_keep_their_first_image(
    do: Callable[..., None], exact: dict[str, Any], tmp_path: Path
) -> None:
    do(
        "optimize",
        **exact
        | {
            "run": str(tmp_path / "run"),
            "layer": ("conv1",),
            "units": "2-4",
            "optimize__style": ("3",),
            "optimize__iterations": 40,
        },
    )
    with h5py.File(tmp_path / "run" / "optimized" / "conv1.h5") as file:
        assert file["3/outcome"][()].ravel().tolist()[::2] == [
            3,
            3,
        ]  # channels 2 and 4 are constant
        assert file["3/outcome"][1, 0] in (1, 2)
        assert file["3/activation"][()].ravel().tolist()[::2] == [3, -2]
        assert file["3/best_step"][()].ravel().tolist()[::2] == [0, 0]
        assert file["3/image"][0].astype(np.float64).std() == pytest.approx(10, rel=0.3)
