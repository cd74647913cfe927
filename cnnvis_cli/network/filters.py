"""The filters of a layer that sees the image: their strength, their fineness, and clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.survey import weight_of
from cnnvis_cli.nouns import Layer

RADIUS = 0.1  # Zeiler & Fergus 2013, section 3
BELOW_ONE = 1 - 2**-23  # one step of float32: rounding never lifts a filter above the radius


def rgb_filters(network: Network, layer: Layer) -> Tensor:
    """Return a layer's weights as used by the network: (C, 3, h, w), or (C, 1, h, w) of grey.

    Raise `UsageError` for a layer whose input is not an RGB image, `CnnvisError` for weights that
    are not numbers.
    """
    reason = why_not_rgb(network, layer)
    if reason:
        raise UsageError(f"{network.name}: {layer.alias} has no RGB filters, because {reason}")
    found = weight_of(network.module, layer).detach().cpu().contiguous()
    bad = (~found.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise CnnvisError(
            f"{network.name}: filter {bad[0]} of {layer.alias} holds values that are not numbers; "
            "give other weights with -w"
        )
    return found


def rgb(network: Network, found: Tensor) -> Tensor:
    """Return filters with their channels in the order red, green, blue; grey ones alike in all.

    (C, 3, h, w) or (C, 1, h, w) -> (C, 3, h, w).
    """
    if found.shape[1] == 1:
        return found.expand(-1, 3, -1, -1)
    return found.flip(1) if network.preprocessing.bgr else found


def first_rgb(network: Network) -> Layer:
    """Return the first convolution that sees the image; raise `UsageError` if there is none."""
    for layer in network.layers:
        if not why_not_rgb(network, layer):
            return layer
    raise UsageError(f"{network.name}: no convolution takes the three colours of an image")


def why_not_rgb(network: Network, layer: Layer) -> str:
    """Return why a layer's filters are not RGB pictures; empty if they are."""
    module = None if layer.reads != "module" else network.module.get_submodule(layer.module)
    if not isinstance(module, nn.Conv2d):
        return "it is not a convolution; the first one is the default"
    grey = network.preprocessing.grey and module.in_channels == 1
    if module.in_channels != 3 and not grey:
        return (
            f"it takes {module.in_channels} channels, not 3; the first convolution is the default"
        )
    return f"it is split into {module.groups} groups" if module.groups > 1 else ""


def rms(found: Tensor) -> Tensor:
    """Return the root mean square of each filter's weights: (C, 3, h, w) -> (C,) float64."""
    return found.double().square().flatten(1).mean(dim=1).sqrt()


def own_radius(network: Network) -> float:
    """Return the paper's radius in the units of a network's filters.

    Zeiler & Fergus subtract the mean from pixels of 0 to 255 and divide by nothing. Where the
    input is divided by a deviation, weights that do the same are that many times larger: of the
    three colours, its root mean square.
    """
    squares = [value**2 for value in network.preprocessing.std]
    return RADIUS * math.sqrt(sum(squares) / len(squares))


def clipped(found: Tensor, radius: float = RADIUS) -> Tensor:
    """Return the filters, with those whose RMS exceeds the radius scaled down to it.

    "We renormalize each filter in the convolutional layers whose RMS value exceeds a fixed radius
    of 10^-1 to this fixed radius" (Zeiler & Fergus 2013, section 3). No RMS is above the radius
    afterwards, so a second time changes nothing.
    """
    size = rms(found)
    scale = radius / size * BELOW_ONE
    scaled = (found.double() * scale.view(-1, 1, 1, 1)).to(found.dtype)
    return torch.where((size > radius).view(-1, 1, 1, 1), scaled, found)


def spatial_frequency(found: Tensor) -> Tensor:
    """Return filters' mean spatial frequencies in cycles per pixel: (C, 3, h, w) -> (C,) float64.

    The mean of the radial frequency sqrt(u^2 + v^2) over the discrete Fourier transform of the
    three colours, weighted by power |F(u, v)|^2, including the constant part with frequency 0: a
    blob of one colour has 0, a grating its own frequency, at most sqrt(1/2). A filter of zeros has
    0. (Yosinski et al. 2015, supplement S1, plots filters against their frequency without saying
    how it is measured.)
    """
    height, width = found.shape[2:]
    power = torch.fft.fft2(found.double()).abs().square().sum(dim=1)  # (C, h, w)
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    radius = torch.hypot(rows[:, None], columns[None])
    total = power.flatten(1).sum(dim=1)
    moment = (power * radius).flatten(1).sum(dim=1)
    mean: Tensor = moment / torch.where(total > 0, total, 1)
    return mean


def safetensors_with(network: Network, changed: Mapping[Layer, Tensor]) -> bytes:
    """Return a .safetensors file of a network's tensors, with some layers' weights changed."""
    from safetensors.torch import save

    state = dict(network.module.state_dict())
    state |= {f"{layer.module}.weight": weights for layer, weights in changed.items()}
    return save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    )
