"""The networks by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.zoo import OWN, blueprint, imagenet_classes


@pytest.mark.parametrize("model", models.list_models(module=models))
def test_a_network_of_torchvision_is_fed_as_it_was_trained(model: str) -> None:
    preprocessing = blueprint(model).preprocessing
    transform = models.get_model_weights(model)["DEFAULT"].transforms()
    assert [preprocessing.resize] == transform.resize_size
    assert list(preprocessing.crop) == transform.crop_size * 2
    assert [m / 255 for m in preprocessing.mean] == pytest.approx(transform.mean, abs=1e-8)
    assert [s / 255 for s in preprocessing.std] == pytest.approx(transform.std, abs=1e-8)
    assert preprocessing.interpolation == transform.interpolation.value
    assert not preprocessing.bgr


@pytest.mark.parametrize("model", ["googlenet", "inception_v3", "vit_h_14"])
def test_a_network_is_built_as_its_trained_weights_need_it(model: str) -> None:
    """torchvision's builders take these settings from the weights, which come later here."""
    plan = blueprint(model)
    with torch.device("meta"):
        module = plan.build()
    if model == "vit_h_14":
        assert module.image_size == plan.torchvision_weights["DEFAULT"].meta["min_size"][0]
    else:
        assert module.transform_input
        assert module.aux_logits


@pytest.mark.parametrize(
    ("model", "nearest"), [("alxnet", "alexnet"), ("cafenet", "caffenet"), ("dmo", "demo")]
)
def test_an_unknown_network_is_answered_with_the_nearest(model: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"there is no model '{model}'; did you mean '{nearest}'"):
        blueprint(model)


def test_a_person_s_own_network_needs_their_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_network.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath('ran').touch()\n"
        "def build():\n    return nn.Conv2d(3, 2, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(UsageError, match="own_network:build runs that code; add --trust-code"):
        blueprint("own_network:build")
    assert not Path("ran").exists()
    before = list(sys.path)
    plan = blueprint("own_network:build", trust_code=True)
    assert isinstance(plan.build(), nn.Conv2d)
    assert Path("ran").exists()
    assert sys.path == before
    for wrong in ("own_network:built", "no_such_network:build", ":build", "own_network:"):
        with pytest.raises(UsageError, match=f"--model {wrong}: cannot import it"):
            blueprint(wrong, trust_code=True)
    monkeypatch.delitem(sys.modules, "own_network")


def test_the_classes_of_imagenet_are_in_their_usual_order() -> None:
    classes = imagenet_classes()
    assert (len(classes), classes[0], classes[130], classes[999]) == (
        *(1000, "tench", "flamingo", "toilet tissue"),
    )
    assert OWN["caffenet"]().classes == classes
