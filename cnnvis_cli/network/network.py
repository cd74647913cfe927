"""A trained convnet, ready for inspection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.fusion import left_out, rectifiers
from cnnvis_cli.network.observe import in_evaluation
from cnnvis_cli.network.survey import Omission, Survey, canonical, reading_outputs, survey
from cnnvis_cli.network.window import NotWindowable, Window
from cnnvis_cli.nouns import Box, Layer, Preprocessing, Size
from cnnvis_cli.registry import unknown

Reader = Callable[[Layer, Tensor], None]
Surveyor = Callable[[nn.Module, Size], Survey]


class _Reached(Exception):
    """Ends a forward pass early."""


@dataclass(frozen=True)
class Network:
    """A module in evaluation mode with its preprocessing and its layers.

    Images are uint8 (B, height, width, 3) in RGB; `size` is the input's height and width.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    digest: str
    classes: tuple[str, ...]
    layers: tuple[Layer, ...]
    inplace: tuple[str, ...] = ()  # modules that would work in place
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    omissions: tuple[Omission, ...] = ()  # modules with weights that are no layers
    unknown: tuple[str, ...] = ()  # operations whose results may see everything
    memory_format: torch.memory_format = torch.channels_last  # of images on their way in

    @classmethod
    def prepare(
        cls,
        name: str,
        module: nn.Module,
        preprocessing: Preprocessing,
        digest: str = "",
        classes: tuple[str, ...] = (),
        survey: Surveyor = survey,
    ) -> Network:
        """Freeze a module, find its layers, and turn off in-place operations.

        In-place rectifiers would overwrite the inspected outputs; without them the values are the
        same. `survey` may know the layers from an earlier time.
        """
        in_evaluation(module)
        module.requires_grad_(False)
        inplace = tuple(n for n, m in module.named_modules() if getattr(m, "inplace", False))
        for child in inplace:
            module.get_submodule(child).inplace = False  # type: ignore[assignment]
        try:
            found = survey(module, preprocessing.crop)
        except CnnvisError as error:
            raise type(error)(f"{name}: {error}") from None
        except (RuntimeError, AssertionError) as error:  # vision transformers assert their size
            first = (str(error) or type(error).__name__).splitlines()[0]
            height, width = preprocessing.crop
            raise UsageError(
                f"{name}: cannot take an input of {height}x{width} pixels ({first}); "
                "set crop under [preprocessing]"
            ) from None
        return cls(
            *(name, module, preprocessing, digest, classes, found.layers, inplace),
            omissions=found.omissions,
            unknown=found.unknown,
        )

    def to(self, device: torch.device) -> Network:
        """Return the same network on a device, its weights in the layout that is fastest there."""
        module = self.module.to(device=device, memory_format=self.memory_format)  # type: ignore[call-overload]
        parts = {**self.__dict__, "module": module, "device": device}
        return Network(**parts)

    @property
    def size(self) -> Size:
        return self.preprocessing.crop

    def map_bytes(self, layer: Layer) -> int:
        """Return how much the outputs of the layers up to one take for a whole input, in bytes."""
        upto = self.layers[: self.layers.index(layer) + 1]
        return 4 * sum(la.channels * la.map[0] * la.map[1] for la in upto)

    def layer(self, name: str) -> Layer:
        """Return the layer of an alias or module path.

        ``alias:`` or ``module:`` before it says which is meant. Raise `UsageError` for a name that
        is one layer's alias and another module's path, and for an unknown one, with the nearest.
        """
        found = [layer for layer in self.layers if name in _names(layer)]
        inside = self._inside(name)
        if len(found) > 1 or (found and self._shadows(found[0], name)):
            raise UsageError(f"{self.name}: --layer {name} means two modules; {self._both(name)}")
        if found:
            return found[0]
        if inside:
            raise UsageError(f"{self.name}: {name} holds layers; choose one: {_some(inside)}")
        raise unknown("layer", name, [layer.alias for layer in self.layers], place=self.name)

    def _inside(self, path: str) -> list[Layer]:
        """Return the layers inside of the module of this path."""
        path = path.removeprefix("module:")
        return [la for la in self.layers if path and la.module.startswith(f"{path}.")]

    def _shadows(self, layer: Layer, name: str) -> bool:
        """Return whether a layer's alias is the path of a module that is more than this layer."""
        if layer.alias != name or layer.module == name:
            return False
        if inside := self._inside(name):
            return inside != [layer]
        return any(path == name for path, _ in self.module.named_modules())

    def _both(self, name: str) -> str:
        """Return what can be written instead of a name that means two modules."""
        by_alias = next(layer for layer in self.layers if layer.alias == name)
        by_path = [layer for layer in self.layers if layer.module == name] or self._inside(name)
        other = "the module of that name is not a layer that is listed"
        if by_path:
            other = f"module:{name} for what is listed as {_some(by_path)}"
        return f"write alias:{name} for {by_alias.module}, or {other}"

    def aliased(self, aliases: Iterable[str]) -> tuple[Layer, ...]:
        """Return the layers of these aliases, as files have them, in their order.

        Raise `UsageError` for one that the network does not have.
        """
        known = {layer.alias: layer for layer in self.layers}
        aliases = tuple(aliases)
        for alias in aliases:
            if alias not in known:
                raise unknown("layer", alias, list(known), place=self.name)
        return tuple(known[alias] for alias in aliases)

    def choose(self, names: Iterable[str]) -> tuple[Layer, ...]:
        """Return the layers of these names, once each, in the network's order; all if empty.

        The path of a module that holds layers stands for all of them.
        """
        names, wanted = tuple(names), set[str]()
        for name in names:
            known = any(name in _names(layer) for layer in self.layers)
            inside = [] if known else self._inside(name)
            wanted |= {la.alias for la in inside or [self.layer(name)]}
        return tuple(la for la in self.layers if not names or la.alias in wanted)

    def centre(self, images: Tensor) -> Tensor:
        """Return uint8 images as mean-subtracted pixels: (B, h, w, 3) -> (B, 3, h, w) float32."""
        pixels = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        return pixels - self.mean

    @property
    def mean(self) -> Tensor:
        """The mean colour in RGB, 0..255: (1, 3, 1, 1)."""
        return self._colours(self.preprocessing.mean)

    def _colours(self, values: tuple[float, float, float]) -> Tensor:
        """Return three numbers as a tensor, (1, 3, 1, 1), without waiting for the device."""
        return torch.tensor(values).view(1, 3, 1, 1).to(self.device, non_blocking=True)

    def normalise(self, centred: Tensor) -> Tensor:
        """Turn mean-subtracted RGB pixels into the module's input: (B, 3, h, w) -> the same."""
        scaled = centred / self._colours(self.preprocessing.std)
        ordered = scaled.flip(1) if self.preprocessing.bgr else scaled
        return ordered.contiguous(memory_format=self.memory_format)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let modules work in place again, as the network itself does.

        This saves memory traffic, and changes outputs after `tap` has passed them on: use it only
        for passes without gradients whose outputs are read at once and not kept.
        """
        children = [self.module.get_submodule(name) for name in self.inplace]
        for child in children:
            child.inplace = True  # type: ignore[assignment]
        try:
            yield
        finally:
            for child in children:
                child.inplace = False  # type: ignore[assignment]

    @contextmanager
    def rectified_by_reader(self, layers: Iterable[Layer]) -> Iterator[frozenset[str]]:
        """Yield the layers (aliases) whose output the reader must rectify in place in this block.

        These are the layers that the network rectifies in its next step; see `fusion`. To be used
        inside `in_place`.
        """
        blank = torch.zeros(1, 3, *self.size, device=self.device)
        found = rectifiers(self.module, layers, self.normalise(blank))
        with left_out(found.values()):
            yield frozenset(found)

    @contextmanager
    def tap(self, layers: Iterable[Layer], read: Reader) -> Iterator[Callable[[Tensor], None]]:
        """Pass each layer's own output to `read` as soon as it is computed, then end the pass.

        Yield a function that runs normalised pixels through the network. Raise `CnnvisError` for a
        layer that runs more than once in a pass, or not at all.
        """
        pending = {layer.module: layer for layer in layers}
        for layer in pending.values():
            self._refuse_reused(layer)
        fired: set[str] = set()

        def see(layer: Layer, output: Any) -> None:
            fired.add(layer.module)
            read(layer, canonical(layer, output))
            if len(fired) == len(pending):
                raise _Reached

        def run(pixels: Tensor) -> None:
            fired.clear()
            try:
                self.module(pixels)
            except _Reached:
                return
            missed = [la.alias for la in pending.values() if la.module not in fired]
            if missed:
                raise CnnvisError(f"{self.name}: {', '.join(missed)} did not run")

        with reading_outputs(self.module, list(pending.values()), see):
            yield run

    def _refuse_reused(self, layer: Layer) -> None:
        if layer.calls > 1:
            raise CnnvisError(
                f"{self.name}: {layer.alias} ({layer.module}) runs {layer.calls} times in one "
                "pass, so its units have no single value; choose other layers with --layer"
            )

    def canvas(self, layer: Layer) -> Box:
        """Return the window that is optimized for this layer: the centre unit's receptive field.

        It is the whole input if the field does not fit inside it, or if the network mixes all
        places before the layer.
        """
        box = layer.field.box(*layer.centre)
        return self.window(layer, box) if box.inside(self.size) else Box.whole(self.size)

    def window(self, layer: Layer, box: Box) -> Box:
        """Return the smallest window over `box` that gives `layer` its exact values there."""
        clipped = box.clip(self.size)
        if min(clipped.size) <= 0:  # it sees nothing but padding
            return Box.whole(self.size)
        try:
            with torch.enable_grad():  # shows results of code that cannot be followed
                blank = next(self.module.parameters()).new_zeros(1, 3, *clipped.size)
                self.values(layer, clipped, blank.requires_grad_())
        except (NotWindowable, AssertionError):  # vision transformers assert their input's size
            return Box.whole(self.size)
        return clipped

    def values(self, layer: Layer, box: Box, pixels: Tensor) -> tuple[Tensor, Size]:
        """Return the layer's output for a window of the input, and its first row and column.

        `pixels` are mean-subtracted, (B, 3, h, w) of the window `box`; the output is (B, C, rows,
        columns), or (B, C, 1, 1) for a fully connected layer.
        """
        maps, origin = self.values_with([], layer, box, pixels)
        return maps[layer.alias], origin

    def values_with(
        self, below: Sequence[Layer], layer: Layer, box: Box, pixels: Tensor
    ) -> tuple[dict[str, Tensor], Size]:
        """Return, by alias, what `values` gives and the outputs of layers below on the way.

        Of these a window holds as much as it needs; the map of one that it does not need may have
        no place.
        """
        layers, inputs = [*below, layer], self.normalise(pixels)
        if box == Box.whole(self.size):
            return self._outputs(layers, inputs), (0, 0)
        walk = Window(box, self.size)
        with walk:
            maps = self._outputs(layers, walk.begin(inputs))
            return maps, walk.origin(maps[layer.alias])

    def layers_below(self, layer: Layer) -> list[Layer]:
        """Return the layers that run before one, without those that run more than once."""
        before = self.layers[: self.layers.index(layer)]
        return [each for each in before if each.calls == 1]

    def _outputs(self, layers: Sequence[Layer], inputs: Tensor) -> dict[str, Tensor]:
        """Return layers' output maps by alias; a fully connected layer is a map of one place."""
        kept: dict[str, Tensor] = {}

        def keep(layer: Layer, output: Tensor) -> None:
            kept[layer.alias] = output if output.dim() == 4 else output[:, :, None, None]

        with self.tap(layers, keep) as run:
            run(inputs)
        return kept


def _names(layer: Layer) -> tuple[str, ...]:
    """Return all that may be written for a layer."""
    return layer.alias, layer.module, f"alias:{layer.alias}", f"module:{layer.module}"


def _some(layers: list[Layer], most: int = 6) -> str:
    more = f", ... ({len(layers)} in all)" if len(layers) > most else ""
    return ", ".join(layer.alias for layer in layers[:most]) + more
