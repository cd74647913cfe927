"""Watching the torch functions that a block of code calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Observer = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]


class _Observing(TorchFunctionMode):
    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._observer(func, args, kwargs, out)
        return out


def observing(observer: Observer) -> AbstractContextManager[object]:
    """Return the ``with`` block in which `observer` sees every torch function after its call.

    It receives the function, its positional and named arguments, and what it returned; functions
    that it calls itself are not observed.
    """
    return _Observing(observer)


def hookable(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return a network's modules with their paths, itself first, without scripted ones."""
    return [
        (name, child)
        for name, child in module.named_modules()
        if not isinstance(child, torch.jit.ScriptModule)
    ]


def in_evaluation(module: nn.Module) -> None:
    """Put a network into evaluation, also where its own `train` returns or changes something else.

    A pass before that would move the statistics that normalisations keep.
    """
    module.eval()
    for child in module.modules():
        child.training = False
