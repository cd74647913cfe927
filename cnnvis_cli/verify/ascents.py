"""Optimized images: what each ascent records, its image's value, and the ascent made again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.ascent.accent import DARKEST
from cnnvis_cli.ascent.climb import Ascent, AscentBatch, AscentSpec, Outcome, climb
from cnnvis_cli.ascent.objectives import Objective
from cnnvis_cli.ascent.regularizers import REGULARIZERS
from cnnvis_cli.ascent.starts import noise, seed_of, uniform
from cnnvis_cli.ascent.steps import STEPS as POLICIES
from cnnvis_cli.ascent.styles import STYLES, Style, base_style, read_style
from cnnvis_cli.engine import describe_device
from cnnvis_cli.nouns import Box, Layer, Unit
from cnnvis_cli.registry import Registry
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.optimize.evaluation import evaluate_window, traced_evaluate
from cnnvis_cli.stages.optimize.setup import LayerSetup, canvas_of
from cnnvis_cli.stages.project.backward_pass import TOLERANCE
from cnnvis_cli.store.optimized import OptimizedFile, style_columns
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.schema import OPTIMIZED_STYLE
from cnnvis_cli.verify.findings import Findings, blocks_of
from cnnvis_cli.verify.spectrum import maco_problems
from cnnvis_cli.verify.typical import typical_problems

# Of an optimized image's value, relative to the largest of its layer: images have 11 bits.
ROUNDED = 0.02
CLIPPED_ROOM = 0.13  # grey levels that a value near 255 may be off, in 11 bits
STEPS_AGAIN = 32  # of an ascent that is made again
IMAGES, MADE = "optimized images", "ascents made again"

Rows = NDArray[np.bool_] | np.bool_


def check_ascents(
    session: Session,
    findings: Findings,
    generator: np.random.Generator,
    sample: int,
    everything: bool,
) -> None:
    """Check every stored ascent, and compute some again."""
    groups = []
    for layer in session.network.layers:
        file = OptimizedFile(session.run.optimized(layer.alias))
        if file.path not in findings.bad:
            with findings.guarded(IMAGES, file.path):
                groups += [Ascents(session, layer, file, name) for name in file.styles()]
    for group in groups:
        session.report.check_stop()
        with findings.guarded(IMAGES):
            group.check_stored(findings)
        with findings.guarded(IMAGES):
            chosen = group.choose(generator, max(1, sample // len(groups)))
            group.check_again(findings, chosen)
        if everything:
            with findings.guarded(MADE):
                group.make_again(findings)


@dataclass(frozen=True)
class Ascents:
    """A layer's ascents in one style."""

    session: Session
    layer: Layer
    file: OptimizedFile
    group: str

    @cached_property
    def made(self) -> Record:
        """Return the group's parameters."""
        return self.file.styles()[self.group]

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Return all arrays but the images."""
        names = [name for name in OPTIMIZED_STYLE if name != "image"]
        return {name: self.file.read(self.group, name) for name in names}

    @property
    def objective(self) -> Objective:
        made = self.made
        return Objective(
            mean=made["objective"] == "mean",
            minimise=bool(made.get("minimise")),
            softmax=bool(made.get("softmax")),
        )

    @cached_property
    def box(self) -> Box:
        return canvas_of(self.session.network, self.layer, self.objective.mean)

    def _name(self, row: int, run: int | None = None) -> str:
        unit = int(self.columns["unit"][row])
        name = f"{self.file.path}: style {self.group}, unit {unit}"
        return name if run is None else f"{name}, run {run}"

    def check_stored(self, findings: Findings) -> None:
        """Check that what is stored agrees."""
        count = self.columns["activation"].size
        findings.stored(IMAGES, count, self._wrong_settings())
        for problem, rows in self._wrong_rows():
            places = np.argwhere(rows).tolist()
            findings.stored(IMAGES, 0, (f"{self._name(*at)}: {problem}" for at in places))
        findings.stored(IMAGES, 0, self._wrong_images(findings))
        if "transparency" in style_columns(self.made):
            problems = maco_problems(self.session.run, self.file, self.group, self.made)
            findings.stored(IMAGES, 0, problems)
        if self.made.get("image", {}).get("kind") == "Typical":
            problems = typical_problems(self.session.run, self.file.path, self.group, self.made)
            findings.stored(IMAGES, 0, problems)

    def _wrong_settings(self) -> Iterator[str]:
        """Yield where the parameters are not those of the arrays, the network or the style."""
        made, columns, where = self.made, self.columns, f"{self.file.path}: style {self.group}"
        units, runs, steps = columns["history"].shape
        image = self.file.canvas(self.group)
        wanted = -(-int(made["iterations"]) // int(made["history"]))
        targets = len(made["targets"]) if made.get("targets") else self.layer.channels
        unit = columns["unit"]
        facts = {
            "runs": (made["runs"], runs),
            "canvas": (list(made["canvas"]), list(image)),
            "box": (list(made["canvas"]), list(self.box.size)),
            "history": (wanted, steps),
            "units": (bool(units), True),
        }
        for name, (one, other) in facts.items():
            if one != other:
                yield f"{where}: its {name} of {one} is {other}"
        if unit.min(initial=0) < 0 or unit.max(initial=0) >= targets or (np.diff(unit) <= 0).any():
            yield f"{where}: its units are not those of its layer, in their order"
        if self._builtin and made["regularizers"] != self._builtin.parameters()["regularizers"]:
            yield f"{where}: its regularizers are not those of the style"
        words = {"mean": self.objective.mean, "softmax": self.objective.softmax}
        words["min"] = self.objective.minimise
        said = self.group.removeprefix(self._style_name).split("-")[1:]
        for word, meant in words.items():
            if meant != (word in said):
                yield f"{where}: its name and its objective are not the same"

    @property
    def _style_name(self) -> str:
        """Return the style's name: the longest that the group's can begin with."""
        return base_style(self.group)

    @property
    def _builtin(self) -> Style | None:
        return STYLES.get(self._style_name)

    @property
    def plain(self) -> NDArray[np.bool_]:
        """Return which steps show the picture itself: (iterations,)."""
        steps = np.arange(int(self.made["iterations"]))
        every = int(self.made.get("image", {}).get("every", 1))
        shown: NDArray[np.bool_] = (steps % every == 0) | (steps == len(steps) - 1)
        return shown

    def _wrong_rows(self) -> Iterator[tuple[str, Rows]]:
        """Yield what an ascent records that cannot be, with the (U, R) where it is."""
        columns, sign = self.columns, self.objective.sign
        history, best = columns["history"] * sign, columns["activation"] * sign
        start, step = columns["start"] * sign, columns["best_step"]
        outcome, every = columns["outcome"], int(self.made["history"])
        shown = ~np.isnan(history)
        lived = shown.sum(axis=2)
        yield "its outcome is none of 1, 2, 3", ~np.isin(outcome, list(Outcome)[1:])
        yield "its history has gaps", (shown[..., 1:] & ~shown[..., :-1]).any(axis=2)
        yield "its history does not begin with its start", _apart(history[..., 0], start)
        finite = np.isfinite(best)
        yield "its activation is no number", ~finite & shown.any(axis=2)
        inside = (step >= 0) & (step < len(self.plain)) & (step <= (lived - 1) * every + every - 1)
        inside &= self.plain[np.clip(step, 0, len(self.plain) - 1)]
        yield "its best step is none that it made", finite & ~inside
        kept = self.plain[::every][: history.shape[2]] & shown
        above = (kept & (history > best[..., None])).any(axis=2)
        yield "its history goes above its activation", finite & above
        before = np.arange(history.shape[2]) * every < step[..., None]
        earlier = (kept & before & (history >= best[..., None])).any(axis=2)
        yield "its activation was reached before its best step", finite & earlier
        at = np.clip(step // every, 0, history.shape[2] - 1)[..., None]
        there = np.take_along_axis(history, at, axis=2)[..., 0]
        known = finite & inside & (step % every == 0)
        yield "its history has another value at its best step", known & _apart(there, best)
        yield "its activation is below its start", finite & (best < start)
        yield from self._wrong_leads(lived * every)
        yield from self._wrong_ends(lived, every)

    def _wrong_leads(self, steps: NDArray[Any]) -> Iterator[tuple[str, Rows]]:
        """Yield first leads that cannot be, of ascents of so many steps; (U, R)."""
        if not self.made.get("majority"):
            return
        first, best = self.file.read(self.group, "majority_step"), self.columns["best_step"]
        led = (first >= 0) & (first < steps) & self.plain[np.clip(first, 0, len(self.plain) - 1)]
        yield "its first lead is at none of its steps", (first != -1) & ~led
        late = (self.columns["outcome"] == Outcome.LARGEST) & ((first > best) | (first == -1))
        yield "it leads at its best step, and not before its first lead", late

    def _wrong_ends(self, lived: NDArray[Any], every: int) -> Iterator[tuple[str, Rows]]:
        """Yield outcomes that do not go with the length of the history."""
        if "noise" in self.made.get("image", {}) or self.made.get("diversity"):
            return
        lost, more = self.columns["outcome"] == Outcome.NO_GRADIENT, lived > 1
        once = (lived == 1) & (every == 1) & (int(self.made["iterations"]) > 1)
        yield "it has no gradient, and its history goes on", lost & more
        yield "its history ends at once, though it has a gradient", once & ~lost

    def _wrong_images(self, findings: Findings) -> Iterator[str]:
        """Yield the images that hold values which no image has."""
        mean = np.array(self.session.network.preprocessing.mean, np.float32)
        units = len(self.columns["unit"])
        each = 6 * int(np.prod(self.made["canvas"])) * int(self.made["runs"])
        low, high = -mean - CLIPPED_ROOM, 255 - mean + CLIPPED_ROOM
        looked = 0
        for rows in blocks_of(units, each):
            self.session.report.check_stop()
            images = self.file.read(self.group, "image", rows).astype(np.float32)
            looked += len(images)
            within = np.isfinite(images).all(axis=(2, 3, 4))
            least, most = images.min(axis=(2, 3)), images.max(axis=(2, 3))
            within &= ((least >= low) & (most <= high)).all(axis=2)
            for row, run in np.argwhere(~within).tolist():
                yield f"{self._name(rows.start + row, run)}: its image is not within 0..255"
        why = "the values of some images are not looked at, since there are so many"
        findings.leave(IMAGES, units - looked, why)

    def choose(self, generator: np.random.Generator, count: int) -> list[tuple[int, int]]:
        """Return some ascents: rows and runs."""
        rows = np.argwhere(np.isfinite(self.columns["activation"]))
        chosen = generator.choice(len(rows), min(count, len(rows)), replace=False)
        return [(row, run) for row, run in rows[np.sort(chosen)].tolist()]

    def check_again(self, findings: Findings, chosen: list[tuple[int, int]]) -> None:
        """Run the network again on some images and their starts."""
        count, runs = self.columns["activation"].shape
        why = "of ascents outside the sample"
        if self.made.get("targets"):
            why = f"{self.file.path}: {self.group}, since its targets are not single units"
            findings.leave(IMAGES, count * runs, why)
            return
        setup = LayerSetup(self.layer, self.box, self.objective, len(chosen))
        for row, run in chosen:
            image = self.file.read(self.group, "image", slice(row, row + 1))[0, run]
            x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
            with findings.guarded(IMAGES):
                problems = self._wrong_value(setup, x, (row, run))
                findings.recomputed(IMAGES, 1, problems)
        findings.leave(IMAGES, count * runs - len(chosen), why)
        left = "the steps between are proven by making an ascent again, as --all does"
        findings.leave("histories", count * runs, left)

    def _evaluated(self, setup: LayerSetup, x: Tensor, row: int) -> tuple[float, Tensor, float]:
        """Return the unit's value for an image, the layer's values at its place, and a scale."""
        network = self.session.network
        x = x[None].to(network.device)
        with torch.no_grad():
            maps, (top, left) = network.values(self.layer, self.box, x)
            centre = self.layer.centre[0] - top, self.layer.centre[1] - left
            target = torch.tensor([int(self.columns["unit"][row])], device=network.device)
            value = float(self.objective(maps, target, centre)[1]) * self.objective.sign
            found = maps.mean(dim=(2, 3)) if setup.objective.mean else maps[:, :, *centre]
        softmax = self.objective.softmax
        found = found.softmax(dim=1) if softmax else found
        scale = max(abs(value), 0.0 if softmax else float(maps.abs().amax()))
        return value, found[0], scale

    def _wrong_value(self, setup: LayerSetup, x: Tensor, at: tuple[int, int]) -> Iterator[str]:
        """Yield where an image's value, outcome or start is another."""
        row, run = at
        stored = {
            name: self.columns[name][at].item() for name in ("activation", "start", "outcome")
        }
        value, layer, scale = self._evaluated(setup, x, row)
        precision = TOLERANCE[self.made.get("precision", "float32")]
        allowed = (ROUNDED + precision) * scale + 1e-6
        if not abs(value - stored["activation"]) <= allowed:
            yield f"{self._name(*at)}: is {stored['activation']:.6g}, computed again {value:.6g}"
        sign = self.objective.sign
        margin = float((layer * sign).amax()) - value * sign
        if stored["outcome"] == Outcome.LARGEST and margin > allowed:
            yield f"{self._name(*at)}: another unit of its layer is larger, by {margin:.6g}"
        others = torch.cat([layer[: self._unit(row)], layer[self._unit(row) + 1 :]]) * sign
        leads = value * sign - float(others.amax()) if len(others) else 1.0
        if stored["outcome"] == Outcome.NOT_LARGEST and leads > allowed:
            yield f"{self._name(*at)}: it is the largest of its layer, by {leads:.6g}"
        yield from self._wrong_gradient(setup, x, at)
        begun = self._start(row, run)
        if begun is not None:
            value, _, scale = self._evaluated(setup, begun, row)
            if not abs(value - stored["start"]) <= precision * max(scale, 1e-3):
                yield f"{self._name(*at)}: starts at {stored['start']:.6g}, again at {value:.6g}"

    def _unit(self, row: int) -> int:
        return int(self.columns["unit"][row])

    def _wrong_gradient(self, setup: LayerSetup, x: Tensor, at: tuple[int, int]) -> Iterator[str]:
        """Yield an ascent that is without a gradient and says otherwise, or the other way round."""
        outcome, step = self.columns["outcome"][at], int(self.columns["best_step"][at])
        if "noise" in self.made.get("image", {}) or (step and outcome != Outcome.NO_GRADIENT):
            return
        begun = self._start(*at)
        network, target = self.session.network, torch.tensor([self._unit(at[0])])
        image = (x if begun is None else begun)[None].to(network.device)
        with torch.enable_grad():
            _, _, slope = evaluate_window(
                network, setup, self.box, image, target.to(network.device)
            )
        largest = float(slope.abs().max())
        if outcome == Outcome.NO_GRADIENT and largest > 1e-12:
            yield f"{self._name(*at)}: says that it has no gradient, and has one"
        if outcome != Outcome.NO_GRADIENT and not largest and begun is not None:
            yield f"{self._name(*at)}: has no gradient, and says otherwise"

    def _start(self, row: int, run: int) -> Tensor | None:
        """Return the first image of an ascent, (3, h, w); None if it cannot be drawn again."""
        made, size, mean = self.made, self.box.size, self.session.network.mean.cpu()
        if "photograph" in style_columns(made):
            pixels = self.file.read(self.group, "photograph", slice(row, row + 1))[0]
            shown = torch.from_numpy(pixels).permute(2, 0, 1).float()
            return shown.clamp(DARKEST, 255 - DARKEST) - mean[0]
        if not self._of_pixels:
            return None
        seed = seed_of(int(made["seed"]), Unit(self.layer.alias, self._unit(row)), run)
        drawn = {
            "noise": lambda: noise(seed, size),
            "uniform": lambda: uniform(seed, size, mean),
            "mean": lambda: torch.zeros(3, *size),
        }
        if made["start"] not in drawn:
            return None
        found: Tensor = drawn[made["start"]]()
        return found.clamp(-mean[0], 255 - mean[0])

    @property
    def _of_pixels(self) -> bool:
        """Whether an image is its pixels, which needs nothing but the parameters."""
        return self.made.get("image", {}).get("kind") in ("Pixels", None)

    def make_again(self, findings: Findings) -> None:
        """Make every ascent again, its first steps: to the bit, on the same arithmetic."""
        session, made = self.session, self.made
        found = np.argwhere(np.isfinite(self.columns["activation"])).tolist()
        chosen = [(row, run) for row, run in found]
        same = session.run.read().get("optimize", {}).get("arithmetic", [])
        start = self._start(*chosen[0]) if chosen and self._of_pixels else None
        if made.get("targets") or made.get("diversity") or start is None:
            why = "with a start, a parameterization or targets that are not drawn again"
            findings.leave(MADE, len(chosen), why)
            return
        if same != [describe_device(session.device)]:
            findings.leave(MADE, len(chosen), "were computed on another device or version")
            return
        style = self._style()
        steps = min(STEPS_AGAIN, style.iterations)
        style = replace(style, iterations=steps)
        size = int(made["batch_size"])
        setup = LayerSetup(self.layer, self.box, self.objective, size)
        evaluate = traced_evaluate(session.network, setup, size, made["precision"])
        specs = self._specs(style, chosen)
        for ascent in climb(evaluate, specs, AscentBatch(size, half=True), session.network.mean):
            session.report.check_stop()
            findings.recomputed(MADE, 1, self._unlike(ascent, steps))
        findings.leave(MADE, len(chosen) * (int(made["iterations"]) > steps), f"after step {steps}")

    def _style(self) -> Style:
        """Return the style by the parameters."""
        made = self.made
        parts = [_as_in_a_plan(REGULARIZERS, part) for part in made["regularizers"]]
        table = {"iterations": made["iterations"], "regularizers": parts}
        table["step"] = _as_in_a_plan(POLICIES, made["policy"])
        return read_style(self._style_name, table, str(self.file.path))

    def _specs(self, style: Style, chosen: list[tuple[int, int]]) -> Iterator[list[AscentSpec]]:
        for at in chosen:
            unit = self._unit(at[0])
            seed = seed_of(int(self.made["seed"]), Unit(self.layer.alias, unit), at[1])
            start = self._start(*at)
            if start is not None:
                yield [AscentSpec(at, unit, style, start, seed)]

    def _unlike(self, ascent: Ascent, steps: int) -> Iterator[str]:
        """Yield where an ascent made again is not the stored one."""
        at: Any = ascent.key
        every = int(self.made["history"])
        again = self.objective.sign * ascent.history[::every]
        stored = self.columns["history"][at][: -(-steps // every)]
        if _apart(again, stored[: len(again)]).any():
            yield f"{self._name(*at)}: its history is another one, made again"
        if steps < int(self.made["iterations"]):
            return
        image = self.file.read(self.group, "image", slice(at[0], at[0] + 1))[0, at[1]]
        if not np.array_equal(ascent.image.permute(1, 2, 0).numpy(), image):
            yield f"{self._name(*at)}: its image is another one, made again"


def _as_in_a_plan(registry: Registry[Any], part: Record) -> Record:
    """Return a stored part of a style as a plan has it: its kind by its registered name."""
    names = {registry[name].__name__: name for name in registry}
    return {**part, "kind": names.get(part["kind"], part["kind"])}


def _apart(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two arrays differ; NaN equals itself."""
    different: NDArray[np.bool_] = (one != other) & ~(np.isnan(one) & np.isnan(other))
    return different
