"""What a network's graph gives, kept between commands: its layers, and that it has been checked.

Only of networks that are known by name: your own code may change anywhere. All that decides a
result is in its key: this package's code, the files that define the modules, the libraries'
versions, the tensors' shapes, and for the check the weights themselves and the kind of processor.
"""

from __future__ import annotations

import platform
from functools import partial

import torch
from torch import nn

from cnnvis_cli.network.network import Network
from cnnvis_cli.network.self_check import Verdict, judged
from cnnvis_cli.network.structure import is_known, structure
from cnnvis_cli.network.survey import Survey, survey
from cnnvis_cli.nouns import Size
from cnnvis_cli.store.cache import remembered
from cnnvis_cli.validation import from_plain


def known_survey(model: str, module: nn.Module, size: Size) -> Survey:
    """Return a network's layers as `survey` does, from an earlier time if it is known by name."""
    if not is_known(model):
        return survey(module, size)
    key = structure(model, module, size)
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
            **structure(network.name, network.module, network.size),
            "weights": network.digest,
            "preprocessing": repr(network.preprocessing),
            "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        }
        verdict = remembered("check", key, partial(judged, network), partial(from_plain, Verdict))
    return verdict.applied(network), verdict.notes
