"""Where the places of an image's map lie in a tensor, however it was cut, rolled and flattened.

A tensor's numbers are followed by moving a tensor of numbers of places in the same way: ``image *
rows * columns + row * columns + column``, and `NOWHERE` for what belongs to no place, such as a
class token or padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnvis_cli.nouns import Arrangement, Size

NOWHERE = -1


@dataclass(frozen=True)
class PlaceGrid:
    """Rows and columns that lie regularly in a tensor: every `step` of another grid, from `first`.

    `dims` are the dimensions of rows and columns, counted from the end.
    """

    dims: tuple[int, int]
    first: Size
    step: Size


def numbered(shape: Sequence[int], dims: tuple[int, int]) -> Tensor:
    """Return the numbers of places of a tensor with images first, then rows and columns in `dims`.

    The result has the tensor's shape, int32, and takes no memory for the other dimensions.
    """
    rows, columns = (shape[d] for d in dims)
    ids = torch.zeros((), dtype=torch.int32)
    for dim, stride in ((-len(shape), rows * columns), (dims[0], columns), (dims[1], 1)):
        alone = [1] * len(shape)
        alone[dim] = shape[dim]
        ids = ids + stride * torch.arange(shape[dim], dtype=torch.int32).view(alone)
    return ids.expand(*shape)


def nowhere(shape: Sequence[int]) -> Tensor:
    """Return the numbers of a tensor without places."""
    return torch.tensor(NOWHERE, dtype=torch.int32).expand(*shape)


def compact(ids: Tensor) -> Tensor:
    """Return the same numbers, in no memory along the dimensions that usually hold channels."""
    for dim in {ids.dim() - 1, min(1, ids.dim() - 1)}:
        if ids.stride(dim) and ids.shape[dim] > 1:
            one = thin(ids).narrow(dim, 0, 1)
            if bool((thin(ids) == one).all()):
                ids = one.expand(ids.shape)
    return ids


def thin(ids: Tensor) -> Tensor:
    """Return the numbers with size 1 along the dimensions that take no memory."""
    for dim in range(ids.dim()):
        if ids.stride(dim) == 0 and ids.shape[dim] > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids


def regular(ids: Tensor, size: Size) -> PlaceGrid | None:
    """Return how places of a grid of `size` lie in a tensor if they do so regularly, images first.

    Every other dimension must hold nothing but channels.
    """
    if ids.dim() < 3 or not ids.numel():
        return None
    base = int(ids[(0,) * ids.dim()])
    if base < 0:
        return None
    strides = [_stride(ids, dim, base) for dim in range(ids.dim())]
    dims = _rows_and_columns(ids.shape, strides, size[1])
    if dims is None or (ids.shape[0] > 1 and strides[0] != size[0] * size[1]):
        return None
    rows, columns = dims
    step = (strides[rows] // size[1] or 1, strides[columns] or 1)
    first = (base // size[1], base % size[1])
    last = tuple(f + s * (ids.shape[d] - 1) for f, s, d in zip(first, step, dims, strict=True))
    if min(step) < 0 or last[0] >= size[0] or last[1] >= size[1]:
        return None
    expected = torch.tensor(base, dtype=torch.int32)
    for dim in (0, rows, columns):
        alone = [1] * ids.dim()
        alone[dim] = ids.shape[dim]
        counted = torch.arange(ids.shape[dim], dtype=torch.int32)
        expected = expected + strides[dim] * counted.view(alone)
    end = ids[tuple(length - 1 for length in ids.shape)]
    if int(end) != int(expected.flatten()[-1]) or not bool((thin(ids) == expected).all()):
        return None
    return PlaceGrid((rows - ids.dim(), columns - ids.dim()), first, step)


def _stride(ids: Tensor, dim: int, base: int) -> int:
    if ids.shape[dim] == 1:
        return 0
    second = [0] * ids.dim()
    second[dim] = 1
    return int(ids[tuple(second)]) - base


def _rows_and_columns(
    shape: Sequence[int], strides: list[int], width: int
) -> tuple[int, int] | None:
    """Return the dimensions that rows and columns can only be; one of size 1 has no stride."""
    moving = [dim for dim in range(1, len(shape)) if strides[dim]]
    if len(moving) == 2:
        rows, columns = sorted(moving, key=lambda dim: -abs(strides[dim]))
        return (rows, columns) if strides[rows] % width == 0 else None
    for rows, columns in ((len(shape) - 2, len(shape) - 1), (1, 2)):
        single = [dim for dim in (rows, columns) if shape[dim] == 1]
        if set(moving) | set(single) == {rows, columns} and len(moving) + len(single) == 2:
            upright = not strides[rows] or strides[rows] % width == 0
            return (rows, columns) if upright else None
    return None


def blocks(ids: Tensor, dims: list[int], size: Size) -> tuple[Tensor, Size] | None:
    """Return the first place of each block that dimensions hold, and the block's size less one.

    The result keeps `dims` with size 1. None if the blocks differ, or if some of a block is
    `NOWHERE` or of another image.
    """
    count, shape = size[0] * size[1], list(ids.shape)
    for dim in dims:
        shape[dim] = 1
    ids = thin(ids)
    low, high = ids.amin(dims, keepdim=True), ids.amax(dims, keepdim=True)
    if torch.equal(low, high):
        return low.expand(shape), (0, 0)
    if bool((low < 0).any()) or not torch.equal(low // count, high // count):
        return None
    rows, columns = ids % count // size[1], ids % size[1]
    top, left = rows.amin(dims, keepdim=True), columns.amin(dims, keepdim=True)
    height = rows.amax(dims, keepdim=True) - top
    width = columns.amax(dims, keepdim=True) - left
    if int(height.min()) != int(height.max()) or int(width.min()) != int(width.max()):
        return None
    first = low // count * count + top * size[1] + left
    return first.expand(shape), (int(height.max()), int(width.max()))


def arrangement(ids: Tensor, size: Size, channel: int) -> Arrangement | None:
    """Return how to put a tensor's numbers into a map (B, C, rows, columns), from two images.

    None if `channel` holds places, if a place is missing or there twice, or if images are mixed.
    """
    if ids.dim() < 2:
        return None
    first = ids.select(channel, 0)
    if ids.stride(channel) and not bool((ids == first.unsqueeze(channel)).all()):
        return None
    count = size[0] * size[1]
    for dim in range(first.dim()):
        if dim and first.shape[dim] != 2:
            continue
        images = first.movedim(dim, 0).reshape(2, -1) if first.numel() % 2 == 0 else None
        if images is None:
            continue
        held = images[0] != NOWHERE
        order = images[0].argsort(stable=True)[int((~held).sum()) :]
        whole = torch.equal(images[0][order], torch.arange(count, dtype=ids.dtype))
        again = torch.where(held, images[0] + count, NOWHERE)
        if whole and torch.equal(images[1], again):
            apart = tuple(int(i) for i in (~held).nonzero().flatten())
            numbers = tuple(int(i) for i in order)
            return Arrangement(channel, dim, images.shape[1], numbers, apart)
    return None


def arrange(output: Tensor, arrangement: Arrangement) -> Tensor:
    """Return a module's output as a map: any shape -> (B, C, rows x columns) before it is cut.

    Numbers of no place, such as class tokens, are left out.
    """
    tokens = output.movedim(arrangement.channel, -1)
    if arrangement.images:
        tokens = tokens.movedim(arrangement.images, 0)
    tokens = tokens.reshape(-1, arrangement.length, tokens.shape[-1])  # (B, tokens, C)
    first, count = arrangement.order[0], len(arrangement.order)
    if arrangement.order == tuple(range(first, first + count)):
        return tokens[:, first : first + count].transpose(1, 2)
    index = torch.tensor(arrangement.order, device=output.device)
    return tokens.index_select(1, index).transpose(1, 2)
