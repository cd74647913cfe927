"""timm's networks by name, and what a module of one's own says in timm's form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cnnvis_cli.dataset.decode import prepare
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network import timm_models
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import blueprint

NAMES = ["test_resnet.r160_in1k", "resnet50.a1_in1k", "mobilenetv3_small_050.lamb_in1k"]


@pytest.fixture(autouse=True)
def no_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no host that is known; return the hub's cache."""

    def refuse(host: str, *_: Any) -> None:
        raise OSError(f"{host} is not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr(timm_models, "getproxies", dict)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_prepared_as_by_timm(name: str) -> None:
    plan = blueprint(f"timm:{name}")
    known: Any = timm.get_pretrained_cfg(name)
    library: Any = timm.data
    config = library.resolve_data_config(pretrained_cfg=known.to_dict())
    drawn = np.random.default_rng(0).integers(0, 256, (300, 411, 3), np.uint8)
    image = Image.fromarray(drawn)
    wanted = library.create_transform(**config)(image)
    pixels = torch.from_numpy(prepare(image, plan.preprocessing).copy())[None]
    network = Network(name, nn.Module(), plan.preprocessing, "", (), ())
    found = network.normalise(network.centre(pixels))[0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm/resnet50.a1_in1k", r"write --model timm:resnet50\.a1_in1k$"),
        ("hf-hub:timm/vit_tiny_patch16_224", "write --model timm:vit_tiny_patch16_224$"),
        ("hf_hub:someone/network", "with --weights FILE.* of someone/network"),
        ("resnet50.a1_in1k", r"did you mean 'timm:resnet50\.a1_in1k'"),
        ("timm:resnte50", "did you mean 'timm:resnet50'"),
        ("timm:resnet50.a1_in2k", r"did you mean 'timm:resnet50\.a1_in1k'"),
        ("convnext_atto", "did you mean 'timm:convnext_atto'"),
    ],
)
def test_other_spellings_are_answered_with_what_to_write(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        blueprint(name)


def test_without_timm_its_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"needs timm .*; pip install 'cnnvis\[timm\]'"):
        blueprint("timm:resnet50")
    with pytest.raises(UsageError, match="there is no model 'resnte50'; did you mean 'resnet50'"):
        blueprint("resnte50")


def _cached(hub: Path, state: dict[str, torch.Tensor]) -> None:
    """Put weights where the hub's client keeps them."""
    folder = hub / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots/abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    save_file(state, folder / "snapshots/abc/model.safetensors")


def test_trained_weights_come_from_the_hub_s_cache(no_downloads: Path) -> None:
    torch.manual_seed(5)
    trained = timm.create_model("test_resnet").state_dict()
    _cached(no_downloads, trained)
    for name in ("timm:test_resnet", "timm:test_resnet.r160_in1k"):
        module, _ = load(blueprint(name), None)
        assert all(torch.equal(t, trained[n]) for n, t in module.state_dict().items())


def test_weights_that_are_nowhere_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CnnvisError, match=r"cannot download .*give it with -w model\.saf") as told:
        load(blueprint("timm:test_resnet"), None)
    assert told.value.exit_code == 1
    assert capfd.readouterr().err == ""


def test_a_file_may_be_for_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    torch.save({"state_dict": {f"model.{n}": t for n, t in state.items()}}, tmp_path / "a.ckpt")
    said: list[str] = []
    module, _ = load(blueprint("timm:test_resnet"), str(tmp_path / "a.ckpt"), say=said.append)
    assert all(torch.equal(t, state[n]) for n, t in module.state_dict().items())
    assert "7 classes" in said[0]


@pytest.mark.parametrize("kind", [dict, timm.models.PretrainedCfg])
def test_a_module_says_its_preprocessing_itself(kind: Any) -> None:
    module = nn.Conv2d(3, 2, 3)
    assert timm_models.told_by(module) is None
    config = {"input_size": (3, 96, 96), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.75}
    module.pretrained_cfg = kind(**config, interpolation="bilinear")
    known = timm_models.told_by(module)
    assert known is not None
    found, remarks = timm_models.preprocessing_of(known, "x")
    assert (found.resize, found.crop, found.interpolation) == (128, (96, 96), "bilinear")
    assert (found.mean, found.std) == ((127.5,) * 3, (63.75,) * 3)
    assert not remarks


@pytest.mark.parametrize("wrong", [{"mean": "grey"}, {"std": (1, 2)}, {"input_size": (3, 3)}])
def test_a_configuration_that_cannot_be_read_is_an_error(wrong: dict[str, Any]) -> None:
    known = {"input_size": (3, 96, 96), "mean": (0.5,) * 3, "std": (0.25,) * 3} | wrong
    with pytest.raises(UsageError, match="own: cannot read its preprocessing"):
        timm_models.preprocessing_of(known, "own")


def test_what_cannot_be_done_as_timm_does_is_said() -> None:
    known = {"input_size": (1, 28, 28), "mean": (0.1,), "std": (0.3,), "crop_mode": "border"}
    found, remarks = timm_models.preprocessing_of({**known, "interpolation": "box"}, "own")
    assert found.grey
    assert found.mean == (25.5,) * 3
    assert [line.partition(",")[0] for line in remarks] == [
        "own: images are resized by bicubic",
        "own: images are cropped",
    ]
