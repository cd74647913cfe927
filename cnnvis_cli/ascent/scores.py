"""Scores of optimized images, to sort many of them by.

No score knows what a picture shows; they put failed ones last, and the rest is judged by eye.
All take images x, mean-subtracted in 0..255 units (N, 3, h, w).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnvis_cli.ascent.regularizers import Blur
from cnnvis_cli.registry import Registry

Leads = Callable[[Tensor], Tensor]
"""From images (B, 3, h, w), mean-subtracted: whether the unit is the largest of its layer, (B,)."""

MOST_SHIFT = (
    4  # pixels at most; the unit's own class survived it on seven of eight SqueezeNet images
)
SHIFTED = 8  # a shift is at most this fraction (1/8) of the shorter side
SCORE_BLUR = 1.0  # pixels, sigma
SCALES = (0.9, 1.1)
GREY_SHARE = (
    0.1  # of the picture's largest deviation: hardly seen when that is stretched to black, white
)
FAINT = 0.1  # grey levels; a quarter of the faintest picture that the calibration accepts


@dataclass(frozen=True)
class Scores:
    """The scores of N images, and what each can and cannot tell; all are (N,).

    `activation`: what the ascent maximises. It compares images of one unit only, and is largest for
    the harsh, unnatural pictures that regularization avoids.

    `robustness`: the share of `disturbances` after which the unit is still the largest of its
    layer. It separates images that show the unit something from noise that happens to activate it.
    It does not tell whether a person sees it too, and cannot rank images that survive all
    disturbances.

    `variation`: the mean difference between neighbouring pixels, in grey levels. It separates noise
    from smooth pictures of the same contrast, but fainter pictures always have less of it, and
    blank ones none; `roughness` is independent of contrast.

    `grey`: the share of pixels that hardly differ from the mean colour. It tells how much of the
    picture is empty, a fault of failed pictures but the aim of sparse ones.

    `clipped`: the share of values at black or white. A high share means that the step was too
    large; a low one says nothing.

    `deviation`: the standard deviation of all values, in grey levels. It tells whether there is
    anything to see. It does not measure quality: images of whole classes that were plain to see had
    0.6 to 1.1 at the paper's step, and failed ones may have any value.
    """

    activation: Tensor
    robustness: Tensor
    variation: Tensor
    grey: Tensor
    clipped: Tensor
    deviation: Tensor

    @property
    def roughness(self) -> Tensor:
        """Return variation per deviation, as seen in pictures stretched to one contrast: (N,).

        White noise has about 1.9, smooth pictures well below 1. It cannot separate noise from a
        fine texture that the unit responds to. It is infinite for blank pictures.
        """
        return torch.where(self.deviation > 0, self.variation / self.deviation, torch.inf)


def score(images: Tensor, activation: Tensor, leads: Leads, mean: Tensor) -> Scores:
    """Return all scores of some images, on the CPU.

    Parameters
    ----------
    images : (N, 3, h, w) mean-subtracted
    activation : (N,) the unit's value for each
    leads : called once per disturbance, with all images together
    mean : (1, 3, 1, 1) the mean colour, on the device of the images
    """
    columns = (
        activation,
        robustness(leads, images),
        variation(images),
        grey_share(images),
        clipped_share(images, mean),
        images.flatten(1).std(dim=1),
    )
    return Scores(*(column.detach().cpu().float() for column in columns))


@dataclass(frozen=True)
class Disturbance:
    """A change of pictures that keeps what they show: (B, 3, h, w) -> the same shape."""

    name: str
    change: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        return self.change(images)


def disturbances() -> tuple[Disturbance, ...]:
    """Return eight small changes of a picture; the border is filled by repeating the edge.

    Shifts are by 4 pixels, or an eighth of the shorter side where that is less (at least 1); the
    blur has a sigma of 1 pixel; scaling is about the centre with linear interpolation. On canvases
    of up to 3 pixels, reduction changes nothing and stands for the picture itself.
    """
    smaller, larger = SCALES
    return (
        Disturbance("left", lambda x: shift(x, 0, -most_shift(x))),
        Disturbance("right", lambda x: shift(x, 0, most_shift(x))),
        Disturbance("up", lambda x: shift(x, -most_shift(x), 0)),
        Disturbance("down", lambda x: shift(x, most_shift(x), 0)),
        Disturbance("blurred", blur),
        Disturbance("smaller", lambda x: rescale(x, smaller)),
        Disturbance("larger", lambda x: rescale(x, larger)),
        Disturbance("right and blurred", lambda x: blur(shift(x, 0, most_shift(x)))),
    )


def most_shift(images: Tensor) -> int:
    """Return by how many pixels images of this size are shifted."""
    return min(MOST_SHIFT, max(1, min(images.shape[2:]) // SHIFTED))


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Return the pictures moved by whole pixels; the border is filled by repeating the edge."""
    rows, columns = (
        (torch.arange(size, device=images.device) - by).clamp(0, size - 1)
        for size, by in zip(images.shape[2:], (down, right), strict=True)
    )
    return images[:, :, rows][:, :, :, columns]


def blur(images: Tensor) -> Tensor:
    """Return the pictures blurred as the regularizer blurs them."""
    return Blur(SCORE_BLUR, 1)(images, images, 0)


def rescale(images: Tensor, factor: float) -> Tensor:
    """Return the pictures scaled about their centre, cropped or extended to the same size.

    Two matrix products stay centred for any size and are deterministic on any device; resizing to
    whole pixels and cropping is off by up to half a pixel.
    """
    rows, columns = (_scaling(size, factor).to(images) for size in images.shape[2:])
    return rows @ images @ columns.T


def _scaling(size: int, factor: float) -> Tensor:
    """Return the linear interpolation from a line to its scaled version: (size, size)."""
    line = torch.arange(size, dtype=torch.float64)
    centre = (size - 1) / 2
    places = ((line - centre) / factor + centre).clamp(0, size - 1)
    return (1 - (places[:, None] - line).abs()).clamp(min=0)


def robustness(leads: Leads, images: Tensor) -> Tensor:
    """Return the share of disturbances after which the unit still leads: (N, 3, h, w) -> (N,).

    The undisturbed pictures do not count.
    """
    held = torch.stack([leads(disturbance(images)) for disturbance in disturbances()])
    return held.float().mean(dim=0)


def variation(images: Tensor) -> Tensor:
    """Return the mean total variation per pixel, in grey levels: (N, 3, h, w) -> (N,).

    Per pixel it is the length of the difference to the neighbours below and right, as the root mean
    square over the channels; beyond the last row and column the difference is 0.
    """
    down, right = torch.zeros_like(images), torch.zeros_like(images)
    down[:, :, :-1] = images.diff(dim=2)
    right[:, :, :, :-1] = images.diff(dim=3)
    return (down.square() + right.square()).mean(dim=1).sqrt().mean(dim=(1, 2))


def grey_share(images: Tensor) -> Tensor:
    """Return the share of pixels that look like the mean colour: (N, 3, h, w) -> (N,).

    Every channel of such a pixel differs from it by less than a tenth of the picture's largest
    deviation, since pictures are stretched for display, or by less than 0.1 grey levels.
    """
    size = images.abs().amax(dim=1)  # (N, h, w)
    threshold = (GREY_SHARE * size.amax(dim=(1, 2))).clamp(min=FAINT)
    return (size < threshold[:, None, None]).float().mean(dim=(1, 2))


def clipped_share(images: Tensor, mean: Tensor) -> Tensor:
    """Return the share of values at 0 or 255, where the ascent clips: (N, 3, h, w) -> (N,)."""
    return ((images <= -mean) | (images >= 255 - mean)).float().mean(dim=(1, 2, 3))


SCORES: Registry[Callable[[Scores], Tensor]] = Registry("score")
"""The ways to sort images: from scores to numbers (N,), where larger is better."""


@SCORES.register("balanced")
def _balanced(scores: Scores) -> Tensor:
    """Put the most robust first, and among equally robust ones those both strong and smooth.

    Strong and smooth is the sum of two ranks among these images, by activation and by low
    roughness. Variation would put the faintest pictures first.
    """
    merit = _beaten(scores.activation) + _beaten(-scores.roughness)
    return _beaten(scores.robustness) + merit / (2 * len(merit))  # merit only breaks ties


@SCORES.register("activation")
def _activation(scores: Scores) -> Tensor:
    """Put the strongest first."""
    return scores.activation


@SCORES.register("robustness")
def _robustness(scores: Scores) -> Tensor:
    """Put those first that still activate their unit most after any disturbance."""
    return scores.robustness


@SCORES.register("variation")
def _variation(scores: Scores) -> Tensor:
    """Put those first whose neighbouring pixels differ least: the smoothest and the faintest."""
    return -scores.variation


@SCORES.register("roughness")
def _roughness(scores: Scores) -> Tensor:
    """Put the smoothest first, whatever their contrast."""
    return -scores.roughness


@SCORES.register("grey")
def _grey(scores: Scores) -> Tensor:
    """Put those first that fill the picture."""
    return -scores.grey


def order(scores: Scores, by: str = "balanced") -> list[int]:
    """Return the images from the best to the worst; equal ones in their order, and NaN last."""
    merit = _without_nan(SCORES[by](scores))
    return torch.argsort(merit, descending=True, stable=True).tolist()


def _beaten(values: Tensor) -> Tensor:
    """Return how many of the others each value is larger than: (N,) -> (N,)."""
    values = _without_nan(values)
    return (values[:, None] > values[None]).sum(dim=1).double()


def _without_nan(values: Tensor) -> Tensor:
    return torch.where(values.isnan(), -torch.inf, values)
