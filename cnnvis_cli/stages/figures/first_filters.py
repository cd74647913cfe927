"""A first layer's filters: what is known of them, as lines, a table and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.arrays import Doubles, Floats
from cnnvis_cli.digests import file_digest
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.filters import (
    TONES,
    FilterSheet,
    Marks,
    filter_scale,
    filter_sheets,
    toned_filters,
)
from cnnvis_cli.figure.lines import INKS
from cnnvis_cli.figure.scatter import Band, Scatter, scatter
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.histogram import rectified_mean
from cnnvis_cli.network import filters as bank
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.render import Figure, draw_figure
from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.topk_file import TopKFile

Mask = NDArray[np.bool_]
EXTREMES = 5  # "the five {highest, lowest} frequencies": Yosinski et al. 2015, supplement S1
ACTIVITY_COLUMNS = {  # of the table, from topk.h5
    "dead": "dead",
    "active": "active",
    "mean_activation": "mean",
    "rectified_activation": "rectified",
}
LISTED_FILTERS = 16  # filters that a line lists by number
NEEDS = "the run has no topk.h5 with this layer; cnnvis topk makes it"


@dataclass(frozen=True)
class Activity:
    """Statistics of a layer's channels from topk.h5, (C,) each."""

    images: int
    dead: Mask  # never above 0
    active: Doubles  # share of places above 0
    mean: Doubles  # of the layer's own output, before any rectifier
    rectified: Doubles  # mean of max(x, 0), from the histogram

    @classmethod
    def of(cls, session: Session, layer: Layer) -> Activity | None:
        """Return them; None without topk.h5, this layer or any usable image."""
        file = TopKFile(session.run.topk)
        if not file.path.is_file() or layer.alias not in file.layers():
            return None
        images, skipped = file.summary()
        if images == skipped:
            return None
        stats = file.layer(layer.alias).stats
        rectified = rectified_mean(file.histogram(layer.alias))
        return cls(images - skipped, stats["dead"], stats["active"], stats["mean"], rectified)


@dataclass(frozen=True)
class Filters:
    """A layer's filters with all that is known of them."""

    session: Session
    layer: Layer
    weights: Tensor  # (C, 3, h, w)
    activity: Activity | None

    @classmethod
    def of(cls, session: Session, layer: Layer) -> Filters:
        """Return a layer's filters; raise `UsageError` if it does not take the image."""
        weights = bank.rgb_filters(session.network, layer)
        return cls(session, layer, weights, Activity.of(session, layer))

    @property
    def radius(self) -> float:
        """The radius in the filters' own units."""
        asked = self.session.plan.filters.radius
        return bank.own_radius(self.session.network) if asked is None else asked

    @property
    def said_radius(self) -> str:
        """What the radius is for pixels that are not divided by a deviation; empty if the same."""
        asked = self.session.plan.filters.radius
        same = asked is not None or self.radius == bank.RADIUS
        return "" if same else f" ({bank.RADIUS:g} for pixels of 0 to 255)"

    @property
    def clipped(self) -> Tensor:
        return bank.clipped(self.weights, self.radius)

    @cached_property
    def rms(self) -> Doubles:
        return np.asarray(bank.rms(self.weights))

    @property
    def exceeds(self) -> Mask:
        return self.rms > self.radius

    @cached_property
    def frequency(self) -> Doubles:
        return np.asarray(bank.spatial_frequency(self.weights))

    @property
    def dead(self) -> Mask:
        """Which are known to be dead: (C,)."""
        return np.zeros(len(self.rms), bool) if self.activity is None else self.activity.dead

    @property
    def size(self) -> tuple[int, int]:
        return int(self.weights.shape[2]), int(self.weights.shape[3])

    @property
    def spectrum(self) -> Spectrum | None:
        """Activations by frequency; None if fewer than two are known."""
        if self.activity is None:
            return None
        known = np.isfinite(self.activity.rectified)
        return Spectrum(self, self.activity, known) if known.sum() > 1 else None

    def title(self, what: str) -> str:
        name = f"{self.session.network.name} {self.layer.alias}"
        module = "" if self.layer.module == self.layer.alias else f" ({self.layer.module})"
        return f"{name}{module} · {what}"

    def summary(self) -> Iterator[str]:
        """Yield a summary of a few lines."""
        count, (height, width) = len(self.rms), self.size
        yield f"{self.layer.alias} ({self.layer.module}): {count} filters of {height}x{width}"
        largest = int(self.rms.argmax())
        yield (
            f"RMS above {self.radius:.3g}{self.said_radius}: {_counted(self.exceeds)}; median "
            f"{np.median(self.rms):.3g}, largest {self.rms[largest]:.3g} (filter {largest})"
        )
        yield self._deaths()
        yield self.spectrum.text if self.spectrum else f"frequency and activation: {NEEDS}"

    def _deaths(self) -> str:
        if self.activity is None:
            return f"dead: not known, {NEEDS}"
        return f"dead: {_counted(self.dead)}, in {self.activity.images} images"

    def draw(self) -> list[Path]:
        """Draw the missing figures; return all files."""
        paths = draw_figure(self.session, _sheets(self))
        if self.spectrum:
            paths += draw_figure(self.session, self.spectrum.figure())
        return paths

    def tabulate(self) -> Path:
        """Return all numbers as a table, one line per filter; unknown ones are empty."""
        table: dict[str, NDArray[Any]] = {
            "channel": np.arange(len(self.rms)),
            "rms": self.rms,
            "exceeds": self.exceeds,
            "frequency": self.frequency,
        }
        unknown = np.full(len(self.rms), np.nan)
        for column, name in ACTIVITY_COLUMNS.items():
            table[column] = getattr(self.activity, name) if self.activity else unknown
        lines = ["\t".join(table)]
        lines += ["\t".join(map(_number_cell, row)) for row in zip(*table.values(), strict=True)]
        path = self.session.run.figure("filters", f"{self.layer.alias}.tsv")
        content = ("\n".join(lines) + "\n").encode()
        if not path.is_file() or read_regular(path) != content:
            publish(path, content)
        return path


def _number_cell(value: Any) -> str:
    """Return a number as text: yes as 1, no as 0, unknown as empty."""
    if isinstance(value, np.floating):
        return "" if np.isnan(value) else f"{value:.6g}"
    return str(int(value))


def _counted(mask: Mask) -> str:
    """Return how many, and which if they are few: ``3 of 32 (0, 7, 12)``."""
    chosen, count = np.flatnonzero(mask).tolist(), len(mask)
    if len(chosen) in (0, count):
        return f"{'all' if chosen else 'none'} of {count}"
    more = ", ..." if len(chosen) > LISTED_FILTERS else ""
    return f"{len(chosen)} of {count} ({', '.join(map(str, chosen[:LISTED_FILTERS]))}{more})"


def _range_text(values: Doubles) -> str:
    """Return the smallest and the largest, as text."""
    return f"{values.min():.2g} to {values.max():.2g}"


def _sheets(found: Filters) -> Figure:
    """Return the raw and the clipped filters: Zeiler & Fergus 2013, Fig. 6 (a) and (b)."""
    plan, alias = found.session.plan.filters, found.layer.alias
    scale = plan.scale or filter_scale(found.size)
    states = [filter_pictures(found, found.weights), filter_pictures(found, found.clipped)]
    title, column = found.title(f"{len(found.rms)} filters"), found.session.plan.figure.column
    caption = Caption(title, _sheet_note(found, states, scale), column)

    def draw() -> Canvas:
        titles = ("as they are", f"clipped to an RMS of {found.radius:.3g}")
        sheets, marks = [], Marks(found.exceeds, found.dead)
        for title, state in zip(titles, states, strict=True):
            sheets.append(FilterSheet(title, toned_filters(state, plan.tone), marks, scale))
        return filter_sheets(sheets, caption)

    record = {
        "layer": alias,
        "weights_sha256": found.session.network.digest,
        "radius": found.radius,
        "tone": TONES[plan.tone],
        "largest": _largest_sizes(states),
        "scale": scale,
        "exceeding": np.flatnonzero(found.exceeds).tolist(),
        "dead": None if found.activity is None else np.flatnonzero(found.dead).tolist(),
        "note": caption.note,
    }
    return Figure("filters", alias, caption.title, record, draw)


def filter_pictures(found: Filters, weights: Tensor) -> Floats:
    """Return filters (C, 3, h, w) as RGB pictures: (C, h, w, 3)."""
    pictures: Floats = bank.rgb(found.session.network, weights).permute(0, 2, 3, 1).numpy()
    return pictures


def _largest_sizes(states: Sequence[Floats]) -> list[float]:
    return [float(np.abs(state).max()) for state in states]


def _sheet_note(found: Filters, states: Sequence[Floats], scale: int) -> str:
    """Return how to read the sheets."""
    plan, (height, width) = found.session.plan.filters, found.size
    before, after = _largest_sizes(states)
    drawn = "" if found.session.plan.figure.column else f", each {scale}x{scale} pixels"
    deaths = (
        f"Which are dead is not known: {NEEDS}."
        if found.activity is None
        else f"Crossed out: never active in {found.activity.images} images, {_counted(found.dead)}."
    )
    return (
        f"{height}x{width} weights in RGB{drawn}. Right: those with an RMS "
        f"above {found.radius:.3g}{found.said_radius} scaled down to it (Zeiler & Fergus 2013, "
        f"section 3). Framed: the RMS exceeds it, {_counted(found.exceeds)}. "
        f"{deaths} Tone: {TONES[plan.tone]}; max |x| is {before:.3g} left, {after:.3g} right."
    )


@dataclass(frozen=True)
class Spectrum:
    """Mean activations by spatial frequency: Yosinski et al. 2015, supplement S1."""

    found: Filters
    activity: Activity
    known: Mask

    @property
    def order(self) -> NDArray[np.int64]:
        """The filters from the lowest frequency to the highest; ties by number."""
        channels = np.flatnonzero(self.known)
        return channels[np.argsort(self.found.frequency[channels], kind="stable")]

    @property
    def extremes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The five lowest and the five highest frequencies; fewer for fewer than ten filters."""
        count = min(EXTREMES, len(self.order) // 2)
        return self.order[:count], self.order[-count:]

    @property
    def averages(self) -> tuple[float, float]:
        """The mean activation of each of the `extremes`."""
        low, high = (float(self.activity.rectified[chosen].mean()) for chosen in self.extremes)
        return low, high

    @property
    def correlation(self) -> float:
        """Pearson's, of frequency and activation; NaN if either is constant."""
        with np.errstate(invalid="ignore", divide="ignore"):
            x, y = self.found.frequency[self.known], self.activity.rectified[self.known]
            return float(np.corrcoef(x, y)[0, 1])

    @property
    def window(self) -> int:
        """The number of filters in the running mean."""
        return min(len(self.order), max(EXTREMES, len(self.order) // 6))

    @property
    def text(self) -> str:
        low, high = self.averages
        slow, fast = (_range_text(self.found.frequency[chosen]) for chosen in self.extremes)
        return (
            f"mean rectified activation: {low:.3g} over the {len(self.extremes[0])} lowest "
            f"frequencies ({slow} cycles per pixel), {high:.3g} over the highest ({fast}); "
            f"correlation {self.correlation:.2f}"
        )

    def trend(self) -> tuple[Doubles, Doubles]:
        """Running means of frequency and activation."""
        weights = np.full(self.window, 1 / self.window)
        x, y = self.found.frequency[self.order], self.activity.rectified[self.order]
        return np.convolve(x, weights, "valid"), np.convolve(y, weights, "valid")

    def figure(self) -> Figure:
        found, alias = self.found, self.found.layer.alias
        caption = Caption(
            found.title("activation by spatial frequency"),
            self._note(),
            found.session.plan.figure.column,
        )
        record = {
            "layer": alias,
            "weights_sha256": found.session.network.digest,
            "topk": file_digest(found.session.run.topk),
            "tone": None,
            "scale": None,
            "averages": list(self.averages),
            "note": caption.note,
        }
        return Figure(
            "filters", f"{alias}_frequency", caption.title, record, lambda: self._drawn(caption)
        )

    def _drawn(self, caption: Caption) -> Canvas:
        low, high = self.extremes
        place = np.full(len(self.known), -1)
        place[self.known] = np.arange(self.known.sum())
        bands = tuple(
            Band(place[members], f"{len(members)} {which} frequencies: mean {mean:.3g}", ink)
            for members, which, mean, ink in zip(
                (low, high), ("lowest", "highest"), self.averages, INKS[1:3], strict=True
            )
        )
        plot = Scatter(
            self.found.frequency[self.known],
            self.activity.rectified[self.known],
            ("spatial frequency of the filter (cycles per pixel)", "mean rectified activation"),
            self.activity.dead[self.known],
            self.trend(),
            bands,
        )
        return scatter(plot, caption)

    def _note(self) -> str:
        dead = " Rings: dead filters." if self.activity.dead.any() else ""
        return (
            f"One dot per filter. Frequency: the mean radial frequency of its Fourier transform, "
            "weighted by power, the constant part counting as 0. Activation: the mean "
            f"of max(x, 0) in {self.activity.images} images, from topk.h5's histogram (up to 8 "
            f"places per image). Line: running mean of {self.window} filters.{dead} Correlation "
            f"{self.correlation:.2f}."
        )
