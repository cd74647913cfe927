"""`cnnvis bench project`: the speed of `project`, and of one image at a time in all layers."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnvis_cli.bench.optimize import pace, through_all
from cnnvis_cli.network.backward import check_rules, rectify
from cnnvis_cli.nouns import Layer
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import Session, open_session
from cnnvis_cli.stages.project.backward_pass import BackwardPass
from cnnvis_cli.stages.project.batching import StoredPlaces
from cnnvis_cli.stages.project.job import Projections, group_of
from cnnvis_cli.store.topk import TopK
from cnnvis_cli.store.topk_file import LayerTopK, boxes

RANDOM_IMAGES = 256  # random images


@dataclass(frozen=True)
class ProjectRow:
    """One layer's projections per second by one method, round by round."""

    layer: Layer
    group: str
    places: int
    ours: tuple[float, ...]
    whole: tuple[float, ...]  # the whole network on the whole input, batch 1

    @property
    def gain(self) -> float:
        """How many times faster than one image at a time in the same round: the median."""
        pairs = zip(self.ours, self.whole, strict=True)
        return statistics.median(ours / whole for ours, whole in pairs)

    def record(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "layer": self.layer.alias,
            "field": list(self.layer.field.size),
            "group": self.group,
            "places": self.places,
            "project": [round(rate, 2) for rate in self.ours],
            "whole": [round(rate, 3) for rate in self.whole],
            "gain": round(self.gain, 2),
        }

    def line(self) -> str:
        size = "{}x{}".format(*self.layer.field.size)
        middle = statistics.median
        return (
            f"{self.layer.alias:8}{self.group:18}{size:>9}{self.places:8}"
            f"{middle(self.ours):12.1f}{middle(self.whole):9.2f}{self.gain:9.1f}x"
        )


@dataclass(frozen=True)
class ProjectBench:
    """The rows of all layers and methods, and what describes the machine."""

    about: dict[str, Any]
    rows: tuple[ProjectRow, ...]

    def record(self) -> dict[str, Any]:
        return {**self.about, "layers": [row.record() for row in self.rows]}

    def table(self) -> str:
        """Return the table as text: projections per second."""
        head = f"{'layer':8}{'method':18}{'field':>9}{'places':>8}{'project':>12}{'whole':>9}"
        return "\n".join(
            [
                ", ".join(f"{key} {value}" for key, value in self.about.items()),
                "",
                f"{head}{'gain':>10}",
                *(row.line() for row in self.rows),
                "",
                "project: places per second, images decoded, at random places of random",
                "images; whole: one at a time, the whole network on the whole input, by the same",
                "rule; gain: the ratio within a round, the median.",
            ]
        )


def measure_project(plan: Plan, report: Report, seconds: float, rounds: int) -> ProjectBench:
    """Measure every layer and method of the plan, in each round."""
    with tempfile.TemporaryDirectory() as folder:
        plan = replace(plan, run=folder + "/run")
        with open_session(plan, report) as opened:
            session = opened.here()
            for method in plan.project.methods:
                check_rules(session.network, session.layers, method)
            asked = [(layer, m) for layer in session.layers for m in plan.project.methods]
            tracked = report.track(asked, "bench project", len(asked), "layers")
            clock = seconds, rounds
            rows = tuple(
                _measure_projections(session, layer, method, clock) for layer, method in tracked
            )
            about = {
                "model": session.network.name,
                "device": str(session.network.device),
                "threads": torch.get_num_threads(),
                "k": plan.topk.k,
                "torch": torch.__version__,
                "rounds": rounds,
            }
    return ProjectBench(about, rows)


def _measure_projections(
    session: Session, layer: Layer, method: str, clock: tuple[float, int]
) -> ProjectRow:
    generator = np.random.default_rng(session.plan.seed)
    images = generator.integers(0, 256, (RANDOM_IMAGES, *session.network.size, 3), np.uint8)
    top = random_places(layer, session.plan.topk.k, generator)
    projections = _Projections(session, layer, method, top, "")
    channels = list(session.units(layer))[: projections.block]
    slots = StoredPlaces.of(top, channels)
    seconds, rounds = clock
    ours, whole = [], []
    for _ in range(rounds):
        session.report.check_stop()
        start = time.perf_counter()
        projections.compute(channels, images.__getitem__, lambda _: None)
        ours.append(len(slots) / (time.perf_counter() - start))
        one = _project_singly(session, layer, method, slots, images)
        whole.append(pace(one, 1, seconds, session.network.device))
    group = group_of(method, session.plan.project)
    return ProjectRow(layer, group, len(slots), tuple(ours), tuple(whole))


class _Unchecked(BackwardPass):
    """A backward pass from places whose activations are unknown."""

    def compare(self, value: NDArray[np.float32], slots: StoredPlaces) -> None:
        pass


class _Projections(Projections):
    @property
    def backward(self) -> BackwardPass:
        return _Unchecked(**vars(super().backward))


def random_places(layer: Layer, k: int, generator: np.random.Generator) -> LayerTopK:
    """Return places drawn uniformly over the map, in any of the images."""
    shape = layer.channels, k
    rows, columns = (generator.integers(0, length, shape) for length in layer.map)
    activation = np.ones(shape, np.float32)
    places = TopK(activation, generator.integers(0, RANDOM_IMAGES, shape), rows, columns)
    return LayerTopK(places, boxes(layer.field, places), {}, "float32")


def _project_singly(
    session: Session, layer: Layer, method: str, slots: StoredPlaces, images: NDArray[np.uint8]
) -> Callable[[], Any]:
    """Return an action that projects the next slot through the whole network."""
    network, numbers = session.network, count()

    def action() -> Any:
        slot = next(numbers) % len(slots)
        x = network.centre(torch.from_numpy(images[slots.image[slot]][None]))
        place = int(slots.place[slot, 0]), int(slots.place[slot, 1])
        with rectify(method, normalised=session.plan.project.lrn == "derivative"):
            return through_all(network, layer, place, x, torch.from_numpy(slots.channel[[slot]]))

    return action
