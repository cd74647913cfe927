"""`topk` against a scan of one image at a time that sorts everything."""

from __future__ import annotations

import importlib
import json
import zlib
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

from cnnvis_cli.errors import CnnvisError, Stopped, StorageError, TooManyUnreadable, UsageError
from cnnvis_cli.histogram import BINS, LEVELS
from cnnvis_cli.network import network, tally
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.run.merge import merge
from cnnvis_cli.stages.run.status import status
from cnnvis_cli.stages.topk import job
from cnnvis_cli.store import lock
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


class Recorded(NamedTuple):
    """One image's strongest place in a channel, in the order of the contract."""

    activation: float
    image: int
    row: int
    column: int

    @property
    def key(self) -> tuple[float, int, int, int]:
        return -self.activation, self.image, self.row, self.column


def maps_of(path: Path, function: str = "exact") -> Maps:
    """Return every layer's own output for one image, by plain torch."""
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


def strongest(maps: list[tuple[int, Maps]], alias: str, channel: int, k: int) -> list[Recorded]:
    """Return the k strongest places of a channel, one per image, NaN left out."""
    seen = []
    for image, layers in maps:
        places = [
            Recorded(float(value), image, row, column)
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
        assert (attributes["precision"], attributes["decode"]) == ("float32", "exact")
        path = file["images/path"].dtype
        assert h5py.check_string_dtype(path) == ("utf-8", len("class2/broken.jpg"))
        shapes: dict[str, tuple[tuple[int, ...], str]] = {
            "images/label": ((40,), "int32"),
            "images/skipped": ((40,), "bool"),
            "images/size": ((40,), "int64"),
            "images/offset": ((40,), "int64"),
            "images/crc": ((40,), "uint32"),
            "bins/edges": ((BINS + 1,), "float64"),
            "bins/levels": ((len(LEVELS),), "float64"),
        }
        for alias, channels in CHANNELS.items():
            shapes |= {
                f"layers/{alias}/activation": ((channels, K), "float32"),
                f"layers/{alias}/image": ((channels, K), "int64"),
                f"layers/{alias}/position": ((channels, K, 2), "int32"),
                f"layers/{alias}/box": ((channels, K, 4), "int32"),
            } | {
                f"layers/{alias}/stats/{name}": ((channels,), "float64")
                for name in ("mean", "std", "max", "active", "selectivity")
            }
            shapes |= {
                f"layers/{alias}/stats/dead": ((channels,), "bool"),
                f"layers/{alias}/stats/class": ((channels,), "int32"),
                f"layers/{alias}/stats/quantiles": ((channels, len(LEVELS)), "float64"),
                f"layers/{alias}/histogram": ((channels, BINS), "int64"),
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


def alike(one: Path, other: Path) -> None:
    """Two runs came to the same bytes."""
    for name in ("topk.h5", "skipped.tsv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("change", [{"workers": 1}, {"workers": 4}, {"device": "cpu,cpu"}], ids=str)
def test_worker_processes_change_no_byte(
    change: dict[str, Any], do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags | {"topk__min": True})
    do("topk", **flags | {"topk__min": True, "run": str(tmp_path / "other")} | change)
    alike(tmp_path / "run", tmp_path / "other")


def test_a_process_that_loads_the_network_anew_changes_no_byte(
    do: Callable[..., None],
    flags: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on several GPUs, where nothing can be inherited."""
    do("topk", **flags)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)  # two each, so they are not forked
    monkeypatch.syspath_prepend(".")
    do("topk", **flags | {"run": str(tmp_path / "other"), "workers": 2})
    alike(tmp_path / "run", tmp_path / "other")


def join(runs: list[Path], run: Path) -> None:
    """`cnnvis merge` of runs of the network of whole numbers."""
    plan = Plan.make(None, {"run": str(run), "trust_code": True, "topk__max_unreadable": 0.1})
    merge(runs, plan, Report(quiet=True))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_merge_to_the_same_bytes_in_any_order(
    count: int, do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    shards = [tmp_path / f"shard{i}" for i in range(1, count + 1)]
    for i, shard in enumerate(shards, 1):
        do("topk", **flags | {"run": str(shard), "shard": f"{i}/{count}"})
        assert not (shard / "topk.h5").exists()
    join(shards[::-1] + shards[:1], tmp_path / "merged")  # one of them twice
    alike(tmp_path / "run", tmp_path / "merged")
    join(shards, tmp_path / "merged")  # finished: nothing to do


def test_shards_that_count_from_zero_are_the_same_ones(flags: dict[str, Any]) -> None:
    for pieces in (0, 3, 8, 100):
        from_one = [Plan(shard=f"{i}/3").share(pieces) for i in (1, 2, 3)]
        from_zero = [Plan(shard=f"{i}/3").share(pieces) for i in (1, 2, 0)]
        assert from_one == from_zero
        assert [n for share in from_one for n in share] == list(range(pieces))
    for wrong in ("4/3", "1", "1/0", "0/0", "a/b", "-1/3", "1/3/5"):
        with pytest.raises(UsageError, match="--shard"):
            Plan.make(None, flags | {"shard": wrong})


def test_shards_may_share_one_directory(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    other = flags | {"run": str(tmp_path / "other")}
    for i in (2, 3, 1):
        do("topk", **other | {"shard": f"{i}/3"})
        assert not (tmp_path / "other" / "topk.h5").exists()
    join([tmp_path / "other"], tmp_path / "other")
    alike(tmp_path / "run", tmp_path / "other")
    do("topk", **other)  # finished: what was left for merging goes
    assert not (tmp_path / "other" / "parts").exists()
    alike(tmp_path / "run", tmp_path / "other")


def test_a_run_in_one_piece_takes_over_what_shards_have_left(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    other = flags | {"run": str(tmp_path / "other")}
    do("topk", **other | {"shard": "2/3"})
    do("topk", **other)
    alike(tmp_path / "run", tmp_path / "other")


def test_a_finished_shard_returns_at_once_and_changes_no_byte(
    do: Callable[..., None],
    flags: dict[str, Any],
    snapshot: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    do("topk", **flags | {"shard": "2/3"})
    before = snapshot(tmp_path / "run")
    do("topk", **flags | {"shard": "2/3"})
    assert snapshot(tmp_path / "run") == before


def test_two_shards_work_in_one_directory_but_not_twice_on_one(
    do: Callable[..., None],
    flags: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    do("topk", **flags | {"shard": "1/3"})
    with Run(tmp_path / "run").lock("2/3"):
        monkeypatch.setattr(lock, "_open", {})  # as another process would see it
        do("topk", **flags | {"shard": "3/3"})
        with pytest.raises(Stopped, match="in use"):
            do("topk", **flags | {"shard": "2/3"})


def test_a_missing_shard_is_named(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    for i in (1, 3):
        do("topk", **flags | {"run": str(tmp_path / f"shard{i}"), "shard": f"{i}/3"})
    with pytest.raises(CnnvisError, match="part 1 of 0 to 4 is missing"):
        join([tmp_path / "shard1", tmp_path / "shard3"], tmp_path / "merged")
    assert not (tmp_path / "merged" / "topk.h5").exists()


def test_shards_of_different_plans_are_refused(
    do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    for i, k in ((1, 3), (2, 4)):
        change = {"run": str(tmp_path / f"shard{i}"), "shard": f"{i}/2", "topk__k": k}
        do("topk", **flags | change)
    with pytest.raises(UsageError, match=r"different plans: k is 3 there, 4 here"):
        join([tmp_path / "shard1", tmp_path / "shard2"], tmp_path / "merged")
    with pytest.raises(UsageError, match="holds no shard"):
        join([tmp_path], tmp_path / "merged")


def test_the_lowest_places_are_kept_on_request(
    do: Callable[..., None], flags: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    do("topk", **flags | {"topk__min": True})
    bad = {"class2/broken.jpg", "class3/empty.png"}
    maps = [
        (i, {alias: -values for alias, values in maps_of(folder / path).items()})
        for i, path in enumerate(files_of(folder))
        if path not in bad
    ]
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        for alias in LAYERS:
            group = file["layers"][alias]["min"]
            for channel in range(CHANNELS[alias]):
                wanted = strongest(maps, alias, channel, K)
                assert group["activation"][channel].tolist() == [-s.activation for s in wanted]
                assert group["image"][channel].tolist() == [s.image for s in wanted]
                assert group["position"][channel].tolist() == [[s.row, s.column] for s in wanted]


def test_selectivity_and_dead_channels(
    do: Callable[..., None], flags: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    do("topk", **flags)
    paths = [p for p in files_of(folder) if p not in ("class2/broken.jpg", "class3/empty.png")]
    labels = np.array([int(p[5]) for p in paths])
    maps = [maps_of(folder / path) for path in paths]
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        for alias in LAYERS:
            stats = file["layers"][alias]["stats"]
            rectified = np.stack([np.maximum(m[alias], 0).mean(axis=(1, 2)) for m in maps])
            means = np.stack([rectified[labels == c].mean(axis=0) for c in range(4)])
            best = np.sort(means, axis=0)
            others = best[:3].mean(axis=0)
            dead = ~(rectified > 0).any(axis=0)
            with np.errstate(invalid="ignore"):
                wanted = (best[3] - others) / (best[3] + others)
            np.testing.assert_array_equal(stats["dead"], dead)
            np.testing.assert_allclose(stats["selectivity"], np.where(dead, np.nan, wanted))
            assert stats["class"][()].tolist() == np.where(dead, -1, means.argmax(axis=0)).tolist()
        assert file["layers/conv1/stats/dead"][4]  # the channel that is never on


def test_sizes_and_checksums_of_what_was_read(
    do: Callable[..., None], flags: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    do("topk", **flags)
    contents = [(folder / path).read_bytes() for path in files_of(folder)]
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        assert file["images/size"][()].tolist() == [len(content) for content in contents]
        assert file["images/crc"][()].tolist() == [zlib.crc32(content) for content in contents]


@pytest.mark.parametrize("change", [{"topk__precision": "bf16"}, {"topk__decode": "fast"}], ids=str)
def test_another_arithmetic_or_decoder_belongs_to_the_plan(
    change: dict[str, Any], do: Callable[..., None], flags: dict[str, Any], tmp_path: Path
) -> None:
    do("topk", **flags)
    with pytest.raises(UsageError, match="another plan"):
        do("topk", **flags | change)
    do("topk", **flags | change | {"run": str(tmp_path / "other")})
    with h5py.File(tmp_path / "other" / "topk.h5") as file:
        (name, value) = next(iter(change.items()))
        assert file.attrs[name.removeprefix("topk__")] == value
        first = file["layers/conv1/activation"][()]
    with h5py.File(tmp_path / "run" / "topk.h5") as file:
        exact = file["layers/conv1/activation"][()]
    np.testing.assert_allclose(first, exact, rtol=0.02, atol=8)
    if "topk__decode" in change:  # these images are no JPEGs
        np.testing.assert_array_equal(first, exact)


def test_tf32_is_refused_on_a_cpu(do: Callable[..., None], flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="tf32"):
        do("topk", **flags | {"topk__precision": "tf32"})


@pytest.mark.parametrize(("moments", "parts"), [(1, 0), (3, 1), (7, 2), (8, 3)])
def test_an_interrupted_run_carries_on_to_the_same_bytes(
    moments: int,
    parts: int,
    do: Callable[..., None],
    flags: dict[str, Any],
    interrupted: Callable[[int], Any],
    tmp_path: Path,
) -> None:
    do("topk", **flags)  # batches of 4 images, two a part: five parts
    other = flags | {"run": str(tmp_path / "other")}
    with pytest.raises(Stopped):
        do("topk", interrupted(moments), **other)
    assert not (tmp_path / "other" / "topk.h5").exists()
    kept = sorted((tmp_path / "other" / "parts").rglob("*.h5"))
    assert len(kept) == parts
    before = [path.stat().st_mtime_ns for path in kept]
    with pytest.raises(Stopped):
        do("topk", interrupted(0), **other)
    assert [path.stat().st_mtime_ns for path in kept] == before  # nothing was done twice
    do("topk", **other)
    alike(tmp_path / "run", tmp_path / "other")
    assert not (tmp_path / "other" / "parts").exists()


@pytest.mark.parametrize(
    ("moments", "names"),
    [
        (6, "000000"),
        (14, "000000-000001 000002"),
        (18, "000000-000003"),
        (26, "000000-000003 000004-000005"),
    ],
)
def test_joined_parts_change_no_byte(
    moments: int,
    names: str,
    do: Callable[..., None],
    photographs: Callable[..., Path],
    interrupted: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sums of the bundled network are rounded, so that their order would show."""
    images = photographs(Path("many"), 21, classes=3)
    flags = {"model": "demo", "dataset": str(images), "batch_size": 1, "workers": 0}
    flags |= {"device": "cpu", "topk__min": True, "topk__k": 4}
    monkeypatch.setattr(job, "GROUPS", ())
    do("topk", run="plain", **flags)
    monkeypatch.setattr(job, "GROUPS", (2, 4))
    with pytest.raises(Stopped):
        do("topk", interrupted(moments), run="joined", **flags)  # parts of three images: seven
    kept = sorted(path.stem for path in Path("joined/parts").rglob("*.h5"))
    assert kept == names.split()
    ended = [name for name in names.split() if name]
    done = sum(int(name[-6:]) - int(name[:6]) + 1 for name in ended)
    assert status(Path("joined")).rows[0].done == 3 * done
    do("topk", run="joined", **flags)
    alike(Path("plain"), Path("joined"))


def test_shards_whose_parts_are_joined_and_overlap(
    do: Callable[..., None],
    photographs: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = photographs(Path("many"), 21, classes=3)
    flags = {"model": "demo", "dataset": str(images), "batch_size": 1, "workers": 0}
    flags |= {"device": "cpu"}
    monkeypatch.setattr(job, "GROUPS", (2, 4))
    do("topk", run="plain", **flags)
    runs = []
    for shard in ("1/2", "2/2", "2/3"):
        runs.append(Path(shard.replace("/", "of")))
        do("topk", run=str(runs[-1]), shard=shard, **flags)
    merge(runs, Plan.make(None, {"run": "merged"}), Report(quiet=True))
    alike(Path("plain"), Path("merged"))


def test_a_damaged_group_is_made_again(
    do: Callable[..., None],
    photographs: Callable[..., Path],
    interrupted: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = photographs(Path("many"), 12)
    flags = {"model": "demo", "dataset": str(images), "batch_size": 1, "workers": 0}
    flags |= {"device": "cpu"}
    monkeypatch.setattr(job, "GROUPS", (2, 4))
    do("topk", run="plain", **flags)
    with pytest.raises(Stopped):
        do("topk", interrupted(14), run="joined", **flags)
    (group,) = Path("joined/parts").rglob("000000-000003.h5")
    content = bytearray(group.read_bytes())
    content[-1] ^= 1
    group.write_bytes(content)
    do("topk", run="joined", **flags)
    alike(Path("plain"), Path("joined"))


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
    note = Run.note

    def full(run: Run, section: str, record: Any) -> None:
        if run.topk.exists():
            raise StorageError("disk full")
        note(run, section, record)

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


@pytest.mark.parametrize("model", ["tinynet:exact", "squeezenet1_0"])
def test_rectifying_on_the_way_changes_no_byte(
    model: str,
    do: Callable[..., None],
    flags: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = flags | {"model": model, "weights": "random"}
    if model != "tinynet:exact":
        settings |= {"preprocessing__resize": 64, "preprocessing__crop": 64}
    do("topk", **settings)
    monkeypatch.setattr(network, "rectifiers", lambda *_: {})
    do("topk", **settings | {"run": str(tmp_path / "other")})
    alike(tmp_path / "run", tmp_path / "other")


def test_without_numba_it_is_only_slower(
    do: Callable[..., None],
    flags: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    do("topk", **flags | {"topk__min": True})
    monkeypatch.setattr(tally, "load_loops", lambda: None)
    do("topk", **flags | {"topk__min": True, "run": str(tmp_path / "other")})
    with (
        h5py.File(tmp_path / "run" / "topk.h5") as one,
        h5py.File(tmp_path / "other" / "topk.h5") as other,
    ):
        names: list[str] = []
        one["layers"].visit(names.append)
        for name in (n for n in names if isinstance(one["layers"][n], h5py.Dataset)):
            np.testing.assert_allclose(other["layers"][name], one["layers"][name], rtol=1e-6)
