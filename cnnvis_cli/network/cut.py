"""Cutting a network in two where a single map feeds everything that comes after it.

A change in one part of the input then needs to be followed only up to the cut, in a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from cnnvis_cli.network.fields import Fields
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.observe import hookable, observing
from cnnvis_cli.network.walk import Call, tensors
from cnnvis_cli.nouns import ReceptiveField, Size


@dataclass(frozen=True)
class Cut:
    """The modules before the cut, in order, each fed with the output of the one before.

    Nothing after the cut reads anything from before it except the last module's output, a map of
    `map` places whose receptive field is `field`. `work` is its share of the arithmetic of the
    whole pass.
    """

    modules: tuple[str, ...]
    field: ReceptiveField
    map: Size
    work: float

    def early(self, network: Network, normalised: Tensor) -> Tensor:
        """Compute the map at the cut: (B, 3, h, w) -> (B, C, rows, columns)."""
        for module in self.parts(network):
            normalised = module(normalised)
        return normalised

    def parts(self, network: Network) -> list[nn.Module]:
        """Return the modules themselves."""
        return [network.module.get_submodule(name) for name in self.modules]


@dataclass(frozen=True)
class _Step:
    """A module's call with one tensor; its ends count the functions called so far."""

    name: str
    given: Tensor
    made: Tensor
    begin: int
    end: int
    work: int  # up to its end


class _Reads:
    """Records when each tensor was made, and which were read when."""

    def __init__(self) -> None:
        self.now = 0
        self.born: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.reads: list[tuple[int, int]] = []  # when the tensor was made, and when it was read
        self.work = 0  # multiplications so far

    def note(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Record a function's call."""
        made = list(tensors(out))
        if not made:  # it only queries a tensor
            return
        self.now += 1
        given = [t for t in tensors([args, kwargs]) if t in self.born]
        self.reads += [(self.born[t], self.now) for t in given]
        for tensor in made:
            self.born[tensor] = self.now
        if func in (F.conv2d, F.linear):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.work += out.numel() * weight[0].numel()

    def carries_all(self, step: _Step) -> bool:
        """Return whether nothing after a call reads a tensor made before its output."""
        born = self.born[step.made] if step.made in self.born else step.end  # noqa: SIM401
        return not any(when > step.end and made < born for made, when in self.reads)


def cuts(network: Network) -> list[Cut]:
    """Return every place where the network can be cut in two, in the order of the forward pass."""
    blank = torch.zeros(1, 3, *network.size, device=network.device)
    blank = blank.contiguous(memory_format=torch.channels_last)
    reads, fields, steps = _Reads(), Fields(network.size), list[_Step]()
    with ExitStack() as stack:
        for name, module in hookable(network.module):
            if name:
                for handle in _follow(name, module, reads, steps):
                    stack.callback(handle.remove)
        stack.enter_context(torch.enable_grad())
        blank = fields.begin(blank)
        stack.enter_context(fields)
        stack.enter_context(observing(reads.note))
        reads.born[blank] = 0
        network.module(blank)
    if fields.unknown_operations:  # something may read what nobody saw
        return []
    whole = ReceptiveField.whole(network.size)
    found = []
    for step, names in _chains(blank, steps, reads):
        known = fields[step.made]
        field = known.state.field if known and known.dims == (-2, -1) else whole
        if field != whole and min(field.stride) > 0:
            size = (int(step.made.shape[2]), int(step.made.shape[3]))
            found.append(Cut(names, field, size, step.work / max(reads.work, 1)))
    return found


def _follow(name: str, module: nn.Module, reads: _Reads, steps: list[_Step]) -> Iterator[Any]:
    """Add hooks that append each call of a module with one tensor to the steps."""
    begun: list[int] = []

    def before(_module: nn.Module, _given: Any) -> None:
        begun.append(reads.now)

    def after(_module: nn.Module, given: Any, named: Any, made: Any) -> None:
        begin = begun.pop()
        plain = len(given) == 1 and not named and isinstance(given[0], Tensor)
        if plain and isinstance(made, Tensor) and made.dim() == 4 and made is not given[0]:
            steps.append(_Step(name, given[0], made, begin, reads.now, reads.work))

    yield module.register_forward_pre_hook(before)
    yield module.register_forward_hook(after, with_kwargs=True)


def _chains(
    start: Tensor, steps: Sequence[_Step], reads: _Reads
) -> Iterator[tuple[_Step, tuple[str, ...]]]:
    """Yield the calls in sequence from the input, with the modules up to and including each."""
    names = [step.name for step in steps]
    reached: dict[int, tuple[int, tuple[str, ...]]] = {id(start): (0, ())}
    for step in steps:  # in the order in which they ended, inner ones first
        end, before = reached.get(id(step.given), (-1, ()))
        straight = step.begin == end and names.count(step.name) == 1
        if straight and id(step.made) not in reached and reads.carries_all(step):
            reached[id(step.made)] = step.end, (*before, step.name)
            yield step, (*before, step.name)
