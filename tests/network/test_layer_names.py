"""Names of layers: aliases, paths, paths of blocks, and names that mean two modules."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from torch import nn

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Preprocessing


def network(**parts: nn.Module) -> Network:
    return Network.prepare("net", nn.Sequential(OrderedDict(parts)), Preprocessing(16, (16, 16)))


def conv(inputs: int, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


SHIFTED = network(conv0=conv(3), conv1=conv(4), conv2=conv(4))
BLOCKS = network(
    stem=conv(3),
    layer4=nn.Sequential(conv(4), nn.ReLU(), nn.Sequential(conv(4), conv(4))),
    layer44=conv(4),
)
HIDDEN = network(conv1=nn.Sequential(conv(3), conv(4)), conv2=nn.Sequential(conv(4)))
UNLISTED = network(stem=conv(3), conv1=nn.BatchNorm2d(4))


def modules(found: Network, *names: str) -> list[str]:
    return [layer.module for layer in found.choose(names)]


def test_an_alias_that_is_another_module_s_name_is_refused_with_both() -> None:
    assert [layer.alias for layer in SHIFTED.layers] == ["conv1", "conv2", "conv3"]
    told = (
        r"--layer conv1 means two modules; write alias:conv1 for conv0, "
        r"or module:conv1 for what is listed as conv2$"
    )
    with pytest.raises(UsageError, match=told):
        SHIFTED.choose(["conv1"])
    with pytest.raises(UsageError, match=told):
        SHIFTED.layer("conv1")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("conv0", "conv0"),
        ("conv3", "conv2"),
        ("alias:conv1", "conv0"),
        ("alias:conv2", "conv1"),
        ("module:conv1", "conv1"),
        ("module:conv2", "conv2"),
    ],
)
def test_every_layer_has_a_name_that_means_it_alone(name: str, module: str) -> None:
    assert modules(SHIFTED, name) == [module]
    assert SHIFTED.layer(name).module == module


def test_files_name_layers_by_alias_whatever_else_it_means() -> None:
    assert [layer.module for layer in SHIFTED.aliased(["conv2", "conv1"])] == ["conv1", "conv0"]
    with pytest.raises(UsageError, match="net has no layer 'conv9'"):
        SHIFTED.aliased(["conv9"])


def test_a_block_stands_for_its_layers() -> None:
    assert modules(BLOCKS, "layer4") == ["layer4.0", "layer4.2.0", "layer4.2.1"]
    assert modules(BLOCKS, "layer4.2", "stem") == ["stem", "layer4.2.0", "layer4.2.1"]
    assert modules(BLOCKS) == [layer.module for layer in BLOCKS.layers]
    with pytest.raises(UsageError, match="layer4 holds layers; choose one: conv2, conv3, conv4"):
        BLOCKS.layer("layer4")
    for name in ("layer", "layer4.", "layer4.3", ""):
        with pytest.raises(UsageError, match=r"net has no layer"):
            BLOCKS.choose([name])


def test_an_alias_that_is_a_block_s_name_is_refused_unless_it_is_its_only_layer() -> None:
    with pytest.raises(UsageError, match=r"alias:conv1 for conv1\.0, or module:conv1 for .* conv1"):
        HIDDEN.choose(["conv1"])
    assert modules(HIDDEN, "module:conv1") == ["conv1.0", "conv1.1"]
    only = network(conv1=nn.Sequential(conv(3), nn.ReLU()))
    assert modules(only, "conv1") == ["conv1.0"]


def test_an_alias_that_is_the_name_of_what_is_no_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="module of that name is not a layer that is listed"):
        UNLISTED.choose(["conv1"])
    assert modules(UNLISTED, "alias:conv1") == ["stem"]
