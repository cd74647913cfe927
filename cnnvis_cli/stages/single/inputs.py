"""The images named on the command line, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.dataset.containers import read_file
from cnnvis_cli.dataset.decode import Unreadable, decode
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import TooManyUnreadable, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.registry import unknown
from cnnvis_cli.stages.common.beforehand import check_place
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.store.image_names import names_in, note_names
from cnnvis_cli.store.run import Run


@dataclass(frozen=True)
class InputImage:
    """One image as the network sees it, and the name of its files."""

    name: str
    path: str
    pixels: Pixels  # (height, width, 3)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the image as the network sees it: its shape and its pixels."""
        content = f"{self.pixels.shape}".encode() + self.pixels.tobytes()
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class _Source:
    """An image that is not read yet."""

    path: str
    read: Callable[[], bytes]


class InputImages:
    """Images, and those of folders, lists, tars, zips and Parquet files, in order, not read yet.

    Each is named after its file, with as many parent folders as distinguish it from the others, and
    from those that the run has files of. Raise `UsageError` for a place without images.
    """

    def __init__(self, places: Sequence[str], run: Run) -> None:
        self._sources = list(chain.from_iterable(map(_sources, map(Path, places))))
        self.paths = [source.path for source in self._sources]
        self.names = names_in(run, self.paths)

    def __len__(self) -> int:
        return len(self._sources)

    def path(self, number: int) -> str:
        return self.paths[number]

    def read(self, number: int, preprocessing: Preprocessing) -> InputImage:
        """Decode an image; raise `Unreadable` with the reason."""
        source = self._sources[number]
        pixels = decode(source.read(), preprocessing)
        return InputImage(self.names[number], source.path, pixels)


def noted_images(session: Session, places: Sequence[str]) -> InputImages:
    """Return the images of some places, whose names are noted in run.json from now on."""
    album = InputImages(places, session.run)
    note_names(session.run, album.names, album.paths)
    return album


def photographs(
    session: Session, places: Sequence[str], takes: Callable[[int], bool] = lambda _: True
) -> Iterator[InputImage]:
    """Decode the images of an `InputImages` that `takes` selects, in order, one at a time.

    Unusable ones are reported and skipped. Raise `UsageError` like `InputImages`, and at the end
    `TooManyUnreadable` (exit code 3) if too large a share was skipped.
    """
    album, unusable = noted_images(session, places), list[str]()
    chosen = list(filter(takes, range(len(album))))
    for number in chosen:
        session.report.check_stop()
        try:
            yield album.read(number, session.network.preprocessing)
        except Unreadable as reason:
            unusable.append(f"{album.path(number)}: {reason}")
            session.report.note(f"{unusable[-1]}; left out")
    allowed = session.plan.topk.max_unreadable
    if len(unusable) > allowed * len(chosen):
        raise TooManyUnreadable(
            f"{len(unusable)} of {len(chosen)} images could not be used ({unusable[0]}), more than "
            f"{allowed:.1%}; see --max-unreadable"
        )


def in_batches(images: Iterator[InputImage], size: int) -> Iterator[list[InputImage]]:
    """Yield images in lists of `size`, the last one shorter; then report too many failures."""
    batch: list[InputImage] = []
    late: TooManyUnreadable | None = None
    try:
        for image in images:
            batch.append(image)
            if len(batch) == size:
                yield batch
                batch = []
    except TooManyUnreadable as error:
        late = error
    if batch:
        yield batch
    if late is not None:
        raise late


def _sources(place: Path) -> Iterator[_Source]:
    check_place(place)
    if place.is_dir() or place.suffix.lower() in CONTAINERS:
        manifest = Manifest.scan(place)
        for index in range(len(manifest)):
            path = str(manifest.root / manifest.path(index))
            yield _Source(path, lambda index=index: manifest.read(index))  # type: ignore[misc]
    else:
        yield _Source(str(place), lambda: read_file(place))


CONTAINERS = (".txt", ".lst", ".tar", ".zip", ".parquet")


def batch_of(network: Network, chosen: Sequence[InputImage]) -> torch.Tensor:
    """Return mean-subtracted pixels on the network's device: (B, 3, h, w)."""
    return network.centre(torch.stack([torch.from_numpy(each.pixels.copy()) for each in chosen]))


def class_name(network: Network, index: int) -> str:
    """Return the name of an output of the network: its class, or its number."""
    return network.classes[index] if index < len(network.classes) else f"class {index}"


def find_class(network: Network, outputs: int, text: str) -> int:
    """Return the output of a class name or number; raise `UsageError` with the nearest name."""
    if text.isdecimal() and int(text) < outputs:
        return int(text)
    wanted = text.casefold()
    for index, name in enumerate(network.classes):
        if name.casefold() == wanted:
            return index
    if text.isdecimal() or not network.classes:
        raise UsageError(f"{network.name} has no class {text}; it has 0 to {outputs - 1}")
    raise unknown("class", text, network.classes, place=network.name)
