"""The frozen, sorted list of images that a run is about."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.errors import UsageError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
)


@dataclass(frozen=True)
class Manifest:
    """Images of a folder: paths relative to `root`, in sorted order, with sizes in bytes.

    In class folders (``root/class/.../image.jpg``) the label is the index of the class folder
    among the sorted class folders; images directly in the root have label -1.
    """

    root: Path
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def scan(cls, root: Path) -> Manifest:
        """List a folder's images; raises `UsageError` where there is no folder or no image."""
        if not root.is_dir():
            raise UsageError(f"dataset {root}: there is no such folder")
        found = sorted(_images(root))
        if not found:
            raise UsageError(
                f"dataset {root}: holds no images ({', '.join(sorted(SUFFIXES))}), "
                "neither directly nor in class folders"
            )
        paths, sizes = zip(*found, strict=True)
        classes = sorted({path.split("/", 1)[0] for path in paths if "/" in path})
        return cls(root, paths, sizes, tuple(classes))

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """The class index of each image, -1 without a class folder: (N,)."""
        index = {name: i for i, name in enumerate(self.classes)}
        labels = (index[p.split("/", 1)[0]] if "/" in p else -1 for p in self.paths)
        return np.fromiter(labels, np.int32, len(self.paths))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over paths and sizes, in order: another folder state is another dataset."""
        digest = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes, strict=True):
            digest.update(os.fsencode(path) + f"\0{size}\n".encode())
        return digest.hexdigest()


def _images(root: Path) -> Iterator[tuple[str, int]]:
    """Relative paths and sizes of what is named like an image; linked folders once each.

    Hidden names and run directories are passed over.
    """
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, onerror=_refuse, followlinks=True):
        status = os.stat(folder)  # noqa: PTH116 - os.walk gives strings
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        base = Path(folder)
        if (base / "run.json").is_file():  # a run directory's figures are not its images
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                path = base / name
                yield path.relative_to(root).as_posix(), _size(path)


def _refuse(error: OSError) -> None:
    raise UsageError(f"dataset {error.filename}: cannot be listed ({error.strerror})")


def _size(path: Path) -> int:
    """Bytes of a file; 0 for a dangling link, which decoding will report."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
