"""Following a network's maps through one forward pass, one torch function at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from cnnvis_cli.network.operations import REDUCED, ROLES, SLIDING, Role, Sliding

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
    """A forward pass that tracks every map; to be used in a ``with`` block."""

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
        maps = [known for t in tensors([args, kwargs]) if (known := self._known(t)) is not None]
        role = ROLES.get(func)
        if not maps or role is Role.CONSTANT:
            return func(*args, **kwargs)
        if func is Tensor.__setitem__:
            func(*args, **kwargs)
            self.unknown(maps, func, args[0])
            return None
        if role is None:
            return self._without_a_row(maps, func, args, kwargs)
        if role is Role.SLIDING and maps[0].dims == (-2, -1):
            return self.slide(maps[0], SLIDING[func](*args, **kwargs), func, args, kwargs)
        if role is Role.PAD:
            return self.pad(maps[0], args[0], *args[1:], **kwargs)
        if role in (Role.POINTWISE, Role.RECTIFIER, Role.CURVED):
            return self.pointwise(maps, func, args, kwargs)
        return self.mix(role, maps, func, args, kwargs)

    def _known(self, tensor: Tensor) -> Map[S] | None:
        """Return what is known of a tensor; one that depends on the input was made somewhere."""
        if self[tensor] is None and tensor.grad_fn is not None:
            self[tensor] = self.unseen(tensor)
        return self[tensor]

    def _without_a_row(self, maps: list[Map[S]], func: Call, args: Any, kwargs: Any) -> Any:
        """Allow functions that only query a tensor; others are unknown operations."""
        out = func(*args, **kwargs)
        if not any(True for _ in tensors(out)):
            return out
        return self.unknown(maps, func, out)

    @abstractmethod
    def slide(
        self, known: Map[S], window: Sliding, func: Call, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
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
    def mix(self, role: Role, maps: list[Map[S]], func: Call, args: Any, kwargs: Any) -> Any:
        """Run an operation that may move places, or mix them."""

    @abstractmethod
    def unknown(self, maps: list[Map[S]], func: Call, out: Any) -> Any:
        """Return the results of an operation that has no row in the table of operations."""

    @abstractmethod
    def unseen(self, tensor: Tensor) -> Map[S]:
        """Return a map for a tensor that depends on the input and that no torch function made.

        Scripted code and autograd functions of a network's own make such tensors.
        """


def stays_in_place(role: Role, func: Call, args: Any, kwargs: Any, known: Map[Any]) -> bool:
    """Return whether every place of the output comes from the same place of the input.

    It holds for maps with `dims`; the dimensions of the rows and columns stay what they are.
    """
    if known.dims is None:
        return False
    first = next(tensors([args, kwargs]))
    if role is Role.LAST:
        return max(known.dims) < -mixed_last(func, args, kwargs)
    if func in ALONG:
        position = 1 if func in JOINING else 2
        dim = kwargs.get("dim", args[position] if len(args) > position else 0)
        return int(dim) % first.dim() - first.dim() not in known.dims
    if role is Role.MOVE:
        return known.dims == (-2, -1) and _keeps_the_last_two(first, func, args, kwargs)
    if role is Role.REDUCE:
        mixed = reduced_dims(first, func, args, kwargs)
        return bool(mixed) and max(mixed or ()) < min(known.dims)
    return False


def mixed_last(func: Call, args: Any, kwargs: Any) -> int:
    """Return how many of the trailing dimensions a linear layer or a normalisation mixes."""
    if func is F.linear:
        return 1
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return 1 if isinstance(shape, int) else len(shape)


def reduced_dims(first: Tensor, func: Call, args: Any, kwargs: Any) -> set[int] | None:
    """Return the dimensions that a reduction mixes, counted from the end; None for all."""
    position, default = REDUCED.get(func, (1, None))
    given = args[position] if len(args) > position else default
    dims = kwargs.get("dim", kwargs.get("axis", given))
    if dims is None:
        return None
    listed = dims if isinstance(dims, Sequence) else (dims,)
    return {int(d) % first.dim() - first.dim() for d in listed}


def _keeps_the_last_two(first: Tensor, func: Call, args: Any, kwargs: Any) -> bool:
    """Return whether indexing or reshaping leaves the last two dimensions as they are."""
    if func is Tensor.__getitem__:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return len(index) <= first.dim() - 2 and all(isinstance(i, (int, slice)) for i in index)
    if func in (torch.unsqueeze, Tensor.unsqueeze):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return int(dim) % (first.dim() + 1) <= first.dim() - 2
    if func in (Tensor.view, Tensor.reshape, torch.reshape):
        sizes = sizes_of(args[1:], kwargs)
        return len(sizes) > 2 and tuple(sizes[-2:]) == tuple(first.shape[-2:])
    return False


JOINING = (torch.cat, torch.concat, torch.concatenate)
ALONG = (*JOINING, torch.chunk, Tensor.chunk, torch.split, torch.functional.split, Tensor.split)
PERMUTING = (
    *(torch.permute, Tensor.permute, torch.transpose, Tensor.transpose),
    *(torch.swapaxes, Tensor.swapaxes, torch.swapdims, Tensor.swapdims),
)


def sizes_of(args: Iterable[Any], kwargs: Any) -> list[Any]:
    """Return the target shape of a reshape, given as one sequence or as several numbers."""
    given = list(args) or list(kwargs.values())
    return list(given[0]) if given and isinstance(given[0], Sequence) else given


def permuted(known: Map[S], func: Call, args: Any, kwargs: Any) -> Map[S]:
    """Return where rows and columns are after a permutation or a transposition."""
    if known.dims is None:
        return known
    order = permutation(func, args, kwargs)
    count = len(order)
    rows, columns = (order.index(d) - count for d in known.dims)
    return Map(known.state, (rows, columns))


def permutation(func: Call, args: Any, kwargs: Any) -> list[int]:
    """Return the dimension, from the end, that each dimension of the result was."""
    count = args[0].dim()
    if func in (torch.permute, Tensor.permute):
        return [int(d) % count - count for d in sizes_of(args[1:], kwargs)]
    order = list(range(-count, 0))
    one, other = (int(d) % count for d in (list(args[1:]) or list(kwargs.values())))
    order[one], order[other] = order[other], order[one]
    return order
