"""DreamSim, where its package is installed and its weights are at hand."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.offline import no_network
from cnnvis_cli.nouns import Preprocessing

DREAMSIM = "dreamsim"  # as the name of an encoder
CACHE = Path("models")  # where the package itself looks for weights
_DINO = ("facebookresearch_dino_main", "checkpoints/dino_vitbase16_pretrain.pth")  # of torch.hub
NEEDED = {  # by the package's name of a model, the best one first: what its folder must hold
    "ensemble": (
        *("dino_vitb16_pretrain.pth", "open_clip_vitb16_pretrain.pth.tar"),
        *("clip_vitb16_pretrain.pth.tar", "ensemble_lora", *_DINO),
    ),
    "dino_vitb16": ("dino_vitb16_pretrain.pth", "dino_vitb16_single_lora", *_DINO),
    "open_clip_vitb32": ("open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora"),
    "clip_vitb32": ("clip_vitb32_pretrain.pth.tar", "clip_vitb32_single_lora"),
    "synclr_vitb16": ("synclr_vit_b_16.pth", "synclr_vitb16_single_lora"),
}
DREAMSIM_IMAGES = Preprocessing(
    (224, 224), (224, 224), (0, 0, 0), (255, 255, 255), interpolation="bicubic"
)


def load_dreamsim(
    folder: Path | None, device: torch.device
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return the name of the model that the folder has, and a function from images to features.

    Images are (B, 3, 224, 224), RGB in 0..255; features (B, F). Nothing is fetched. Raise
    `UsageError` without the package, or without all of a model's weights.
    """
    try:
        package: Any = import_module(DREAMSIM)
    except ImportError as error:
        raise UsageError(
            f"--encoder {DREAMSIM}: the package is not there ({error}); pip install {DREAMSIM}, or "
            "name a network as --encoder"
        ) from None
    place = folder or CACHE
    kind = next((name for name in NEEDED if not _lacking(place, name)), None)
    if kind is None:
        lacks = ", ".join(_lacking(place, "ensemble"))
        raise UsageError(
            f"--encoder {DREAMSIM}: {place} has no weights of it (of the ensemble there is no "
            f"{lacks}), and cnnvis fetches none; where there is a network, "
            f"python -c 'from dreamsim import dreamsim; dreamsim(device=\"cpu\")' puts them into "
            "models/, which --encoder-weights then names"
        )
    model = _loaded_dreamsim(package, place, kind, device)

    def features(pixels: Tensor) -> Tensor:
        return torch.as_tensor(model.embed(pixels.to(device) / 255)).float()

    return f"DreamSim {kind}", features


def _loaded_dreamsim(package: Any, place: Path, kind: str, device: torch.device) -> Any:
    """Return the package's model; raise `UsageError` for a folder that it cannot read."""
    try:
        with no_network():
            model, _ = package.dreamsim(
                pretrained=True, device=str(device), cache_dir=str(place), dreamsim_type=kind
            )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"--encoder {DREAMSIM}: {place} cannot be loaded as {kind} ({why}); get them again"
        ) from None
    return model


def _lacking(folder: Path, kind: str) -> list[str]:
    return [name for name in NEEDED[kind] if not (folder / name).exists()]
