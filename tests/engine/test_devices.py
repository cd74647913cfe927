"""Devices: which are chosen, what is said of them, and what their errors mean."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnvis_cli.ascent.objectives import Objective
from cnnvis_cli.dataset.batches import Batches
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.engine import (
    Emit,
    Notice,
    TaskDone,
    WorkerSlot,
    choose_devices,
    devices,
    limit_to_memory,
    remark_on_auto,
    resolve_precision,
    run_tasks,
    worker_slots,
)
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.settings import OptimizePlan, Plan
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.optimize.setup import LayerSetup
from cnnvis_cli.stages.optimize.worker import OptimizeJob, check_pass
from cnnvis_cli.stages.topk import worker as scanning

Call = Callable[..., Any]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FRESH, OTHER = WorkerSlot(CPU, 1, 0, fresh=True), WorkerSlot(CPU, 1, 3, fresh=True)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Return a function that makes torch see so many GPUs."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        devices._cuda_found.cache_clear()
        devices._gpus.cache_clear()

    yield see
    devices._cuda_found.cache_clear()
    devices._gpus.cache_clear()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver's tool that shows one card."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA Test Card'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("auto", ["cuda:0"]),
        ("cuda", ["cuda:0"]),
        ("cuda:2", ["cuda:2"]),
        ("cuda:0, cuda:2", ["cuda:0", "cuda:2"]),
        ("cuda:all", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cpu", ["cpu"]),
    ],
)
def test_every_gpu_has_its_index(names: str, found: list[str], gpus: Call) -> None:
    gpus(3)
    assert [str(device) for device in choose_devices(names)] == found


@pytest.mark.parametrize("names", ["cuda:3", "cuda:x", "cuda:-1", "gpu", "", "mps", "cpu,cuda"])
def test_a_device_that_is_not_there_is_refused(names: str, gpus: Call) -> None:
    gpus(3)
    with pytest.raises(UsageError, match="--device"):
        choose_devices(names)


def test_auto_says_that_it_takes_one_gpu_of_several(gpus: Call) -> None:
    gpus(8)
    assert re.search(r"cuda:0, one of 8 GPUs.*cuda:all", remark_on_auto("auto") or "")
    assert remark_on_auto("cuda:0") is None
    gpus(1)
    assert remark_on_auto("auto") is None


def test_auto_says_why_it_takes_the_cpu_beside_a_gpu(
    gpus: Call, driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(0)
    assert choose_devices("auto") == (CPU,)
    assert re.search("on the CPU, since torch cannot use NVIDIA Test", remark_on_auto("auto") or "")
    with pytest.raises(UsageError, match="torch cannot use NVIDIA Test Card"):
        choose_devices("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in (remark_on_auto("auto") or "")


def test_without_a_gpu_auto_has_nothing_to_say(
    gpus: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus(0)
    assert remark_on_auto("auto") is None
    with pytest.raises(UsageError, match="there is no CUDA device here"):
        choose_devices("cuda:all")


def test_a_command_passes_the_remark_on_once(
    gpus: Call, driver: None, plans: None, cnnvis: Call
) -> None:
    gpus(0)
    told = cnnvis("run exact.toml --device auto --run run")
    assert told.err.count("computing on the CPU, since") == 1


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDNN_BACKEND_API_FAILED: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    MemoryError(),
]
LOST = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]


def test_errors_of_memory_are_none_of_the_device() -> None:
    assert all(devices.is_about_memory(error) and not devices.is_lost(error) for error in MEMORY)
    assert all(devices.is_lost(error) and not devices.is_about_memory(error) for error in LOST)
    other = [RuntimeError("shape mismatch"), ValueError("CUDA error"), CnnvisError("CUDA error")]
    assert not any(devices.is_lost(error) or devices.is_about_memory(error) for error in other)


def test_a_pass_is_in_float32_but_where_it_is_asked_for() -> None:
    """And torch has no advice to give: warnings are errors."""
    choose_devices("cpu")
    backends: Any = torch.backends
    matmul, modern = backends.cuda.matmul, hasattr(backends.cuda.matmul, "fp32_precision")
    convolution = backends.cudnn.conv if modern else backends.cudnn
    name, on, off = ("fp32_precision", "tf32", "ieee") if modern else ("allow_tf32", True, False)
    assert (getattr(convolution, name), getattr(matmul, name)) == (off, off)
    with devices.tensor_cores("tf32", GPU):
        assert (getattr(convolution, name), getattr(matmul, name)) == (on, off)
    assert getattr(convolution, name) == off
    with devices.tensor_cores("bf16", GPU):
        assert getattr(convolution, name) == off


def test_ascents_on_a_gpu_are_in_tf32() -> None:
    assert resolve_precision(None, GPU) == "tf32"
    assert resolve_precision(None, CPU) == "float32"
    assert resolve_precision("float32", GPU) == "float32"
    with pytest.raises(UsageError, match="tf32"):
        resolve_precision("tf32", CPU)


@pytest.mark.parametrize(("gigabytes", "batch"), [(16, 32), (80, 128), (1, 2)])
def test_a_batch_fits_the_card(gigabytes: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = gigabytes << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    vgg = 54 << 20  # bytes of its maps for one image
    assert limit_to_memory(128, vgg, GPU) == batch
    assert limit_to_memory(128, vgg, CPU) == 128


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("wrong", [0.0, 1.6, -1.0])
def test_a_pass_with_a_wrong_gradient_is_refused(
    precision: str, wrong: float, tmp_path: Path
) -> None:
    settings: Any = {"optimize": OptimizePlan(precision=precision)}  # type: ignore[arg-type]
    plan = Plan(model="demo", device="cpu", run=str(tmp_path), **settings)
    network = load_network(plan)
    layer = network.layer("conv3")
    setup = LayerSetup(layer, network.canvas(layer), Objective(), 4)
    check_pass(OptimizeJob(plan, setup, network), network)

    class Wrong(OptimizeJob):
        def evaluate(self, network: Network, size: int) -> Any:
            right = OptimizeJob.evaluate(self, network, size)

            def evaluate(x: torch.Tensor, targets: torch.Tensor) -> Any:
                value, leads, gradient = right(x, targets)
                return value, leads, gradient * wrong

            return evaluate

    with pytest.raises(CnnvisError, match="conv3: on its receptive field"):
        check_pass(Wrong(plan, setup, network), network)


# -- processes that lose their device -----------------------------------------------------------


def trouble(folder: Path, worker_slot: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
    """With three decoders it never takes any work; the others lose their device once."""
    if worker_slot.decoders == 3:
        raise RuntimeError("CUDA error: device not ready for anything")
    for number in numbers:
        if number == 2 and not (folder / "lost").exists():
            (folder / "lost").touch()
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore lines")
        (folder / f"piece{number}").touch()
        emit(TaskDone(number))


def pieces(folder: Path) -> int:
    return len(list(folder.glob("piece*")))


def test_the_reason_why_a_device_was_lost_reaches_the_user(tmp_path: Path) -> None:
    heard: list[Any] = []
    run_tasks(functools.partial(trouble, tmp_path), [FRESH] * 2, range(6), heard.append)
    assert pieces(tmp_path) == 6
    (notice,) = [message for message in heard if isinstance(message, Notice)]
    assert "(CUDA error: uncorrectable ECC error encountered)" in notice.text


def test_a_device_that_cannot_begin_is_left_out(tmp_path: Path) -> None:
    heard: list[Any] = []
    run_tasks(functools.partial(trouble, tmp_path), [FRESH, OTHER], range(12), heard.append)
    assert pieces(tmp_path) == 12


def test_where_no_device_can_begin_it_is_said_why(tmp_path: Path) -> None:
    work = functools.partial(trouble, tmp_path)
    with pytest.raises(CnnvisError, match=r"3 times before .*device not ready"):
        run_tasks(work, [OTHER, OTHER], range(4), lambda _: None)


# -- shared memory ------------------------------------------------------------------------------


def test_images_come_through_pipes_where_shared_memory_is_short(
    plans: None, cnnvis: Call, results: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_lane(*_: Any, **__: Any) -> list[WorkerSlot]:
        return [WorkerSlot(CPU, 1, 2)]

    monkeypatch.setattr("cnnvis_cli.stages.common.session.Session.pool", on_a_lane)
    cnnvis("topk images -c exact.toml --run plenty --workers 2")
    monkeypatch.setattr(scanning, "shared_memory", lambda: 1 << 10)
    told = cnnvis("topk images -c exact.toml --run short --workers 2")
    assert re.search(r"/dev/shm has 0 MB free .*--shm-size", told.err)
    assert results(Path("short")) == results(Path("plenty"))


def test_what_comes_through_pipes_is_the_same(photographs: Call, tmp_path: Path) -> None:
    manifest = Manifest.scan(photographs(tmp_path / "images", 10, classes=2))
    shape = Preprocessing(resize=32, crop=(32, 32))
    ways = [Batches(manifest, shape, 4, 2, pipes=pipes).read(range(3)) for pipes in (False, True)]
    for shared, piped in zip(*ways, strict=True):
        assert torch.equal(shared.pixels, piped.pixels)
        assert np.array_equal(shared.crcs, piped.crcs)


def test_free_shared_memory_is_that_of_its_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    import sys

    machine = sys.modules["cnnvis_cli.engine.slots"]
    assert worker_slots([CPU], 1, 1)
    assert machine.shared_memory() <= shutil.disk_usage("/dev/shm").total
    monkeypatch.setattr(machine, "SHARED", Path("/does/not/exist"))
    assert machine.shared_memory() == 1 << 62


# -- what was computed with ---------------------------------------------------------------------


def edit(path: Path, stage: str, name: str) -> None:
    record = json.loads(path.read_text())
    record[stage]["arithmetic"][0]["processor"] = name
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("same", [True, False])
def test_merge_says_where_shards_were_computed_in_other_ways(
    same: bool, plans: None, cnnvis: Call
) -> None:
    for i in (1, 2):
        cnnvis(f"topk images -c exact.toml --run part{i} --shard {i}/2")
    if not same:
        edit(next(Path("part2/shards").glob("2*.json")), "topk", "ANOTHER")
    told = cnnvis("merge part1 part2 --trust-code --run merged")
    assert ("last bits may differ" in told.err) is not same
    assert ("ANOTHER" in told.err) is not same


def test_a_run_that_goes_on_elsewhere_says_so(plans: None, cnnvis: Call) -> None:
    cnnvis("optimize -c exact.toml --run run --layer conv1")
    assert "other arithmetic" not in cnnvis("optimize -c exact.toml --run run --layer conv2").err
    edit(Path("run/run.json"), "optimize", "ANOTHER")
    told = cnnvis("optimize -c exact.toml --run run --layer fc3")
    assert re.search("optimize: goes on with other arithmetic.*ANOTHER", told.err)
    record = json.loads(Path("run/run.json").read_text())["optimize"]["arithmetic"]
    assert [each["processor"] == "ANOTHER" for each in record] == [True, False]
