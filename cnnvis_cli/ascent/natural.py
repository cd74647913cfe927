"""Pictures with the colours and the spectrum of photographs, found under rough conditions.

Lucid's pictures are violet and strewn with dots on many networks: the network rewards colours and
fine patterns that no photograph has. Here the picture begins with what photographs have, and has to
excite its unit while it is rolled, zoomed, rotated and shown under grain.

The statistics are those of 200 photographs of ImageNet's validation set (the middle 224 pixels of
256), as logits of their values: what a sigmoid turns into pixels. They follow a power law in each
of three uncorrelated colours (van der Schaaf & van Hateren 1996, "Modelling the power spectra of
natural images"), with more along rows and columns than across.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.ascent.fourier import FourierParameterization, PictureStatistics

if TYPE_CHECKING:
    from cnnvis_cli.ascent.styles import Style, Updater

PHOTOGRAPH_COLOURS = (
    (0.1574, -0.5464, -1.3622),
    (-0.3027, -0.0361, -1.4370),
    (0.1442, 0.5204, -1.5299),
)
"""A root of the colours' covariance; columns: green to magenta, red to blue, dark to light."""

OFFSET = (-0.0755, -0.2659, -0.5588)  # the mean of red, green and blue

HEIGHT = (0.0379, 0.0253, 0.0272)  # of each colour, at one cycle per pixel
FALL = (1.26, 1.38, 1.43)  # height ~ frequency ** -fall
UPRIGHT = (0.16, 0.20, 0.24)  # logarithm of how much higher rows and columns are than the mean

SMALL = 64  # pixels: the longer side from which on the contrast is the style's


@dataclass(frozen=True)
class NaturalParameterization(FourierParameterization):
    """A Fourier picture with the statistics of photographs; the moves are larger than lucid's.

    `contrast` scales the spectrum, and so how far one of Adam's steps goes. Canvases smaller than
    `SMALL` get more of it: photographs hold little within a few pixels, and the units that see no
    more want edges at full contrast.
    """

    spread: float = 0.2
    jitter: float = 0.1
    scale: float = 0.25
    rotate: float = 15.0
    contrast: float = 0.5
    noise: float = 20.0  # grey levels

    @property
    def grain(self) -> float:
        return self.noise

    def begin(
        self, style: Style, start: Tensor, mean: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Updater]:
        """Begin as a Fourier picture does, with smaller moves on small canvases."""
        share = min(1.0, max(start.shape[2:]) / SMALL)
        moves = {
            name: share * getattr(self, name) for name in ("spread", "jitter", "scale", "rotate")
        }
        calm = replace(self, **moves)
        return super(NaturalParameterization, calm).begin(style, start, mean, seeds)

    def statistics(self, canvas: tuple[int, int]) -> PictureStatistics:
        """Return the colours and the spectrum of photographs; see the head of this module."""
        larger = max(1.0, SMALL / max(canvas))
        scale = natural_spectrum(canvas) * self.contrast * larger
        return PictureStatistics(scale, np.array(PHOTOGRAPH_COLOURS), np.array(OFFSET))


def natural_spectrum(canvas: tuple[int, int]) -> NDArray[np.float64]:
    """Return the mean height of each frequency, (3, h, w // 2 + 1), as numpy's rfft2 gives it."""
    h, w = canvas
    down, right = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]
    frequency = np.maximum(np.hypot(down, right), 1 / max(h, w))
    upright = np.cos(4 * np.arctan2(down, right))
    scales = [
        height * frequency**-fall * np.exp(more * upright)
        for height, fall, more in zip(HEIGHT, FALL, UPRIGHT, strict=True)
    ]
    found: NDArray[np.float64] = np.stack(scales) * np.sqrt(h * w)
    return found
