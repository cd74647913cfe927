"""`project` against the whole network, differentiated by torch with hooks on its rectifiers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import cnnvis_cli.demo
from cnnvis_cli.dataset.decode import decode
from cnnvis_cli.demo.network import DemoNet
from cnnvis_cli.errors import CnnvisError, Stopped, StorageError, UsageError
from cnnvis_cli.settings import ProjectPlan
from cnnvis_cli.stages.common import dataset_images as images
from cnnvis_cli.stages.project.job import group_of

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
MODULES = {
    "conv1": "features.0",
    "conv3": "features.6",
    "conv5": "features.10",
    "fc7": "classifier.4",
}
SIZES = {"conv1": 7, "conv3": 51, "conv5": 83, "fc7": 112}
UNITS = {"conv1": (0, 9, 31), "conv3": (2, 3), "conv5": (0, 7, 40), "fc7": (5, 6)}
K = 4


def network(method: str) -> DemoNet:
    """Return the bundled network; its rectifiers go back by the rule that the papers state."""
    net = DemoNet(24)
    folder = Path(cnnvis_cli.demo.__file__).parent
    net.load_state_dict(load_file(folder / "demo.safetensors"))

    def deconv(_module: nn.Module, _into: Any, back: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (back[0].clamp(min=0),)  # the signal itself is rectified

    def guided(_module: nn.Module, into: tuple[Tensor, ...], _back: Any) -> tuple[Tensor]:
        return (into[0].clamp(min=0),)  # `into` is 0 already where the forward value was not on

    for part in net.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
            if method != "gradient":
                part.register_full_backward_hook(deconv if method == "deconv" else guided)
    return net.eval()


def projected(path: Path, alias: str, unit: int, place: tuple[int, int], method: str) -> Any:
    """Return what in the whole image (112, 112, 3) caused a unit's value, and that value."""
    net = network(method)
    seen: list[Tensor] = []
    net.get_submodule(MODULES[alias]).register_forward_hook(lambda *_args: seen.append(_args[2]))
    image = np.asarray(Image.open(path).convert("RGB"), np.float32) - np.array(MEAN, np.float32)
    x = torch.from_numpy(image).requires_grad_()
    net((x / torch.tensor(STD)).permute(2, 0, 1)[None])
    value = seen[0][(0, unit, *place)] if seen[0].dim() == 4 else seen[0][0, unit]
    value.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad.numpy(), value.item()


@pytest.fixture
def folder(tmp_path: Path, photographs: Callable[..., Path]) -> Path:
    return photographs(tmp_path / "images", 11, classes=2, size=(112, 112))


@pytest.fixture
def flags(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "demo",
        "device": "cpu",
        "dataset": str(folder),
        "run": str(tmp_path / "run"),
        "workers": 0,
        "batch_size": 8,
        "topk__k": K,
    }


@pytest.fixture
def scanned(do: Callable[..., None], flags: dict[str, Any]) -> dict[str, Any]:
    """The same flags, for stages after topk."""
    do("topk", **flags)
    return flags | {"dataset": None}


def cut(image: NDArray[np.float32], box: list[int]) -> NDArray[np.float32]:
    """Return a window of an image with 0 outside of it, pixel by pixel."""
    top, left, bottom, right = box
    window = np.zeros((bottom - top, right - left, 3), np.float32)
    for row in range(max(top, 0), min(bottom, 112)):
        for column in range(max(left, 0), min(right, 112)):
            window[row - top, column - left] = image[row, column]
    return window


@pytest.mark.parametrize("alias", MODULES)
@pytest.mark.parametrize("method", ["deconv", "guided", "gradient"])
def test_a_projection_is_the_whole_network_s(
    method: str,
    alias: str,
    do: Callable[..., None],
    scanned: dict[str, Any],
    folder: Path,
    tmp_path: Path,
) -> None:
    units = ",".join(map(str, UNITS[alias]))
    do("project", **scanned | {"project__method": (method,), "layer": (alias,), "units": units})
    at_border = 0
    with (
        h5py.File(tmp_path / "run" / "topk.h5") as top,
        h5py.File(tmp_path / "run" / "projected" / f"{alias}.h5") as file,
    ):
        paths = [folder / p.decode() for p in top["images/path"][()]]
        places = top["layers"][alias]
        for unit in UNITS[alias]:
            for rank in range(K):
                image = paths[places["image"][unit, rank]]
                row, column = places["position"][unit, rank].tolist()
                box = places["box"][unit, rank].tolist()
                at_border += min(box) < 0 or max(box) > 112
                whole, value = projected(image, alias, unit, (row, column), method)
                assert value == pytest.approx(places["activation"][unit, rank], rel=1e-4, abs=1e-4)
                wanted = cut(whole, box)
                assert np.abs(wanted).max() == np.abs(whole).max()  # nothing outside the field
                scale = float(file[method]["scale"][unit, rank])
                assert scale == pytest.approx(np.abs(wanted).max(), rel=1e-4)
                stored = file[method]["projection"][unit, rank].astype(np.float32)
                assert np.abs(stored).max() == 1
                # half precision: 11 bits of a number up to 1
                np.testing.assert_allclose(stored, wanted / scale, atol=1e-4 + 2**-12, rtol=0)
    assert alias in ("conv1", "fc7") or at_border, "no place at the border was tested"


def test_the_file_has_the_contract_s_schema(
    do: Callable[..., None], scanned: dict[str, Any], tmp_path: Path
) -> None:
    methods = ("deconv", "guided", "gradient")
    do("project", **scanned | {"project__method": methods, "layer": ("conv1",)})
    with h5py.File(tmp_path / "run" / "projected" / "conv1.h5") as file:
        assert file.attrs["format"] == "cnnvis/projected"
        assert file.attrs["version"] == 1
        assert file.attrs["model"] == "demo"
        assert len(file.attrs["weights_sha256"]) == 64
        assert (file.attrs["layer"], file.attrs["module"]) == ("conv1", "features.0")
        assert sorted(file) == sorted(methods)
        for group in file.values():
            projection, scale = group["projection"], group["scale"]
            assert (projection.shape, projection.dtype) == ((32, K, 7, 7, 3), np.float16)
            assert (scale.shape, scale.dtype) == ((32, K), np.float32)
            for values in group.values():
                assert (values.compression, values.compression_opts) == ("gzip", 1)
                assert values.shuffle
                assert values.fletcher32


@pytest.mark.parametrize("alias", ["conv1", "conv5"])
def test_units_added_later_are_as_if_done_at_once(
    alias: str, do: Callable[..., None], scanned: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "projected" / f"{alias}.h5"
    scanned |= {"layer": (alias,)}
    do("project", **scanned | {"units": "0-9"})
    path.rename(tmp_path / "once.h5")
    for units in ("3,5", "0-1", "0-9"):
        do("project", **scanned | {"units": units})
    with h5py.File(tmp_path / "once.h5") as once, h5py.File(path) as later:
        assert once["deconv/done"][()].nonzero()[0].tolist() == list(range(10))
        np.testing.assert_array_equal(later["deconv/done"], once["deconv/done"])
        # a projection's last bits depend on the batch that it was computed in
        np.testing.assert_allclose(later["deconv/scale"], once["deconv/scale"], rtol=1e-5)
        one, other = (file["deconv/projection"][()].astype(np.float32) for file in (once, later))
        np.testing.assert_allclose(one, other, atol=2**-10, rtol=0)


def test_a_method_added_later_leaves_the_others_as_they_are(
    do: Callable[..., None], scanned: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run" / "projected" / "conv1.h5"
    methods = ("deconv", "guided", "gradient")
    scanned |= {"layer": ("conv1",), "units": "0-9"}
    do("project", **scanned | {"project__method": methods})
    once = path.read_bytes()
    path.unlink()
    for method in ("guided", "gradient", "deconv"):
        do("project", **scanned | {"project__method": (method,)})
    assert path.read_bytes() == once


@pytest.mark.parametrize("moments", [0, 5, 14, 18])
def test_a_stopped_run_carries_on_to_the_same_bytes(
    moments: int,
    do: Callable[..., None],
    scanned: dict[str, Any],
    interrupted: Callable[[int], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    four_units = 4 * K * 7 * 7 * 3 * 2
    monkeypatch.setattr("cnnvis_cli.stages.project.job._BLOCK_BYTES", four_units)
    scanned |= {"layer": ("conv1",)}
    do("project", **scanned)
    path = tmp_path / "run" / "projected" / "conv1.h5"
    once = path.read_bytes()
    path.unlink()
    with pytest.raises(Stopped):
        do("project", interrupted(moments), **scanned)
    assert not path.exists()
    do("project", **scanned)
    assert path.read_bytes() == once
    assert not (tmp_path / "run" / "parts").exists()


def test_a_rerun_changes_no_byte(
    do: Callable[..., None],
    scanned: dict[str, Any],
    snapshot: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    do("project", **scanned | {"layer": ("conv1",)})
    before = snapshot(tmp_path / "run")
    do("project", **scanned | {"layer": ("conv1",)})
    do("project", **scanned | {"layer": ("conv1",), "units": "3"})
    assert snapshot(tmp_path / "run") == before


def test_a_replaced_image_is_named(
    do: Callable[..., None], scanned: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "run" / "topk.h5") as top:
        path = top["images/path"][top["layers/conv5/image"][0, 0]].decode()
    Image.new("RGB", (112, 112), "red").save(folder / path)
    with pytest.raises(CnnvisError, match=path):
        do("project", **scanned | {"layer": ("conv5",), "units": "0"})
    assert not (tmp_path / "run" / "projected" / "conv5.h5").exists()


def test_a_missing_image_is_named(
    do: Callable[..., None], scanned: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "run" / "topk.h5") as top:
        path = top["images/path"][top["layers/conv5/image"][0, 0]].decode()
    (folder / path).unlink()
    with pytest.raises(CnnvisError, match=path):
        do("project", **scanned | {"layer": ("conv5",), "units": "0"})


def test_a_dataset_that_moved_is_found_again(
    do: Callable[..., None], scanned: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    folder.rename(tmp_path / "moved")
    with pytest.raises(CnnvisError, match="--dataset"):
        do("project", **scanned | {"layer": ("conv1",), "units": "0"})
    moved = {"dataset": str(tmp_path / "moved")}
    do("project", **scanned | moved | {"layer": ("conv1",), "units": "0"})


def test_empty_slots_stay_empty(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path, photographs: Callable[..., Path]
) -> None:
    flags |= {"dataset": str(photographs(tmp_path / "two", 2)), "layer": ("conv1",)}
    do("topk", **flags)
    do("project", **flags)
    with h5py.File(tmp_path / "run" / "projected" / "conv1.h5") as file:
        assert not file["deconv/projection"][:, 2:].any()
        assert np.isnan(file["deconv/scale"][:, 2:]).all()
        assert (file["deconv/scale"][:, :2] > 0).any()


def test_without_topk_it_says_what_to_do(do: Callable[..., None], flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="topk first"):
        do("project", **flags)


def test_another_plan_is_refused(
    do: Callable[..., None], scanned: dict[str, Any], tmp_path: Path
) -> None:
    do("project", **scanned | {"layer": ("conv1",)})
    with pytest.raises(UsageError, match="another plan"):
        do("project", **scanned | {"layer": ("conv1",), "batch_size": 4})


# The images


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of bytes of each image that is decoded."""
    seen: list[int] = []
    plain = decode

    def count(content: bytes, *others: Any) -> Any:
        seen.append(len(content))
        return plain(content, *others)

    monkeypatch.setattr(images, "decode", count)
    return seen


def test_each_image_is_decoded_once_for_all_layers_and_methods(
    do: Callable[..., None], scanned: dict[str, Any], decoded: list[int], tmp_path: Path
) -> None:
    scanned |= {"layer": ("conv1", "conv5", "fc7"), "project__method": ("deconv", "guided")}
    scanned["units"] = "0-15"
    do("project", **scanned)
    assert 1 < len(decoded) <= 11
    assert not (tmp_path / "run" / "parts").exists()
    decoded.clear()
    do("project", **scanned)
    assert not decoded


def test_only_images_that_are_needed_are_decoded(
    do: Callable[..., None], scanned: dict[str, Any], decoded: list[int], tmp_path: Path
) -> None:
    do("project", **scanned | {"layer": ("conv1",), "units": "3"})
    with h5py.File(tmp_path / "run" / "topk.h5") as top:
        assert len(decoded) == len(np.unique(top["layers/conv1/image"][3])) == K


def test_a_full_disk_is_named(
    do: Callable[..., None],
    scanned: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match=r"parts: No space left on device") as error:
        do("project", **scanned | {"layer": ("conv1",)})
    assert error.value.exit_code == 4
    assert not (tmp_path / "run" / "parts").exists()


# Other starts and ways through normalisation


def test_a_whole_map_starts_a_projection_of_the_input_s_size(
    do: Callable[..., None], scanned: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    scanned |= {"layer": ("conv3", "fc7"), "units": "2,3"}
    do("project", **scanned)
    do("project", **scanned | {"project__start": "map"})
    with h5py.File(tmp_path / "run" / "projected" / "conv3.h5") as file:
        assert sorted(file) == ["deconv", "deconv-map"]
        assert file["deconv/projection"].shape[2:] == (51, 51, 3)
        assert file["deconv-map/projection"].shape[1:] == (K, 112, 112, 3)
        assert json.loads(file["deconv-map"].attrs["plan"])["start"] == "map"
    for alias in ("conv3", "fc7"):
        check_map(tmp_path / "run", folder, alias)


def check_map(run: Path, folder: Path, alias: str) -> None:
    with (
        h5py.File(run / "topk.h5") as top,
        h5py.File(run / "projected" / f"{alias}.h5") as file,
    ):
        for unit, rank in np.ndindex(2, K):
            channel = unit + 2
            number = top[f"layers/{alias}/image"][channel, rank]
            wanted = from_map(folder / top["images/path"][number].decode(), alias, channel)
            scale = float(file["deconv-map/scale"][channel, rank])
            assert scale == pytest.approx(np.abs(wanted).max(), rel=1e-4)
            stored = file["deconv-map/projection"][channel, rank].astype(np.float32)
            reference = wanted / (scale or 1)
            np.testing.assert_allclose(stored, reference, atol=1e-4 + 2**-12, rtol=0)


def from_map(path: Path, alias: str, unit: int) -> NDArray[np.float32]:
    """Return what in the whole image caused a channel's rectified map: (112, 112, 3)."""
    net = network("deconv")
    seen: list[Tensor] = []
    net.get_submodule(MODULES[alias]).register_forward_hook(lambda *_args: seen.append(_args[2]))
    image = np.asarray(Image.open(path).convert("RGB"), np.float32) - np.array(MEAN, np.float32)
    x = torch.from_numpy(image).requires_grad_()
    net((x / torch.tensor(STD)).permute(2, 0, 1)[None])
    (seen[0][0, unit] * seen[0][0, unit].detach().clamp(min=0)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad.numpy()


def test_settings_spell_their_group_in_one_way() -> None:
    spelled = {
        group_of("deconv", ProjectPlan(start=start, lrn=lrn))
        for start in ("place", "map")
        for lrn in ("derivative", "pass")
    }
    assert spelled == {"deconv", "deconv-map", "deconv-lrn", "deconv-map-lrn"}


def test_a_stopped_map_carries_on_to_the_same_bytes(
    do: Callable[..., None],
    scanned: dict[str, Any],
    interrupted: Callable[[int], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cnnvis_cli.stages.project.job._BLOCK_BYTES", 2 * K * 112 * 112 * 3 * 2)
    scanned |= {"layer": ("conv5",), "units": "0-5", "project__start": "map"}
    do("project", **scanned)
    path = tmp_path / "run" / "projected" / "conv5.h5"
    once = path.read_bytes()
    path.unlink()
    with pytest.raises(Stopped):
        do("project", interrupted(14), **scanned)
    assert 1 <= len(list((tmp_path / "run" / "parts").rglob("*.h5"))) <= 2
    do("project", **scanned)
    assert path.read_bytes() == once


# What has no rule


def test_a_network_without_a_rule_is_refused_before_any_image_is_decoded(
    do: Callable[..., None],
    scanned: dict[str, Any],
    photographs: Callable[..., Path],
    decoded: list[int],
    tmp_path: Path,
) -> None:
    Path("clipped.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    first, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)\n"
        "    return nn.Sequential(first, nn.SiLU(inplace=True), last)\n"
    )
    clipped = {"model": "clipped:net", "trust_code": True, "run": str(tmp_path / "other")}
    clipped |= {"weights": "random"}
    flags = scanned | clipped | {"dataset": str(photographs(tmp_path / "few", 2, size=(64, 64)))}
    do("topk", **flags)
    refusal = r"net: guided cannot project conv2: .*silu \(in 1, SiLU\).*--method gradient"
    with pytest.raises(UsageError, match=refusal):
        do("project", **flags | {"project__method": ("guided",)})
    assert not decoded
    do("project", **flags | {"project__method": ("guided",), "layer": ("conv1",)})
    do("project", **flags | {"project__method": ("gradient",)})
