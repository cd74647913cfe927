"""A run directory in Python: its results as values and pictures, and how to add to them.

::

    import cnnvis_cli

    run = cnnvis_cli.open("outputs/demo")    # after `cnnvis demo`, say
    run.layers                               # a table of the results, by layer
    unit = run["conv5/0042"]                 # or run["conv5"][42]
    unit                                     # preferred images | patches | projections
    unit.strongest[0]                        # path, class, activation, place, box
    unit.optimized("3")                      # (R, h, w, 3) numbers
    unit.picture("3")                        # the best of them, toned as in figures
    unit.patches()                           # image patches of its strongest places
    unit.projected("deconv")                 # and their projections
    run["conv5"].stats["selectivity"]        # (C,) numbers

    run = cnnvis_cli.begin(model="demo", run="outputs/mine")
    run.topk("photographs")
    run.optimize("conv5", units=[1, 2, 3], style=("3",), runs=2)
    run.project("conv5", units=[1, 2, 3])

Arrays are numpy's, pictures Pillow's, which notebooks display. Opening a run only reads it: others
may work on it meanwhile, and new results appear at once. Methods that make results do what the
command line does, with the same files and the same errors.

Settings have the names of the plan: those of the stage (``iterations=96``), the top-level ones
(``device="cuda"``, ``seed=1``, ``batch_size=8``), and any other as ``topk__k=4``. Settings given to
`open_run` or `begin` apply to everything that follows. Work is done in this process (on a GPU, or
with ``workers=8``, in worker processes), silently unless ``quiet=False``.

All errors are `cnnvis_cli.errors.CnnvisError`: `UsageError` for invalid requests,
`TooManyUnreadable` after finishing, `StorageError` for a full disk, and `Stopped` if another
process works in the directory or the kernel was interrupted, with all finished work saved.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import fields
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli import nouns
from cnnvis_cli.api.reading import Reading, Strongest, as_picture, dataset_of, look
from cnnvis_cli.arrays import Floats
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.canvas import Picture
from cnnvis_cli.report import Report
from cnnvis_cli.settings import FigurePlan, MontagePlan, Plan
from cnnvis_cli.stages.common.session import open_session
from cnnvis_cli.stages.figures.montage import check_kinds
from cnnvis_cli.stages.run.pipeline import STAGES

__all__ = ["Layer", "Run", "Strongest", "Unit", "begin", "open_run"]

UnitChoice = str | int | Iterable[int]
Place = str | os.PathLike[str]


def open_run(run: Place, **settings: Any) -> Run:
    """Open a run directory; also ``cnnvis_cli.open``.

    `settings` apply to everything that is made later. ``dataset=`` says where the images are now,
    if they have moved; ``trust_code=True`` lets `Run.optimize` and the others run the code of your
    own network. Network, weights and preprocessing are the run's and cannot be changed.

    Raise `UsageError` if there is no run, or for an unknown setting.
    """
    refused = sorted(name for name in settings if name.partition("__")[0] in _OF_THE_RUN)
    if refused:
        raise UsageError(f"{refused[0]}: belongs to the run; begin another run to change it")
    return Run(Path(run), settings)


def begin(model: str, run: Place | None = None, **settings: Any) -> Run:
    """Begin a run of a network, or continue it; also ``cnnvis_cli.begin``.

    `model` is as for ``--model`` on the command line: a torchvision model, ``caffenet``, ``zfnet``,
    ``demo``, or ``package.module:function`` (with ``trust_code=True``). `run` is the directory, by
    default ``outputs/<model>``. `settings` apply to everything that follows:
    ``weights="net.safetensors"``, ``preprocessing={"crop": 227}``, ``device="cuda"``,
    ``optimize={"iterations": 96}``.

    Raise `UsageError` for an unknown model or setting, and if the directory belongs to another
    network or contains other files.
    """
    place = {} if run is None else {"run": os.fspath(run)}
    plan = _plan({"model": model, **place, **_alone, **settings})
    with open_session(plan, _Kept()):
        pass
    kept = {name: each for name, each in settings.items() if name.split("__")[0] not in _OF_THE_RUN}
    return Run(plan.folder, kept)


_OF_THE_RUN = ("run", "model", "weights", "ema", "preprocessing")
_alone = {"workers": 0}  # a kernel has threads, which a forked process would lack


class Run:
    """A run directory: its network's layers, with the results for their units.

    ``run["conv5"]`` is a `Layer`, ``run["conv5/0042"]`` a `Unit`. Made by `open_run` and `begin`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = {"run": str(path), **_alone, **settings}
        self._reading = Reading(look(_plan(self._settings)))
        network = self._reading.session.network
        found = {layer.alias: Layer(self, layer) for layer in network.layers}
        self.layers: Mapping[str, Layer] = _Layers(found)

    @property
    def model(self) -> str:
        """The network's name."""
        return self._reading.session.network.name

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the network's outputs; empty if unknown."""
        return self._reading.session.network.classes

    @property
    def dataset(self) -> Path | None:
        """Where the images are; None before `topk`."""
        return dataset_of(self._reading.session)

    def __getitem__(self, name: str) -> Any:
        """Return the layer of an alias or module path, or the unit of ``layer/channel``.

        Raise `UsageError` for an unknown one, with the nearest name.
        """
        return self.unit(name) if "/" in name else self.layer(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def layer(self, name: str) -> Layer:
        """Return the layer of an alias (``conv5``) or module path (``features.10``)."""
        return self.layers[self._reading.session.network.layer(name).alias]

    def unit(self, name: str) -> Unit:
        """Return the unit named ``conv5/0042``."""
        unit = nouns.Unit.parse(name)
        return self.layer(unit.layer)[unit.channel]

    def topk(
        self,
        dataset: Place | None = None,
        *,
        layers: Sequence[str] = (),
        quiet: bool = True,
        **settings: Any,
    ) -> Run:
        """Find the strongest places of every unit of `layers` (default: all) in a dataset.

        `dataset` is a folder, a list, a tar or a zip; ``demo`` stands for generated images.
        Settings: ``k=9``, ``decode="fast"``, ... Raise `UsageError` if the run has a topk.h5 of
        other settings, `TooManyUnreadable` after finishing if too many images could not be used.
        """
        where = {} if dataset is None else {"dataset": os.fspath(dataset)}
        self._do("topk", {"layer": tuple(layers), **where, **settings}, quiet)
        if where and self._settings.pop("dataset", None):  # the run now records where they are
            self._reading = Reading(look(_plan(self._settings)))
        return self

    def optimize(
        self, layer: str, units: UnitChoice = (), *, quiet: bool = True, **settings: Any
    ) -> Layer:
        """Make the preferred images of some units of a layer (all by default); return the layer.

        `units` are numbers, or a text like ``0-63,151``. Settings: ``style=("3", "fourier")``,
        ``runs=2``, ``iterations=96``, ``step="paper"``, ... Existing images are not made again.
        Raise `UsageError` if the file has images of that style with other settings.
        """
        found = self.layer(layer)
        self._do("optimize", found._choice(units) | settings, quiet)
        return found

    def project(
        self, layer: str, units: UnitChoice = (), *, quiet: bool = True, **settings: Any
    ) -> Layer:
        """Project the strongest places of some units of a layer back to the pixels.

        Settings: ``method=("deconv", "guided")``, ``start="map"``, ``lrn="pass"``. Return the
        layer. Raise `UsageError` before `topk`, and `CnnvisError` for an image that has changed
        since.
        """
        found = self.layer(layer)
        self._do("project", found._choice(units) | settings, quiet)
        return found

    def montage(
        self,
        *kinds: str,
        layers: Sequence[str] = (),
        units: UnitChoice = (),
        quiet: bool = True,
        **settings: Any,
    ) -> list[Path]:
        """Draw figures into the run directory, as ``cnnvis montage`` does; gives their files.

        Settings: ``style``, ``method``, ``best=20``, ``scale=3``, ``tone="unit"``, ``pdf=True``.
        Raise `UsageError` for a kind that does not exist, or if there is nothing to show.
        """
        chosen = {"kind": kinds, "layer": tuple(layers), "units": _units_text(units)}
        return [Path(line) for line in self._do("montage", chosen | settings, quiet)]

    def _do(self, stage: str, settings: Mapping[str, Any], quiet: bool) -> list[str]:
        """Do a stage as the command line does, and give the lines of its result."""
        plan = _plan(self._settings | _plan_names(stage, settings))
        check_kinds(plan)
        report = _Kept() if quiet else _Spoken()
        computes = stage != "montage"
        with open_session(plan, report, new=computes, weights=computes) as session:
            STAGES[stage](session)
        return report.said

    def __repr__(self) -> str:
        return f"<cnnvis run {str(self.path)!r}: {self.model}, {len(self)} layers>"

    def _repr_html_(self) -> str:
        title = f"<b>{escape(self.model)}</b> in {escape(str(self.path))}"
        return f"<p>{title}</p>{_html_table(self.layers.values())}"


class Layer:
    """A layer of a run; ``layer[42]`` is its unit 42, and ``for unit in layer`` yields all.

    Its value is its module's own output, before any ReLU. C is its number of units, k the number of
    places kept per unit.
    """

    def __init__(self, run: Run, layer: nouns.Layer) -> None:
        self.run = run
        self._layer = layer

    @property
    def alias(self) -> str:
        """The alias: ``conv5``."""
        return self._layer.alias

    @property
    def module(self) -> str:
        """The path of its module: ``features.10``."""
        return self._layer.module

    @property
    def kind(self) -> nouns.Kind:
        """``conv`` or ``fc``."""
        return self._layer.kind

    @property
    def channels(self) -> int:
        """The number of units."""
        return self._layer.channels

    @property
    def map(self) -> nouns.Size:
        """The height and width of a channel's map, in places."""
        return self._layer.map

    @property
    def receptive_field(self) -> nouns.Size:
        """The height and width of a place's receptive field, in pixels of the input."""
        return self._layer.field.size

    @property
    def stride(self) -> nouns.Size:
        """The distance from one place to the next, down and across, in pixels of the input."""
        return self._layer.field.stride

    @property
    def styles(self) -> dict[str, tuple[int, ...]]:
        """The styles with optimized images, and the units of each."""
        return self._reading.styles(self._layer)

    @property
    def methods(self) -> dict[str, tuple[int, ...]]:
        """The methods with projections, and the units of each."""
        return self._reading.methods(self._layer)

    @property
    def stats(self) -> dict[str, NDArray[Any]]:
        """Statistics over every place of every image, by name.

        (C,) each: ``mean``, ``std``, ``max``, ``active`` (share of places above 0), ``dead``,
        ``selectivity`` (0 to 1), ``class`` (the class that activates it most, -1 for none); and
        ``quantiles`` (C, Q). Raise `UsageError` before `Run.topk`.
        """
        return self._reading.stats(self._layer)

    @property
    def activation(self) -> Floats:
        """The strongest activations (C, k), the strongest first; NaN in empty slots.

        Raise `UsageError` before `Run.topk`.
        """
        return self._reading.places.layer(self.alias).places.activation

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the bin edges (B + 1,), and the number of each unit's places in each bin (C, B).

        Up to 8 places of each image are counted. Raise `UsageError` before `Run.topk`.
        """
        return self._reading.histogram(self._layer)

    def sheet(
        self,
        kind: str = "optimized",
        units: UnitChoice = (),
        *,
        page: int = 1,
        **settings: Any,
    ) -> Picture:
        """Return a figure of ``cnnvis montage`` as a picture instead of a file.

        `kind`: ``optimized``, ``top``, ``history``, ...; `units` as in `Run.optimize`, by default
        all available ones. Settings: ``style``, ``method``, ``sort="selectivity"``, ``best=20``.
        Raise `UsageError` if there is nothing to show.
        """
        chosen = _plan_names("montage", {"kind": kind, **settings})
        plan = _plan(self.run._settings | chosen)
        check_kinds(plan)
        return self._reading.sheet(self._layer, plan.montage, _units_text(units), page)

    def __getitem__(self, channel: SupportsIndex) -> Unit:
        """Return unit number `channel`; raise `UsageError` if it does not exist."""
        number = operator.index(channel)
        if not 0 <= number < self.channels:
            raise UsageError(f"{self.alias} has no unit {number}; it has 0 to {self.channels - 1}")
        return Unit(self, number)

    def __iter__(self) -> Iterator[Unit]:
        return (Unit(self, channel) for channel in range(self.channels))

    def __len__(self) -> int:
        return self.channels

    @property
    def _reading(self) -> Reading:
        return self.run._reading

    def _choice(self, units: UnitChoice) -> dict[str, Any]:
        return {"layer": (self.alias,), "units": _units_text(units)}

    def __repr__(self) -> str:
        size = nouns.size_text(self.map)
        return f"<{self.alias} ({self.module}): {self.channels} units, map {size}>"

    def _repr_html_(self) -> str:
        return _html_table([self])


class Unit:
    """One unit of a layer. A notebook displays it; ``str(unit)`` is ``conv5/0042``."""

    def __init__(self, layer: Layer, channel: int) -> None:
        self.layer, self.channel = layer, channel

    @property
    def label(self) -> str:
        """Its number, and its class if its layer is the network's last: ``7 car``."""
        return self._reading.label(*self._at)

    @property
    def strongest(self) -> list[Strongest]:
        """The places that activate it most, the strongest first; up to k.

        Raise `UsageError` before `Run.topk`.
        """
        return self._reading.strongest(*self._at)

    def patches(self, scale: float = 1) -> list[Picture]:
        """Return the image patches of those places, grey outside the image; `scale` enlarges.

        Raise `UsageError` before `Run.topk`, and `CnnvisError` for an image that has been moved or
        changed since.
        """
        return [as_picture(each, scale) for each in self._reading.patches(*self._at)]

    def optimized(self, style: str | None = None) -> Floats:
        """Return its preferred images (R, h, w, 3), one per run, the best first.

        RGB, mean-subtracted, in 0..255 units. `style` is by default the planned one, or the first
        available. Raise `UsageError` if there are none.
        """
        return self._reading.images_of(*self._at, style)[0]

    def reached(self, style: str | None = None) -> Floats:
        """Return the unit's values for `optimized`, in the same order: (R,)."""
        return self._reading.images_of(*self._at, style)[1]

    def picture(self, style: str | None = None, scale: float = 1) -> Picture:
        """Return the best of `optimized` as figures show it; `scale` enlarges."""
        best = self.optimized(style)[:1]
        return as_picture(self._reading.tones(best)[0], scale)

    def projections(self, method: str | None = None) -> Floats:
        """Return what caused each of the strongest places: (k, h, w, 3), RGB, signed.

        0 outside the image. `method` is ``deconv``, ``guided`` or ``gradient``, by default the
        first available. Raise `UsageError` if there are none.
        """
        return self._reading.projections_of(*self._at, method)

    def projected(self, method: str | None = None, scale: float = 1) -> list[Picture]:
        """Return `projections` as figures show them, one picture each; `scale` enlarges."""
        tiles = self.projections(method)
        return (
            [as_picture(each, scale) for each in self._reading.tones(tiles)] if len(tiles) else []
        )

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the bin edges (B + 1,), and the number of places in each bin (B,); see `Layer`."""
        edges, counts = self.layer.histogram()
        return edges, counts[self.channel]

    @property
    def stats(self) -> dict[str, Any]:
        """Its statistics, as plain numbers (``quantiles``: (Q,)); see `Layer.stats`.

        ``class_name`` is the name of its class, empty for none.
        """
        found: dict[str, Any] = {}
        for name, values in self.layer.stats.items():
            value = values[self.channel]
            found[name] = value.item() if value.ndim == 0 else value
        number = found["class"]
        found["class_name"] = self._reading.places.classes[number] if number >= 0 else ""
        return found

    def portrait(self, style: str | None = None, method: str | None = None) -> Picture | None:
        """Return preferred images, patches and projections side by side, as far as available."""
        canvas = self._reading.portrait(*self._at, style, method)
        return None if canvas is None else as_picture(canvas.pixels)

    @property
    def _at(self) -> tuple[nouns.Layer, int]:
        return self.layer._layer, self.channel

    @property
    def _reading(self) -> Reading:
        return self.layer._reading

    def _repr_png_(self) -> bytes | None:
        canvas = self._reading.portrait(*self._at)
        return None if canvas is None else canvas.png({"Title": f"{self.layer.run.model} {self}"})

    def __str__(self) -> str:
        return str(nouns.Unit(self.layer.alias, self.channel))

    def __repr__(self) -> str:
        return f"<unit {self}>"

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Unit) and self.layer.run.path == other.layer.run.path
        return same and str(self) == str(other)

    def __hash__(self) -> int:
        return hash((self.layer.run.path, str(self)))


class _Layers(Mapping[str, Layer]):
    """A run's layers by alias, in the network's order; in a notebook, a table."""

    def __init__(self, layers: dict[str, Layer]) -> None:
        self._layers = MappingProxyType(layers)

    def __getitem__(self, alias: str) -> Layer:
        return self._layers[alias]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.values()))

    def _repr_html_(self) -> str:
        return _html_table(self.values())


class _Spoken(Report):
    """A report whose signals stop the work only where possible: in the main thread."""

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        here = threading.current_thread() is threading.main_thread()
        with super().stoppable() if here else nullcontext():
            yield


class _Kept(_Spoken):
    """A report that keeps the results and prints nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def result(self, text: str) -> None:
        self.said.append(text)


_WHOLE = {field.name for field in fields(Plan)}
_FIGURE = {field.name for field in fields(FigurePlan)} - {
    field.name for field in fields(MontagePlan)
}


def _plan_names(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names of the plan: the stage's own go into its table."""

    def name(key: str) -> str:
        if "__" in key or (key in _WHOLE and key != stage):
            return key
        return f"figure__{key}" if stage == "montage" and key in _FIGURE else f"{stage}__{key}"

    return {name(key): value for key, value in settings.items()}


def _plan(settings: Mapping[str, Any]) -> Plan:
    try:
        return Plan.make(None, deepcopy(dict(settings)))  # it modifies the tables that it is given
    except UsageError as error:
        raise UsageError(str(error).removeprefix("the command line: ")) from None


def _units_text(units: UnitChoice) -> str:
    """Return a choice of units in the plan's form: ``1,2,3``; empty for all."""
    if isinstance(units, str):
        return units
    if isinstance(units, SupportsIndex):
        return str(operator.index(units))
    return ",".join(str(operator.index(unit)) for unit in units)


_COLUMNS: dict[str, Callable[[Layer], str]] = {
    "layer": lambda layer: layer.alias,
    "module": lambda layer: layer.module,
    "kind": lambda layer: layer.kind,
    "units": lambda layer: str(layer.channels),
    "map": lambda layer: nouns.size_text(layer.map),
    "field": lambda layer: nouns.size_text(layer.receptive_field),
    "optimized": lambda layer: _counts(layer.styles),
    "projected": lambda layer: _counts(layer.methods),
}


def _html_table(layers: Iterable[Layer]) -> str:
    """Return layers as an HTML table, with the number of finished units."""
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = (
        "".join(f"<td>{escape(cell(layer))}</td>" for cell in _COLUMNS.values()) for layer in layers
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _counts(held: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name}: {len(units)}" for name, units in held.items())
