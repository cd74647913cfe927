"""Loading trained weights into a network: tensors only, never code, and every tensor must fit."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.checkpoints import Tree, read_weights
from cnnvis_cli.network.ordinary import ordinary, type_remark
from cnnvis_cli.network.states import State, choose, listed, misshapen
from cnnvis_cli.network.zoo import Blueprint
from cnnvis_cli.registry import unknown

Say = Callable[[str], None]


def silent(_line: str) -> None:
    """Say nothing."""


def load(
    plan: Blueprint, weights: str | None, seed: int = 0, ema: bool = False, say: Say = silent
) -> tuple[nn.Module, str]:
    """Build the network with its weights; return it with the weights' SHA-256.

    `weights` is a file, ``DEFAULT`` or another of torchvision's names, ``random`` (drawn from
    `seed`), or None for the network's default. With `ema` a training state's averaged weights are
    taken. What is to be known about the choice is passed to `say`, a line at a time.

    Raises
    ------
    UsageError
        there are no weights, or they do not exist, do not fit, or hold more than tensors.
    CnnvisError
        trained weights cannot be downloaded.
    """
    require_weights(plan, weights)
    return fill(plan, build(plan, seed), weights, ema, say)


def require_weights(plan: Blueprint, weights: str | None) -> None:
    """Raise `UsageError` if a network has no weights unless they are given, and they are not."""
    if weights is None and plan.default_weights is None and ":" not in plan.name:
        raise UsageError(f"{plan.name} comes without weights; give them with -w FILE")


def build(plan: Blueprint, seed: int = 0, say: Say = silent) -> nn.Module:
    """Build a network, its parameters drawn from `seed`; raise `UsageError` if it is none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = plan.build()
        if remark := type_remark(found):
            say(f"{plan.name}: {remark}")
        return ordinary(plan.name, found)


def fill(
    plan: Blueprint, module: nn.Module, weights: str | None, ema: bool = False, say: Say = silent
) -> tuple[nn.Module, str]:
    """Give a built network its weights, as `load` does; a network for other classes is built anew.

    Return the network and the SHA-256 of its weights.
    """
    weights = weights or plan.default_weights
    if weights in (None, "random"):
        if ema:
            raise UsageError("--ema chooses among the weights of a file; give it with -w FILE")
        return module, _digest(module.state_dict())
    path = locate(plan, str(weights))
    tree = read_weights(path)
    module = _fitted(plan, module, tree, path, ema, say)
    digest = file_digest(path)
    if ema:  # other weights of the same file
        digest = hashlib.sha256(f"{digest} averaged".encode()).hexdigest()
    return module, digest


def say_if_untrained(plan: Blueprint, module: nn.Module, say: Say) -> None:
    """Say how many of a network's own parameters are random numbers.

    These are the ones that differ when its function is called again, after another seed.
    """
    again = dict(build(plan, seed=1).named_parameters())
    names = [name for name, _ in module.named_parameters()]
    drawn = [name for name, own in module.named_parameters() if _differs(own, again.get(name))]
    if drawn:
        some = "all its" if len(drawn) == len(names) else f"{len(drawn)} of its {len(names)}"
        say(
            f"{plan.name}: {some} parameters are random numbers, {drawn[0]} for one; give trained "
            "ones with --weights, or load them in your function"
        )


def _differs(own: Tensor, other: Tensor | None) -> bool:
    """Return whether a parameter is another one; one that gets its shape later is."""
    if isinstance(other, nn.UninitializedParameter):
        return True
    return other is not None and not torch.equal(own, other)


def _fitted(
    plan: Blueprint, module: nn.Module, tree: Tree, path: Path, ema: bool, say: Say
) -> nn.Module:
    """Return the network with a file's tensors in it: this module, or one built for its classes."""
    wanted = module.state_dict()
    try:
        choice = choose(tree, wanted, str(path), ema)
    except UsageError as error:
        if plan.convert is None or (converted := plan.convert(tree)) is None:
            raise error from None
        say(f"{path}: is converted from its authors' names by the network's own rule")
        return converted
    state = {name: _reshaped(t, wanted.get(name)) for name, t in choice.match.state.items()}
    count = _class_count(state, wanted)
    if count is not None and plan.build_for is not None:
        module = _built_for(plan, count)
        say(f"{path}: the network has {count} classes, by the size of its last layer")
    for remark in choice.remarks:
        say(remark)
    _fit(module, state, path, "" if count is None else _FOR_CLASSES.format(count))
    return module


_FOR_CLASSES = "; the file is of {} classes: have your function build the network for as many"


def _class_count(state: State, wanted: State) -> int | None:
    """Return the number of classes of a state that differs from the network in nothing else."""
    pairs = {(tuple(state[n].shape), tuple(t.shape)) for n, t in wanted.items() if n in state}
    unequal = [(have, want) for have, want in pairs if have != want]
    sizes = {(have[:1], want[:1]) for have, want in unequal}
    if len(sizes) != 1 or any(not have or have[1:] != want[1:] for have, want in unequal):
        return None
    return int(sizes.pop()[0][0])


def _built_for(plan: Blueprint, count: int) -> nn.Module:
    """Return the network for another number of classes."""
    assert plan.build_for is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return plan.build_for(count)


def locate(plan: Blueprint, weights: str) -> Path:
    """Return the file of the weights, downloaded once if the network's library knows their name.

    Raise `UsageError` if there is no such file and no such name, `CnnvisError` if they cannot be
    downloaded.
    """
    if weights == "DEFAULT" and plan.bundled:
        return plan.bundled
    if weights == "DEFAULT" and plan.fetch:
        return plan.fetch()
    names = [] if plan.torchvision_weights is None else list(plan.torchvision_weights.__members__)
    if weights in names:
        return _download(plan.torchvision_weights[weights].url)
    path = Path(weights)
    if path.is_file():
        return path
    if path.is_dir():
        raise UsageError(f"-w {weights}: is a folder; name the file of weights in it")
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"-w {weights}: there is no such file")
    if plan.bundled or plan.fetch:
        names.append("DEFAULT")
    raise unknown("weights", weights, [*names, "random", "FILE"], place=plan.name)


def _download(url: str) -> Path:
    """Return torchvision's file in torch's own cache."""
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    digest = name.rpartition("-")[2].partition(".")[0]  # torchvision's names end with it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another digest
        raise CnnvisError(
            f"cannot download {name} ({_first_line(error)}); "
            f"fetch it on a connected machine and give it with -w {name}"
        ) from None
    return path


def _fit(module: nn.Module, state: State, path: Path, remedy: str = "") -> None:
    """Load every tensor; raise if any does not fit or cannot be weights."""
    wanted = module.state_dict()
    if complaints := misshapen(state, wanted):
        raise UsageError(f"{path}: weights of another network: {listed(complaints)}{remedy}")
    learned = {name for name, _ in module.named_parameters()}  # a mask may be infinite
    for name, tensor in state.items():
        if flaw := _flaw(tensor, wanted[name], finite=name in learned):
            raise UsageError(f"{path}: {name} {flaw}; save the weights again, or take others")
    module.load_state_dict(dict(state), strict=False)


def _flaw(tensor: Tensor, wanted: Tensor, finite: bool) -> str | None:
    """Return what keeps a tensor of the right shape from being weights; None if nothing does."""
    plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta)
    if not plain or tensor.is_complex() != wanted.is_complex():
        return f"is {tensor.dtype}, {tensor.layout}, on {tensor.device}: not plain real numbers"
    numbers = tensor.to(wanted.dtype)
    if finite and not numbers.isfinite().all():
        return "holds NaN or infinite values"
    return "holds NaN" if numbers.isnan().any() else None


def _reshaped(tensor: Tensor, wanted: Tensor | None) -> Tensor:
    """Return tensors in the network's shapes: old Caffe files have leading dimensions of 1."""
    if wanted is None or tensor.shape == wanted.shape or tensor.dim() != 4:
        return tensor
    extra = tensor.dim() - wanted.dim()
    same = tuple(tensor.shape) == (1,) * extra + tuple(wanted.shape)
    return tensor.reshape(wanted.shape) if extra > 0 and same else tensor


def _digest(state: State) -> str:
    """Return the SHA-256 of named tensors: names, shapes, types and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
