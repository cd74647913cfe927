"""A class has one probability, whoever makes it and wherever the network ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from cnnvis_cli.network.network import Network
from cnnvis_cli.network.outputs import find_outputs, watching
from cnnvis_cli.network.probability import Ending, ending_of, probabilities
from cnnvis_cli.nouns import Preprocessing

SHAPE = Preprocessing(resize=16, crop=(16, 16))


class Ended(nn.Module):
    """A small network with something after its last layer."""

    def __init__(self, classes: int, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, classes)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(self.conv(x).relu().mean((2, 3))) / 3)


def network(classes: int, end: Callable[[Tensor], Tensor]) -> Network:
    return Network.prepare("ended", Ended(classes, end).eval(), SHAPE)


def written_out(x: Tensor) -> Tensor:
    high = (x - x.amax(dim=1, keepdim=True)).exp()
    return high / high.sum(dim=1, keepdim=True)


ENDS: dict[str, tuple[int, Any, Ending]] = {
    "nothing": (5, nn.Identity(), Ending.SCORES),
    "a rectifier": (5, nn.ReLU(), Ending.SCORES),
    "log_softmax": (5, nn.LogSoftmax(dim=1), Ending.SCORES),
    "one score": (1, nn.Identity(), Ending.SCORE),
    "a softmax module": (5, nn.Softmax(dim=1), Ending.PROBABILITIES),
    "a softmax function": (5, lambda x: F.softmax(x, dim=1), Ending.PROBABILITIES),
    "a softmax written out": (5, written_out, Ending.PROBABILITIES),
    "two classes": (2, nn.Softmax(dim=1), Ending.PROBABILITIES),
    "several labels": (5, torch.sigmoid, Ending.PROBABILITIES),
    "one sigmoid": (1, nn.Sigmoid(), Ending.PROBABILITIES),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_network_s_own_probabilities_are_not_made_again(name: str) -> None:
    classes, end, ending = ENDS[name]
    prepared, plain = network(classes, end), network(classes, nn.Identity())
    assert ending_of(prepared) is ending
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = probabilities(prepared, prepared.module(x))
        scores = plain.module(x)
    own = {
        "a rectifier": scores.relu().softmax(1),
        "several labels": scores.sigmoid(),
        "one score": scores.sigmoid(),
        "one sigmoid": scores.sigmoid(),
    }
    torch.testing.assert_close(found, own.get(name, scores.softmax(1)))


@pytest.mark.parametrize("name", ["nothing", "a softmax function", "one score"])
def test_activations_have_the_same_probability(name: str) -> None:
    classes, end, _ = ENDS[name]
    prepared = network(classes, end)
    outputs = find_outputs(prepared)
    seen: list[str] = []
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        with watching(prepared, outputs, lambda each, _: seen.append(each.name)) as run:
            found = run(x)
        assert found is not None
        torch.testing.assert_close(found, probabilities(prepared, prepared.module(x)))
    assert sorted(seen) == sorted({*seen, "prob"})  # each once: what decides has no part in it
