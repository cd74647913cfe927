"""All settings, each declared once: type, bounds, flag, help and default.

The command line's options and the tables of docs/plan.md are made from these declarations, and
values are checked against them in `validation`. Only there is pydantic imported, so that
``--help`` does not wait for it.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Column, Interpolation

Value = TypeVar("Value")

Stage = Literal["topk", "search", "optimize", "project", "montage", "gallery"]
USUAL: tuple[Stage, ...] = ("topk", "optimize", "project", "montage", "gallery")
Sort = Literal["max", "selectivity", "active", "score"]
Tone = Literal["tile", "max", "unit", "sheet", "true"]
Precision = Literal["float32", "tf32", "bf16"]
Decode = Literal["exact", "fast", "gpu"]
FilterTone = Literal["tile", "sheet"]
LayerTone = Literal["layer", "tile"]
Start = Literal["place", "map"]
Back = Literal["raw", "gray", "norm", "blur"]
Normalisation = Literal["derivative", "pass"]
Method = Literal["deconv", "guided", "gradient"]
SaliencyMethod = Literal["gradient", "guided", "deconv", "gradcam", "smoothgrad", "integrated"]


def setting(
    default: Any,
    flags: str = "",
    help: str = "",
    shown: str | None = None,
    metavar: str | None = None,
    **bounds: Any,
) -> Any:
    """Declare a setting: a dataclass field whose metadata holds flags and help.

    `flags` are the option's names, or an argument's in capitals. `shown` describes the default
    where its value does not. `bounds` are those of `pydantic.Field`, which reads them there.
    """
    words = {"flags": flags, "help": help, "shown": shown, "metavar": metavar}
    if callable(default):
        return field(default_factory=default, metadata={**words, **bounds})
    return field(default=default, metadata={**words, **bounds})


def named_units(help: str) -> Any:
    """Declare the option of some units of any layers, with what it is for."""
    words = f"{help}, such as conv5/0151; repeatable."
    return setting((), "--unit", words, metavar="LAYER/N")


def shown_default(declared: Field[Any]) -> str:
    """Return what help says of a setting's default; nothing where there is none to name."""
    value = declared.default
    if declared.metadata["shown"] is not None:
        return str(declared.metadata["shown"])
    if isinstance(value, tuple):
        return ", ".join(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:g}" if number else value if isinstance(value, str) else ""


@dataclass(frozen=True)
class ReadWith:
    """Mark a type whose values `function` reads: pydantic hands it the value and its own check."""

    function: Callable[[Any, Callable[[Any], Any]], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Return the schema of the type with the function around it; pydantic asks for it."""
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(self.function, handler(source))


def _text_or_number(value: Any, check: Callable[[Any], Any]) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return check(str(value) if number else value)


def _several(value: Any, check: Callable[[Any], Any]) -> Any:
    if isinstance(value, (str, int, float)):
        return check((value,))
    return check(tuple(value) if isinstance(value, list) else value)


def _scale(value: Any, check: Callable[[Any], Any]) -> Any:
    scale = check(value)
    if scale > 1 and scale != int(scale):
        raise ValueError("must be a whole number, or a fraction below 1 to make pictures smaller")
    return scale


def _safetensors_path(value: Any, check: Callable[[Any], Any]) -> Any:
    path = Path(check(value))
    if path.suffix != ".safetensors":
        raise ValueError("must end in .safetensors")
    if path.is_dir():
        raise ValueError("is a folder; name a file")
    return value


UNITS_OF_LENGTH = {"in": 72.0, "cm": 72 / 2.54, "mm": 7.2 / 2.54, "pt": 1.0}  # in points
LENGTH = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *(in|cm|mm|pt)")
COLUMNS = {1: "3.25in", 2: "6.875in"}  # the usual widths of one column and of two


def points_of(length: str) -> float:
    """Return a length such as 3.25in, 82mm, 8.2cm or 234pt in points; raise ValueError for others.

    Printed pages are between an inch and 20 inches wide.
    """
    found = LENGTH.fullmatch(length.strip())
    if not found:
        raise ValueError("write a number and in, cm, mm or pt, such as 3.25in")
    points = float(found[1]) * UNITS_OF_LENGTH[found[2]]
    if not 72 <= points <= 1440:
        raise ValueError("must be from 1in to 20in")
    return points


def _length(value: Any, check: Callable[[Any], Any]) -> Any:
    points_of(check(value))
    return value


CLASS_LEVEL = re.compile(r"auto|first|own|wordnet|stated|none|[1-9]\d?\+?")


def _class_level(value: Any, check: Callable[[Any], Any]) -> Any:
    if not CLASS_LEVEL.fullmatch(level := check(value)):
        raise ValueError("must be auto, first, own, wordnet, stated, none, or a number such as 2")
    return level


def _shard_name(value: Any, check: Callable[[Any], Any]) -> Any:
    share_of(check(value))
    return value


def share_of(shard: str) -> tuple[int, int]:
    """Return i and n of a shard written i/n; raise ValueError for anything else.

    Shard n may also be called 0.
    """
    number, slash, count = shard.partition("/")
    numbers = slash and number.isdecimal() and count.isdecimal()
    if not (numbers and int(number) <= int(count) and int(count) >= 1):
        raise ValueError("write it as i/n, from 1/n to n/n")
    return int(number) or int(count), int(count)


Text = Annotated[str, ReadWith(_text_or_number)]  # a number may be written for it
Several = Annotated[tuple[Value, ...], ReadWith(_several)]  # or a single value


@dataclass(frozen=True)
class PreprocessingPlan:
    """Changes to the network's own preprocessing; see `nouns.Preprocessing`."""

    resize: int | Several[int] | None = setting(
        None, help="Length of the image's shorter side, or [height, width]."
    )
    crop: int | Several[int] | None = setting(
        None, help="Size of the centre crop, the network's input: one number, or [height, width]."
    )
    mean: Several[float] | str | None = setting(
        None,
        help="Three numbers, RGB from 0 to 255 (one for grey images), or a .npy or "
        ".binaryproto file.",
    )
    std: Several[float] | None = setting(
        None, help="Three numbers, RGB from 0 to 255; one for grey images."
    )
    bgr: bool | None = setting(None, help="Whether the network takes BGR images, as Caffe's do.")
    interpolation: Interpolation | None = setting(None, help="Filter that resizes images.")
    grey: bool | None = setting(
        None,
        help="Whether images are made grey first. A network of one input channel needs no word.",
    )
    upright: bool | None = setting(
        None,
        help="Whether photographs are turned as their EXIF orientation says. By default they are "
        "not, as in training with torchvision.",
    )


@dataclass(frozen=True)
class TopKPlan:
    """Keep the `k` strongest places per channel; with `min` also the k lowest.

    `decode` and `precision` decide the result's bytes.
    """

    k: int = setting(9, "-k", "Number of strongest places to keep per channel.", ge=1)
    max_unreadable: float = setting(
        0.01,
        "--max-unreadable",
        "Share of unreadable images above which the exit code is 3.",
        ge=0,
        le=1,
    )
    min: bool = setting(False, "--min", "Also keep the k lowest places per channel.")
    class_level: Annotated[Text, ReadWith(_class_level)] = setting(
        "auto",
        "--class-level",
        "Which folder is an image's class: first (below the dataset), own (the image's), a number "
        "(2 for the second; 2+ for it and all below), wordnet (named n01440764 or so), stated (by "
        "a WebDataset or Parquet file), none.",
        metavar="LEVEL",
    )
    sample: int | None = setting(
        None,
        "--sample",
        "Also keep each channel's largest value in each of this many images, chosen by a hash of "
        "their paths, in sample.h5; 10000 is a good number.",
        metavar="N",
        ge=1,
    )
    decode: Decode = setting(
        "exact",
        "--decode",
        "How images are decoded: fast lets the JPEG decoder scale, gpu decodes on the GPU.",
    )
    precision: Precision = setting("float32", "--precision", "Arithmetic of the network.")


@dataclass(frozen=True)
class OptimizePlan:
    """What the images of the units maximise, from which start and by which steps."""

    style: Several[Text] = setting(
        ("natural",),
        "--style",
        "natural (colours and spectrum of photographs), fourier (Olah et al. 2017), accent (the "
        "photograph of --start, accentuated: Hamblin et al. 2024), 1 to 4 (the rows of Table 1 of "
        "Yosinski et al. 2015), after topk also typical (natural, with the layers below as the "
        "run's images leave them) and maco (Fel et al. 2023), or a style of your own; repeatable.",
        metavar="NAME",
    )
    runs: int = setting(1, "--runs", "Random starts per unit.", ge=1)
    step: Text = setting(
        "calibrated",
        "--step",
        "Step size of styles 1 to 4 and your own: calibrated, paper (the paper's constants), or a "
        "number.",
        metavar="NAME|NUMBER",
    )
    iterations: int | None = setting(
        None, "--iterations", "Number of iterations, instead of the style's own.", ge=1
    )
    mean: bool = setting(
        False,
        "--mean",
        "Maximise the channel's mean over its whole map instead of its centre unit.",
    )
    softmax: bool = setting(
        False, "--softmax", "Maximise the unit's softmax probability among the layer's units."
    )
    minimise: bool = setting(
        False, "--minimise", "Minimise the activation instead of maximising it."
    )
    sum: Several[Text] = setting(
        (),
        "--sum",
        "Maximise a weighted sum of a layer's units, such as '12 + 0.5*31 - 7'; repeatable.",
        metavar="TERMS",
    )
    direction: Text | None = setting(
        None,
        "--direction",
        "Maximise along directions in the space of a layer's channels: an .npy file of shape "
        "(n, channels).",
        metavar="FILE",
    )
    diversity: float = setting(
        0.0,
        "--diversity",
        "Weight of a penalty on similar images among the runs of a unit; try 0.5.",
        ge=0,
        le=10,
    )
    start: Text = setting(
        "noise",
        "--start",
        "First image of styles 1 to 4 and your own: noise (about the mean colour), uniform, mean, "
        "or an image file; of style accent: the photograph.",
        metavar="NAME|FILE",
    )
    majority: bool = setting(
        False,
        "--majority",
        "Also keep the first image at which the unit leads its layer, as the "
        "deep-visualization-toolbox does; figures show it beside the best.",
    )
    precision: Precision | None = setting(
        None, "--precision", "Arithmetic of the network.", "tf32 on a GPU, float32 on a CPU"
    )
    history: int = setting(  # two of the blur's periods, so that the curve does not zigzag
        8, "--history", "Record the activation every this many steps.", ge=1
    )

    def check(self, plan: Plan) -> None:
        """Raise `UsageError` for settings that contradict each other or others of `plan`."""
        several = [name for name in ("sum", "direction") if getattr(self, name)]
        if len(several) > 1:
            raise UsageError("--sum and --direction: give only one of them")
        if several and plan.units:
            raise UsageError(f"--{several[0]} takes the place of --units; leave that out")
        if several and len(plan.layer) != 1:
            raise UsageError(
                f"--{several[0]} is about the channels of one layer; name it with --layer"
            )
        if self.start not in ("noise", "uniform") and self.runs > 1:
            raise UsageError(f"--start {self.start} gives every run the same picture; use --runs 1")
        if self.diversity and self.runs < 2:
            raise UsageError("--diversity keeps the runs of a unit apart; use --runs 2 or more")


@dataclass(frozen=True)
class SearchPlan:
    """Random rows of parameters, or a sweep of one; see `ascent.search`."""

    trials: int = setting(300, "--trials", "Number of random rows of parameters.", ge=1)
    iterations: int = setting(300, "--iterations", "Iterations of each ascent.", ge=1)
    sweep: Text | None = setting(
        None,
        "--sweep",
        "Instead of a random search, vary one parameter from its lowest to its highest value: "
        "decay, blur_width, blur_every, norm, contribution, tv or rate; or all, for one sheet per "
        "parameter.",
        metavar="NAME",
    )
    values: int = setting(7, "--values", "Number of values in a sweep.", ge=1)
    score: Text = setting(
        "balanced",
        "--score",
        "Score that sorts the sheet: balanced, activation, robustness, variation, roughness or "
        "grey.",
        metavar="NAME",
    )
    save: Text | None = setting(
        None, "--save", "Save a row as a style of this name.", metavar="NAME"
    )
    row: int | None = setting(None, "--row", "The row to save.", "the sheet's first")
    ranges: dict[str, Any] = setting(
        dict, help="[search.ranges]: lowest and highest value of each parameter."
    )


@dataclass(frozen=True)
class ProjectPlan:
    """How projections are made."""

    method: Several[Method] = setting(
        (),
        "--method",
        "How to project: deconv, guided or gradient; repeatable.",
        "deconv; gradient where a network's activation functions have no deconvnet rule",
        metavar="NAME",
    )
    start: Start = setting(
        "place",
        "--start",
        "What is projected: a single 1 at the stored place, or the channel's whole rectified map, "
        "which gives pictures of the size of the input.",
    )
    lrn: Normalisation = setting(
        "derivative",
        "--lrn",
        "How the signal passes back through local response normalisation: by the derivative, or "
        "unchanged.",
    )

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that are asked for, or the default."""
        return self.method or ("deconv",)


@dataclass(frozen=True)
class MontagePlan:
    """Which figures to draw, and of which units."""

    kind: Several[Text] = setting((), "KIND", "Kinds of figures, repeatable.", "optimized and top")
    style: Several[Text] = setting(
        (),
        "--style",
        "Style of the optimized images to show; repeatable for the kind styles.",
        metavar="NAME",
    )
    method: Text | None = setting(
        None, "--method", "Method of the projections to show.", metavar="NAME"
    )
    random: int | None = setting(
        None,
        "--random",
        "Show this many units, of --units where they are given, chosen at random by --seed.",
        ge=1,
    )
    sort: Sort | None = setting(
        None,
        "--sort",
        "Sort units, highest first, by a statistic of topk.h5 (strongest activation, class "
        "selectivity, share of places above 0), or by cnnvis score.",
        "by number",
    )
    best: int | None = setting(
        None,
        "--best",
        "Show only this many units, the first by --sort, which is then max by default.",
        ge=1,
    )
    together: bool = setting(
        False,
        "--together",
        "Draw one figure for all layers (optimized, top), or for all units of a layer (styles, "
        "unit).",
    )
    fade: bool = setting(
        False,
        "--fade",
        "Fade optimized images to the mean colour where the ascents found little to follow; for "
        "the style maco.",
    )
    images: Several[Text] = setting((), "IMAGE", "Images of the kind screen.")
    unit: Several[Text] = named_units("Unit of the kind screen")
    back: Back = setting(
        "raw",
        "--back",
        "How screen shows the way back to the image: raw, gray, norm, or blur, the norm blurred.",
    )
    start: Start = setting(
        "map", "--start", "Where screen's way back starts: the unit's strongest place, or its map."
    )
    gamma: float = setting(
        1.0, "--gamma", "Power of screen's activations; below 1 shows weak ones.", gt=0, le=4
    )
    equal: bool = setting(
        False,
        "--equal",
        "In figures of several layers, draw the tiles of all layers equally large, not at one "
        "scale.",
    )


@dataclass(frozen=True)
class GalleryPlan:
    """How the web page is called, and what it computes."""

    title: Text | None = setting(
        None, "--title", "Title of the page.", "the network's name", metavar="TITLE"
    )
    trace: int = setting(
        1000,
        "--trace",
        "Images that are run through the network, to show what feeds each unit; 0: none.",
        ge=0,
    )


@dataclass(frozen=True)
class NamePlan:
    """When a unit gets the name of a class."""

    least: int = setting(  # a group of one image has no standard error
        5, "--least", "Images of a class and of others that the sample must have.", ge=2
    )
    shuffles: int = setting(
        999, "--shuffles", "Random orders of the images that names are compared with.", ge=19
    )
    level: float = setting(
        0.01,
        "--level",
        "Largest share of random orders that may do as well as a named unit.",
        gt=0,
        lt=1,
    )
    clip: Text | None = setting(
        None,
        "--clip",
        "Choose a word of --words by a CLIP model instead: its name in open_clip, or a folder "
        "with its open_clip_config.json.",
        metavar="MODEL|FOLDER",
    )
    clip_weights: Text | None = setting(
        None, "--clip-weights", "That model's weights; nothing is fetched.", metavar="FILE"
    )
    words: Text | None = setting(
        None, "--words", "The words to choose from, one a line.", metavar="FILE"
    )
    strongest: int = setting(
        100, "--strongest", "Images of each unit that --clip looks for a word for.", ge=2
    )
    named: Text | None = setting(
        None, "--named", "Print only units named so, or for a kind of it.", metavar="WORD"
    )


@dataclass(frozen=True)
class ScorePlan:
    """By which network, and how sharply, pictures are compared."""

    encoder: Text | None = setting(
        None,
        "--encoder",
        "Network that says how alike pictures look; written as for --model, or dreamsim.",
        "the network itself",
        "MODEL",
    )
    encoder_weights: Text | None = setting(
        None,
        "--encoder-weights",
        "Its weights, written as for --weights; dreamsim's folder of weights.",
        "models, for dreamsim",
        metavar="NAME|FILE",
    )
    encoder_layer: Text | None = setting(
        None,
        "--encoder-layer",
        "Its layer whose outputs are compared.",
        "the last but one",
        metavar="NAME",
    )
    alpha: float = setting(
        0.16,
        "--alpha",
        "Difference of similarities at which a task is solved with certainty 0.73.",
        gt=0,
    )
    natural_path: bool = setting(
        False,
        "--natural-path",
        "Instead, compare the activations of optimized images with photographs', layer by layer.",
    )


@dataclass(frozen=True)
class FiltersPlan:
    """How first-layer filters are clipped and drawn."""

    radius: float | None = setting(
        None,
        "--radius",
        "Largest RMS of a filter's weights; larger filters are clipped to it.",
        "0.1 times the deviation by which the network's input is divided",
        gt=0,
    )
    beside: Text | None = setting(
        None,
        "--beside",
        "Another run's directory: also show its network's first filters beside these.",
        metavar="RUN",
    )
    save_clipped: Annotated[Text, ReadWith(_safetensors_path)] | None = setting(
        None,
        "--save-clipped",
        "Write the network's weights with these filters clipped, as a .safetensors file for -w.",
        metavar="FILE",
    )
    tone: FilterTone = setting(
        "sheet",
        "--tone",
        "What shares one grey scale: the sheet, which shows whether some filters dominate, or each "
        "filter.",
    )
    scale: int | None = setting(
        None, "--scale", "Pixels per weight.", "a filter is about 44 pixels wide", ge=1, le=64
    )


@dataclass(frozen=True)
class LookPlan:
    """Which images to show on one sheet each."""

    images: Several[Text] = setting((), "PHOTO", "Files and folders of images; demo is bundled.")


@dataclass(frozen=True)
class SaliencyPlan:
    """Which images to explain, by which methods."""

    images: Several[Text] = setting((), "IMAGE", "Files and folders of images.")
    method: Several[SaliencyMethod] = setting(
        (),
        "--method",
        "gradient, guided, deconv, gradcam, smoothgrad or integrated; repeatable.",
        "those of the first four that have a rule for the network's activation functions",
        metavar="NAME",
    )
    target: Text | None = setting(
        None,
        "--target",
        "A class name or number, or a unit such as conv5/0151.",
        "each image's predicted class",
        "CLASS|NUMBER|UNIT",
    )
    at: Text | None = setting(
        None,
        "--at",
        "Layer for Grad-CAM.",
        "the last convolution with a map that is not the network's last layer",
        "LAYER",
    )
    save: Literal["h5"] | None = setting(
        None, "--save", "Also save the numbers, as saliency/<image>_<target>.h5."
    )


@dataclass(frozen=True)
class ActivationsPlan:
    """Which images and videos to show, and how."""

    image: Several[Text] = setting((), "IMAGE-OR-VIDEO", "Images, folders and videos.")
    unit: Several[Text] = named_units("Show one channel over the image")
    compare: bool = setting(
        False, "--compare", "Show the same channels of two to six images side by side."
    )
    save: Literal["h5"] | None = setting(
        None, "--save", "Also save the numbers, as activations/<image>.h5."
    )
    every: int = setting(1, "--every", "Use every n-th frame of a video.", ge=1)
    size: int = setting(
        480, "--size", "Height of the video in pixels.", ge=240, le=4320, multiple_of=2
    )
    frames: bool = setting(
        False, "--frames", "Treat the images of a folder as the frames of a video, 25 per second."
    )
    tone: LayerTone = setting(
        "layer", "--tone", "What shares one grey scale: a layer, or each channel."
    )
    scale: Annotated[float, ReadWith(_scale)] | None = setting(
        None,
        "--scale",
        "Pixels per place of a map: a whole number, or a fraction below 1.",
        "as fits",
        gt=0,
        le=64,
    )


@dataclass(frozen=True)
class OccludePlan:
    """Which images to cover, by which square."""

    images: Several[Text] = setting((), "IMAGE", "Files and folders of images.")
    size: int | None = setting(
        None,
        "--size",
        "Side of the square, in pixels of the network's input.",
        "a fifth of the input's side",
        "PIXELS",
        ge=1,
    )
    stride: int | None = setting(
        None,
        "--stride",
        "Distance between two positions of the square.",
        "a twentieth of the input's side",
        "PIXELS",
        ge=1,
    )
    target: Text | None = setting(
        None,
        "--class",
        "Class whose probability is shown.",
        "each image's predicted class",
        "NAME|NUMBER",
    )
    together: bool = setting(
        False, "--together", "Also draw the images' figures below each other, in one."
    )
    zero: bool = setting(
        False, "--zero", "Begin the colour bars at 0 instead of at the lowest value."
    )
    method: Method | None = setting(
        None,
        "--method",
        "How the map is projected: deconv, guided or gradient.",
        "deconv; gradient where it has no rule",
        "NAME",
    )


@dataclass(frozen=True)
class FigurePlan:
    """How figures are drawn."""

    tone: Tone = setting(
        "tile",
        "--tone",
        "What shares one grey scale: each tile, each unit or the whole sheet, stretched to the "
        "99th percentile of its values; max stretches each tile to its largest value; true shows "
        "true values, the mean colour added back.",
    )
    scale: Annotated[float, ReadWith(_scale)] | None = setting(
        None,
        "--scale",
        "Enlarge each picture by this whole factor; a factor below 1 makes it smaller.",
        "1, and more for pictures of less than 64 pixels",
        gt=0,
        le=64,
    )
    dpi: int | None = setting(
        None, "--dpi", "Pixels per inch in print.", "300 with --paper", ge=1, le=2400
    )
    pdf: bool = setting(False, "--pdf", "Also write a PDF beside each PNG.")
    classes: Text | None = setting(
        None,
        "--classes",
        "A file of class names: one per line, or a folder name and its class name per line.",
        metavar="FILE",
    )
    paper: bool = setting(
        False,
        "--paper",
        "Draw for a column of a paper: text in points, the caption as .txt and .tex beside it, and "
        "a PDF.",
    )
    width: Annotated[Text, ReadWith(_length)] | None = setting(
        None,
        "--width",
        "Width in the paper, such as 3.25in, 82mm, 8.2cm or 234pt.",
        "that of --columns",
        "LENGTH",
    )
    columns: int | None = setting(
        None, "--columns", "Columns of the paper: 1 (3.25in) or 2 (6.875in).", "1", ge=1, le=2
    )
    points: float | None = setting(
        None, "--points", "Height of the text in the paper, in points.", "7", ge=6, le=14
    )

    @property
    def column(self) -> Column | None:
        """The column of a paper that figures are drawn for; None: they are not."""
        if not (self.paper or self.width or self.columns or self.points):
            return None
        width = points_of(self.width or COLUMNS[self.columns or 1])
        return Column(width, self.points or 7.0)

    def check(self) -> None:
        """Raise `UsageError` for settings that contradict each other."""
        if self.width and self.columns:
            raise UsageError("--width and --columns: give only one of them")


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a run does; the top-level keys of a TOML file."""

    model: Text = setting(
        "",
        "-m --model",
        "A torchvision model (alexnet, vgg16, ...), caffenet, zfnet, demo, timm:NAME, "
        "package.module:function or file.py:function.",
        metavar="NAME",
    )
    weights: Text | None = setting(
        None,
        "-w --weights",
        "DEFAULT or another torchvision weights name, a file (.safetensors, .pth, .ckpt, .bin, "
        ".caffemodel), or random.",
        metavar="NAME|FILE",
    )
    ema: bool = setting(False, "--ema", "Take the averaged weights (EMA) of a training checkpoint.")
    trust_code: bool = setting(False, "--trust-code", "Allow --model to run your own code.")
    dataset: Text | None = setting(
        None,
        "DATASET --dataset",
        "A folder, tar, zip, Parquet file or list of images; demo for generated images.",
        metavar="DIR|FILE",
    )
    run: Text | None = setting(
        None, "-r --run", "The run directory.", "outputs/<model>", metavar="DIR"
    )
    layer: Several[Text] = setting(
        (),
        "-l --layer",
        "A layer's alias (conv5) or module path (features.10), or a block's path (layer4) for all "
        "in it; repeatable.",
        "all",
        metavar="NAME",
    )
    units: Text = setting("", "-u --units", "Channels, such as 0-63,151.", "all", metavar="NUMBERS")
    device: Text = setting(
        "auto",
        "--device",
        "auto, cpu, cuda, cuda:all, or a list such as cuda:0,cuda:1.",
        metavar="NAME",
    )
    batch_size: int | None = setting(None, "--batch-size", "Images per batch.", ge=1)
    workers: int | None = setting(
        None,
        "--workers",
        "Worker processes, which decode images and, on a CPU, also run the network; 0: work in "
        "this process.",
        "one per core",
        ge=0,
    )
    shard: Annotated[Text, ReadWith(_shard_name)] | None = setting(
        None,
        "--shard",
        "Do only part i of n of the work, written i/n: in a shared run directory, or for cnnvis "
        "merge.",
        metavar="I/N",
    )
    scheduler: Text | None = setting(
        None,
        "--scheduler",
        "Run the work on a Dask cluster: tcp://host:port or tls://host:port.",
        metavar="ADDRESS",
    )
    trust_network: bool = setting(
        False,
        "--trust-network",
        "Allow a --scheduler on another machine without TLS: anyone on the network between can "
        "then run code on the cluster.",
    )
    yes: bool = setting(False, "-y --yes", "Begin although the results may not fit on the disk.")
    log: Text | None = setting(
        None,
        "--log",
        "Also write every line to this file, which is rotated at 1 MB. That of a plan is in the "
        "run directory.",
        metavar="FILE",
    )
    seed: int = setting(0, "--seed", "Seed of every random choice.", ge=0, lt=1 << 63)
    stages: Several[Stage] = setting(USUAL, help="Stages of cnnvis run.")
    preprocessing: PreprocessingPlan = field(default_factory=PreprocessingPlan)
    topk: TopKPlan = field(default_factory=TopKPlan)
    optimize: OptimizePlan = field(default_factory=OptimizePlan)
    search: SearchPlan = field(default_factory=SearchPlan)
    project: ProjectPlan = field(default_factory=ProjectPlan)
    montage: MontagePlan = field(default_factory=MontagePlan)
    gallery: GalleryPlan = field(default_factory=GalleryPlan)
    score: ScorePlan = field(default_factory=ScorePlan)
    name: NamePlan = field(default_factory=NamePlan)
    filters: FiltersPlan = field(default_factory=FiltersPlan)
    look: LookPlan = field(default_factory=LookPlan)
    saliency: SaliencyPlan = field(default_factory=SaliencyPlan)
    occlude: OccludePlan = field(default_factory=OccludePlan)
    activations: ActivationsPlan = field(default_factory=ActivationsPlan)
    figure: FigurePlan = field(default_factory=FigurePlan)
    styles: dict[str, Any] = setting(dict, help="[styles.NAME]: styles of your own.")

    @property
    def folder(self) -> Path:
        """The run directory."""
        if self.run:
            return Path(self.run)
        if not self.model:
            raise UsageError("which network? give --model, or --run with a run directory")
        return Path("outputs") / self.model.replace(":", "_").replace("/", "_")

    def share(self, pieces: int) -> range:
        """Return the numbers of the pieces of work that belong to this shard, one after another."""
        i, n = share_of(self.shard or "1/1")
        return range((i - 1) * pieces // n, i * pieces // n)

    def takes(self, first: int) -> Callable[[int], bool]:
        """Return whether a numbered block of units belongs to this shard: every n-th from `first`.

        Layers that start at different numbers spread their blocks evenly over the shards.
        """
        i, n = share_of(self.shard or "1/1")
        return lambda number: (number + first) % n == i - 1

    @classmethod
    def make(cls, config: Path | None, flags: Mapping[str, Any]) -> Plan:
        """Return the plan of a TOML file, overridden by flags named ``topk__k`` and the like.

        Raise `UsageError` for an unknown key, naming the nearest known one, or for a value of the
        wrong type or out of range.
        """
        from cnnvis_cli.validation import read_settings

        table = _read_toml(config) if config else {}
        for name, value in flags.items():
            if value is None or value == ():
                continue
            *sections, key = name.split("__")
            place = table
            for section in sections:
                place = place.setdefault(section, {})
            if isinstance(place, dict):  # a section that is not a table is refused below
                place[key] = value
        plan: Plan = read_settings(cls, table, str(config or "the command line"))
        plan.figure.check()
        if plan.shard and plan.scheduler:
            raise UsageError(
                "--shard and --scheduler: a cluster takes all the work; give only one of them"
            )
        return plan


LARGEST_FILE = 1 << 16  # bytes of a settings file; the bundled ones have about 300


def _read_toml(config: Path) -> dict[str, Any]:
    try:
        status = config.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{config}: is not a file")
        if status.st_size > LARGEST_FILE:
            raise UsageError(f"{config}: has {status.st_size} bytes, more than {LARGEST_FILE}")
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{config}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, too
        raise UsageError(f"{config}: is not TOML ({error})") from None
