"""One probability for every command: what a network's last layer says of each class."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from cnnvis_cli.network.network import Network
from cnnvis_cli.network.observe import observing

SUMS = 1e-3  # how far from 1 the probabilities of all classes may sum up: bfloat16 keeps 8 bits
NOISE_IMAGES = 4  # of noise, by which it is decided
PROBABILITY_FUNCTIONS = ("softmax", "sigmoid", "sigmoid_")  # functions that make probabilities


class Ending(Enum):
    """What a network's output is."""

    SCORES = "scores"  # of several classes: a softmax makes probabilities of them
    SCORE = "score"  # of one class: a sigmoid does
    PROBABILITIES = "probabilities"  # by a softmax or sigmoid of the network's own


_endings = WeakIdKeyDictionary()  # by module, decided once


def probabilities(network: Network, output: Tensor) -> Tensor:
    """Return the probability of each class from the network's output: (B, C) -> (B, C) float32.

    The softmax; the sigmoid if there is one class; the output itself if the network ends in one of
    these, as a module, a function or written out. That is decided once per network, on noise.
    """
    scores, ending = output.float(), ending_of(network)
    if ending is Ending.PROBABILITIES:
        return scores
    return scores.softmax(dim=1) if ending is Ending.SCORES else scores.sigmoid()


def ending_of(network: Network) -> Ending:
    """Return what the output is; runs the network the first time, so call it without hooks."""
    if network.module not in _endings:
        _endings[network.module] = _ending(network)
    found: Ending = _endings[network.module]
    return found


def _ending(network: Network) -> Ending:
    shape = (NOISE_IMAGES, 3, *network.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made: list[int] = []  # where such functions wrote

    def see(function: Any, _args: Any, _named: Any, found: Any) -> None:
        if getattr(function, "__name__", "") in PROBABILITY_FUNCTIONS and isinstance(found, Tensor):
            made.append(found.data_ptr())

    with torch.no_grad(), observing(see):
        output = network.module(network.normalise(50 * noise.to(network.device)))  # grey levels
    if not isinstance(output, Tensor) or output.dim() != 2:
        return Ending.SCORES
    if output.data_ptr() in made[-1:] or (output.shape[1] > 1 and _sum_to_one(output.float())):
        return Ending.PROBABILITIES
    return Ending.SCORES if output.shape[1] > 1 else Ending.SCORE


def _sum_to_one(output: Tensor) -> bool:
    sums = output.sum(dim=1)
    return bool((output >= 0).all()) and bool(((sums - 1).abs() < SUMS).all())
