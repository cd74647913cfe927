"""What a network's graph gives, kept between commands: its layers, and that it has been checked.

Only of networks that are known by name: your own code may change anywhere. All that decides a
result is in its key: this package's code, the files that define the modules, the libraries'
versions, the tensors' shapes, and for the check the weights themselves and the kind of processor.
"""

from __future__ import annotations

import inspect
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from cnnvis_cli.digests import file_digest, source_digest
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.self_check import Verdict, judged
from cnnvis_cli.network.survey import Survey, survey
from cnnvis_cli.nouns import Size
from cnnvis_cli.store.cache import remembered
from cnnvis_cli.store.run import Record
from cnnvis_cli.validation import from_plain


def is_known(model: str) -> bool:
    """Return whether a network is built by a library or by cnnvis, from its name alone."""
    return ":" not in model or model.startswith("timm:")


def code_of(model: str) -> Record:
    """Return which code builds a known network and looks at it."""
    libraries = ["cnnvis", "torch", "torchvision", *(["timm"] if ":" in model else [])]
    return {
        "model": model,
        "code": source_digest(),
        "versions": {name: version(name) for name in libraries},
    }


def _structure(model: str, module: nn.Module, size: Size) -> Record:
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


def known_survey(model: str, module: nn.Module, size: Size) -> Survey:
    """Return a network's layers as `survey` does, from an earlier time if it is known by name."""
    if not is_known(model):
        return survey(module, size)
    key = _structure(model, module, size)
    found: Survey = remembered(
        "survey", key, partial(survey, module, size), partial(from_plain, Survey)
    )
    return found


def known_check(network: Network) -> tuple[Network, tuple[str, ...]]:
    """Check a network as `checked` does, or see that this was done for the same weights."""
    if not is_known(network.name):
        verdict = judged(network)
    else:
        key = {
            **_structure(network.name, network.module, network.size),
            "weights": network.digest,
            "preprocessing": repr(network.preprocessing),
            "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        }
        verdict = remembered("check", key, partial(judged, network), partial(from_plain, Verdict))
    return verdict.applied(network), verdict.notes
