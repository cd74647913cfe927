"""`cnnvis layers`: a network's layers as a table."""

from __future__ import annotations

import json

from cnnvis_cli.network.survey import Omission, said
from cnnvis_cli.nouns import Layer, size_text
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.lists import aligned
from cnnvis_cli.stages.common.network_loading import outline
from cnnvis_cli.store.run import Record

HEADINGS = ("alias", "module", "kind", "channels", "map", "field", "stride")


def list_layers(plan: Plan, report: Report, as_json: bool = False) -> None:
    """Print alias, module, kind, channels, map size, receptive field and stride of each layer."""
    network = outline(plan, report.once)
    found = network.layers
    left_out = said(network.omissions)
    if left_out is not None:
        report.once(f"{network.name}: {left_out}")
    if as_json:
        records = [*map(_layer_record, found), *map(_omitted, network.omissions)]
        report.result(json.dumps(records, indent=1))
        return
    for line in aligned([HEADINGS, *map(_layer_row, found)]):
        report.result(line)


def _layer_record(layer: Layer) -> Record:
    """Return a layer as plain values: sizes are [height, width], with names as in topk.h5."""
    local = {
        "local_field": layer.local.size,
        "local_stride": layer.local.stride,
        "apart": layer.apart,
    }
    return {
        "alias": layer.alias,
        "module": layer.module,
        "kind": layer.kind,
        "channels": layer.channels,
        "map": layer.map,
        "receptive_field": layer.field.size,
        "stride": layer.field.stride,
        **(local if layer.needs_local_fields else {}),
    }


def _omitted(omission: Omission) -> Record:
    """Return a module with weights that is no layer, as plain values; its alias is null."""
    unknown = dict.fromkeys(("kind", "channels", "map", "receptive_field", "stride"))
    about = {"class": omission.kind, "left_out": omission.reason}
    return {"alias": None, "module": omission.module, **unknown, **about}


def _layer_row(layer: Layer) -> tuple[str, ...]:
    sizes = map(size_text, (layer.map, layer.field.size, layer.field.stride))
    return layer.alias, layer.module, layer.kind, str(layer.channels), *sizes
