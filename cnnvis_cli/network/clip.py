"""CLIP models of open_clip, whose weights are read from a file: features of images and of words."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cnnvis_cli.arrays import Floats
from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.offline import no_network
from cnnvis_cli.network.weights import Say
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.registry import unknown

CONFIGURATION = "open_clip_config.json"  # of a folder with a model of one's own
TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class ClipModel:
    """A model, its tokenizer, and how an image becomes its input."""

    words: str  # which model with which weights, for a person
    preprocessing: Preprocessing
    module: Any
    tokenize: Callable[[Sequence[str]], Tensor]
    device: torch.device

    def of_images(self, pixels: Tensor) -> Tensor:
        """Return the features of images (B, 3, h, w), RGB in 0..255, of length 1: (B, F)."""
        made = self.preprocessing
        mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (made.mean, made.std))
        scaled = (pixels - mean.to(pixels.device)) / std.to(pixels.device)
        return normalize(self.module.encode_image(scaled).float())

    def of_words(self, words: Sequence[str]) -> Floats:
        """Return the features of words, each of length 1: (M, F)."""
        found = []
        with torch.inference_mode():
            for first in range(0, len(words), TEXTS_AT_ONCE):
                tokens = self.tokenize(list(words[first : first + TEXTS_AT_ONCE]))
                found.append(normalize(self.module.encode_text(tokens.to(self.device)).float()))
        return np.asarray(torch.cat(found).cpu().numpy())


def clip_library() -> Any:
    """Return open_clip; raise `UsageError` if it is not installed."""
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise UsageError(
            f"--clip needs open_clip ({error}); pip install 'cnnvis[clip]', or leave --clip out "
            "for names from the dataset's classes"
        ) from None


def load_clip(name: str, weights: Path, device: torch.device, say: Say) -> ClipModel:
    """Load a model by its name in open_clip, or from a folder with its configuration.

    Nothing is fetched. What is to be known of its weights is passed to `say`. Raise `UsageError`
    without open_clip, for a model that it does not have or that needs the network, and for weights
    that are not there or not its own.
    """
    library = clip_library()
    if not weights.is_file():
        raise UsageError(f"--clip-weights {weights}: is no file; give the weights of {name}")
    own = Path(name) / CONFIGURATION
    known = _own_configuration(own) if own.is_file() else _known_configuration(library, name)
    text = known["model_cfg"].get("text_cfg", {})
    if any(key.startswith("hf_") for key in text):
        raise UsageError(
            f"--clip {name}: reads its words by a tokenizer from a hub, which cnnvis does not ask; "
            "choose a model with CLIP's own, like ViT-B-32"
        )
    if f"{name}-quickgelu" in library.list_models():
        say(f"--clip {name}: OpenAI's own weights want {name}-quickgelu instead")
    place = f"local-dir:{Path(name)}" if own.is_file() else name
    with no_network(), _unlogged():
        try:
            module = library.create_model(place, load_weights=False, pretrained_text=False)
            library.factory.load_checkpoint(module, str(weights))
            tokenize = library.get_tokenizer(place)
        except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"--clip-weights {weights}: cannot be loaded into {name} ({why}); give its own "
                "state dictionary, .safetensors or .pt"
            ) from None
    size = module.visual.image_size
    preprocessing = _preprocessing(name, known.get("preprocess_cfg", {}), size)
    words = f"CLIP {Path(name).name} {file_digest(weights)[:8]}"
    return ClipModel(words, preprocessing, module.eval().to(device), tokenize, device)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep open_clip from warning of random weights before they are read."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _own_configuration(path: Path) -> Mapping[str, Any]:
    """Return a folder's configuration; raise `UsageError` for one that is broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["model_cfg"], dict):
            raise TypeError("model_cfg")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: is no configuration of open_clip ({error})") from None
    return dict(found)


def _known_configuration(library: Any, name: str) -> Mapping[str, Any]:
    """Return open_clip's configuration of a model, if all its weights want one preprocessing."""
    if name not in library.list_models():
        raise unknown("CLIP model", name, library.list_models(), place="open_clip")
    tags = library.list_pretrained_tags_by_model(name)
    wanted = [library.get_pretrained_cfg(name, tag) for tag in tags]
    made = [{key: cfg[key] for key in _KEYS if cfg.get(key) is not None} for cfg in wanted]
    if any(each != made[0] for each in made):
        raise UsageError(
            f"--clip {name}: its weights differ in the images that they take; give a folder with "
            f"the {CONFIGURATION} of yours"
        )
    found = library.get_model_config(name)
    return {"model_cfg": found, "preprocess_cfg": made[0] if made else {}}


_KEYS = ("mean", "std", "interpolation", "resize_mode")


def _preprocessing(name: str, known: Mapping[str, Any], size: Any) -> Preprocessing:
    """Return how an image becomes the model's input; raise `UsageError` for what is not known."""
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    constants = import_module("open_clip.constants")
    mean = known.get("mean") or constants.OPENAI_DATASET_MEAN
    std = known.get("std") or constants.OPENAI_DATASET_STD
    resizing, filter_ = known.get("resize_mode", "shortest"), known.get("interpolation", "bicubic")
    if resizing not in ("shortest", "squash") or filter_ not in ("bicubic", "bilinear"):
        raise UsageError(
            f"--clip {name}: wants images resized by {resizing}, {filter_}; choose another model"
        )
    return Preprocessing(
        resize=min(height, width) if resizing == "shortest" else (height, width),
        crop=(height, width),
        mean=(255 * mean[0], 255 * mean[1], 255 * mean[2]),
        std=(255 * std[0], 255 * std[1], 255 * std[2]),
        interpolation=filter_,
    )
