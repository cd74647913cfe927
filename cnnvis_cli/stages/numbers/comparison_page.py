"""The page of two runs: a matrix of layers, and units beside those that they are most like."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import starmap
from operator import itemgetter
from pathlib import Path
from urllib.parse import quote

import numpy as np

from cnnvis_cli.digests import digest
from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.figure import site, sprites
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.figure.twins import (
    correlation_bars,
    legend_colours,
    matrix_record,
    patch_block,
    percent_of,
)
from cnnvis_cli.measures.matching import LayerMatch
from cnnvis_cli.measures.pairing import ShownTwins, UnitPair
from cnnvis_cli.nouns import Unit
from cnnvis_cli.report import Report
from cnnvis_cli.stages.figures.data import unit_label
from cnnvis_cli.stages.numbers.compared import Comparison
from cnnvis_cli.stages.numbers.counterparts import RunPictures, SideBySide
from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Record

TWIN_SIDE = 80  # pixels of a patch's longer side
TWINS_IN_A_ROW = 8  # of a sheet


def draw_comparison(compared: Comparison, path: Path, report: Report) -> Iterator[Path]:
    """Draw the pictures of units beside the matrix at `path`, and the page; yield their files.

    A line says so where the images cannot be read any more; the page then has none.
    """
    sides = SideBySide.of(compared.one.run, compared.two.run, report)
    page = ComparedPage(path.with_suffix(""), sides, compared)
    sheets: dict[str, list[Record]] = {}
    try:
        yield from _draw_figures(compared, sides, path)
        sheets = page.sheets()
    except CnnvisError as error:
        report.note(f"pictures of units are left out: {error}")
    yield page.publish(path.name, sheets)


def _draw_figures(compared: Comparison, sides: SideBySide, path: Path) -> Iterator[Path]:
    """Draw the best matches of each layer, and the units that have none.

    Raise `CnnvisError` where the images cannot be read any more.
    """
    names, layers = (compared.one.title, compared.two.title), list(compared.pairs.values())
    patches = "Strongest patches of the images in both samples."
    matched = f"{patches} Left: {names[0]}; right: the unit of {names[1]} that it is most like (r)."
    alone = f"{patches} Units of {names[0]} that no unit of {names[1]} matches beyond chance."
    figures = {
        "matches": partial(sides.matches, layers, Caption("Matched units", matched)),
        "unmatched": partial(sides.unmatched, layers, Caption("Units without a match", alone)),
    }
    key = digest(list(map(asdict, compared.units)))
    for name, draw in figures.items():
        canvas = draw()
        if canvas is not None:
            text = {"Title": f"{path.stem} {name}", "Software": "cnnvis"}
            record = {"kind": "compare", "shows": name, "units": key}
            text |= {"cnnvis": json.dumps(record), "cnnvis-key": digest(record)}
            file = path.with_name(f"{path.stem}-{name}.png")
            publish(file, canvas.png(text))
            yield file


@dataclass(frozen=True)
class ComparedPage:
    """The page's folder, both runs opened for reading, and what was found."""

    folder: Path
    sides: SideBySide
    compared: Comparison

    @cached_property
    def layers(self) -> list[ShownTwins]:
        return list(starmap(ShownTwins, self.compared.pairs.items()))

    def sheets(self) -> dict[str, list[Record]]:
        """Publish each layer's patches, a sheet for either side; return where they are.

        Raise `CnnvisError` for images that cannot be read.
        """
        found, files = {}, set[str]()
        for twins in self.sides.one.session.report.each(self.layers):
            units = [pair.unit for pair in twins.shown], [pair.best for pair in twins.shown]
            both = zip("ab", (self.sides.one, self.sides.two), units, strict=True)
            found[twins.alias] = [
                self._sheet(f"{twins.alias}-{side}.jpg", run, own) for side, run, own in both
            ]
            files |= {sheet["file"] for sheet in found[twins.alias]}
        for path in self.folder.glob("*-[ab].jpg"):  # of layers that an older page had
            if path.name not in files:
                path.unlink()
        return found

    def _sheet(self, name: str, run: RunPictures, units: Sequence[Unit]) -> Record:
        blocks = np.stack([patch_block(run.strongest(unit, TWIN_SIDE)) for unit in units])
        size = (blocks.shape[1], blocks.shape[2])
        sheet = sprites.mosaic(blocks, size, TWINS_IN_A_ROW)
        _publish_changed(self.folder / name, sprites.encoded(sheet, "jpg"))
        cell = sprites.padded(size)
        return {"file": name, "block": size, "cell": cell, "size": sheet.shape[:2]}

    def publish(self, matrix_file: str, sheets: Mapping[str, list[Record]]) -> Path:
        """Write what the page needs, and the page last; return its path."""
        page = site.page(self._facts(matrix_file, sheets), "compare.html")
        for name, content in {**site.assets(site.COMPARED_ASSETS), "index.html": page}.items():
            _publish_changed(self.folder / name, content)
        return self.folder / "index.html"

    def _facts(self, matrix_file: str, sheets: Mapping[str, list[Record]]) -> Record:
        found, sides = self.compared, (self.compared.one, self.compared.two)
        layers = []
        for match, twins in zip(found.layers, self.layers, strict=True):
            sheet = {"sheets": sheets.get(twins.alias)}
            layers.append({**_said_of_layer(match, twins), **self._twins(twins), **sheet})
        alike = sides[0].record["model"] == sides[1].record["model"]
        one, two = (
            {"model": side.title if alike else side.record["model"], "name": side.title}
            for side in sides
        )
        names, chosen = list(found.two.layers), []
        for match in found.layers:
            chosen.append(names.index(match.counterpart))
        matrix = matrix_record(found.likeness, list(found.one.layers), names, chosen)
        return {
            "title": f"{one['model']} beside {two['model']}",
            **{"one": one, "two": two, "layers": layers, "pictures": bool(sheets)},
            "images": found.count,
            "units": len(found.units),
            "survive": percent_of(float(np.mean([unit.survives for unit in found.units]))),
            "matrix": {**matrix, "file": matrix_file},
            "legend": legend_colours(),
            "galleries": list(filter(itemgetter(1), self._galleries)),
        }

    def _twins(self, twins: ShownTwins) -> Record:
        """Return what the page says of a layer's units."""
        best, middle, lost = len(twins.best), len(twins.middle), len(twins.lost)
        shown = [self._twin(at, pair) for at, pair in enumerate(twins.shown)]
        return {
            "matched": shown[:best],
            "middle": shown[best : best + middle],
            "lost": shown[best + middle :] if lost else [],
            "lost_units": len(twins.pairs) - len(twins.matched),
        }

    def _twin(self, at: int, pair: UnitPair) -> Record:
        (_, here), (_, there) = self._galleries
        return {
            "at": at,
            "r": f"{pair.correlation:.2f}",
            "unit": _unit_with_word(self.sides.one, pair.unit),
            "best": _unit_with_word(self.sides.two, pair.best),
            "link": here and f"{here}#{pair.unit}",
            "best_link": there and f"{there}#{pair.best}",
        }

    @cached_property
    def _galleries(self) -> list[tuple[str, str]]:
        """Both runs' names and the addresses of their galleries from here; empty without one."""
        found = []
        for side in (self.sides.one, self.sides.two):
            run = side.session.run.path.resolve()
            page = run / "gallery" / "index.html"
            address = os.path.relpath(page, self.folder.resolve()) if page.is_file() else ""
            found.append((run.name, quote(Path(address).as_posix()) if address else ""))
        return found


def _unit_with_word(side: RunPictures, unit: Unit) -> str:
    """Return a unit with a word for it, if there is one: ``conv5/0042 dog``."""
    word = unit_label(side.session, side.session.network.layer(unit.layer), unit.channel)
    return f"{unit} {word.partition(' ')[2]}".strip()


def _said_of_layer(match: LayerMatch, twins: ShownTwins) -> Record:
    """Return the numbers of a layer as the page says them."""
    correlations = np.array([pair.correlation for pair in twins.pairs])
    bars = correlation_bars(correlations, match.chance)
    names = ("cka", "cka_error", "median", "chance")
    return {
        "alias": match.layer,
        "counterpart": match.counterpart,
        "units": match.units,
        "survive": percent_of(match.survive),
        **{name: f"{getattr(match, name):.2f}" for name in names},
        "bars": bars,
        "chance_at": round(10 * len(bars) * min(1.0, max(0.0, match.chance)), 1),
    }


def _publish_changed(path: Path, content: bytes) -> None:
    if not path.is_file() or read_regular(path) != content:
        publish(path, content)
