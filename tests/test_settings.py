"""Settings: a file, flags over it, and every mistake by its name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from cnnvis_cli.errors import UsageError
from cnnvis_cli.settings import USUAL, OptimizePlan, Plan, PreprocessingPlan

CONFIGS = Path(__file__).parents[1] / "configs"


def make(text: str, **flags: Any) -> Plan:
    Path("settings.toml").write_text(text, encoding="utf-8")
    return Plan.make(Path("settings.toml"), flags)


def test_without_anything_the_defaults_hold() -> None:
    assert Plan.make(None, {}) == Plan()
    plan = Plan()
    assert (plan.seed, plan.device, plan.stages) == (0, "auto", USUAL)
    assert (plan.topk.k, plan.topk.max_unreadable) == (9, 0.01)
    assert (plan.optimize.style, plan.optimize.runs, plan.optimize.step) == (
        ("3",),
        1,
        "calibrated",
    )
    assert plan.project.method == ("deconv",)
    assert plan.figure.tone == "tile"


def test_a_file_and_flags_over_it() -> None:
    text = """
        model = "alexnet"
        layer = ["conv5", "fc8"]
        batch-size = 16
        seed = 4
        [topk]
        k = 5
        max-unreadable = 0.5
        [optimize]
        style = ["1", "3"]
        """
    plan = make(text)
    assert (plan.model, plan.layer, plan.batch_size, plan.seed) == (
        "alexnet",
        ("conv5", "fc8"),
        16,
        4,
    )
    assert (plan.topk.k, plan.topk.max_unreadable) == (5, 0.5)
    assert plan.optimize.style == ("1", "3")
    over = make(
        text,
        model="vgg16",
        batch_size=2,
        layer=("conv1",),
        topk__k=7,
        optimize__style=(),
        figure__tone=None,
        seed=0,
    )
    assert (over.model, over.batch_size, over.layer, over.seed) == ("vgg16", 2, ("conv1",), 0)
    assert (over.topk.k, over.topk.max_unreadable) == (7, 0.5)
    assert over.optimize.style == ("1", "3")  # an option that was not given changes nothing


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[optimize]\nstep = 10", OptimizePlan(step="10")),
        ("[optimize]\nstep = 0.5", OptimizePlan(step="0.5")),
        ("[optimize]\nstyle = 1", OptimizePlan(style=("1",))),
        ("[optimize]\nstyle = [1, 'fourier']", OptimizePlan(style=("1", "fourier"))),
        ("[preprocessing]\ncrop = 227", PreprocessingPlan(crop=227)),
        ("[preprocessing]\ncrop = [200, 100]", PreprocessingPlan(crop=(200, 100))),
        ("[preprocessing]\nmean = 'ilsvrc.npy'", PreprocessingPlan(mean="ilsvrc.npy")),
        ("[preprocessing]\nmean = [1, 2.5, 3]", PreprocessingPlan(mean=(1.0, 2.5, 3.0))),
        ("[preprocessing]\nbgr = false", PreprocessingPlan(bgr=False)),
    ],
)
def test_values_may_be_written_as_one_would(text: str, found: object) -> None:
    plan = make(text)
    assert found in (plan.optimize, plan.preprocessing)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("modle = 'demo'", "'modle'.*'model'"),
        ("batchsize = 3", "'batchsize'.*'batch_size'"),
        ("[topk]\nkk = 3", "'kk'.*'k'"),
        ("[optimise]\nruns = 3", "'optimise'.*'optimize'"),
        ("[optimize]\niteration = 3", "'iteration'.*'iterations'"),
        ("[preprocessing]\nmaen = [1, 2, 3]", "'maen'.*'mean'"),
        ("stages = ['topk', 'optimise']", "'optimise'.*'optimize'"),
        ("topk = 3", "topk.*table"),
        ("[topk]\nk = 'three'", "topk: k|k = 'three'"),
        ("[topk]\nk = 2.5", "2.5"),
        ("[topk]\nk = true", "True"),
        ("[topk]\nk = 0", "-k 0"),
        ("trust-code = 'yes'", "trust-code = 'yes'"),
        ("model = ['demo']", "model"),
        ("layer = [['conv1']]", "layer"),
        ("[figure]\ntone = 'grey'", "tone = 'grey'"),
        ("[figure]\nscale = 0", "--scale 0"),
        ("[optimize]\nruns = -1", "--runs -1"),
        ("[optimize]\niterations = 0", "--iterations 0"),
        ("[preprocessing]\ninterpolation = 'cubic'", "interpolation = 'cubic'"),
        ("[preprocessing]\nmean = [1, 'two', 3]", "mean"),
        ("batch-size = 0", "--batch-size 0"),
        ("workers = -1", "--workers -1"),
        ("k = = 3", "not TOML"),
        ("a = 1\na = 2", "not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as found:
        make(text)
    assert found.value.exit_code == 2
    assert len(str(found.value).splitlines()) == 1


def test_the_file_is_named() -> None:
    for text in ("modle = 'demo'", "[topk]\nk = 'three'", "k = = 3"):
        with pytest.raises(UsageError, match=r"settings\.toml"):
            make(text)


def test_a_file_that_is_not_there_or_no_text() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        Plan.make(Path("nowhere.toml"), {})
    Path("binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.toml"):
        Plan.make(Path("binary.toml"), {})


def test_a_flag_for_a_section_that_is_no_table_is_a_mistake_in_the_file() -> None:
    with pytest.raises(UsageError, match="topk"):
        make("topk = 3", topk__k=5)


@pytest.mark.parametrize(
    ("plan", "folder"),
    [
        (Plan(run="here"), "here"),
        (Plan(model="alexnet"), "outputs/alexnet"),
        (Plan(model="nets.mine:build"), "outputs/nets.mine_build"),
        (Plan(model="alexnet", run="there"), "there"),
    ],
)
def test_the_run_directory(plan: Plan, folder: str) -> None:
    assert plan.folder == Path(folder)


def test_no_run_directory_without_a_model() -> None:
    with pytest.raises(UsageError, match="--model"):
        _ = Plan().folder


@pytest.mark.skipif(not list(CONFIGS.glob("*.toml")), reason="configs/ is still empty")
def test_every_ready_plan_loads() -> None:
    for path in sorted(CONFIGS.glob("*.toml")):
        plan = Plan.make(path, {})
        assert plan.model
        assert plan.folder
        assert tomllib.loads(path.read_text())["model"] == plan.model
