"""Layers whose places lie in tokens, windows or channels-last maps, against plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from cnnvis_cli.network.network import Network
from cnnvis_cli.network.outputs import Output, choose_outputs, find_outputs, watching
from cnnvis_cli.nouns import Layer, Preprocessing

SIZE = (64, 64)


def vit() -> nn.Module:
    module: nn.Module = VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20
    )
    return module


def swin() -> nn.Module:
    depths, heads = [1, 2], [2, 4]
    module: nn.Module = SwinTransformer(
        [4, 4], 8, depths, heads, window_size=[4, 4], num_classes=10
    )
    return module


def convnext() -> nn.Module:
    settings = [models.convnext.CNBlockConfig(8, 16, 2), models.convnext.CNBlockConfig(16, None, 1)]
    module: nn.Module = models.ConvNeXt(settings, num_classes=10)
    return module


class Rows(nn.Module):
    """A linear layer whose rows are the places of all images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).permute(0, 2, 3, 1)
        mean: Tensor = self.head(y.reshape(-1, 8)).reshape(len(x), -1, 10).mean(1)
        return mean


class SequenceFirst(nn.Module):
    """Tokens with the images in the second dimension, and two register tokens before them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 16, stride=16)
        self.registers = nn.Parameter(torch.randn(2, 1, 6))
        self.mix, self.out = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1)
        tokens = torch.cat([self.registers.expand(-1, len(x), -1), tokens])
        scores: Tensor = self.out(self.mix(tokens)[0])
        return scores


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "swin": swin,
    "convnext": convnext,
    "rows": Rows,
    "sequence first": SequenceFirst,
}


def prepared(name: str) -> Network:
    torch.manual_seed(0)
    module = NETWORKS[name]()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Network.prepare(name, module, Preprocessing(crop=SIZE))


def maps_of(network: Network, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def read(layer: Layer, output: Tensor) -> None:
        found[layer.alias] = output.detach().clone()

    layers = [la for la in network.layers if la.calls == 1]
    with network.tap(layers, read) as run:
        run(x)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_gives_a_map_per_image(name: str) -> None:
    network = prepared(name)
    x = torch.randn(3, 3, *SIZE)
    with torch.no_grad():
        together = maps_of(network, x)
        for number in range(3):
            for alias, alone in maps_of(network, x[number : number + 1]).items():
                layer = network.layer(alias)
                shape = (layer.channels, *layer.map) if layer.kind != "fc" else (layer.channels,)
                assert alone[0].shape == shape
                torch.testing.assert_close(together[alias][number], alone[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_place_is_about_the_pixels_of_its_local_field(name: str) -> None:
    """Of the first layer on tokens or channels-last maps, a place sees its local field alone."""
    network = prepared(name)
    layer = next(la for la in network.layers if la.arrangement is not None)
    if name in ("vit", "swin"):  # the first such layer is behind an attention: a gate for all
        layer = network.layers[0]
    x = torch.randn(2, 3, *SIZE, requires_grad=True)
    maps = maps_with_gradients(network, layer, x)
    for row, column in ((0, 0), (layer.map[0] - 1, 0), layer.centre):
        (found,) = torch.autograd.grad(maps[1, :, row, column].sum(), x, retain_graph=True)
        reached = found[1].ne(0).any(0)
        rows, columns = (reached.any(1 - axis).nonzero().flatten() for axis in (0, 1))
        box = layer.local.box(row, column).clip(SIZE)
        assert (int(rows[0]), int(columns[0])) == box[:2]
        assert (int(rows[-1]) + 1, int(columns[-1]) + 1) == box[2:]
        assert not found[0].any()


def maps_with_gradients(network: Network, layer: Layer, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    with network.tap([layer], lambda _, output: kept.append(output)) as run:
        run(x * 1)
    return kept[0]


def by_hook(module: nn.Module, path: str, x: Tensor) -> Any:
    kept: list[Any] = []
    handle = module.get_submodule(path).register_forward_hook(lambda _m, _i, out: kept.append(out))
    with torch.no_grad():
        module(x)
    handle.remove()
    return kept[0]


def test_the_tokens_of_a_vision_transformer_are_its_patches() -> None:
    network = prepared("vit")
    x = torch.randn(2, 3, *SIZE)
    found = maps_of(network, x)
    layer = next(la for la in network.layers if la.module.endswith("layer_0.mlp.0"))
    assert (layer.kind, layer.channels, layer.map, layer.apart) == ("token", 20, (4, 4), 1)
    assert layer.local.size == (16, 16)
    assert layer.field.size == SIZE
    tokens = by_hook(network.module, layer.module, x)  # (B, 1 + 16, C)
    by_hand = tokens[:, 1:].transpose(1, 2).reshape(2, 20, 4, 4)
    torch.testing.assert_close(found[layer.alias], by_hand)
    attention = next(la for la in network.layers if la.reads == "attention")
    out, _ = by_hook(network.module, attention.module.removesuffix(".out_proj"), x)
    by_hand = out[:, 1:].transpose(1, 2).reshape(2, 12, 4, 4)
    torch.testing.assert_close(found[attention.alias], by_hand)


def test_the_shifted_windows_of_a_swin_transformer_are_put_back() -> None:
    """Every channel is made a copy of where it stands: a place must find itself."""
    network = prepared("swin")
    shifted = next(la for la in network.layers if la.module == "features.3.1.attn.qkv")
    assert shifted.reads == "function"
    assert shifted.map == (8, 8)
    x = torch.randn(1, 3, *SIZE)
    normed = by_hook(network.module, "features.3.1.norm1", x)  # (B, 8, 8, C), not yet shifted
    linear = network.module.get_submodule(shifted.module)
    by_hand = linear(normed).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps_of(network, x)[shifted.alias], by_hand)


def test_linear_layers_on_channels_last_maps_are_convolutions() -> None:
    network = prepared("convnext")
    layer = next(la for la in network.layers if la.module.endswith("0.block.3"))
    assert (layer.kind, layer.map, layer.alias) == ("conv", (16, 16), "conv3")
    assert layer.field.size == layer.local.size == (28, 28)
    window = network.canvas(layer)
    assert window.size == layer.field.size
    x = torch.randn(1, 3, *SIZE)
    whole = maps_of(network, x)[layer.alias]
    row, column = layer.centre
    centred = x * torch.tensor(network.preprocessing.std).view(1, 3, 1, 1)
    part = centred[:, :, window.top : window.bottom, window.left : window.right]
    with torch.no_grad():
        values, origin = network.values(layer, window, part)
    at = values[0, :, row - origin[0], column - origin[1]]
    torch.testing.assert_close(at, whole[0, :, row, column])


def test_rows_that_are_places_are_a_map() -> None:
    layer = prepared("rows").layers[1]
    assert (layer.alias, layer.kind, layer.map) == ("conv2", "conv", (8, 8))


def test_what_is_no_layer_is_named_with_the_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.auxiliary = nn.Linear(4, 2)
            self.steps = nn.GRU(4, 4, batch_first=True)
            self.bias = nn.Linear(2, 4)
            self.up = nn.ConvTranspose2d(4, 4, 2)
            self.norm = nn.BatchNorm2d(4)
            self.register_buffer("where", torch.ones(1, 2))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.up(self.conv(x)) + self.bias(self.where)[:, :, None, None])
            return self.steps(y.flatten(2).transpose(1, 2))[0][:, -1]  # type: ignore[no-any-return]

    network = Network.prepare("odd", Odd(), Preprocessing(crop=(8, 8)))
    assert [layer.module for layer in network.layers] == ["conv"]
    reasons = {each.module: each.reason.split(":")[0] for each in network.omissions}
    assert reasons == {
        "auxiliary": "it does not run in evaluation",
        "steps": "recurrent",
        "bias": "its output does not depend on the image",
        "up": "a transposed convolution",
        "norm": "a normalisation",
    }
    assert {each.module for each in network.omissions if not each.told} == {"norm"}


def test_gates_normalisation_and_attention_leave_the_local_field() -> None:
    class Gated(nn.Module):
        def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.mix = mix
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.mix(self.first(x)))
            return y

    def attention(y: Tensor) -> Tensor:
        q = y.flatten(2).transpose(1, 2)
        return ((q @ q.transpose(1, 2)).softmax(-1) @ q).transpose(1, 2).view(y.shape)

    mixes: list[Callable[[Tensor], Tensor]] = [
        lambda y: y * y.mean((2, 3), keepdim=True).sigmoid(),
        lambda y: y * nn.functional.adaptive_avg_pool2d(y, 1),
        lambda y: nn.functional.group_norm(y, 2),
        lambda y: (y - y.mean((2, 3), keepdim=True)) / y.std((2, 3), keepdim=True),
        attention,
        lambda y: y + attention(y),
    ]
    for mix in mixes:
        network = Network.prepare("gated", Gated(mix), Preprocessing(crop=(20, 20)))
        last = network.layers[-1]
        assert last.field.size == (20, 20)
        assert last.local.size == (5, 5)
        assert last.local.stride == (1, 1)
        assert network.canvas(last).size == (20, 20)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_every_layer_is_an_output_that_can_be_watched(name: str) -> None:
    network = prepared(name)
    outputs = choose_outputs(network, find_outputs(network), [la.alias for la in network.layers])
    assert [each.name for each in outputs] == [la.alias for la in network.layers]
    x = torch.randn(2, 3, *SIZE)
    seen: dict[str, Tensor] = {}

    def read(output: Output, value: Tensor) -> None:
        seen[output.name] = value.detach().clone()

    with torch.no_grad(), watching(network, outputs, read) as run:
        run(x)
        found = maps_of(network, x)
    for alias, value in found.items():
        torch.testing.assert_close(seen[alias].reshape(value.shape), value)
