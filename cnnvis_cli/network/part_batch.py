"""A traced pass of a few images that gives each the bits that it has in a full batch.

Libraries choose their code for a convolution or a matrix product by the number of images, so that
the last bits of one image differ between a batch of one and one of 64. Here the operations for
which that is so, and no others, are given more rows: as few as give the bits of the full batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from cnnvis_cli.network.trace import gradient_by_phases

_aten: Any = torch.ops.aten
BATCHED: dict[Any, tuple[int, ...]] = {  # operations, and which arguments have a row per image
    _aten.convolution.default: (0,),
    _aten.convolution_backward.default: (0, 1),
    _aten.addmm.default: (1,),
    _aten.mm.default: (0,),
    gradient_by_phases: (0,),
}
_BY_NAME = {str(operation): operation for operation in BATCHED}  # which a graph's code can hold


def pad_to_full(module: fx.GraphModule, count: int, full: int) -> None:
    """Give the operations of a pass of `count` images the rows with which they are as in `full`."""
    for node in list(module.graph.nodes):
        places = BATCHED.get(node.target, ())
        inputs = [node.args[place] for place in places]
        if not places or any(_rows(each) != count for each in inputs):
            continue
        rows = _rows_needed(module, node, places, count, full)
        if rows == count:
            continue
        node.args = (str(node.target), places, rows, *node.args)
        node.target = with_rows


def with_rows(operation: str, places: Sequence[int], rows: int, *arguments: Any) -> Any:
    """Return an operation's result for more rows of its arguments at `places`, cut again."""
    given: list[Any] = list(arguments)
    count = len(given[places[0]])
    for place in places:
        given[place] = _longer(given[place], rows)
    found = _BY_NAME[operation](*given)
    if isinstance(found, Tensor):
        return found[:count]
    return tuple(part if part is None else part[:count] for part in found)


def _longer(tensor: Tensor, rows: int) -> Tensor:
    """Return a tensor with rows of zeros added."""
    longer = _empty_like(tensor, rows).zero_()
    longer[: len(tensor)] = tensor
    return longer


def _empty_like(tensor: Tensor, rows: int) -> Tensor:
    """Return a tensor of this many rows, whose layout, also of maps of one place, is the same."""
    shape, strides = tensor.shape[1:], tensor.stride()[1:]
    dense = sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1
    if dense != shape.numel():
        return torch.empty(rows, *shape, dtype=tensor.dtype)
    return torch.empty_strided((rows, *shape), (shape.numel(), *strides), dtype=tensor.dtype)


def _rows(node: Any) -> int | None:
    """Return the first dimension of a node's tensor; None for what is none, or is a weight."""
    if not isinstance(node, fx.Node) or node.op == "get_attr":
        return None
    value = node.meta.get("val")
    return len(value) if isinstance(value, Tensor) and value.dim() else None


def _rows_needed(
    module: fx.GraphModule, node: fx.Node, places: Sequence[int], count: int, full: int
) -> int:
    """Return the fewest rows, of those tried, with which an operation is as with `full`."""
    constants = [_constant(module, each) for each in node.args]
    drawn = {place: _drawn(node.args[place], full) for place in places}
    if any(isinstance(constants[place], fx.Node) for place in {*range(len(constants))} - {*drawn}):
        return count  # of computed weights: whether it differs is seen in the whole pass

    def made(rows: int) -> list[Tensor]:
        given = list(constants)
        for place, tensor in drawn.items():
            given[place] = tensor[:rows]
        found = node.target(*given)  # type: ignore[operator]
        return [found] if isinstance(found, Tensor) else [p for p in found if p is not None]

    with torch.no_grad():
        whole = made(full)
        for rows in doubled(count, full):
            pairs = zip(made(rows), whole, strict=True)
            if all(torch.equal(few[:count], of_all[:count]) for few, of_all in pairs):
                return rows
    return full


def doubled(count: int, full: int) -> Iterator[int]:
    """Yield a count and the powers of two above it, below `full`."""
    while count < full:
        yield count
        count = 1 << count.bit_length()


def _constant(module: fx.GraphModule, argument: Any) -> Any:
    """Return an argument's value, if it is known before the pass."""
    known = isinstance(argument, fx.Node) and argument.op == "get_attr"
    return getattr(module, str(argument.target)) if known else argument


def _drawn(node: Any, rows: int) -> Tensor:
    """Return random rows for an input of an operation, in its type and layout."""
    value, generator = node.meta["val"], torch.Generator().manual_seed(0)
    drawn = torch.randn(rows, *value.shape[1:], generator=generator)
    return _empty_like(value, rows).copy_(drawn)
