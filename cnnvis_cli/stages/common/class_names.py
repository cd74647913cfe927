"""The class names of a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Int32s, Int64s
from cnnvis_cli.dataset.classes import WORDNET, class_at
from cnnvis_cli.dataset.containers import is_container
from cnnvis_cli.dataset.kinds import Folders, folders_of
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.zoo import imagenet_names
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.topk_file import Images, TopKFile

Members = NDArray[np.bool_]


def classes_of(run: Run, images: Images) -> list[str]:
    """Return the classes of a run's images by label, as topk made them.

    From run.json; from the paths, if they tell the labels, where it does not say them yet. Raise
    `UsageError` if those in run.json are not the ones that the dataset's digest in topk.h5 is of.
    """
    known, plan = run.read().get("dataset", {}), TopKFile(run.topk).identity() or {}
    classes = known.get("classes")
    if classes is None or known.get("digest") != plan.get("dataset"):
        return _from_paths(images)
    found = tuple(map(str, classes)) if isinstance(classes, list) else ()
    columns = (images.path, images.size, images.offset, images.label)
    if Manifest(run.path, *columns, found).digest != plan.get("dataset"):
        raise UsageError(
            f"{run.manifest}: dataset.classes are not those that {run.topk.name} was made with; "
            "put the file back as cnnvis wrote it, or run cnnvis topk again, which notes them"
        )
    return list(found)


def class_names(classes: Sequence[str], own: Sequence[str], file: str | None) -> list[str]:
    """Return a name for each class of the images, by label.

    From the `file` if there is one. Otherwise ImageNet's name of a WordNet id; the network's `own`
    names, in their order, if the classes are numbers or other WordNet ids and exactly as many; and
    the classes themselves. Raise `UsageError` for a file that does not fit them.
    """
    if file is not None:
        return _read_names(Path(file), list(classes))
    ids = [name for name in classes if WORDNET.fullmatch(name)]
    known = imagenet_names() if ids else {}
    agree = len(own) == len(classes)
    if agree and len(ids) == len(classes) and not known.keys() >= set(ids):
        return list(own)
    if agree and classes and all(name.isascii() and name.isdecimal() for name in classes):
        numbers = list(map(int, classes))
        if sorted(numbers) == list(range(len(own))):
            return [own[number] for number in numbers]
    return [known.get(name) or name.replace("_", " ") for name in classes]


def _from_paths(images: Images) -> list[str]:
    """Return the classes by label that the first folder, or each image's own, makes of the paths.

    Where neither makes exactly these labels, classes have numbers.
    """
    packed = (images.offset >= 0).tolist()
    holders = (path.rpartition(b"/")[0] for path in images.path.tolist())
    places = set(zip(images.label.tolist(), holders, packed, strict=True))
    pairs = [(label, _named_folders(holder, inside)) for label, holder, inside in places]
    for level in ("1", "own"):
        names: dict[int, str] = {}
        found = [(label, class_at(level, folders)) for label, folders in pairs]
        one_each = all(names.setdefault(label, name) == name for label, name in found)
        if one_each and not names.pop(-1, ""):
            classes = [names.get(label, "") for label in range(max(names, default=-1) + 1)]
            if classes == sorted(set(classes) - {""}):
                return classes
    return [f"class {label}" for label in range(int(images.label.max(initial=-1)) + 1)]


def folders_above(images: Images, index: Int64s, labels: Int32s) -> dict[str, Members]:
    """Return which of some images, with these labels, lie in each folder of two or more classes.

    Only folders that take each class whole, and not all images, tell anything: (n,) by path.
    """
    inside: dict[str, list[int]] = {}
    for row, number in enumerate(index.tolist()):
        holder = images.path[number].rpartition(b"/")[0]
        folders = _named_folders(holder, bool(images.offset[number] >= 0))
        for depth in range(1, len(folders) + 1):
            inside.setdefault("/".join(folders[:depth]), []).append(row)
    found = {}
    for folder, rows in inside.items():
        members = np.zeros(len(index), np.bool_)
        members[rows] = True
        own, others = set(labels[members].tolist()), set(labels[~members].tolist())
        if len(own - {-1}) > 1 and others and not own & others:
            found[folder] = members
    return found


def _named_folders(holder: bytes, inside: bool) -> Folders:
    """Return the folders of a path, or of that within a container."""
    folders = folders_of(f"{os.fsdecode(holder)}/")
    ends = [n for n, name in enumerate(folders, 1) if is_container(name)] if inside else []
    return folders[ends[0] :] if ends else folders


def names_before(images: Images, own: Sequence[str]) -> list[str]:
    """Return the names as figures had them once: of the folder of each label's first image.

    A figure with the same names now is not drawn again.
    """
    labels, firsts = np.unique(images.label, return_index=True)
    names = [""] * (int(images.label.max(initial=-1)) + 1)
    for label, first in zip(labels.tolist(), firsts.tolist(), strict=True):
        if label >= 0:
            names[label] = PurePosixPath(images.name(first)).parent.name
    if len(own) == len(names) and all(map(WORDNET.fullmatch, names)):
        return list(own)
    return [name.replace("_", " ") for name in names]


def _read_names(path: Path, folders: list[str]) -> list[str]:
    """Return one name per line, in the folders' order; or folders with their names."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {path}: cannot be read ({error})") from None
    lines = list(filter(None, map(str.strip, text.splitlines())))
    pairs = dict(map(_folder_and_name, lines))
    if pairs.keys() >= set(folders):
        return [pairs[folder] for folder in folders]
    if len(lines) != len(folders):
        raise UsageError(
            f"--classes {path}: has {len(lines)} lines, and the dataset has {len(folders)} class "
            "folders; write one name per line in their order, or a folder's name before each"
        )
    return lines


def _folder_and_name(line: str) -> tuple[str, str]:
    folder, _, name = line.replace("\t", " ").partition(" ")
    return folder, name.strip().split(",")[0]
