"""The gallery: whether its pages and data are those of the results, and its pictures are there."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.figure import site
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.gallery.comparisons import compared_pages
from cnnvis_cli.stages.gallery.layers import CHUNK, ShownLayer, gallery_folder
from cnnvis_cli.stages.gallery.panes import Photographs
from cnnvis_cli.stages.gallery.scripts import digest_of_pictures
from cnnvis_cli.stages.gallery.stage import page_of, pieces, topk_dataset
from cnnvis_cli.stages.gallery.wholes import LIST, PER_SHEET
from cnnvis_cli.stages.numbers.unit_tables import UnitTables
from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.verify.findings import Findings

GALLERY_PAGES, PAGE_PICTURES = "pages", "pictures of pages"
GALLERY_AGAIN = "run cnnvis gallery again"
SCRIPT = re.compile(rb"// ([0-9a-f]{16})(?: [0-9a-f]{16})?\ngallery\.(\w+)\((.*)\);\n", re.DOTALL)


def check_gallery(session: Session, findings: Findings) -> None:
    """Check the page, its data and that its pictures are there."""
    folder = gallery_folder(session)
    if not folder.exists():
        return
    for name, content in site.assets().items():
        with findings.guarded(GALLERY_PAGES):
            _check_asset(folder / name, content, findings)
    with findings.guarded(GALLERY_PAGES):
        aliases = _script(folder / "run.js")[1][0]["layers"]
        shown = [_layer(session, alias, findings) for alias in aliases]
        places = {*aliases, "photographs"}
        others = {path.name for path in folder.iterdir() if path.is_dir()} - places
        findings.leave(GALLERY_PAGES, len(others), "folders of no layer of the page")
        _check_wholes(folder / "photographs", findings)
        known = [layer for layer in shown if layer is not None]
        if len(known) == len(shown):
            _check_page(session, known, findings)
        else:
            findings.leave(GALLERY_PAGES, 2, WHY)
    findings.leave(PAGE_PICTURES, 1, "are not drawn again")


WHY = "drawn with other settings than the defaults, or from results that have changed since"


def _check_asset(path: Path, content: bytes, findings: Findings) -> None:
    """Check a file that is the same in every gallery of this version."""
    found = read_regular(path) if path.exists() else b""
    if found == content:
        findings.recomputed(GALLERY_PAGES, 1)
    elif content.startswith(found):
        findings.recomputed(GALLERY_PAGES, 1, [f"{path}: is cut off or gone; {GALLERY_AGAIN}"])
    else:
        findings.leave(GALLERY_PAGES, 1, "scripts and styles that are not this version's")


def _script(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the key and the values of a script of data; raise `CnnvisError` for another one."""
    with suppress(OSError, ValueError):
        found = SCRIPT.fullmatch(read_regular(path))
        if found is not None:
            return found[1].decode(), list(json.loads(b"[" + found[3] + b"]"))
    raise CnnvisError(f"{path}: is not what was written, or gone; {GALLERY_AGAIN}")


def _layer(session: Session, alias: str, findings: Findings) -> ShownLayer | None:
    """Check a layer's files; return how it is shown, None if that is not known."""
    folder = gallery_folder(session) / alias
    with findings.guarded(GALLERY_PAGES):
        (layer,) = session.network.aliased((alias,))
        key, values = _script(folder / "layer.js")
        _check_names(folder, values[0], findings)
        dataset, tables = topk_dataset(session), UnitTables.of(session.run)
        for photographs in (Photographs(session, set()), None):
            shown = ShownLayer(session, layer, dataset, photographs, tables)
            if shown.key == key:
                _check_data(shown, findings)
                return shown
        findings.leave(GALLERY_PAGES, 1, WHY)
    return None


def _check_names(folder: Path, record: dict[str, Any], findings: Findings) -> None:
    """Check that every file that a layer's data speak of is there, and is that of then."""
    units, sheet, faces = record["units"], record["sheet"], record["faces"]
    strips = [*sorted(folder.glob("strip.*")), *sorted(folder.glob("nav.*"))]
    if faces and not strips:
        findings.stored(PAGE_PICTURES, 1, [f"{folder / 'strip'}: is gone; {GALLERY_AGAIN}"])
    _check_pictures(folder / "layer.js", strips, findings)
    for number in range(-(-len(units) // CHUNK)):
        few = units[number * CHUNK : (number + 1) * CHUNK] if faces else []
        names = [f"{int(unit):04d}.{sheet['suffix']}" for unit in few[:: int(sheet["units"])]]
        names += [f"grid{n}_{number:03d}.{face['suffix']}" for n, face in enumerate(faces)]
        with findings.guarded(GALLERY_PAGES):
            script = folder / f"units_{number:03d}.js"
            _script(script)
            icons = sorted(folder.glob(f"icons_{number:03d}.*"))
            _check_pictures(script, [*map(folder.joinpath, names), *icons], findings)
        for flow in folder.glob(f"flow_{number:03d}.js"):
            with findings.guarded(GALLERY_PAGES):
                _script(flow)


def _check_pictures(script: Path, pictures: Sequence[Path], findings: Findings) -> None:
    """Check that pictures are there, and those that a script was written for."""
    gone = [f"{path}: is gone; {GALLERY_AGAIN}" for path in pictures if not path.exists()]
    findings.stored(PAGE_PICTURES, len(pictures), gone)
    known = site.pictures_of(read_regular(script))
    if pictures and not known:
        findings.leave(PAGE_PICTURES, len(pictures), "an older version noted no digest of them")
    elif not gone and digest_of_pictures(pictures) != known:
        problem = f"{script.parent}: has other pictures than {script.name} was written for"
        findings.stored(PAGE_PICTURES, 0, [f"{problem}; {GALLERY_AGAIN}"])


def _check_wholes(folder: Path, findings: Findings) -> None:
    """Check that the whole photographs of the page are there, if it has any."""
    if not folder.exists():
        return
    about = _script(folder / LIST)[1][0]
    sheets = range(-(-len(about["images"]) // PER_SHEET))
    _check_pictures(folder / LIST, [folder / f"{number:04d}.jpg" for number in sheets], findings)


def _check_data(shown: ShownLayer, findings: Findings) -> None:
    """Compare a layer's data with what the results give today."""
    for piece in pieces(shown):
        path = shown.folder / piece.files()[-1]
        same = False
        with suppress(FileNotFoundError):
            found = read_regular(path)
            same = found == piece.script(site.pictures_of(found))
        problem = f"{path}: is not what the results give; {GALLERY_AGAIN}"
        findings.recomputed(GALLERY_PAGES, 1, [] if same else [problem])


def _compare_page(folder: Path, contents: dict[str, bytes], findings: Findings) -> None:
    for name, content in contents.items():
        path = folder / name
        same = path.exists() and read_regular(path) == content
        problem = f"{path}: is not what the results give; {GALLERY_AGAIN}"
        findings.recomputed(GALLERY_PAGES, 1, [] if same else [problem])


def _check_page(session: Session, shown: Sequence[ShownLayer], findings: Findings) -> None:
    """Compare the page with what the results give, but for its title, which may be any."""
    folder = gallery_folder(session)
    page = read_regular(folder / "index.html").decode()
    title = re.search("<title>(.*?)</title>", page, re.DOTALL)
    gallery = replace(session.plan.gallery, title=html.unescape(title[1]) if title else "")
    again = replace(session, plan=replace(session.plan, gallery=gallery))
    known = compared_pages(session.run)
    told = [each for each in known if f'href="{each[1]}"' in page]
    _compare_page(folder, page_of(again, shown, told), findings)
    findings.leave(GALLERY_PAGES, len(known) - len(told), "comparisons with other runs made since")
    if gallery.title != session.network.name:
        findings.leave(GALLERY_PAGES, 1, "a title of its own")
