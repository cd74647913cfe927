"""One unit on the toolbox's screen: what the run holds of it, and its maps for an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.arrays import Floats
from cnnvis_cli.engine import steady
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.grid import Scale, columns_of
from cnnvis_cli.figure.screen import (
    BACK_FILTERS,
    ScreenContent,
    back_filtered,
    boosted,
    screen_sheet,
)
from cnnvis_cli.figure.sheets import Caption, Pane
from cnnvis_cli.figure.tone import TONE_RULES, toned
from cnnvis_cli.figure.words import four_digits
from cnnvis_cli.network.backward import rectify, way_back
from cnnvis_cli.network.probability import probabilities
from cnnvis_cli.nouns import Box, Layer, Unit
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    OptimizedImages,
    TopImages,
    projected_of,
    ratio_note,
    styles_of,
    unit_label,
)
from cnnvis_cli.stages.figures.render import Figure
from cnnvis_cli.stages.single.inputs import InputImage, batch_of, class_name
from cnnvis_cli.store.run import Record

SCREEN_KIND = "screen"
NAMED_CLASSES = 5  # classes that are named


@dataclass(frozen=True)
class ScreenUnit:
    """A unit with what the run holds of it, and how its way back is projected."""

    session: Session
    layer: Layer
    channel: int
    method: str

    @classmethod
    def of(cls, session: Session, text: str) -> ScreenUnit:
        """Return a unit by name; raise `UsageError` if the network has none of it."""
        unit = Unit.parse(text)
        layer = session.network.layer(unit.layer)
        if unit.channel >= layer.channels:
            last = layer.channels - 1
            raise UsageError(f"--unit {text}: {layer.alias} has units 0 to {last}")
        asked = session.plan.montage.method
        method, note = way_back(session.network, [layer], asked or "deconv", asked is not None)
        if note is not None:
            session.report.once(note)
        return cls(session, layer, unit.channel, method)

    @property
    def name(self) -> Unit:
        return Unit(self.layer.alias, self.channel)

    @cached_property
    def optimized(self) -> list[OptimizedImages]:
        """Its optimized images in each style that the run has of it."""
        session, layer = self.session, self.layer
        if not session.run.optimized(layer.alias).is_file():
            return []
        found = [images for images in styles_of(session, layer) if self.channel in images.held]
        if not found:
            session.report.once(f"{self.name}: the run has no optimized images of it; left out")
        return found

    @cached_property
    def top(self) -> TopImages | None:
        """Its strongest images with their projections, if the run has any."""
        run, plan = self.session.run, self.session.plan
        if not (run.projected(self.layer.alias).is_file() and run.topk.is_file()):
            return None
        montage = replace(plan.montage, method=None)  # the method is that of the way back
        usual = replace(self.session, plan=replace(plan, montage=montage))

        try:
            found = projected_of(usual, self.layer)
            if self.channel not in found.held:
                self.session.report.once(f"{self.name}: the run has no projections; left out")
                return None
            found.patches(self.channel)  # raises where the images are gone
        except CnnvisError as error:
            self.session.report.once(f"{error}; the screen lacks the strongest images")
            return None
        return None if found.dead(self.channel) else found

    @property
    def record(self) -> Record:
        """Return what decides the screens of the unit, besides the image."""
        plan = self.session.plan.montage
        return {
            "weights_sha256": self.session.network.digest,
            "unit": str(self.name),
            "method": self.method,
            "start": plan.start,
            "back": plan.back,
            "gamma": plan.gamma,
            "optimized": [images.record for images in self.optimized],
            "top": self.top.record if self.top else None,
        }

    def figure(self, image: InputImage) -> Figure:
        record: Record = {"image": image.name, "pixels": image.digest, **self.record}
        name = f"{image.name}_{self.layer.alias}_{self.channel:04d}"
        title = f"{self.session.network.name} · {image.name} · {self.name}"
        _, _, called = unit_label(self.session, self.layer, self.channel).partition(" ")
        title += f" · {called}" if called else ""
        return Figure(SCREEN_KIND, name, title, record, lambda: self.draw(image, title))

    def draw(self, image: InputImage, title: str) -> Canvas:
        """Run the network forward and back, and return the screen."""
        look = self.look(image)
        note = self.note(look.strongest)
        return self.sheet(look, Caption(title, note, self.session.plan.figure.column))

    def look(self, image: InputImage, scale: Scale | None = None) -> ScreenContent:
        """Run the network forward and back; a scale of earlier frames is widened."""
        plan = self.session.plan
        with steady():
            maps, back, classes = self.seen(batch_of(self.session.network, [image]))
        lifted = boosted(maps, plan.montage.gamma)
        own = Scale.of(lifted, "layer")
        return ScreenContent(
            image=image.pixels,
            classes=classes,
            layer=self.layer.alias,
            maps=lifted,
            scale=own if scale is None else scale.widened(own),
            unit=self.channel,
            strongest=float(maps[self.channel].max()),
            back=back_filtered(back, plan.montage.back, plan.figure.tone),
            back_title=f"{self.method}, {plan.montage.back}",
            panes=self.panes,
        )

    def sheet(self, look: ScreenContent, caption: Caption) -> Canvas:
        return screen_sheet(look, caption, self.session.plan.figure.scale or 1)

    def seen(self, centred: Tensor) -> tuple[Floats, Floats, tuple[tuple[str, float], ...]]:
        """Return the layer's maps (C, h, w), the way back (h, w, 3), and the classes."""
        network = self.session.network
        with torch.no_grad():
            output = network.module(network.normalise(centred))
        pixels = centred.clone().requires_grad_()
        with rectify(self.method):
            values, _ = network.values(self.layer, Box.whole(network.size), pixels)
        signal, own = torch.zeros_like(values), values.detach()[0, self.channel]
        if self.session.plan.montage.start == "map":
            signal[0, self.channel] = own.clamp(min=0)
        else:
            signal[0, self.channel].view(-1)[own.argmax()] = 1
        (gradient,) = torch.autograd.grad(values, pixels, signal)
        maps = np.asarray(values.detach()[0].float().cpu().numpy())
        back = np.asarray(gradient[0].permute(1, 2, 0).float().cpu().numpy())
        return maps, back, self._classes(output)

    def _classes(self, output: object) -> tuple[tuple[str, float], ...]:
        """Return the most probable classes; none if the network gives no number per class."""
        network = self.session.network
        if not isinstance(output, Tensor) or output.dim() != 2:
            return ()
        shares = probabilities(network, output)[0].cpu().numpy()
        order = np.argsort(-shares, kind="stable")[:NAMED_CLASSES].tolist()
        return tuple((class_name(network, i), float(shares[i])) for i in order)

    @cached_property
    def panes(self) -> tuple[Pane, ...]:
        return tuple(self._panes())

    def _panes(self) -> Iterator[Pane]:
        """Yield the panes of what the run holds of the unit."""
        tone = self.session.plan.figure.tone
        for images in self.optimized:
            yield from images.panes(self.channel)
        if self.top:
            patches = self.top.patches(self.channel)
            columns = columns_of(len(patches))
            yield Pane(patches, columns, title="strongest")
            projections = toned(self.top.projections([self.channel]), tone)[0]
            yield Pane(projections, columns, title=f"their {self.top.method}")

    def note(self, strongest: float | None = None) -> str:
        """Return how to read the screen, with the unit's largest value where it is one image's."""
        plan = self.session.plan
        start = "its whole map" if plan.montage.start == "map" else "its strongest place"
        gamma = f", to the power of {plan.montage.gamma:g}" if plan.montage.gamma != 1 else ""
        largest = "" if strongest is None else f", largest value {four_digits(strongest)}"
        shown = ["preferred images"] if self.optimized else []
        shown += ["the strongest images", "their projections"] if self.top else []
        below = f" Below: {', '.join(shown)}." if shown else ""
        below += ratio_note(self.optimized)
        return (
            f"{self.layer.alias}'s maps for the image, the unit's framed and enlarged{gamma}"
            f"{largest}; below the image the {self.method} from {start}: "
            f"{BACK_FILTERS[plan.montage.back]}.{below} Tone: {TONE_RULES[plan.figure.tone]}; "
            "maps on one scale."
        )
