"""JPEGs decoded and resized on the network's GPU (nvJPEG, through torchcodec).

For a GPU that waits for its images. Its decoder and resizing give pixels that differ from ours by
a grey level or so, so it has to be asked for. What the GPU cannot decode is decoded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from cnnvis_cli.dataset.decode import check_shape, decode, is_plain_jpeg
from cnnvis_cli.dataset.kinds import Unreadable
from cnnvis_cli.errors import UsageError
from cnnvis_cli.light_imports import import_torchvision
from cnnvis_cli.nouns import Preprocessing


def check_decoder(device: torch.device, preprocessing: Preprocessing) -> None:
    """Raise `UsageError` if images cannot be decoded and resized on this device."""
    if preprocessing.interpolation == "lanczos":
        raise UsageError("--decode gpu: has no lanczos interpolation; use --decode exact")
    if preprocessing.upright:
        raise UsageError("--decode gpu: turns no images upright; use --decode exact")
    if preprocessing.grey:
        raise UsageError("--decode gpu: makes no images grey; use --decode exact")
    if device.type != "cuda":
        raise UsageError(f"--decode gpu: the device is {device}, which is no GPU")
    try:
        _decoders()
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        first = str(error).splitlines()[0][:160]
        raise UsageError(
            f"--decode gpu: needs torchcodec 0.16 or later, built for this torch ({first}); "
            "pip install torchcodec, or use --decode exact"
        ) from None


def _decoders() -> Any:
    """Return torchcodec's decoders; raise if they are missing or do not fit this torch."""
    found = import_module("torchcodec.decoders")
    found.decode_jpeg  # noqa: B018 - older versions: AttributeError
    return found


def decode_on_gpu(
    contents: Sequence[bytes], preprocessing: Preprocessing, device: torch.device
) -> list[Tensor | Unreadable]:
    """Return each file as uint8 RGB (height, width, 3) on the device, or why it cannot be used.

    Plain JPEGs are decoded there. Others, and those that fail there, go through `decode`, which
    also gives the reason if it fails.
    """
    plain = [i for i, content in enumerate(contents) if is_plain_jpeg(content)]
    found = decode_plain([contents[i] for i in plain], preprocessing, device)
    known = dict(zip(plain, found, strict=True))
    return [
        known[i] if i in known else _decoded_here(content, preprocessing, device)
        for i, content in enumerate(contents)
    ]


def decode_plain(
    contents: Sequence[bytes], preprocessing: Preprocessing, device: torch.device
) -> list[Tensor | Unreadable]:
    """Decode as `decode_on_gpu` does, but only files that are plain JPEGs by their first bytes."""
    images = _jpegs(contents, device)
    found: list[Tensor | Unreadable] = [Unreadable("")] * len(contents)
    by_size: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        if image is None:  # broken: the other decoder gives the reason
            found[i] = _decoded_here(contents[i], preprocessing, device)
        else:
            by_size.setdefault(image.shape, []).append(i)
    for slots in by_size.values():
        same = [image for i in slots if (image := images[i]) is not None]
        for i, prepared in zip(slots, _prepare(same, preprocessing), strict=True):
            found[i] = prepared
    return found


def _jpegs(contents: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """Decode all at once; if one fails, one by one, with None for those that fail."""
    if not contents:
        return []
    try:
        return list(_decoders().decode_jpeg(list(contents), mode="RGB", device=device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # torchcodec has no class for a broken JPEG
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises if it was the device that failed
        if len(contents) == 1:
            return [None]
        return [image for content in contents for image in _jpegs([content], device)]


def _decoded_here(
    content: bytes, preprocessing: Preprocessing, device: torch.device
) -> Tensor | Unreadable:
    try:
        return torch.from_numpy(decode(content, preprocessing).copy()).to(device)
    except Unreadable as reason:
        return reason


def _prepare(images: Sequence[Tensor], preprocessing: Preprocessing) -> list[Tensor | Unreadable]:
    """Resize and crop images of one size as `decode.prepare` does, uint8 (3, h, w) each.

    Return (height, width, 3) each.
    """
    resize = preprocessing.resize
    try:
        check_shape((images[0].shape[2], images[0].shape[1]), resize)
    except Unreadable as reason:
        return [reason] * len(images)
    modes = import_torchvision("torchvision.transforms")
    transforms = import_torchvision("torchvision.transforms.functional")

    size = [resize] if isinstance(resize, int) else list(resize)
    mode = modes.InterpolationMode(preprocessing.interpolation)
    resized = transforms.resize(torch.stack(list(images)), size, mode, antialias=True)
    cropped: Tensor = transforms.center_crop(resized, list(preprocessing.crop))
    return list(cropped.permute(0, 2, 3, 1))
