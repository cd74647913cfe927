"""`topk --sample`: exact values of a sample that depends on the paths alone."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import Stopped
from cnnvis_cli.report import Report
from cnnvis_cli.store.sample_file import SampleFile

Call = Callable[..., Any]
MODULES = {"conv1": "0", "conv2": "3", "fc3": "6"}


def least_hashes(folder: Path, count: int) -> list[str]:
    paths = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    key = {path: hashlib.blake2b(path.encode(), digest_size=8).hexdigest() for path in paths}
    return sorted(sorted(paths, key=key.__getitem__)[:count])


@pytest.fixture
def folder(plans: None) -> Path:
    """20 photographs, one of them broken that is in the sample of 9."""
    folder = Path("images").absolute()
    (folder / least_hashes(folder, 9)[4]).write_bytes(b"no image")
    return folder


def largest(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Return each layer's largest values and their places in one image, by plain torch."""
    try:
        image = np.asarray(Image.open(path).convert("RGB"))
    except OSError:
        return None
    module: nn.Sequential = importlib.import_module("tinynet").exact().eval()
    x = torch.from_numpy(image - np.array([120, 110, 100], np.float32)).permute(2, 0, 1)[None]
    found = {}
    with torch.no_grad():
        for name, part in module.named_children():
            x = part(x)
            if name in MODULES.values():
                flat = x[0].reshape(x.shape[1], -1).numpy().copy()
                found[name] = flat.max(axis=1), flat.argmax(axis=1)
    return found


def test_the_file_is_what_a_scan_one_by_one_finds(folder: Path, cnnvis: Call) -> None:
    told = cnnvis("topk images -c exact.toml --run r", 3)  # one of 20 images is unreadable
    assert "sample.h5: 9 images, 1 skipped, 3 layers" in told.out
    paths = least_hashes(folder, 9)
    wanted = [largest(folder / path) for path in paths]
    with h5py.File("r/sample.h5") as file, h5py.File("r/topk.h5") as places:
        every = [path.decode() for path in places["images/path"][()]]
        assert [p.decode() for p in file["images/path"][()]] == paths
        assert [every[i] for i in file["images/index"]] == paths
        assert file["images/skipped"][()].tolist() == [each is None for each in wanted]
        for name in ("label", "crc"):
            chosen = places["images"][name][()][file["images/index"][()]]
            assert file["images"][name][()].tolist() == chosen.tolist()
        for alias, module in MODULES.items():
            group = file["layers"][alias]
            value, place, scale = (group[name][()] for name in ("value", "place", "scale"))
            assert (value.dtype, place.dtype) == (np.float16, np.int32)
            assert dict(group.attrs).keys() == dict(places["layers"][alias].attrs).keys()
            for row, each in enumerate(wanted):
                if each is None:
                    assert np.isnan(value[row]).all()
                    assert (place[row] == -1).all()
                    continue
                whole = each[module][0]
                rounded = (whole / scale).astype(np.float16)
                assert value[row].tolist() == rounded.tolist()
                assert place[row].tolist() == each[module][1].tolist()


def test_a_finished_run_gets_only_the_sample(folder: Path, cnnvis: Call, results: Call) -> None:
    cnnvis("topk images -c exact.toml --run together --max-unreadable 1")
    Path("plain.toml").write_text(Path("exact.toml").read_text().replace(", sample = 9", ""))
    cnnvis("topk images -c plain.toml --run apart --max-unreadable 1")
    before = Path("apart/topk.h5").read_bytes()
    assert not Path("apart/sample.h5").exists()
    told = cnnvis("topk images -c exact.toml --run apart --max-unreadable 1")
    assert "apart/topk.h5 is complete: apart/sample.h5 takes a second pass" in told.err
    assert Path("apart/topk.h5").read_bytes() == before
    assert results(Path("apart")) == results(Path("together"))
    cnnvis("topk images -c plain.toml --run apart --max-unreadable 1")  # which does not ask for it
    assert results(Path("apart")) == results(Path("together"))


def test_a_second_pass_reads_only_batches_with_chosen_images(plans: None, cnnvis: Call) -> None:
    Path("plain.toml").write_text(Path("exact.toml").read_text().replace(", sample = 9", ""))
    cnnvis("topk images -c plain.toml --run r")
    cnnvis("topk images -c plain.toml --run whole --sample 1")
    (chosen,) = least_hashes(Path("images"), 1)
    paths = sorted(p.relative_to("images").as_posix() for p in Path("images").rglob("*.png"))
    batch = paths.index(chosen) // 4
    for path in paths[: batch * 4] + paths[batch * 4 + 4 :]:  # sizes stay, as the list has them
        Path("images", path).write_bytes(b"!" * Path("images", path).stat().st_size)
    cnnvis("topk images -c plain.toml --run r --sample 1")
    assert Path("r/sample.h5").read_bytes() == Path("whole/sample.h5").read_bytes()
    table = cnnvis("status r").out
    assert [line.split()[:3] for line in table.splitlines() if "topk" in line] == [
        ["topk", "images", "20/20"],
        ["topk", "sample", "20/20"],
    ]


def test_stopped_at_any_moment_and_carried_on_it_is_the_same(
    plans: None,
    cnnvis: Call,
    do: Call,
    exact: dict[str, Any],
    interrupted: Callable[[int], Report],
    results: Call,
) -> None:
    flags = exact | {"dataset": "images", "topk__k": 3, "topk__sample": 9, "run": "straight"}
    do("topk", **flags)
    do("topk", **flags | {"run": "spread", "workers": 2})
    wanted = results(Path("straight"))
    assert results(Path("spread")) == wanted
    for moment in range(1, 12, 2):
        again = flags | {"run": f"stopped{moment}"}
        with suppress(Stopped):
            do("topk", interrupted(moment), **again)
        do("topk", **again)
        assert results(Path(again["run"])) == wanted, moment


def test_another_sample_is_refused(plans: None, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run r")
    told = cnnvis("topk images -c exact.toml --run r --sample 5", 2)
    assert "r/sample.h5 belongs to another plan: sample is 9 there, 5 here" in told.err
    whole = cnnvis("topk images -c exact.toml --run all --sample 20")
    assert cnnvis("topk images -c exact.toml --run all --sample 9999").out == whole.out


def test_an_image_that_has_changed_since_is_refused_by_name(plans: None, cnnvis: Call) -> None:
    Path("plain.toml").write_text(Path("exact.toml").read_text().replace(", sample = 9", ""))
    cnnvis("topk images -c plain.toml --run r")
    chosen = Path("images", least_hashes(Path("images"), 9)[3])
    old = chosen.read_bytes()
    chosen.write_bytes(old[:-1] + b"!")  # the same size: the list of images does not show it
    told = cnnvis("topk images -c exact.toml --run r -q", 1)
    assert f"{chosen}: has changed since r/topk.h5 was made" in told.err
    assert not Path("r/sample.h5").exists()
    chosen.write_bytes(old)
    cnnvis("topk images -c exact.toml --run r")
    assert len(SampleFile(Path("r/sample.h5")).images().index) == 9


def test_shards_with_different_samples_are_not_merged(plans: None, cnnvis: Call) -> None:
    cnnvis("topk images -c exact.toml --run a --shard 1/2")
    cnnvis("topk images -c exact.toml --run b --shard 2/2 --sample 5")
    told = cnnvis("merge a b --trust-code --run whole", 2)
    assert "their samples have 5 and 9 images" in told.err
    shutil.rmtree("whole", ignore_errors=True)


def test_a_smaller_sample_is_part_of_a_larger_one(plans: None) -> None:
    manifest = Manifest.scan(Path("images"))
    samples = [set(manifest.sample(count).tolist()) for count in range(1, 23)]
    for count, (small, large) in enumerate(itertools.pairwise(samples), 1):
        assert len(small) == min(count, 20)
        assert small <= large
    shutil.copytree("images/class1", "more/class1")  # the same paths in another order
    part = Manifest.scan(Path("more"))
    among = {part.path(i) for i in part.sample(5).tolist()}
    ranked = least_hashes(Path("more"), 5)
    assert among == set(ranked)
