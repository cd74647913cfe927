"""timm's networks by name, with their own preprocessing; and what other modules say of theirs."""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from torch import nn

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.checkpoints import Tree
from cnnvis_cli.nouns import Interpolation, Preprocessing
from cnnvis_cli.registry import unknown

PREFIX = "timm:"


def timm() -> Any:
    """Return timm; raise `UsageError` if it is not installed."""
    try:
        return import_module("timm")
    except ImportError as error:
        raise UsageError(
            f"--model {PREFIX}NAME needs timm ({error}); pip install 'cnnvis[timm]'"
        ) from None


def configuration(name: str) -> Mapping[str, Any]:
    """Return what timm knows of a network and its trained weights, ``resnet50.a1_in1k``.

    Raise `UsageError` for a name that timm does not have, with the nearest one.
    """
    library = timm()
    architecture, _, tag = name.partition(".")
    if not library.is_model(architecture):
        names = [PREFIX + each for each in library.list_models()]
        raise unknown("model", PREFIX + name, names)
    tags = [each.partition(".")[2] for each in library.list_pretrained(architecture)]
    tags = [own for own in tags if own]
    known = [
        each
        for each in library.list_models(f"{architecture}.*", pretrained=True, include_tags=True)
        if each.partition(".")[0] == architecture
    ]
    if tag and tag not in {each.partition(".")[2] for each in known} | set(tags):
        raise unknown("weights", f"{PREFIX}{name}", [PREFIX + each for each in known], architecture)
    found = library.get_pretrained_cfg(name)
    return _as_mapping(found) if found is not None else {}


def names_like(model: str) -> list[str]:
    """Return timm's name of a network that is not torchvision's, if timm is there and has it."""
    architecture = model.partition(".")[0]
    with suppress(UsageError):
        return [PREFIX + model] if timm().is_model(architecture) else []
    return []


def build_timm(name: str, classes: int | None = None) -> nn.Module:
    """Build a network of timm, without trained weights; for other classes if their number is given.

    Its parameters are drawn as timm draws them.
    """
    more = {} if classes is None else {"num_classes": classes}
    return cast(nn.Module, timm().create_model(name, pretrained=False, **more))


def converted(name: str, tree: Tree) -> nn.Module | None:
    """Return a network with weights that timm itself can rename to its own names; None if not."""
    states = [tree, *(v for v in tree.values() if isinstance(v, Mapping))]
    for state in states:
        if not state or not all(isinstance(t, torch.Tensor) for t in state.values()):
            continue
        try:  # timm's rules raise whatever comes for what they do not know
            made = timm().create_model(
                name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state)}
            )
        except Exception:
            continue
        return cast(nn.Module, made)
    return None


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def trained(name: str) -> Path:
    """Return the file of a network's trained weights, from the caches of the hub or of torch.

    It is downloaded once if it is in neither. Raise `UsageError` if there is none, `CnnvisError` if
    it cannot be downloaded.
    """
    known = configuration(name)
    hub, url = known.get("hf_hub_id"), known.get("url")
    names = [known["hf_hub_filename"]] if known.get("hf_hub_filename") else list(WEIGHT_FILES)
    if not hub and not url:
        raise UsageError(
            f"{PREFIX}{name}: timm has no trained weights for it; give --weights FILE, or random"
        )
    cached = [_cached(hub, each) for each in names] if hub else []
    if url:
        cached.append(Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name)
    for path in cached:
        if path is not None and path.is_file():
            return path
    return _downloaded(name, str(hub or url), names[0])


def _cached(hub: str, file: str) -> Path | None:
    """Return a file in the hub's own cache; None if it is not there."""
    found = import_module("huggingface_hub").try_to_load_from_cache(hub, file)
    return Path(found) if isinstance(found, str) else None


def _downloaded(name: str, source: str, file: str) -> Path:
    """Download a file of the hub, or of a URL, into the cache of its client."""
    try:
        if "://" in source:
            path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(source).path).name
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source, str(path), progress=sys.stderr.isatty())
            return path
        hub = import_module("huggingface_hub")
        _require_host(urlparse(hub.constants.ENDPOINT).hostname or "")
        return Path(hub.hf_hub_download(source, file))
    except Exception as error:  # the hub's client raises many kinds, and those of its own client
        raise CnnvisError(
            f"cannot download the weights of {PREFIX}{name} ({_first_line(error)}); fetch {file} "
            f"of {source} on a connected machine and give it with -w {file}"
        ) from None


def _require_host(host: str) -> None:
    """Raise `OSError` if a host is not known here: the hub's client would ask for half a minute."""
    if not getproxies():
        socket.getaddrinfo(host, 443)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def preprocessing_of(known: Mapping[str, Any], place: str) -> tuple[Preprocessing, list[str]]:
    """Return the preprocessing of a configuration in timm's form, with what is to be said of it.

    As timm's transforms for evaluation: the shorter side becomes the input's size by the share
    that the crop keeps of it. Raise `UsageError` for one that cannot be read.
    """
    try:
        channels, height, width = (int(n) for n in known.get("input_size") or (3, 224, 224))
        share = float(known.get("crop_pct") or 0.875)
        mean, std = (_grey_levels(known.get(key), channels) for key in ("mean", "std"))
        interpolation = str(known.get("interpolation") or "bicubic")
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place}: cannot read its preprocessing ({error})") from None
    remarks = []
    if interpolation not in get_args(Interpolation):
        remarks.append(f"{place}: images are resized by bicubic, not {interpolation}")
        interpolation = "bicubic"
    sides = math.floor(height / share), math.floor(width / share)
    resize: int | tuple[int, int] = sides[0]
    if known.get("crop_mode") == "squash" or height != width:
        resize = sides
    if known.get("crop_mode") == "border":
        remarks.append(f"{place}: images are cropped, not given borders as in its training")
    own = Preprocessing(resize, (height, width), interpolation=cast(Interpolation, interpolation))
    return replace(own, mean=mean, std=std, grey=channels == 1), remarks


def _grey_levels(values: Any, channels: int) -> tuple[float, float, float]:
    """Return channel values of the 0..1 range in 0..255 units; one channel's for all three."""
    given = [round(float(v) * 255, 6) for v in values]
    if len(given) == 1 or channels == 1:
        given = [given[0]] * 3
    red, green, blue = given
    return red, green, blue


def told_by(module: nn.Module) -> Mapping[str, Any] | None:
    """Return the configuration that a module carries in timm's form; None if it has none.

    timm is not imported: a module of your own may carry a plain dictionary.
    """
    for name in ("pretrained_cfg", "default_cfg"):
        found = _as_mapping(getattr(module, name, None))
        if found.get("mean") and found.get("std") and found.get("input_size"):
            return found
    return None


def _as_mapping(found: Any) -> Mapping[str, Any]:
    if is_dataclass(found) and not isinstance(found, type):
        return asdict(found)
    return found if isinstance(found, Mapping) else {}


def advice(model: str) -> str:
    """Return what to write for a name in the form of timm's or the hub's; empty for others."""
    start = next((s for s in ("hf-hub:", "hf_hub:", "local-dir:") if model.startswith(s)), "")
    name = model.removeprefix(start)
    owner, _, own = name.rpartition("/")
    if not start and not owner.startswith("timm"):
        return ""
    if own and owner in ("timm", ""):
        return f"write --model {PREFIX}{own}"
    return (
        f"write --model {PREFIX}ARCHITECTURE with --weights FILE, the file of weights of {name}; "
        "or a function of your own, --model file.py:function"
    )
