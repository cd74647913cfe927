"""Small test objects: folders of photographs, networks with exact numbers, runs to resume."""

from __future__ import annotations

import gc
import hashlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from cnnvis_cli.cli import _code
from cnnvis_cli.errors import Stopped
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.run.pipeline import STAGES

gc.freeze()  # the collector need not look through the libraries again and again

NETWORKS = '''
"""Networks for the tests; `exact` computes with whole numbers only, so no order changes a bit."""

import torch
from torch import nn


def _whole(module, seed):
    """Weights of -1, 0 and 1, few enough for every sum to stay below 2^24."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                part.weight.copy_(torch.randint(-1, 2, part.weight.shape, generator=generator))
                part.bias.copy_(torch.randint(-9, 10, part.bias.shape, generator=generator))
        last = module[-1].weight
        last *= torch.rand(last.shape, generator=generator) < 12 / last.shape[1]
        module[0].weight[2], module[0].bias[2] = 0, 3  # the same everywhere: nothing but ties
        module[0].weight[4], module[0].bias[4] = 0, -2  # and never on
    return module


def exact():
    return _whole(
        nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(8 * 7 * 7, 10),
        ),
        seed=1,
    )


def fragile():
    """A white image overflows two channels of the first layer, whose difference is then NaN.

    Every other image of the tests is dark enough for both channels to be off.
    """
    network = exact()
    with torch.no_grad():
        network[0].weight[:2] = 0
        network[0].weight[:2, :, 2, 2] = 8.5e35
        network[0].bias[:2] = -3.4e38
        network[3].weight[:, :2] = 0
        network[3].weight[:, 0, 1, 1] = 1
        network[3].weight[:, 1, 1, 1] = -1
    return network


def not_a_network():
    return "a string"
'''

EXACT: dict[str, Any] = {
    "model": "tinynet:exact",
    "trust_code": True,
    "preprocessing__resize": 32,
    "preprocessing__crop": 32,
    "preprocessing__mean": (120, 110, 100),
    "preprocessing__std": (1, 1, 1),
    "workers": 0,
    "batch_size": 4,
    "device": "cpu",
}


def photograph(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Return blobs of dark colours, (width, height) pixels, all different."""
    coarse = np.random.default_rng(seed).integers(0, 200, (7, 7, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def exact() -> dict[str, Any]:
    """Settings of the network of whole numbers, in the flags of a plan."""
    return dict(EXACT)


@pytest.fixture(autouse=True)
def tinynet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change to an empty folder that contains the module `tinynet`; keep the number of threads."""
    threads = torch.get_num_threads()
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "tinynet.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "tinynet", raising=False)
    monkeypatch.setattr("cnnvis_cli.store.cache.cache_folder", lambda: tmp_path / "cache")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photographs() -> Callable[..., Path]:
    """A function that fills a folder with class folders of photographs."""

    def fill(folder: Path, count: int, classes: int = 1, size: tuple[int, int] = (32, 32)) -> Path:
        for number in range(count):
            path = folder / f"class{number % classes}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(number, size).save(path)
        return folder

    return fill


@pytest.fixture
def do() -> Callable[..., None]:
    """A function that does one stage with these flags, as the command line does."""

    def run(stage: str, report: Report | None = None, **flags: Any) -> None:
        with open_session(Plan.make(None, flags), report or Report(quiet=True)) as session:
            STAGES[stage](session)

    return run


class Interrupted(Report):
    """A report that asks to stop at its n-th safe moment."""

    def __init__(self, moments: int) -> None:
        super().__init__(quiet=True)
        self.left = moments

    def check_stop(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped("told to stop")


@pytest.fixture
def interrupted() -> Callable[[int], Report]:
    """A function that returns a report which stops the work after so many safe moments."""
    return Interrupted


@pytest.fixture
def snapshot() -> Callable[..., dict[str, tuple[str, int]]]:
    """A function from a folder to the digest and modification time of each of its files.

    Of a lock file only the content counts, since every process there opens it.
    """

    def look(folder: Path) -> dict[str, tuple[str, int]]:
        return {
            str(path.relative_to(folder)): (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                0 if path.name.startswith(".lock") else path.stat().st_mtime_ns,
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return look


PLANS = {
    # whole numbers, computed in no time; but your own code has no receipts
    "exact": """
model = "tinynet:exact"
trust-code = true
preprocessing = {resize = 32, crop = 32, mean = [120, 110, 100], std = [1, 1, 1]}
optimize = {style = "3", iterations = 4, step = 1}
batch-size = 4
""",
    "demo": """
model = "demo"
optimize = {style = "3", iterations = 4, step = 1}
batch-size = 8
layer = ["conv1"]
units = "0-3"
""",
}
SHARED = """
device = "cpu"
workers = 0
topk = {k = 3, sample = 9}
stages = ["topk", "optimize", "project"]
"""


class Told(NamedTuple):
    """How a command ended and its output."""

    code: int
    out: str
    err: str


@pytest.fixture
def cnnvis(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Told]:
    """The command, in this process; it must end with this exit code."""

    def call(line: str, code: int = 0) -> Told:
        monkeypatch.setattr(sys, "argv", ["cnnvis", *shlex.split(line)])
        capfd.readouterr()
        told = Told(_code(), *capfd.readouterr())
        assert told.code == code, told
        assert len(told.err.splitlines()) <= (1 if code else 99), told.err
        return told

    return call


@pytest.fixture
def topk_run(cnnvis: Callable[..., Told], photographs: Callable[..., Path]) -> Path:
    """A run with the top-k of twelve photographs, one of them broken, in ``r``."""
    photographs(Path("images"), 12, size=(120, 130))
    broken = sorted(path for path in Path("images").rglob("*") if path.is_file())[3]
    broken.write_bytes(b"no image")
    cnnvis("topk images --model demo --layer conv1 --layer conv2 --workers 0 --run r", 3)
    return Path("r")


@pytest.fixture
def plans(photographs: Callable[..., Path]) -> None:
    """Photographs, and a plan for each of the two networks: ``exact.toml``, ``demo.toml``."""
    photographs(Path("images"), 20, classes=2)
    for name, text in PLANS.items():
        images = Path("images").absolute()  # processes may stand elsewhere
        Path(f"{name}.toml").write_text(f'dataset = "{images}"\n{SHARED}{text}')


@pytest.fixture
def results() -> Callable[[Path], dict[str, Any]]:
    """A function from a run directory to the digest of each of its HDF5 files."""

    def look(run: Path) -> dict[str, Any]:
        return {
            str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.rglob("*.h5"))
        }

    return look
