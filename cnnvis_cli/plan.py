"""All settings as one frozen value, from a TOML file and the command line's flags."""

from __future__ import annotations

import stat
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Interpolation
from cnnvis_cli.registry import unknown

STAGES = ("topk", "search", "optimize", "project", "montage", "gallery")
USUAL = ("topk", "optimize", "project", "montage", "gallery")
Sort = Literal["max", "selectivity", "active"]
Tone = Literal["tile", "unit", "sheet", "true"]
Precision = Literal["float32", "tf32", "bf16"]
Decode = Literal["exact", "fast", "gpu"]
FilterTone = Literal["tile", "sheet"]
LayerTone = Literal["layer", "tile"]
Start = Literal["place", "map"]
Normalisation = Literal["derivative", "pass"]


@dataclass(frozen=True)
class PreprocessingPlan:
    """What to change of the network's own preprocessing; see `nouns.Preprocessing`.

    `mean` may also be a file: ``.npy`` or ``.binaryproto``, in the network's channel order.
    """

    resize: int | tuple[int, ...] | None = None
    crop: int | tuple[int, ...] | None = None
    mean: tuple[float, ...] | str | None = None
    std: tuple[float, ...] | None = None
    bgr: bool | None = None
    interpolation: Interpolation | None = None


@dataclass(frozen=True)
class TopKPlan:
    """`k` places a channel; more than `max_unreadable` (a share) of bad images ends in exit 3.

    `min` also keeps the k lowest. `decode` ``fast`` lets the JPEG decoder scale, ``gpu`` decodes
    on the device; `precision` is the network's arithmetic. All of them belong to the result.
    """

    k: int = 9
    max_unreadable: float = 0.01
    min: bool = False
    precision: Precision = "float32"
    decode: Decode = "exact"


@dataclass(frozen=True)
class OptimizePlan:
    """`step` is ``calibrated``, ``paper`` or a rate; `iterations` overrides the styles' own.

    What is climbed is a layer's centre unit, with `mean` the channel's mean over the whole map,
    with `softmax` its probability; `sum` (``12 + 0.5*31``) and `direction` (a ``.npy`` file of one
    row of C numbers each) take the place of the units. `diversity` keeps the runs of a unit apart.
    `start` is noise, uniform, mean or an image file. `history` steps lie between two values that
    are kept.
    """

    style: tuple[str, ...] = ("3",)
    runs: int = 1
    step: str = "calibrated"
    iterations: int | None = None
    mean: bool = False
    minimise: bool = False
    softmax: bool = False
    sum: tuple[str, ...] = ()
    direction: str | None = None
    diversity: float = 0.0
    start: str = "noise"
    precision: Precision | None = None
    history: int = 8  # two of the blur's rounds: no zigzag


@dataclass(frozen=True)
class SearchPlan:
    """`trials` random rows, or a `sweep` of one parameter (``all``: of each) over `values` values.

    `ranges` are those of `ascent.search.Ranges`; `score` is what the sheet is sorted by. `save`
    keeps a `row` (by default the first of the sheet) as a style of this name.
    """

    trials: int = 300
    iterations: int = 300
    sweep: str | None = None
    values: int = 7
    score: str = "balanced"
    save: str | None = None
    row: int | None = None
    ranges: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProjectPlan:
    """`method`: deconv, guided, gradient.

    `start` is a single 1 at the stored place, or the channel's whole rectified map. `lrn` is how
    the signal goes back through local response normalisation.
    """

    method: tuple[str, ...] = ("deconv",)
    start: Start = "place"
    lrn: Normalisation = "derivative"


@dataclass(frozen=True)
class MontagePlan:
    """`kind`: see ``cnnvis montage --help``; none is all that the run holds something for.

    Which units: a `random` sample of so many, in the order of `sort`, the `best` first of them.
    `together` draws one figure where there would be one for each layer or unit.
    """

    kind: tuple[str, ...] = ()
    style: tuple[str, ...] = ()
    method: str | None = None
    random: int | None = None
    sort: Sort | None = None
    best: int | None = None
    together: bool = False


@dataclass(frozen=True)
class GalleryPlan:
    """`title` is what the page is called, by default the network's name."""

    title: str | None = None


@dataclass(frozen=True)
class FiltersPlan:
    """Filters whose RMS exceeds `radius` are scaled down to it.

    `save_clipped` is a .safetensors file for the network with them; `tone` is what shares one
    scale of grey; `scale` is pixels a weight, by default as many as make a filter easy to see.
    """

    radius: float = 0.1
    save_clipped: str | None = None
    tone: FilterTone = "sheet"
    scale: int | None = None


@dataclass(frozen=True)
class SaliencyPlan:
    """`images` are files and folders; `method`: see ``cnnvis saliency --help``.

    `target` is a class name, a class number or a unit (``conv5/0151``), by default each image's
    predicted class; `at` is Grad-CAM's layer, by default the last with a map. `save` keeps numbers.
    """

    images: tuple[str, ...] = ()
    method: tuple[str, ...] = ("gradient", "guided", "deconv", "gradcam")
    target: str | None = None
    at: str | None = None
    save: Literal["h5"] | None = None


@dataclass(frozen=True)
class ActivationsPlan:
    """`image`: images, folders and videos. `unit` (``conv5/0151``) is one channel over the image.

    `compare` puts all images beside each other; `save` is ``h5`` to keep the numbers. Of a video
    every n-th frame is used, in a picture `size` pixels high; `frames` takes folders as videos.
    `tone` is what shares one scale of grey; `scale` enlarges, by default to a fitting size.
    """

    image: tuple[str, ...] = ()
    unit: tuple[str, ...] = ()
    compare: bool = False
    save: Literal["h5"] | None = None
    every: int = 1
    size: int = 480
    frames: bool = False
    tone: LayerTone = "layer"
    scale: float | None = None


@dataclass(frozen=True)
class OccludePlan:
    """`images` are files and folders; `target` is a class name or number, by default each
    image's predicted class. The square's `size`, and the `stride` between two of its positions,
    are pixels of the network's input; `method` is how the map is projected.
    """

    images: tuple[str, ...] = ()
    size: int | None = None
    stride: int | None = None
    target: str | None = None
    method: str = "deconv"


@dataclass(frozen=True)
class FigurePlan:
    """How figures are drawn: `scale` enlarges every pixel, or reduces below 1.

    `tone` is what shares one scale of grey; `dpi` pixels are an inch in print; `pdf` also writes a
    PDF beside each PNG; `classes` is a file of class names.
    """

    tone: Tone = "tile"
    scale: float = 1.0
    dpi: int | None = None
    pdf: bool = False
    classes: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a run does; the top-level keys of a TOML file.

    `scheduler` is the address of a Dask cluster, which needs TLS or a network to `trust`; `log` is
    a file for what is told.
    """

    model: str = ""
    weights: str | None = None
    trust_code: bool = False
    dataset: str | None = None
    run: str | None = None
    layer: tuple[str, ...] = ()
    units: str = ""
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    shard: str | None = None
    scheduler: str | None = None
    trust_network: bool = False
    log: str | None = None
    seed: int = 0
    stages: tuple[str, ...] = USUAL
    preprocessing: PreprocessingPlan = field(default_factory=PreprocessingPlan)
    topk: TopKPlan = field(default_factory=TopKPlan)
    optimize: OptimizePlan = field(default_factory=OptimizePlan)
    search: SearchPlan = field(default_factory=SearchPlan)
    project: ProjectPlan = field(default_factory=ProjectPlan)
    montage: MontagePlan = field(default_factory=MontagePlan)
    gallery: GalleryPlan = field(default_factory=GalleryPlan)
    filters: FiltersPlan = field(default_factory=FiltersPlan)
    saliency: SaliencyPlan = field(default_factory=SaliencyPlan)
    occlude: OccludePlan = field(default_factory=OccludePlan)
    activations: ActivationsPlan = field(default_factory=ActivationsPlan)
    figure: FigurePlan = field(default_factory=FigurePlan)
    styles: dict[str, Any] = field(default_factory=dict)  # of one's own; see ascent.styles

    @property
    def folder(self) -> Path:
        """The run directory."""
        if self.run:
            return Path(self.run)
        if not self.model:
            raise UsageError("which network? give --model, or --run with a run directory")
        return Path("outputs") / self.model.replace(":", "_").replace("/", "_")

    def share(self, pieces: int) -> range:
        """Which of so many numbered pieces of work are this shard's: a row of them.

        Raises `UsageError` for a `shard` that is not i/n. Shard n may be called 0 as well.
        """
        i, n = self._share
        return range((i - 1) * pieces // n, i * pieces // n)

    def takes(self, first: int) -> Callable[[int], bool]:
        """Whether a numbered block of units is this shard's: every n-th, counted on from `first`.

        Layers that begin at other numbers burden no shard more than the others.
        """
        i, n = self._share
        return lambda number: (number + first) % n == i - 1

    @property
    def _share(self) -> tuple[int, int]:
        if self.shard is None:
            return 1, 1
        number, slash, count = self.shard.partition("/")
        numbers = slash and number.isdecimal() and count.isdecimal()
        if not (numbers and int(number) <= int(count) and int(count) >= 1):
            raise UsageError(f"--shard {self.shard}: write it as i/n, from 1/n to n/n")
        return int(number) or int(count), int(count)

    @classmethod
    def make(cls, config: Path | None, flags: Mapping[str, Any]) -> Plan:
        """The plan of a TOML file with flags over it; flags are named ``topk__k`` and the like.

        Raises `UsageError` for a key that does not exist, naming the right one, or a value of
        the wrong type or out of range.
        """
        table = _read(config) if config else {}
        for name, value in flags.items():
            if value is None or value == ():
                continue
            *sections, key = name.split("__")
            place = table
            for section in sections:
                place = place.setdefault(section, {})
            if isinstance(place, dict):  # a section that is no table is refused below
                place[key] = value
        plan: Plan = read_settings(cls, table, str(config or "the command line"))
        plan._check()
        return plan

    def _check(self) -> None:
        """Raise for values that no stage could work with."""
        for stage in self.stages:
            if stage not in STAGES:
                raise unknown("stage", stage, STAGES)
        at_least_one = {
            "--batch-size": self.batch_size,
            "-k": self.topk.k,
            "--runs": self.optimize.runs,
            "--iterations": self.optimize.iterations,
            "--dpi": self.figure.dpi,
            "--random": self.montage.random,
            "--best": self.montage.best,
            "--trials": self.search.trials,
            "--values": self.search.values,
            "--history": self.optimize.history,
            "--size": self.occlude.size,
            "--stride": self.occlude.stride,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: must be at least 1")
        scale = self.figure.scale
        if not 0 < scale <= 64 or (scale > 1 and scale != int(scale)):
            raise UsageError(
                f"--scale {scale:g}: must be a whole number, or a share of 1 to make it smaller"
            )
        if not 0 <= self.topk.max_unreadable <= 1:
            raise UsageError(f"--max-unreadable {self.topk.max_unreadable}: is a share, 0 to 1")
        if not 0 <= self.optimize.diversity <= 10:
            raise UsageError(f"--diversity {self.optimize.diversity}: must be 0 to 10")
        if not 0 < self.filters.radius < float("inf"):
            raise UsageError(f"--radius {self.filters.radius:g}: must be above 0")
        if self.filters.scale is not None and not 1 <= self.filters.scale <= 64:
            raise UsageError(f"--scale {self.filters.scale}: must be a whole number from 1 to 64")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"--seed {self.seed}: must be 0 or more, and below 2^63")
        self.share(0)
        if self.shard and self.scheduler:
            raise UsageError("--shard and --scheduler: a cluster shares all work; give one of them")
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers {self.workers}: must be 0 or more")


LARGEST = 1 << 16  # bytes of a settings file; ours have a thousand


def _read(config: Path) -> dict[str, Any]:
    try:
        status = config.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{config}: is not a file")
        if status.st_size > LARGEST:
            raise UsageError(f"{config}: has {status.st_size} bytes, more than {LARGEST}")
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{config}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, too
        raise UsageError(f"{config}: is not TOML ({error})") from None


def read_settings(cls: Any, table: Mapping[str, Any], place: str) -> Any:
    """A settings value of class `cls` from a table, checking every key and type."""
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in names:
            raise unknown("setting", key, names, place=place)
        values[name] = _convert(value, hints[name], f"{place}: {key}")
    return cls(**values)


def _convert(value: Any, hint: Any, place: str) -> Any:
    """`value` as the annotated type, or `UsageError`."""
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UsageError(f"{place} must be a table, [{place.rsplit(maxsplit=1)[-1]}]")
        return read_settings(hint, value, place)
    for option in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        converted = _as(value, option)
        if converted is not None:
            return converted
    wanted = str(getattr(hint, "__name__", hint)).replace("typing.", "").replace(" | None", "")
    raise UsageError(f"{place} = {value!r} is not {wanted}")


def _as(value: Any, option: Any) -> Any:
    """`value` as one plain type, None if it is not of it."""
    origin, arguments = get_origin(option), get_args(option)
    if origin is Literal:
        return value if value in arguments else None
    if origin is tuple:
        items = [value] if isinstance(value, (str, int, float)) else value
        if not isinstance(items, (list, tuple)):
            return None
        converted = [_as(item, arguments[0]) for item in items]
        return None if None in converted else tuple(converted)
    if origin is dict:
        return dict(value) if isinstance(value, Mapping) else None
    if option is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if option is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    fits = isinstance(option, type) and isinstance(value, option)
    return value if fits and not (option is int and isinstance(value, bool)) else None
