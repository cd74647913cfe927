"""The whole photographs of a gallery's patches, several in a file, for the enlarged view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Int64s, Pixels
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.figure import site, sprites
from cnnvis_cli.nouns import Size
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.gallery.panes import Photographs
from cnnvis_cli.stages.gallery.scripts import digest_of_pictures, is_made
from cnnvis_cli.store.publish import publish

WHOLE = 256  # most pixels per side
PER_SHEET, ACROSS = 16, 4  # photographs in a file, and those per row
LIST = "photographs.js"


@dataclass(frozen=True)
class WholePhotographs:
    """All photographs of which patches are shown, by their sorted numbers in topk.h5."""

    photographs: Photographs
    wanted: Int64s

    @property
    def folder(self) -> Path:
        return self.photographs.session.run.path / "gallery" / "photographs"

    @property
    def key(self) -> str:
        source = file_digest(self.photographs.session.run.topk)
        return digest([WHOLE, PER_SHEET, sprites.QUALITY, source, self.wanted.tolist()])

    @property
    def size(self) -> Size:
        """The height and width in which they are kept."""
        return sprites.within(self.photographs.size, WHOLE)

    @property
    def units(self) -> range:
        """The sheets: what is counted while they are drawn."""
        return range(-(-len(self.wanted) // PER_SHEET))

    def files(self) -> list[str]:
        return [*(f"{number:04d}.jpg" for number in self.units), LIST]

    def is_done(self) -> bool:
        *sheets, last = map(self.folder.joinpath, self.files())
        return is_made(last, self.key, sheets)

    def make(self) -> Iterator[int]:
        """Draw and publish; yield 0, as no unit is drawn, after each sheet."""
        groups = in_groups(self.wanted.tolist(), PER_SHEET)
        for name, group in zip(self.files(), groups, strict=False):
            tiles: list[Pixels] = []
            for index in group:
                found = self.photographs.read(index)
                grey = np.full((*self.photographs.size, 3), sprites.GREY, np.uint8)
                tiles.append(grey if found is None else found)
            sheet = sprites.mosaic(np.stack(tiles), self.size, ACROSS)
            publish(self.folder / name, sprites.encoded(sheet, "jpg"))
            yield 0
        *sheets, last = map(self.folder.joinpath, self.files())
        publish(last, self.script(digest_of_pictures(sheets)))

    def script(self, pictures: str) -> bytes:
        """Return the data by which the page finds a photograph, with the digest of the sheets."""
        about = {
            "images": self.wanted.tolist(),
            "size": self.photographs.size,
            "tile": self.size,
            "cell": sprites.padded(self.size),
            "sheet": PER_SHEET,
            "columns": ACROSS,
        }
        return site.data("photographs", about, key=self.key, pictures=pictures)
