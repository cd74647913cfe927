"""The outputs of every module of a network, not only of its convolutions and linear layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.network.fields import Fields
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.observe import hookable
from cnnvis_cli.network.probability import ending_of, probabilities
from cnnvis_cli.network.survey import IMAGES, Layout, layout_of, mapped, reading
from cnnvis_cli.network.walk import tensors
from cnnvis_cli.nouns import Arrangement, Layer, ReceptiveField, Size
from cnnvis_cli.registry import unknown

PROB = "prob"
IDLE = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity, nn.Flatten)
"""Modules that change no number of a trained network: they would show the previous layer again."""


@dataclass(frozen=True)
class Output:
    """The output of one module when it is called for the n-th time in a pass."""

    name: str  # alias or module path; with #2, #3 from the second call on
    module: str
    call: int
    kind: str  # the module's class
    channels: int
    map: Size | None  # None for a vector
    field: ReceptiveField  # the local field of each place of the map
    usual: bool  # shown by default
    arrangement: Arrangement | None = None  # where a map lies otherwise than as (B, C, h, w)

    @property
    def flat(self) -> bool:
        """Whether it has one value per channel."""
        return self.map in (None, (1, 1))

    @property
    def size(self) -> str:
        """Its size, in words."""
        if self.flat or self.map is None:
            return f"{self.channels} values"
        return f"{self.channels} channels of {self.map[0]}x{self.map[1]}"


def find_outputs(network: Network) -> tuple[Output, ...]:
    """Return every module's output that is a map or a vector (B, C), in order.

    Maps may lie in a tensor as (B, C, h, w), as (B, h, w, C) or as tokens. The last is `prob`, the
    softmax of the network's output, if that is one value per class. Runs two black images.
    Functional rectifiers are not modules and are not included.
    """
    found: list[Output] = []
    calls: Counter[str] = Counter()
    aliases = {layer.module: layer.alias for layer in network.layers}
    hidden = {layer.module for layer in network.layers if layer.reads != "module"}
    walk = Fields(network.size)

    def note_layer(layer: Layer, output: Any) -> None:
        note(layer.module, nn.Identity(), None, output)

    def note(path: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            path = f"{path}.out_proj"  # which computes its output, and is not called as a module
        calls[path] += 1
        first = first_of(output)
        layout = None if first is None else _layout(walk, first, network.size)
        if layout is None:
            return
        name = aliases.get(path, path) + (f"#{calls[path]}" if calls[path] > 1 else "")
        usual = not any(True for _ in module.children()) and not isinstance(module, IDLE)
        usual = usual or path in hidden
        size = None if layout.kind == "fc" else layout.map
        kind = "Linear" if path in hidden else type(module).__name__
        found.append(
            Output(
                *(name, path, calls[path], kind, layout.channels, size),
                *(layout.local, usual, layout.arrangement),
            )
        )

    handles = _hooks(network, note)
    try:
        with torch.enable_grad():
            image = walk.begin(torch.zeros(IMAGES, 3, *network.size, device=network.device))
            with walk, reading(network.module, _called(network), note_layer):
                output = network.module(image)
    finally:
        for handle in handles:
            handle.remove()
    if _is_vector(output) and all(each.name != PROB for each in found):
        whole = ReceptiveField.whole(network.size)
        size = int(output.shape[1])
        found.append(Output(PROB, "", 1, "softmax of the output", size, None, whole, True))
    return tuple(found)


def _called(network: Network) -> list[Layer]:
    """Return the layers that are no module's output, but a function's."""
    return [layer for layer in network.layers if layer.reads == "function"]


def first_of(output: Any) -> Tensor | None:
    """Return the tensor that a module gives, or the first of several; None if there is none."""
    return next(tensors(output), None)


def _layout(walk: Fields, output: Tensor, size: Size) -> Layout | None:
    """Return the layout of a module's output; None if it is neither a map nor a vector."""
    known = walk[output]
    dims = known.dims if known else None
    if output.dim() == 4 and dims != (-3, -2):
        found = layout_of(walk, output, size, linear=False)
        if isinstance(found, Layout) and (dims != (-2, -1) or known is None):
            return replace(found, local=ReceptiveField.whole((0, 0)))
        return found if isinstance(found, Layout) else None
    found = layout_of(walk, output, size, linear=True)
    return found if isinstance(found, Layout) else None


def _is_vector(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2


def _hooks(network: Network, on_event: Callable[..., None]) -> list[RemovableHandle]:
    """Add a hook to every module except the whole network, called with the module's path."""
    return [
        module.register_forward_hook(partial(on_event, path))
        for path, module in hookable(network.module)
        if path
    ]


def choose_outputs(
    network: Network, outputs: Sequence[Output], names: Iterable[str]
) -> tuple[Output, ...]:
    """Return the outputs of these names, in the network's order; all usual ones if empty.

    A name is an alias or a module path, which means all of the module's calls, or the name of one
    call. Raise `UsageError` with the nearest name.
    """
    aliases = {layer.module: layer.alias for layer in network.layers}
    known = {name for each in outputs for name in _names(each, aliases)}
    wanted = set(names)
    for name in sorted(wanted - known):
        near = [each.name for each in outputs]
        raise unknown("layer", name, near, place=network.name)
    if not wanted:
        return tuple(each for each in outputs if each.usual)
    return tuple(each for each in outputs if wanted & _names(each, aliases))


def _names(output: Output, aliases: dict[str, str]) -> set[str]:
    """Return all names that it may be given."""
    alias = aliases.get(output.module)
    own = {output.name, output.module, f"module:{output.module}"}
    own |= {alias, f"alias:{alias}"} if alias else set()
    return own - {"", "module:"}


Read = Callable[[Output, Tensor], None]


@contextmanager
def watching(
    network: Network, outputs: Iterable[Output], read: Read
) -> Iterator[Callable[[Tensor], Tensor | None]]:
    """Pass the outputs to `read` as soon as they are computed, `prob` last.

    Yield a function that runs normalised pixels through the whole network, to the probabilities (B,
    C) of its classes; None if it does not give one value per class. Raise `CnnvisError` for a
    missing output.
    """
    wanted = {(each.module, each.call): each for each in outputs}
    passes = local()  # several threads may run the network at once

    def on_layer(layer: Layer, output: Any) -> None:
        on_event(layer.module, None, None, output)

    def on_event(path: str, module: nn.Module | None, _inputs: Any, output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            path = f"{path}.out_proj"
        passes.calls[path] += 1
        if (found := wanted.get((path, passes.calls[path]))) is not None:
            first = next(tensors(output))
            if found.arrangement is not None and found.map is not None:
                first = mapped(first, found.arrangement, found.map)
            read(found, first)

    def run(pixels: Tensor) -> Tensor | None:
        passes.calls = Counter()
        with reading(network.module, _called(network), on_layer):
            output = network.module(pixels)
        calls = passes.calls
        missed = [each.name for each in wanted.values() if calls[each.module] < each.call]
        if missed and missed != [PROB]:
            raise CnnvisError(f"{network.name}: {', '.join(missed)} did not run")
        prob = probabilities(network, output) if _is_vector(output) else None
        if prob is not None and ("", 1) in wanted:
            read(wanted["", 1], prob)
        return prob

    ending_of(network)  # before there are hooks
    handles = _hooks(network, on_event)
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()
