"""How a plan's network is loaded: whole, on a device, or only to be named."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnvis_cli.engine import choose_devices
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Axis, Layer, Preprocessing, ReceptiveField, Size
from cnnvis_cli.settings import Plan, PreprocessingPlan
from cnnvis_cli.store.run import Record, Run
from cnnvis_cli.validation import read_settings


def load_network(plan: Plan) -> Network:
    """The plan's network on the CPU, with its trained weights."""
    choose_devices(plan.device)  # raises for one that is absent, before anything is loaded
    found = blueprint(plan.model, plan.trust_code, plan.weights)
    module, digest = load(found, plan.weights)
    preprocessing = preprocess(found.preprocessing, plan.preprocessing)
    return Network.prepare(found.name, module, preprocessing, digest, found.classes)


def network_on(device: torch.device, plan: Plan, network: Network | None) -> Network:
    """For a worker process: the network on a device, which becomes the process's own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if network is not None:
        return network if network.device == device else network.to(device)
    return _loaded_once(replace(plan, device=str(device)), device)


_loaded: list[tuple[Plan, Network]] = []


def _loaded_once(plan: Plan, device: torch.device) -> Network:
    """A worker process goes on with the network that it has."""
    parts = ("model", "weights", "trust_code", "preprocessing", "device")
    if not _loaded or any(getattr(_loaded[0][0], p) != getattr(plan, p) for p in parts):
        _loaded[:] = [(plan, load_network(plan).to(device))]
    return _loaded[0][1]


def bare_network(plan: Plan, run: Run) -> Network:
    """The network that the run directory is of, without its module: to be named, not to be run."""
    record = run.read()
    known, digest = record.get("network"), str(record["weights_sha256"])
    if known is None or plan.model != record["model"]:
        return replace(outline(plan), digest=digest)
    layers, classes = tuple(map(_layer, known["layers"])), tuple(known["classes"])
    preprocessing = preprocess(Preprocessing(), plan.preprocessing)
    return Network(plan.model, nn.Module(), preprocessing, digest, classes, layers)


def outlined(network: Network) -> Record:
    """What run.json keeps of a network: enough to draw what was made with it."""
    layers = [plain(asdict(replace(layer, arrangement=None))) for layer in network.layers]
    return {"classes": list(network.classes), "layers": layers}


def _layer(record: Record) -> Layer:
    fields = {name: _field(record[name]) for name in ("field", "narrow") if record.get(name)}
    return Layer(**{**record, "map": tuple(record["map"]), **fields})


def _field(record: Record) -> ReceptiveField:
    return ReceptiveField(*(Axis(**record[axis]) for axis in ("rows", "columns")))


def outline(plan: Plan) -> Network:
    """The plan's network without its weights: enough to list its layers."""
    plan = planned_for(plan)
    found = blueprint(plan.model, plan.trust_code, plan.weights)
    try:
        with torch.device("meta"):
            module = found.build()
    except NotImplementedError:  # a builder that computes with its weights
        module = found.build()
    preprocessing = preprocess(found.preprocessing, plan.preprocessing)
    return Network.prepare(found.name, module, preprocessing, classes=found.classes)


def planned_for(plan: Plan) -> Plan:
    """The plan with model, weights and preprocessing of its run directory where it leaves them."""
    record = Run(plan.folder).read()
    if not record and not plan.model:
        raise UsageError(f"{plan.folder}: holds no run; give --model")
    if plan.model not in ("", record.get("model")):
        return plan
    preprocessing = plan.preprocessing
    if preprocessing == PreprocessingPlan():
        preprocessing = read_settings(PreprocessingPlan, record["preprocessing"], "run.json")
    return replace(
        plan,
        model=str(record["model"]),
        weights=plan.weights or record.get("weights"),
        preprocessing=preprocessing,
    )


def preprocess(own: Preprocessing, asked: PreprocessingPlan) -> Preprocessing:
    """The network's own preprocessing with what the plan changes of it."""
    changed: dict[str, Any] = {k: v for k, v in vars(asked).items() if v is not None}
    bgr = changed.get("bgr", own.bgr)
    if "crop" in changed:
        changed["crop"] = _size(changed["crop"], "crop")
    if isinstance(changed.get("resize"), tuple):
        changed["resize"] = _size(changed["resize"], "resize")
    if isinstance(asked.mean, str):
        from cnnvis_cli.network.caffe import read_mean

        mean = read_mean(Path(asked.mean))
        changed["mean"] = mean[::-1] if bgr else mean
    for name in ("mean", "std"):
        if name in changed and len(changed[name]) != 3:
            raise UsageError(f"preprocessing: {name} needs three numbers, in RGB order")
    return replace(own, **changed)


def _size(value: int | tuple[int, ...], name: str) -> Size:
    sizes = (value, value) if isinstance(value, int) else value
    if len(sizes) != 2 or min(sizes) < 1:
        raise UsageError(f"preprocessing: {name} needs one number or height and width, in pixels")
    return sizes[0], sizes[1]


def plain(value: Any) -> Any:
    """Tuples as lists, so that a value equals itself read back from JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def lasting(weights: str | None) -> str | None:
    """Where the weights are, also when seen from another folder."""
    return str(Path(weights).resolve()) if weights and Path(weights).is_file() else weights
