"""`cnnvis bench occlude`: the speed of `occlude`, as a share of the bare forward pass's."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cnnvis_cli.bench.topk import wait_for
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.occlusion import Occluder
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.single.occlude import OcclusionJob, asked_layers

Rates = tuple[float, ...]


@dataclass(frozen=True)
class OccludeBench:
    """Positions per second of one machine, round by round."""

    about: dict[str, Any]
    ours: Rates
    whole: Rates  # without windows: the whole image behind every square
    forward: Rates

    def share(self, rates: Rates) -> float:
        """Return the share of the same round's forward pass that is reached: the median."""
        pairs = zip(rates, self.forward, strict=True)
        return statistics.median(reached / bare for reached, bare in pairs)

    def record(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        rates = {"occlude": self.ours, "whole": self.whole, "forward": self.forward}
        return {
            **self.about,
            **{name: [round(rate, 2) for rate in found] for name, found in rates.items()},
            "ratio": round(self.share(self.ours), 4),
            "whole_ratio": round(self.share(self.whole), 4),
        }

    def table(self) -> str:
        """Return the table as text."""
        lines = [", ".join(f"{key} {value}" for key, value in self.about.items()), ""]
        lines.append(f"{'':24}{'positions/s':>12}{'of forward':>12}")
        rows = {"forward pass alone": self.forward, "occlude": self.ours}
        rows["  with whole images only"] = self.whole
        for name, rates in rows.items():
            lines.append(f"{name:24}{statistics.median(rates):12.1f}{self.share(rates):12.3f}")
        return "\n".join(lines)


def measure_occlude(plan: Plan, report: Report, rounds: int) -> OccludeBench:
    """In each round cover a random image, with and without windows, and run the bare passes."""
    with tempfile.TemporaryDirectory() as folder:
        plan = replace(plan, run=folder + "/run")
        with open_session(plan, report) as opened:
            session = opened.here()
            study = OcclusionJob.of(session, asked_layers(session)[0])
            occluder, network = study.occluder, session.network
            images = np.random.default_rng(plan.seed).integers(0, 256, (1, *network.size, 3))
            centred = network.centre(torch.from_numpy(images.astype(np.uint8)))
            plain = replace(occluder, windows=None)
            actions: list[Callable[[], Any]] = [
                lambda: occluder.run(centred, 0, 0),
                lambda: plain.run(centred, 0, 0),
                _bare_passes(network, occluder),
            ]
            counted = [len(study.squares)] * 2 + [_passes(occluder) * occluder.batch]
            found = []
            for _ in report.track(range(rounds), "bench occlude", rounds, "rounds"):
                pairs = zip(actions, counted, strict=True)
                found.append(
                    [_positions_per_second(action, count, network) for action, count in pairs]
                )
            windows = occluder.windows
            about = {
                "model": network.name,
                "layer": study.layer.alias,
                "positions": len(study.squares),
                "size": study.squares.size,
                "batch": occluder.batch,
                "cut": windows.cut.modules[-1] if windows else "none",
                "saved": round(windows.saved, 3) if windows else 0.0,
                "device": str(network.device),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
    ours, whole, forward = (tuple(column) for column in zip(*found, strict=True))
    return OccludeBench(about, ours, whole, forward)


def _passes(occluder: Occluder) -> int:
    return -(-len(occluder.squares) // occluder.batch)


def _bare_passes(network: Network, occluder: Occluder) -> Callable[[], Any]:
    """Return an action that runs as many passes as the squares need, on images on the device."""
    pixels = torch.randn(occluder.batch, 3, *network.size, device=network.device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def action() -> None:
        with torch.inference_mode(), network.in_place():
            for _ in range(_passes(occluder)):
                network.module(pixels)

    return action


def _positions_per_second(action: Callable[[], Any], count: int, network: Network) -> float:
    """Return the positions per second."""
    wait_for(network.device)
    start = time.perf_counter()
    action()
    wait_for(network.device)
    return count / (time.perf_counter() - start)
