"""A result under the right name that is of other weights, another layer, run or version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from cnnvis_cli import api
from cnnvis_cli.errors import UsageError
from cnnvis_cli.store.hdf5 import reading
from tests.sealing import altered

Cnnvis = Callable[..., Any]
ONES = ("optimized", "projected")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def run(made: Path, photographs: Callable[..., Path], cnnvis: Cnnvis) -> Path:
    """A run with two layers' results of each kind; made once."""
    if not (made / "r").exists():
        images = photographs(made / "images", 4, classes=2)
        plan = f'model = "demo"\ndataset = "{images}"\nlayer = ["conv1", "conv2"]\nunits = "0"\n'
        plan += "workers = 0\nbatch-size = 4\ntopk = {k = 2}\noptimize = {iterations = 2}"
        Path("plan.toml").write_text(f'{plan}\nstages = ["topk", "optimize", "project"]')
        cnnvis(f"run plan.toml --run {made / 'r'}")
    shutil.copytree(made / "r", "r")
    shutil.rmtree("r/receipts")
    return Path("r")


def alter(path: Path, **attributes: Any) -> None:
    """Change attributes of a file, and seal it again."""
    with altered(path) as file:
        for name, value in attributes.items():
            if value is None:
                del file.attrs[name]
            else:
                file.attrs[name] = value


def commands(kind: str) -> list[str]:
    """Return the commands that read files of a kind."""
    own = {
        "optimized": ("montage optimized --run r", "optimize --run r --layer conv2 --units 0,1"),
        "projected": ("montage top --run r", "project --run r --method guided --layer conv2"),
        "topk": ("filters --run r", "project --run r --layer conv1", "montage top --run r"),
    }
    joined = ["merge r --run whole"] if kind in ONES else []
    return [*own[kind], "gallery --run r", "status r", *joined]


@pytest.mark.parametrize("kind", ONES)
def test_a_file_of_another_layer_is_refused_naming_both(
    kind: str, run: Path, cnnvis: Cnnvis
) -> None:
    shutil.copy(run / kind / "conv1.h5", run / kind / "conv2.h5")
    for line in commands(kind):
        told = cnnvis(line, code=2).err
        assert f"{kind}/conv2.h5: does not belong" in told, line
        assert 'layer is "conv1" in the file, "conv2" in the run' in told, line
    assert f"{kind}/conv2.h5: does not belong" in cnnvis("verify r", code=1).out


CHANGES: dict[str, dict[str, Any]] = {
    "weights_sha256": {"weights_sha256": "1" * 64},
    "model": {"model": "alexnet"},
    "module": {"module": "features.7"},
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ONES)
def test_a_file_of_another_network_is_refused_naming_both(
    kind: str, name: str, run: Path, cnnvis: Cnnvis
) -> None:
    path = run / kind / "conv2.h5"
    alter(path, **CHANGES[name])
    there = str(CHANGES[name][name])[:20]
    for line in (commands(kind)[0], "gallery --run r", "status r"):
        told = cnnvis(line, code=2).err
        assert f"{path}: does not belong" in told
        assert f'{name} is "{there}' in told
    opened = api.open_run(run)["conv2"]
    with pytest.raises(UsageError, match="does not belong"):
        print(opened.styles, opened.methods)


@pytest.mark.parametrize("kind", [*ONES, "topk"])
def test_a_later_version_is_refused_naming_both(kind: str, run: Path, cnnvis: Cnnvis) -> None:
    path = run / "topk.h5" if kind == "topk" else run / kind / "conv2.h5"
    alter(path, version=7)
    for line in commands(kind):
        told = cnnvis(line, code=2).err
        assert f"{path.name}: is of version 7, and cnnvis " in told, line
        assert f"up to {2 if kind == 'topk' else 1};" in told, line
    assert "is of version 7" in cnnvis("verify r", code=1).out


def test_a_topk_of_another_dataset_is_refused(
    run: Path, cnnvis: Cnnvis, photographs: Callable[..., Path]
) -> None:
    photographs(Path("others"), 6)
    cnnvis("topk others --model demo --layer conv1 --workers 0 --run other")
    shutil.copy("other/topk.h5", run / "topk.h5")
    for line in commands("topk"):
        told = cnnvis(line, code=2).err
        assert "topk.h5: does not belong" in told, line
        assert "dataset is " in told


@pytest.mark.parametrize("kind", [*ONES, "topk"])
def test_what_a_file_or_a_run_does_not_state_is_no_obstacle(
    kind: str, run: Path, cnnvis: Cnnvis
) -> None:
    path = run / "topk.h5" if kind == "topk" else run / kind / "conv2.h5"
    alter(path, version=None, model=None, weights_sha256=None)
    record = json.loads((run / "run.json").read_text())
    del record["network"], record["dataset"]["digest"]
    (run / "run.json").write_text(json.dumps(record))
    cnnvis("status r")
    cnnvis(commands(kind)[0])


def test_a_file_that_belongs_is_compared_again_when_it_or_its_run_changes(run: Path) -> None:
    path = run / "optimized" / "conv2.h5"
    with reading(path, "optimized"):
        pass
    alter(path, model="alexnet")
    with pytest.raises(UsageError, match="belong"), reading(path, "optimized"):
        pass


@pytest.mark.parametrize("kind", ["topk", "optimized", "projected"])
def test_an_edit_without_a_new_seal_is_refused_by_every_reader(
    kind: str, run: Path, cnnvis: Cnnvis
) -> None:
    """Another number, with HDF5's own checksums right: as h5py writes it."""
    path = run / "topk.h5" if kind == "topk" else run / kind / "conv2.h5"
    with h5py.File(path, "r+") as file:
        array = {
            "topk": "layers/conv2/activation",
            "optimized": "natural/activation",
            "projected": "deconv/scale",
        }
        file[array[kind]][0, 0] += 1
    for command in commands(kind):
        told = cnnvis(command, code=2)
        assert f"{path}: is not as cnnvis wrote it" in told.err, command
        assert "put the original back" in told.err
    with pytest.raises(UsageError, match="seal is broken"), reading(path, kind):
        pass
