"""The samples of a container: an image, and what tells its class beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cnnvis_cli.dataset.kinds import (
    FIRST_BYTES,
    LABELS,
    NO_LABEL,
    SAMPLE,
    TWICE,
    Found,
    Stated,
    begins_like_an_image,
    is_image,
    kind_left,
    suffix_of,
)
from cnnvis_cli.errors import UsageError

LABEL = 1 << 20  # bytes of a label beside an image; the JSON of a caption has some hundred


class Member(NamedTuple):
    """An image in a container."""

    name: str
    size: int  # bytes
    place: int
    stated: Stated | None = None  # its class, where the container states it


def is_image_member(entry: Member, first_bytes: Callable[[Member], bytes]) -> bool:
    """Return whether a member is an image by its name, or without a suffix by its first bytes."""
    if suffix_of(entry.name):
        return is_image(entry.name)
    return entry.size > 0 and begins_like_an_image(first_bytes(entry))


def key_of(name: str) -> str:
    """Return a member's name up to the first dot: the key of its sample in a WebDataset."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


SIDECARS = ("cls", "json", "txt")  # what stands beside an image in a WebDataset
PREFERRED_SUFFIXES = ("jpg", "jpeg", "png", "webp")  # which of a sample's images is meant


def images_of_sample(
    path: Path, group: list[Member], read: Callable[[Member, int], bytes], found: Found
) -> Iterator[Member]:
    """Yield the images of members with one key: one where texts or labels are beside it.

    An image such as ``000.seg.png`` beside a ``000.jpg`` belongs to it and is none of its own.
    """
    images = [e for e in group if is_image_member(e, lambda entry: read(entry, FIRST_BYTES))]
    suffixes = {e.name[len(key_of(e.name)) + 1 :]: e for e in group}
    found.leave(TWICE, len(group) - len(suffixes))
    whole = [e for s, e in suffixes.items() if "." not in s and e in images] or images
    if len(whole) > 1 and not suffixes.keys().isdisjoint(SIDECARS):
        by_suffix = {suffix_of(e.name)[1:]: e for e in reversed(whole)}
        whole = [next((by_suffix[s] for s in PREFERRED_SUFFIXES if s in by_suffix), whole[0])]
    stated = _stated_class(path, suffixes, read, found) if images else None
    used = ("cls",) if "cls" in suffixes else ("json",) if stated else ()
    for suffix, entry in suffixes.items():
        if entry in images:
            if entry not in whole:
                found.leave(SAMPLE)
        elif suffix not in used:
            found.leave(kind_left(entry.name))
        elif not images:
            found.leave(LABELS)
    yield from (entry._replace(stated=stated) for entry in whole)


def _stated_class(
    path: Path, suffixes: dict[str, Member], read: Callable[[Member, int], bytes], found: Found
) -> Stated | None:
    """Return the class that a ``.cls`` or ``.json`` states; raise `UsageError` for a broken one."""
    entry = suffixes.get("cls") or suffixes.get("json")
    if entry is None:
        return None
    try:
        if entry.size > LABEL:
            raise ValueError(f"{entry.size} bytes")
        text = read(entry, LABEL).decode()
        value = json.loads(text) if "cls" not in suffixes else text.strip()
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: {entry.name}, the label of an image, cannot be read ({error}); mend it or "
            "take it out"
        ) from None
    if isinstance(value, dict):
        value = next((value[key] for key in LABEL_KEYS if key in value), None)
    return stated_by(value, found)


LABEL_KEYS = ("cls", "label", "class")  # of a sample's JSON


NO_CLASS = (None, "", -1)  # labels that say that an image has no class


def stated_by(value: Any, found: Found) -> Stated | None:
    """Return the class that a label's value states, None without one; count what is no label."""
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return Stated(int(text)) if text.isascii() and text.isdecimal() else Stated(-1, text)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Stated(value)
    missing = isinstance(value, float) and math.isnan(value)
    if not missing and value not in NO_CLASS:
        found.leave(NO_LABEL)
    return None
