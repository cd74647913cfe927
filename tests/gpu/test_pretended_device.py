"""Every command that computes, on a CUDA device that is not there (see `pretended`).

What CUDA refuses is refused, and values are computed on the CPU. A command must end with exit code
0 and nothing on stderr, use the device that was asked for, and find what it finds on the CPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.gpu.conftest import Done, Pretended

SPELLINGS = ("auto", "cuda", "cuda:1", "cuda:0,cuda:1")
USED = {"auto": {0}, "cuda": {0}, "cuda:1": {1}, "cuda:0,cuda:1": {0, 1}}
CLIMB = "optimize --model demo --batch-size 4 --step 50"
EXPECTED = ("--device auto:",)  # one of two devices is taken, and a line says so


class Case(NamedTuple):
    """Some commands in one run directory, and how far their results may differ from the CPU's.

    `apart` is the largest difference of an array, as a share of its largest number; 0 for the
    same bits. On the CPU `on_the_cpu` is run instead, if the CPU lacks the arithmetic.
    """

    lines: tuple[str, ...]
    devices: tuple[str, ...] = ("cuda:1",)  # for every run of the tests; the long one has more
    apart: float = 0.0
    on_the_cpu: tuple[str, ...] = ()
    pieces: bool = True  # there are enough tasks to share among several devices


# Blurs and Fourier transforms are other code on a CPU, and images are kept in half precision.
NEAR = 2e-3
BF16 = 5e-2

ALL_STYLES = "--style 1 --style 2 --style 3 --style 4 --style fourier --style natural"
CASES = {
    "styles": Case(
        (f"{CLIMB} {ALL_STYLES} --layer conv2 --units 0-8 --iterations 12 --precision float32",),
        ("auto", "cuda:1"),
        NEAR,
    ),
    "shared": Case(
        (f"{CLIMB} --style 3 --layer conv2 --units 0-15 --iterations 6 --precision float32",),
        ("cuda:0,cuda:1",),
        NEAR,
    ),
    "tf32": Case(
        (f"{CLIMB} --style 3 --layer conv3 --units 0-5 --iterations 8 --precision tf32",),
        (),
        NEAR,
        on_the_cpu=(f"{CLIMB} --style 3 --layer conv3 --units 0-5 --iterations 8",),
    ),
    "bf16": Case(
        (f"{CLIMB} {ALL_STYLES} --layer conv2 --units 0-2 --iterations 6 --precision bf16",),
        apart=BF16,
    ),
    "runs": Case(
        (
            f"{CLIMB} --style 3 --layer fc6 --units 0-3 --iterations 8 --runs 2 --diversity 0.1 "
            "--start uniform --precision float32",
        ),
        ("cuda",),
        NEAR,
    ),
    "objectives": Case(
        (
            f"{CLIMB} --style 3 --mean --layer conv2 --units 0-3 --iterations 4 "
            "--precision float32",
            f"{CLIMB} --style 3 --softmax --layer fc8 --units 0-3 --iterations 4 "
            "--precision float32",
            f"{CLIMB} --style 3 --sum 1+2 --sum 3-4 --layer conv4 --iterations 4 "
            "--precision float32",
        ),
        (),
        NEAR,
    ),
    "calibrated": Case(
        (
            "optimize --model demo --batch-size 4 --style 3 --layer conv2 --units 0-3 "
            "--iterations 8 --precision float32",
        ),
        apart=NEAR,
    ),
    "dead": Case(  # some units have no gradient, which is tested every 32 steps
        (f"{CLIMB} --style 3 --layer conv5 --units 0-9 --iterations 40 --precision float32",),
        (),
        5e-2,
    ),
    "topk": Case(
        ("topk {images} --model demo --batch-size 4 --workers 1",),
        ("auto",),
        1e-5,
    ),
    "topk min": Case(("topk {images} --model demo --batch-size 4 --workers 0 --min",), (), 1e-5),
    "topk bf16": Case(
        ("topk {images} --model demo --batch-size 4 --workers 0 --precision bf16",), (), BF16
    ),
    "project": Case(
        (
            "topk {images} --model demo --batch-size 4 --workers 0 -k 2",
            "project --layer conv2 --layer fc6 --units 0-3 --method deconv --method guided "
            "--method gradient",
        ),
        apart=1e-4,
    ),
    "search": Case(
        ("search --model demo --layer conv2 --units 0-1 --trials 3 --iterations 8",),
        (),
        pieces=False,
    ),
    "occlude": Case(("occlude {image} --model demo --size 20 --stride 20",), apart=1e-4),
    "saliency": Case(
        (
            "saliency {image} --model demo --save h5 --method gradient --method guided "
            "--method deconv --method gradcam --method smoothgrad --method integrated",
        ),
        apart=1e-3,
        pieces=False,
    ),
    "activations": Case(("activations {image} --model demo --save h5",), apart=1e-4, pieces=False),
    "filters": Case(("filters --model demo",), pieces=False),
    "bench optimize": Case(
        (
            "bench optimize --model demo --layer conv1 --batch-size 4 --rounds 1 --seconds 0.1 "
            "--style 3",
        ),
        pieces=False,
    ),
    "bench": Case(
        (
            "bench project --model demo --layer conv1 --units 0-3 --rounds 1 --seconds 0.1",
            "bench occlude --model demo --rounds 1",
            "bench activations --model demo --layer conv1 --rounds 1 --frames 8",
        ),
        (),
        pieces=False,
    ),
    "bench topk": Case(
        ("bench topk {images} --model demo --batch-size 4 --rounds 1 --seconds 0.1 --workers 1",),
        (),
        pieces=False,
    ),
}


def every() -> Iterator[Any]:
    for name, case in CASES.items():
        for device in SPELLINGS:
            marks = () if device in case.devices else pytest.mark.long
            yield pytest.param(name, device, marks=marks, id=f"{name} on {device}")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a dataset of photographs and one image to be shown."""
    folder = tmp_path_factory.mktemp("material")
    for number in range(10):
        coarse = np.random.default_rng(number).integers(0, 256, (7, 7, 3)).astype(np.uint8)
        path = folder / "images" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((150, 120), Image.Resampling.BICUBIC).save(path)
    shutil.copy(folder / "images" / "class0" / "0.png", folder / "image.png")
    return folder


@pytest.fixture
def carry_out(pretended: Pretended, material: Path) -> Callable[..., list[Done]]:
    """Return a function that runs commands on a device, in one run directory."""

    def do(lines: tuple[str, ...], device: str, run: Path, **how: Any) -> list[Done]:
        found = []
        for line in lines:
            given = line.format(images=material / "images", image=material / "image.png")
            place = f"--device {device} --run {run}"
            found.append(pretended.do(f"{given} {place}", **how))
            assert found[-1].code == 0, f"cnnvis {given} {place}: {found[-1].err}"
        return found

    return do


@pytest.fixture
def on_the_cpu(
    pretended: Pretended, carry_out: Callable[..., list[Done]], tmp_path: Path
) -> Callable[[str], Path]:
    """Return a function that returns a case's run directory on the CPU, made once."""

    def made(name: str) -> Path:
        if name not in pretended.done:
            case = CASES[name]
            run = pretended.logs / f"cpu {name}".replace(" ", "-")
            carry_out(case.on_the_cpu or case.lines, "cpu", run)
            pretended.done[name] = run
        return pretended.done[name]

    return made


@pytest.mark.parametrize(("name", "device"), list(every()))
def test_a_command_does_the_same_on_a_device(
    name: str,
    device: str,
    carry_out: Callable[..., list[Done]],
    on_the_cpu: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    case, run = CASES[name], tmp_path / "run"
    found = carry_out(case.lines, device, run)
    for done in found:
        unexpected = [
            line for line in done.err.splitlines() if not any(word in line for word in EXPECTED)
        ]
        assert unexpected == []
    counts = sum((done.told.counts for done in found), start=found[0].told.counts.__class__())
    used = {index for index in (0, 1) if counts[f"launches cuda:{index}"]}
    if case.pieces:
        assert used == USED[device]
    elif name != "filters":
        assert used
        assert used <= USED[device]
    assert counts["p2p"] == 0
    if "bench" not in name:
        check_alike(on_the_cpu(name), run, case.apart)


def check_alike(cpu: Path, cuda: Path, apart: float) -> None:
    """Compare all arrays and pictures of two run directories."""
    names = files(cpu, "*.h5")
    assert names == files(cuda, "*.h5")
    for name in names:
        here, there = arrays(cuda / name), arrays(cpu / name)
        assert here.keys() == there.keys()
        for key, array in there.items():
            check_near(here[key], array, apart, f"{name} {key}")
    pictures = files(cpu, "*.png")
    assert pictures == files(cuda, "*.png")
    for name in pictures:
        image, other = (np.asarray(Image.open(run / name), np.float32) for run in (cuda, cpu))
        assert image.shape == other.shape
        assert np.abs(image - other).mean() < 1, name  # grey level


def files(run: Path, pattern: str) -> list[Path]:
    """Return the results of a run by name, without parts, whose names depend on the device."""
    found = (path.relative_to(run) for path in run.rglob(pattern))
    return sorted(path for path in found if path.parts[0] != "parts")


def arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of numbers of an HDF5 file by their names."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub":
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def check_near(here: Any, there: Any, apart: float, name: str) -> None:
    """Compare numbers; if they may differ, most integers (places, steps) must still be equal."""
    assert here.shape == there.shape, name
    if here.dtype.kind != "f" or not apart:
        share = float(np.mean(here == there)) if here.size else 1.0
        if here.dtype.kind == "f":
            share = float(np.mean((here == there) | (np.isnan(here) & np.isnan(there))))
        assert share == 1 if not apart else share > 0.8, f"{name}: {share:.0%} are equal"
        return
    assert np.array_equal(np.isnan(here), np.isnan(there)), name
    if here.dtype == np.float16:
        apart = max(apart, 2.0**-11)  # where a number lies between two that can be stored
    largest = float(np.nanmax(np.abs(there), initial=0)) or 1.0
    found = float(np.nanmax(np.abs(here.astype("f8") - there), initial=0)) / largest
    assert found <= apart, f"{name}: {found:.1e} of the largest apart"


def test_what_was_made_on_a_device_is_verified_there(
    on_the_cpu: Callable[[str], Path], pretended: Pretended
) -> None:
    done = pretended.do(f"verify {on_the_cpu('project')} --device cuda:1")
    assert (done.code, done.err) == (0, "")


@pytest.mark.long
def test_devices_that_are_for_one_process_each(
    carry_out: Callable[..., list[Done]], tmp_path: Path
) -> None:
    """Only workers may use a device in exclusive-process mode."""
    line = f"{CLIMB} --style 3 --layer conv2 --units 0-15 --iterations 4"
    for device in ("cuda:0,cuda:1", "cuda:1"):
        carry_out(
            (line,), device, tmp_path / device.replace(":", "").replace(",", "-"), exclusive=True
        )


def test_memory_that_runs_out_is_explained(pretended: Pretended, tmp_path: Path) -> None:
    line = f"{CLIMB} --style 3 --layer conv2 --units 0-3 --iterations 4 --device cuda:0"
    done = pretended.do(f"{line} --run {tmp_path / 'run'}", free=10_000)
    assert done.code == 1
    assert "--batch-size" in done.err


LOSING = '''
"""A network that loses its device the first time: an index lies outside its tensor."""

from pathlib import Path

import torch
from torch import nn

import tinynet

MARK = Path({mark!r})


class Losing(nn.Module):
    def forward(self, x):
        if x.is_cuda and not MARK.exists():
            MARK.touch()
            far = torch.full((1,), 10**6, device=x.device)
            x = x + torch.zeros(1, device=x.device).index_select(0, far)
        return x


def network():
    return nn.Sequential(Losing(), *tinynet.exact())
'''


@pytest.mark.long
@pytest.mark.parametrize("device", ["cuda:1", "cuda:0,cuda:1"])
def test_a_lost_device_costs_a_process(device: str, pretended: Pretended, tmp_path: Path) -> None:
    """Another process goes on, also on a single device, and the reason is printed."""
    Path("losing.py").write_text(LOSING.format(mark=str(tmp_path / "mark")))
    own = "--model losing:network --trust-code --batch-size 4 --iterations 4"
    line = f"optimize {own} --layer conv1 --units 0-5 --device {device} --run {tmp_path / 'run'}"
    Path("plan.toml").write_text(
        "preprocessing = {resize = 32, crop = 32, mean = [120, 110, 100], std = [1, 1, 1]}\n"
    )
    done = pretended.do(f"{line} --config plan.toml")
    assert (tmp_path / "mark").exists()
    assert done.code == 0, done.err
    assert "device-side assert" in done.err
