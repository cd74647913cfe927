"""Settings: a file, flags over it, and every mistake by its name."""

from __future__ import annotations

import json
import pickle
import re
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.backward import RULES
from cnnvis_cli.network.saliency import METHODS
from cnnvis_cli.settings import (
    USUAL,
    Method,
    OptimizePlan,
    Plan,
    PreprocessingPlan,
    SaliencyMethod,
    TopKPlan,
)
from cnnvis_cli.validation import read_settings

CONFIGS = Path(__file__).parents[1] / "configs"


def make(text: str, **flags: Any) -> Plan:
    Path("d.safetensors").mkdir(exist_ok=True)
    Path("settings.toml").write_text(text, encoding="utf-8")
    return Plan.make(Path("settings.toml"), flags)


def test_without_anything_the_defaults_hold() -> None:
    assert Plan.make(None, {}) == Plan()
    plan = Plan()
    assert (plan.seed, plan.device, plan.stages) == (0, "auto", USUAL)
    assert (plan.topk.k, plan.topk.max_unreadable) == (9, 0.01)
    assert (plan.optimize.style, plan.optimize.runs, plan.optimize.step) == (
        ("natural",),
        1,
        "calibrated",
    )
    assert plan.project.methods == ("deconv",)
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
        ("styles = 3", "styles = 3 is not a table"),
        ("[topk]\nk = nan", "k = nan is not a whole number"),
        ("[topk]\nmin = 1", "min = 1 is not true or false"),
        ("[topk]\nmax-unreadable = nan", "--max-unreadable nan: must be finite"),
        ("[topk]\nmax-unreadable = 1.5", "--max-unreadable 1.5: must be at most 1"),
        ("[topk]\nmax-unreadable = true", "max-unreadable = True is not a number"),
        ("[optimize]\nstyle = [1, true]", "style = .* is not text"),
        ("[optimize]\nstyle = []\nstep = false", "step = False is not text"),
        ("[optimize]\ndiversity = 11", "--diversity 11: must be at most 10"),
        ("[figure]\nscale = 1.5", "--scale 1.5: must be a whole number, or a fraction"),
        ("[figure]\nscale = 65", "--scale 65: must be at most 64"),
        ("[figure]\nscale = -1", "--scale -1: must be above 0"),
        ("[filters]\nradius = 0", "--radius 0: must be above 0"),
        ("[filters]\nradius = inf", "--radius inf: must be finite"),
        ("[filters]\nscale = 65", "--scale 65: must be at most 64"),
        ("[filters]\nsave-clipped = 'a.pth'", r"--save-clipped a\.pth: must end in \.safetensors"),
        ("[filters]\nsave-clipped = 'd.safetensors'", "--save-clipped .*: is a folder"),
        ("[activations]\nscale = 2.5", "--scale 2.5: must be a whole number"),
        ("[activations]\nsize = 241", "--size 241: must be a multiple of 2"),
        ("[activations]\nsize = 4322", "--size 4322: must be at most 4320"),
        ("[project]\nmethod = ['deconf']", "did you mean 'deconv'"),
        ("[occlude]\nmethod = 'guide'", "did you mean 'guided'"),
        ("[saliency]\nmethod = 'grad'", "method = 'grad'.*'gradcam'"),
        ("seed = -1", "--seed -1: must be at least 0"),
        ("seed = 9223372036854775808", "--seed .*: must be below 9223372036854775808"),
        ("shard = '4/3'", "--shard 4/3: write it as i/n"),
        ("shard = '1/2'\nscheduler = 'tcp://a:1'", "--shard and --scheduler"),
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


def test_words_that_are_registered_elsewhere_are_those_of_the_settings() -> None:
    assert set(get_args(Method)) == set(RULES)
    assert set(get_args(SaliencyMethod)) == set(METHODS)


def test_a_plan_is_a_plain_value() -> None:
    plan = make("[topk]\nk = 5\n[figure]\nscale = 2\n[styles.mine]\niterations = 3")
    assert type(plan) is Plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert replace(plan, seed=3).topk == TopKPlan(k=5)
    record = asdict(plan)
    assert list(record) == [field.name for field in fields(Plan)]
    assert isinstance(record["figure"]["scale"], float)
    assert record["styles"] == {"mine": {"iterations": 3}}
    assert json.loads(json.dumps(record))["topk"]["k"] == 5


def test_a_plain_dataclass_is_checked_as_well() -> None:
    @dataclass(frozen=True)
    class Settings:
        every: int

        def __post_init__(self) -> None:
            if self.every < 1:
                raise ValueError("every must be at least 1")

    assert read_settings(Settings, {"every": 3}, "here") == Settings(3)
    for table, words in (
        ({"every": 0}, "here: every must be at least 1"),
        ({"evry": 1, "every": 1}, "here has no setting 'evry'; did you mean 'every'?"),
        ({"every": "3"}, "here: every = '3' is not a whole number"),
        ({}, "here needs every"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            read_settings(Settings, table, "here")
