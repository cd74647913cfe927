"""Checking, before any work, that a network gives each image values of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Layer

LAST_BITS = 1e-3  # of a layer's largest value: by how much results of one image may differ
HUGE = 1e30
ImageSummary = dict[str, Tensor]  # per layer's alias, the largest value and the mean: (B, C, 2)


@dataclass(frozen=True)
class Verdict:
    """What a check has found: what is to be said, and whether images' channels may come last."""

    notes: tuple[str, ...]
    channels_last: bool

    def applied(self, network: Network) -> Network:
        """Return the network as it is to be used."""
        if self.channels_last or network.memory_format == torch.contiguous_format:
            return network
        network = replace(network, memory_format=torch.contiguous_format)
        return network.to(network.device)


def judged(network: Network) -> Verdict:
    """Find out whether a network gives an image the same values alone and beside another.

    Runs three images of structured noise, on the network's device. Where the forward pass cannot
    take images whose channels come last in memory, the network is to take them first; that and the
    operations that could not be followed are noted in words.

    Raises
    ------
    UsageError
        values that depend on other images or on chance (statistics of a batch, dropout that is
        left on, rows that are not images), with the first layer that shows it; a forward pass that
        fails.
    """
    notes = [
        f"{network.name}: {name} is an operation that cnnvis does not know, so every place after "
        "it counts as seeing the whole image"
        for name in network.unknown
    ]
    try:
        both = _summaries(network, (0, 1))
    except RuntimeError as error:
        if not _about_memory_format(error):
            raise _failed(network, error) from None
        network = Verdict((), False).applied(network)
        notes.append(f"{network.name}: takes only images whose channels come first in memory")
        both = _summaries(network, (0, 1))
    _compare(network, both, _summaries(network, (0,)))
    return Verdict(tuple(notes), network.memory_format == torch.channels_last)


def _about_memory_format(error: RuntimeError) -> bool:
    return "view size is not compatible" in str(error)


def _failed(network: Network, error: RuntimeError) -> UsageError:
    first = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(f"{network.name}: cannot take a batch of two images ({first})")


def structured_noise(numbers: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Return images with edges, colours and fine grain, by number: uint8 (B, height, width, 3)."""
    found = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        image = torch.zeros(1, 3, *size)
        for cells in (2, 7, 31, max(size)):
            coarse = torch.rand(1, 3, cells, cells, generator=generator)
            image += torch.nn.functional.interpolate(coarse, size)
        found.append((image[0] * 255 / 4).permute(1, 2, 0).byte())
    return torch.stack(found)


def _summaries(network: Network, numbers: Sequence[int]) -> ImageSummary:
    """Run images through the network, and return what is left of each layer's map."""
    layers = tuple(la for la in network.layers if la.calls == 1)
    found: ImageSummary = {}

    def read(layer: Layer, output: Tensor) -> None:
        if output.shape[0] != len(numbers):
            raise UsageError(
                f"{network.name}: {layer.alias} ({layer.module}) gives {output.shape[0]} rows for "
                f"{len(numbers)} images; choose other layers with --layer"
            )
        flat = output.reshape(*output.shape[:2], -1).float()
        found[layer.alias] = torch.stack([flat.amax(2), flat.mean(2)], dim=2)

    pixels = structured_noise(numbers, network.size)
    with torch.no_grad(), network.tap(layers, read) as run:
        run(network.normalise(network.centre(pixels)))
    return found


def _compare(network: Network, both: ImageSummary, alone: ImageSummary) -> None:
    """Raise `UsageError` for the first layer whose values depend on more than their image."""
    for alias, values in both.items():
        own, allowed = values[0], LAST_BITS * max(float(finite_values(values).abs().max()), 1e-30)
        if _apart(own, alone[alias][0]) > allowed:
            reason = "depend on the other images of a batch (batch statistics?)"
            if _apart(own, _summaries(network, (0, 1))[alias][0]) > allowed:
                reason = "differ from one pass to the next (dropout that stays on in evaluation?)"
            raise UsageError(
                f"{network.name}: the values of {alias} ({network.layer(alias).module}) {reason}, "
                "so no unit has a value of its own for an image"
            )


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference; values that overflow differ by nothing."""
    return float((finite_values(one) - finite_values(other)).abs().max())


def finite_values(values: Tensor) -> Tensor:
    """Return values with 0 for those that are not finite numbers, or about to overflow."""
    return torch.where(values.abs() < HUGE, values, 0)
