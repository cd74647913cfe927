"""Rectifiers right after a layer, so that the reader of the layer can rectify on its way.

A convnet's maps are so large that every pass over them in memory counts. If the network itself
rectifies a layer's output in place as its very next step, the reader of that output can do so on
its way, and the rectifier has nothing left to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnnvis_cli.network.observe import observing
from cnnvis_cli.nouns import Layer


def rectifiers(module: nn.Module, layers: Iterable[Layer], inputs: Tensor) -> dict[str, nn.Module]:
    """Return, per layer (alias) whose very next step is an in-place ReLU of its output, the ReLU.

    They are found by a pass over `inputs`: nothing may be called between the two, and the ReLU must
    be called only once, so that nothing sees the unrectified output and the ReLU rectifies nothing
    else.
    """
    calls = 0
    last: list[tuple[str, Tensor, int]] = []
    found: dict[str, nn.Module] = {}
    called: dict[nn.Module, int] = {}

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def after(alias: str) -> Any:
        return lambda _module, _inputs, output: last.append((alias, output, calls))

    def before(relu: nn.Module, given: Any) -> None:
        called[relu] = called.get(relu, 0) + 1
        if last and given and given[0] is last[-1][1] and calls == last[-1][2]:
            found[last[-1][0]] = relu

    relus = [
        m for m in module.modules() if type(m) is nn.ReLU and m.inplace and "forward" not in vars(m)
    ]
    modules = dict(module.named_modules())
    with ExitStack() as hooks:
        for layer in layers:
            child = modules.get(layer.module)
            if child is None:  # a weight that no module of its own reads
                continue
            hooks.callback(child.register_forward_hook(after(layer.alias)).remove)
        for relu in relus:
            hooks.callback(relu.register_forward_pre_hook(before).remove)
        hooks.enter_context(observing(count))
        hooks.enter_context(torch.inference_mode())
        module(inputs)
    return {alias: relu for alias, relu in found.items() if called[relu] == 1}


@contextmanager
def left_out(relus: Iterable[nn.Module]) -> Iterator[None]:
    """Let these modules pass on their inputs unchanged."""
    modules = list(relus)
    for module in modules:
        module.forward = _hand_on
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _hand_on(given: Tensor) -> Tensor:
    return given
