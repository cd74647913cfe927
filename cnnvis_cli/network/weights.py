"""Loading trained weights into a network: tensors only, never code, and every tensor must fit."""

from __future__ import annotations

import hashlib
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.zoo import Blueprint
from cnnvis_cli.registry import Registry, unknown

State = Mapping[str, Tensor]
READERS: Registry[Callable[[Path], State]] = Registry("weights format")


@READERS.register(".safetensors")
def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path}: not a safetensors file ({error})") from None


# Exceptions that torch.load raised for files with a few bytes changed.
_DAMAGED = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, struct.error),
)


@READERS.register(".pt")
@READERS.register(".pth")
def _read_checkpoint(path: Path) -> State:
    """Return a state dictionary, bare or under the usual keys of a training checkpoint."""
    _refuse_packed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid checkpoints are reported below, in one line
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UsageError(
            f"{path}: refused, because it is damaged or holds more than tensors and could run "
            "code; save the state_dict alone, best as .safetensors"
        ) from None
    except _DAMAGED as error:
        raise UsageError(f"{path}: not a torch checkpoint ({_first_line(error)})") from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise UsageError(f"{path}: holds no state_dict")
    prefix = "module."  # which DataParallel puts before every name
    if all(name.startswith(prefix) for name in found):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _refuse_packed(path: Path) -> None:
    """Raise `UsageError` for a zip with compressed members: a few bytes may expand to terabytes.

    torch never compresses them. A file that is not a zip is left to torch, which has an older
    format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error):
        return
    if packed:
        raise UsageError(
            f"{path}: refused, because parts of it are compressed as in TorchScript; "
            "save the state_dict alone with torch.save"
        )


@READERS.register(".caffemodel")
def _read_caffemodel(path: Path) -> State:
    from cnnvis_cli.network.caffe import read_caffemodel

    return {name: torch.from_numpy(array) for name, array in read_caffemodel(path).items()}


def load(plan: Blueprint, weights: str | None, seed: int = 0) -> tuple[nn.Module, str]:
    """Build the network with its weights; return it with the weights' SHA-256.

    `weights` is a file, ``DEFAULT`` or another of torchvision's names, ``random`` (drawn from
    `seed`), or None for the network's default.

    Raises ------ UsageError there are no weights, or they do not exist, do not fit, or hold more
    than tensors. CnnvisError trained weights cannot be downloaded.
    """
    weights = weights or plan.default_weights
    if weights is None and ":" not in plan.name:
        raise UsageError(f"{plan.name} comes without weights; give them with -w FILE")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = plan.build()
    if not isinstance(module, nn.Module):
        raise UsageError(f"--model {plan.name}: returned {type(module).__name__}, not a network")
    if weights in (None, "random"):
        return module, _digest(module.state_dict())
    path = _locate(plan, str(weights))
    _fit(module, READERS[path.suffix](path), path)
    return module, file_digest(path)


def _locate(plan: Blueprint, weights: str) -> Path:
    """Return the file of the weights, downloaded once if torchvision knows it by name."""
    path = Path(weights)
    if path.suffix in READERS:
        if not path.is_file():
            raise UsageError(f"-w {weights}: there is no such file")
        return path
    if weights == "DEFAULT" and plan.bundled:
        return plan.bundled
    names = [] if plan.torchvision_weights is None else list(plan.torchvision_weights.__members__)
    if weights not in names:
        if plan.bundled:
            names.append("DEFAULT")
        raise unknown("weights", weights, [*names, "random", *READERS], place=plan.name)
    return _download(plan.torchvision_weights[weights].url)


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


def _fit(module: nn.Module, state: State, path: Path) -> None:
    """Load every tensor; raise if any does not fit or cannot be weights."""
    wanted = module.state_dict()
    state = {name: _reshaped(tensor, wanted.get(name)) for name, tensor in state.items()}
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    complaints = (
        [f"{name} is missing" for name in wanted if name not in state and name not in optional]
        + [f"{name} is not in the network" for name in state if name not in wanted]
        + [
            f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in state and state[name].shape != tensor.shape
        ]
    )
    if complaints:
        more = f" and {len(complaints) - 3} more" if len(complaints) > 3 else ""
        raise UsageError(f"{path}: weights of another network: {'; '.join(complaints[:3])}{more}")
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
