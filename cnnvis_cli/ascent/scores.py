"""Numbers for what the eye judges in optimized images, to sort many of them by.

None of them knows what a picture shows; they put the hopeless ones last, and the rest is for the
eye. All are of images x, mean-subtracted in 0..255 units (N, 3, h, w).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnvis_cli.ascent.regularizers import Blur
from cnnvis_cli.registry import Registry

Leads = Callable[[Tensor], Tensor]
"""Images (B, 3, h, w), mean-subtracted: for which the unit is the largest of its layer, (B,)."""

SHIFT = 4  # pixels at most; the unit's own class survived it on seven of eight SqueezeNet images
SHIFTED = 8  # a shift is at most one in so many pixels of the shorter side
BLUR = 1.0  # pixels, sigma
SCALES = (0.9, 1.1)
GREY = 0.1  # of the picture's largest deviation: hardly seen when that is stretched to black, white
FAINT = 0.1  # grey levels; a quarter of the faintest picture that the calibration accepts


@dataclass(frozen=True)
class Scores:
    """What can be measured of N images, and what it can and cannot tell; all are (N,).

    `activation`: what the ascent was for. It compares images of one unit only, and is largest for
    the hard, unnatural pictures that regularization is there to avoid.

    `robustness`: the share of `disturbances` after which the unit is still the largest of its
    layer. It tells images that show something to the unit from noise that happens to excite it. It
    cannot tell whether a person sees it too, and cannot rank those that all disturbances spare.

    `variation`: the mean difference between neighbouring pixels, in grey levels. It tells noise
    from smooth pictures of the same contrast, but a fainter picture always has less of it, and one
    with nothing on it has none; `roughness` is without the contrast.

    `grey`: the share of pixels that hardly differ from the mean colour. It tells how much of the
    picture is empty, which is a fault of failed pictures and the very aim of sparse ones.

    `clipped`: the share of values at black or white. Many mean that the step was too large; a few
    tell nothing.

    `deviation`: the standard deviation of all values, in grey levels. It tells whether there is
    anything to be seen. It is no measure of quality: images of whole classes that were plain to see
    had from 0.6 to 1.1 at the paper's step, and failed ones have any.
    """

    activation: Tensor
    robustness: Tensor
    variation: Tensor
    grey: Tensor
    clipped: Tensor
    deviation: Tensor

    @property
    def roughness(self) -> Tensor:
        """Variation per deviation, as the eye sees it in pictures stretched to one contrast: (N,).

        White noise has about 1.9, smooth pictures well below 1. It cannot tell noise from a fine
        texture that the unit does look for. Infinite where there is nothing to stretch.
        """
        return torch.where(self.deviation > 0, self.variation / self.deviation, torch.inf)


def score(images: Tensor, activation: Tensor, leads: Leads, mean: Tensor) -> Scores:
    """All scores of some images, on the CPU.

    Parameters
    ----------
    images : (N, 3, h, w) mean-subtracted
    activation : (N,) the unit's value for each
    leads : asked once per disturbance, about all images together
    mean : (1, 3, 1, 1) the mean colour, on the device of the images
    """
    columns = (
        activation,
        robustness(leads, images),
        variation(images),
        grey(images),
        clipped(images, mean),
        images.flatten(1).std(dim=1),
    )
    return Scores(*(column.detach().cpu().float() for column in columns))


@dataclass(frozen=True)
class Disturbance:
    """A change of pictures that leaves what they show: (B, 3, h, w) -> the same shape."""

    name: str
    change: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        return self.change(images)


def disturbances() -> tuple[Disturbance, ...]:
    """Eight small changes of a picture; what enters at the border repeats its edge.

    Shifts go by 4 pixels, or an eighth of the shorter side where that is less (at least 1); the
    blur has a sigma of 1 pixel; scaling is about the centre and interpolates linearly. On canvases
    of up to 3 pixels making it smaller changes nothing, and stands for the picture itself.
    """
    smaller, larger = SCALES
    return (
        Disturbance("left", lambda x: shift(x, 0, -reach(x))),
        Disturbance("right", lambda x: shift(x, 0, reach(x))),
        Disturbance("up", lambda x: shift(x, -reach(x), 0)),
        Disturbance("down", lambda x: shift(x, reach(x), 0)),
        Disturbance("blurred", blur),
        Disturbance("smaller", lambda x: rescale(x, smaller)),
        Disturbance("larger", lambda x: rescale(x, larger)),
        Disturbance("right and blurred", lambda x: blur(shift(x, 0, reach(x)))),
    )


def reach(images: Tensor) -> int:
    """How many pixels images of this size are shifted by."""
    return min(SHIFT, max(1, min(images.shape[2:]) // SHIFTED))


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """The pictures moved by whole pixels; what enters repeats the edge."""
    rows, columns = (
        (torch.arange(size, device=images.device) - by).clamp(0, size - 1)
        for size, by in zip(images.shape[2:], (down, right), strict=True)
    )
    return images[:, :, rows][:, :, :, columns]


def blur(images: Tensor) -> Tensor:
    """The pictures blurred as the regularizer blurs them."""
    return Blur(BLUR, 1)(images, images, 0)


def rescale(images: Tensor, factor: float) -> Tensor:
    """The pictures enlarged by a factor about their centre, cut or continued to the same size.

    As two matrix products, which stay centred on any size and are deterministic on any device;
    resizing to whole pixels and cropping is off by up to half a pixel.
    """
    rows, columns = (_scaling(size, factor).to(images) for size in images.shape[2:])
    return rows @ images @ columns.T


def _scaling(size: int, factor: float) -> Tensor:
    """Linear interpolation at the places that a scaled line comes from: (size, size)."""
    line = torch.arange(size, dtype=torch.float64)
    centre = (size - 1) / 2
    places = ((line - centre) / factor + centre).clamp(0, size - 1)
    return (1 - (places[:, None] - line).abs()).clamp(min=0)


def robustness(leads: Leads, images: Tensor) -> Tensor:
    """The share of disturbances after which the unit still leads its layer: (N, 3, h, w) -> (N,).

    The pictures themselves do not count.
    """
    held = torch.stack([leads(disturbance(images)) for disturbance in disturbances()])
    return held.float().mean(dim=0)


def variation(images: Tensor) -> Tensor:
    """The mean total variation per pixel, in grey levels: (N, 3, h, w) -> (N,).

    Of each pixel the length of the difference to the neighbours below and right, as the root mean
    square over the channels; beyond the last row and column there is no difference.
    """
    down, right = torch.zeros_like(images), torch.zeros_like(images)
    down[:, :, :-1] = images.diff(dim=2)
    right[:, :, :, :-1] = images.diff(dim=3)
    return (down.square() + right.square()).mean(dim=1).sqrt().mean(dim=(1, 2))


def grey(images: Tensor) -> Tensor:
    """The share of pixels that look like the mean colour: (N, 3, h, w) -> (N,).

    Those of which every channel differs from it by less than a tenth of the picture's largest
    deviation, since pictures are stretched to be shown, or by less than 0.1 grey levels.
    """
    size = images.abs().amax(dim=1)  # (N, h, w)
    threshold = (GREY * size.amax(dim=(1, 2))).clamp(min=FAINT)
    return (size < threshold[:, None, None]).float().mean(dim=(1, 2))


def clipped(images: Tensor, mean: Tensor) -> Tensor:
    """The share of values at 0 or 255, where the ascent clips them: (N, 3, h, w) -> (N,)."""
    return ((images <= -mean) | (images >= 255 - mean)).float().mean(dim=(1, 2, 3))


SCORES: Registry[Callable[[Scores], Tensor]] = Registry("score")
"""What images can be sorted by: from scores to numbers (N,) of which the larger is the better."""


@SCORES.register("balanced")
def _balanced(scores: Scores) -> Tensor:
    """The most robust first; of equally robust ones those that are both strong and smooth.

    Strong and smooth is the sum of two ranks among these images, by activation and by low
    roughness. Not by variation: that would put the faintest pictures first.
    """
    merit = _beaten(scores.activation) + _beaten(-scores.roughness)
    return _beaten(scores.robustness) + merit / (2 * len(merit))  # merit only breaks ties


@SCORES.register("activation")
def _activation(scores: Scores) -> Tensor:
    """The strongest first."""
    return scores.activation


@SCORES.register("robustness")
def _robustness(scores: Scores) -> Tensor:
    """Those first that mean their unit whatever is done to them."""
    return scores.robustness


@SCORES.register("variation")
def _variation(scores: Scores) -> Tensor:
    """Those first whose neighbouring pixels differ least: the smoothest, and the faintest."""
    return -scores.variation


@SCORES.register("roughness")
def _roughness(scores: Scores) -> Tensor:
    """The smoothest first, whatever their contrast."""
    return -scores.roughness


@SCORES.register("grey")
def _grey(scores: Scores) -> Tensor:
    """Those first that fill the picture."""
    return -scores.grey


def order(scores: Scores, by: str = "balanced") -> list[int]:
    """The images from the best to the worst; of equal ones the earlier, and NaN last."""
    merit = _without_nan(SCORES[by](scores))
    return torch.argsort(merit, descending=True, stable=True).tolist()


def _beaten(values: Tensor) -> Tensor:
    """How many of the others each value is larger than: (N,) -> (N,)."""
    values = _without_nan(values)
    return (values[:, None] > values[None]).sum(dim=1).double()


def _without_nan(values: Tensor) -> Tensor:
    return torch.where(values.isnan(), -torch.inf, values)
