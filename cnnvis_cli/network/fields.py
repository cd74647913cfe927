"""Receptive fields from the graph: through branches, padding, dilation and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cnnvis_cli.network.operations import Sliding
from cnnvis_cli.network.walk import Call, Map, Walk, tensors
from cnnvis_cli.nouns import Kind, Layer, ReceptiveField, Size


class Fields(Walk[ReceptiveField]):
    """A walk that tracks which input pixels each place of each map sees."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self._input = ReceptiveField.whole(size)

    def slide(self, known: Map[ReceptiveField], tensor: Tensor, window: Sliding) -> Tensor:
        (top, bottom), (left, right) = window.padding
        padded = nn.functional.pad(tensor, (left, right, top, bottom), value=window.fill)
        padded = _ceil_margin(padded, tensor, window)
        out = window.apply(padded)
        rows, columns = (
            axis.then(window.kernel[i], window.stride[i], window.padding[i][0], window.dilation[i])
            for i, axis in enumerate((known.state.rows, known.state.columns))
        )
        self[out] = Map(ReceptiveField(rows, columns))
        return out

    def pad(
        self,
        known: Map[ReceptiveField],
        tensor: Tensor,
        pad: Sequence[int],
        mode: str = "constant",
        value: float | None = None,
    ) -> Tensor:
        out = nn.functional.pad(tensor, list(pad), mode, value)
        if mode != "constant" or known.dims is None:
            self[out] = Map(self._input, known.dims)
            return out
        before = {-1 - i: int(pad[2 * i]) for i in range(len(pad) // 2)}
        rows, columns = (
            axis.then(1, padding=before.get(dim, 0))
            for axis, dim in zip((known.state.rows, known.state.columns), known.dims, strict=True)
        )
        self[out] = Map(ReceptiveField(rows, columns), known.dims)
        return out

    def pointwise(self, maps: list[Map[ReceptiveField]], func: Call, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        places = {
            (known.dims, *(tensor.shape[dim] for dim in known.dims))
            for tensor in tensors([args, kwargs])
            if (known := self[tensor]) and known.dims
        }
        # A small map that is spread over a large one is seen by every place.
        alike = len(places) == 1
        shared = reduce(self._join, (known.state for known in maps)) if alike else self._input
        for result in tensors(out):
            self[result] = Map(shared, maps[0].dims)
        return out

    def whole(self, maps: list[Map[ReceptiveField]], func: Call, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        for result in tensors(out):
            self[result] = Map(self._input, (-2, -1) if result.dim() == 4 else None)
        return out

    def _join(self, one: ReceptiveField, other: ReceptiveField) -> ReceptiveField:
        """Return the field of two branches that meet; a branch that sees everything wins.

        Places of different strides that meet are not followed: they see everything.
        """
        known = self._input not in (one, other) and one.stride == other.stride
        return one.join(other) if known else self._input


def _ceil_margin(padded: Tensor, tensor: Tensor, window: Sliding) -> Tensor:
    """Add the rows and columns that ceil-mode pooling reaches beyond the padding."""
    short = []
    for axis in (0, 1):
        places = window.length(axis, tensor.shape[2 + axis])
        extent = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        short.append((places - 1) * window.stride[axis] + extent - padded.shape[2 + axis])
    margin = (0, max(short[1], 0), 0, max(short[0], 0))
    return nn.functional.pad(padded, margin, value=window.fill) if any(margin) else padded


_KINDS: tuple[tuple[type[nn.Module], Kind], ...] = ((nn.Conv2d, "conv"), (nn.Linear, "fc"))


def find_layers(module: nn.Module, size: Size) -> tuple[Layer, ...]:
    """Return the convolutions and fully connected layers, in the order of the forward pass.

    Runs one zero image of `size` through `module`, on whatever device it is (``meta`` costs
    nothing). A linear layer counts if it gives one value per unit, not one per token.

    Raises
    ------
    CnnvisError
        an operation that is not in the table of operations.
    """
    found: list[Layer] = []
    names = {child: name for name, child in module.named_modules()}
    walk = Fields(size)

    def note(child: nn.Module, _inputs: Any, output: Tensor) -> None:
        kind = next(kind for cls, kind in _KINDS if isinstance(child, cls))
        if output.dim() != (4 if kind == "conv" else 2):
            return
        for i, layer in enumerate(found):
            if layer.module == names[child]:
                found[i] = replace(layer, calls=layer.calls + 1)
                return
        known = walk[output]
        field = known.state if known and kind == "conv" else ReceptiveField.whole(size)
        place = (int(output.shape[2]), int(output.shape[3])) if kind == "conv" else (1, 1)
        alias = f"{kind}{len(found) + 1}"
        found.append(Layer(alias, names[child], kind, int(output.shape[1]), place, field))

    handles: list[RemovableHandle] = [
        child.register_forward_hook(note)
        for child in names
        if isinstance(child, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.no_grad(), walk:
            image = next(module.parameters()).new_zeros(1, 3, *size)
            walk[image] = Map(ReceptiveField())
            module(image)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)
