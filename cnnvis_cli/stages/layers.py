"""`cnnvis layers`: a network's layers as a table."""

from __future__ import annotations

import json

from cnnvis_cli.nouns import Layer, size_text
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.lists import aligned
from cnnvis_cli.stages.common.network_loading import outline
from cnnvis_cli.store.run import Record

HEADINGS = ("alias", "module", "kind", "channels", "map", "field", "stride")


def list_layers(plan: Plan, report: Report, as_json: bool = False) -> None:
    """Print alias, module, kind, channels, map size, receptive field and stride of each layer."""
    found = outline(plan).layers
    if as_json:
        report.result(json.dumps(list(map(_layer_record, found)), indent=1))
        return
    for line in aligned([HEADINGS, *map(_layer_row, found)]):
        report.result(line)


def _layer_record(layer: Layer) -> Record:
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


def _layer_row(layer: Layer) -> tuple[str, ...]:
    sizes = map(size_text, (layer.map, layer.field.size, layer.field.stride))
    return layer.alias, layer.module, layer.kind, str(layer.channels), *sizes
