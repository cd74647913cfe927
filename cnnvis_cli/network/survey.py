"""Listing a network's layers, and everything with weights that is not one, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn

from cnnvis_cli.network.fields import Fields
from cnnvis_cli.network.observe import hookable, observing
from cnnvis_cli.network.operations import ROLES, Role
from cnnvis_cli.network.places import arrange, arrangement
from cnnvis_cli.network.walk import tensors
from cnnvis_cli.nouns import Arrangement, Kind, Layer, Reads, ReceptiveField, Size

SURVEY_IMAGES = 2  # in the pass that finds layers: two show which row belongs to which image
LISTED = (nn.Conv2d, nn.Linear)
CHANNELS_LAST = Arrangement(-1, 0, 0, ())  # (B, rows, columns, C)
_FUNCTIONS = (F.linear, F.conv2d, torch.conv2d)
_MULTIPLYING = tuple(func for func, role in ROLES.items() if role is Role.PRODUCT)


@dataclass(frozen=True)
class Omission:
    """A module with weights that is no layer, and why; `told` if its user may miss it."""

    module: str
    kind: str  # the module's class
    reason: str
    told: bool


@dataclass(frozen=True)
class Survey:
    """What there is in a network: its layers, what is left out, and operations without a row."""

    layers: tuple[Layer, ...]
    omissions: tuple[Omission, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """Where the units and places of a module's output are; see `Layer`."""

    kind: Kind
    channels: int
    map: Size
    field: ReceptiveField
    local: ReceptiveField
    arrangement: Arrangement | None


def layout_of(walk: Fields, output: Tensor, size: Size, linear: bool) -> Layout | str:
    """Return the layout of a layer's output for `SURVEY_IMAGES` images, or why it has none."""
    whole = ReceptiveField.whole(size)
    known = walk[output]
    if known is None:
        return "its output does not depend on the image"
    if not linear and output.dim() == 4 and output.shape[0] == SURVEY_IMAGES:
        shape = (int(output.shape[2]), int(output.shape[3]))
        plain = known.dims == (-2, -1)
        field, local = known.state if plain else (whole, whole)
        return Layout("conv", int(output.shape[1]), shape, field, local, None)
    if linear and output.dim() == 4 and known.dims == (-3, -2) and output.shape[0] == SURVEY_IMAGES:
        shape = (int(output.shape[1]), int(output.shape[2]))
        return Layout("conv", int(output.shape[3]), shape, *known.state, CHANNELS_LAST)
    vector = linear and output.dim() == 2 and output.shape[0] == SURVEY_IMAGES
    found = walk.places(output)
    if found is not None and not (vector and found[1] == (1, 1)):
        found_at = arrangement(*found, channel=-1 if linear else 1)
        if found_at is not None:
            channels = int(output.shape[-1 if linear else 1])
            kind: Kind = "token" if output.dim() == 3 else "conv"
            return Layout(kind, channels, found[1], *known.state, found_at)
    if vector:
        return Layout("fc", int(output.shape[1]), (1, 1), whole, whole, None)
    if walk.unknown_operations:
        return f"its places cannot be followed through {walk.unknown_operations[-1]}"
    return "its rows are not places of the image"


def canonical(layer: Layer, output: Any) -> Tensor:
    """Return a layer's output as a map (B, C, rows, columns), or (B, C) for an fc layer."""
    first = next(tensors(output)) if layer.reads == "attention" else output
    return first if layer.arrangement is None else mapped(first, layer.arrangement, layer.map)


def mapped(output: Tensor, arrangement: Arrangement, size: Size) -> Tensor:
    """Return a module's output as a map: any shape -> (B, C, *size)."""
    if arrangement == CHANNELS_LAST:
        return output.permute(0, 3, 1, 2)  # in a window, of as many places as it has
    found = arrange(output, arrangement)
    return found.reshape(*found.shape[:2], *size)


class _Survey:
    """Watches one pass, and notes each layer when its output is computed."""

    def __init__(self, module: nn.Module, size: Size) -> None:
        self.module, self.size, self.walk = module, size, Fields(size)
        self.names = {child: name for name, child in module.named_modules()}
        self.owners = {
            id(weight): (child, weight_name)
            for weight_name, weight in module.named_parameters()
            for child in [module.get_submodule(weight_name.rpartition(".")[0])]
            if weight.dim() > 1
        }
        self.multiplied: set[nn.Module] = set()
        self.running: Counter[nn.Module] = Counter()
        self.ran: set[str] = set()
        self.found: dict[str, Layer] = {}
        self.refused: dict[str, str] = {}

    def note(self, name: str, output: Any, linear: bool, reads: Reads) -> None:
        """Note a layer's output, or that it has run once more."""
        first = next(tensors(output), None)
        if first is None:
            return
        if name in self.found:
            again = self.found[name]
            self.found[name] = replace(again, calls=again.calls + 1)
            return
        layout = layout_of(self.walk, first, self.size, linear)
        if isinstance(layout, str):
            self.refused[name] = layout
            return
        alias = f"{layout.kind}{len(self.found) + 1}"
        narrow = layout.local if layout.local != layout.field else None
        self.found[name] = Layer(
            *(alias, name, layout.kind, layout.channels, layout.map, layout.field),
            narrow=narrow,
            arrangement=layout.arrangement,
            reads=reads,
        )

    def entered(self, child: nn.Module, _given: Any) -> None:
        self.ran.add(self.names[child])

    def before(self, child: nn.Module, _given: Any) -> None:
        self.running[child] += 1
        self.ran.add(self.names[child])

    def after(self, child: nn.Module, _given: Any, output: Any) -> None:
        self.running[child] -= 1
        name = self.names[child]
        if isinstance(child, LISTED):
            self.note(name, output, isinstance(child, nn.Linear), "module")
        elif isinstance(child, nn.MultiheadAttention):
            self.ran.add(f"{name}.out_proj")
            self.note(f"{name}.out_proj", output, True, "attention")

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note a layer whose weight is used without calling its module."""
        weights = [each for each in tensors([args, kwargs]) if id(each) in self.owners]
        for weight in weights:
            child, name = self.owners[id(weight)]
            if func in _MULTIPLYING and not isinstance(child, nn.MultiheadAttention):
                self.multiplied.add(child)
            if func in _FUNCTIONS and not self.running[child]:
                name = name.removesuffix(".weight")
                self.ran.add(name)
                self.note(name, out, func is F.linear, "function")

    def run(self, channels: int) -> None:
        """Run zeros through the network, on whatever device it is."""
        like = next(self.module.parameters())
        image = like.detach().new_zeros(SURVEY_IMAGES, channels, *self.size)
        with ExitStack() as stack:
            for _, child in hookable(self.module):
                if not isinstance(child, (*LISTED, nn.MultiheadAttention)):
                    stack.callback(child.register_forward_pre_hook(self.entered).remove)
                    continue
                stack.callback(child.register_forward_pre_hook(self.before).remove)
                stack.callback(child.register_forward_hook(self.after).remove)
            stack.enter_context(torch.enable_grad())
            start = self.walk.begin(image)
            stack.enter_context(self.walk)
            stack.enter_context(observing(self.see))
            self.module(start)


def survey(module: nn.Module, size: Size, channels: int = 3) -> Survey:
    """Return the layers of a network, in the order of the forward pass, and what is left out.

    Runs two images of zeros of `size` through `module`, whose parameters must not require
    gradients, on whatever device it is (``meta`` costs nothing). A linear layer that works place by
    place is a convolution of one pixel, and one on tokens a layer with a map.
    """
    watch = _Survey(module, size)
    watch.run(channels)
    omissions = tuple(_omissions(watch))
    return Survey(tuple(watch.found.values()), omissions, tuple(watch.walk.unknown_operations))


def find_layers(module: nn.Module, size: Size, channels: int = 3) -> tuple[Layer, ...]:
    """Return the layers of a network alone; see `survey`."""
    return survey(module, size, channels).layers


def _omissions(watch: _Survey) -> Iterator[Omission]:
    """Yield every module that has weights of its own and is no layer, in the network's order."""
    for child, name in watch.names.items():
        if name in watch.found or not any(True for _ in child.parameters(recurse=False)):
            continue
        reason, told = _why_no_layer(child, name, watch)
        yield Omission(name, type(child).__name__, reason, told)


def _why_no_layer(child: nn.Module, name: str, watch: _Survey) -> tuple[str, bool]:
    """Return why a module is no layer, and whether that must be said."""
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    if isinstance(child, norms) or "norm" in type(child).__name__.lower():
        return "a normalisation: its channels are those of the layer before it", False
    if name in watch.refused:
        return watch.refused[name], True
    if isinstance(child, torch.jit.ScriptModule):
        return "scripted: its parts cannot be seen", True
    if name not in watch.ran and not isinstance(child, nn.ParameterList):
        return "it does not run in evaluation", True
    for kinds, reason in _REASONS:
        if isinstance(child, kinds):
            return reason, True
    if child in watch.multiplied:
        return "its weights are multiplied by a function of its own", True
    return "neither a convolution nor a linear layer", False


_REASONS: tuple[tuple[Any, str], ...] = (
    (nn.MultiheadAttention, "packed attention: queries, keys and values share one matrix"),
    (nn.RNNBase, "recurrent: a unit has a value per step, not per place"),
    (nn.RNNCellBase, "recurrent: a unit has a value per step, not per place"),
    (nn.modules.conv._ConvTransposeNd, "a transposed convolution"),
    ((nn.Conv1d, nn.Conv3d), "a convolution over one or three dimensions"),
    (nn.Embedding, "an embedding: its rows are chosen, not computed"),
)


def said(omissions: tuple[Omission, ...]) -> str | None:
    """Return one line about the modules that a user may miss; None if there are none."""
    told = [each for each in omissions if each.told]
    if not told:
        return None
    by_reason: dict[str, list[str]] = {}
    for each in told:
        by_reason.setdefault(each.reason, []).append(each.module or "the network itself")
    parts = [f"{_few_names(names)} ({reason})" for reason, names in by_reason.items()]
    return f"left out of the layers: {'; '.join(parts)}"


def _few_names(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


@contextmanager
def reading_outputs(
    module: nn.Module, layers: list[Layer], read: Callable[[Layer, Any], None]
) -> Iterator[None]:
    """Call `read` with each layer's raw output, while the network runs in this block."""
    called = {id(weight_of(module, layer)): layer for layer in layers if layer.reads == "function"}

    def see(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if func in _FUNCTIONS:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            if (layer := called.get(id(weight))) is not None:
                read(layer, out)

    with ExitStack() as stack:
        for layer in layers:
            if layer.reads != "function":
                path = layer.module.removesuffix(".out_proj")
                child = module.get_submodule(path if layer.reads == "attention" else layer.module)
                stack.callback(child.register_forward_hook(partial(_hooked, read, layer)).remove)
        if called:
            stack.enter_context(observing(see))
        yield


def weight_of(module: nn.Module, layer: Layer) -> Tensor:
    """Return the weights of a layer: (units, ...)."""
    try:
        return module.get_parameter(f"{layer.module}.weight")
    except AttributeError:
        return module.get_parameter(layer.module)


def _hooked(
    read: Callable[[Layer, Any], None], layer: Layer, _module: Any, _given: Any, output: Any
) -> None:
    read(layer, output)
