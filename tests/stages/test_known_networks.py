"""What is kept of a network's graph: used again only where nothing has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from cnnvis_cli.demo.network import INPUT
from cnnvis_cli.digests import digest
from cnnvis_cli.network import self_check, structure
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.stages.common import known_networks
from cnnvis_cli.stages.common.known_networks import known_check, known_survey

SIZE = (INPUT, INPUT)


class Spoilt(Exception):
    """Raised in place of the work that is to be spared."""


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Spoilt

    monkeypatch.setattr(known_networks, "survey", refuse)
    monkeypatch.setattr(known_networks, "judged", refuse)


def demo() -> tuple[nn.Module, str]:
    return load(blueprint("demo"), "random")


def network(seed: int = 0) -> Network:
    plan = blueprint("demo")
    module, digest = load(plan, "random", seed)
    return Network.prepare("demo", module, plan.preprocessing, digest)


def test_layers_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    module = VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
    module.eval().requires_grad_(False)
    first = known_survey("vit_b_16", module, (32, 32))
    assert any(layer.arrangement and layer.apart for layer in first.layers)
    spoil(monkeypatch)
    again = known_survey("vit_b_16", module, (32, 32))
    assert again == first
    assert [la.arrangement for la in again.layers] == [la.arrangement for la in first.layers]


def other_code(monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> None:
    monkeypatch.setattr(structure, "source_digest", lambda: "another")


def other_torch(monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> None:
    monkeypatch.setattr(structure, "version", lambda name: f"{name} 99")


def other_file(monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> None:
    monkeypatch.setattr(structure, "file_digest", lambda path: f"{path} edited")


def other_shapes(monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> None:
    last = [child for child in module.modules() if isinstance(child, nn.Linear)][-1]
    last.weight = nn.Parameter(last.weight[:5].clone(), requires_grad=False)


def other_input(monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda *_: None)


@pytest.mark.parametrize("change", [other_code, other_torch, other_file, other_shapes, other_input])
def test_a_changed_network_is_looked_at_again(
    change: Callable[[pytest.MonkeyPatch, nn.Module], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = demo()[0].eval().requires_grad_(False)
    known_survey("demo", module, SIZE)
    spoil(monkeypatch)
    known_survey("demo", module, SIZE)
    change(monkeypatch, module)
    with pytest.raises(Spoilt):
        known_survey("demo", module, SIZE)


def test_your_own_network_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module = demo()[0].eval().requires_grad_(False)
    known_survey("package.module:function", module, SIZE)
    spoil(monkeypatch)
    with pytest.raises(Spoilt):
        known_survey("package.module:function", module, SIZE)


def test_other_weights_and_colours_are_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = network(), network(seed=1)
    assert known_check(mine)[1] == ()
    spoil(monkeypatch)
    assert known_check(mine)[0] is mine
    dark = replace(mine, preprocessing=replace(mine.preprocessing, mean=(0.0, 0.0, 0.0)))
    for changed in (other, dark):
        with pytest.raises(Spoilt):
            known_check(changed)


def test_what_a_check_found_is_said_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(self.conv(images).view(len(images), -1))
            return out

    flat = Network.prepare("flat", Flat(), Preprocessing(crop=(8, 8)), "digest")
    found, notes = known_check(flat)
    assert "channels come first" in notes[0]
    spoil(monkeypatch)
    again, same = known_check(flat)
    assert same == notes
    assert again.memory_format == found.memory_format == torch.contiguous_format
    self_check.judged(again)


@pytest.mark.parametrize("damage", ["layers", "sealed", "cut"])
def test_a_damaged_entry_is_made_again(
    damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = demo()[0].eval().requires_grad_(False)
    known_survey("demo", module, SIZE)
    (path,) = (tmp_path / "cache").glob("survey-*.json")
    entry = json.loads(path.read_text())
    entry["value"]["layers"][0]["channels" if damage == "layers" else "map"] = 7
    if damage == "sealed":  # of a shape that no survey has
        entry["digest"] = digest(entry["value"])
    path.write_text(json.dumps(entry)[: 40 if damage == "cut" else None])
    spoil(monkeypatch)
    with pytest.raises(Spoilt):
        known_survey("demo", module, SIZE)
