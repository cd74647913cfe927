"""The class names of a dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cnnvis_cli.errors import UsageError
from cnnvis_cli.store.topk_file import Images

WORDNET = re.compile(r"n\d{8}")  # ImageNet's folders


def class_names(images: Images, own: Sequence[str], file: str | None) -> list[str]:
    """Return a name for each class folder of the images, by label.

    From the `file` if there is one; otherwise the network's `own` names, if the folders are
    ImageNet's and as many (sorted, they are in the order of its classes); otherwise the folders'
    names. Raise `UsageError` for a file that does not fit the folders.
    """
    folders = _folders(images)
    if file is not None:
        return _read_names(Path(file), folders)
    if len(own) == len(folders) and all(WORDNET.fullmatch(folder) for folder in folders):
        return list(own)
    return [folder.replace("_", " ") for folder in folders]


def _folders(images: Images) -> list[str]:
    """Return the class folders' names, by label; empty if no image of the label is left."""
    names = [""] * (int(images.label.max(initial=-1)) + 1)
    for label in range(len(names)):
        of_label = images.label == label
        if of_label.any():
            names[label] = PurePosixPath(images.name(int(of_label.argmax()))).parent.name
    return names


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
