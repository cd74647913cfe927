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
from cnnvis_cli.network.survey import SURVEY_IMAGES, Layout, layout_of, mapped, reading_outputs
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
    finder = _Finder(network)
    handles = _hooks(network, finder.note)
    try:
        with torch.enable_grad():
            blank = torch.zeros(SURVEY_IMAGES, 3, *network.size, device=network.device)
            image = finder.walk.begin(blank)
            with finder.walk, reading_outputs(network.module, _called(network), finder.note_layer):
                output = network.module(image)
    finally:
        for handle in handles:
            handle.remove()
    found = finder.found
    if _is_vector(output) and all(each.name != PROB for each in found):
        whole = ReceptiveField.whole(network.size)
        size = int(output.shape[1])
        found.append(Output(PROB, "", 1, "softmax of the output", size, None, whole, True))
    return tuple(found)


class _Finder:
    """Notes each output of one pass when it is computed."""

    def __init__(self, network: Network) -> None:
        self.found: list[Output] = []
        self.walk = Fields(network.size)
        self._size, self._calls = network.size, Counter[str]()
        self._aliases = {layer.module: layer.alias for layer in network.layers}
        self._hidden = {layer.module for layer in network.layers if layer.reads != "module"}

    def note_layer(self, layer: Layer, output: Any) -> None:
        """Note the output of a layer whose module is not called."""
        self.note(layer.module, nn.Identity(), None, output)

    def note(self, path: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Note the output of a module."""
        path = _path_of_output(path, module)
        self._calls[path] += 1
        first = next(tensors(output), None)
        layout = None if first is None else _layout(self.walk, first, self._size)
        if layout is None:
            return
        call = self._calls[path]
        name = self._aliases.get(path, path) + (f"#{call}" if call > 1 else "")
        leaf = not any(True for _ in module.children()) and not isinstance(module, IDLE)
        kind = "Linear" if path in self._hidden else type(module).__name__
        size = None if layout.kind == "fc" else layout.map
        self.found.append(
            Output(
                *(name, path, call, kind, layout.channels, size, layout.local),
                usual=leaf or path in self._hidden,
                arrangement=layout.arrangement,
            )
        )


def _path_of_output(path: str, module: nn.Module | None) -> str:
    """Return the path of the module that a module's output is of.

    That of an attention is of its last linear layer, which is not called as a module.
    """
    return f"{path}.out_proj" if isinstance(module, nn.MultiheadAttention) else path


def _called(network: Network) -> list[Layer]:
    """Return the layers that are no module's output, but a function's."""
    return [layer for layer in network.layers if layer.reads == "function"]


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
    known = {name for each in outputs for name in _output_names(each, aliases)}
    wanted = set(names)
    for name in sorted(wanted - known):
        near = [each.name for each in outputs]
        raise unknown("layer", name, near, place=network.name)
    if not wanted:
        return tuple(each for each in outputs if each.usual)
    return tuple(each for each in outputs if wanted & _output_names(each, aliases))


def _output_names(output: Output, aliases: dict[str, str]) -> set[str]:
    """Return all names that it may be given."""
    alias = aliases.get(output.module)
    own = {output.name, output.module, f"module:{output.module}"}
    own |= {alias, f"alias:{alias}"} if alias else set()
    return own - {"", "module:"}


def _as_module(on_event: Callable[..., None], layer: Layer, output: Any) -> None:
    """Tell of a layer whose module is not called as of a module."""
    on_event(layer.module, None, None, output)


def _value(output: Output, raw: Any) -> Tensor:
    """Return what a module gave as a map (B, C, h, w) or a vector (B, C)."""
    first = next(tensors(raw))
    if output.arrangement is None or output.map is None:
        return first
    return mapped(first, output.arrangement, output.map)


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

    def on_event(path: str, module: nn.Module | None, _inputs: Any, output: Any) -> None:
        path = _path_of_output(path, module)
        passes.calls[path] += 1
        if (found := wanted.get((path, passes.calls[path]))) is not None:
            read(found, _value(found, output))

    def run(pixels: Tensor) -> Tensor | None:
        passes.calls = Counter()
        with reading_outputs(network.module, _called(network), partial(_as_module, on_event)):
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
