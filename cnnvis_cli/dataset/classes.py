"""Which folder is an image's class: the one rule that makes labels and names."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.dataset.kinds import Folders, Found, Stated, Where
from cnnvis_cli.errors import UsageError

WORDNET = re.compile(r"n\d{8}")  # ImageNet's folders
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev"))
PLAIN = frozenset(("images", "image", "imgs", "img", "jpg", "jpeg", "jpegs", "png", "photos"))
LARGEST_NUMBER = 1 << 16  # of a stated class; larger ones are taken as names


def labels_of(
    places: Sequence[Where], found: Found, level: str, listed: bool
) -> tuple[NDArray[np.int32], tuple[str, ...], str]:
    """Return the label of each place, the classes by label, and the level that is the class.

    `level` is ``auto``, or as in `class_at`; of a list (`listed`) the default is an image's own
    folder. A folder at that level without an image is a class too, if any has one. Raise
    `UsageError` for stated classes that contradict each other.
    """
    stated = [place for place in places if isinstance(place, Stated)]
    if level == "stated" or (level == "auto" and stated):
        return *_stated_labels(places, stated, found.names), "stated"
    folders = [place.folders if isinstance(place, Stated) else place for place in places]
    if level == "auto":
        level = chosen_level(folders, listed)
    level = "1" if level == "first" else level
    names = [class_at(level, folder) for folder in folders]
    with_images = set(names) - {""}
    empty = {class_at(level, folder) for folder in _leaf_folders(found.folders, folders)}
    classes = tuple(sorted((with_images | (empty if with_images else set())) - {""}))
    rank = {name: number for number, name in enumerate(classes)}
    return np.array([rank.get(name, -1) for name in names], np.int32), classes, level


def _leaf_folders(empty: Collection[Folders], others: Collection[Folders]) -> set[Folders]:
    """Return the folders without images that have no folders in them either."""
    parents = {place[:n] for place in (*empty, *others) for n in range(1, len(place))}
    return set(empty) - parents


def class_at(level: str, folders: Folders) -> str:
    """Return the class of an image in these folders; empty without one.

    `level` is the number of the folder below the root (``1``), that and all below it (``1+``),
    the image's ``own``, the first one named by a ``wordnet`` id, or ``none``.
    """
    if level == "none":
        return ""
    if level == "own":
        return folders[-1] if folders else ""
    if level == "wordnet":
        return next(filter(WORDNET.fullmatch, folders), "")
    number = int(level.removesuffix("+"))
    if level.endswith("+"):
        return "/".join(folders[number - 1 :])
    return folders[number - 1] if len(folders) >= number else ""


def chosen_level(places: Collection[Folders], listed: bool) -> str:
    """Return the level that is the class, from the folders that hold images.

    WordNet ids where they are; otherwise the first folder (a list: each image's own) after a
    folder that holds everything, and after ``train``, ``val`` and the like. Below folders that
    are only the initials of those in them, as in Places, all that follows is the class.
    """
    named = sorted({place for place in places if place})
    others = [place for place in named if not class_at("wordnet", place)]
    if len(others) < len(named) and all(map(tells_no_class, others)):
        return "wordnet"
    if len(named) == 1:
        return str(_last_telling(named[0]))
    if not named:
        return "own" if listed else "1"
    depth = 0  # of the folder in question, from 0
    while any(len(place) > depth + 1 for place in named):
        here, deeper = {place[depth] for place in named}, [p for p in named if len(p) > depth + 1]
        if len(deeper) == len(named) and all(map(_is_under_initial, [p[depth:] for p in named])):
            return f"{depth + 2}+"
        one = len(here) == 1 and len(deeper) == len(named) and () not in places
        if not one and not {name.lower() for name in here} <= SPLITS:
            break
        named, depth = deeper, depth + 1
    if listed:
        return _telling_level(named)
    return str(depth + 1)


def _telling_level(named: Sequence[Folders]) -> str:
    """Return ``own``, or if that is the same for all the last level that is not."""
    if len({place[-1] for place in named}) > 1:
        return "own"
    levels = range(min(map(len, named)), 0, -1)
    return str(next((n for n in levels if len({place[n - 1] for place in named}) > 1), "own"))


def tells_no_class(place: Folders) -> bool:
    """Return whether all folders have names such as ``val`` and ``images``."""
    return all(part.lower() in SPLITS | PLAIN for part in place)


def _last_telling(place: Folders) -> int:
    """Return the number of the last folder with a name of its own; 1 if none has."""
    numbers = [n for n, part in enumerate(place, 1) if part.lower() not in SPLITS | PLAIN]
    return max(numbers, default=1)


def _is_under_initial(place: Folders) -> bool:
    return len(place[0]) == 1 and place[1][:1].lower() == place[0].lower()


def deeper_folder(places: Collection[Where], level: str) -> str:
    """Return a folder below a class folder that may be meant as a class; empty without one."""
    if not level.isdecimal():
        return ""
    number = int(level)
    for place in places:
        folders = place.folders if isinstance(place, Stated) else place
        if not tells_no_class(folders[number:]):
            return "/".join(folders)
    return ""


def describe(level: str) -> str:
    """Return a level in words."""
    words = {
        "": "by folder",
        "stated": "as the dataset states them",
        "own": "by each image's own folder",
        "wordnet": "by the folder with a WordNet id",
        "1": "by the first folder",
        "first": "by the first folder",
        "none": "nowhere",
        "1+": "by the whole path of folders",
    }
    if level in words:
        return words[level]
    number = level.removesuffix("+")
    ending = {"1": "st", "2": "nd", "3": "rd"}.get(number, "th")
    return f"by the {number}{ending} folder" + (" and those in it" if "+" in level else "")


def _stated_labels(
    places: Sequence[Where], stated: Sequence[Stated], names: tuple[str, ...]
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return labels and classes of stated classes: by number where each has one, else sorted."""
    if not stated:
        raise UsageError("--class-level stated: this dataset states no classes")
    if all(0 <= each.number < LARGEST_NUMBER for each in stated):
        table = _names_by_number(stated, names)
        classes = tuple(table.get(n) or str(n) for n in range(max(table) + 1))
        rank: dict[Where, int] = {each: each.number for each in stated}
    else:
        ordered = [name or str(number) for number, name, _ in sorted(set(stated))]
        classes = tuple(dict.fromkeys(ordered))
        index = {name: number for number, name in enumerate(classes)}
        rank = {each: index[each.name or str(each.number)] for each in stated}
    return np.array([rank.get(place, -1) for place in places], np.int32), classes


def _names_by_number(stated: Sequence[Stated], names: tuple[str, ...]) -> dict[int, str]:
    """Return the name of each number, empty without one; raise `UsageError` for two of one."""
    table = dict(enumerate(names))
    for number, name, _ in stated:
        known = table.setdefault(number, name)
        if name and known and name != known:
            raise UsageError(
                f"class {number} is called {known!r} and {name!r} in this dataset; make them "
                "agree, or give --class-level"
            )
        table[number] = known or name
    return table
