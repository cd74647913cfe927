"""`cnnvis optimize`: every unit climbs to the image that it prefers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.ascent.calibrate import Probe, calibrate, probe_channels
from cnnvis_cli.ascent.climb import Ascent, Outcome, Score, climb, noise
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import STYLES, Style
from cnnvis_cli.digests import digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Box, Layer, Unit
from cnnvis_cli.plan import OptimizePlan
from cnnvis_cli.stages.blocks import Blocks
from cnnvis_cli.stages.session import Session
from cnnvis_cli.store.files import Optimized, OptimizedFile
from cnnvis_cli.store.parts import Arrays, Parts
from cnnvis_cli.store.run import Record, differences

Slot = tuple[Unit, int]  # a unit and the number of its random start


def optimize(session: Session) -> None:
    """Optimize every chosen unit of every chosen layer in every chosen style."""
    styles = asked_styles(session.plan.optimize)
    for layer in session.layers:
        for style in styles:
            climbs = Climbs.of(session, layer, style)
            if climbs.pending:
                with session.timed("optimize"):
                    climbs.run()
            session.report.result(climbs.summary())


def asked_styles(plan: OptimizePlan) -> list[Style]:
    """The styles of the plan; raises `UsageError` for one that does not exist."""
    return [_asked(name, plan) for name in plan.style]


def _asked(name: str, plan: OptimizePlan) -> Style:
    """The style as the plan wants it, its step not yet calibrated."""
    style = STYLES[name]
    if plan.iterations:
        style = replace(style, iterations=plan.iterations)
    if plan.step in ("calibrated", "paper"):
        return style
    with suppress(ValueError):
        rate = float(plan.step)
        if 0 < rate < float("inf"):
            return style.with_step(Constant(rate))
    raise UsageError(f"--step {plan.step!r}: use calibrated, paper, or a number above 0")


@dataclass(frozen=True)
class Climbs:
    """The ascents of one layer in one style."""

    session: Session
    layer: Layer
    style: Style
    box: Box  # the window of the input that is optimized
    batch: int  # ascents at a time

    @classmethod
    def of(cls, session: Session, layer: Layer, style: Style) -> Climbs:
        box = session.network.canvas(layer)
        batch = session.plan.batch_size or suitable_batch(box)
        return cls(session, layer, style, box, batch)

    @property
    def file(self) -> OptimizedFile:
        return OptimizedFile(self.session.run.optimized(self.layer.alias))

    @property
    def runs(self) -> int:
        return self.session.plan.optimize.runs

    @property
    def record(self) -> Record:
        """What was asked for; what calibration found is added when it is stored."""
        plan = self.session.plan
        return {
            **self.style.parameters(),
            "step": plan.optimize.step,
            "runs": self.runs,
            "seed": plan.seed,
            "batch_size": self.batch,
            "canvas": list(self.box.size),
        }

    @property
    def pending(self) -> list[int]:
        """Channels that are not in the file yet; raises `UsageError` if it is of another plan."""
        asked = self.session.units(self.layer)
        held = self.file.styles().get(self.style.name)
        if held is None:
            return list(asked)
        if {key: held.get(key) for key in self.record} != self.record:
            raise UsageError(
                f"{self.file.path} holds style {self.style.name} of another plan: "
                f"{differences(held, self.record)}; choose another --run"
            )
        return sorted(set(asked) - set(self.file.units(self.style.name).tolist()))

    def run(self) -> None:
        """Climb for every pending unit, part by part, then publish them together."""
        style, policy = self._calibrated()
        record = {**self.record, "policy": policy}
        plan = digest({**self.session.identity, **record, "layer": self.layer.alias})
        name = f"{self.layer.alias}-{style.name}-{plan}"
        parts = Parts(self.session.run.parts("optimized", name), plan)
        blocks = Blocks(parts, max(1, self.batch // self.runs))
        what = f"optimize {self.layer.alias} style {style.name}"
        blocks.fill(self.pending, partial(self._climb, style), self.session.report, what)
        shape = (self.runs, *self.box.size)
        optimized = Optimized(record, np.array(blocks.units(), np.int32), shape, blocks)
        self.file.publish(self.session.header(self.layer), {style.name: optimized})
        parts.clear()

    def _calibrated(self) -> tuple[Style, dict[str, Any]]:
        """The style with the step that suits the layer, and what to record of it.

        Units that are added to a style take the step that it has already.
        """
        style = self.style
        held = self.file.styles().get(style.name, {}).get("policy", {})
        if held.get("kind") == "Constant":
            style = style.with_step(Constant(held["rate"]))
        elif self.session.plan.optimize.step == "calibrated":
            slots = [(Unit(self.layer.alias, c), 0) for c in probe_channels(self.layer.channels)]
            start = noise(slots, self.session.plan.seed, self.box.size)
            start = start.to(self.session.network.device)
            style = calibrate(
                style,
                Probe(
                    start,
                    self.session.network.mean,
                    self._gradient(slots, start),
                    lambda probe: self._ascend(probe, slots, start),
                ),
            )
        return style, style.parameters()["step"]

    def _gradient(self, slots: list[Slot], start: Tensor) -> float:
        """The median root mean square gradient of the slots at their first images."""
        x = start.clone().requires_grad_()
        channels = [unit.channel for unit, _ in slots]
        value = self._score()(x)[range(len(slots)), channels]
        (gradient,) = torch.autograd.grad(value.sum(), x)
        sizes = gradient.flatten(1).pow(2).mean(dim=1).sqrt()
        live = sizes[sizes > 0]
        return float(live.median()) if len(live) else 0.0

    def _climb(self, style: Style, channels: list[int]) -> Arrays:
        """One block of units, every run of each: arrays by the names of the schema."""
        slots = [(Unit(self.layer.alias, c), run) for c in channels for run in range(self.runs)]
        ascents = list(self._batches(style, slots))
        rows = (len(channels), self.runs)

        def joined(name: str) -> Tensor:
            return torch.cat([getattr(ascent, name) for ascent in ascents])[: len(slots)].cpu()

        image = joined("image").permute(0, 2, 3, 1).half()
        arrays: Arrays = {
            name: joined(name).reshape(rows).numpy()
            for name in ("activation", "start", "best_step", "outcome")
        }
        arrays["image"] = image.reshape(*rows, *image.shape[1:]).numpy()
        return arrays | {"unit": np.array(channels, np.int32)}

    def _batches(self, style: Style, slots: list[Slot]) -> Iterator[Ascent]:
        """Always full batches: the last bits of a result depend on the size of its batch."""
        for first in range(0, len(slots), self.batch):
            chunk = slots[first : first + self.batch]
            full = chunk + chunk[-1:] * (self.batch - len(chunk))
            start = noise(full, self.session.plan.seed, self.box.size)
            yield self._ascend(style, full, start)

    def _ascend(self, style: Style, slots: list[Slot], start: Tensor) -> Ascent:
        network = self.session.network
        channels = torch.tensor([unit.channel for unit, _ in slots], device=network.device)
        score = self._score()

        def breathing(x: Tensor) -> Tensor:
            self.session.report.breathe()
            return score(x)

        return climb(breathing, start.to(network.device), channels, style, network.mean)

    def _score(self) -> Score:
        """Images of the canvas to the layer's activations at its centre: (B, 3, h, w) -> (B, C)."""
        network, layer, box = self.session.network, self.layer, self.box
        row, column = layer.centre

        def score(x: Tensor) -> Tensor:
            output, (top, left) = network.values(layer, box, x)
            return output[:, :, row - top, column - left]

        return score

    def summary(self) -> str:
        """What was found, and why some images are grey."""
        outcomes = self.file.read(self.style.name, "outcome")
        counts = {outcome: int((outcomes == outcome).sum()) for outcome in Outcome}
        text = (
            f"{self.file.path}: style {self.style.name}, {len(outcomes)} units; "
            f"{counts[Outcome.LARGEST]} of {outcomes.size} images make their unit "
            "the largest of its layer"
        )
        if counts[Outcome.NO_GRADIENT]:
            text += (
                f"; {counts[Outcome.NO_GRADIENT]} are grey because no gradient reaches the "
                "image: nothing that feeds the unit is on"
            )
        return text


def suitable_batch(box: Box) -> int:
    """Ascents at a time for a canvas: about a quarter of a million pixels, 16 to 256."""
    pixels = box.size[0] * box.size[1]
    wanted = max(16, min(256, (1 << 18) // pixels))
    return 1 << (wanted.bit_length() - 1)
