"""`topk` against a scan that looks at one image at a time and sorts everything it saw."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from cnnvis_cli.errors import Stopped, StorageError, TooManyUnreadable, UsageError
from cnnvis_cli.stages import topk as stage
from cnnvis_cli.store.run import Run

Maps = dict[str, NDArray[np.float64]]  # of one image, by alias: (C, h, w)

# alias -> module, kind, map, and the receptive field's size, stride and first pixel, by hand
LAYERS = {
    "conv1": ("0", "conv", (15, 15), 5, 2, -1),
    "conv2": ("3", "conv", (7, 7), 9 + 2 * 4, 4, -5),
    "fc3": ("6", "fc", (1, 1), 32, 0, 0),
}
CHANNELS = {"conv1": 6, "conv2": 8, "fc3": 10}
K = 5


class Seen(NamedTuple):
    """One image's strongest place in a channel, in the order of the contract."""

    activation: float
    image: int
    row: int
    column: int

    @property
    def key(self) -> tuple[float, int, int, int]:
        return -self.activation, self.image, self.row, self.column


def maps_of(path: Path, function: str = "exact") -> Maps:
    """Every layer's own output for one image, by plain torch."""
    module: nn.Sequential = getattr(importlib.import_module("tinynet"), function)().eval()
    image = np.asarray(Image.open(path).convert("RGB"))
    x = torch.from_numpy(image - np.array([120, 110, 100], np.float32))
    x = x.permute(2, 0, 1)[None]
    maps: Maps = {}
    with torch.no_grad():
        for name, part in module.named_children():
            x = part(x)
            for alias, (own, _, size, *_) in LAYERS.items():
                if own == name:
                    maps[alias] = x[0].double().numpy().reshape(-1, *size)
    return maps


def strongest(maps: list[tuple[int, Maps]], alias: str, channel: int, k: int) -> list[Seen]:
    """The k strongest places of a channel, one an image, NaN left out."""
    seen = []
    for image, layers in maps:
        places = [
            Seen(float(value), image, row, column)
            for (row, column), value in np.ndenumerate(layers[alias][channel])
            if not np.isnan(value)
        ]
        if places:
            seen.append(min(places, key=lambda place: place.key))
    return sorted(seen, key=lambda place: place.key)[:k]


@pytest.fixture
def folder(tmp_path: Path, photographs: Callable[..., Path]) -> Path:
    """38 photographs in four class folders, two of them twins, and two broken files."""
    folder = photographs(tmp_path / "images", 38, classes=4)
    (folder / "class1" / "033.png").write_bytes((folder / "class0" / "004.png").read_bytes())
    (folder / "class2" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "class3" / "empty.png").touch()
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def flags(exact: dict[str, Any], folder: Path, tmp_path: Path) -> dict[str, Any]:
    return exact | {
        "dataset": str(folder),
        "run": str(tmp_path / "run"),
        "topk__k": K,
        "topk__max_unreadable": 0.1,
    }


def test_the_file_is_what_a_scan_one_by_one_finds(
    do: Callable[..., None], flags: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    do("topk", **flags)
    paths = files_of(folder)
    bad = {"class2/broken.jpg", "class3/empty.png"}
    maps = [(i, maps_of(folder / path)) for i, path in enumerate(paths) if path not in bad]
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        assert [p.decode() for p in file["images/path"][()]] == paths
        assert file["images/label"][()].tolist() == [int(p[5]) for p in paths]
        assert [p for p, s in zip(paths, file["images/skipped"], strict=True) if s] == sorted(bad)
        for alias, (_, _, _, size, stride, start) in LAYERS.items():
            group = file["layers"][alias]
            for channel in range(CHANNELS[alias]):
                wanted = strongest(maps, alias, channel, K)
                assert group["activation"][channel].tolist() == [s.activation for s in wanted]
                assert group["image"][channel].tolist() == [s.image for s in wanted]
                assert group["position"][channel].tolist() == [[s.row, s.column] for s in wanted]
                corners = [(start + stride * s.row, start + stride * s.column) for s in wanted]
                boxes = [[top, left, top + size, left + size] for top, left in corners]
                assert group["box"][channel].tolist() == boxes
            everything = np.stack([m[alias] for _, m in maps], axis=1).reshape(CHANNELS[alias], -1)
            stats = group["stats"]
            np.testing.assert_allclose(stats["mean"], everything.mean(axis=1), rtol=1e-6, atol=1e-3)
            np.testing.assert_allclose(stats["std"], everything.std(axis=1), rtol=1e-5, atol=1e-3)
            np.testing.assert_array_equal(stats["max"], everything.max(axis=1))
            np.testing.assert_allclose(stats["active"], (everything > 0).mean(axis=1), rtol=1e-12)


def test_ties_go_to_the_first_image_and_the_upper_left_place(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        group = file["layers/conv1"]
        for channel, value in ((2, 3), (4, -2)):  # channels that are the same everywhere
            assert group["activation"][channel].tolist() == [value] * K
            assert group["image"][channel].tolist() == [0, 1, 2, 3, 4]
            assert not group["position"][channel].any()


def test_the_file_has_the_contract_s_schema(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        attributes = dict(file.attrs)
        assert attributes["format"] == "cnnvis/topk"
        assert attributes["version"] == 1
        assert attributes["model"] == "tinynet:exact"
        assert len(attributes["weights_sha256"]) == 64
        assert json.loads(attributes["preprocessing"])["crop"] == [32, 32]
        assert (attributes["k"], attributes["images"], attributes["skipped"]) == (K, 40, 2)
        path = file["images/path"].dtype
        assert h5py.check_string_dtype(path) == ("utf-8", len("class2/broken.jpg"))
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "images/label": ((40,), "int32"),
            "images/skipped": ((40,), "bool"),
        }
        for alias, channels in CHANNELS.items():
            shapes |= {
                f"layers/{alias}/activation": ((channels, K), "float32"),
                f"layers/{alias}/image": ((channels, K), "int64"),
                f"layers/{alias}/position": ((channels, K, 2), "int32"),
                f"layers/{alias}/box": ((channels, K, 4), "int32"),
            } | {
                f"layers/{alias}/stats/{name}": ((channels,), "float64")
                for name in ("mean", "std", "max", "active")
            }
            module, kind, size, field, stride, _ = LAYERS[alias]
            about = file["layers"][alias].attrs
            assert (about["module"], about["kind"], about["channels"]) == (module, kind, channels)
            assert tuple(about["map"]) == size
            assert tuple(about["receptive_field"]) == (field, field)
            assert tuple(about["stride"]) == (stride, stride)
        for name, (shape, kind) in shapes.items():
            assert (name, file[name].shape, file[name].dtype) == (name, shape, np.dtype(kind))
        found: list[str] = []
        file.visit(found.append)
        names = [name for name in found if isinstance(file[name], h5py.Dataset)]
        assert sorted(names) == sorted([*shapes, "images/path"])
        for name in names:
            dataset = file[name]
            assert dataset.compression == "gzip"
            assert dataset.compression_opts == 1
            assert dataset.shuffle
            assert dataset.fletcher32


def test_skipped_images_are_listed_with_a_reason(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    lines = (tmp_path / "run" / "skipped.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    assert [path for path, _ in rows] == ["class2/broken.jpg", "class3/empty.png"]
    assert all(reason for _, reason in rows)


def test_too_many_skipped_images_end_in_exit_3_each_time_with_everything_done(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    for _ in range(2):
        with pytest.raises(TooManyUnreadable, match="2 of 40"):
            do("topk", **flags | {"topk__max_unreadable": 0.04})
        assert (tmp_path / "run" / "topk.h5").exists()


def test_worker_processes_change_no_byte(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    do("topk", **flags | {"run": str(tmp_path / "other"), "workers": 2})
    for name in ("topk.h5", "skipped.tsv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize("moments", [1, 3, 7])
def test_an_interrupted_run_carries_on_to_the_same_bytes(
    moments: int,
    do: Callable[..., None],
    flags: dict[str, Any],
    interrupted: Callable[[int], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage, "PART", 2)  # batches of 4 images: five parts
    do("topk", **flags)
    other = flags | {"run": str(tmp_path / "other")}
    with pytest.raises(Stopped):
        do("topk", interrupted(moments), **other)
    assert not (tmp_path / "other" / "topk.h5").exists()
    kept = sorted((tmp_path / "other" / "parts").rglob("*.h5"))
    assert len(kept) == moments // 2
    before = [path.stat().st_mtime_ns for path in kept]
    with pytest.raises(Stopped):
        do("topk", interrupted(0), **other)
    assert [path.stat().st_mtime_ns for path in kept] == before  # nothing was done twice
    do("topk", **other)
    for name in ("topk.h5", "skipped.tsv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert not (tmp_path / "other" / "parts").exists()


def test_a_rerun_changes_no_byte(
    do: Callable[..., None],
    flags: dict[str, Any],
    snapshot: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    do("topk", **flags)
    before = snapshot(tmp_path / "run")
    do("topk", **flags)
    assert snapshot(tmp_path / "run") == before
    assert set(before) == {".lock", "run.json", "skipped.tsv", "topk.h5"}


def test_where_the_images_are_is_known_even_if_the_disk_filled_up_at_the_end(
    do: Callable[..., None],
    flags: dict[str, Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "note", full)
        with pytest.raises(StorageError):
            do("topk", **flags)
    assert (tmp_path / "run" / "topk.h5").exists()
    do("topk", **flags)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["dataset"]["path"] == str(folder)


@pytest.mark.parametrize("change", [{"topk__k": 3}, {"batch_size": 2}])
def test_another_plan_is_refused(
    change: dict[str, Any], do: Callable[..., None], flags: dict[str, Any]
) -> None:
    do("topk", **flags)
    with pytest.raises(UsageError, match="another plan"):
        do("topk", **flags | change)


def test_another_dataset_is_refused(
    do: Callable[..., None], flags: dict[str, Any], folder: Path
) -> None:
    do("topk", **flags)
    (folder / "class0" / "000.png").unlink()
    with pytest.raises(UsageError, match="another plan"):
        do("topk", **flags)


def test_nan_never_takes_a_slot(
    do: Callable[..., None], flags: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    Image.fromarray(white).save(folder / "class0" / "000.png")
    do("topk", **flags | {"model": "tinynet:fragile", "layer": ("conv2", "fc3")})
    maps = [
        (i, maps_of(folder / path, "fragile"))
        for i, path in enumerate(files_of(folder))
        if path not in ("class2/broken.jpg", "class3/empty.png")
    ]
    nan = [i for i, m in maps if np.isnan(m["conv2"]).all(axis=(1, 2)).any()]
    assert nan == [0], "the white image alone must give maps of NaN, or this tests nothing"
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        for alias in ("conv2", "fc3"):
            for channel in range(CHANNELS[alias]):
                wanted = strongest(maps, alias, channel, K)
                group = file["layers"][alias]
                assert group["image"][channel].tolist() == [s.image for s in wanted]
                assert group["activation"][channel].tolist() == [s.activation for s in wanted]


def test_slots_without_an_image_are_empty(
    do: Callable[..., None],
    exact: dict[str, Any],
    photographs: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = photographs(tmp_path / "three", 3)
    do("topk", **exact | {"dataset": str(folder), "run": str(tmp_path / "run"), "topk__k": 5})
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        for group in file["layers"].values():
            assert sorted(group["image"][0, :3].tolist()) == [0, 1, 2]
            assert (group["image"][:, 3:] == -1).all()
            assert np.isnan(group["activation"][:, 3:]).all()
            assert not np.isnan(group["activation"][:, :3]).any()
            assert not group["position"][:, 3:].any()
            assert not group["box"][:, 3:].any()


def test_a_layer_alone_has_the_same_numbers(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    do("topk", **flags | {"run": str(tmp_path / "one"), "layer": ("3",)})
    with (
        h5py.File(tmp_path / "run" / "topk.h5") as every,
        h5py.File(tmp_path / "one/topk.h5") as one,
    ):
        assert list(one["layers"]) == ["conv2"]
        for name in ("activation", "image", "position", "box", "stats/mean"):
            np.testing.assert_array_equal(
                one["layers/conv2"][name], every["layers/conv2"][name], strict=True
            )
