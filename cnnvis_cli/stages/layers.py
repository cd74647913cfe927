"""`cnnvis layers`: a network's layers as a table."""

from __future__ import annotations

import json

from cnnvis_cli.nouns import Layer, Size
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import outline
from cnnvis_cli.store.run import Record

HEADINGS = ("alias", "module", "kind", "channels", "map", "field", "stride")


def layers(plan: Plan, report: Report, as_json: bool = False) -> None:
    """Print alias, module, kind, channels, map size, receptive field and stride of each layer."""
    found = outline(plan, report.once).layers
    if as_json:
        report.result(json.dumps([_record(layer) for layer in found], indent=1))
        return
    rows = [HEADINGS, *(_row(layer) for layer in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        report.result("  ".join(cells).rstrip())


def _record(layer: Layer) -> Record:
    """Return a layer as plain values: sizes are [height, width], with names as in topk.h5."""
    return {
        "alias": layer.alias,
        "module": layer.module,
        "kind": layer.kind,
        "channels": layer.channels,
        "map": layer.map,
        "receptive_field": layer.field.size,
        "stride": layer.field.stride,
    }


def _row(layer: Layer) -> tuple[str, ...]:
    sizes = (_times(size) for size in (layer.map, layer.field.size, layer.field.stride))
    return layer.alias, layer.module, layer.kind, str(layer.channels), *sizes


def _times(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
