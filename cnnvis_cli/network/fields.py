"""Receptive fields from the graph: through branches, padding, dilation, pooling and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnnvis_cli.network.operations import Role, Sliding
from cnnvis_cli.network.places import blocks, compact, nowhere, numbered, regular, thin
from cnnvis_cli.network.walk import (
    PERMUTING,
    Call,
    Map,
    Walk,
    function_name,
    mixed_last,
    permutation,
    permuted,
    reduced_dims,
    stays_in_place,
    tensors,
)
from cnnvis_cli.nouns import Axis, ReceptiveField, Size


class Sight(NamedTuple):
    """What a place sees: all of it, and what it sees by more than a factor or an attention.

    The local field leaves out what reaches a place only through a gate that all places share, the
    statistics of a normalisation, or attention.
    """

    field: ReceptiveField = ReceptiveField()
    local: ReceptiveField = ReceptiveField()

    def then(self, axis: int, *window: int) -> Sight:
        """Return the sight after a window over one axis: kernel, stride, padding, dilation."""

        def after(field: ReceptiveField) -> ReceptiveField:
            axes: list[Axis] = [field.rows, field.columns]
            axes[axis] = axes[axis].then(*window)
            return ReceptiveField(*axes)

        return Sight(after(self.field), after(self.local))


@dataclass(frozen=True)
class Followed(Map[Sight]):
    """A map, or a tensor in which the places of a map of `size` lie somewhere: see `places`."""

    ids: Tensor | None = None
    size: Size | None = None

    @property
    def placed(self) -> bool:
        """Whether the tensor has any places."""
        return self.dims is not None or self.ids is not None


class Fields(Walk[Sight]):
    """A walk that tracks which input pixels each place of each map sees, and where places lie.

    `unknown_operations` are those that it met without a row in the table: their results may see
    everything.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self._input = ReceptiveField.whole(size)
        self._blind = Sight(self._input, self._input)
        self.unknown_operations: list[str] = []

    def begin(self, pixels: Tensor) -> Tensor:
        """Return an input, (B, C, h, w), as the start of the pass, with a history of its own."""
        start = (pixels.requires_grad_() * 1) if pixels.is_floating_point() else pixels
        self[start] = Followed(Sight())
        return start

    def places(self, tensor: Tensor) -> tuple[Tensor, Size] | None:
        """Return the numbers of a tensor's places, of its own shape, and the size of their grid."""
        known = self[tensor]
        if not isinstance(known, Followed) or not known.placed:
            return None
        if known.ids is not None and known.size is not None:
            return known.ids, known.size
        rows, columns = known.dims or (0, 0)
        size = (int(tensor.shape[rows]), int(tensor.shape[columns]))
        return numbered(tensor.shape, (rows, columns)), size

    def slide(
        self, known: Map[Sight], window: Sliding, func: Call, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        out = func(*args, **kwargs)
        sight = known.state
        for axis in (0, 1):
            margin, dilation = window.padding[axis][0], window.dilation[axis]
            sight = sight.then(axis, window.kernel[axis], window.stride[axis], margin, dilation)
        for result in tensors(out):
            self[result] = Followed(sight)
        return out

    def pad(
        self,
        known: Map[Sight],
        tensor: Tensor,
        pad: Sequence[int],
        mode: str = "constant",
        value: float | None = None,
    ) -> Tensor:
        out = nn.functional.pad(tensor, list(pad), mode, value)
        places = self.places(tensor)
        if mode != "constant" or places is None:
            self[out] = Followed(self._blind, known.dims if places else None)
            return out
        if known.dims is None:
            ids = nn.functional.pad(places[0], list(pad), value=-1)
            self[out] = _settled(known.state, ids, places[1])
            return out
        before = {-1 - i: int(pad[2 * i]) for i in range(len(pad) // 2)}
        sight = known.state
        for axis, dim in enumerate(known.dims):
            sight = sight.then(axis, 1, 1, before.get(dim, 0))
        self[out] = Followed(sight, known.dims)
        return out

    def pointwise(self, maps: list[Map[Sight]], func: Call, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        given = [t for t in tensors([args, kwargs]) if self[t] is not None]
        for result in tensors(out):
            self[result] = self._met(given, result)
        return out

    def _met(self, given: list[Tensor], result: Tensor) -> Followed:
        """Return the map where several meet; a small one spread over a large one is a gate."""
        held = [(tensor, found) for tensor in given if (found := self.places(tensor))]
        if not held:
            return self._lost(result)
        largest = max(size[0] * size[1] for _, (_, size) in held)
        carriers = [(t, ids) for t, (ids, size) in held if size[0] * size[1] == largest]
        size = next(size for _, (_, size) in held if size[0] * size[1] == largest)
        sight = self._joined([t for t, _ in carriers], len(carriers) < len(given))
        dims = {known.dims for t, _ in carriers if (known := self[t])}
        if len(dims) == 1 and None not in dims:
            return Followed(sight, dims.pop())
        shared = _agreed([ids for _, ids in carriers], result)
        return self._lost(result) if shared is None else _settled(sight, shared, size)

    def _joined(self, carriers: Sequence[Tensor], gated: bool = False) -> Sight:
        """Return the sight of maps that meet place by place."""
        sights = [known.state for tensor in carriers if (known := self[tensor])]
        field = self._input if gated else reduce(self._join, (each.field for each in sights))
        return Sight(field, reduce(self._join, (each.local for each in sights)))

    def mix(self, role: Role, maps: list[Map[Sight]], func: Call, args: Any, kwargs: Any) -> Any:
        first = next(t for t in tensors([args, kwargs]) if self[t] is not None)
        if role is Role.REDUCE and len(args) > 1 and isinstance(args[1], Tensor):
            return self.pointwise(maps, func, args, kwargs)  # the larger one of two maps
        out = func(*args, **kwargs)
        if func in PERMUTING and maps[0].dims and permutation(func, args, kwargs)[0] == -out.dim():
            self[out] = Followed(**vars(permuted(maps[0], func, args, kwargs)))
        elif stays_in_place(role, func, args, kwargs, maps[0]) and self._alike(first, maps, out):
            given = [t for t in tensors([args, kwargs]) if self[t] is not None]
            for result in tensors(out):
                self[result] = Followed(self._joined(given), maps[0].dims)
        else:
            followers = {
                Role.MOVE: self._moved,
                Role.LAST: self._last,
                Role.REDUCE: self._reduced,
                Role.STATISTIC: self._statistic,
                Role.PRODUCT: self._product,
                Role.ATTENTION: self._attended,
            }
            found = followers[role](func, args, kwargs, out) if role in followers else None
            for i, result in enumerate(tensors(out)):
                known = found[i] if found and i < len(found) else None
                self[result] = known if known is not None else self._lost(result)
        return out

    def _alike(self, first: Tensor, maps: list[Map[Sight]], out: Any) -> bool:
        """Return whether maps lie alike, and all results have as many rows as there are images."""
        rows = all(each.dim() and each.shape[0] == first.shape[0] for each in tensors(out))
        return rows and all(known.dims == maps[0].dims for known in maps)

    def _moved(self, func: Call, args: Any, kwargs: Any, out: Any) -> list[Followed] | None:
        """Follow numbers that change places by moving the numbers of places in the same way."""
        given = [t for t in tensors([args, kwargs]) if self[t] is not None]
        held = [(tensor, found) for tensor in given if (found := self.places(tensor))]
        if not held or len({size for _, (_, size) in held}) > 1:
            return None
        size = held[0][1][1]

        def ids(value: Any) -> Any:
            if isinstance(value, Tensor):
                found = self.places(value)
                if found:
                    return found[0]
                return nowhere(value.shape) if value.is_floating_point() else value.cpu()
            if isinstance(value, (list, tuple)):
                return type(value)(ids(each) for each in value)
            return value

        like = Tensor.reshape if func is Tensor.view else func  # numbers that share memory
        try:
            moved = like(*ids(args), **{name: ids(value) for name, value in kwargs.items()})
        except (RuntimeError, NotImplementedError):  # an index on a device without values
            return None
        sight = self._joined([tensor for tensor, _ in held])
        return [_settled(sight, each, size) for each in tensors(moved)]

    def _last(self, func: Call, args: Any, kwargs: Any, out: Any) -> list[Followed] | None:
        mixed = range(-mixed_last(func, args, kwargs), 0)
        return self._blocked(args[0], list(mixed), out, self._gated([args, kwargs]))

    def _reduced(self, func: Call, args: Any, kwargs: Any, out: Any) -> list[Followed] | None:
        first = next(tensors([args, kwargs]))
        dims = reduced_dims(first, func, args, kwargs)
        if dims is None:
            return None
        result = next(tensors(out))
        return self._blocked(first, sorted(dims), result) * len(list(tensors(out)))

    def _statistic(self, func: Call, args: Any, kwargs: Any, out: Any) -> list[Followed] | None:
        known = self[args[0]]
        if not isinstance(known, Followed) or not known.placed:
            return None
        sight = self._seen_by_all(known.state)
        return [Followed(sight, known.dims, known.ids, known.size)]

    def _product(self, func: Call, args: Any, kwargs: Any, out: Any) -> list[Followed] | None:
        """Follow matrices: rows of the first have their places, or columns of the second theirs."""
        if func is torch.functional.einsum:
            return self._summed(args, out)
        one, other = args[0], args[1]
        both = self._gated([one, other])
        for tensor, dim in ((one, -1), (other, -2)):
            if self[tensor] is not None and tensor.dim() == out.dim():
                found = self._blocked(tensor, [dim], out, both)
                if found[0].placed:
                    return found
        return None

    def _summed(self, args: Any, out: Tensor) -> list[Followed] | None:
        """Follow Einstein's sums: a factor's places stay where the rest of its numbers is one."""
        terms, arrow, kept = str(args[0]).replace(" ", "").partition("->")
        factors = args[1:] if isinstance(args[1], Tensor) else args[1]
        if not arrow or "." in terms:
            return None
        gated = self._gated(factors)
        for tensor, letters in zip(factors, terms.split(","), strict=True):
            found, known = self.places(tensor), self[tensor]
            mixed = [i - len(letters) for i, each in enumerate(letters) if each not in kept]
            block = blocks(found[0], mixed, found[1]) if found and mixed else None
            if found is None or known is None or block is None or block[1] != (0, 0):
                continue
            ids = _squeezed(tensor, block[0], mixed)
            left = [each for each in letters if each in kept]
            ids = ids.permute([left.index(each) for each in kept if each in left])
            at = iter(ids.shape)
            ids = ids.reshape([next(at) if each in left else 1 for each in kept])
            sight = self._seen_by_all(known.state) if gated else known.state
            return [_settled(sight, ids.expand(out.shape), found[1])]
        return None

    def _attended(self, func: Call, args: Any, kwargs: Any, out: Any) -> list[Followed] | None:
        query = args[0] if args else kwargs["query"]
        return self._blocked(query, [-1], next(tensors(out)), gated=True)

    def _gated(self, values: Any) -> bool:
        """Return whether several maps meet in nested arguments: one may be weights of another."""
        return sum(self[tensor] is not None for tensor in tensors(values)) > 1

    def _seen_by_all(self, sight: Sight) -> Sight:
        """Return the sight of a place that all others reach by a gate or an attention."""
        return Sight(self._input, sight.local)

    def _blocked(
        self, tensor: Tensor, dims: list[int], out: Tensor, gated: bool = False
    ) -> list[Followed]:
        """Follow dimensions that are mixed: a block of places becomes one place."""
        found, known = self.places(tensor), self[tensor]
        block = blocks(found[0], dims, found[1]) if found else None
        if found is None or known is None or block is None:
            return [self._lost(out)]
        ids, (height, width) = block
        sight = self._seen_by_all(known.state) if gated else known.state
        if out.dim() < ids.dim():
            ids = _squeezed(tensor, ids, dims)
        if ids.dim() != out.dim():
            return [self._lost(out)]
        settled = _settled(sight, ids.expand(out.shape), found[1], (height + 1, width + 1))
        return [settled if settled.placed else self._lost(out)]

    def unknown(self, maps: list[Map[Sight]], func: Call, out: Any) -> Any:
        self._note(function_name(func))
        for result in tensors(out):
            self[result] = self._lost(result)
        return out

    def unseen(self, tensor: Tensor) -> Map[Sight]:
        made = tensor.grad_fn.name() if tensor.grad_fn is not None else "a tensor"
        self._note(f"code that cnnvis cannot look into ({made})")
        return self._lost(tensor)

    def _note(self, name: str) -> None:
        if name not in self.unknown_operations:
            self.unknown_operations.append(name)

    def _lost(self, result: Tensor) -> Followed:
        """Return a map whose every number may see everything."""
        return Followed(self._blind, (-2, -1) if result.dim() == 4 else None)

    def _join(self, one: ReceptiveField, other: ReceptiveField) -> ReceptiveField:
        """Return the field of two branches that meet; a branch that sees everything wins.

        Places of different strides that meet are not followed: they see everything.
        """
        known = self._input not in (one, other) and one.stride == other.stride
        return one.join(other) if known else self._input


def _agreed(numbers: Sequence[Tensor], result: Tensor) -> Tensor | None:
    """Return the numbers of places where tensors meet; None if they differ."""
    shared = nowhere(result.shape)
    for ids in numbers:
        if ids.dim() > result.dim():
            return None
        shared = torch.maximum(thin(shared), thin(ids)).expand(result.shape)
    for ids in numbers:
        if bool(((thin(ids) != thin(shared)) & (thin(ids) >= 0)).any()):
            return None
    return shared


def _squeezed(tensor: Tensor, ids: Tensor, dims: Sequence[int]) -> Tensor:
    """Return numbers without the dimensions that were mixed, which have size 1."""
    kept = [d for d in range(-tensor.dim(), 0) if d not in dims]
    return ids.reshape([ids.shape[d] for d in kept])


def _settled(sight: Sight, ids: Tensor, size: Size, block: Size = (1, 1)) -> Followed:
    """Return a map with regular rows and columns if the places lie so; otherwise where they lie."""
    ids = compact(ids)
    grid = regular(ids, size)
    if grid is not None:
        for axis in (0, 1):
            sight = sight.then(axis, block[axis], grid.step[axis], -grid.first[axis])
        return Followed(sight, grid.dims)
    if block != (1, 1) or not bool((thin(ids) >= 0).any()):
        return Followed(Sight(sight.field, sight.field), None)
    return Followed(sight, None, ids, size)
