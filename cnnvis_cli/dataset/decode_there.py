"""JPEGs decoded where the network runs (nvJPEG, through torchvision), and resized there.

For a GPU that waits for its images. Other decoders and another resizing give other pixels, by a
grey level or so; so this is a way of its own, and what cannot be decoded there is decoded here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cnnvis_cli.dataset.containers import Unreadable
from cnnvis_cli.dataset.decode import check_shape, decode, is_plain_jpeg
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Preprocessing


def check_decoder(device: torch.device, preprocessing: Preprocessing) -> None:
    """Raise `UsageError` where torchvision cannot decode and resize on this device."""
    if preprocessing.interpolation == "lanczos":
        raise UsageError("--decode gpu: has no lanczos interpolation; use --decode exact")
    if device.type != "cuda":
        raise UsageError(f"--decode gpu: the device is {device}, which is no GPU")
    try:
        from torchvision.io import encode_jpeg

        with _without_advice():
            content = encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8)).numpy().tobytes()
        _decode([content], device)
    except (ImportError, RuntimeError) as error:  # from some version on it will be gone
        first = str(error).splitlines()[0]
        raise UsageError(f"--decode gpu: torchvision cannot do so here ({first})") from None


def decode_there(
    contents: Sequence[bytes], preprocessing: Preprocessing, device: torch.device
) -> list[Tensor | Unreadable]:
    """Each file as uint8 RGB (height, width, 3) on the device, or why it cannot be used.

    Plain JPEGs are decoded there. Others, and what fails there, go through `decode`, which also
    says what is wrong with them.
    """
    plain = [i for i, content in enumerate(contents) if is_plain_jpeg(content)]
    images = dict(zip(plain, _jpegs([contents[i] for i in plain], device), strict=True))
    return [
        _finished(content, images.get(i), preprocessing, device)
        for i, content in enumerate(contents)
    ]


def _jpegs(contents: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """All at once; where one of them fails one by one, None for those that do."""
    if not contents:
        return []
    try:
        return list(_decode(contents, device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # as torchvision names no class for a broken JPEG
        if len(contents) == 1:
            return [None]
        return [image for content in contents for image in _jpegs([content], device)]


def _decode(contents: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """Raises RuntimeError where one of them is broken."""
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    with _without_advice():
        found: list[Tensor] = decode_jpeg(data, mode=ImageReadMode.RGB, device=device)
    return found


@contextmanager
def _without_advice() -> Iterator[None]:
    """torchvision 0.29 advises to install another package for this."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
        yield


def _finished(
    content: bytes, image: Tensor | None, preprocessing: Preprocessing, device: torch.device
) -> Tensor | Unreadable:
    try:
        if image is None:
            return torch.from_numpy(decode(content, preprocessing).copy()).to(device)
        return _prepare(image, preprocessing)
    except Unreadable as reason:
        return reason


def _prepare(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop as `decode.prepare` does: uint8 (3, h, w) -> (height, width, 3)."""
    check_shape((image.shape[2], image.shape[1]), preprocessing.resize)
    resize = preprocessing.resize
    size = [resize] if isinstance(resize, int) else list(resize)
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    mode = InterpolationMode(preprocessing.interpolation)
    resized = transforms.resize(image, size, mode, antialias=True)
    cropped: Tensor = transforms.center_crop(resized, list(preprocessing.crop))
    return cropped.permute(1, 2, 0)
