"""The types shared by all floors: units, layers, boxes and receptive fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cnnvis_cli.errors import UsageError

Kind = Literal["conv", "fc", "token"]
Reads = Literal["module", "function", "attention"]
Size = tuple[int, int]  # (height, width)
Point = tuple[float, float]  # x to the right, y downwards


def size_text(size: Size) -> str:
    """Return height and width as text: ``13x13``."""
    return f"{size[0]}x{size[1]}"


@dataclass(frozen=True, order=True)
class Unit:
    """One channel of a layer: prints, parses, sorts and files itself as ``conv5/0042``."""

    layer: str
    channel: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.channel:04d}"

    @classmethod
    def parse(cls, text: str) -> Unit:
        """Read ``conv5/0042`` or ``conv5/42``; raise `UsageError` for anything else."""
        layer, slash, channel = text.rpartition("/")
        if not (layer and slash and channel.isascii() and channel.isdigit()):
            raise UsageError(f"{text!r} is not a unit; write it as layer/channel, like conv5/0042")
        return cls(layer, int(channel))


class Box(NamedTuple):
    """A half-open window in input pixels; it may reach outside the image."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> Size:
        return self.bottom - self.top, self.right - self.left

    def clip(self, size: Size) -> Box:
        """Return the part of this box that lies inside an image of `size` (height, width)."""
        height, width = size
        return Box(
            max(self.top, 0), max(self.left, 0), min(self.bottom, height), min(self.right, width)
        )

    def tile(self, size: Size) -> Box:
        """Return the window that figures cut: this box, or all of an axis that it outgrows."""
        top, bottom = (self.top, self.bottom) if self.size[0] <= size[0] else (0, size[0])
        left, right = (self.left, self.right) if self.size[1] <= size[1] else (0, size[1])
        return Box(top, left, bottom, right)

    def within(self, frame: Box) -> Box:
        """Return this box in the coordinates of another one."""
        top, left = frame.top, frame.left
        return Box(self.top - top, self.left - left, self.bottom - top, self.right - left)

    def inside(self, size: Size) -> bool:
        """Return whether the whole box lies in an image of `size` (height, width)."""
        return self == self.clip(size)

    @classmethod
    def whole(cls, size: Size) -> Box:
        """Return the box that is the image itself."""
        return cls(0, 0, *size)


@dataclass(frozen=True)
class Axis:
    """One axis of a field: output i sees input pixels ``start + stride i`` to ``+ size``."""

    size: int = 1
    stride: int = 1
    start: int = 0

    def then(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Axis:
        """Return the field of the output of a sliding window over this axis.

        The recursion of Dumoulin & Visin 2016 (arXiv:1603.07285): a window widens the field by
        its extent times the stride so far, and multiplies the stride.
        """
        return Axis(
            size=self.size + dilation * (kernel - 1) * self.stride,
            stride=self.stride * stride,
            start=self.start - padding * self.stride,
        )

    def join(self, other: Axis) -> Axis:
        """Return the field through two branches that meet: the smallest interval covering both."""
        if self.stride != other.stride:
            raise ValueError(f"branches of strides {self.stride} and {other.stride} cannot meet")
        start = min(self.start, other.start)
        end = max(self.start + self.size, other.start + other.size)
        return Axis(end - start, self.stride, start)

    def interval(self, index: int) -> tuple[int, int]:
        """Return the input pixels, from (inclusive) to (exclusive), that output `index` sees."""
        begin = self.start + self.stride * index
        return begin, begin + self.size


@dataclass(frozen=True)
class ReceptiveField:
    """The input pixels that each place of a map sees."""

    rows: Axis = Axis()
    columns: Axis = Axis()

    @classmethod
    def whole(cls, size: Size) -> ReceptiveField:
        """Return the field of a map whose every place sees the whole input of `size`."""
        return cls(Axis(size[0], 0, 0), Axis(size[1], 0, 0))

    @property
    def size(self) -> Size:
        return self.rows.size, self.columns.size

    @property
    def stride(self) -> Size:
        return self.rows.stride, self.columns.stride

    def join(self, other: ReceptiveField) -> ReceptiveField:
        return ReceptiveField(self.rows.join(other.rows), self.columns.join(other.columns))

    def box(self, row: int, column: int) -> Box:
        """Return the input window of one place of the map, not clipped to the image."""
        top, bottom = self.rows.interval(row)
        left, right = self.columns.interval(column)
        return Box(top, left, bottom, right)


@dataclass(frozen=True)
class Arrangement:
    """How to find an image's map in a module's output whose rows are tokens, windows or images.

    The dimension `channel` holds the channels; without it, `images` is the dimension that begins
    with the image, and each image has `length` numbers there. Number ``order[i]`` is place i of the
    map, row by row; those in `apart` belong to no place (class and register tokens, padding).
    Without an order, rows and columns are the dimensions before the channels.
    """

    channel: int
    images: int
    length: int
    order: tuple[int, ...]
    apart: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A layer whose units have a value per place: a module's own output, before any rectifier.

    `kind` is ``conv`` for convolutions and for linear layers that work place by place, ``token``
    for linear layers on tokens, and ``fc`` for those with one value per unit. `field` is all that a
    place sees; `local` leaves out what reaches it only through a gate that all places share, the
    statistics of a normalisation, or attention: the part of the input that a place is about.
    """

    alias: str
    module: str
    kind: Kind
    channels: int
    map: Size
    field: ReceptiveField
    calls: int = 1  # number of runs in one forward pass
    narrow: ReceptiveField | None = None  # the local field where it is less than all
    arrangement: Arrangement | None = dataclasses.field(default=None, compare=False, repr=False)
    reads: Reads = "module"  # whose output it is: see `network.survey`

    @property
    def local(self) -> ReceptiveField:
        """The part of the input that each place is about."""
        return self.narrow or self.field

    @property
    def apart(self) -> int:
        """How many tokens of an image are no place of the map: class and register tokens."""
        return len(self.arrangement.apart) if self.arrangement else 0

    @property
    def needs_local_fields(self) -> bool:
        """Whether it has tokens, or places that are about less than they see."""
        return self.kind == "token" or self.narrow is not None

    def tile_size(self, size: Size) -> Size:
        """Return the size of the windows that figures cut from inputs of `size`."""
        return self.local.box(0, 0).tile(size).size

    @property
    def centre(self) -> tuple[int, int]:
        """The row and column of the map's centre unit; (0, 0) for a fully connected layer."""
        return self.map[0] // 2, self.map[1] // 2


def units_text(units: Sequence[int]) -> str:
    """Return channels in a row as text: ``unit 1`` or ``units 2 to 5``."""
    return f"unit {units[0]}" if len(units) == 1 else f"units {units[0]} to {units[-1]}"


def parse_units(text: str, channels: int, layer: str) -> tuple[int, ...]:
    """Return the channels of a selection like ``0-63,151``, sorted; an empty text selects all.

    Raise `UsageError` for a malformed selection or a channel that the layer does not have.
    """
    if not text:
        return tuple(range(channels))
    chosen: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() for end in ends) or int(ends[0]) > int(ends[1]):
            raise UsageError(
                f"--units {text!r}: {piece!r} is not a channel or range, like 0-63,151"
            )
        if int(ends[1]) >= channels:
            raise UsageError(
                f"--units {text!r}: {layer} has no unit {ends[1]}; it has 0 to {channels - 1}"
            )
        chosen.update(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(chosen))


Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]


@dataclass(frozen=True)
class Column:
    """A column of a paper: its width and the height of its text, in points, 72 per inch."""

    width: float
    points: float


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    `resize` is the length of the shorter side in pixels, or (height, width) to change the shape
    too; then the centre `crop` (height, width) is cut. `mean` and `std` are per channel in RGB
    order and 0..255 units; `bgr` reverses the channels for networks trained in Caffe; `grey` makes
    images grey first, all three channels alike; `upright` turns them as EXIF says.
    """

    resize: int | Size = 256
    crop: Size = (224, 224)
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet, torchvision's values
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    bgr: bool = False
    interpolation: Interpolation = "bilinear"
    grey: bool = False
    upright: bool = False
