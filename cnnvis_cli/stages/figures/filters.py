"""`cnnvis filters`: the first layer's filters, which dominate, and which are dead."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.filters import (
    TONES,
    FilterSheet,
    Marks,
    filter_scale,
    filter_sheets,
    toned_filters,
)
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.network import filters as bank
from cnnvis_cli.nouns import size_text
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network, planned_for
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.first_filters import Filters, filter_pictures
from cnnvis_cli.stages.figures.render import Figure, draw_figure
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Run


def filters(session: Session) -> None:
    """Save the clipped weights on request, then report, tabulate and draw each layer."""
    asked = session.plan.filters
    layers = session.layers if session.plan.layer else (bank.first_rgb(session.network),)
    found = [Filters.of(session, layer) for layer in layers]
    other = None if asked.beside is None else opened_beside(session, asked.beside)
    if asked.save_clipped is not None:
        session.report.result(str(_save(session, found, Path(asked.save_clipped))))
    for each in found:
        for line in each.summary():
            session.report.result(line)
        for path in (*each.draw(), each.tabulate()):
            session.report.result(str(path))
        if other is not None:
            for path in draw_figure(session, beside(each, other)):
                session.report.result(str(path))


def _save(session: Session, found: Sequence[Filters], path: Path) -> Path:
    """Write the network with clipped filters; never over the weights that were read."""
    content = bank.safetensors_with(session.network, {f.layer: f.clipped for f in found})
    held = file_digest(path) if path.is_file() else None
    if held == hashlib.sha256(content).hexdigest():
        return path
    if held == session.network.digest:
        raise UsageError(
            f"--save-clipped {path}: is the file of weights that is read; choose another name"
        )
    publish(path, content)
    return path


def opened_beside(session: Session, folder: str) -> Filters:
    """Return the first filters of another run, which is only read; raise `UsageError` without."""
    run = Run(Path(folder))
    if not run.read():
        raise UsageError(f"--beside {folder}: holds no run; name the directory of another one")
    trusted = {"run": folder, "trust_code": session.plan.trust_code}
    plan = planned_for(Plan.make(None, trusted))
    other = Session(plan, load_network(plan, session.report.once), run, session.report)
    if other.network.digest != run.read()["weights_sha256"]:
        raise UsageError(f"--beside {folder}: {plan.weights} no longer holds that run's weights")
    return Filters.of(other, bank.first_rgb(other.network))


def beside(one: Filters, other: Filters) -> Figure:
    """Return the filters of two networks side by side: Zeiler & Fergus 2013, Fig. 6 (b) and (c)."""
    plan, both = one.session.plan.filters, (one, other)
    names, sizes = [], []
    alike = one.session.network.name == other.session.network.name
    for each in both:
        of = each.session.run.path.absolute().name if alike else each.session.network.name
        names.append(f"{of} {each.layer.alias}")
        sizes.append(f"{names[-1]} {len(each.rms)} of {size_text(each.size)}, {each.radius:.3g}")
    note = (
        "First-layer filters in RGB: their number, their size, and the radius beyond whose RMS "
        f"they are framed: {'; '.join(sizes)}. Crossed out: never active in the run's images, "
        f"where these are known. Tone: {TONES[plan.tone]}."
    )
    caption = Caption(" beside ".join(names), note, one.session.plan.figure.column)

    def draw() -> Canvas:
        sheets = []
        for name, each in zip(names, both, strict=True):
            tiles = toned_filters(filter_pictures(each, each.weights), plan.tone)
            scale = plan.scale or filter_scale(each.size)
            sheets.append(FilterSheet(name, tiles, Marks(each.exceeds, each.dead), scale))
        return filter_sheets(sheets, caption)

    record = {
        "layers": [each.layer.alias for each in both],
        "weights_sha256": [each.session.network.digest for each in both],
        "framed": [np.flatnonzero(each.exceeds).tolist() for each in both],
        "dead": [np.flatnonzero(each.dead).tolist() for each in both],
        "tone": TONES[plan.tone],
        "scale": plan.scale,
    }
    name = f"{one.layer.alias}_beside_{other.session.run.path.absolute().name}"
    return Figure("filters", name, caption.title, record, draw)
