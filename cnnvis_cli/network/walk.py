"""Following a network's maps through one forward pass, one torch function at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.network.operations import ROLES, SLIDING, Role, Sliding

S = TypeVar("S")
Call = Callable[..., Any]


@dataclass(frozen=True)
class Map(Generic[S]):
    """The known facts about a tensor: a state, and which dimensions are its rows and columns.

    Dimensions are counted from the end (-1 is the last); None if no places are left.
    """

    state: S
    dims: tuple[int, int] | None = (-2, -1)


def function_name(function: Call) -> str:
    """Return the name of a torch function as written in code."""
    return str(resolve_name(function) or getattr(function, "__name__", repr(function)))


def tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested arguments or results, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors(list(values.values()))
    elif isinstance(values, Sequence) and not isinstance(values, str):
        for value in values:
            yield from tensors(value)


class Walk(TorchFunctionMode, ABC, Generic[S]):
    """A forward pass that tracks every map; to be used in a ``with`` block.

    Raise `CnnvisError` for an operation that has no row in the table of operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self._maps: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __getitem__(self, tensor: Tensor) -> Map[S] | None:
        found: Map[S] | None = self._maps[tensor] if tensor in self._maps else None  # noqa: SIM401
        return found

    def __setitem__(self, tensor: Tensor, known: Map[S]) -> None:
        self._maps[tensor] = known

    def __torch_function__(
        self, func: Call, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:  # torch's name for the first argument
            args = (kwargs.pop("input"),)
        maps = [known for t in tensors([args, kwargs]) if (known := self[t]) is not None]
        if not maps:
            return func(*args, **kwargs)
        if func not in ROLES:
            return self._without_a_row(func, args, kwargs)
        role = ROLES[func]
        if role is Role.CONSTANT:
            return func(*args, **kwargs)
        if role is Role.SLIDING and maps[0].dims == (-2, -1):
            return self.slide(maps[0], args[0], SLIDING[func](*args, **kwargs))
        if role is Role.PAD:
            return self.pad(maps[0], args[0], *args[1:], **kwargs)
        if role is Role.PERMUTE:
            out = func(*args, **kwargs)
            self[out] = _permuted(maps[0], func, args, kwargs)
            return out
        if _stays_in_place(role, func, args, kwargs, maps[0]):
            return self.pointwise(maps, func, args, kwargs)
        return self.whole(maps, func, args, kwargs)

    def _without_a_row(self, func: Call, args: Any, kwargs: Any) -> Any:
        """Allow functions that only query a tensor; raise for others."""
        out = func(*args, **kwargs)
        if not any(True for _ in tensors(out)):
            return out
        raise CnnvisError(
            f"the operation {function_name(func)} is not one that cnnvis knows; "
            "add its row in cnnvis_cli/network/operations.py"
        )

    @abstractmethod
    def slide(self, known: Map[S], tensor: Tensor, window: Sliding) -> Tensor:
        """Run a window operation on a map."""

    @abstractmethod
    def pad(
        self,
        known: Map[S],
        tensor: Tensor,
        pad: Sequence[int],
        mode: str = "constant",
        value: float | None = None,
    ) -> Tensor:
        """Run an explicit padding of a map."""

    @abstractmethod
    def pointwise(self, maps: list[Map[S]], func: Call, args: Any, kwargs: Any) -> Any:
        """Run an operation that keeps each place where it is."""

    @abstractmethod
    def whole(self, maps: list[Map[S]], func: Call, args: Any, kwargs: Any) -> Any:
        """Run an operation whose every output sees every place."""


def _stays_in_place(role: Role, func: Call, args: Any, kwargs: Any, known: Map[Any]) -> bool:
    """Return whether every place of the output comes from the same place of the input."""
    if known.dims is None:
        return False
    first = next(tensors([args, kwargs]))
    if role is Role.LAST:
        shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
        mixed = 1 if isinstance(shape, Tensor) else len(shape)
        return max(known.dims) < -mixed
    if role is Role.INDEX:
        return known.dims == (-2, -1) and _leaves_places(first, func, args, kwargs)
    if role is Role.RESHAPE:
        sizes = _sizes(args[1:], kwargs)
        kept = len(sizes) > 2 and tuple(sizes[-2:]) == tuple(first.shape[-2:])
        return known.dims == (-2, -1) and kept
    if func in _ALONG:
        position = 1 if func in (torch.cat, torch.concat) else 2
        dim = kwargs.get("dim", args[position] if len(args) > position else 0)
        return dim % first.dim() - first.dim() not in known.dims
    return role in (Role.POINTWISE, Role.RECTIFIER, Role.CURVED)


def _leaves_places(first: Tensor, func: Call, args: Any, kwargs: Any) -> bool:
    """Return whether indexing or unsqueezing leaves the last two dimensions as they are."""
    if func is not Tensor.__getitem__:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return int(dim) % (first.dim() + 1) <= first.dim() - 2
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return len(index) <= first.dim() - 2 and all(isinstance(i, (int, slice)) for i in index)


_ALONG = (torch.cat, torch.concat, torch.chunk, Tensor.chunk, torch.split, Tensor.split)


def _sizes(args: Iterable[Any], kwargs: Any) -> list[int]:
    """Return the target shape of a reshape, given as one sequence or as several numbers."""
    given = list(args) or list(kwargs.values())
    return list(given[0]) if given and isinstance(given[0], Sequence) else given


def _permuted(known: Map[S], func: Call, args: Any, kwargs: Any) -> Map[S]:
    """Return where rows and columns are after a permutation or a transposition."""
    if known.dims is None:
        return known
    count = args[0].dim()
    order = list(range(-count, 0))
    if func in (torch.permute, Tensor.permute):
        order = [int(d) % count - count for d in _sizes(args[1:], kwargs)]
    else:
        one, other = (int(d) % count for d in (list(args[1:]) or list(kwargs.values())))
        order[one], order[other] = order[other], order[one]
    rows, columns = (order.index(d) - count for d in known.dims)
    return Map(known.state, (rows, columns))
