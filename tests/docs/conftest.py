"""A folder in which the documentation's command lines can run, each with less to do."""

from __future__ import annotations

import copy
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from cnnvis_cli.cli import _code
from cnnvis_cli.demo.synthetic import draw
from cnnvis_cli.network import saliency, weights
from cnnvis_cli.network.guest import usual_precision
from cnnvis_cli.network.zoo import OWN, Blueprint
from cnnvis_cli.nouns import Layer
from cnnvis_cli.settings import OptimizePlan, Plan
from cnnvis_cli.stages.common import dataset_images, network_loading, session
from cnnvis_cli.stages.run import demo as demo_stage

if TYPE_CHECKING:
    from tests.docs.pages import ROOT
else:
    from pages import ROOT

SHOWN = (0, 1, 3, 4, 7, 10, 13, 16, 19, 22, 42, 58)  # units that the pages speak of
FEW = 2  # iterations
EXTRA = {  # a command, and what makes it shorter without changing the plan
    "verify": "--sample 4",
    "bench topk": "--rounds 1 --seconds 0.02",
    "bench optimize": "--rounds 1 --seconds 0.02",
    "bench project": "--rounds 1 --seconds 0.02",
    "bench occlude": "--rounds 1",
    "bench activations": "--rounds 1 --frames 8",
}


class Told(NamedTuple):
    """How a command line ended, and its output."""

    code: int
    out: str
    err: str


def cheaper(plan: Plan) -> Plan:
    """Return the same plan with less to do.

    Fewer steps, smaller images, one process, no GPU, no cluster, no
    downloads.
    """
    optimize, search = plan.optimize, plan.search
    trials = min(search.trials, FEW)
    known = plan.model in ("", "demo", "caffenet", "zfnet") or ":" in plan.model
    small = plan.preprocessing
    if not known or small.crop == 224:
        small = replace(small, resize=64, crop=64)
    row = None if search.row is None else min(search.row, trials - 1)
    return replace(
        plan,
        weights=_at_hand(plan),
        preprocessing=small,
        device="cpu",
        workers=0,
        batch_size=8 if plan.model in ("", "demo") else 4,  # all batches are full ones
        scheduler=None,
        optimize=replace(
            optimize,
            iterations=min(optimize.iterations or FEW, FEW),
            runs=min(optimize.runs, 2),
            precision="float32",
        ),
        search=replace(search, trials=trials, iterations=FEW, values=2, row=row),
        topk=replace(plan.topk, decode="exact", precision="float32"),
        occlude=replace(plan.occlude, size=48, stride=48),
    )


def _at_hand(plan: Plan) -> str | None:
    """Weights that are neither bundled nor in the folder are random ones."""
    if plan.model in ("", "demo") or ":" in plan.model or Path(plan.weights or "").is_file():
        return plan.weights
    return "random"


def fewer(session: session.Session, layer: Layer) -> tuple[int, ...]:
    """Return the units of a plan that names none: those that are shown, of a large network two."""
    plan, small = session.plan, session.network.name in OWN
    if plan.units:
        return _units(session, layer)
    return tuple(unit for unit in SHOWN[: None if small else 2] if unit < layer.channels)


_units, _make, _build = session.Session.units, Plan.make, weights.build
_built: dict[str, Any] = {}


def build_once(found: Blueprint, *arguments: Any, **settings: Any) -> Any:
    """To build a large network takes seconds."""
    if found.name in OWN or found.guest is not None:
        return _build(found, *arguments, **settings)
    if found.name not in _built:
        _built.clear()
        _built[found.name] = _build(found, *arguments, **settings)
    return copy.deepcopy(_built[found.name])


@contextmanager
def less() -> Iterator[None]:
    """Every command does less: fewer images, units, steps and trials."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "make", classmethod(lambda _, *arguments: cheaper(_make(*arguments))))
        patch.setattr(session.Session, "units", fewer)
        patch.setattr(network_loading, "build", build_once)
        patch.setattr(demo_stage, "OptimizePlan", lambda **_: OptimizePlan(iterations=FEW))
        patch.setattr(dataset_images, "PER_CLASS", 6)  # score needs 140 images
        patch.setattr(saliency, "SAMPLES", 2)
        patch.setattr(saliency, "PATH_STEPS", 2)
        yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the outputs/ of `cnnvis demo`."""
    folder = tmp_path_factory.mktemp("demo")
    with less(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["cnnvis", "demo", "--quiet"])
        assert _code() == 0
    return folder


@pytest.fixture
def cheap() -> Iterator[None]:
    """See `less`."""
    with less():
        yield


@pytest.fixture
def furnished(demo: Path, cheap: None) -> None:
    """Change to a folder with the files that the pages name, and the run of the demo."""
    for inside in ("imagenet/val", "imagenet/train"):
        for number in range(8):
            folder = Path("data", inside, ("n01440764", "n01443537")[number % 2])
            _picture(folder / f"{number}.JPEG", number)
            _picture(Path("photographs", ("daisy", "rose")[number % 2], f"{number}.png"), number)
    for name in ("dog.jpg", "cat.jpg"):
        _picture(Path(name), 3)
    np.save("ilsvrc_2012_mean.npy", np.full(3, 110.0))
    np.save("file.npy", np.ones((1, 64), np.float32))
    _onnx(Path("net.onnx"))
    Path("configs").mkdir()
    for config in sorted((ROOT / "configs").glob("*.toml")):
        text = config.read_text(encoding="utf-8").replace('"/data/', '"data/')
        Path("configs", config.name).write_text(text, encoding="utf-8")
    shutil.copytree(demo / "outputs", "outputs", copy_function=_linked)


def _onnx(path: Path) -> None:
    """Write a network of one convolution and one fully connected layer."""
    from onnx import TensorProto, helper, numpy_helper, save

    drawn = np.random.default_rng(0)
    shapes = {"weight": (8, 3, 3, 3), "bias": (8,), "last": (4, 8), "shift": (4,)}
    tensors = [
        numpy_helper.from_array(drawn.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["image", "weight", "bias"], ["maps"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["means"]),
        helper.make_node("Flatten", ["means"], ["vector"]),
        helper.make_node("Gemm", ["vector", "last", "shift"], ["scores"], transB=1),
    ]
    sizes: dict[str, list[str | int | None]] = {"image": ["n", 3, "h", "w"], "scores": ["n", 4]}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)


def _linked(source: str, target: str) -> None:
    """Files are replaced, never changed, so a run can be copied by links."""
    os.link(source, target)


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(("cat", "star")[number % 2], number)).save(path)


@pytest.fixture
def cnnvis(
    furnished: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], Told]:
    """A function that runs `cnnvis` with these arguments, in the furnished folder."""

    def call(arguments: list[str]) -> Told:
        words = arguments[: 2 if arguments[:1] == ["bench"] else 1]
        extra = [] if "--help" in arguments else shlex.split(EXTRA.get(" ".join(words), ""))
        here = {"DATASET": "data/imagenet/val"}
        given = [here.get(word, word.replace("/data/", "data/")) for word in arguments]
        monkeypatch.setattr(sys, "argv", ["cnnvis", *given, *extra])
        capsys.readouterr()
        code = _code()
        return Told(code, *capsys.readouterr())

    return call


@contextmanager
def as_in_a_new_process() -> Iterator[None]:
    """Put cnnvis's precision of convolutions aside, which torch.export does not take."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else None
    usual_precision()
    try:
        yield
    finally:
        if before is not None:
            cudnn.conv.fp32_precision = before


@pytest.fixture
def python(
    furnished: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[list[str]], Told]]:
    """A function that runs `python FILE ...`, here; the folder's modules are forgotten later."""
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def call(arguments: list[str]) -> Told:
        monkeypatch.setattr(sys, "argv", arguments)
        capsys.readouterr()
        with as_in_a_new_process():
            runpy.run_path(arguments[0], run_name="__main__")
        return Told(0, *capsys.readouterr())

    yield call
    here = str(Path.cwd())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(here):
            del sys.modules[name]
