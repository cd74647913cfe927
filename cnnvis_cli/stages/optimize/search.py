"""`cnnvis search`: which regularization gives good pictures? Many rows of parameters, one sheet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.ascent.scores import SCORES, Scores, score
from cnnvis_cli.ascent.search import (
    PARAMETERS,
    Combination,
    Ranges,
    draw_rows,
    every_sweep,
    spread_values,
    sweep,
    toml,
)
from cnnvis_cli.ascent.steps import CALIBRATED, Constant, Normalized
from cnnvis_cli.ascent.styles import STYLES, check_name
from cnnvis_cli.digests import file_digest
from cnnvis_cli.engine import run_tasks
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.contact import Card, cards_on_a_page, contact_sheet, rows_sheet
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.figure.tone import TONE_RULES, toned
from cnnvis_cli.nouns import Layer, parse_units
from cnnvis_cli.stages.common.layer_job import LayerJob, LayerTask, announce
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.render import Figure, draw_figure, tile_scale
from cnnvis_cli.stages.optimize.job import LayerOptimization
from cnnvis_cli.stages.optimize.setup import LayerSetup
from cnnvis_cli.stages.optimize.styles import known_styles
from cnnvis_cli.stages.optimize.worker import MEMORY, OptimizeJob, Steps, optimize_blocks
from cnnvis_cli.store.parts import Parts
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Record, differences
from cnnvis_cli.store.search import SearchFile
from cnnvis_cli.validation import read_settings

SAMPLE_UNITS = 4  # units, if none are chosen, evenly spaced
BASE = "3"  # the style that the rows vary
KEPT_COLUMNS = ("image", "activation", "outcome")  # of an ascent's results


def search(session: Session) -> None:
    """Optimize a few units of a layer under every row of parameters, and show them sorted."""
    settings = session.plan.search
    session.plan.optimize.check(session.plan)
    SCORES[settings.score]  # raises for an unknown one, before hours of work
    if settings.save is not None:
        check_name(settings.save)
    for layer in _layers(session):
        found = Search.of(session, layer)
        if found.pending:
            with session.timed("search"):
                found.run()
        if session.plan.shard is not None:
            session.report.result(
                f"{session.run.path}: shard {session.plan.shard} of the search is done; run it "
                "without --shard when all shards are"
            )
            continue
        for path in found.draw():
            session.report.result(str(path))
        if settings.save is not None:
            session.report.result(found.save(settings.save, settings.row))


def _layers(session: Session) -> tuple[Layer, ...]:
    if not session.plan.layer:
        raise UsageError("which layer? name it with --layer; a search takes one at a time")
    return session.layers


@dataclass(frozen=True, eq=False)
class Search(LayerJob):
    """A search in one layer: what is requested, and what exists."""

    kind: ClassVar[str] = "search"
    counted: ClassVar[str] = "rows"
    climbs: LayerOptimization  # of the base style: canvas, objective, batch size, step
    rows: tuple[Combination, ...]
    units: tuple[int, ...]

    @classmethod
    def of(cls, session: Session, layer: Layer) -> Search:
        settings = session.plan.search
        style = replace(STYLES[BASE], iterations=settings.iterations)
        style = style.with_step(_step_of(session.plan.optimize.step))
        units = (
            parse_units(session.plan.units, layer.channels, layer.alias)
            if session.plan.units
            else _spread_channels(layer.channels)
        )
        climbs = LayerOptimization.of(session, layer, style)
        return cls(session, layer, climbs, _planned_rows(session), units)

    @property
    def file(self) -> SearchFile:
        return SearchFile(self.session.run.searched(self.layer.alias))

    @property
    def group(self) -> str:
        sweep = self.session.plan.search.sweep
        return f"sweep-{sweep}" if sweep else "random"

    @property
    def record(self) -> Record:
        base = {k: v for k, v in self.climbs.record.items() if k not in ("policy", "runs")}
        rows = list(map(asdict, self.rows))
        return {**base, "rows": rows, "units": list(self.units)}

    @property
    def kept_record(self) -> Record:
        return {**self.record, **asdict(self.step)}

    @property
    def described(self) -> Record:
        return {"identity": self.session.identity, "record": self.record, **asdict(self.step)}

    @property
    def step(self) -> Normalized | Constant:
        """Return the step that the rows multiply."""
        step = self.climbs.style.step
        assert isinstance(step, Normalized | Constant)
        return step

    @property
    def asked(self) -> tuple[int, ...]:
        """Return the numbers of the rows."""
        return tuple(range(len(self.rows)))

    @property
    def done(self) -> tuple[int, ...]:
        """Return all rows or none; raise `UsageError` for another search of this name."""
        held = self.file.searches().get(self.group)
        if held is None:
            return ()
        if {key: held.get(key) for key in self.record} != self.record:
            raise UsageError(
                f"{self.file.path} holds another search {self.group}: "
                f"{differences(held, self.record)}; choose another --run"
            )
        return self.asked

    @property
    def status(self) -> Record:
        return {**super().status, "parts": self.parts.folder.name}

    def run(self) -> None:
        """Make all ascents, score their images, and publish both."""
        parts, setup = self.parts, self.climbs.setup
        parts.describe(self.described)
        announce("search", [self])
        self._climb(_search_job(self.session, setup), parts)
        if self.session.plan.shard is not None:
            return
        arrays = self._scored(_search_job(self.session.here(), setup), parts)
        self.file.publish(self.session.header(self.layer), self.group, self.kept_record, arrays)
        parts.clear()

    def _climb(self, work: OptimizeJob, parts: Parts) -> None:
        session, iterations = self.session, self.session.plan.search.iterations
        styles = tuple(row.style(iterations, self.step) for row in self.rows)
        takes, tasks = session.plan.takes(0), []
        for number in self.asked:
            if takes(number) and number not in parts:
                tasks.append(LayerTask(number, parts, number, self.units))
        total = len(tasks) * len(self.units) * iterations
        meter = session.report.meter(f"search {self.layer.alias}", total, "steps")

        def on_event(message: Any) -> None:
            session.on_event(message)
            if isinstance(message, Steps):
                meter.add(message.made)

        pool = session.pool(MEMORY, gradients=True)
        max_active = min(work.setup.size, -(-len(tasks) * len(self.units) // len(pool)) or 1)
        ready = replace(work, styles=styles, tasks=tuple(tasks), max_active=max_active)
        run_tasks(
            partial(optimize_blocks, ready), pool, range(len(tasks)), on_event, ready.describe
        )
        meter.end()

    def _scored(self, work: OptimizeJob, parts: Parts) -> Arrays:
        """Return all rows' images with their scores, (N, U, ...)."""
        blocks = list(map(parts.__getitem__, self.asked))
        columns: Arrays = {}
        for name in KEPT_COLUMNS:
            columns[name] = np.stack([block[name][:, 0] for block in blocks])
        scores = [_scores(work, columns, column, unit) for column, unit in enumerate(self.units)]
        for name in ("robustness", "variation", "grey", "clipped", "deviation"):
            columns[name] = np.stack([getattr(each, name).numpy() for each in scores], axis=1)
        columns["row"] = np.array(self._numbers, np.int32)
        columns["unit"] = np.array(self.units, np.int32)
        return columns

    @property
    def _numbers(self) -> list[int]:
        """Return the number of each row in the search."""
        return list(map(attrgetter("number"), self.rows))

    def ranked(self) -> list[int]:
        """Return the rows' places in the file from the best to the worst.

        By the mean of their ranks over the units, since activations of different units cannot be
        compared.
        """
        score_of, ranks = SCORES[self.session.plan.search.score], []
        for column in range(len(self.units)):
            ranks.append(_ranks(score_of(self._stored(column)).double()))
        means = torch.stack(ranks).mean(dim=0)
        return torch.argsort(means, descending=True, stable=True).tolist()

    def _stored(self, column: int) -> Scores:
        names = Scores.__dataclass_fields__
        return Scores(
            *(torch.from_numpy(self.file.read(self.group, name)[:, column]) for name in names)
        )

    def save(self, name: str, row: int | None) -> str:
        """Save a row as a style of the run directory; return its lines for a plan."""
        held = self.file.searches()[self.group]
        place = self.ranked()[0] if row is None else self._place(row)
        step = Normalized(held["size"]) if "size" in held else Constant(held["rate"])
        style = self.rows[place].style(self.session.plan.search.iterations, step)
        if name in known_styles(self.session.plan):
            raise UsageError(f"--save {name}: there is a style of this name; choose another")
        path, lines = self.session.run.styles, toml(name, style)
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        publish(path, (before + ("\n" if before else "") + lines).encode())
        return f"saved row {self.rows[place].number} as style {name} in {path}:\n{lines}"

    def _place(self, number: int) -> int:
        numbers = self._numbers
        if number not in numbers:
            raise UsageError(f"--row {number}: there are rows {numbers[0]} to {numbers[-1]}")
        return numbers.index(number)

    def draw(self) -> list[Path]:
        """Return the contact sheets; existing ones are left as they are."""
        drawn = _Sheets(self)
        return drawn.sweeps() if self.session.plan.search.sweep else drawn.pages()


def _step_of(text: str) -> Normalized | Constant:
    if text == "calibrated":
        return CALIBRATED
    try:
        return Constant(float(text))
    except ValueError:
        raise UsageError(f"--step {text!r}: use calibrated or a number above 0") from None


def _spread_channels(channels: int) -> tuple[int, ...]:
    """Return evenly spaced channels of a layer."""
    count = min(SAMPLE_UNITS, channels)
    return tuple(i * channels // count for i in range(count))


def _planned_rows(session: Session) -> tuple[Combination, ...]:
    """Return the rows of parameters of the plan."""
    settings = session.plan.search
    ranges = read_settings(Ranges, settings.ranges, "[search.ranges]")
    if settings.sweep is None:
        return draw_rows(ranges, settings.trials, session.plan.seed)
    if settings.sweep == "all":
        return tuple(chain.from_iterable(every_sweep(ranges, settings.values).values()))
    PARAMETERS[settings.sweep]  # raises for an unknown one
    base = Combination(blur_width=1.0) if settings.sweep == "blur_every" else Combination()
    values = spread_values(settings.sweep, ranges, settings.values)
    return sweep(settings.sweep, values, base)


def _search_job(session: Session, setup: LayerSetup) -> OptimizeJob:
    plan = replace(session.plan, optimize=replace(session.plan.optimize, runs=1))
    return OptimizeJob(replace(plan, run=session.portable_plan.run), setup, session.network)


def _scores(work: OptimizeJob, stacked: Arrays, column: int, unit: int) -> Scores:
    """Return the scores of one unit's images, one per row."""
    images = torch.from_numpy(stacked["image"][:, column].astype(np.float32)).permute(0, 3, 1, 2)
    activation = torch.from_numpy(stacked["activation"][:, column])
    assert work.network is not None
    leads = partial(_leads, work, unit)
    return score(images, activation, leads, work.network.mean.cpu())


def _leads(work: OptimizeJob, unit: int, images: Tensor) -> Tensor:
    """Return for which images the unit leads its layer, in batches of the plan's size."""
    network, setup = work.network, work.setup
    assert network is not None
    row, column = setup.layer.centre
    found = []
    for part in torch.split(images, setup.size):
        with torch.no_grad():
            maps, (top, left) = network.values(setup.layer, setup.box, part.to(network.device))
            targets = torch.full((len(part),), unit, device=network.device)
            found.append(setup.objective(maps, targets, (row - top, column - left))[2].cpu())
    return torch.cat(found)


def _ranks(values: Tensor) -> Tensor:
    """Return how many of the others each is larger than; NaN is below all."""
    known = torch.where(values.isnan(), -torch.inf, values)
    return (known[:, None] > known[None]).sum(dim=1).double()


class _Sheets:
    """The figures of a search."""

    def __init__(self, found: Search) -> None:
        self._search, self._plan = found, found.session.plan
        self._file, self._name = found.file, found.group
        self._held = {
            name: found.file.read(found.group, name)
            for name in ("image", "activation", "robustness", "deviation", "outcome")
        }

    def pages(self) -> list[Path]:
        """Return all rows, best first, as pages of cards."""
        cards = [self._card(place) for place in self._search.ranked()]
        size = cards_on_a_page(cards, self._scale)
        found = []
        for number, chunk in enumerate(in_groups(cards, size), 1):
            name = self._search.layer.alias + (f"_page{number}" if number > 1 else "")
            found.append(self._publish(name, partial(contact_sheet, chunk)))
        return found

    @property
    def _scale(self) -> float:
        height, width = self._held["image"].shape[2:4]
        return tile_scale(self._plan.figure, (int(height), int(width)))

    def sweeps(self) -> list[Path]:
        """Return one line of cards per swept parameter."""
        count, rows = self._plan.search.values, self._search.rows
        names = [self._plan.search.sweep or ""]
        if names == ["all"]:
            names = ["decay", "blur width", "norm percentile", "contribution percentile", "tv"]
        else:
            count = len(rows)
        sheet = []
        for name, line in zip(names, in_groups(range(len(rows)), count), strict=True):
            cards = [self._card(place, heading=False) for place in line]
            sheet.append((name.replace("_", " "), cards))
        name = f"{self._search.layer.alias}_{self._name}"
        return [self._publish(name, partial(rows_sheet, sheet))]

    def _card(self, place: int, heading: bool = True) -> Card:
        row = self._search.rows[place]
        images = self._held["image"][place].astype(np.float32)
        mean = self._search.session.network.preprocessing.mean
        pictures = toned(images[:, None], self._plan.figure.tone, mean)[:, 0]
        robust = float(self._held["robustness"][place].mean())
        contrast = float(self._held["deviation"][place].mean())
        lead = int((self._held["outcome"][place] == int(Outcome.LARGEST)).sum())
        scores = f"robust {robust:.2f} · lead {lead}/{len(images)} · deviation {contrast:.2g}"
        title = f"row {row.number}" if heading else row.label()
        return Card(pictures, title, (row.label(), scores) if heading else (scores,))

    def _caption(self) -> Caption:
        session, layer = self._search.session, self._search.layer
        units = ", ".join(map(str, self._search.units))
        what = "Random search" if self._name == "random" else "Sweep"
        title = f"{session.network.name} {layer.alias} · {what.lower()} · units {units}"
        by = "" if self._plan.search.sweep else f", sorted by {self._plan.search.score}"
        note = (
            f"{what} over the regularizers of Yosinski et al. 2015{by}. Under each card: the row's "
            "parameters (absent ones are left out; the rate is a multiple of the step), the "
            "share of disturbances after which the units still lead their layer, how many lead it "
            "undisturbed, and the standard deviation in grey levels. "
            f"Tone: {TONE_RULES[self._plan.figure.tone]}."
        )
        return Caption(title, note, self._plan.figure.column)

    def _publish(self, name: str, make: Any) -> Path:
        session, caption = self._search.session, self._caption()
        record = {
            "source": file_digest(self._file.path),
            "name": name,
            "score": self._plan.search.score,
        }
        scale = self._scale
        figure = Figure("search", name, caption.title, record, partial(make, caption, scale))
        return draw_figure(session, figure)[0]
