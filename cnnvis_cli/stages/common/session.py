"""What every stage starts from: the network, the run directory, and the plan."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cnnvis_cli import __version__
from cnnvis_cli.engine import (
    Notice,
    Pool,
    choose_device,
    choose_devices,
    connect,
    describe_device,
    for_gradients,
    keep_memory,
    memory_explained,
    one_thread,
    release_idle,
    remark_on_auto,
    worker_slots,
)
from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.survey import said
from cnnvis_cli.nouns import Layer, parse_units
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.known_networks import known_check
from cnnvis_cli.stages.common.network_loading import (
    bare_network,
    lasting,
    load_network,
    outlined,
    planned_for,
)
from cnnvis_cli.stages.common.preprocessing import recorded
from cnnvis_cli.store.hdf5 import Header
from cnnvis_cli.store.run import Record, Run, differences


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
            "preprocessing": recorded(self.network.preprocessing),
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
        """Return who does the work: slots of this machine, with `need` bytes each, or a cluster."""
        devices = choose_devices(self.plan.device)
        if self.plan.scheduler:
            return connect(self.plan.scheduler, devices[0], self.plan.trust_network)
        found = worker_slots(devices, self.plan.workers, need)
        return for_gradients(found) if gradients else found

    @property
    def portable_plan(self) -> Plan:
        """The plan as other processes read it, which may stand in another folder."""
        plan, mean = self.plan, self.plan.preprocessing.mean
        kept = lasting(mean) if isinstance(mean, str) else mean
        return replace(
            plan,
            run=str(self.run.path.absolute()),
            weights=lasting(plan.weights),
            dataset=_standing(plan.dataset),
            preprocessing=replace(plan.preprocessing, mean=kept),
        )

    def takes(self, layer: Layer) -> Callable[[int], bool]:
        """Return which blocks of a layer's units are for this shard."""
        return self.plan.takes(self.network.layers.index(layer))

    def say_what_is_left_out(self) -> None:
        """Print a line about the modules with weights that are no layers, if there are any."""
        left_out = said(self.network.omissions)
        if left_out is not None:
            self.report.once(f"{self.network.name}: {left_out}")

    def announce(self, stage: str, jobs: dict[str, Record]) -> None:
        """Note in run.json what a stage is to do, for `cnnvis status`."""
        known = self.run.noted().get("asked", {})
        self.run.note("asked", {**known, stage: {**known.get(stage, {}), **jobs}})

    def shard_is_done(self, what: str = "") -> None:
        """Say that this shard has nothing left to do, and what comes next."""
        self.report.result(
            f"{self.run.path}: shard {self.plan.shard} is done{what}; join the shards with "
            "cnnvis merge"
        )

    def with_project(self, batch_size: int | None, **settings: Any) -> Session:
        """Return the same with other settings for projections."""
        project = replace(self.plan.project, **settings)
        return replace(self, plan=replace(self.plan, project=project, batch_size=batch_size))

    def header(self, layer: Layer) -> Header:
        return header_of(self.network, layer)

    @contextmanager
    def timed(self, stage: str) -> Iterator[Record]:
        """Record in run.json how long a stage has worked, on what, and with which versions.

        Yield a record for other facts to note.
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
        """Return all that this stage has been computed with; print a line where that differs."""
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
        network = bare_network(plan, run) if bare else load_checked(plan, report)
        remark = None if bare else remark_on_auto(plan.device)
        if remark is not None:
            report.once(remark)
        report.check_stop()
        with run.lock(plan.shard, report.once):
            session = Session(plan, network, run, report)
            run.claim(session.identity, lasting(plan.weights), plan.ema, report.log)
            if not bare:
                run.note("network", outlined(network))
            yield session


def load_checked(plan: Plan, report: Report) -> Network:
    """Load the plan's network, and check that it gives each image values of its own."""
    with one_thread():
        network, notes = known_check(load_network(plan, report.once))
    for note in notes:
        report.once(note)
    return network


def _standing(dataset: str | None) -> str | None:
    """Where the dataset is, also when seen from another folder; ``demo`` is beside the run."""
    return dataset if dataset in (None, "demo") else str(Path(dataset).absolute())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
