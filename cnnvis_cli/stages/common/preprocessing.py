"""A network's preprocessing with what the plan changes of it, and what is in doubt about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.weights import Say
from cnnvis_cli.nouns import Preprocessing, Size
from cnnvis_cli.settings import PreprocessingPlan
from cnnvis_cli.store.run import Record


def preprocess(own: Preprocessing, asked: PreprocessingPlan, grey: bool = False) -> Preprocessing:
    """Return the network's own preprocessing with what the plan changes of it.

    `grey` is whether the network takes images of one channel. Raise `UsageError` for sizes and
    colours that are none, or that the network cannot have.
    """
    changed: dict[str, Any] = {k: v for k, v in vars(asked).items() if v is not None}
    bgr = changed.get("bgr", own.bgr)
    if "crop" in changed:
        changed["crop"] = _size(changed["crop"], "crop")
    if isinstance(changed.get("resize"), tuple):
        changed["resize"] = _size(changed["resize"], "resize")
    if isinstance(asked.mean, str):
        from cnnvis_cli.network.caffe import read_mean

        mean = read_mean(Path(asked.mean))
        changed["mean"] = mean[::-1] if bgr else mean
    for name in ("mean", "std"):
        if name in changed:
            changed[name] = _colours(changed[name], name, grey)
    if grey and asked.grey is False:
        raise UsageError("preprocessing: grey = false, but the network takes grey images")
    found = replace(own, **changed)
    return replace(_for_grey(found), grey=True) if grey else found


def _colours(values: Sequence[float], name: str, grey: bool) -> tuple[float, float, float]:
    if grey and len(set(values)) > 1:
        raise UsageError(
            f"preprocessing: {name} needs one number, as the network takes grey images"
        )
    found = tuple(values) * 3 if grey and len(values) == 1 else tuple(values)
    if len(found) != 3:
        raise UsageError(f"preprocessing: {name} needs three numbers, in RGB order")
    return found[0], found[1], found[2]


def _for_grey(found: Preprocessing) -> Preprocessing:
    """Return a preprocessing of colours as one of grey: the averages of their means and so on."""
    mean, std = (round(sum(values) / 3, 6) for values in (found.mean, found.std))
    return replace(found, mean=(mean, mean, mean), std=(std, std, std))


def _size(value: int | tuple[int, ...], name: str) -> Size:
    sizes = (value, value) if isinstance(value, int) else value
    if len(sizes) != 2 or min(sizes) < 1:
        raise UsageError(f"preprocessing: {name} needs one number or height and width, in pixels")
    return sizes[0], sizes[1]


_UNITS = "cnnvis counts from 0 to 255; multiply the numbers of torchvision and timm by 255"


def check_doubts(asked: PreprocessingPlan, found: Preprocessing, say: Say) -> None:
    """Say what is in doubt about a preprocessing that a plan has changed.

    Raise `UsageError` for one that no network can be meant to have: deviations below one of 255
    grey levels, a crop that is larger than every resized image.
    """
    if asked.std is not None and max(found.std) < 1 and min(found.std) > 0:
        raise UsageError(
            f"preprocessing: std = {_list(found.std)} is less than a grey level; {_UNITS}"
        )
    if min(found.std) <= 0:
        raise UsageError(
            f"preprocessing: std = {_list(found.std)}: every deviation must be above 0"
        )
    small = max(found.mean) <= 1 and min(found.mean) >= 0
    if small and asked.mean is not None and (max(found.mean) > 0 or max(found.std) <= 1):
        say(
            f"preprocessing: mean = {_list(found.mean)} and std = {_list(found.std)} are hardly "
            f"more than black; {_UNITS}"
        )
    _check_crop(found, say)


def _check_crop(found: Preprocessing, say: Say) -> None:
    height, width = found.crop
    if not isinstance(found.resize, int):
        if height > found.resize[0] or width > found.resize[1]:
            raise UsageError(
                f"preprocessing: crop = {_list(found.crop)} is larger than the resized image, "
                f"{_list(found.resize)}; make resize larger"
            )
    elif min(height, width) > found.resize:
        raise UsageError(
            f"preprocessing: crop = {_list(found.crop)} is larger than the resized image, whose "
            f"shorter side is resize = {found.resize}; make resize larger"
        )
    elif max(height, width) > found.resize:
        say(
            f"preprocessing: images whose longer side is below {max(height, width)} pixels when "
            f"the shorter one is resized to {found.resize} get black borders"
        )


def _list(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def recorded(found: Preprocessing) -> Record:
    """Return a preprocessing as run.json and topk.h5 have it: plain values.

    Grey and upright are later words, so files of other networks do without them, as always.
    """
    record = asdict(found)
    for name in ("grey", "upright"):
        if not record[name]:
            del record[name]
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in record.items()
    }
