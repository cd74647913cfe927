"""`cnnvis layers`: a network's layers as a table."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from cnnvis_cli.network.structure import code_of, is_known
from cnnvis_cli.network.survey import Omission, said
from cnnvis_cli.nouns import Layer, size_text
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.lists import aligned
from cnnvis_cli.stages.common.network_loading import outline, planned_for
from cnnvis_cli.store.cache import remembered
from cnnvis_cli.store.run import Record

HEADINGS = ("alias", "module", "kind", "channels", "map", "field", "stride")


def list_layers(plan: Plan, report: Report, as_json: bool = False) -> None:
    """Print alias, module, kind, channels, map size, receptive field and stride of each layer."""
    plan = planned_for(plan)
    list_them = partial(_listing, plan)
    if not is_known(plan.model) or (plan.weights and Path(plan.weights).exists()):
        found = list_them()
    else:
        found = remembered("layers", _listing_key(plan), list_them)
    for line in found["lines"]:
        report.once(line)
    if as_json:
        report.result(json.dumps([*found["layers"], *found["omissions"]], indent=1))
        return
    for line in aligned([HEADINGS, *map(_layer_row, found["layers"])]):
        report.result(line)


def _listing_key(plan: Plan) -> Record:
    """Return all that decides what is listed of a network that is known by name."""
    return {**code_of(plan.model), "preprocessing": repr(plan.preprocessing)}


def _listing(plan: Plan) -> Record:
    """Return what is to be said about a network, its layers and what is left out, as plain values.

    Sizes are [height, width]; names are as in topk.h5.
    """
    lines: list[str] = []
    network = outline(plan, lines.append)
    left_out = said(network.omissions)
    if left_out is not None:
        lines.append(f"{network.name}: {left_out}")
    layers, omissions = map(_layer_record, network.layers), map(_omitted, network.omissions)
    return {"lines": lines, "layers": list(layers), "omissions": list(omissions)}


def _layer_record(layer: Layer) -> Record:
    """Return a layer as plain values."""
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


def _layer_row(layer: Record) -> tuple[str, ...]:
    sizes = (size_text(layer[name]) for name in ("map", "receptive_field", "stride"))
    return layer["alias"], layer["module"], layer["kind"], str(layer["channels"]), *sizes
