"""What every stage starts from: the network, the run directory, and the plan."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnvis_cli import __version__
from cnnvis_cli.engine import (
    Notice,
    Pool,
    choose_device,
    choose_devices,
    describe_device,
    for_gradients,
    keep_memory,
    memory_explained,
    reach,
    release_idle,
    remark_on_auto,
    worker_slots,
)
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Axis, Layer, Preprocessing, ReceptiveField, Size, parse_units
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan, PreprocessingPlan
from cnnvis_cli.store.hdf5 import Header
from cnnvis_cli.store.run import Record, Run, differences
from cnnvis_cli.validation import read_settings


@dataclass(frozen=True)
class Session:
    """A plan with its network loaded and its run directory claimed."""

    plan: Plan
    network: Network
    run: Run
    report: Report

    @property
    def identity(self) -> Record:
        """What all files of the run directory have in common."""
        return {
            "model": self.network.name,
            "weights_sha256": self.network.digest,
            "preprocessing": _plain(asdict(self.network.preprocessing)),
        }

    @property
    def device(self) -> torch.device:
        """The first device that the plan asks for."""
        return choose_device(self.plan.device)

    def here(self) -> Session:
        """Return the session with its network on the device, for this process to compute with.

        Workers that are idle leave the device first: some are for one process at a time.
        """
        if self.network.device == self.device:
            return self
        release_idle()
        return replace(self, network=self.network.to(self.device))

    def on_event(self, message: Any) -> None:
        """Pass on what a worker has to say to the user; a safe moment to stop."""
        self.report.check_stop()
        if isinstance(message, Notice):
            self.report.once(message.text)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that the plan asks for, in the network's order."""
        return self.network.choose(self.plan.layer)

    def units(self, layer: Layer) -> tuple[int, ...]:
        """The channels of a layer that the plan asks for."""
        return parse_units(self.plan.units, layer.channels, layer.alias)

    def pool(self, need: int, gradients: bool = False) -> Pool:
        """Who does the work: worker slots of this machine with `need` bytes each, or a cluster."""
        devices = choose_devices(self.plan.device)
        if self.plan.scheduler:
            return reach(self.plan.scheduler, devices[0], self.plan.trust_network)
        found = worker_slots(devices, self.plan.workers, need)
        return for_gradients(found) if gradients else found

    @property
    def portable_plan(self) -> Plan:
        """The plan as other processes read it, which may stand in another folder."""
        plan, mean = self.plan, self.plan.preprocessing.mean
        lasting = _lasting(mean) if isinstance(mean, str) else mean
        return replace(
            plan,
            run=str(self.run.path.absolute()),
            weights=_lasting(plan.weights),
            dataset=_standing(plan.dataset),
            preprocessing=replace(plan.preprocessing, mean=lasting),
        )

    def takes(self, layer: Layer) -> Callable[[int], bool]:
        """Which blocks of a layer's units are for this shard."""
        return self.plan.takes(self.network.layers.index(layer))

    def announce(self, stage: str, jobs: dict[str, Record]) -> None:
        """Note in run.json what a stage is to do, for `cnnvis status`."""
        known = self.run.noted().get("asked", {})
        self.run.note("asked", {**known, stage: {**known.get(stage, {}), **jobs}})

    def with_project(self, batch_size: int | None, **settings: Any) -> Session:
        """The same with other settings for projections."""
        project = replace(self.plan.project, **settings)
        return replace(self, plan=replace(self.plan, project=project, batch_size=batch_size))

    def header(self, layer: Layer) -> Header:
        return header_of(self.network, layer)

    @contextmanager
    def timed(self, stage: str) -> Iterator[Record]:
        """Record in run.json how long a stage has worked, on what, and with which versions.

        Gives a record for what else is to be known.
        """
        start = time.monotonic()
        facts: Record = {}
        arithmetic = self._arithmetic(stage)
        try:
            yield facts
        finally:
            known = self.run.noted().get(stage, {})
            record = {
                **known,
                **facts,
                "seconds": round(known.get("seconds", 0.0) + time.monotonic() - start, 1),
                "device": _device_name(self.device),
                "arithmetic": arithmetic,
                "versions": {
                    "cnnvis": __version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
            }
            self.run.note(stage, record)

    def _arithmetic(self, stage: str) -> list[Record]:
        """All that this stage has been computed with so far; says so where it is not all alike."""
        own: Record = dict(describe_device(self.device))
        known: list[Record] = self.run.noted().get(stage, {}).get("arithmetic", [])
        if own in known or not known:
            return known or [own]
        apart = differences(known[-1], own)
        self.report.once(f"{stage}: goes on with other arithmetic, whose last bits differ: {apart}")
        return [*known, own]


def header_of(network: Network, layer: Layer) -> Header:
    """What a layer's files say about where they come from."""
    mean = network.preprocessing.mean
    return Header(network.name, network.digest, layer.alias, layer.module, mean)


@contextmanager
def open_session(
    plan: Plan, report: Report, new: bool = True, weights: bool = True
) -> Iterator[Session]:
    """Load the network, then hold the run directory while the block works in it.

    The network stays on the CPU, so that GPUs are left to the workers; see `Session.here`.

    What the plan leaves open of the network is taken from the run directory. Raises `UsageError`
    where there is no run yet and a `new` one would be of no use. A stage that does not compute
    with the network can do without its `weights`, those of the run directory.
    """
    keep_memory()
    plan_weights = plan.weights
    plan = planned_for(plan)
    run = Run(plan.folder, plan.shard)
    if not new and not run.read():
        raise UsageError(f"{run.path} holds no run yet; run cnnvis optimize or topk first")
    with report.stoppable(), memory_explained(plan.device):
        bare = not weights and not plan_weights
        network = bare_network(plan, run) if bare else load_network(plan)
        remark = None if bare else remark_on_auto(plan.device)
        if remark is not None:
            report.once(remark)
        report.check_stop()
        with run.lock(plan.shard):
            session = Session(plan, network, run, report)
            run.claim(session.identity, _lasting(plan.weights))
            if not bare:
                run.note("network", outlined(network))
            yield session


def _standing(dataset: str | None) -> str | None:
    """Where the dataset is, also when seen from another folder; ``demo`` is beside the run."""
    return dataset if dataset in (None, "demo") else str(Path(dataset).absolute())


def _lasting(weights: str | None) -> str | None:
    """Where the weights are, also when seen from another folder."""
    return str(Path(weights).resolve()) if weights and Path(weights).is_file() else weights


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
    layers = [_plain(asdict(layer)) for layer in network.layers]
    return {"classes": list(network.classes), "layers": layers}


def _layer(record: Record) -> Layer:
    field = ReceptiveField(*(Axis(**record["field"][axis]) for axis in ("rows", "columns")))
    return Layer(**{**record, "map": tuple(record["map"]), "field": field})


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


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a value equals itself read back from JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
