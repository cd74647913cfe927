"""Networks of one's own through the commands: each works, or is one line with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18
from torchvision.transforms import functional as transforms

from cnnvis_cli.network.guest import Guest

if TYPE_CHECKING:
    from tests.conftest import Told

Call = Callable[..., "Told"]

NETS = """
import torch
from torch import nn


class Grey(nn.Module):
    def __init__(self, channels=1, kind=nn.Conv2d):
        super().__init__()
        torch.manual_seed(0)
        self.first = kind(channels, 6, 5, padding=2)
        self.second = nn.Conv2d(6, 8, 3, stride=2)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))


def colour(): return Grey(3)
def half(): return Grey(3).half()
def four(): return Grey(4)
def compiled(): return torch.compile(Grey(3))
class Lazy(Grey):
    def __init__(self):
        super().__init__(3)
        self.first = nn.LazyConv2d(6, 5, padding=2)
class Quiet(Grey):
    def __init__(self): super().__init__(3)
    def train(self, mode=True): pass
class Two(Grey):
    def __init__(self): super().__init__(3)
    def forward(self, x, y): return super().forward(x) + y
def bare(): return nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))
def volume(): return nn.Conv3d(3, 4, 3)
class Meta(Grey):
    "Computes with its weights while it is built, so it cannot be built on the device meta."
    def __init__(self):
        super().__init__(3)
        self.largest = float(self.first.weight.detach().max())
"""
PLAN = """
trust_code = true
workers = 0
device = "cpu"
dataset = "images"
[preprocessing]
resize = 32
crop = 32
"""


@pytest.fixture(autouse=True)
def folder(photographs: Callable[..., Path], tmp_path: Path) -> Iterator[None]:
    """Photographs, modules, and a plan in the current folder; the modules are forgotten later."""
    photographs(Path("images"), 8, size=(40, 36))
    Path("own_nets.py").write_text(NETS)
    Path("p.toml").write_text(PLAN)
    yield
    import sys

    sys.modules.pop("own_nets", None)


WORKING = ("Grey", "colour", "half", "compiled", "Lazy", "Quiet", "Meta")


@pytest.mark.parametrize("name", WORKING)
def test_what_topk_takes_layers_lists(name: str, cnnvis: Call) -> None:
    listed = cnnvis(f"layers --model own_nets.py:{name} --config p.toml").out.splitlines()
    assert [line.split()[1] for line in listed[1:]] == ["first", "second", "last"]
    cnnvis(f"topk --model own_nets:{name} --config p.toml --run {name}")
    cnnvis(f"project --run {name} --trust-code --workers 0 --method gradient")


REFUSED = {
    "four": "takes images of 4 channels",
    "Two": "its forward needs y as well",
    "bare": "has no convolution or fully connected layer to show, only ReLU, AvgPool2d",
    "volume": "takes sequences or volumes",
}


@pytest.mark.parametrize("command", ["layers", "topk"])
@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_in_one_line(name: str, command: str, cnnvis: Call) -> None:
    told = cnnvis(f"{command} --model own_nets:{name} --config p.toml --run r", code=2)
    assert REFUSED[name] in told.err
    assert told.out == ""


def test_a_grey_network_is_shown_in_grey(cnnvis: Call) -> None:
    """Against the network itself, run on grey images as Pillow makes them."""
    Path("g.toml").write_text(PLAN + "mean = [100]\nstd = [50]\n")
    cnnvis("topk --model own_nets:Grey --config g.toml --run g")
    again = "--run g --trust-code --workers 0"
    cnnvis(f"optimize {again} --iterations 8 --runs 2 --style 3 --style fourier")
    cnnvis(f"project {again} --method gradient")
    cnnvis(f"montage optimized top {again}")
    for page in Path("g/figures").rglob("*.png"):
        assert np.ptp(np.asarray(Image.open(page).convert("RGB")).astype(int), axis=2).max() == 0
    network = Guest("own_nets:Grey").build().eval()
    with h5py.File("g/topk.h5") as file:
        paths = [path.decode() for path in file["images/path"]]
        x = torch.stack([_as_trained(Path("images") / path) for path in paths]).requires_grad_()
        scores = network(x)
        for layer, values in {"conv1": network.first(x).amax((2, 3)), "fc3": scores}.items():
            wanted = values.topk(5, 0).values.T.detach()
            torch.testing.assert_close(
                torch.from_numpy(file[f"layers/{layer}/activation"][:, :5]), wanted
            )
        best = int(file["layers/fc3/image"][1, 0])
    (gradient,) = torch.autograd.grad(scores[best, 1], x)
    _check_projection(gradient[best, 0] / 50)
    _check_optimized(network)


def _as_trained(path: Path) -> torch.Tensor:
    grey = transforms.resize(Image.open(path).convert("L"), [32])
    cropped = transforms.center_crop(grey, [32, 32])
    return (torch.from_numpy(np.asarray(cropped).copy())[None].float() - 100) / 50


def _check_projection(wanted: torch.Tensor) -> None:
    with h5py.File("g/projected/fc3.h5") as file:
        found = file["gradient/projection"][1, 0].astype(np.float32)
        found = torch.from_numpy(found * file["gradient/scale"][1, 0]).sum(2)
    torch.testing.assert_close(found, wanted, atol=float(wanted.abs().max()) * 1e-2, rtol=0)


def _check_optimized(network: Any) -> None:
    with h5py.File("g/optimized/fc3.h5") as file:
        for style in file:
            images = torch.from_numpy(file[style]["image"][:, 0].astype(np.float32))
            assert torch.equal(images[..., 0], images[..., 2])
            values = network(images[..., 0][:, None] / 50).diagonal()
            wanted = torch.from_numpy(file[style]["activation"][:, 0])
            torch.testing.assert_close(values, wanted, atol=1e-3, rtol=1e-2)


def test_averaged_weights_are_those_of_the_run_from_then_on(cnnvis: Call) -> None:
    network = Guest("own_nets:colour").build()
    usual = network.state_dict()
    averaged = {name: tensor / 2 for name, tensor in usual.items()}
    torch.save({"state_dict": usual, "state_dict_ema": averaged}, "both.ckpt")
    start = "--model own_nets:colour --config p.toml --weights both.ckpt"
    assert (
        "takes state_dict, not state_dict_ema (--ema takes it)"
        in cnnvis(f"topk {start} --run usual").err
    )
    cnnvis(f"topk {start} --run averaged --ema")
    told = cnnvis(f"topk {start} --run usual --ema --quiet", code=2)
    assert "belongs to another plan" in told.err
    for run in ("usual", "averaged"):  # from run.json alone
        cnnvis(f"verify {run} --trust-code")
    with h5py.File("usual/topk.h5") as one, h5py.File("averaged/topk.h5") as other:
        places = (each["layers/conv1/activation"][:, 0] for each in (one, other))
        assert np.allclose(next(places), next(places) * 2, rtol=1e-5)


def test_a_known_network_of_other_classes_is_listed_with_them(cnnvis: Call) -> None:
    torch.save({"model": resnet18(num_classes=10).state_dict(), "epoch": 1}, "ten.pth.tar")
    told = cnnvis("layers --model resnet18 --weights ten.pth.tar")
    assert told.out.splitlines()[-1].split()[:4] == ["fc21", "fc", "fc", "10"]
    assert "the network has 10 classes" in told.err


def test_torchvision_s_units_are_refused_before_any_work(cnnvis: Call) -> None:
    Path("q.toml").write_text(PLAN + "mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n")
    told = cnnvis("topk --model own_nets:colour --config q.toml --run q", code=2)
    assert "multiply the numbers of torchvision and timm by 255" in told.err
    Path("w.toml").write_text(PLAN + "mean = [0.5, 0.5, 0.5]\n")
    told = cnnvis("topk --model own_nets:colour --config w.toml --run w")
    assert "multiply the numbers of torchvision and timm by 255" in told.err
