"""Which of the tensors in a file are the network's, and under which names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from cnnvis_cli.errors import UsageError

State = Mapping[str, Tensor]
STATE_DEPTH = 4  # of dictionaries in dictionaries

BOOKKEEPING = frozenset(
    ["total_ops", "total_params", "n_averaged", "num_batches_tracked", "num_updates"]
)
"""Last parts of names of tensors that are no weights: counts of operations, averages, batches."""
WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""Parts of names that torch's wrappers put anywhere into them."""
_AVERAGE = re.compile(r"(^|[^a-z])(ema|swa|shadow)([^a-z]|$)|averag", re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """A dictionary of tensors, renamed to fit a network as well as it can."""

    key: str  # where it is in the file; empty for the file itself
    state: State
    missing: tuple[str, ...]  # names of the network that it lacks
    extra: tuple[str, ...]  # its names that the network lacks
    ignored: tuple[str, ...] = ()  # its entries that are no weights
    renamed: str = ""  # how its names were changed, in words

    @property
    def fits(self) -> bool:
        """Whether all names fit."""
        return not (self.missing or self.extra)

    @property
    def average(self) -> bool:
        """Whether it is an average of the weights over the training, by its key."""
        return bool(_AVERAGE.search(self.key))


def matches(tree: Mapping[Any, Any], wanted: State) -> list[Match]:
    """Return each dictionary of tensors in a file, renamed to the network's names where all fit."""
    return [_matched(key, state, wanted) for key, state in _states(tree)]


def _states(tree: Mapping[Any, Any], key: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield the dictionaries that hold tensors, with their keys joined by dots."""
    own = {n: t for n, t in tree.items() if isinstance(n, str) and isinstance(t, Tensor)}
    if own:
        yield key, own
    for name, value in tree.items():
        if isinstance(value, Mapping) and isinstance(name, str) and depth < STATE_DEPTH:
            yield from _states(value, f"{key}.{name}" if key else name, depth + 1)


def _matched(key: str, state: State, wanted: State) -> Match:
    """Return a dictionary under the names that fit best: its own, or changed all alike."""
    best = _compare_shapes(key, state, wanted)
    for words, rename in _renamings(state, wanted):
        if best.fits:
            break
        names = [rename(name) for name in state]
        if len(set(names)) == len(names):
            again = _compare_shapes(key, dict(zip(names, state.values(), strict=True)), wanted)
            best = replace(again, renamed=words) if again.fits else best
    return best


def _compare_shapes(key: str, state: State, wanted: State) -> Match:
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = tuple(n for n in wanted if n not in state and n not in optional)
    unknown = [n for n in state if n not in wanted]
    ignored = tuple(n for n in unknown if n.rpartition(".")[2] in BOOKKEEPING)
    kept = {name: tensor for name, tensor in state.items() if name not in ignored}
    return Match(key, kept, missing, tuple(n for n in unknown if n not in ignored), ignored)


def _renamings(state: State, wanted: State) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Yield the ways in which all names may be changed alike, with what is said of each."""
    added = sorted(WRAPPERS & {part for name in state for part in name.split(".")})
    parts = " and ".join(repr(part) for part in added)
    if added:
        yield f"without {parts}", _without_wrapper
    for prefix in _prefixes(state):
        yield f"without the prefix {prefix!r}", partial(_without, prefix)
    if added:
        plain = {_without_wrapper(name): tensor for name, tensor in state.items()}
        for prefix in _prefixes(plain):
            yield f"without {parts} and the prefix {prefix!r}", partial(_without_both, prefix)
    for prefix in _prefixes(wanted):
        yield f"with the prefix {prefix!r}", partial(_with, prefix)


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _without_both(prefix: str, name: str) -> str:
    return _without_wrapper(name).removeprefix(prefix)


def _with(prefix: str, name: str) -> str:
    return prefix + name


def _without_wrapper(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(state: State) -> Iterator[str]:
    """Yield the beginnings that all names share, up to each dot, the shortest first."""
    names = [name for name in state if name.rpartition(".")[2] not in BOOKKEEPING] or list(state)
    split = [name.split(".")[:-1] for name in names]
    shared = 0
    while split and all(len(s) > shared and s[shared] == split[0][shared] for s in split):
        shared += 1
        yield ".".join(split[0][:shared]) + "."


@dataclass
class Choice:
    """The dictionary that was chosen, with what is to be said about it."""

    match: Match
    remarks: list[str] = field(default_factory=list)


def choose(tree: Mapping[Any, Any], wanted: State, place: str, ema: bool = False) -> Choice:
    """Return the one dictionary of tensors that fits the network; with `ema`, an average.

    `wanted` is the network's own state; `place` begins each message. Raise `UsageError` if none
    fits or several do, naming what the file holds.
    """
    found = matches(tree, wanted)
    fitting = [match for match in found if match.fits]
    averages = [m for m in fitting if m.average or _is_average(m)]
    usual = [m for m in fitting if not m.average]
    if ema and not averages:
        raise UsageError(f"{place}: --ema: holds no averaged weights that fit{_keys(tree)}")
    if not fitting:
        raise UsageError(_misfit(found, tree, wanted, place))
    chosen = averages if ema else usual or averages
    if len(chosen) > 1:
        keys = ", ".join(match.key or "the file itself" for match in chosen)
        raise UsageError(
            f"{place}: holds several networks' weights: {keys}; save one of them alone"
        )
    choice = Choice(chosen[0])
    others = [m.key for m in fitting if m is not chosen[0]]
    _remark(choice, place, others, found)
    return choice


def _is_average(match: Match) -> bool:
    """Return whether torch's own averaging has counted how many states it has averaged."""
    return any(name.rpartition(".")[2] == "n_averaged" for name in match.ignored)


def _remark(choice: Choice, place: str, others: list[str], found: list[Match]) -> None:
    match, say = choice.match, choice.remarks.append
    if others:
        hint = " (--ema takes it)" if not match.average else ""
        say(f"{place}: takes {match.key or 'the tensors outside'}, not {', '.join(others)}{hint}")
    elif match.average:
        say(f"{place}: takes {match.key}, an average of the weights")
    unfit = [m.key for m in found if not m.fits and m.average]
    if unfit and not match.average:
        say(f"{place}: {', '.join(unfit)} does not fit the network, so {match.key} is taken")
    if match.renamed:
        say(f"{place}: names are read {match.renamed}")
    names = dict.fromkeys(name.rpartition(".")[2] for name in match.ignored)
    if names:
        count = len(match.ignored)
        entries = f"{count} entries" if count > 1 else "an entry"
        say(f"{place}: ignores {entries} that no layer uses: {', '.join(names)}")


def _keys(tree: Mapping[Any, Any]) -> str:
    """Return what the top level of a file holds, in words."""
    names = [str(name)[:40] for name in tree]
    return "; its keys are " + ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _misfit(found: list[Match], tree: Mapping[Any, Any], wanted: State, place: str) -> str:
    """Return what keeps the best of the dictionaries from fitting."""
    if not found:
        return (
            f"{place}: holds no state_dict{_keys(tree) if tree else ', it is empty'}; "
            "save the network's own state_dict, best as .safetensors"
        )
    best = min(found, key=lambda m: (len(m.missing), len(m.extra)))
    complaints = [f"{name} is missing" for name in best.missing]
    complaints += [f"{name} is not in the network" for name in best.extra]
    complaints += misshapen(best.state, wanted)
    within = f" under {best.key!r}" if best.key else ""
    return f"{place}: weights of another network{within}: {listed(complaints)}" + (
        _keys(tree) if best.key else ""
    )


def misshapen(state: State, wanted: State) -> list[str]:
    """Return, in words, the tensors whose shapes are not the network's."""
    return [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]


def listed(complaints: list[str]) -> str:
    """Return the first three of some complaints, and how many there are beyond them."""
    more = f" and {len(complaints) - 3} more" if len(complaints) > 3 else ""
    return "; ".join(complaints[:3]) + more
