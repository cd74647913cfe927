"""Networks of timm with random weights: every linear layer and convolution is accounted for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cnnvis_cli.network.survey import survey

timm: Any = pytest.importorskip("timm", reason="timm is not installed (the extra timm)")

# name: share of linear layers and convolutions that are layers, tokens that are no places
NETWORKS: dict[str, tuple[float, int]] = {
    "beit_base_patch16_224": (1, 1),
    "convnext_atto": (1, 0),
    "deit_tiny_distilled_patch16_224": (1, 2),
    "edgenext_xx_small": (0.9, 0),  # its attention is over channels
    "efficientformer_l1": (1, 0),
    "mixer_s32_224": (0.5, 0),  # half of its linear layers mix places
    "pvt_v2_b0": (1, 0),
    "regnety_002": (1, 0),
    "swin_tiny_patch4_window7_224": (1, 0),
    "swinv2_tiny_window8_256": (0.68, 0),  # the others compute tables of positions
    "vit_small_patch14_reg4_dinov2": (1, 5),
    "vit_tiny_patch16_224": (1, 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_unit_is_a_layer_or_left_out_with_the_reason(name: str) -> None:
    share, apart = NETWORKS[name]
    with torch.device("meta"):
        module: nn.Module = timm.create_model(name, pretrained=False)
    module.eval().requires_grad_(False)
    config: Any = module.pretrained_cfg
    size = config["input_size"][1:]
    found = survey(module, size)
    units = [n for n, m in module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    listed = {layer.module for layer in found.layers}
    assert set(units) <= listed | {each.module for each in found.omissions}
    assert len(listed & set(units)) / len(units) >= share
    assert not found.unknown
    tokens = [layer for layer in found.layers if layer.kind == "token"]
    assert {layer.apart for layer in tokens} <= {apart}
    assert found.layers[-1].kind == ("token" if "dinov2" in name else "fc")  # it has no head
    for layer in tokens:
        rows, columns = layer.map
        assert rows == columns
        assert layer.local.stride[0] * rows == size[0]
