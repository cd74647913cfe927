"""What decides all that a network's graph tells, so that it can be kept between commands."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from cnnvis_cli.digests import file_digest, source_digest
from cnnvis_cli.nouns import Size


def is_known(model: str) -> bool:
    """Return whether a network is built by a library or by cnnvis, from its name alone."""
    return ":" not in model or model.startswith("timm:")


def code_of(model: str) -> dict[str, Any]:
    """Return which code builds a known network and looks at it."""
    libraries = ["cnnvis", "torch", "torchvision", *(["timm"] if ":" in model else [])]
    return {
        "model": model,
        "code": source_digest(),
        "versions": {name: version(name) for name in libraries},
    }


def structure(model: str, module: nn.Module, size: Size) -> dict[str, Any]:
    """Return all that decides a network's layers."""
    files = {inspect.getsourcefile(type(child)) for child in module.modules()}
    paths = sorted(path for path in map(Path, filter(None, files)) if path.is_file())
    tensors = {n: (str(t.dtype), list(t.shape)) for n, t in module.state_dict().items()}
    hooks = [hook.__qualname__ for hook in module._forward_pre_hooks.values()]
    return {
        **code_of(model),
        "files": [file_digest(path) for path in paths],
        "tensors": tensors,
        "hooks": hooks,
        "size": size,
        "device": next(module.parameters()).device.type,
    }
